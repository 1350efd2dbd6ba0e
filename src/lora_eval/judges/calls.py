"""What is to be asked: one call for each item, order and repeat, with a key that is the same in every run."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lora_eval.errors import InputError
from lora_eval.judges.answers import AnswerSet, common_questions
from lora_eval.judges.mt_bench import Messages, Question
from lora_eval.judges.profiles import identity
from lora_eval.judges.prompts import Template, load_template
from lora_eval.judges.requests import request_body
from lora_eval.records import JudgedItem, JudgeProfile, JudgeSuite

PROTOCOL = 1
ASKS = 3  # a reply without a verdict is asked for again, at most twice
Orders = Literal["both", "alpaca"]


class Call(JudgedItem):
    """One verdict to get.

    `messages` is None where both answers are the same text: the verdict is a tie, and nothing is asked.
    """

    messages: Messages | None

    @property
    def item(self) -> str:
        """The prompt's turn that is judged."""
        return f"{self.prompt} turn {self.turn}"

    def key(self, base_url: str, body: Mapping[str, Any], attempt: int) -> str:
        """Return what identifies the call: endpoint, whole request, place in the protocol."""
        place = [PROTOCOL, base_url, self.suite, self.judge, self.item, self.a, self.b, self.first]
        text = json.dumps([*place, self.repeat, attempt, body], sort_keys=True)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Plan:
    """Every call of a run, under one profile."""

    profile: JudgeProfile
    judge: str
    calls: tuple[Call, ...]

    def body(self, call: Call) -> dict[str, Any]:
        """Return the request of a call that is asked."""
        if call.messages is None:
            raise ValueError("a call between equal answers has no request")
        return request_body(self.profile, call.messages)


def judge_name(profile: JudgeProfile) -> str:
    """Return the judge's name for records, which identifies all that shapes its verdicts."""
    return identity(profile, load_template(profile.template).text)


def make_plan(
    suite: JudgeSuite,
    profile: JudgeProfile,
    sets: Sequence[AnswerSet],
    *,
    all_pairs: bool = False,
    orders: Orders = "both",
    repeats: int = 1,
    limit: int | None = None,
) -> Plan:
    """Return the calls that judge the arms, the first being the base.

    Single: each arm's turns. Pair: the base against every other arm (`all_pairs`: every pair), in both
    orders, or with `orders` alpaca in the one that alpaca_eval would draw.

    Raises:
        InputError: arms have other questions, or too few arms; or the prompt cannot judge an item.
    """
    template = load_template(profile.template)
    judge = judge_name(profile)
    asked = dict(itertools.islice(common_questions(sets, suite).items(), limit))
    if profile.mode == "pair" and len(sets) < 2:
        raise InputError(f"judge {profile.name} compares two answers; give --answers for two arms or more")
    if profile.mode == "single" and suite != "mt-bench":
        raise InputError(f"judge {profile.name} rates one answer; --suite {suite} compares two")
    if profile.mode == "pair" and suite == "mt-bench" and not template.multi_turn:
        raise InputError(f"template {template.name} judges one turn; --suite mt-bench needs mtbench-pair")
    pairs = list(itertools.combinations(sets, 2)) if all_pairs else [(sets[0], other) for other in sets[1:]]
    calls: list[Call] = []
    for repeat in range(repeats):
        for key, question in asked.items():
            turns = range(1, len(question.turns) + 1 if template.multi_turn else 2)
            if profile.mode == "single":
                calls += _single(suite, judge, template, key, question, turns, sets, repeat)
            else:
                calls += _pairs(suite, judge, template, key, question, turns, pairs, orders, repeat)
    return Plan(profile, judge, numbered(calls))


def numbered(calls: Iterable[Call]) -> tuple[Call, ...]:
    """Return the calls with their places, from 0."""
    return tuple(call.model_copy(update={"place": place}) for place, call in enumerate(calls))


def _single(
    suite: JudgeSuite, judge: str, template: Template, key: str, question: Question, turns: range,
    sets: Sequence[AnswerSet], repeat: int,
) -> Iterator[Call]:  # fmt: skip
    for answers, turn in itertools.product(sets, turns):
        texts = answers.answers[key]
        yield Call(
            suite=suite, judge=judge, prompt=key, turn=turn, category=question.category, a=answers.arm,
            b=None, first="a", repeat=repeat, length_a=len(texts[turn - 1]), length_b=None,
            messages=template.fill(question, turn, [texts]),
        )  # fmt: skip


def _pairs(
    suite: JudgeSuite, judge: str, template: Template, key: str, question: Question, turns: range,
    pairs: Sequence[tuple[AnswerSet, AnswerSet]], orders: Orders, repeat: int,
) -> Iterator[Call]:  # fmt: skip
    for (a, b), turn in itertools.product(pairs, turns):
        one, two = a.answers[key], b.answers[key]
        for first in _orders(orders, question):
            shown = [one, two] if first == "a" else [two, one]
            same = one[:turn] == two[:turn]
            yield Call(
                suite=suite, judge=judge, prompt=key, turn=turn, category=question.category, a=a.arm, b=b.arm,
                first=first, repeat=repeat, length_a=len(one[turn - 1]), length_b=len(two[turn - 1]),
                messages=None if same else template.fill(question, turn, shown),
            )  # fmt: skip


def _orders(orders: Orders, question: Question) -> tuple[Literal["a", "b"], ...]:
    """Both, or the one that alpaca_eval draws (annotators/base.py: seeded by the instruction, seed 0)."""
    if orders == "both":
        return ("a", "b")
    seed = f"is_switched_outputs{question.turns[0]}0"
    return ("b",) if random.Random(seed).choices([False, True], k=1)[0] else ("a",)
