"""What makes one weight another one than it should be.

A weight that is not the merge is taken apart by least squares: found = base + c * delta + g * (original -
base). c says how often the adapter's change is in it, g whether it lies on the base that was trained (0) or
on the original 16-bit one (1). What is left over must be no more than rounding. Rounding to integers is
random beside both, so the shares can be had from a quantized weight too, only less exactly: their standard
errors are those of least squares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lora_eval.verify.arithmetic import Grid, round_to_nearest, steps_of
from lora_eval.verify.expected import Expected, Parts

_FEW = 1e-3  # share of elements up to which a difference is damage, and not another weight
_NEAR = 0.1
# Shares of the change closer to 1 than this are 1. A merge computed in bfloat16 throughout is 0.001 away at
# most (the quickstart's 42 layers), and at 0.02 the answers are still those of rounding.
_LEAST = 0.02
_SIZE = 0.05  # share by which a quantized weight must be larger or smaller than it should be
_ERRORS = 5  # standard errors by which a share must differ to be another one
# GPTQ weights of the pocket model (4 and 8 bits, groups of 32 and 64, either order, calibrated on 4 to 256
# rows) lay 1.2 to 1.6 times as far from the weight as plain rounding, and no group further than 0.94 steps.
_FAR = 3.0
_FAR_STEPS = 3.0
_FEW_GROUPS = 0.05  # share of groups up to which these are damaged, and not the weight another one
_ROWS = 256  # of a tensor taken apart at once


def explain(found: Any, expected: Expected, *, exact: bool = False) -> str | None:
    """Return what makes the tensor another one than expected; None where only rounding does. `exact`: a few
    elements that differ by no more than rounding are damage too.
    """
    import torch

    if torch.equal(found, expected.tensor):
        return None
    if not found.is_floating_point():
        return "holds other numbers"
    different = found != expected.tensor
    count = int(different.sum())
    if count <= max(8, _FEW * found.numel()):
        beyond = different & ~torch.isclose(found.float(), expected.tensor.float(), rtol=_unit(found), atol=0)
        if exact or bool(beyond.any()):
            return _damage(found, expected.tensor, different, count)
        return None
    if not bool(torch.isfinite(found).all()):
        return f"{int((~torch.isfinite(found)).sum())} of {found.numel()} elements are not finite"
    return _taken_apart(found, expected)


def explain_rounded(found: Any, expected: Expected, grid: Grid) -> str | None:
    """Return what makes a weight (out, in), given as the numbers that its integers stand for, another one
    than the expected weight rounded to the grid; None where only rounding does.
    """
    import torch

    if not bool(torch.isfinite(found).all()):
        return f"{int((~torch.isfinite(found)).sum())} of {found.numel()} elements are not finite"
    wanted = expected.tensor.float()
    away, size = found - wanted, float(wanted.norm().clamp_min(1e-30))
    plain = float((round_to_nearest(wanted, grid) - wanted).norm()) / size
    parts = expected.parts() if expected.parts is not None else Parts(torch.zeros_like(wanted))
    columns = {"size": wanted, "c": parts.delta}
    columns["g"] = None if parts.original is None else parts.original - parts.base
    fit = _fit(away, columns)
    groups, share = _far_groups(away, wanted, grid)
    if fit.left**0.5 > _FAR * plain * size:
        if share <= _FEW_GROUPS:
            return groups
        distance = float(away.norm()) / size
        return (
            f"is another weight (relative distance about {distance:.1g}, that of plain rounding {plain:.1g})"
        )
    # Rounding makes a weight smaller by about half the square of its relative error (1 % at 4 bits).
    if abs(fit.share("size")) > max(_SIZE, 4 * plain**2, _ERRORS * fit.error("size")):
        return f"is {1 + fit.share('size'):.2g} times the weight that it should be"
    times, original = fit.beyond("c", _NEAR), fit.beyond("g", _NEAR)
    return _words(1 + times, original, digits=1) or groups


def _far_groups(away: Any, wanted: Any, grid: Grid) -> tuple[str | None, float]:
    """Say which groups of a row lie further away than rounding puts them (a damaged scale or zero point), and
    what share of all they are.
    """
    steps = steps_of(wanted, grid)
    groups = away.reshape(len(away), steps.shape[1], -1).square().mean(-1).sqrt()
    # In steps of the row's widest group: GPTQ moves the errors of one group into the others of the row.
    far = groups > _FAR_STEPS * steps.amax(-1, keepdim=True)
    if not bool(far.any()):
        return None, 0.0
    row, group = (int(index) for index in far.nonzero()[0])
    width = away.shape[1] // steps.shape[1]
    said = (
        f"{int(far.sum())} of {far.numel()} groups are not what was rounded, the first in row {row}, columns "
        f"{group * width} to {(group + 1) * width - 1} (a damaged scale, zero point or integer)"
    )
    return said, float(far.float().mean())


def _damage(found: Any, expected: Any, different: Any, count: int) -> str:
    place = tuple(int(index) for index in different.nonzero()[0])
    return (
        f"{count} of {found.numel()} elements are not what was written, the first at {list(place)}: "
        f"{float(found[place]):.6g} in place of {float(expected[place]):.6g} (a damaged or edited file)"
    )


def _by_rounding(found: Any, expected: Any) -> str | None:
    sums = _products(lambda part: [found[part].double() - expected[part].double(), expected[part]],
                     len(found))  # fmt: skip
    distance, size = float(sums[0, 0].sqrt()), float(sums[1, 1].sqrt())
    if distance <= _unit(found) * size:
        return None
    share = distance / max(size, 1e-30)
    return f"is another weight (relative distance about {share:.1g})"  # one digit: layers alike are one line


def _taken_apart(found: Any, expected: Expected) -> str | None:
    """Least squares over delta and original - base (see the module)."""
    if expected.parts is None:
        return _by_rounding(found, expected.tensor)
    parts = expected.parts()
    columns = {"c": parts.delta, "g": None if parts.original is None else parts.original - parts.base}
    whole = _fit(found.float() - parts.base, columns)
    if whole.left <= _unit(found) ** 2 * float(found.double().square().sum()):
        # Rounding may swallow a part of a small change, of what the weight should be the same part of it:
        # the shares count where those of the difference from that are there.
        away = _fit(found.float() - expected.tensor.float(), columns)
        times, original = away.beyond("c", _LEAST), away.beyond("g", _NEAR)
        return _words(whole.share("c") if times else 1.0, whole.share("g") if original else 0.0)
    if parts.again is not None:
        again, once = (float((found.float() - each.float()).square().sum())
                       for each in (parts.again, expected.tensor))  # fmt: skip
        if again < 0.5 * once:
            return (
                "was quantized again after the merge (as PEFT's merge_and_unload does in a 4-bit model): "
                "lies on neither base"
            )
    return _by_rounding(found, expected.tensor)


@dataclass(frozen=True, slots=True)
class _Fit:
    """Shares of the columns in a tensor by least squares, with their standard errors, and the sum of squares
    that they leave. A column that is not there has a share of 0.
    """

    shares: dict[str, float]
    errors: dict[str, float]
    left: float

    def share(self, name: str) -> float:
        return self.shares.get(name, 0.0)

    def error(self, name: str) -> float:
        return self.errors.get(name, 0.0)

    def beyond(self, name: str, least: float) -> float:
        """Return the share where it is at least `least` and five standard errors away from 0, else 0."""
        share = self.share(name)
        return share if abs(share) >= max(least, _ERRORS * self.error(name)) else 0.0


def _fit(tensor: Any, columns: dict[str, Any]) -> _Fit:
    import torch

    there = {name: column for name, column in columns.items() if column is not None}
    sums = _products(lambda part: [tensor[part], *(column[part] for column in there.values())], len(tensor))
    names = {name: n for n, name in enumerate(there, start=1) if float(sums[n, n]) > 0}
    if not names:
        return _Fit({}, {}, float(sums[0, 0]))
    used = list(names.values())
    gram = sums[used][:, used]
    solved = torch.linalg.lstsq(gram, sums[used][:, :1]).solution[:, 0]
    left = max(float(sums[0, 0] - sums[used, 0] @ solved), 0.0)
    variance = left / max(tensor.numel() - len(used), 1)
    errors = (torch.linalg.pinv(gram).diagonal().clamp_min(0) * variance).sqrt()
    return _Fit(
        dict(zip(names, solved.tolist(), strict=True)), dict(zip(names, errors.tolist(), strict=True)), left
    )


def _products(vectors: Callable[[slice], list[Any]], rows: int) -> Any:
    """Return the products of every pair of vectors in float64, summed up over stretches of rows, so that a
    large tensor is never there in float64 as a whole.
    """
    import torch

    total: Any = 0
    for start in range(0, rows, _ROWS):
        some = torch.stack([each.reshape(-1).double() for each in vectors(slice(start, start + _ROWS))])
        total = total + some @ some.T
    return total


def _words(times: float, original: float, digits: int = 2) -> str | None:
    """Say what the two shares mean, so roughly that layers alike are one line; None for exactly once, on the
    trained base.
    """
    said = []
    if abs(original - 1) < _NEAR:
        said.append("lies on the original 16-bit base, not on the quantized one that was trained")
    elif original:
        said.append(f"lies {original:.{digits}f} of the way from the trained base to the original 16-bit one")
    if abs(times) < _NEAR:
        said.append("the adapter's change is not in it")
    elif abs(times - 2) < _NEAR:
        said.append("delta applied twice (or scaled by 2 times the trained scaling)")
    elif times != 1:
        said.append(f"scaling is {round(times, digits):g} times the trained one")
    return "; ".join(said) or None


def _unit(tensor: Any) -> float:
    """Twice the largest relative error of one rounding in the tensor's dtype."""
    import torch

    return float(torch.finfo(tensor.dtype).eps)
