"""Simulated comparisons of whole suites, of several training runs, and of the resampling methods.

See `simulated_comparisons.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
from simulated_comparisons import SIZES, Row, Tally, two_rates

from lora_eval.records import VariancePart
from lora_eval.stats import (
    DirichletLaw,
    StudentLaw,
    benjamini_hochberg,
    holm,
    macro_average,
    mcnemar_exact,
    paired_scores,
)
from lora_eval.stats.suite import TaskDifference


def many_tasks(runs) -> Iterator[Row]:
    """Ten tasks of one pair: one or more false verdicts (Holm), and the share of false ones (BH)."""
    for n in (50, 200, 1000):
        for changed in (0, 5):
            rng = np.random.default_rng([5, n, changed])
            any_alarm = any_plain = found = 0
            false_share = 0.0
            for _ in range(runs):
                p_values = []
                for task in range(10):
                    a, b = two_rates(rng, 1, n, 0.7, 0.8 if task < changed else 0.7, 0.7)
                    p_values.append(mcnemar_exact(int((b & ~a).sum()), int((a & ~b).sum())))
                adjusted, explored = holm(p_values), benjamini_hochberg(p_values)
                any_alarm += min(adjusted[changed:]) < 0.05
                any_plain += min(p_values[changed:]) < 0.05
                found += sum(p < 0.05 for p in adjusted[:changed])
                alarms = sum(p < 0.05 for p in explored)
                false_share += sum(p < 0.05 for p in explored[changed:]) / max(1, alarms)
            yield {
                "n": n,
                "tasks with a gain": changed,
                "any alarm Holm": any_alarm / runs,
                "any alarm plain": any_plain / runs,
                "false share BH": false_share / runs,
                "found Holm": f"{found / runs / changed:.3f}" if changed else "-",
            }


def macro(runs) -> Iterator[Row]:
    """Macro average of tasks with 20 to 1,000 right-or-wrong items each."""
    for tasks in (2, 5, 20):
        for accuracy in (0.5, 0.9, 0.98):
            rng = np.random.default_rng([6, tasks, int(1000 * accuracy)])
            sizes = [SIZES[i % 4] for i in range(tasks)]
            null, gain = Counter(), Counter()
            change = min(0.05, 0.75 * (1 - accuracy))
            for truth, counted in ((0.0, null), (change, gain)):
                for _ in range(runs):
                    parts = []
                    for number, n in enumerate(sizes):
                        a, b = (x[0] for x in two_rates(rng, 1, n, accuracy, accuracy + truth, 0.7))
                        parts.append(task_difference(str(number), a, b))
                    pair = macro_average(("a", "b"), parts)
                    counted["covered"] += pair.ci_low <= truth <= pair.ci_high
                    counted["found"] += pair.p_value < 0.05
            yield {
                "tasks": tasks,
                "accuracy": accuracy,
                "covered": null["covered"] / runs,
                "alarm": null["found"] / runs,
                "true gain": round(change, 3),
                "covered gain": gain["covered"] / runs,
                "found": gain["found"] / runs,
            }


def task_difference(name, a, b):
    """Difference and variance of a task, without the interval that the macro average does not read."""
    wins, losses = int((b & ~a).sum()), int((a & ~b).sum())
    law = DirichletLaw(wins, losses, len(a) - wins - losses)
    items = VariancePart(source="items", variance=law.variance, degrees_of_freedom=len(a) - 1)
    return TaskDifference(name, (wins - losses) / len(a), items, {})


def training_runs(runs) -> Iterator[Row]:
    """Several training runs, each with its own true difference; `spread` is the standard deviation between
    runs over the standard error that the items make. 200 items.
    """
    n = 200
    for k in (2, 3, 5, 10):
        for spread in (0.0, 0.5, 1.0, 2.0, 4.0):
            rng = np.random.default_rng([7, k, int(10 * spread)])
            counted = Counter()
            for _ in range(runs):
                item = rng.standard_normal(n)
                noise = rng.standard_normal((k, n))
                between = rng.standard_normal(k) * spread / np.sqrt(n)
                values = 0.6**0.5 * item + 0.4**0.5 * noise + between[:, None]
                base = rng.random(n)
                found = paired_scores(
                    base, base + values.mean(0), runs={"runs of b": values.mean(1).tolist()}
                )
                counted["covered"] += found.ci_low <= 0 <= found.ci_high
                items_only = StudentLaw(found.difference, found.law.parts[:1]).interval(0.95)
                counted["items only"] += items_only[0] <= 0 <= items_only[1]
                low, high = satterthwaite(found)
                counted["satterthwaite"] += low <= 0 <= high
                counted["width"] += (found.ci_high - found.ci_low) * np.sqrt(n)
            yield {
                "runs": k,
                "spread": spread,
                "covered": counted["covered"] / runs,
                "items only": counted["items only"] / runs,
                "satterthwaite": counted["satterthwaite"] / runs,
                "width": counted["width"] / runs,
            }


def satterthwaite(found):
    """The interval with one combined number of degrees of freedom, for comparison."""
    parts = found.law.parts
    total = sum(part.variance for part in parts)
    freedom = total**2 / sum(part.variance**2 / part.degrees_of_freedom for part in parts)
    one = VariancePart(source="items", variance=total, degrees_of_freedom=freedom)
    return StudentLaw(found.difference, (one,)).interval(0.95)


def resampling(runs) -> Iterator[Row]:
    """Bootstrap (BCa) and sign-flip permutation on skewed scores, beside t. A fifth of the runs."""
    for n in (200,):
        rng = np.random.default_rng([8, n])
        tallies = {method: Tally(0.0) for method in ("auto", "bootstrap", "permutation")}
        for _ in range(max(1, runs // 5)):
            base = rng.random(n)
            difference = 0.1 * (rng.exponential(1.0, n) - 1.0)
            for method, tally in tallies.items():
                tally.add(paired_scores(base, base + difference, method=method))
        for method, tally in tallies.items():
            yield {"n": n, "method": method, **tally.rates("covered", "better", "worse")}
