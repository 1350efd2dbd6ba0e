"""`compare --suite pairwise|alpaca-eval|mt-bench` is `judge compare`."""

from __future__ import annotations

import json

import pytest


def test_a_judged_suite(run_cli, tiny_llama, tiny_adapter, tmp_path):
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps({"instruction": f"Q {i}?"}) + "\n" for i in range(8)), "utf-8")
    options = [
        "compare",
        "--base",
        tiny_llama,
        "--adapter",
        tiny_adapter,
        "--suite",
        "pairwise",
        "--out",
        tmp_path / "out",
    ]
    asked = [
        "--questions",
        questions,
        "--max-new-tokens",
        6,
        "--judge",
        "vllm-choice",
        "--judge-model",
        f"local:{tiny_llama}",
    ]
    result = run_cli(*options, *asked, "--json")
    assert result.status == 0, result
    (task,) = json.loads(result.stdout)["tasks"]
    assert (task["task"], task["metric"], task["n"]) == ("pairwise", "preference", 8)
    for more, says in (
        (["--suite", "pocket"], "a second --suite"),
        (["--sequential"], "--sequential"),
        (["--plan"], "--plan"),
    ):
        refused = run_cli(*options, *asked, *more)
        assert refused.status == 2
        assert f"takes no {says}" in refused.stderr
    assert "give --judge" in run_cli(*options, "--questions", questions).stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [("--judge", "openai-text"), ("--questions", "q.jsonl"), ("--max-new-tokens", 6), ("--control", 0)],
)
def test_options_of_judged_suites_are_refused_elsewhere(run_cli, tiny_llama, tiny_adapter, option, value):
    arms = ["--base", tiny_llama, "--adapter", tiny_adapter]
    result = run_cli("compare", *arms, "--suite", "pocket", option, value)
    assert result.status == 2
    assert f"{option}: is for a judged suite" in result.stderr
