"""Our attention, over packs of a tree and over slots, against dense attention written from the definition."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_eval.engines import attention
from lora_eval.engines.attention import TreePlan
from lora_eval.engines.cache import PathCache
from lora_eval.engines.slots import Slots
from lora_eval.engines.tree import Pack, TokenTree, nodes_of
from lora_eval.models import Resident
from lora_eval.sequences import as_bytes

CPU = torch.device("cpu")
# kv heads, query heads for each, width of keys, width of values
SHAPES = st.sampled_from([(1, 1, 8, 8), (2, 1, 8, 8), (2, 3, 8, 8), (1, 4, 12, 4), (2, 2, 4, 12)])
SCALES = st.sampled_from([None, 0.3])
WINDOWS = st.sampled_from([None, 1, 3, 8])


def _dense(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float | None
) -> torch.Tensor:
    """One token's output (heads, width): query (heads, width), keys and values (kv heads, n, width)."""
    group = query.shape[0] // keys.shape[0]
    keys, values = (part.double().repeat_interleave(group, dim=0) for part in (keys, values))
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    weights = torch.softmax(torch.einsum("hw,hnw->hn", query.double(), keys) * factor, dim=-1)
    return torch.einsum("hn,hnw->hw", weights, values)


def _random_tree(seed: int, size: int) -> TokenTree:
    rng = random.Random(seed)
    stem = [rng.randrange(2) for _ in range(size)]
    sequences = [stem[: rng.randint(0, size)] + [rng.randrange(3) for _ in range(rng.randint(1, size))]]
    for _ in range(rng.randint(0, 8)):
        base = rng.choice(sequences)
        sequences.append(
            base[: rng.randint(0, len(base))] + [rng.randrange(3) for _ in range(rng.randint(1, 6))]
        )
    return TokenTree(map(as_bytes, sequences))


def _ancestors(tree: TokenTree, number: int) -> list[int]:
    return [*nodes_of(tree.path_before(number), 0, 10**9).tolist(), number]


def _attend_pack(
    tree: TokenTree, pack: Pack, states: tuple[torch.Tensor, ...], scale: float | None, window: int | None
) -> torch.Tensor:
    query, keys, values = states
    cache = PathCache(joined=False)
    before = nodes_of(tree.path_before(pack.start), 0, 10**9)
    if len(before):
        cache.path = {3: (keys[:, :, before], values[:, :, before])}
    plan = TreePlan(tree.depths[pack.start : pack.stop], cache, CPU)
    part = slice(pack.start, pack.stop)
    own = query[:, :, part], keys[:, :, part], values[:, :, part]
    first = plan.attend(3, *own, scale, window)
    plan.attend(3, *own, scale, 2)  # layers with another window may stand between
    assert torch.equal(first, plan.attend(3, *own, scale, window))  # the first layer's masks serve the others
    return first


@given(
    st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 30), st.integers(1, 9), SHAPES, SCALES, WINDOWS
)
def test_a_pack_attends_as_each_path_alone(
    seed: int,
    size: int,
    tokens: int,
    rows: int,
    shape: tuple[int, int, int, int],
    scale: float | None,
    window: int | None,
) -> None:
    kv_heads, group, width, value_width = shape
    tree = _random_tree(seed, size)
    generator = torch.Generator().manual_seed(seed)
    states = tuple(
        torch.randn(1, heads, len(tree), wide, generator=generator)
        for heads, wide in ((kv_heads * group, width), (kv_heads, width), (kv_heads, value_width))
    )
    query, keys, values = states
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(attention._ROWS, "cpu", rows)  # so that subtrees are cut and put together
        for pack in tree.packs(tokens):
            found = _attend_pack(tree, pack, states, scale, window)
            assert found.shape == (1, pack.stop - pack.start, kv_heads * group, value_width)
            for place, number in enumerate(range(pack.start, pack.stop)):
                own = _ancestors(tree, number)[-(window or 0) :]
                expected = _dense(query[0, :, number], keys[0][:, own], values[0][:, own], scale)
                torch.testing.assert_close(found[0, place].double(), expected, rtol=1e-5, atol=1e-5)


