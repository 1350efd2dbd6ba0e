"""How the figures were made, in plain words: only the methods that this comparison used."""

from __future__ import annotations

from collections.abc import Iterator

from lora_eval.records import Comparison, Pair


def methods_text(comparison: Comparison) -> list[str]:
    """Return one paragraph for each thing that a reader needs to judge the figures."""
    pairs = [pair for task in comparison.tasks for pair in task.pairs]
    if not pairs:
        return []
    return list(_paragraphs(comparison, pairs))


def _paragraphs(comparison: Comparison, pairs: list[Pair]) -> Iterator[str]:
    level = f"{100 * pairs[0].level:g} %"
    methods = {pair.method for pair in pairs}
    yield (
        "Every arm answered the same items with the same prompts (the prompts' hashes are compared), so each "
        "difference is taken item by item. Means are the evaluation harness's own figures."
    )
    if any("McNemar" in method for method in methods):
        yield (
            "Right-or-wrong items: exact McNemar test on the items that only one arm got right, and the "
            f"{level} interval of the difference under a Dirichlet(1/2) prior on the four outcomes."
        )
    if any("paired t" in method and "log ratio" not in method for method in methods):
        yield f"Scores: mean of the differences of items, with {level} interval and test of Student's t."
    if any("exact sign-flip by cluster" in method for method in methods):
        yield (
            "Right-or-wrong items that depend on each other (questions on one passage) are tested cluster by "
            "cluster: every assignment of signs to the clusters is counted. The interval is that of as many "
            "independent items as they are worth."
        )
    if any("macro average" in method for method in methods):
        yield (
            "A group whose figure is the plain mean of its tasks is tested as the mean of their differences. "
            "Tasks are taken as independent, with Satterthwaite's degrees of freedom, unless the line says "
            "that they share clusters."
        )
    if any("cluster-robust" in method for method in methods):
        yield (
            "Items that depend on each other (one passage, one conversation, repeats of one prompt, one "
            "question in several tasks) form clusters; the standard error is computed over clusters, with "
            "G - 1 degrees of freedom."
        )
    if any("log ratio" in method for method in methods):
        yield (
            "Perplexity: log-likelihoods are summed over documents and weighted by their words or bytes; the "
            "interval is that of the log ratio of the two arms, over documents."
        )
    if any("bootstrap" in method or "permutation" in method for method in methods):
        yield (
            "Resampling, as asked for: each line names its method; clusters are resampled or flipped whole."
        )
    if comparison.sequential is not None:
        yield (
            f"Tasks were looked at several times and stopped early ({comparison.sequential.method}; "
            f"{comparison.sequential.source}): intervals and p-values hold at every look."
        )
    if any(arm.runs for arm in comparison.arms):
        yield (
            "An arm of several training runs stands for their mean; how much the runs differ is a part of "
            "the standard error, so the interval is about another training, not about these weights."
        )
    yield from _reading(comparison, pairs)


def _reading(comparison: Comparison, pairs: list[Pair]) -> Iterator[str]:
    tested = sum(task.primary for task in comparison.tasks)
    explored = any(pair.p_bh is not None for pair in pairs)
    yield (
        f"Each pair of arms is tested on {tested} tasks, so p-values are adjusted by Holm's method: "
        f"the chance of one or more false alarms in a pair stays below {100 * (1 - pairs[0].level):g} %."
        + (
            " Beside them stand those of Benjamini and Hochberg, for exploration: no verdict rests on them."
            if explored
            else ""
        )
    )
    yield (
        "Better and worse are said only where the adjusted p-value and the interval both exclude no "
        "difference. Not worse means that a margin was stated and the interval's lower bound is above it. "
        "Everything else is inconclusive: the data do not decide, which is not the same as no difference."
    )
    yield (
        "Detectable is the smallest true difference that a test of this size finds with probability 0.8; n "
        "needed is the number of items that would decide if the difference seen were the true one."
    )
    yield (
        "Digits follow the interval: the last digit of a difference is worth between 3 % and 28 % of half "
        "the interval's width (rounding rule of the Particle Data Group), means have one more, and an end of "
        "an interval is never rounded to 0."
    )
