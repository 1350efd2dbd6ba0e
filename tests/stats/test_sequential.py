"""Looking early: levels by an independent integration, p-values and intervals that agree, and error rates."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtri
from scipy.stats import multivariate_normal

from lora_eval.errors import InputError
from lora_eval.records import Look, VariancePart
from lora_eval.stats import mcnemar_exact, paired_scores
from lora_eval.stats.laws import DirichletLaw
from lora_eval.stats.looks import in_order
from lora_eval.stats.score_interval import CautiousLaw, score_interval
from lora_eval.stats.sequential import (
    SequentialLaw,
    Spending,
    law_of_look,
    look_sizes,
    nominal_levels,
    order_key,
)

SHARES = st.lists(st.integers(1, 400), min_size=1, max_size=6, unique=True).map(
    lambda sizes: tuple(size / 400 for size in sorted(sizes))
)


def counts_look(share: float, higher: int, lower: int, ties: int) -> Look:
    return Look(
        share=share,
        n=higher + lower + ties,
        higher=higher,
        lower=lower,
        ties=ties,
        bounded=True,
        p_value=mcnemar_exact(higher, lower),
    )


def mean_look(share: float, center: float, variance: float, freedom: float) -> Look:
    part = VariancePart(source="items", variance=variance, degrees_of_freedom=freedom)
    return Look(share=share, n=round(freedom) + 1, higher=0, lower=0, ties=0, center=center,
                variance_parts=(part,), bounded=True, p_value=law_of(center, part))  # fmt: skip


def law_of(center: float, part: VariancePart) -> float:
    from lora_eval.stats import StudentLaw

    return StudentLaw(center, (part,)).p_two_sided()


@pytest.mark.parametrize(
    ("total", "sizes"),
    [
        (1, (1,)),
        (74, (74,)),
        (75, (50, 75)),
        (200, (59, 89, 133, 200)),
        (1000, (59, 88, 132, 198, 296, 444, 667, 1000)),
    ],
)
def test_looks_grow_by_half(total: int, sizes: tuple[int, ...]) -> None:
    assert look_sizes(total) == sizes


@given(st.integers(1, 50_000))
def test_looks_end_at_all_items(total: int) -> None:
    sizes = look_sizes(total)
    assert sizes[-1] == total
    assert list(sizes) == sorted(set(sizes))
    assert sizes[0] >= 50 or sizes == (total,)
    assert all(b / a < 1.53 for a, b in itertools.pairwise(sizes))


@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.3])
@pytest.mark.parametrize("shares", [(0.5, 1.0), (0.1, 0.2), (0.296, 0.444, 0.667, 1.0)])
def test_error_is_spent_as_said(shares: tuple[float, ...], alpha: float) -> None:
    """Against Genz's integration of the joint normal law, which knows nothing of our recursion."""
    levels = nominal_levels(shares, alpha)
    for count in range(1, len(shares) + 1):
        bound = -ndtri(np.array(levels[:count]) / 2.0)
        at = shares[:count]
        correlations = [[math.sqrt(min(s, t) / max(s, t)) for t in at] for s in at]
        inside = multivariate_normal(cov=correlations, maxpts=400_000, abseps=1e-8, releps=1e-8, seed=1)
        crossed = 1.0 - inside.cdf(bound, lower_limit=-bound)
        assert crossed == pytest.approx(alpha * shares[count - 1] ** 2, rel=2e-4, abs=2e-6)


def test_one_look_is_a_test_of_fixed_size() -> None:
    assert nominal_levels((1.0,), 0.05) == pytest.approx((0.05,), rel=1e-12)
    look = counts_look(1.0, 30, 12, 158)
    law, fixed = SequentialLaw((look,)), law_of_look(look)
    assert law.p_value == pytest.approx(mcnemar_exact(30, 12), rel=1e-3)
    assert law.interval(0.95) == pytest.approx(fixed.interval(0.95), abs=1e-9)


