"""A judge on labelled pairs: agreement, order, repeats, and which judge is refused."""

from __future__ import annotations

import pytest

from lora_eval.errors import InputError
from lora_eval.judges.calibrate import calibrate, calibration_plan, read_pairs
from lora_eval.judges.profiles import load_profile
from lora_eval.judges.run import run_plan
from lora_eval.judges.tables import calibration_text
from tests.judges.stub import StubJudge


def pairs(better, worse, n=30):
    return [(f"Question {i}?", f"QUALITY={better(i)}", f"QUALITY={worse(i)}") for i in range(n)]


def measured(tmp_path, labelled, *, bias=0.0, fault=None, judge="openai-text"):
    with StubJudge(bias=bias, fault=fault) as stub:
        plan = calibration_plan(load_profile(judge, model="stub", base_url=stub.url), labelled)
        return plan, calibrate(plan, run_plan(plan, tmp_path / "out", max_cost=None).verdicts)


def test_a_good_judge_passes(tmp_path):
    plan, found = measured(tmp_path, pairs(lambda i: 1.0, lambda i: -1.0))
    assert len(plan.calls) == 60 + 6  # a tenth of the pairs again, in both orders
    assert (found.n, found.agreement, found.order_agreement, found.position_rate) == (30, 1.0, 1.0, 0.5)
    assert (found.repeats, found.repeat_agreement, found.passed) == (6, 1.0, True)


def test_a_judge_that_is_worse_than_chance_is_refused(tmp_path):
    _, found = measured(tmp_path, pairs(lambda i: i % 3 - 1.1, lambda i: 0.0))
    assert found.agreement == pytest.approx(1 / 3)
    assert not found.passed
    assert "right on 33.3 % of the pairs: no better than a coin" in found.reasons[0]


def test_a_judge_that_follows_the_position_is_refused(tmp_path):
    """Right on all pairs that both orders decide, and still told apart from a good judge."""
    _, found = measured(tmp_path, pairs(lambda i: 3.0 if i < 10 else 1.0, lambda i: 0.0), bias=2.0)
    assert found.agreement == pytest.approx((10 + 20 * 0.5) / 30)
    assert (found.order_agreement, found.position_rate) == (pytest.approx(1 / 3), pytest.approx(50 / 60))
    assert "same verdict in both orders for 33.3 %" in found.reasons[-1]
    assert "the answer shown first wins 83 %" in found.reasons[-1]


def test_a_judge_without_verdicts_is_refused(tmp_path):
    _, found = measured(tmp_path, pairs(lambda i: 1, lambda i: 0, n=3), fault="garbage")
    assert (found.n, found.n_invalid, found.agreement, found.passed) == (0, 3, None, False)


def test_a_judge_that_rates_one_answer_is_measured_by_both_ratings(tmp_path):
    """Of 30 pairs 10 are rated alike, 12 the right way round and 8 the wrong way."""
    labelled = pairs(lambda i: 5 if i < 10 else 8 if i < 22 else 3, lambda i: 5)
    plan, found = measured(tmp_path, labelled, judge="mtbench-single")
    assert len(plan.calls) == 60 + 6
    assert (found.n, found.n_invalid, found.agreement) == (30, 0, pytest.approx((12 + 5) / 30))
    assert (found.order_agreement, found.position_rate, found.passed) == (None, None, True)
    assert (found.repeats, found.repeat_agreement) == (6, 1.0)
    assert "both orders" not in calibration_text(found)
    _, wrong = measured(tmp_path / "wrong", [(q, b, a) for q, a, b in labelled], judge="mtbench-single")
    assert not wrong.passed
    _, silent = measured(tmp_path / "silent", labelled[:3], judge="mtbench-single", fault="garbage")
    assert (silent.n, silent.n_invalid, silent.reasons) == (0, 3, ("no pair has all of its verdicts",))


def test_labelled_pairs_of_both_kinds(write_rows):
    path = write_rows(
        [
            {"prompt": "q", "chosen": "good", "rejected": "bad"},
            {"question": "q", "answer_a": "bad", "answer_b": "good", "label": "b"},
            {
                "prompt": [{"role": "user", "content": "q"}],
                "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}],
                "rejected": [{"role": "assistant", "content": "bad"}],
            },
        ]
    )
    assert read_pairs([path]) == [("q", "good", "bad")] * 3


def test_faults_of_labelled_pairs_are_told(write_rows):
    path = write_rows(
        [
            {"prompt": "q", "chosen": 3, "rejected": "x"},
            {"question": "q", "answer_a": "x", "label": "c"},
            {"chosen": "a"},
        ]
    )
    with pytest.raises(InputError) as error:
        read_pairs([path])
    assert str(error.value).replace(f"{path}: ", "").split("\n") == [
        "line 1: chosen: expected text or messages, got int",
        "line 2: missing key 'answer_b'",
        "line 2: label: expected a or b, got 'c'",
        "line 3: missing key 'prompt'",
        "line 3: missing key 'rejected'",
    ]
