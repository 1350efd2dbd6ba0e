"""All token sequences of a suite as one tree, cut into packs: which token is forwarded when, and with what
before it in the cache. Pure planning: no torch, no model.

The tree is laid out depth first, so a token's flat number is the order in which it is forwarded, and the
tokens still needed later are always the path to the next one: a cache that holds one path is enough.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lora_eval.sequences import TOKEN_BYTES, common_length

Ints = npt.NDArray[np.int64]
Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Segment:
    """`length` tokens of a path, the first at `depth`, laid out in the tree from number `start` on."""

    depth: int
    start: int
    length: int


Path = tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Pack:
    """Tokens `start` to `stop` of the tree, forwarded together.

    `prefix` tokens stand before them in the cache: the path from the root to the first of them. `keep` names
    the places of the cache, as the pack before left it (its own prefix, then its tokens), that make up this
    path.
    """

    start: int
    stop: int
    prefix: int
    keep: tuple[Range, ...]

    def places(self, path: Path) -> tuple[Range, ...]:
        """Return where the cache holds this path once the pack has been forwarded."""
        ranges: list[Range] = []
        for segment in path:
            old = min(max(self.start - segment.start, 0), segment.length)  # how much of it was there before
            if old:
                _extend(ranges, segment.depth, segment.depth + old)
            if old < segment.length:
                place = self.prefix + segment.start + old - self.start
                _extend(ranges, place, place + segment.length - old)
        return tuple(ranges)


class TokenTree:
    """The tree of some token sequences (as `as_bytes` gives them), none of them empty; equal beginnings stand
    in it once.

    `tokens` and `depths` (int64, one number for each node) are in depth-first order; a root has depth 0.
    """

    def __init__(self, sequences: Iterable[bytes]) -> None:
        self._paths: dict[bytes, Path] = {}
        self._starts: list[int] = []
        self._grown: list[Path] = []  # the path that ends in the tokens laid out from _starts[i] on
        pieces: list[bytes] = []
        path: list[Segment] = []
        before, size = b"", 0
        # Any order that keeps equal beginnings together will do; that of bytes is the fastest.
        for text in sorted(set(sequences)):
            shared = common_length(before, text)
            _cut(path, shared)
            length = len(text) // TOKEN_BYTES - shared
            path.append(Segment(shared, size, length))
            pieces.append(text[shared * TOKEN_BYTES :])
            self._starts.append(size)
            self._paths[text] = tuple(path)
            self._grown.append(self._paths[text])
            size += length
            before = text
        self.tokens: Ints = np.frombuffer(b"".join(pieces), dtype=np.int32).astype(np.int64)
        self.depths: Ints = np.concatenate(
            [np.arange(p[-1].depth, p[-1].depth + p[-1].length) for p in self._grown]
            or [np.empty(0, np.int64)]
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def path(self, sequence: bytes) -> Path:
        """Return where the tokens of one of the sequences stand."""
        return self._paths[sequence]

    def path_before(self, number: int) -> Path:
        """Return the path from the root to the parent of a node."""
        grown = list(self._grown[bisect_right(self._starts, number) - 1])
        _cut(grown, grown[-1].depth + number - grown[-1].start)
        return tuple(grown)

    def packs(self, tokens: int, first: int = 0) -> Iterator[Pack]:
        """Yield packs of `tokens` tokens (the last may be smaller) that hold every node from `first` on once,
        in order. Where `first` is not 0, it is the length of what all sequences begin with, and the cache
        holds just that.
        """
        before = Pack(0, first, 0, ())
        for start in range(first, len(self), tokens):
            path = self.path_before(start)
            pack = Pack(start, min(start + tokens, len(self)), int(self.depths[start]), before.places(path))
            yield pack
            before = pack


def nodes_of(path: Path, first: int, last: int) -> Ints:
    """Return the numbers of a path's nodes of depth `first` to `last` (exclusive)."""
    parts = [np.arange(part.start, part.start + part.length) for part in cut_path(path, first, last)]
    return np.concatenate(parts or [np.empty(0, np.int64)])


def cut_path(path: Path, first: int, last: int) -> Path:
    """Return the part of a path from depth `first` to depth `last` (exclusive)."""
    parts = []
    for segment in path:
        low, high = max(first - segment.depth, 0), min(last - segment.depth, segment.length)
        if low < high:
            parts.append(Segment(segment.depth + low, segment.start + low, high - low))
    return tuple(parts)


def subtree_ends(depths: Ints) -> Ints:
    """Return, for each node of a depth-first stretch, the place after its last descendant in the stretch.

    Node i sees node j exactly where j <= i < ends[j].
    """
    ends = np.full(len(depths), len(depths))
    waiting: list[int] = []
    for place, depth in enumerate(depths.tolist()):
        while waiting and depths[waiting[-1]] >= depth:
            ends[waiting.pop()] = place
        waiting.append(place)
    return ends


def _cut(path: list[Segment], depth: int) -> None:
    """Shorten a path in place to the nodes above `depth`."""
    while path and path[-1].depth >= depth:
        path.pop()
    if path and path[-1].depth + path[-1].length > depth:
        last = path[-1]
        path[-1] = Segment(last.depth, last.start, depth - last.depth)


def _extend(ranges: list[Range], start: int, stop: int) -> None:
    if ranges and ranges[-1][1] == start:
        ranges[-1] = (ranges[-1][0], stop)
    else:
        ranges.append((start, stop))
