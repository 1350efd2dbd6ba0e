"""Lines, checks and gates that the tests of the gate share."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from lora_eval.records import Arm, Comparison, Gate, GateRule, Pair, TaskComparison, VariancePart
from lora_eval.schema import parse_record
from lora_eval.stats.binary import paired_binary
from lora_eval.stats.gate import check_target
from lora_eval.stats.gate_rules import Target
from lora_eval.stats.likelihood import paired_likelihoods
from lora_eval.stats.scores import cluster_mean, paired_scores

LEVELS = st.sampled_from([0.6, 0.8, 0.9, 0.95, 0.975, 0.99, 0.999])
LIMITS = st.floats(0, 0.5).map(lambda x: round(x, 3))


def make_line(estimate, *, task="skill", metric="acc", higher_is_better=True, error=None, **changes):
    """A task's line with one pair, as `build_pair` fills it."""
    wins, losses = estimate.higher, estimate.lower
    if not higher_is_better:
        wins, losses = losses, wins
    values = {
        "a": "base", "b": "tuned", "n": estimate.n, "difference": estimate.difference,
        "ci_low": estimate.ci_low, "ci_high": estimate.ci_high, "level": estimate.level,
        "p_value": estimate.p_value, "p_adjusted": None, "method": estimate.method,
        "wins": wins, "losses": losses, "ties": estimate.ties, "mde": estimate.mde,
        "verdict": "inconclusive", "reason": estimate.reason, "ratio": estimate.ratio,
        "ratio_low": estimate.ratio_low, "ratio_high": estimate.ratio_high,
    }  # fmt: skip
    if error is not None and error.standard_error:
        part = VariancePart(
            source="items", variance=error.standard_error**2, degrees_of_freedom=error.clusters - 1
        )
        values |= {"variance_parts": (part,)}
    pair = Pair(**(values | changes))
    return TaskComparison(
        task=task,
        metric=metric,
        filter="none",
        higher_is_better=higher_is_better,
        n=estimate.n,
        means={},
        pairs=(pair,),
    )


def arms_of(wins, losses, ties):
    return np.repeat([0.0, 1.0, 1.0], [wins, losses, ties]), np.repeat([1.0, 0.0, 1.0], [wins, losses, ties])


def binary_line(wins, losses, ties, level=0.95, **options):
    return make_line(paired_binary(*arms_of(wins, losses, ties), level), **options)


def score_line(a, b, level=0.95, clusters=None, **options):
    a, b = np.asarray(a, float), np.asarray(b, float)
    error = cluster_mean(b - a, clusters=clusters)
    return make_line(paired_scores(a, b, clusters, level), error=error, **({"metric": "rouge1"} | options))


def perplexity_line(nll_a, nll_b, weights, level=0.95, metric="word_perplexity"):
    a, b, w = (np.asarray(x, float) for x in (nll_a, nll_b, weights))
    scale = "bits" if metric == "bits_per_byte" else "perplexity"
    error = cluster_mean((b - a) / w, w)
    estimate = paired_likelihoods(a, b, w, None, level, scale)
    return make_line(estimate, metric=metric, higher_is_better=False, error=error)


def check(line, level=0.95, **rule):
    return check_target(Target(0, GateRule(task="*", **rule), line, line.pairs[0]), level)


def make_comparison(*lines, controls=None, arms=("base", "tuned")):
    kinds = {"base": "base"}
    return Comparison(
        arms=tuple(
            Arm(name=name, kind=kinds.get(name, "adapter"), fingerprint=None, path=name) for name in arms
        ),
        suite={},
        tasks=lines,
        controls={"identity": {"items": 8, "passed": True}} if controls is None else controls,
    )


scores = st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=3, max_size=40)
counts = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 60)).filter(any)


def gate(*rules, level=0.95):
    return parse_record({"schema": 1, "level": level, "rules": list(rules)}, Gate, "gate.yaml")
