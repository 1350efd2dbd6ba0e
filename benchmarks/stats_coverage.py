"""How often the interval of a paired difference of two rates covers the truth, against the usual interval.

    python benchmarks/stats_coverage.py [--runs 2000]

For each line: share of simulated comparisons whose nominal 95 % interval covers the true difference, for the
Dirichlet(1/2) interval of lora-eval and for the normal interval mean +- 1.96 SE of the paired differences;
share of runs in which the normal interval has no width; and how often the exact McNemar test is below 0.05.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy.stats import norm

from lora_eval.stats import dirichlet_interval, mcnemar_exact, mcnemar_mid_p

LINES = [
    (20, 0.60, 0.60, 0.8),
    (20, 0.60, 0.65, 0.8),
    (20, 0.90, 0.93, 0.9),
    (50, 0.90, 0.93, 0.9),
    (80, 0.90, 0.93, 0.9),
    (200, 0.50, 0.50, 0.7),
    (200, 0.90, 0.93, 0.9),
    (200, 0.98, 0.98, 0.9),
    (1000, 0.60, 0.65, 0.8),
    (1000, 0.98, 0.98, 0.9),
]


def simulate(n: int, p_a: float, p_b: float, rho: float, runs: int, seed: int) -> dict[str, float]:
    """Two arms with latent normal scores that share the item's difficulty (correlation `rho`)."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((runs, n))
    a, b = (
        np.sqrt(rho) * shared + np.sqrt(1 - rho) * rng.standard_normal((runs, n)) < norm.ppf(p)
        for p in (p_a, p_b)
    )
    wins, losses = (b & ~a).sum(1), (a & ~b).sum(1)
    truth, tally = p_b - p_a, np.zeros(5)
    for w, lost in zip(wins.tolist(), losses.tolist(), strict=True):
        low, high = dirichlet_interval(w, lost, n - w - lost)
        mean = (w - lost) / n
        half = 1.96 * np.sqrt(max((w + lost) / n - mean**2, 0.0) / n)
        tally += [
            low <= truth <= high,
            abs(mean - truth) <= half,
            half == 0,
            mcnemar_exact(w, lost) < 0.05,
            mcnemar_mid_p(w, lost) < 0.05,
        ]
    names = ("dirichlet", "normal", "no_width", "exact", "mid_p")
    return dict(zip(names, tally / runs, strict=True))


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2000)
    runs = parser.parse_args().runs
    print("| n, p_a, p_b, rho | Dirichlet(1/2) | normal | normal, no width | McNemar < .05 | mid-p < .05 |")
    print("|---|--:|--:|--:|--:|--:|")
    for number, (n, p_a, p_b, rho) in enumerate(LINES):
        found = simulate(n, p_a, p_b, rho, runs, seed=number)
        print(
            f"| {n}, {p_a:.2f}, {p_b:.2f}, {rho} | " + " | ".join(f"{v:.3f}" for v in found.values()) + " |"
        )


if __name__ == "__main__":
    main()
