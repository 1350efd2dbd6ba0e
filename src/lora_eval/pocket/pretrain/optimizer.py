# mypy: allow-untyped-decorators
"""Muon for the matrices (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

The orthogonalization is divided among the processes: each does its share of the matrices and all share
the results, since at this size it would otherwise cost a third of a step.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


def orthogonalized(stack: Tensor) -> Tensor:
    """Each matrix of ``stack`` ``(count, rows, columns)`` with its singular values moved near 1."""
    a, b, c = _COEFFICIENTS
    x = stack.bfloat16()
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float()


class Muon:
    """Nesterov momentum, orthogonalized; tall matrices step larger by the root of rows over columns."""

    def __init__(self, parameters: Iterable[nn.Parameter], momentum: float = 0.95) -> None:
        self.parameters = list(parameters)
        self.momentum = momentum
        self.buffers = [torch.zeros_like(parameter) for parameter in self.parameters]

    def _groups(self) -> dict[torch.Size, list[int]]:
        groups: dict[torch.Size, list[int]] = {}
        for index, parameter in enumerate(self.parameters):
            groups.setdefault(parameter.shape, []).append(index)
        return groups

    @torch.no_grad()
    def step(self, rate: float, rank: int, world: int) -> None:
        """Every matrix moved by one step of size ``rate``."""
        for indices in self._groups().values():
            updates = []
            for index in indices:
                gradient, buffer = self.parameters[index].grad, self.buffers[index]
                assert gradient is not None
                buffer.lerp_(gradient, 1 - self.momentum)
                updates.append(gradient.lerp(buffer, self.momentum))
            self._apply(indices, torch.stack(updates), rate, rank, world)

    def _apply(self, indices: list[int], stack: Tensor, rate: float, rank: int, world: int) -> None:
        result = torch.zeros_like(stack)
        result[rank::world] = orthogonalized(stack[rank::world])
        if world > 1:
            dist.all_reduce(result)
        scale = max(1.0, stack.shape[1] / stack.shape[2]) ** 0.5
        for index, update in zip(indices, result, strict=True):
            self.parameters[index].add_(update, alpha=-rate * scale)

    def state_dict(self) -> dict[str, Any]:
        """The momentum buffers."""
        return {"buffers": self.buffers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over the buffers of ``state``."""
        self.buffers = [buffer.clone() for buffer in state["buffers"]]
