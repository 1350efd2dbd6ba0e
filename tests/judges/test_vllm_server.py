"""A real vLLM server judges (see tests/real_vllm.py)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_eval.errors import JudgeError
from lora_eval.judges.local import run_locally
from lora_eval.judges.run import run_plan
from lora_eval.pocket import model_path
from lora_eval.serve import LocalServer, Serving
from tests.conftest import save_tiny_adapter
from tests.judges.judged import plan_of, write_answers
from tests.real_vllm import needs_vllm

pytestmark = needs_vllm()


@pytest.fixture(scope="module")
def server(tiny_llama: Path) -> Iterator[str]:
    """The URL of the tiny model, served."""
    serving = Serving(tiny_llama, "stub", dtype="float32", more=("--max-num-seqs", "16"))
    with LocalServer(serving, lambda *said: None) as running:
        yield running.url


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


def test_answers_of_the_embedded_model_are_judged_from_end_to_end(server, run_cli, tiny_llama, tmp_path):
    """Base and adapter answer, the server judges, and the report is that of the same judge in our engine."""
    save_tiny_adapter(model_path(), tmp_path / "adapter")
    asked = ("What is three plus four?", "Say hello.", "Name a colour.")
    questions = tmp_path / "questions.jsonl"
    rows = [{"question_id": n, "category": "writing", "turns": [text]} for n, text in enumerate(asked)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    arms = ("--base", model_path(), "--adapter", f"tuned={tmp_path / 'adapter'}")
    options = ("--questions", questions, "--max-new-tokens", 12, "--temperature", 0)
    done = run_cli("judge", "answers", *arms, *options, "--out", tmp_path / "answers", "-q")
    assert done.status == 0, done.stderr
    texts = [(tmp_path / "answers" / f"{arm}.jsonl").read_text("utf-8") for arm in ("base", "tuned")]
    assert texts[0] != texts[1]

    def judged(*judge):
        answers = [f"--answers={arm}={tmp_path / 'answers' / f'{arm}.jsonl'}" for arm in ("base", "tuned")]
        suite = ("--suite", "pairwise", "--questions", questions, *answers)
        # A random model is a bad judge, and `judge run` says so (status 3) where nobody insists.
        more = ("--judge", "vllm-choice", *judge, "--trust-judge", "--out", tmp_path / judge[1].split(":")[0])
        done = run_cli("judge", "run", *suite, *more, "--json", "-q")
        assert done.status == 0, done.stderr
        return json.loads(done.stdout)

    (served,) = judged("--judge-model", "stub", "--judge-url", server)["pairs"]
    (here,) = judged("--judge-model", f"local:{tiny_llama}")["pairs"]
    assert (served["a"], served["b"], served["n"], served["n_invalid"]) == ("base", "tuned", 3, 0)
    assert served["rate"] == pytest.approx(here["rate"], abs=1e-4)  # rates of probabilities
    assert abs(served["rate"] - 0.5) > 1e-3
