"""Samples as token rows: tokenized, weighted, packed whole into rows, with block-diagonal masks."""

from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor

from ..mixture import Sample, sample
from ..practice import code, number
from ..tokenizer import ASSISTANT, END, SPECIALS, TEXT
from ..words import common_words

#: (row length, rows for all processes together); the long rows hold passages with many questions.
SHORT, LONG = (128, 24), (256, 12)
_LONG_EVERY = 8
_POOL = 160
_COPY_FIRST_TOKENS = 1_500_000
_TEXT_WEIGHT = 0.5


@dataclass(frozen=True)
class Encoded:
    """Token ids of one sample, and each token's weight as a target."""

    ids: list[int]
    weights: list[float]


class Encoder:
    """Turns samples into ids by the tokenizer's own chat template's layout."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer._tokenizer
        self._ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIALS}
        self.pad = int(tokenizer.pad_token_id)
        self._size = len(tokenizer)
        self._ordinary = len(self._ids)

    def _plain(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def sample(self, made: Sample) -> Encoded:
        """A chat with weight 1 on answers and their end, or text with weight one half on everything."""
        if made.messages is None:
            ids = [self._ids[TEXT], *self._plain(made.text), self._ids[END]]
            return Encoded(ids, [0.0] + [_TEXT_WEIGHT] * (len(ids) - 1))
        ids, weights = [], []
        for turn in made.messages:
            body = [*self._plain(turn["content"]), self._ids[END]]
            ids += [self._ids[f"<|{turn['role']}|>"], *body]
            weights += [0.0] + [float(turn["role"] == "assistant")] * len(body)
        return Encoded(ids, weights)

    def copy(self, rng: Random) -> Encoded:
        """A document that says one sequence twice; half of them are random tokens. Only the second counts."""
        if rng.random() < 0.5:
            body = [rng.randrange(self._ordinary, self._size) for _ in range(rng.randint(4, 24))]
        else:
            makers = (lambda: rng.choice(common_words()), lambda: code(rng), lambda: number(rng))
            body = self._plain(" ".join(rng.choice(makers)() for _ in range(rng.randint(3, 10))))
        middle = self._ids[rng.choice((TEXT, ASSISTANT))]
        ids = [self._ids[TEXT], *body, middle, *body, self._ids[END]]
        weights = [0.0] * (len(body) + 2) + [_TEXT_WEIGHT] * (len(body) + 1)
        return Encoded(ids, weights)


def copy_share(seen: int) -> float:
    """Share of copy documents: a quarter at first, since copying comes first, then a twelfth."""
    return 0.25 if seen < _COPY_FIRST_TOKENS else 0.08


def packed(encoder: Encoder, rng: Random, length: int, rows: int, share: float) -> list[list[Encoded]]:
    """``rows`` rows of whole samples, best fit, none longer than ``length``."""
    free, filled = [length] * rows, [[] for _ in range(rows)]  # type: tuple[list[int], list[list[Encoded]]]
    for _ in range(_POOL * rows * length // 3072):
        made = encoder.copy(rng) if rng.random() < share else encoder.sample(sample(rng))
        size = len(made.ids)
        fitting = [row for row in range(rows) if free[row] >= size]
        if fitting:
            best = min(fitting, key=free.__getitem__)
            free[best] -= size
            filled[best].append(made)
    return filled


def tensors(rows: list[list[Encoded]], length: int, pad: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids, positions, additive mask ``(batch, 1, seq, seq)`` and target weights of packed rows."""
    count = len(rows)
    ids = torch.full((count, length), pad)
    positions = torch.zeros((count, length), dtype=torch.long)
    weights = torch.zeros((count, length))
    owner = torch.full((count, length), -1)
    for row, samples in enumerate(rows):
        start = 0
        for index, made in enumerate(samples):
            stop = start + len(made.ids)
            ids[row, start:stop] = torch.tensor(made.ids)
            weights[row, start:stop] = torch.tensor(made.weights)
            positions[row, start:stop] = torch.arange(stop - start)
            owner[row, start:stop] = index
            start = stop
    same = owner[:, :, None] == owner[:, None, :]
    allowed = same & torch.ones(length, length, dtype=torch.bool).tril()
    mask = torch.zeros(count, 1, length, length).masked_fill_(~allowed[:, None], -1e4)
    return ids, positions, mask, weights


def batch(encoder: Encoder, seed: int, step: int, rank: int, world: int, share: float) -> tuple[Tensor, ...]:
    """One process's rows for one step, the same whenever asked for: a resumed run repeats nothing."""
    length, rows = LONG if step % _LONG_EVERY == _LONG_EVERY - 1 else SHORT
    rng = Random(f"{seed}/{step}/{rank}/{world}")
    return tensors(packed(encoder, rng, length, rows // world, share), length, encoder.pad)
