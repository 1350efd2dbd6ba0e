"""A real vLLM server judges. It fits no environment with our other extras, so this runs where it is installed
(docs/vllm.md says how) and is skipped elsewhere.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_eval.errors import JudgeError
from lora_eval.judges.local import run_locally
from lora_eval.judges.run import run_plan
from tests.judges.judged import plan_of, write_answers

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None,
        reason="vllm is not installed; it needs an environment of its own (docs/vllm.md)",
    ),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def server(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the tiny model, served."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"--model": tiny_llama, "--served-model-name": "stub", "--host": "127.0.0.1", "--port": port,
               "--dtype": "float32", "--max-num-seqs": 16}  # fmt: skip
    words = [str(word) for option in options.items() for word in option]
    log = tmp_path_factory.mktemp("vllm") / "log.txt"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager", *words],
            stdout=file, stderr=file, start_new_session=True,
            env=os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"},
        )  # fmt: skip
    try:
        for _ in range(600):
            if process.poll() is not None or _answers(port):
                break
            time.sleep(0.5)
        assert _answers(port), log.read_text("utf-8", "replace")[-3000:]
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(port: int) -> bool:
    try:
        return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=2).status == 200)
    except OSError:
        return False


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return write_answers(tmp_path, {"base": [0.0, 1.0, 2.0], "tuned": [1.0, 0.5, 2.5]})


def test_a_constrained_verdict_has_the_probabilities_of_both_labels(server, files, tiny_llama, tmp_path):
    """They equal those that our own engine computes for the labels: no coin toss, nothing ignored."""
    from lora_eval.cli.judge_local import open_judge

    plan = plan_of(files, server, "vllm-choice")
    served = run_plan(plan, tmp_path / "served", max_cost=None)
    assert not served.notes
    judge = open_judge(str(tiny_llama), "tiny", lambda *said: None)
    ours = run_locally(plan, tmp_path / "local", judge, lambda *said: None)
    for theirs, own in zip(served.verdicts, ours.verdicts, strict=True):
        assert theirs.value not in (0.0, 0.5, 1.0)
        assert theirs.value == pytest.approx(own.value, abs=2e-3)
        assert theirs.text in ("A", "B")
        assert theirs.model == "stub"
        assert theirs.input_tokens > 100


def test_a_model_that_gives_no_verdict_is_counted(server, files, tmp_path):
    prompt = tmp_path / "short.yaml"
    prompt.write_text("messages: [{role: user, content: '{question} {answer_a} or {answer_b}?'}]", "utf-8")
    changes = {"template": str(prompt)}
    plan = plan_of(files, server, "skywork-critic", limit=1, changes=changes)
    outcome = run_plan(plan, tmp_path / "out", max_cost=None)
    assert [verdict.value for verdict in outcome.verdicts] == [None] * 6
    assert all("no verdict" in verdict.reason or "cut off" in verdict.reason for verdict in outcome.verdicts)


def test_a_prompt_that_does_not_fit_is_told(server, files, tmp_path):
    with pytest.raises(JudgeError, match="maximum context length is 1024 tokens"):
        run_plan(plan_of(files, server, "skywork-critic"), tmp_path / "out", max_cost=None)
