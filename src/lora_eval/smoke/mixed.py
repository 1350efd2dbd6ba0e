"""Do requests for different models, put at the same time, disturb each other?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lora_eval.engines.http_requests import COMPLETIONS, Answer, read_answer
from lora_eval.engines.vllm_probe import Tolerance
from lora_eval.protocols import GenerateRequest
from lora_eval.smoke.answers import distance, of_answers
from lora_eval.smoke.local import LocalArm
from lora_eval.smoke.served import Outcome, Served, bodies_of

# 8 tokens were over before the next request had come: a real vLLM passed that mixed up base and adapters.
_NEW_TOKENS = 48
_PART = 10  # of the tolerance: the same server differs from itself by less than from transformers
_ROUNDING = 3.0  # times what requests for the same model at a time differ
_LEVEL = 1e-3  # nats


def ask_together(served: Served, arms: Sequence[LocalArm]) -> dict[str, list[Answer]]:
    """Return each arm's answers to its prompts, all asked at the same time, in turns.

    Raises:
        Refused, Unread: the server does not answer.
    """
    bodies = {arm.name: bodies_of(arm.name, _prompts(served, arm)) for arm in arms}
    count = max(map(len, bodies.values()))
    order = [(name, place) for place in range(count) for name in bodies if place < len(bodies[name])]
    answers: dict[tuple[str, int], Answer] = {}

    def heard(index: int, reply: object) -> None:
        answers[order[index]] = read_answer(reply)

    served.client.ask_all(COMPLETIONS, [bodies[name][place] for name, place in order], len(order), heard)
    return {name: [answers[name, place] for place in range(len(own))] for name, own in bodies.items()}


def _prompts(served: Served, arm: LocalArm) -> list[GenerateRequest]:
    """The probe's prompts with answers so long that requests meet in the server's batches."""
    longest = served.longest
    return [
        GenerateRequest(
            r.input_ids, (), min(_NEW_TOKENS, longest - len(r.input_ids) if longest else _NEW_TOKENS)
        )
        for r in arm.probe.generations
    ]


def check_mixed(served: Served, arm: LocalArm, mixed: Mapping[str, Sequence[Answer]]) -> Outcome:
    """The answers that were asked beside other models' are those asked one at a time.

    What requests for the same model at a time differ from one at a time is measured first: rounding by the
    size of a batch.
    """
    bodies = bodies_of(arm.name, _prompts(served, arm))
    alone = [read_answer(served.client.post(COMPLETIONS, body)) for body in bodies]
    together = ask_together(served, [arm])[arm.name]
    expected = of_answers(alone, arm.tokenizer)
    floor = distance(together, expected, arm.tolerance, arm.tokenizer)
    limit = Tolerance(
        max(arm.tolerance.mean / _PART, _ROUNDING * _mean(floor.differences), _LEVEL / _PART),
        max(arm.tolerance.largest / _PART, _ROUNDING * max(floor.differences, default=0.0), _LEVEL),
    )
    found = distance(mixed[arm.name], expected, limit, arm.tokenizer)
    largest = max(found.differences, default=0.0, key=lambda x: (x != x, x))
    said = (
        f"beside other models' {_mean(found.differences):.2g} nats in the mean and {largest:.2g} at most "
        f"from one at a time; beside its own {_mean(floor.differences):.2g} and "
        f"{max(floor.differences, default=0.0):.2g}"
    )
    if found.parted:
        return False, f"{found.parted[0].replace('here it is', 'alone it is')} ({said})"
    return _mean(found.differences) <= limit.mean and largest <= limit.largest, said


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
