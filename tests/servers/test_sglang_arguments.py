"""SGLang's own parser takes what is written. It needs an environment of its own, whose Python is
$LORA_EVAL_SGLANG_PYTHON; no server is started and no GPU is needed.
"""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from tests.servers.conftest import words_of

PYTHON = os.environ.get("LORA_EVAL_SGLANG_PYTHON")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="$LORA_EVAL_SGLANG_PYTHON names no Python with sglang 0.5.23"),
]
ASK = """
import argparse, json, sys
from sglang.srt.server_args import ServerArgs
parser = argparse.ArgumentParser()
ServerArgs.add_cli_args(parser)
made = parser.parse_args(json.loads(sys.stdin.read()))
names = ("lora_paths", "max_lora_rank", "lora_target_modules", "max_loras_per_batch", "context_length")
print("ANSWER" + json.dumps({name: getattr(made, name) for name in names}))
"""


def parse(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(PYTHON), "-c", ASK], input=json.dumps(words), capture_output=True, text=True, timeout=300
    )


def test_sglang_takes_its_command(rendered) -> None:
    out, record = rendered("sglang")
    words = words_of(out)
    words = words[words.index("--model-path") :]

    done = parse(words)

    (line,) = [line for line in done.stdout.splitlines() if line.startswith("ANSWER")]
    assert json.loads(line.removeprefix("ANSWER")) == {
        "lora_paths": [f"{arm.name}=./{arm.folder}" for arm in record.arms if arm.kind == "adapter"],
        "max_lora_rank": 12,
        "lora_target_modules": ["k_proj", "q_proj", "v_proj"],
        "max_loras_per_batch": 3,
        "context_length": 1024,
    }
    assert parse([*words, "--max-lora-rnk", "8"]).returncode == 2
