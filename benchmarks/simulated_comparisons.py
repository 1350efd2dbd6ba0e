"""Simulated comparisons whose true difference is known, judged with `lora_eval.stats` as `compare` does.

Each function yields the lines of one table: shares of `runs` comparisons. `simulate_statistics.py` writes the
tables, `tests/stats/test_simulation.py` checks them at a reduced size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
from scipy.special import ndtri

from lora_eval.stats import (
    equivalence,
    judge,
    mcnemar_exact,
    paired_binary,
    paired_likelihoods,
    paired_scores,
)

SIZES, ACCURACIES, CORRELATIONS = (20, 50, 200, 1000), (0.5, 0.9, 0.98), (0.5, 0.9)
MARGIN = 0.05
Row = dict[str, float | int | str]
Table = Callable[[int], Iterator[Row]]


def two_rates(rng, runs, n, p_a, p_b, rho):
    """Right or wrong answers of both arms, (runs, n): latent normal scores share the item's difficulty."""
    shared = np.sqrt(rho) * rng.standard_normal((runs, n))
    return [shared + np.sqrt(1 - rho) * rng.standard_normal((runs, n)) < ndtri(p) for p in (p_a, p_b)]


class Tally:
    """What was concluded in repeated comparisons with the true difference `truth`."""

    def __init__(self, truth, margin=None):
        self.truth, self.margin, self.counts, self.total = truth, margin, Counter(), 0

    def add(self, estimate, times=1):
        """Judge an estimate as the only task of a pair, and count what is said of it."""
        word = judge(estimate, estimate.p_value, higher_is_better=True, margin=self.margin).verdict
        low, high = estimate.ci_low, estimate.ci_high
        self.total += times
        self.counts[word] += times
        self.counts["covered"] += times * (low is not None and low <= self.truth <= high)
        self.counts["no interval"] += times * (low is None)
        self.counts["equivalent"] += times * (equivalence(estimate, self.margin).equivalent is True)

    def rates(self, *names):
        """The share of the comparisons, by name."""
        return {name: self.counts[name] / self.total for name in names}


def rates(runs, sizes=SIZES) -> Iterator[Row]:
    """Right-or-wrong items: every verdict, with no difference, a gain, and a drop as large as the margin."""
    for n in sizes:
        for accuracy in ACCURACIES:
            for rho in CORRELATIONS:
                for change in (0.0, min(0.05, 0.75 * (1 - accuracy)), -MARGIN):
                    rng = np.random.default_rng(
                        [1, n, int(1000 * accuracy), int(10 * rho), int(1000 * (1 + change))]
                    )
                    a, b = two_rates(rng, runs, n, accuracy, accuracy + change, rho)
                    cells = Counter(zip((b & ~a).sum(1).tolist(), (a & ~b).sum(1).tolist(), strict=True))
                    tally = Tally(change, MARGIN)
                    for (wins, losses), times in cells.items():
                        rest = n - wins - losses
                        first = [0] * wins + [1] * losses + [1] * rest
                        tally.add(paired_binary(first, [1] * wins + [0] * losses + [1] * rest), times)
                    yield {
                        "n": n,
                        "accuracy": accuracy,
                        "correlation": rho,
                        "true difference": round(change, 3),
                        **tally.rates(
                            "covered", "better", "worse", "not_worse", "inconclusive", "equivalent"
                        ),
                    }


