"""The token tree against the definition: its nodes are the distinct prefixes of the sequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise, takewhile
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lora_eval.engines.tree import (
    Pack,
    Path,
    Range,
    TokenTree,
    cut_path,
    nodes_of,
    subtree_ends,
)
from lora_eval.sequences import as_bytes, common_length

# Few tokens, so that sequences share much; some differ in one byte only, the last is the largest there is.
TOKENS = st.sampled_from([0, 1, 256, 65536, 2**31 - 1])
SEQUENCES = st.lists(st.lists(TOKENS, min_size=1, max_size=9).map(tuple), min_size=1, max_size=14)
Sequence_ = tuple[int, ...]


def _tree(sequences: Sequence[Sequence_]) -> TokenTree:
    return TokenTree(as_bytes(sequence) for sequence in sequences)


def _prefixes(sequences: Sequence[Sequence_]) -> set[Sequence_]:
    return {sequence[: n + 1] for sequence in sequences for n in range(len(sequence))}


def _spelled(tree: TokenTree) -> list[Sequence_]:
    """What each node stands for: its tokens from the root, read from tokens and depths alone."""
    path: list[int] = []
    found = []
    for token, depth in zip(tree.tokens.tolist(), tree.depths.tolist(), strict=True):
        assert depth <= len(path)
        path[depth:] = [token]
        found.append(tuple(path))
    return found


def _numbers(path: Path) -> list[int]:
    return nodes_of(path, 0, 10**9).tolist()


def _take(cache: Sequence[int], ranges: Sequence[Range]) -> list[int]:
    assert all(start < stop <= len(cache) for start, stop in ranges)
    return [node for start, stop in ranges for node in cache[start:stop]]


def _walk(tree: TokenTree, tokens: int, first: int) -> list[tuple[Pack, list[int]]]:
    """Follow the packs as a cache does; what it holds after each of them, as numbers of nodes."""
    cache = list(range(first))
    found = []
    for pack in tree.packs(tokens, first=first):
        cache = _take(cache, pack.keep)
        assert len(cache) == pack.prefix
        cache += range(pack.start, pack.stop)
        found.append((pack, cache))
    return found


@st.composite
def walks(draw: Callable[..., Any]) -> tuple[list[Sequence_], int, int]:
    """Sequences, tokens of a pack, and a number of tokens that all begin with (fewer than each has)."""
    start = tuple(draw(st.lists(TOKENS, max_size=5)))
    sequences = [start + sequence for sequence in draw(SEQUENCES)]
    columns = zip(*sequences, strict=False)
    alike = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    most = min(alike, *(len(sequence) - 1 for sequence in sequences))
    return sequences, draw(st.integers(1, 40)), draw(st.sampled_from([0, most, most // 2]))


@given(SEQUENCES)
def test_nodes_are_the_distinct_prefixes(sequences: list[Sequence_]) -> None:
    tree = _tree(sequences)
    spelled = _spelled(tree)
    assert len(tree) == len(spelled) == len(set(spelled))
    assert set(spelled) == _prefixes(sequences)


@given(SEQUENCES)
def test_a_sequences_path_spells_it(sequences: list[Sequence_]) -> None:
    tree = _tree(sequences)
    spelled = _spelled(tree)
    for sequence in sequences:
        numbers = _numbers(tree.path(as_bytes(sequence)))
        assert [spelled[number] for number in numbers] == [sequence[: n + 1] for n in range(len(sequence))]


@given(SEQUENCES)
def test_the_path_before_a_node_leads_to_its_parent(sequences: list[Sequence_]) -> None:
    tree = _tree(sequences)
    spelled = _spelled(tree)
    for number, prefix in enumerate(spelled):
        before = _numbers(tree.path_before(number))
        assert [spelled[n] for n in before] == [prefix[: n + 1] for n in range(len(prefix) - 1)]


@given(walks())
def test_packs_hold_every_node_once_behind_its_ancestors(walk: tuple[list[Sequence_], int, int]) -> None:
    sequences, tokens, first = walk
    tree = _tree(sequences)
    spelled = _spelled(tree)
    steps = _walk(tree, tokens, first)
    packs = [pack for pack, _ in steps]
    assert [n for pack in packs for n in range(pack.start, pack.stop)] == list(range(first, len(tree)))
    assert {pack.stop - pack.start for pack in packs[:-1]} <= {tokens}
    for pack, cache in steps:
        parent = spelled[pack.start][:-1]
        assert [spelled[n] for n in cache[: pack.prefix]] == [parent[: n + 1] for n in range(len(parent))]
        for number in range(pack.start, pack.stop):
            behind = [n for n in cache if n <= number]  # and of these, its own ancestors, in order
            own = [n for n in behind if spelled[n] == spelled[number][: len(spelled[n])]]
            assert [len(spelled[n]) for n in own] == list(range(1, len(spelled[number]) + 1))


@given(walks(), st.integers(0, 6))
def test_places_of_every_path_that_ends_in_a_pack(walk: tuple[list[Sequence_], int, int], low: int) -> None:
    sequences, tokens, first = walk
    tree = _tree(sequences)
    for pack, cache in _walk(tree, tokens, first):
        for sequence in sequences:
            path = tree.path(as_bytes(sequence))
            for depth, number in enumerate(_numbers(path)):
                if pack.start <= number < pack.stop:
                    cut = cut_path(path, low, depth + 1)
                    ranges = pack.places(cut)
                    assert _take(cache, ranges) == _numbers(cut)
                    assert all(a[1] < b[0] for a, b in pairwise(ranges))  # joined


@given(SEQUENCES, st.integers(-1, 12), st.integers(-1, 12))
def test_part_of_a_path(sequences: list[Sequence_], first: int, last: int) -> None:
    tree = _tree(sequences)
    for sequence in sequences:
        path = tree.path(as_bytes(sequence))
        expected = _numbers(path)[max(first, 0) : max(last, 0)]
        assert nodes_of(path, first, last).tolist() == _numbers(cut_path(path, first, last)) == expected


@given(walks())
def test_a_node_sees_exactly_its_ancestors(walk: tuple[list[Sequence_], int, int]) -> None:
    sequences, tokens, first = walk
    tree = _tree(sequences)
    spelled = _spelled(tree)
    for pack in tree.packs(tokens, first=first):
        ends = subtree_ends(tree.depths[pack.start : pack.stop])
        for i, own in enumerate(spelled[pack.start : pack.stop]):
            for j, other in enumerate(spelled[pack.start : pack.stop]):
                assert (j <= i < ends[j]) == (own[: len(other)] == other)


@given(st.lists(TOKENS), st.lists(TOKENS), st.lists(TOKENS))
def test_common_length_counts_tokens(start: list[int], a: list[int], b: list[int]) -> None:
    left, right = start + a, start + b
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False))
    assert common_length(as_bytes(left), as_bytes(right)) == sum(1 for _ in alike)


def test_a_tree_of_nothing_has_no_packs() -> None:
    tree = TokenTree([])
    assert (len(tree), tree.depths.dtype, list(tree.packs(8))) == (0, np.int64, [])


def test_planning_imports_no_torch(run_python: Callable[..., Any]) -> None:
    code = (
        "import sys, lora_eval.engines.tree; sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    )
    assert run_python("-c", code).status == 0
