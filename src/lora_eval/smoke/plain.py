"""A server that takes texts and no token ids (`transformers serve`, TGI): what it can be asked all the same.

Its answers are compared as texts. Log-probabilities, forced tokens and the ids of a rendered conversation
it does not give, and these checks are not called passed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_eval.engines.http_chat import CHAT
from lora_eval.engines.http_client import Refused
from lora_eval.engines.http_requests import COMPLETIONS, UNKNOWN, Answer, greedy_body, read_answer, read_chat
from lora_eval.engines.vllm_probe import Step
from lora_eval.exporters.rows import Row, row_ids
from lora_eval.models import load_tokenizer
from lora_eval.records import SmokeCheck
from lora_eval.smoke.answers import read_stream
from lora_eval.smoke.local import LocalArm
from lora_eval.smoke.served import Outcome, Served, outcome

ROWS: tuple[Row, ...] = (
    "Once upon a time",
    "def add(a, b):\n    return",
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "user", "content": "Count: one, two"}, {"role": "assistant", "content": "three"},
     {"role": "user", "content": "And then?"}],
)  # fmt: skip
_NO_IDS = "the server takes texts only"
_NOT_ASKED = {
    "log-probabilities": f"{_NO_IDS}, and gives no log-probabilities of tokens that could be compared",
    "prompt-log-probabilities": f"{_NO_IDS}, and gives none of prompts",
    "stop-token": f"{_NO_IDS}, and no token can be forced",
}
_REFUSALS = (400, 422)


def plain_rows(folder: Path) -> list[Row]:
    """Return the prompts for such a server; conversations only where the model has a template for them."""
    templated = bool(load_tokenizer(folder).chat_template)
    return [row for row in ROWS if templated or isinstance(row, str)]


def takes_ids(served: Served, model: str) -> bool:
    """Whether a completion of token ids, with vLLM's fields, is answered (or refused for its name only)."""
    try:
        served.client.post(COMPLETIONS, greedy_body(model, (1,), 1))
    except Refused as error:
        return error.status not in _REFUSALS
    return True


def check_plainly(served: Served, arm: LocalArm) -> Iterator[SmokeCheck]:
    """Yield the checks of one whole model."""
    yield SmokeCheck(
        name="listed", arm=arm.name, passed=None,
        detail="such servers list what they could load, not what they serve",
    )  # fmt: skip
    yield outcome("unknown-model", None, lambda: _unknown(served))
    yield outcome("greedy-text", arm.name, lambda: _greedy(served, arm))
    yield outcome("streaming", arm.name, lambda: _streaming(served, arm))
    yield outcome("template", arm.name, lambda: _template(served, arm))
    yield outcome("finish-reason", arm.name, lambda: _finish(served, arm))
    for name, reason in _NOT_ASKED.items():
        yield SmokeCheck(name=name, arm=arm.name, passed=None, detail=reason)


def _asked(arm: LocalArm) -> Iterator[tuple[Row, tuple[int, ...], tuple[Step, ...]]]:
    """The rows that are asked whole, with their ids and the answer here."""
    count = len(arm.rows)
    requests, answers = arm.probe.generations[-count:], arm.expected.answers[-count:]
    for row, request, steps in zip(arm.rows, requests, answers, strict=True):
        tokenizer = arm.tokenizer if isinstance(row, str) else arm.templated
        if tuple(row_ids(tokenizer, row, prompt_only=True)) == request.input_ids:
            yield row, request.input_ids, steps


def _post(served: Served, model: str, row: Row, tokens: int) -> Any:
    body = {"model": model, "max_tokens": tokens, "temperature": 0.0}
    if isinstance(row, str):
        return served.client.post(COMPLETIONS, body | {"prompt": row})
    messages = row[:-1] if row[-1]["role"] == "assistant" and len(row) > 1 else row
    return served.client.post(CHAT, body | {"messages": messages})


