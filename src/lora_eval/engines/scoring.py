"""Log-likelihoods from the token tree: each distinct token forwarded once, the head only where it is read."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from lora_eval.engines.packs import PackRunner, log_probabilities
from lora_eval.engines.tree import Ints, TokenTree, nodes_of
from lora_eval.protocols import Score, ScoreRequest
from lora_eval.sequences import TOKEN_BYTES, as_bytes


class ScorePlan:
    """Which node of the tree answers which token of which request; the same for every arm.

    `tree` holds everything that is read; the last token of a request is only predicted and stands in no tree
    for its sake.
    """

    def __init__(self, requests: Sequence[ScoreRequest]) -> None:
        texts = list(_inputs(requests))
        self.tree = TokenTree(texts)
        self.requested_tokens = sum(len(text) // TOKEN_BYTES for text in texts)
        self._lengths = [len(request.continuation_ids) for request in requests]
        self._offsets = np.concatenate(([0], np.cumsum(self._lengths, dtype=np.int64)))
        nodes = [
            nodes_of(self.tree.path(text), len(text) // TOKEN_BYTES - length, len(text) // TOKEN_BYTES)
            for text, length in zip(texts, self._lengths, strict=True)
        ]
        every = np.concatenate(nodes) if nodes else np.empty(0, np.int64)
        targets = np.fromiter((t for r in requests for t in r.continuation_ids), np.int64, len(every))
        self._order = np.argsort(every, kind="stable")
        self._nodes, self._targets = every[self._order], targets[self._order]
        last = np.array([found[-1] for found in nodes], dtype=np.int64)
        self._finish_order = np.argsort(last, kind="stable")
        self._finish_nodes = last[self._finish_order]

    def __len__(self) -> int:
        return len(self._lengths)

    def asked(self, start: int, stop: int) -> tuple[Ints, Ints, slice]:
        """Return nodes (ascending) and targets that are asked for between two nodes, and their places."""
        low, high = np.searchsorted(self._nodes, (start, stop))
        return self._nodes[low:high], self._targets[low:high], slice(low, high)

    def finished(self, start: int, stop: int) -> list[int]:
        """Return the requests whose last answer comes from the nodes `start` to `stop`."""
        low, high = np.searchsorted(self._finish_nodes, (start, stop))
        return [int(number) for number in self._finish_order[low:high]]

    def places(self, part: slice) -> Ints:
        """Return where the answers of a stretch stand among the answers of all requests."""
        return self._order[part]

    def span(self, request: int) -> slice:
        """Return where the answers of a request stand."""
        return slice(int(self._offsets[request]), int(self._offsets[request + 1]))


def score_plan(
    model: Any, plan: ScorePlan, pack_tokens: int, *, fused: bool, count: Callable[[int], None]
) -> Iterator[list[tuple[int, Score]]]:
    """Yield the scores that each pack completes, as (number of the request, score); `count` hears of the
    tokens forwarded.
    """
    values = np.zeros(int(plan._offsets[-1]), dtype=np.float32)
    greedy = np.zeros(len(values), dtype=bool)
    runner = PackRunner(model, plan.tree, fused=fused)
    for pack in plan.tree.packs(pack_tokens):
        nodes, targets, part = plan.asked(pack.start, pack.stop)
        rows, where = np.unique(nodes - pack.start, return_inverse=True)
        logits = runner.run(pack, rows)
        if len(rows):
            chosen, same = log_probabilities(logits, torch.from_numpy(where), torch.from_numpy(targets))
            values[plan.places(part)] = chosen.numpy()
            greedy[plan.places(part)] = same.numpy()
        count(pack.stop - pack.start)
        yield [
            (number, _score(values[plan.span(number)], greedy[plan.span(number)]))
            for number in plan.finished(pack.start, pack.stop)
        ]


def _score(values: np.ndarray[Any, Any], greedy: np.ndarray[Any, Any]) -> Score:
    # Summed in float64: the sum then does not depend on how the values are grouped.
    return Score(float(values.sum(dtype=np.float64)), bool(greedy.all()), array("f", values.tobytes()))


def _inputs(requests: Sequence[ScoreRequest]) -> Iterator[bytes]:
    """The tokens that each request reads. Choices of one item share their context object."""
    context: tuple[int, ...] = ()
    text = b""
    for request in requests:
        if request.context_ids is not context:
            context, text = request.context_ids, as_bytes(request.context_ids)
        yield text + as_bytes(request.continuation_ids[:-1])
