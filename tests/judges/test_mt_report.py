"""MT-Bench reports: what is averaged, what depends on what, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from lora_eval.errors import InputError
from lora_eval.judges.mt_report import report_ratings
from lora_eval.judges.mt_rows import read_judgments
from lora_eval.stats import paired_scores
from tests.judges.conftest import json_lines, real


def row(question: int, turn: int, score: float, model: str = "m", **values: object) -> dict:
    return {
        "question_id": question,
        "model": model,
        "judge": ["gpt-4", "single-v1"],
        "score": score,
        "turn": turn,
    } | values


def test_rows_without_a_rating_leave_the_mean_and_are_counted(write_rows):
    path = write_rows([row(81, 1, 8), row(81, 2, -1), row(82, 1, 6), row(82, 2, 4)])
    report = report_ratings(read_judgments([path])[0], [])
    (score,) = report.models.values()
    assert (score.first_turn, score.second_turn, score.average) == (7.0, 4.0, 6.0)
    assert (score.n, score.n_invalid, score.categories["writing"].score) == (3, 1, 6.0)
    assert "1 of 4 judgments" in report.notes[0]


def test_both_turns_of_a_question_are_one_cluster():
    path = real("mt_bench/judged/don-tpanic/gpt-4_single.jsonl.gz")
    report = report_ratings(read_judgments([path])[0], [], base="llama2_7b")
    rows = json_lines(path)
    scores = {
        model: {(r["question_id"], r["turn"]): r["score"] for r in rows if r["model"] == model}
        for model in report.models
    }
    for difference in report.differences:
        a, b = scores["llama2_7b"], scores[difference.b]
        by_question = [np.mean([b[q, t] - a[q, t] for t in (1, 2)]) for q in range(81, 161)]
        error = np.std(by_question, ddof=1) / np.sqrt(80)
        assert (difference.n, difference.clusters) == (160, 80)
        assert difference.difference == pytest.approx(np.mean(by_question), abs=1e-12)
        assert (difference.ci_high - difference.ci_low) / 2 == pytest.approx(error * 1.990450, rel=1e-5)
        # Rows taken as independent would claim more.
        items = list(a)
        naive = paired_scores([a[item] for item in items], [b[item] for item in items])
        assert naive.ci_high - naive.ci_low != pytest.approx(difference.ci_high - difference.ci_low, rel=0.01)


def test_judges_are_kept_apart(write_rows):
    path = write_rows([row(81, 1, 8), row(81, 1, 2, judge=["other", "single-v1"])])
    report = report_ratings(read_judgments([path])[0], [])
    assert {name: score.average for name, score in report.models.items()} == {
        "m (gpt-4)": 8.0,
        "m (other)": 2.0,
    }


def test_a_question_judged_twice_counts_twice_and_is_told(write_rows):
    path = write_rows([row(81, 1, 8), row(81, 1, 4), row(82, 1, 3)])
    report = report_ratings(read_judgments([path])[0], [])
    assert report.models["m"].average == 5.0
    assert "1 judgments repeat a question and turn" in report.notes[0]


def test_a_score_that_is_not_in_its_text_is_told(write_rows):
    path = write_rows([row(81, 1, 8, judgment="[[3]]"), row(82, 1, 9, judgment="[[9]] or [[2]]")])
    report = report_ratings(read_judgments([path])[0], [])
    assert "1 stored scores are not what FastChat's rule reads" in report.notes[0]
    assert report.models["m"].strict_average == 2.5


def test_differences_need_a_known_base(write_rows):
    ratings, _ = read_judgments([write_rows([row(81, 1, 8)])])
    with pytest.raises(InputError, match="no judgment of 'n'; there are: m"):
        report_ratings(ratings, [], base="n")


def test_every_fault_is_told_with_its_place(write_rows):
    path = write_rows(
        [row(81, 1, 8), row(81, 3, "eight"), {"question_id": 81}, row(81, 1, -2), row(1.5, 1, 1, judge=7)]
    )
    with pytest.raises(InputError) as error:
        read_judgments([path])
    assert str(error.value).replace(f"{path}: ", "").split("\n") == [
        "line 2: turn: expected 1 or 2, got 3",
        "line 2: score: expected a number (-1: no rating), got 'eight'",
        "line 3: missing key 'turn'",
        "line 3: missing key 'model'",
        "line 3: missing key 'score'",
        "line 4: score: expected a rating of 0 or more, or -1 for none, got -2",
        "line 5: question_id: expected a number or text, got 1.5",
        "line 5: judge: expected [name, prompt], got 7",
    ]
