"""Groups of prompts that begin alike."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from hypothesis import given
from hypothesis import strategies as st

from lora_eval.engines.groups import share_prefix

Tokens = tuple[int, ...]


def _draw(rng: random.Random, low: int, high: int) -> Tokens:
    return tuple(rng.randrange(256) for _ in range(rng.randint(low, high)))


def _groups(sequences: Sequence[Tokens]) -> Iterator[tuple[list[int], int]]:
    groups = share_prefix(sequences)
    assert sorted(n for members, _ in groups for n in members) == list(range(len(sequences)))
    yield from groups


def _lengths(sequences: Sequence[Tokens], members: Sequence[int]) -> tuple[int, int]:
    """What these sequences begin with alike, and the length of the shortest."""
    chosen = [sequences[number] for number in members]
    alike = 0
    for column in zip(*chosen, strict=False):
        if len(set(column)) > 1:
            break
        alike += 1
    return alike, min(map(len, chosen))


@given(
    st.lists(
        st.tuples(
            st.sampled_from([(), (1,) * 15, (1,) * 16, (1,) * 40, (2,) * 30, (1,) * 20 + (3,) * 20]),
            st.lists(st.integers(0, 2), min_size=1, max_size=4).map(tuple),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_groups_part_the_prompts_and_share_what_they_say(drawn: list[tuple[Tokens, Tokens]]) -> None:
    sequences = [start + end for start, end in drawn]
    for members, shared in _groups(sequences):
        alike, shortest = _lengths(sequences, members)
        most = min(alike, shortest - 1)
        assert shared == (most if most >= 16 and len(members) > 1 else 0)


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(0, 12))
def test_tasks_with_long_prefixes_are_parted(seed: int, tasks: int, start: int) -> None:
    rng = random.Random(seed)
    common = _draw(rng, start, start)  # a template all begin with
    shots = [(*common, number, *_draw(rng, 60, 80)) for number in range(tasks)]
    of = [(task, shot) for task, shot in enumerate(shots) for _ in range(rng.randint(4, 9))]
    rng.shuffle(of)
    sequences = [(*shot, place, *_draw(rng, 1, 5)) for place, (_, shot) in enumerate(of)]
    groups = list(_groups(sequences))
    assert all(len({of[n][0] for n in members}) == 1 for members, _ in groups)
    assert sorted(shared for _, shared in groups) == sorted(map(len, shots))


def test_one_odd_prompt_or_a_small_task_does_not_join_the_others() -> None:
    rng = random.Random(0)
    a, b = _draw(rng, 90, 90), _draw(rng, 90, 90)
    big = [(1, *a, n) for n in range(9)]
    assert sorted(s for _, s in share_prefix([*big, *((2, *b, n) for n in range(9)), (3, 5, 6)])) == [
        0,
        91,
        91,
    ]
    assert sorted(s for _, s in share_prefix([*big, *((2, *b, n) for n in range(3))])) == [91, 91]


def test_deep_conversations_are_grouped() -> None:
    assert share_prefix([(*[0] * turn, 1, n) for turn in range(1200) for n in range(4)])
