"""How often a gate errs on right-or-wrong items: exact rates, by summing over every outcome there is.

A check sees n items of which a share `changed` is answered differently by the two arms; its true gain is the
rule's threshold itself, the worst case for both errors. Checks of a gate are taken as independent.

    python benchmarks/gate_errors.py
"""

from __future__ import annotations

import math

from lora_eval.stats.dirichlet import dirichlet_interval
from lora_eval.stats.gate import decide

LEVEL = 0.95


def rates(n: int, changed: float, gain: float, threshold: float) -> tuple[float, float]:
    """Return the probability of PASS and of FAIL of one check."""
    win, loss = (changed + gain) / 2, (changed - gain) / 2
    passed, failed = [], []
    mean, spread = n * changed, math.sqrt(n * changed * (1 - changed))
    for discordant in range(max(0, int(mean - 9 * spread)), min(n, int(mean + 9 * spread) + 1) + 1):
        for wins in range(discordant + 1):
            probability = math.exp(
                math.lgamma(n + 1)
                - math.lgamma(wins + 1)
                - math.lgamma(discordant - wins + 1)
                - math.lgamma(n - discordant + 1)
                + wins * math.log(win)
                + (discordant - wins) * math.log(loss)
                + (n - discordant) * math.log1p(-changed)
            )
            if probability < 1e-9:
                continue
            low, high = dirichlet_interval(wins, discordant - wins, n - discordant, 2 * LEVEL - 1)
            verdict = decide(low, high, threshold)
            passed += [probability] if verdict == "PASS" else []
            failed += [probability] if verdict == "FAIL" else []
    return math.fsum(passed), math.fsum(failed)


def main() -> None:
    """Print both tables."""
    print("| n | changed | rule | false PASS | false FAIL |\n|--:|--:|---|--:|--:|")
    for n in (50, 200, 1000):
        for changed in (0.05, 0.1, 0.2):
            for threshold in (0.0, -0.02):
                p, f = rates(n, changed, threshold, threshold)
                rule = f"max_drop {0.0 - threshold:g}"
                print(f"| {n} | {100 * changed:g} % | {rule} | {100 * p:.1f} % | {100 * f:.1f} % |")
    print("\n| rules | true gain | PASS | FAIL | INCONCLUSIVE |\n|--:|---|--:|--:|--:|")
    for gain, words in ((-0.02, "-0.02, the threshold"), (0.0, "0, no change"), (0.01, "+0.01")):
        p, f = rates(1000, 0.1, gain, -0.02)
        for rules in (1, 5, 20):
            passed, failed = p**rules, 1 - (1 - f) ** rules
            rest = 1 - passed - failed
            print(f"| {rules} | {words} | {100 * passed:.1f} % | {100 * failed:.1f} % | {100 * rest:.1f} % |")


if __name__ == "__main__":
    main()
