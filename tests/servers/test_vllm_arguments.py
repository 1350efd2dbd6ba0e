"""vLLM's own parser and configuration take what is written, without a model being loaded (see
tests/real_vllm.py).
"""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from lora_eval.serve import find_vllm
from tests.real_vllm import needs_vllm
from tests.servers.conftest import words_of

pytestmark = needs_vllm()
# The engine's configuration is made too: that step, and not the parser, checks lengths and LoRA settings.
ASK = """
import json, sys
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.usage.usage_lib import UsageContext
answers = []
for words, parse_only in json.loads(sys.stdin.read()):
    try:
        args = make_arg_parser(FlexibleArgumentParser(prog="vllm serve")).parse_args(words)
        validate_parsed_serve_args(args)
        if parse_only:
            answers.append({"tensor": args.tensor_parallel_size, "pipeline": args.pipeline_parallel_size,
                            "executor": args.distributed_executor_backend})
            continue
        made = AsyncEngineArgs.from_cli_args(args).create_engine_config(
            usage_context=UsageContext.OPENAI_API_SERVER)
        lora = made.lora_config
        answers.append({"length": made.model_config.max_model_len, "dtype": str(made.model_config.dtype),
                        "rank": lora and lora.max_lora_rank, "loras": lora and lora.max_loras,
                        "targets": lora and lora.target_modules,
                        "modules": [one.name for one in args.lora_modules or ()]})
    except (Exception, SystemExit) as error:
        answers.append({"error": f"{type(error).__name__}: {error}"})
print("ANSWERS" + json.dumps(answers))
"""


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """`ask([words, ...])` gives vLLM's answer to each command; importing it takes 11 to 60 s."""

    def call(commands, cwd):
        environment = os.environ | {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [find_vllm().python, "-c", ASK],
            input=json.dumps(commands),
            capture_output=True,
            text=True,
            cwd=cwd,
            env=environment,
            timeout=900,
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWERS")]
        assert lines, done.stderr[-3000:]
        return json.loads(lines[-1].removeprefix("ANSWERS"))

    return call


def test_vllm_takes_its_commands(rendered, ask) -> None:
    def command(case, *more):
        words = words_of(rendered(case)[0])
        return [*words[words.index("--model") :], *more]

    two, cpu, alone, several, misspelt = ask(
        [
            (command("vllm"), False),
            (command("vllm-cpu"), False),
            (command("vllm-model"), False),
            (command("vllm-two-machines"), True),  # this machine has neither GPUs nor Ray
            (command("vllm", "--max-lora-rnk", "8"), False),
        ],
        rendered("vllm")[0],
    )

    assert two == {
        "length": 1024,
        "dtype": "torch.bfloat16",
        "rank": 16,
        "loras": 2,
        "targets": ["k_proj", "q_proj", "v_proj"],
        "modules": ["support", "legal"],
    }
    assert (cpu["length"], cpu["loras"]) == (512, 3)
    assert (alone["rank"], alone["modules"]) == (None, [])
    assert several == {"tensor": 2, "pipeline": 2, "executor": "ray"}
    assert "SystemExit" in misspelt["error"]