@given(SHARES, st.floats(1e-6, 0.5))
def test_levels_depend_on_the_looks_so_far_and_grow_with_alpha(
    shares: tuple[float, ...], alpha: float
) -> None:
    levels = nominal_levels(shares, alpha)
    assert levels[:1] == pytest.approx(nominal_levels(shares[:1], alpha), rel=1e-9)
    assert all(0 < level <= alpha for level in levels)
    assert all(a < b for a, b in zip(levels, nominal_levels(shares, alpha * 1.1), strict=True))
    assert Spending(shares).nominal(alpha) == pytest.approx(levels, rel=2e-3)


@given(SHARES, st.floats(1e-10, 0.9), st.data())
def test_a_p_value_is_the_alpha_at_which_its_look_would_reject(
    shares: tuple[float, ...], alpha: float, data: st.DataObject
) -> None:
    spending = Spending(shares)
    look = data.draw(st.integers(0, len(shares) - 1))
    assert spending.spent(look, float(spending.nominal(alpha)[look])) == pytest.approx(alpha, rel=1e-9)
    assert spending.spent(look, 1.0) == 1.0
    assert spending.spent(look, 0.0) == 0.0


@given(
    st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 200)).filter(any),
    st.sampled_from([0.9, 0.95, 0.999, 0.99999]),
    st.sampled_from([-1e-4, 1e-4]),
)
def test_the_law_of_a_look_holds_both_intervals(
    counts: tuple[int, int, int], level: float, step: float
) -> None:
    law, tail = CautiousLaw(*counts), (1.0 - level) / 2.0
    low, high = law.interval(level)
    for own in (DirichletLaw(*counts).interval(level), score_interval(*counts, level)):
        assert low <= own[0] <= own[1] <= high
    for value in (low + step, high + step):
        if -1.0 < value < 1.0:
            assert (law.p_above(value) < tail) == (value < low)
            assert (law.p_below(value) < tail) == (value > high)
    mirrored = CautiousLaw(counts[1], counts[0], counts[2]).interval(level)
    assert mirrored == pytest.approx((-high, -low), abs=1e-9)


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(1, 60)), min_size=1, max_size=4),
    st.floats(-0.9, 0.9),
    st.sampled_from([0.9, 0.95, 0.99]),
)
def test_interval_and_one_sided_p_values_agree(
    steps: list[tuple[int, int, int]], value: float, level: float
) -> None:
    total, looks, seen = sum(map(sum, steps)), list[Look](), [0, 0, 0]
    for step in steps:
        seen = [a + b for a, b in zip(seen, step, strict=True)]
        looks.append(counts_look(sum(seen) / total, *seen))
    law = SequentialLaw(tuple(looks))
    low, high = law.interval(level)
    tail = (1.0 - level) / 2.0
    contradicting = law.p_above(low) < 0.9 * tail or law.p_below(high) < 0.9 * tail
    if abs(value - low) > 1e-6 and abs(value - high) > 1e-6 and not contradicting:
        assert (law.p_above(value) < tail) == (value < low)
        assert (law.p_below(value) < tail) == (value > high)
    assert 0.0 <= law.p_above(value) <= 1.0


def test_every_look_bounds_the_difference() -> None:
    early, late = mean_look(0.25, 0.4, 0.01, 99), mean_look(1.0, 0.1, 0.0025, 399)
    law = SequentialLaw((early, late))
    low, high = law.interval(0.95)
    alone = [law_of_look(look).interval(1.0 - level)
             for look, level in zip((early, late), law.spending.nominal(0.05), strict=True)]  # fmt: skip
    assert (low, high) == (max(a for a, _ in alone), min(b for _, b in alone))
    assert low > alone[1][0]  # the early look's bound is the higher one, and stays
    assert law.p_value < SequentialLaw((late,)).p_value


def test_looks_that_contradict_each_other_leave_the_last() -> None:
    law = SequentialLaw((mean_look(0.5, 1.0, 1e-4, 99), mean_look(1.0, -1.0, 1e-4, 199)))
    last = law_of_look(law.looks[1]).interval(1.0 - float(law.spending.nominal(0.05)[1]))
    assert law.interval(0.95) == last


