"""What a question of the small world is, and which of the three splits it belongs to."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Literal

Split = Literal["train", "heldout", "final"]
Message = dict[str, str]

#: Of a hundred content keys: the first 70 may be trained on, 15 are the suite, 15 are looked at once.
_TRAIN_PERCENT, _HELDOUT_PERCENT = 70, 15


@dataclass(frozen=True)
class Item:
    """One question: the turns up to the last user turn, the answer, and the content that decides the split.

    ``key`` names what must be known or worked out to answer, without the wording: two wordings of one
    question have one key. ``choices`` holds the answers to choose from, the right one among them, or nothing.
    """

    ability: str
    kind: str
    key: str
    messages: tuple[Message, ...]
    answer: str
    choices: tuple[str, ...] = ()

    @property
    def content(self) -> str:
        """The whole content key, distinct over kinds."""
        return f"{self.kind}|{self.key}"


Maker = Callable[[Random], Item]


def user(text: str) -> Message:
    """A user turn."""
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    """An assistant turn."""
    return {"role": "assistant", "content": text}


def system(text: str) -> Message:
    """A system turn."""
    return {"role": "system", "content": text}


def bucket_of(content: str) -> int:
    """A stable number from 0 to 99 for a content key, equal on every machine."""
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:4], "big") % 100


def split_of(content: str) -> Split:
    """The split that a content key belongs to; a key is in exactly one."""
    bucket = bucket_of(content)
    if bucket < _TRAIN_PERCENT:
        return "train"
    return "heldout" if bucket < _TRAIN_PERCENT + _HELDOUT_PERCENT else "final"


def draw(maker: Maker, rng: Random, split: Split) -> Item:
    """An item of ``split``, drawn anew until its content key falls there."""
    while True:
        item = maker(rng)
        if split_of(item.content) == split:
            return item


def distinct(maker: Maker, rng: Random, split: Split, count: int) -> list[Item]:
    """``count`` items of ``split`` with pairwise distinct content keys.

    Raises:
        ValueError: if 400 draws for each wanted item did not give so many.
    """
    found: dict[str, Item] = {}
    for _ in range(400 * count):
        item = draw(maker, rng, split)
        found.setdefault(item.content, item)
        if len(found) == count:
            return list(found.values())
    raise ValueError(f"only {len(found)} distinct {split} items of {count} wanted")