def clusters(runs) -> Iterator[Row]:
    """Right-or-wrong items in clusters of 5 whose differences hang together; no true difference but in the
    last column, which has a gain of 5 points.
    """
    for n in (50, 200, 1000):
        for accuracy in (0.5, 0.9):
            for inside in (0.0, 0.3):
                rng = np.random.default_rng([2, n, int(1000 * accuracy), int(10 * inside)])
                tallies = []
                as_items = 0
                for change in (0.0, 0.05):
                    tally = Tally(change)
                    for _ in range(runs):
                        a, b = clustered_rates(rng, n // 5, 5, accuracy, accuracy + change, 0.6, inside)
                        tally.add(paired_binary(a, b, clusters=labels_of(n // 5, 5)))
                        if not change:
                            as_items += mcnemar_exact(int((b & ~a).sum()), int((a & ~b).sum())) < 0.05
                    tallies.append(tally)
                null, gain = tallies
                yield {
                    "n": n,
                    "clusters": n // 5,
                    "accuracy": accuracy,
                    "inside": inside,
                    **null.rates("covered", "better", "worse"),
                    "rows alarm": as_items / runs,
                    "covered gain": gain.rates("covered")["covered"],
                    "better gain": gain.rates("better")["better"],
                }


def clustered_rates(rng, groups, size, p_a, p_b, rho, inside):
    """Answers of both arms; a share `inside` of the latent variance is the cluster's, apart for each arm."""
    shared = np.sqrt(rho) * rng.standard_normal((groups, size))
    answers = []
    for p in (p_a, p_b):
        own = np.sqrt(inside) * rng.standard_normal((groups, 1))
        rest = np.sqrt(1 - rho - inside) * rng.standard_normal((groups, size))
        answers.append((shared + own + rest < ndtri(p)).ravel())
    return answers


def labels_of(groups, size):
    """One label for each item."""
    return [str(i // size) for i in range(groups * size)]


def scores(runs) -> Iterator[Row]:
    """Scores in clusters of 4 or alone; the share `inside` of the variance is the cluster's. Differences are
    symmetric, or as skewed as a chi-square with one degree of freedom (few items change much, all one way).
    """
    for skewed in (False, True):
        for n in SIZES:
            for inside in (0.0, 0.4):
                rng = np.random.default_rng([3, skewed, n, int(10 * inside)])
                null, gain, as_items = Tally(0.0), Tally(0.03), 0
                labels = labels_of(-(-n // 4), 4)[:n] if inside else None
                for _ in range(runs):
                    for tally in (null, gain):
                        base = rng.random(n)
                        scored = base + score_changes(rng, n, inside, skewed) + tally.truth
                        tally.add(paired_scores(base, scored, labels))
                        if tally is null:
                            as_items += paired_scores(base, scored).p_value < 0.05
                yield {
                    "differences": "skewed" if skewed else "symmetric",
                    "n": n,
                    "inside": inside,
                    **null.rates("covered", "better", "worse"),
                    "rows alarm": as_items / runs,
                    "better gain": gain.rates("better")["better"],
                }


def score_changes(rng, n, inside, skewed):
    """Changes of n scores with mean 0 and standard deviation 0.2."""
    own = np.sqrt(inside) * np.repeat(rng.standard_normal(-(-n // 4)), 4)[:n]
    changes = own + np.sqrt(1 - inside) * rng.standard_normal(n)
    return 0.2 * ((changes**2 - 1) / np.sqrt(2) if skewed else changes)


def perplexities(runs) -> Iterator[Row]:
    """Documents of unequal length: the ratio of perplexities; a true drop of 1 % in the last column."""
    for n in SIZES:
        rng = np.random.default_rng([4, n])
        null, gain = Tally(0.0), Tally(0.01)
        for _ in range(runs):
            for tally in (null, gain):
                words = np.ceil(rng.gamma(2.0, 60.0, n))
                nll = words * rng.normal(2.0, 0.15, n)
                change = words * rng.normal(0.0, 0.03, n) - tally.truth * words
                # Lower is better: the arms change places, so that a gain is a difference above 0.
                estimate = paired_likelihoods(nll + change, nll, words)
                tally.add(estimate)
                ratio = np.exp(tally.truth)  # of the perplexities; their difference has no fixed true value
                tally.counts["ratio covered"] += estimate.ratio_low <= ratio <= estimate.ratio_high
        yield {
            "documents": n,
            "covered": null.rates("ratio covered")["ratio covered"],
            **null.rates("better", "worse"),
            "better gain": gain.rates("better")["better"],
        }
