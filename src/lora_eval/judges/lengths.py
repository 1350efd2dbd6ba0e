"""The win rate at equal length: a logistic model of the difference of lengths, with a bootstrap over
prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lora_eval.judges.logistic import LARGEST, Values, fit, probability
from lora_eval.records import LengthAdjusted, VariancePart
from lora_eval.stats import StudentLaw
from lora_eval.stats.differences import number_clusters

RESAMPLES = 1_000
FEWEST = 10
_SEED = 20_240_404
_BATCH = 2_000_000


def length_adjusted(
    scores: Values, longer: Values, prompts: Sequence[str], level: float = 0.95, resamples: int = RESAMPLES
) -> LengthAdjusted:
    """Return the win rate at equal length.

    `scores` in 0..1 are what the judge gave the model, `longer` how many characters its answer is longer.
    Model: logit P = beta0 + beta1 tanh(d / sd(d)) (the length term of Dubois et al. 2024, arXiv 2404.04475,
    without their difficulty term, which is defined for their instructions and judge alone). Whole prompts are
    drawn; the interval is Student's t on beta0, taken to percent.
    """
    spread = float(np.std(longer, ddof=1)) if len(longer) > 1 else 0.0
    labels = number_clusters(prompts, len(scores))
    units = int(labels.max()) + 1 if len(labels) else 0
    if units < FEWEST:
        return undefined(level, f"{units} prompts: at least {FEWEST} are needed")
    if spread == 0.0:
        return undefined(level, "every answer differs in length by the same amount")
    design = np.column_stack([np.ones(len(scores)), np.tanh(longer / spread)])
    beta = fit(design, scores, np.ones(len(scores)))
    if np.abs(beta).max() >= LARGEST:
        return undefined(level, "no finite fit: one arm wins everywhere, or length alone decides who wins")
    drawn = _resampled(design, scores, labels, beta, resamples)
    error = float(np.std(drawn, ddof=1))
    low, high = (float(beta[0]),) * 2
    if error > 0.0:
        part = VariancePart(source="items", variance=error**2, degrees_of_freedom=units - 1)
        low, high = StudentLaw(float(beta[0]), (part,)).interval(level)
    return LengthAdjusted(
        win_rate=_percent(beta[0]),
        standard_error=100.0 * float(np.std(probability(drawn), ddof=1)),
        ci_low=_percent(low),
        ci_high=_percent(high),
        level=level,
        slope=float(beta[1]),
        resamples=resamples,
        share_longer=float((longer > 0).mean()),
    )


def _resampled(
    design: Values, scores: Values, labels: NDArray[np.int64], beta: Values, resamples: int
) -> Values:
    """beta0 of each bootstrap sample of units."""
    generator, units = np.random.default_rng(_SEED), int(labels.max()) + 1
    found = []
    size = max(1, _BATCH // len(scores))
    for start in range(0, resamples, size):
        count = min(size, resamples - start)
        weights = generator.multinomial(units, np.full(units, 1.0 / units), size=count).astype(np.float64)
        found.append(fit(design, scores, weights[:, labels], start=beta)[:, 0])
    return np.concatenate(found)


def _percent(logit: float) -> float:
    return 50.0 * (1.0 + math.tanh(0.5 * float(logit)))


def undefined(level: float, reason: str) -> LengthAdjusted:
    """Return the record of no estimate, for `reason`."""
    return LengthAdjusted(
        win_rate=None,
        standard_error=None,
        ci_low=None,
        ci_high=None,
        level=level,
        slope=None,
        resamples=0,
        reason=reason,
    )
