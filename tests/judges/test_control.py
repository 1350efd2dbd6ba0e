"""The base against itself before a judge: what is asked, what is found, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_eval.errors import ControlFailed
from lora_eval.judges.answers import read_answers
from lora_eval.judges.control import FEWEST, control_questions, control_result, is_control, with_control
from lora_eval.judges.mt_bench import Question
from lora_eval.judges.profiles import load_profile
from lora_eval.judges.run import run_plan
from tests.judges.judged import plan_of, write_answers
from tests.judges.stub import StubJudge

AGAIN = "base#again"


@given(st.integers(1, 400), st.none() | st.integers(0, 500))
def test_questions_are_spread_and_no_more_than_there_are(number, count):
    asked = {str(i): Question(i, "", (f"{i}?",)) for i in range(number)}
    found = [int(key) for key in control_questions(asked, count)]
    wanted = max(FEWEST, number // 10) if count is None else count
    assert len(found) == min(wanted, number) == len(set(found))
    assert found == sorted(found)
    gaps = np.diff([*found, number]) if found else np.array([number])
    assert gaps.max() - gaps.min() <= 1 or not found


def judged(tmp_path, first, second, tuned, judge="openai-text", bias=0.0, **options):
    """The control's figures and all verdicts, from the stub judge."""
    files = write_answers(tmp_path, {"base": first, "tuned": tuned, AGAIN: second})
    sets = read_answers(files)
    with StubJudge(bias=bias) as stub:
        plan = plan_of({"base": files["base"], "tuned": files["tuned"]}, stub.url, judge, **options)
        whole = with_control(plan, options.get("suite", "pairwise"), sets[0], sets[2])
        verdicts = run_plan(whole, tmp_path / "out", max_cost=None).verdicts
        return plan, whole, verdicts, stub.calls


def test_a_fair_judge_sees_noise(tmp_path):
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(2, 40)).round(3)
    plan, whole, verdicts, calls = judged(tmp_path, first, second, first + 1, bias=0.3)
    assert (len(plan.calls), len(whole.calls), calls) == (80, 160, 160)
    found = control_result(verdicts, AGAIN)
    assert found["passed"] is True
    assert found["prompts"] == 40
    assert found["ci_low"] < 0 < found["ci_high"]
    assert found["difference"] == pytest.approx(
        np.mean([(float(gap > 0.3) + float(gap > -0.3)) / 2 - 0.5 for gap in second - first])
    )
    assert found["position_rate"] > 0.5
    # Nothing of it is in the arms' own figures.
    assert sum(is_control(verdict, AGAIN) for verdict in verdicts) == 80


def test_a_judge_that_tells_the_base_from_itself_ends_the_comparison(tmp_path):
    *_, verdicts, _ = judged(tmp_path, np.zeros(16), np.ones(16), np.ones(16))
    with pytest.raises(ControlFailed, match=r"on 16 prompts .* \+0.500, p = 3e-05"):
        control_result(verdicts, AGAIN)


def test_too_few_prompts_prove_nothing(tmp_path):
    *_, verdicts, _ = judged(tmp_path, np.zeros(8), np.ones(8), np.ones(8))
    found = control_result(verdicts, AGAIN)
    assert (found["passed"], found["p_value"]) == (None, pytest.approx(2 * 0.5**8))


def test_equal_answers_are_asked_about_in_no_order(tmp_path):
    """Where the base decodes greedily, its second answers are its first."""
    values = np.arange(16.0)
    files = write_answers(tmp_path, {"base": values, "tuned": values + 1})
    base, _ = read_answers(files)
    with StubJudge() as stub:
        plan = with_control(plan_of(files, stub.url), "pairwise", base, replace(base, arm=AGAIN))
        verdicts = run_plan(plan, tmp_path / "out", max_cost=None).verdicts
        assert (len(plan.calls), stub.calls) == (64, 32)
    found = control_result(verdicts, AGAIN)
    assert (found["difference"], found["p_value"], found["passed"]) == (0.0, 1.0, None)


def test_ratings_of_the_base_are_asked_for_once(tmp_path):
    rows = {
        arm: [
            {"question_id": i, "category": "math", "question_turns": ["a?", "b?"], "reference": ["x", "y"],
             "choices": [{"turns": [f"{arm} QUALITY={4 + i % 3 + shift}", f"{arm} QUALITY=5"]}]}
            for i in range(20)
        ]
        for arm, shift in (("base", 0), ("tuned", 1), (AGAIN, 0))
    }  # fmt: skip
    files = {arm: tmp_path / f"{arm}.jsonl" for arm in rows}
    for arm, path in files.items():
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[arm]), "utf-8")
    sets = read_answers(files)
    with StubJudge() as stub:
        plan = plan_of({arm: files[arm] for arm in ("base", "tuned")}, stub.url, "mtbench-single", "mt-bench")
        whole = with_control(plan, "mt-bench", sets[0], sets[2])
        verdicts = run_plan(whole, tmp_path / "out", max_cost=None).verdicts
        assert (len(plan.calls), stub.calls) == (80, 120)
    found = control_result(verdicts, AGAIN)
    assert (found["prompts"], found["difference"], found["p_value"]) == (20, 0.0, 1.0)
    assert "position_rate" not in found
    assert load_profile("mtbench-single", model="m").mode == "single"