def _told(served: Served, model: str, row: Row, tokens: int) -> Answer:
    reply = _post(served, model, row, tokens)
    return read_answer(reply) if isinstance(row, str) else read_chat(reply)


def _before_end(arm: LocalArm, steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """The answer up to its end token: such a server cannot be told to go on."""
    place = next((place for place, step in enumerate(steps) if step.token in arm.ends), len(steps))
    return steps[:place]


def _unknown(served: Served) -> Outcome:
    try:
        _post(served, UNKNOWN, ROWS[0], 1)
    except Refused as error:
        return True, f"a model '{UNKNOWN}' is refused ({error.status})"
    return False, f"the server answers for '{UNKNOWN}': names are not looked at"


def _greedy(served: Served, arm: LocalArm) -> Outcome:
    equal = level = 0
    for number, (row, _, steps) in enumerate(_asked(arm)):
        told = _told(served, arm.name, row, len(steps)).text
        own = _before_end(arm, steps)
        place = _parting(arm, told, own)
        if place is None:
            equal += 1
        elif place < len(own) and own[place].lead <= 2 * arm.tolerance.largest:
            level += 1
        else:
            here = arm.tokenizer.decode([s.token for s in own], skip_special_tokens=True)
            return False, f"answer {number} is {told[:60]!r}, here it is {here[:60]!r}"
    if not equal + level:
        return None, "no prompt is short enough to be asked whole"
    said = f", {level} parted where two tokens are level" if level else ""
    return True, f"{equal} of {equal + level} texts equal{said} (no ids to compare)"


def _parting(arm: LocalArm, told: str, steps: tuple[Step, ...]) -> int | None:
    """The first token whose text is not in the answer; None where the answer is all of it."""
    ids = [step.token for step in steps]

    def text(count: int) -> str:
        return str(arm.tokenizer.decode(ids[:count], skip_special_tokens=True))

    if told == text(len(ids)):
        return None
    # A character may be cut in the middle of its bytes: what stands before it counts.
    return next((n for n in range(len(ids)) if not told.startswith(text(n + 1).rstrip("\ufffd"))), len(ids))


def _streaming(served: Served, arm: LocalArm) -> Outcome:
    for row, _, steps in _asked(arm):
        own = _before_end(arm, steps)
        here = str(arm.tokenizer.decode([s.token for s in own], skip_special_tokens=True))
        if not isinstance(row, str) or "\ufffd" in here or not here:
            continue
        body = {
            "model": arm.name,
            "prompt": row,
            "max_tokens": len(steps),
            "temperature": 0.0,
            "stream": True,
        }
        told = read_stream(served.client.tell(COMPLETIONS, body))
        plain = _told(served, arm.name, row, len(steps))
        if told.text != plain.text:
            return False, f"the streamed answer is {told.text[:60]!r}, the other {plain.text[:60]!r}"
        return True, "the streamed answer is the other one"
    return None, "no answer here is a text that can be streamed whole (characters are cut in their bytes)"


def _template(served: Served, arm: LocalArm) -> Outcome:
    if not arm.templated.chat_template:
        return None, f"{arm.path}: the tokenizer has no chat template, so there is nothing to compare"
    for row, ids, _ in _asked(arm):
        if isinstance(row, str):
            continue
        found = (_post(served, arm.name, row, 1).get("usage") or {}).get("prompt_tokens")
        if found is not None and found != len(ids):
            return False, f"a conversation becomes {found} tokens, {len(ids)} with the measured template"
    return None, "conversations become as many tokens as here; which ones the server does not say"


def _finish(served: Served, arm: LocalArm) -> Outcome:
    for row, _, steps in _asked(arm):
        ends = len(_before_end(arm, steps)) < len(steps)
        told, wanted = _told(served, arm.name, row, len(steps)), "stop" if ends else "length"
        if told.finish_reason != wanted:
            return (
                False,
                f"finish_reason {told.finish_reason!r} after {len(steps)} tokens; expected {wanted!r}",
            )
    return True, "'length' at max_tokens, 'stop' where the answer ends here too"