def test_a_look_that_bounds_nothing_is_spent_all_the_same() -> None:
    nothing = Look(share=0.5, n=100, higher=0, lower=0, ties=100, bounded=False, p_value=1.0)
    late = mean_look(1.0, 0.2, 0.0025, 199)
    law = SequentialLaw((nothing, late))
    assert law.interval(0.95)[1] > SequentialLaw((late,)).interval(0.95)[1]
    assert SequentialLaw((nothing,)).interval(0.95) == (-math.inf, math.inf)
    assert SequentialLaw((nothing,)).p_above(-0.1) >= 0.5


@pytest.mark.parametrize("shares", [(), (0.0, 1.0), (0.5, 0.5), (0.6, 0.4), (0.5, 1.1)])
def test_shares_that_are_none_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="growing shares"):
        nominal_levels(shares, 0.05)


def test_the_order_is_random_and_the_same_for_a_seed() -> None:
    items = [("t", i) for i in range(2000)]
    order = in_order(items, 1)
    assert order == in_order(reversed(items), 1) != in_order(items, 2)
    assert order_key(1, "t", 11) != order_key(11, "t", 1)
    places = np.array([item for _, item in order])
    assert abs(np.corrcoef(places, np.arange(2000))[0, 1]) < 0.08
    assert abs(np.mean(places[:500]) - 999.5) < 4 * 577 / math.sqrt(500)


def test_error_rates_and_items_of_right_or_wrong_tasks() -> None:
    """Reduced size of benchmarks/simulate_sequential.py: no more false alarms than said, and items saved."""
    runs, total = 1500, 300
    room = 3.3 * math.sqrt(0.05 * 0.95 / runs)
    for discordance in (0.1, 0.4):
        up, down, _ = simulate(runs, total, discordance, 0.0, 0.0)
        assert up + down < 0.05 + room
        assert max(up, down) < 0.025 + room
        up, _, _ = simulate(runs, total, discordance, -0.05, -0.05)  # as bad as the margin allows
        assert up < 0.025 + room
    up, _, _ = simulate(runs, 100, 0.05, -0.05, -0.05)  # every item that changes is lost
    assert up < 0.025
    up, down, share = simulate(runs, total, 0.2, 0.1, 0.0)  # a test of fixed size finds 98 %
    assert up > 0.94
    assert down < 0.005
    assert share < 0.68


def simulate(
    runs: int, total: int, discordance: float, delta: float, value: float
) -> tuple[float, float, float]:
    """Share of runs in which the difference was found above `value`, and below it; mean share of items."""
    rng = np.random.default_rng(5)
    sizes = look_sizes(total)
    spending = Spending(tuple(size / total for size in sizes))
    up = down = items = 0
    for _ in range(runs):
        draws = rng.random(total)
        change = np.where(draws < (discordance + delta) / 2, 1, np.where(draws < discordance, -1, 0))
        for place, size in enumerate(sizes):
            higher, lower = int((change[:size] == 1).sum()), int((change[:size] == -1).sum())
            if value == 0.0:
                p_value = mcnemar_exact(higher, lower)
                above, below = (p_value, 1.0) if higher > lower else (1.0, p_value)
            else:
                law = law_of_look(counts_look(1.0, higher, lower, size - higher - lower))
                above, below = 2.0 * law.p_above(value), 2.0 * law.p_below(value)
            if spending.spent(place, min(1.0, above, below)) < 0.05:
                break
        rejected = spending.spent(place, min(1.0, above, below)) < 0.05
        up += rejected and above < below
        down += rejected and below < above
        items += size
    return up / runs, down / runs, items / runs / total


def test_error_rates_of_skewed_scores() -> None:
    """Differences of scores that are mostly 0 and sometimes large, in both directions."""
    rng, runs, total = np.random.default_rng(8), 500, 150
    sizes = look_sizes(total)
    spending = Spending(tuple(size / total for size in sizes))
    found = np.zeros(2)
    for _ in range(runs):
        change = rng.exponential(1.0, total) - 1.0
        change[rng.random(total) < 0.3] = 0.0
        for place, size in enumerate(sizes):
            estimate = paired_scores(np.zeros(size), change[:size])
            if spending.spent(place, estimate.p_value) < 0.05:
                found += (estimate.difference > 0, estimate.difference < 0)
                break
    assert found.sum() / runs < 0.05 + 3.3 * math.sqrt(0.05 * 0.95 / runs)
