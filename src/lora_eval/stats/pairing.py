"""From the rows of two runs to aligned arrays: the same item, the same prompt, a value in both.

Which test applies follows from the values: likelihood metrics by their name in lm-eval, then right-or-wrong
where every value is 0 or 1, else scores; each by cluster where items depend on each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lora_eval.errors import InputError
from lora_eval.records import SampleRow
from lora_eval.stats.binary import paired_binary
from lora_eval.stats.differences import Centers, Method
from lora_eval.stats.estimate import Estimate
from lora_eval.stats.likelihood import Scale, paired_likelihoods
from lora_eval.stats.scores import paired_scores

ItemKey = tuple[str, int, str, int]
Rows = Mapping[ItemKey, SampleRow]

# Metrics that lm-eval aggregates from summed log-likelihoods instead of averaging values of items.
LIKELIHOOD_METRICS: Mapping[str, Scale] = {
    "word_perplexity": "perplexity",
    "byte_perplexity": "perplexity",
    "perplexity": "perplexity",
    "bits_per_byte": "bits",
}


# What float32 arithmetic alone may do to a log-likelihood (docs/parity.md): servers and other kernels differ
# by less than this on every item, but often in one direction, and so "significantly".
ROUNDING = 1e-5


@dataclass(frozen=True, slots=True)
class PairedRows:
    """Rows of both arms in one order, and how many items only one arm has or that lack a value."""

    first: tuple[SampleRow, ...]
    second: tuple[SampleRow, ...]
    missing: int


def row_key(row: SampleRow) -> ItemKey:
    """Return what names the item within its filter."""
    return row.task, row.item_id, row.doc_hash, row.repeat


def index_rows(rows: Iterable[SampleRow], arm: str) -> dict[tuple[str, str], Rows]:
    """Return a run's rows by task and filter, and there by item.

    Raises:
        InputError: an item occurs twice; names arm, task and item.
    """
    found: dict[tuple[str, str], dict[ItemKey, SampleRow]] = {}
    for row in rows:
        own = found.setdefault((row.task, row.filter), {})
        key = row_key(row)
        if key in own:
            raise InputError(
                f"arm {arm}: task {row.task}, item {row.item_id} (repeat {row.repeat}) stands twice"
            )
        own[key] = row
    return dict(found)


def rows_of_tasks(indexed: Mapping[tuple[str, str], Rows], tasks: Iterable[str], filter_name: str) -> Rows:
    """Return the rows of these tasks under one filter, by item."""
    return {key: row for task in tasks for key, row in indexed.get((task, filter_name), {}).items()}


def pair_rows(a: Rows, b: Rows, metric: str, arms: tuple[str, str]) -> PairedRows:
    """Return the rows that both arms have with a value of `metric`, in the order of the items.

    Raises:
        InputError: an item was asked with two different prompts.
    """
    first, second = [], []
    for key in sorted(a.keys() & b.keys()):
        one, two = a[key], b[key]
        if one.prompt_sha256 != two.prompt_sha256:
            raise InputError(
                f"task {one.task}, item {one.item_id}: the prompt differs between arm {arms[0]} "
                f"(sha256 {one.prompt_sha256[:12]}) and arm {arms[1]} ({two.prompt_sha256[:12]}); "
                "run both with the same chat template, shots and seed"
            )
        if one.metrics.get(metric) is not None and two.metrics.get(metric) is not None:
            first.append(one)
            second.append(two)
    return PairedRows(tuple(first), tuple(second), len(a.keys() | b.keys()) - len(first))


def estimate_metric(
    pairs: PairedRows, metric: str, level: float, *, method: Method = "auto", runs: Centers | None = None
) -> Estimate:
    """Return b minus a for one metric by the method that its values call for.

    An item whose two values agree within rounding has not changed. `runs` are the differences of each
    training run (`run_center`) over which an arm's values are means.
    """
    clusters = clusters_of(pairs.first)
    if metric in LIKELIHOOD_METRICS:
        weights = [likelihood_weight(row, metric) for row in pairs.first]
        a, b = (
            [negative_log_likelihood(row, metric) for row in rows] for rows in (pairs.first, pairs.second)
        )
        b = without_rounding(a, b)
        return paired_likelihoods(
            a, b, weights, clusters, level, LIKELIHOOD_METRICS[metric], method=method, runs=runs
        )
    a, b = values_of(pairs.first, metric), values_of(pairs.second, metric)
    b = without_rounding(a, b)
    if not runs and all(value in (0.0, 1.0) for value in (*a, *b)):
        return paired_binary(a, b, level, clusters, method=method)
    return paired_scores(a, b, clusters, level, method=method, runs=runs)


def without_rounding(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """Return b, with a's value where the two differ by no more than float32 arithmetic does."""
    return [
        first if abs(second - first) <= ROUNDING * max(abs(first), abs(second)) else second
        for first, second in zip(a, b, strict=True)
    ]


