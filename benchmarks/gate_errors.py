"""How often a gate errs on right-or-wrong items: exact rates, by summing over every outcome there is.

A check sees n items of which a share `changed` is answered differently by the two arms; its true gain is the
rule's threshold itself, the worst case for both errors. Checks of a gate are taken as independent.

    python benchmarks/gate_errors.py
"""

from __future__ import annotations

from collections import Counter

from scipy.stats import binom

from lora_eval.stats.dirichlet import dirichlet_interval
from lora_eval.stats.gate import decide
from lora_eval.stats.score_interval import score_interval

LEVEL = 0.95
CASES = (
    (50, 0.02, (0.025, 0.04, 0.1, 0.2)),
    (200, 0.0, (0.05, 0.1, 0.2)),
    (200, 0.01, (0.01, 0.015, 0.03, 0.1, 0.2)),
    (200, 0.05, (0.05, 0.07, 0.1, 0.2)),
    (1000, 0.01, (0.01, 0.015, 0.03, 0.1, 0.2)),
)


def rates(n: int, changed: float, gain: float, threshold: float) -> Counter[str]:
    """Return the probability of each verdict of one check, and of a PASS by the Dirichlet bound alone."""
    win, loss = (changed + gain) / 2, (changed - gain) / 2
    found: Counter[str] = Counter()
    for losses in range(n + 1):
        first = binom.pmf(losses, n, loss)
        rest = n - losses
        if first < 1e-9:
            continue
        for wins, probability in enumerate(first * binom.pmf(range(rest + 1), rest, win / (1 - loss))):
            if probability >= 1e-9:
                counts = (wins, losses, n - wins - losses)
                alone = dirichlet_interval(*counts, 2 * LEVEL - 1)
                score = score_interval(*counts, 2 * LEVEL - 1)
                low, high = min(alone[0], score[0]), max(alone[1], score[1])
                found[decide(low, high, threshold)] += probability
                found["alone"] += probability * (alone[0] > threshold)
    return found


def main() -> None:
    """Print both tables."""
    print("| items | rule | answered differently | false PASS | false FAIL | false PASS, Dirichlet alone |")
    print("|--:|---|--:|--:|--:|--:|")
    for n, limit, shares in CASES:
        for changed in shares:
            found = rates(n, changed, -limit, -limit)
            row = f"| {n:,} | `max_drop: {limit:g}` | {100 * changed:g} % |"
            print(row, " | ".join(f"{100 * found[name]:.1f} %" for name in ("PASS", "FAIL", "alone")), "|")
    print("\n| rules | true gain | PASS | FAIL | INCONCLUSIVE |\n|--:|---|--:|--:|--:|")
    for gain, words in ((-0.02, "-0.02, the threshold"), (0.0, "0, no change"), (0.01, "+0.01")):
        found = rates(1000, 0.1, gain, -0.02)
        for rules in (1, 5, 20):
            passed, failed = found["PASS"] ** rules, 1 - (1 - found["FAIL"]) ** rules
            shares = (passed, failed, max(0.0, 1 - passed - failed))
            print(f"| {rules} | {words} |", " | ".join(f"{100 * share:.1f} %" for share in shares), "|")


if __name__ == "__main__":
    main()
