"""The learning rate over tokens: warm-up, constant, then linear to 2 %; the decay can be called early."""

from dataclasses import asdict, dataclass, replace
from typing import Any

_WARM_UP_TOKENS = 200_000
_FLOOR = 0.02


@dataclass(frozen=True)
class Schedule:
    """All in tokens seen by all processes together."""

    decay_start: int
    total: int

    def factor(self, seen: int) -> float:
        """The multiple of the peak rate after ``seen`` tokens."""
        if seen < _WARM_UP_TOKENS:
            return (seen + 1) / _WARM_UP_TOKENS
        if seen < self.decay_start:
            return 1.0
        left = (self.total - seen) / max(1, self.total - self.decay_start)
        return max(_FLOOR, _FLOOR + (1 - _FLOOR) * left)

    def finishing_in(self, seen: int, tokens: int) -> "Schedule":
        """The same curve, with ``tokens`` left: decay starts now, from wherever the rate is."""
        factor = max(self.factor(seen), _FLOOR + 1e-6)
        span = tokens * (1 - _FLOOR) / (factor - _FLOOR) if factor < 1 else tokens
        return replace(self, decay_start=int(seen + tokens - span), total=seen + tokens)

    def as_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)
