"""What a check found, and when two figures count as the same."""

from __future__ import annotations

import math
from dataclasses import dataclass

_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that does not match: where, what stands there, and what follows from records and files."""

    place: str
    claimed: str
    follows: str

    @property
    def text(self) -> str:
        """One line."""
        return f"{self.place}: says {self.claimed}, but {self.follows} follows"


def same(one: object, other: object, tolerance: float = _TOLERANCE) -> bool:
    """Whether two values are equal, numbers up to rounding."""
    if isinstance(one, float) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance)
    return one == other
