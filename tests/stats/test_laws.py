"""Laws: interval and one-sided tests agree at every level; equivalence; what a stored pair still tells."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.stats.weightstats import ttost_paired

from lora_eval.compare import compare_loaded
from lora_eval.errors import InputError
from lora_eval.records import VariancePart
from lora_eval.stats import (
    DirichletLaw,
    StudentLaw,
    dirichlet_interval,
    equivalence,
    law_of,
    paired_binary,
    paired_likelihoods,
    paired_scores,
)
from lora_eval.stats.laws import ScaledLaw
from lora_eval.stats.score_interval import margin_interval, score_interval
from tests.simulated import make_row, make_run, make_runs, make_suite


def part(variance, freedom, source="items"):
    return VariancePart(source=source, variance=variance, degrees_of_freedom=freedom)


positive = st.floats(1e-6, 4.0)
student = st.builds(
    lambda center, parts: StudentLaw(center, tuple(part(v, f) for v, f in parts)),
    st.floats(-3, 3),
    st.lists(st.tuples(positive, st.integers(1, 400)), min_size=1, max_size=3),
)
dirichlet = st.builds(DirichletLaw, st.floats(0, 60), st.floats(0, 60), st.floats(0.5, 200))
levels = st.sampled_from([0.8, 0.9, 0.95, 0.99])


@given(student, levels)
def test_interval_and_tests_of_a_mean_agree(law, level):
    low, high = law.interval(level)
    assert law.p_above(low) == pytest.approx((1 - level) / 2, rel=1e-9)
    assert law.p_below(high) == pytest.approx((1 - level) / 2, rel=1e-9)
    assert law.p_above(low) == pytest.approx(1 - law.p_below(low), rel=1e-9)
    assert law.p_two_sided() <= 1


@given(dirichlet, levels)
def test_interval_and_tests_of_a_rate_agree(law, level):
    low, high = law.interval(level)
    assert law.p_above(low) == pytest.approx((1 - level) / 2, abs=1e-9)
    assert law.p_below(high) == pytest.approx((1 - level) / 2, abs=1e-9)


@given(
    student.filter(lambda law: len(law.parts) == 1),
    st.floats(0.5, 20),
    st.sampled_from(["perplexity", "bits"]),
)
def test_scaled_law_agrees_with_its_interval(law, unit, scale):
    scaled = ScaledLaw(StudentLaw(law.center / 10, law.parts), unit, scale)
    low, high = scaled.interval(0.9)
    if low > -unit * (1 - 1e-9):
        assert scaled.p_above(low) == pytest.approx(0.05, rel=1e-5)
    assert scaled.p_below(high) == pytest.approx(0.05, rel=1e-5)


def test_a_perplexity_cannot_lose_more_than_itself():
    law = ScaledLaw(StudentLaw(0.0, (part(0.01, 9),)), 5.0, "perplexity")
    assert (law.p_above(-6.0), law.p_below(-6.0)) == (0.0, 1.0)


def test_one_part_is_students():
    law = StudentLaw(0.4, (part(0.04, 12),))
    assert law.p_two_sided() == pytest.approx(2 * scipy_stats.t.sf(2.0, 12), rel=1e-12)
    assert law.interval(0.95)[1] == pytest.approx(0.4 + scipy_stats.t.ppf(0.975, 12) * 0.2, abs=1e-12)


def test_several_parts_are_banerjees():
    law = StudentLaw(1.0, (part(0.04, 99), part(0.09, 1, "runs of b")))
    half = math.sqrt(scipy_stats.t.ppf(0.975, 99) ** 2 * 0.04 + scipy_stats.t.ppf(0.975, 1) ** 2 * 0.09)
    assert law.interval(0.95) == pytest.approx((1 - half, 1 + half), rel=1e-12)
    without = StudentLaw(1.0, (part(0.04, 99), part(0.0, 1, "runs of b")))
    assert without.p_two_sided() == pytest.approx(StudentLaw(1.0, (part(0.04, 99),)).p_two_sided(), rel=1e-9)


def test_far_beyond_the_tails_is_a_number():
    law = StudentLaw(1e9, (part(1e-12, 500), part(1e-12, 400, "runs of b")))
    assert 0 <= law.p_two_sided() < 1e-200


@pytest.mark.parametrize("margin", [0.05, 0.2, 0.5])
def test_equivalence_of_scores_is_statsmodels(margin):
    rng = np.random.default_rng(8)
    a = rng.normal(0, 1, 60)
    b = a + rng.normal(0.05, 0.6, 60)
    found = equivalence(paired_scores(a, b, level=0.9), margin)
    p_value = ttost_paired(b, a, -margin, margin)[0]
    assert found.p_value == pytest.approx(p_value, rel=1e-12)
    assert found.equivalent == (p_value < 0.05)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 400), st.floats(0.005, 0.5))
def test_equivalence_of_rates_is_both_intervals_inside_the_margin(wins, losses, ties, margin):
    a, b = [0] * wins + [1] * losses + [1] * ties, [1] * wins + [0] * losses + [1] * ties
    found = equivalence(paired_binary(a, b), margin)
    for low, high in (dirichlet_interval(wins, losses, ties), score_interval(wins, losses, ties, 0.95)):
        assert not found.equivalent or (low > -margin and high < margin)
    low, high = margin_interval(DirichletLaw(wins, losses, ties), 0.95)
    assert found.equivalent == (low > -margin and high < margin)
    if abs(found.p_value - 0.025) > 1e-9:
        assert found.equivalent == (found.p_value < 0.025)


def test_equivalence_of_a_perplexity_is_on_the_ratios_scale():
    rng = np.random.default_rng(2)
    weights = rng.integers(20, 100, 80).astype(float)
    a = weights * 2.0
    b = a * (1 + rng.normal(0.001, 0.01, 80))
    found = paired_likelihoods(a, b, weights, level=0.9)
    margin = found.ci_high * 1.0001
    assert equivalence(found, margin).equivalent
    assert equivalence(found, margin).p_value == pytest.approx(0.05, rel=0.01)
    assert not equivalence(found, found.ci_high * 0.999).equivalent


def test_equivalence_that_nothing_bounds_is_none():
    same = equivalence(paired_scores([1, 2], [1, 2]), 0.1)
    assert (same.p_value, same.equivalent) == (None, None)
    assert equivalence(paired_binary([0, 1], [1, 1]), None).equivalent is None
    with pytest.raises(InputError, match="above 0"):
        equivalence(paired_binary([0, 1], [1, 1]), 0.0)


def test_a_resampled_interval_has_equivalence_but_no_p_value():
    rng = np.random.default_rng(1)
    a = rng.normal(0, 1, 300)
    found = equivalence(paired_scores(a, a + rng.normal(0, 0.1, 300), method="bootstrap"), 0.5)
    assert (found.p_value, found.equivalent) == (None, True)


def test_a_stored_pair_gives_its_interval_at_any_level():
    runs = make_runs(n=80, arms=("base", "adapter", "gptq"))
    at_95, at_80 = (compare_loaded(runs, suite=make_suite(), level=level) for level in (0.95, 0.8))
    checked = 0
    for one, other in zip(at_95.tasks, at_80.tasks, strict=True):
        for pair, again in zip(one.pairs, other.pairs, strict=True):
            law = law_of(pair, higher_is_better=one.higher_is_better)
            if pair.ci_low is None:
                assert law is None
                continue
            assert law.interval(0.95) == pytest.approx((pair.ci_low, pair.ci_high), rel=1e-9)
            assert law.interval(0.8) == pytest.approx((again.ci_low, again.ci_high), rel=1e-9)
            checked += 1
    assert checked > 10


def test_clusters_and_training_runs_can_be_made_again_too():
    rng = np.random.default_rng(6)

    def run(name, shift):
        answers = rng.random(120) < 0.6 + shift
        rows = [make_row("t", i, {"acc": float(v)}, cluster=str(i // 4)) for i, v in enumerate(answers)]
        return make_run(name, rows)

    runs = {"base": run("base", 0.0), "one": run("one", 0.1), "a#1": run("a#1", 0.1), "a#2": run("a#2", 0.2)}
    task = compare_loaded(runs, training_runs={"a": ("a#1", "a#2")}).tasks[0]
    clustered, several = task.pairs
    assert clustered.effective_n is not None
    assert len(several.variance_parts) == 2
    for pair in task.pairs:
        law = law_of(pair, higher_is_better=True)
        assert law.interval(0.95) == pytest.approx((pair.ci_low, pair.ci_high), rel=1e-9)
        mirrored = law_of(
            pair.model_copy(update={"wins": pair.losses, "losses": pair.wins}), higher_is_better=False
        )
        assert mirrored == law
