"""MT-Bench's rules against the stored prompts and scores of real judgments."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_eval.errors import InputError
from lora_eval.judges.mt_bench import (
    CATEGORIES,
    Question,
    answer_temperature,
    judge_messages,
    judge_prompts,
    prompt_name,
    questions,
)
from lora_eval.judges.mt_report import report_ratings
from lora_eval.judges.mt_rows import read_judgments
from lora_eval.judges.ratings import parse_rating
from tests.judges.conftest import json_lines, real

JUDGED = {
    "don-tpanic": "don-tpanic/FastChat",
    "alvarobartt": "alvarobartt/FastChat",
    "muhan421": "muhan421/fastchat-eval",
    "sarahlmk": "sarahlmk/FastChat",
}


@pytest.mark.parametrize("folder", JUDGED)
def test_stored_judge_prompts_are_rebuilt_byte_for_byte(folder):
    judged = real(f"mt_bench/judged/{folder}")
    answers = {
        (row["model_id"], row["question_id"]): row["choices"][0]["turns"]
        for path in (judged / "model_answer").iterdir()
        for row in json_lines(path)
    }
    rows = json_lines(judged / "gpt-4_single.jsonl.gz")
    assert len(rows) >= 160
    for row in rows:
        question = questions()[row["question_id"]]
        turns = answers[row["model"], question.id]
        (_, system), (_, text) = judge_messages(question, row["turn"], [turns])
        assert text == row["user_prompt"]
        assert row["judge"][1] == prompt_name("single", question.category, row["turn"])
        assert system == judge_prompts()[row["judge"][1]].system
        assert parse_rating(row["judgment"]) == row["score"]


@pytest.mark.parametrize("folder", JUDGED)
def test_scores_equal_show_result(folder):
    expected = json.loads(real("mt_bench/judged/expected_scores.json").read_text("utf-8"))[JUDGED[folder]]
    ratings, games = read_judgments([real(f"mt_bench/judged/{folder}/gpt-4_single.jsonl.gz")])
    report = report_ratings(ratings, [])
    assert not games
    assert set(report.models) == set(expected)
    for name, figures in expected.items():
        score = report.models[name]
        found = (score.first_turn, score.second_turn, score.average, score.n_first_turn, score.n_second_turn)
        assert found == tuple(
            figures[key] for key in ("first_turn", "second_turn", "average", "n_turn1", "n_turn2")
        )
        assert list(score.categories) == list(CATEGORIES)
        assert (score.strict_average, score.n_strict_differs) == (score.average, 0)
    assert not report.notes


def test_eighty_questions_of_eight_categories_and_thirty_references():
    found = questions().values()
    assert [question.id for question in found] == list(range(81, 161))
    assert {category: sum(q.category == category for q in found) for category in CATEGORIES} == dict.fromkeys(
        CATEGORIES, 10
    )
    assert [q.id for q in found if q.reference] == list(range(101, 131))
    assert all(len(q.turns) == 2 for q in found)


def test_all_eight_prompts_are_used():
    names = {
        prompt_name(mode, category, turn)
        for mode in ("single", "pair")
        for category in CATEGORIES
        for turn in (1, 2)
    }
    assert names == set(judge_prompts())
    assert len(names) == 8


def test_temperatures_of_the_categories():
    by_category = {q.category: answer_temperature(q) for q in questions().values()}
    assert by_category == {
        "writing": 0.7, "roleplay": 0.7, "reasoning": 0.0, "math": 0.0,
        "coding": 0.0, "extraction": 0.0, "stem": 0.1, "humanities": 0.1,
    }  # fmt: skip
    assert answer_temperature(Question(1, "cooking", ("?",))) == 0.7
    assert answer_temperature(Question(1, "math", ("?",), required_temperature=0.3)) == 0.3


@given(st.text(), st.text(), st.sampled_from(["single", "pair"]), st.integers(1, 2), st.integers(81, 160))
def test_answers_are_values_of_the_prompt(first, second, mode, turn, number):
    """Braces, slots and format marks of an answer stay text, in both modes and turns."""
    hostile = f"{{answer_b}}{{0}}{first}}}{{question}}"
    question = questions()[number]
    answers = [[hostile, second], [second, hostile]][: 1 if mode == "single" else 2]
    messages = judge_messages(question, turn, answers)
    assert [role for role, _ in messages] == ["system", "user"]
    text = messages[1][1]
    assert hostile in text
    assert question.turns[0] in text
    if question.reference:
        assert question.reference[turn - 1] in text


def test_pair_prompts_show_both_answers_in_their_order():
    question = questions()[111]
    for turn in (1, 2):
        text = judge_messages(question, turn, [["one", "uno"], ["two", "due"]])[1][1]
        assert text.index("one") < text.index("two", text.index("one"))
        assert all(reference in text for reference in question.reference[:turn])


def test_a_missing_turn_or_reference_is_told():
    with pytest.raises(InputError, match="question 81: turn 2"):
        judge_messages(questions()[81], 2, [["only one"]])
    with pytest.raises(InputError, match="no text for ref_answer_1 of prompt single-math-v1"):
        judge_messages(Question(7, "math", ("1+1?",)), 1, [["2"]])
