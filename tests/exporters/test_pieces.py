"""Pieces cover a tensor once, in order, and a product in pieces is the whole product."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_eval.exporters.pieces import one_by_one, open_workers, row_ranges, scratch


@given(st.integers(0, 5000), st.integers(1, 300_000), st.sampled_from([1, 2, 4, 32, 64]))
def test_pieces_cover_all_rows_once(rows, width, step):
    ranges = row_ranges(rows, width, step)
    assert [row for first, end in ranges for row in (first, end)][1:-1] == [
        edge for first, _ in ranges[1:] for edge in (first, first)
    ]
    assert (not rows and not ranges) or (ranges[0][0] == 0 and ranges[-1][1] == rows)
    assert all(first % max(step, 16) == 0 for first, _ in ranges)
    heights = [end - first for first, end in ranges]
    assert all(height <= heights[-1] for height in heights)
    assert all(height * width <= max(1 << 18, 16 * width, step * width) for height in heights[:-1])


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 1200), st.sampled_from([64, 172, 768, 3072, 5120]), st.sampled_from([1, 3, 8, 16, 64]))
def test_a_product_in_pieces_is_the_whole_product(rows, width, rank):
    import torch

    generator = torch.Generator().manual_seed(rows)
    b, a = torch.randn(rows, rank, generator=generator), torch.randn(rank, width, generator=generator)
    pieces = [torch.mm(b[first:end], a) for first, end in row_ranges(rows, width)]
    assert torch.equal(torch.cat(pieces), b @ a)


def test_results_come_in_order_and_torch_keeps_its_threads():
    import torch

    before = torch.get_num_threads()
    seen = set()

    def work(first, end):
        seen.add((threading.current_thread().name, torch.get_num_threads()))
        return first

    with open_workers() as workers:
        found = list(workers.ordered(work, [(number, number + 1) for number in range(200)]))
    assert found == list(range(200))
    assert all(name.startswith("merge") and threads == 1 for name, threads in seen)
    assert torch.get_num_threads() == before
    assert list(one_by_one(work, [(3, 4), (5, 6)])) == [3, 5]


def test_a_fault_in_a_thread_reaches_the_caller():
    def work(first, end):
        if first == 7:
            raise ValueError("seven")
        return first

    with open_workers() as workers, pytest.raises(ValueError, match="seven"):
        list(workers.ordered(work, [(number, number + 1) for number in range(50)]))


def test_scratch_memory_is_kept_and_grows():
    import torch

    first = scratch("test", (4, 8))
    first.fill_(1)
    assert scratch("test", (2, 8)).data_ptr() == first.data_ptr()
    assert scratch("test", (64, 8)).shape == (64, 8)
    assert scratch("other", (3,), torch.uint8).dtype == torch.uint8