@given(
    st.integers(0, 10**6),
    st.integers(1, 12),
    st.integers(1, 30),
    st.integers(1, 9),
    st.sampled_from([3, 512]),
)
def test_blocks_hold_each_row_once_and_every_token_in_the_strip_of_its_position(
    seed: int, size: int, tokens: int, rows: int, strip: int
) -> None:
    tree = _random_tree(seed, size)
    for pack in tree.packs(tokens):
        depths = tree.depths[pack.start : pack.stop]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attention, "_STRIP", strip)
            blocks = list(attention._blocks(depths, rows))
        assert [row for first, last in blocks for row in range(first, last)] == list(range(len(depths)))
        for first, last in blocks:
            assert last - first <= rows
            ahead = int(
                depths[first]
            )  # as many columns stand before the block: the ancestors of its first row
            for row in range(first, last):
                inside = [
                    n - pack.start for n in _ancestors(tree, pack.start + row) if n - pack.start >= first
                ]
                assert all((ahead + n - first) // strip == depths[n] // strip for n in inside)


def _slots(
    rng: random.Random,
    generator: torch.Generator,
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    prefix: int,
) -> tuple[Slots, list[list[torch.Tensor]], list[torch.Tensor]]:
    """Slots after some coming and going; keys and values of each row in use, and of the prefix."""
    kv_heads, _, *widths = shape

    def draw(n: int) -> list[torch.Tensor]:
        return [torch.randn(1, kv_heads, n, wide, generator=generator).to(dtype) for wide in widths]

    before = draw(prefix)
    slots = Slots(4, 12, {5: (before[0], before[1])} if prefix else {}, joined=False)
    rows: list[list[torch.Tensor]] = []
    for _ in range(rng.randint(1, 12)):
        if len(rows) == 4 or (len(rows) > 1 and rng.random() < 0.4):
            gone = rng.randrange(len(rows))
            slots.drop(gone)
            rows[gone] = rows[-1]
            rows.pop()
        row = draw(rng.randint(0, 9))
        slots.put({5: (row[0], row[1])})
        rows.append(row)
    return slots, rows, before


@given(
    st.integers(0, 10**6),
    SHAPES,
    SCALES,
    WINDOWS,
    st.sampled_from([0, 1, 7]),
    st.sampled_from(["float32", "bfloat16"]),
)
def test_slots_attend_as_each_row_alone(
    seed: int,
    shape: tuple[int, int, int, int],
    scale: float | None,
    window: int | None,
    prefix: int,
    dtype: str,
) -> None:
    kv_heads, group, width, value_width = shape
    generator = torch.Generator().manual_seed(seed)
    kind = getattr(torch, dtype)
    slots, rows, before = _slots(random.Random(seed), generator, shape, kind, prefix)
    tolerance = 1e-5 if kind == torch.float32 else 3e-2
    for _ in range(2):  # two steps: what the first stored is read by the second
        query, *new = (
            torch.randn(len(rows), heads, 1, wide, generator=generator).to(kind)
            for heads, wide in ((kv_heads * group, width), (kv_heads, width), (kv_heads, value_width))
        )
        slots.begin_step(CPU)
        slots.update(new[0], new[1], 5)
        found = slots.attend(5, query, new[0], new[1], scale, window)
        slots.end_step()
        assert found.shape == (len(rows), 1, kv_heads * group, value_width)
        assert found.dtype == kind
        for place, row in enumerate(rows):
            row[:] = [torch.cat((row[i], new[i][place][None]), dim=2) for i in (0, 1)]
            keys, values = (torch.cat((before[i], row[i]), dim=2)[0, :, -(window or 0) :] for i in (0, 1))
            expected = _dense(query[place, :, 0], keys, values, scale)
            torch.testing.assert_close(found[place, 0].double(), expected, rtol=tolerance, atol=tolerance)
    assert slots.lengths == [row[0].shape[2] for row in rows]
    assert slots.get_seq_length() == max(slots.lengths)


def test_joined_slots_are_read_by_the_models_own_attention() -> None:
    slots = Slots(2, 4, {}, joined=True)
    keys = torch.arange(6.0).view(1, 1, 3, 2)
    slots.put({0: (keys, keys + 10)})
    slots.put({0: (keys[:, :, :1], keys[:, :, :1] + 10)})
    slots.begin_step(CPU)
    new = torch.full((2, 1, 1, 2), 7.0)
    found, values = slots.update(new, new + 10, 0)
    seen, distance = slots.visible()
    slots.end_step()
    assert found.shape == values.shape == (2, 1, 4, 2)
    assert torch.equal(found[0, 0], torch.cat((keys[0, 0], new[0, 0])))
    assert torch.equal(values[1, 0, :2], torch.cat((keys[0, 0, :1], new[1, 0])) + 10)
    assert seen[:, 0, 0].tolist() == [[True] * 4, [True, True, False, False]]
    assert distance[:, 0, 0].tolist() == [[3, 2, 1, 0], [1, 0, -1, -2]]


def test_what_it_cannot_compute_is_refused(resident: Resident) -> None:
    layer = resident.model.get_submodule("model.layers.0.self_attn")
    states = torch.zeros(1, 2, 1, 32), torch.zeros(1, 1, 1, 32), torch.zeros(1, 1, 1, 32)
    options: list[dict[str, Any]] = [
        {"softcap": 50.0}, {"s_aux": torch.zeros(2)}, {"position_bias": torch.zeros(1)}, {"dropout": 0.1},
        {},  # outside of any plan
    ]  # fmt: skip
    for asked in options:
        with pytest.raises(NotImplementedError, match="attention with"):
            attention.attention(layer, *states, None, **asked)


def test_the_models_own_attention_is_put_back(resident: Resident) -> None:
    before = resident.model.config._attn_implementation
    with pytest.raises(ZeroDivisionError), attention.installed(resident.model):
        assert resident.model.config._attn_implementation == attention.NAME
        raise ZeroDivisionError
    assert resident.model.config._attn_implementation == before