def run_center(pairs: PairedRows, metric: str) -> float:
    """Return the difference of one training run on the scale of its law: a mean, or the log ratio r."""
    if metric not in LIKELIHOOD_METRICS:
        return math.fsum(values_of(pairs.second, metric)) / len(pairs.second) - math.fsum(
            values_of(pairs.first, metric)
        ) / len(pairs.first)
    change = math.fsum(negative_log_likelihood(row, metric) for row in pairs.second) - math.fsum(
        negative_log_likelihood(row, metric) for row in pairs.first
    )
    return change / math.fsum(likelihood_weight(row, metric) for row in pairs.first)


def count_units(pairs: PairedRows) -> int:
    """Return the number of independent units among the paired rows."""
    clusters = clusters_of(pairs.first)
    return len(pairs.first) if clusters is None else len(set(clusters))


def values_of(rows: Iterable[SampleRow], metric: str) -> list[float]:
    """Return the items' values of a metric; rows without one are left out."""
    return [value for row in rows if (value := row.metrics.get(metric)) is not None]


def aggregate(rows: Sequence[SampleRow], metric: str) -> float | None:
    """Return the figure of one arm as lm-eval aggregates it, from the items; None where there are none."""
    rows = [row for row in rows if row.metrics.get(metric) is not None]
    if not rows:
        return None
    if metric not in LIKELIHOOD_METRICS:
        return math.fsum(values_of(rows, metric)) / len(rows)
    total = math.fsum(negative_log_likelihood(row, metric) for row in rows)
    each = total / math.fsum(likelihood_weight(row, metric) for row in rows)
    return math.exp(each) if LIKELIHOOD_METRICS[metric] == "perplexity" else each / math.log(2.0)


def same_figure(figure: float | None, own: float | None) -> bool:
    """Whether lm-eval's figure is what the items give (or lm-eval gave none): else no paired test applies."""
    return figure is None or (own is not None and abs(figure - own) <= 1e-6 * max(1.0, abs(figure)))


def whole_task_estimate(figures: Sequence[float | None], n: int, level: float) -> Estimate:
    """Return the plain difference of two figures that lm-eval computes over a task as a whole."""
    a, b = figures
    return Estimate(
        n=n,
        difference=None if a is None or b is None else b - a,
        ci_low=None,
        ci_high=None,
        level=level,
        p_value=None,
        method="difference of whole-task figures",
        higher=0,
        lower=0,
        ties=0,
        reason="lm-eval computes this figure over the whole task, not as a mean of items: no paired test",
    )


def clusters_of(rows: Sequence[SampleRow]) -> list[str] | None:
    """Return one label for each row; None where every row is a cluster of its own.

    A cluster may reach over several tasks of a group: GPQA's diamond questions are in its main set too.
    """
    labels = [row.cluster or f"{row.task}\0{row.item_id}" for row in rows]
    return labels if len(set(labels)) < len(labels) else None


def negative_log_likelihood(row: SampleRow, metric: str) -> float:
    """Return the item's negative log-likelihood in nats; `metrics` holds the log-likelihood (SampleRow)."""
    return -float(row.metrics[metric] or 0.0)


def likelihood_weight(row: SampleRow, metric: str) -> float:
    """Return the item's words or bytes; 1 where the metric counts items."""
    return float(row.weights.get(metric, 1.0))
