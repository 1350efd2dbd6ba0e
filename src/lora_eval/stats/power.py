"""What a comparison of this size can find, and how many items would be needed."""

from __future__ import annotations

import functools
import math

POWER = 0.8


@functools.cache
def _quantiles(level: float, power: float) -> tuple[float, float]:
    from scipy.special import ndtri

    return float(ndtri(0.5 + level / 2.0)), float(ndtri(power))


def power_quantile(power: float = POWER) -> float:
    """Return z_{1-b}: how many standard errors lie between the bound and a difference found with `power`."""
    return _quantiles(0.95, power)[1]


def normal_mde(standard_error: float, level: float = 0.95, power: float = POWER) -> float:
    """Return the smallest true difference found with `power`: (z_{1-a/2} + z_{1-b}) SE, or 2.80 SE."""
    return sum(_quantiles(level, power)) * standard_error


def mcnemar_n(discordance: float, difference: float, level: float = 0.95, power: float = POWER) -> float:
    """Return the items needed to find `difference` where a share `discordance` is answered differently.

    n = (z_a sqrt(pi) + z_b sqrt(pi - delta^2))^2 / delta^2 (Connor 1987, Biometrics 43:207).
    """
    z_a, z_b = _quantiles(level, power)
    spread = math.sqrt(max(discordance - difference**2, 0.0))
    return (z_a * math.sqrt(discordance) + z_b * spread) ** 2 / difference**2


def mcnemar_mde(n: float, changed: float, level: float = 0.95, power: float = POWER) -> float | None:
    """Return the smallest difference of two rates found with `power`, given how many items changed.

    Inverts `mcnemar_n`. A difference cannot exceed the share of changed items, so where the solution would,
    the share is raised to the difference. None where no item changed (the share is then unknown) or n is too
    small for any difference.
    """
    if n == 0 or changed == 0:
        return None
    share = changed / n
    if mcnemar_n(1.0, 1.0, level, power) > n:
        return None
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2.0
        enough = mcnemar_n(max(share, middle), middle, level, power) <= n
        low, high = (low, middle) if enough else (middle, high)
    return high


def needed_n(
    n: int, mde: float | None, distance: float, *, tests: int = 1, level: float = 0.95, power: float = POWER
) -> int | None:
    """Return how many items would find `distance` with `power`, the spread being as seen.

    `mde` is the smallest detectable difference at this n; it shrinks with the square root of n. `tests`
    p-values are corrected together: the worst case of Holm's method, level 1 - alpha / tests, counts. None
    where nothing is to be found, or where as many items as that are there and have not found it.
    """
    if mde is None or distance <= 0:
        return None
    z_a, z_b = _quantiles(level, power)
    strict = _quantiles(1.0 - (1.0 - level) / tests, power)[0]
    factor = (strict + z_b) / (z_a + z_b)
    needed = math.ceil(n * (factor * mde / distance) ** 2)
    return needed if needed > n else None
