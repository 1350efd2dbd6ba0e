"""Answers of a running server's model: the same prompts, seeds and temperatures as on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from lora_eval.judges.writing import turn_seed
from tests.conftest import save_tiny_adapter
from tests.judges.stub import StubJudge
from tests.smoke.server import TinyServer


@pytest.fixture(autouse=True)
def own_calibrations(tmp_path, monkeypatch):
    """Calibrations lie beside the stored answers: those of other tests are not this user's."""
    monkeypatch.setenv("LORA_EVAL_STORE", str(tmp_path / "store" / "results.sqlite"))


@pytest.fixture
def server(tiny_llama, tiny_adapter) -> Iterator[TinyServer]:
    with TinyServer(tiny_llama, {"live": tiny_adapter}) as running:
        yield running


@pytest.fixture
def questions(write_rows):
    return write_rows(
        [
            {"question_id": 1, "category": "math", "turns": ["One?", "Two?"], "reference": ["1", "2"]},
            {"question_id": 2, "category": "writing", "turns": ["Hi?", "And?"]},
            {"question_id": 3, "category": "extraction", "turns": ["Three?"]},
        ],
        "questions.jsonl",
    )


def rows_of(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_served_arm_answers_what_the_adapter_answers(
    run_cli, server, tiny_llama, tiny_adapter, questions, tmp_path, monkeypatch
):
    bodies, answer = [], server.answer

    def seen(method, place, body):
        bodies.append(body)
        return answer(method, place, body)

    monkeypatch.setattr(server, "answer", seen)
    options = [
        "judge", "answers", "--base", tiny_llama, "--adapter", f"tuned={tiny_adapter}",
        "--arm", f"prod=served:{server.url}#live", "--questions", questions, "--max-new-tokens", 6,
        "--out", tmp_path / "a", "-q",
    ]  # fmt: skip
    result = run_cli(*options)
    assert result.status == 0, result
    own, served = rows_of(tmp_path / "a" / "tuned.jsonl"), rows_of(tmp_path / "a" / "prod.jsonl")
    for mine, theirs in zip(own, served, strict=True):
        same = ("question_id", "temperature", "seeds", "question_turns", "reference", "category")
        assert [mine[name] for name in same] == [theirs[name] for name in same]
        if mine["temperature"] == 0.0:  # both turns: the second stands after the model's own first answer
            assert mine["choices"] == theirs["choices"]
            assert mine["finish_reasons"] == theirs["finish_reasons"]
            assert mine["new_tokens"] == theirs["new_tokens"]
    assert {row["model_id"] for row in served} == {"prod"}
    # MT-Bench's temperature and the turn's own seed are in the request.
    sampled = [body for body in bodies if body.get("temperature") == 0.7]
    assert [body["seed"] for body in sampled] == [turn_seed(0, "2", 1), turn_seed(0, "2", 2)]
    assert {body["model"] for body in sampled} == {"live"}
    # What is there is kept: the server is asked who it is, and nothing else.
    asked = len(sampled)
    assert run_cli(*options).status == 0
    assert sum(body.get("temperature") == 0.7 for body in bodies) == asked


def test_answers_of_other_weights_under_the_same_name_are_not_kept(
    run_cli, tiny_llama, tiny_adapter, questions, tmp_path
):
    save_tiny_adapter(tiny_llama, tmp_path / "next", seed=7)
    with TinyServer(tiny_llama, {"live": tiny_adapter, "next": tmp_path / "next"}) as server:
        options = ["judge", "answers", "--base", tiny_llama, "--questions", questions, "--max-new-tokens", 4]
        options += ["--arm", f"prod=served:{server.url}#live", "--out", tmp_path / "a", "-q"]
        assert run_cli(*options).status == 0
        server.lie = "swap"  # the old name now stands for other weights
        result = run_cli(*options)
    assert result.status == 2
    assert "prod.jsonl: holds answers of other weights" in result.stderr


def test_a_server_that_is_down_is_told_before_any_answer(run_cli, tiny_llama, questions, tmp_path):
    arm = "prod=served:http://127.0.0.1:9/v1#live"
    options = ["judge", "answers", "--base", tiny_llama, "--questions", questions, "--out", tmp_path / "a"]
    result = run_cli(*options, "--arm", arm, "-q")
    assert result.status == 2
    assert "127.0.0.1:9" in result.stderr
    assert not (tmp_path / "a" / "base.jsonl").exists()


@pytest.mark.parametrize("suite", ["pairwise", "alpaca-eval", "mt-bench"])
def test_compare_judges_a_served_arm(run_cli, server, tiny_llama, questions, tmp_path, suite):
    with StubJudge() as stub:
        judge = "mtbench-single" if suite == "mt-bench" else "openai-text"
        result = run_cli(
            "compare", "--base", tiny_llama, "--arm", f"prod=served:{server.url}#live", "--suite", suite,
            "--questions", questions, "--max-new-tokens", 4, "--judge", judge, "--judge-model", "stub",
            "--judge-url", stub.url, "--out", tmp_path / "out", "--json",
        )  # fmt: skip
    assert result.status == 0, result
    found = json.loads(result.stdout)
    assert [(arm["name"], arm["kind"]) for arm in found["arms"]] == [("base", "base"), ("prod", "served")]
    assert found["arms"][1]["path"] == f"{server.url}#live"
    assert found["tasks"][0]["n"] == (5 if suite == "mt-bench" else 3)
    run = json.loads((tmp_path / "out" / "runs" / "prod" / "run.json").read_text("utf-8"))
    assert (run["engine"], run["dtype"]) == ("http", "as served")
    assert any("arm prod:" in note for note in found["notes"])  # what the probe found
