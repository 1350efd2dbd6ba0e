"""Answers to judge: both file formats, every fault at once, and what may be paired."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_eval.errors import InputError
from lora_eval.judges.answers import common_questions, read_answers
from lora_eval.judges.calls import make_plan
from lora_eval.judges.profiles import load_profile
from tests.judges.conftest import real

LOCAL = {"model": "m", "base_url": "http://127.0.0.1:1/v1"}


def fastchat(number, *turns, **values):
    return {"question_id": number, "model_id": "m", "choices": [{"index": 0, "turns": list(turns)}]} | values


def outputs(**answers):
    return [{"instruction": question, "output": answer} for question, answer in answers.items()]


def test_fastchats_answers_to_mt_bench(write_rows):
    (found,) = read_answers({"base": write_rows([fastchat(81, "one", "two"), fastchat(160, "x", "y")])})
    assert found.answers == {"81": ("one", "two"), "160": ("x", "y")}
    assert found.questions["81"].category == "writing"


def test_questions_of_ones_own(write_rows):
    questions = write_rows(
        [
            {"question_id": "a", "category": "math", "turns": ["1+1?"], "reference": ["2"]},
            {"question_id": 7, "text": "Hi"},
        ],
        "questions.jsonl",
    )
    (found,) = read_answers({"base": write_rows([fastchat("a", "2"), fastchat(7, "Hello")])}, [questions])
    assert found.questions["a"].reference == ("2",)
    assert found.questions["7"].turns == ("Hi",)


def test_alpaca_evals_outputs(write_rows):
    again = [{"instruction": "q1", "output": "again"}, {"instruction": "q1", "input": "more", "output": "x"}]
    rows = [*outputs(q1="a1", q2="a2"), *again]
    (found,) = read_answers({"base": write_rows(rows, "outputs.json")})
    assert [question.turns[0] for question in found.questions.values()] == ["q1", "q2", "q1", "q1\n\nmore"]
    assert len(set(found.answers)) == 4


def test_every_fault_is_told_with_its_place(write_rows, tmp_path):
    bad = write_rows(
        [
            fastchat(81, "x", "y"),
            fastchat(81, "x", "y"),
            fastchat(5, "x"),
            {"question_id": 82, "choices": []},
            {"instruction": 3},
        ],
        "bad.jsonl",
    )
    with pytest.raises(InputError) as error:
        read_answers({"base": bad, "tuned": tmp_path / "none.json"})
    assert str(error.value).split("\n") == [
        f"{bad}: line 2: question 81 is answered twice",
        f"{bad}: line 3: question 5: its text is not known; give --questions FILE",
        f"{bad}: line 4: choices: expected [{{turns: [text, ...]}}]",
        f"{bad}: line 5: instruction: expected text, got 3",
        f"{bad}: line 5: missing key 'output'",
        f"{tmp_path / 'none.json'}: no such file",
    ]


def test_arms_must_answer_the_same_questions(write_rows):
    sets = read_answers(
        {
            "base": write_rows(outputs(q1="a", q2="b"), "base.json"),
            "tuned": write_rows(outputs(q1="c"), "tuned.json"),
            "other": write_rows(outputs(q9="c"), "other.json"),
        }
    )
    with pytest.raises(InputError, match="tuned lacks 1 of 2; all arms must answer the same questions"):
        common_questions(sets[:2], "pairwise")
    with pytest.raises(InputError, match="tuned and other have no question"):
        common_questions(sets[1:], "pairwise")


def test_calls_of_mt_bench(write_rows):
    folder = real("mt_bench/judged/don-tpanic/model_answer")
    files = {path.name.split(".")[0]: path for path in sorted(folder.iterdir())}
    sets = read_answers(files)
    single = make_plan("mt-bench", load_profile("mtbench-single", **LOCAL), sets)
    assert len(single.calls) == 3 * 160
    pair = make_plan("mt-bench", load_profile("mtbench-pair", **LOCAL), sets)
    every = make_plan("mt-bench", load_profile("mtbench-pair", **LOCAL), sets, all_pairs=True)
    assert (len(pair.calls), len(every.calls)) == (2 * 320, 3 * 320)
    keys = {
        every.calls[i].key("u", every.body(every.calls[i]), 0)
        for i in range(len(every.calls))
        if every.calls[i].messages
    }
    assert len(keys) == sum(call.messages is not None for call in every.calls)


def test_plans_that_make_no_sense_are_refused(write_rows):
    one = read_answers({"base": write_rows(outputs(q1="a"), "base.json")})
    two = [*one, *read_answers({"tuned": write_rows(outputs(q1="b"), "tuned.json")})]
    for suite, judge, sets, says in (
        ("pairwise", "openai-text", one, "give --answers for two arms"),
        ("pairwise", "mtbench-single", two, "rates one answer; --suite pairwise compares two"),
        ("mt-bench", "openai-text", two, "needs mtbench-pair"),
    ):
        with pytest.raises(InputError, match=says):
            make_plan(suite, load_profile(judge, **LOCAL), sets)


@given(st.randoms(use_true_random=False), st.integers(2, 8))
def test_other_rows_change_no_call(random, count):
    """In another order, or with one question less, every other call is the same request under the same key:
    nothing that was paid for is asked again.
    """

    def keys(questions):
        folder = Path(tempfile.mkdtemp())
        for arm in ("base", "tuned"):
            rows = [{"instruction": q, "output": f"{arm} says {q}"} for q in questions]
            (folder / f"{arm}.json").write_text(json.dumps(rows), "utf-8")
        sets = read_answers({arm: folder / f"{arm}.json" for arm in ("base", "tuned")})
        shutil.rmtree(folder)
        plan = make_plan("pairwise", load_profile("openai-text", **LOCAL), sets)
        return {call.key("u", plan.body(call), 0) for call in plan.calls}

    questions = [f"Question {number}?" for number in range(count)]
    every = keys(questions)
    shuffled = random.sample(questions, count)
    assert keys(shuffled) == every
    assert len(every - keys(shuffled[1:])) == 2
    assert keys(shuffled[1:]) < every
