"""Whether calibration rows hold benchmark items, word for word."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from lora_eval.errors import DataError

# A text of as many words is looked for inside messages, a shorter one as a whole message: "What is it?" is
# in many conversations. The length is that of Llama 2's look for contamination (arXiv 2307.09288, appendix
# A.6: runs of more than ten tokens). Its limit of 80 % is not used: in questions made from templates one
# changed word makes another question; 80 % took 4 of the 2,800 pocket items for training rows they are not.
_LENGTH = 11
_SHOWN = 5
_WORD = re.compile(r"\w+")
_WRAPPING = ({"question", "q"}, {"answer", "a"})


def check_held_out(rows: Sequence[Sequence[str]], items: Mapping[str, Sequence[str]]) -> None:
    """Raise DataError where a row holds the text of a benchmark item, whatever its case and punctuation.

    A row is its messages (or its one text); `items` maps a task to its items' texts.
    """
    index = _index(rows)
    found = [
        (f"{task} {number}", message)
        for task, texts in items.items()
        for number, text in enumerate(texts)
        if (message := _message_with(text, index)) is not None
    ]
    if found:
        listed = "; ".join(f"item {name} in '{_start(message)}'" for name, message in found[:_SHOWN])
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise DataError(
            f"the calibration rows hold {len(found)} benchmark items, so that what is measured on these "
            f"would be too good: {listed}{more}; give other rows with --calibration FILE"
        )


def words(text: str) -> list[str]:
    """Return the text's words without case and punctuation."""
    return _WORD.findall(text.casefold())


def _index(rows: Sequence[Sequence[str]]) -> dict[tuple[str, ...], list[tuple[str, str]]]:
    """Return, by each run of words, the messages that hold it: their words, and what they are."""
    index: dict[tuple[str, ...], list[tuple[str, str]]] = defaultdict(list)
    for row in rows:
        for message in row:
            own = words(message)
            entry = (f" {' '.join(own)} ", message)
            for place in range(max(1, len(own) - _LENGTH + 1)):
                index[tuple(own[place : place + _LENGTH])].append(entry)
    return index


def _message_with(text: str, index: Mapping[tuple[str, ...], list[tuple[str, str]]]) -> str | None:
    """Return a message that holds the text, which may be wrapped as `Question: ... Answer:`."""
    own = words(text)
    before, after = _WRAPPING
    own = own[own[:1] != [] and own[0] in before :]
    own = own[: len(own) - (own[-1:] != [] and own[-1] in after)]
    if not own:
        return None
    wanted = f" {' '.join(own)} "
    candidates = index.get(tuple(own[:_LENGTH]), ())
    return next((message for held, message in candidates if wanted in held), None)


def _start(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:60]}..."
