"""Sequential stopping in simulation: which method decides with the fewest items, and how often it errs.

    python benchmarks/simulate_sequential.py methods [--runs 4000]
    python benchmarks/simulate_sequential.py errors [--runs 4000]

`methods` compares ways to look early at right-or-wrong items, all of them at the same looks (each at half as
many items again as the one before): two-sided tests of no difference at 0.05, and one-sided ones at 0.025 of
a drop of 0.05 or more. `errors` runs the functions of lora_eval.stats on right-or-wrong items, scores, scores
in clusters, and documents. Both print the tables of docs/sequential.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln, ndtri
from scipy.stats import norm

from lora_eval.stats import mcnemar_exact, paired_likelihoods, paired_scores
from lora_eval.stats.laws import Law
from lora_eval.stats.score_interval import CautiousLaw
from lora_eval.stats.sequential import Spending, look_sizes, nominal_levels

Array = NDArray[np.float64]
ALPHA, MARGIN = 0.05, 0.05


# Methods ------------------------------------------------------------------------------------------------


def draw(rng: np.random.Generator, runs: int, total: int, discordance: float, delta: float) -> Array:
    """Differences -1, 0, 1 of right-or-wrong items: share `discordance` is not 0, the mean is `delta`."""
    u = rng.random((runs, total))
    return np.where(u < (discordance + delta) / 2, 1.0, np.where(u < discordance, -1.0, 0.0))


def z_at(changes: Array, sizes: Array, value: float) -> Array:
    """The normal statistic of the mean against `value`, at each look."""
    mean = np.cumsum(changes, 1)[:, sizes - 1] / sizes
    square = np.cumsum(changes**2, 1)[:, sizes - 1] / sizes
    return (mean - value) / np.sqrt(np.maximum(square - mean**2, 1e-12) / sizes)


def spent(kind: str, shares: Array) -> Array:
    """Error spent up to each look."""
    if kind == "O'Brien-Fleming":  # Lan and DeMets 1983
        return 2.0 - 2.0 * norm.cdf(norm.ppf(1 - ALPHA / 2) / np.sqrt(shares))
    if kind == "Pocock":
        return ALPHA * np.log(1.0 + (np.e - 1.0) * shares)
    return ALPHA * shares**2


def joint_bounds(kind: str, shares: Array, paths: int = 400_000) -> Array:
    """Bounds that spend so, by simulated Brownian motion: for spending functions that we do not ship."""
    steps = np.random.default_rng(0).standard_normal((paths, len(shares)))
    z = np.abs(np.cumsum(steps * np.sqrt(np.diff([0.0, *shares])), 1) / np.sqrt(shares))
    inside, bounds = np.ones(paths, bool), []
    for place, increment in enumerate(np.diff([0.0, *spent(kind, shares)])):
        ranked = np.sort(z[inside, place])[::-1]
        count = int(increment * paths)
        bounds.append(ranked[count - 1] if count else 9.0)
        inside &= z[:, place] < bounds[-1]
    return np.array(bounds)


def betting(changes: Array, sizes: Array, value: float, *, tuned: bool) -> tuple[Array, Array]:
    """Logarithms of both capitals against the mean being `value` (Waudby-Smith and Ramdas 2024, JRSS B 86:1):
    predictable plug-in bets, or (`tuned`) bets for a decision at the last item.
    """
    x, m = (changes + 1) / 2, (value + 1) / 2
    t = np.arange(1, x.shape[1] + 1)
    mean = (0.5 + np.cumsum(x, 1)) / (t + 1)
    variance = (0.25 + np.cumsum((x - mean) ** 2, 1)) / (t + 1)
    before = np.concatenate([np.full((len(x), 1), 0.25), variance[:, :-1]], 1)
    horizon = x.shape[1] if tuned else t * np.log(1 + t)
    bet = np.sqrt(2 * np.log(2 / ALPHA) / (before * horizon))
    up = np.cumsum(np.log1p(np.minimum(bet, 0.5 / m) * (x - m)), 1)
    down = np.cumsum(np.log1p(-np.minimum(bet, 0.5 / (1 - m)) * (x - m)), 1)
    return tuple(np.maximum.accumulate(capital, 1)[:, sizes - 1] for capital in (up, down))  # type: ignore


def mixture(changes: Array, sizes: Array) -> Array:
    """Logarithm of the beta-binomial mixture e-process of wins among changed items (prior Beta(2, 2); Howard,
    Ramdas, McAuliffe and Sekhon 2021, Annals of Statistics 49:1055).
    """
    wins, losses = (np.cumsum(changes == sign, 1)[:, sizes - 1] for sign in (1, -1))
    e = betaln(2 + wins, 2 + losses) - betaln(2, 2) + (wins + losses) * np.log(2)
    return np.maximum.accumulate(e, 1)


def rejections(changes: Array, sizes: Array, value: float) -> Iterable[tuple[str, Array]]:
    """Each method, with whether it has decided at each look: above `value`, or (at 0) below it too."""
    total = changes.shape[1]
    shares, z = sizes / total, z_at(changes, sizes, value)
    size = (lambda x: np.abs(x)) if value == 0 else (lambda x: x)
    yield "all items, one look", np.concatenate([z[:, :-1] * 0 > 1, size(z[:, -1:]) > 1.96], 1)
    ours = -ndtri(np.array(nominal_levels(tuple(shares), ALPHA)) / 2)
    yield "spending (n/N)², joint law (chosen)", size(z) > ours
    alone = -ndtri(np.diff([0.0, *spent("ours", shares)]) / 2)
    yield "spending (n/N)², union bound", size(z) > alone
    for kind in ("O'Brien-Fleming", "Pocock"):
        yield f"spending as {kind}, joint law", size(z) > joint_bounds(kind, shares)
    for name, tuned in (("betting, plug-in", False), ("betting, for N items", True)):
        up, down = betting(changes, sizes, value, tuned=tuned)
        bound = np.log(2 / ALPHA)
        yield name, (up > bound) | ((down > bound) if value == 0 else False)
    if value == 0:
        yield "beta-binomial mixture", mixture(changes, sizes) > np.log(1 / ALPHA)


def compare_methods(runs: int) -> None:
    """Print share decided and mean share of items for every method and setting."""
    settings = [(200, 0.1), (200, 0.3), (1000, 0.1), (1000, 0.3)]
    questions = [("no difference, is 0", 0.0, 0.0), ("+0.05, is 0", 0.05, 0.0), ("+0.1, is 0", 0.1, 0.0),
                 ("no difference, drop below 0.05", 0.0, -MARGIN)]  # fmt: skip
    for title, delta, value in questions:
        table: dict[str, list[str]] = {}
        for total, discordance in settings:
            rng, sizes = np.random.default_rng(total), np.array(look_sizes(total))
            changes = draw(rng, runs, total, discordance, delta)
            for name, decided in rejections(changes, sizes, value):
                ever = decided.any(1)
                at = np.where(ever, decided.argmax(1), len(sizes) - 1)
                cell = f"{ever.mean():.3f} at {sizes[at].mean() / total:.2f}"
                table.setdefault(name, []).append(cell)
        names = " | ".join(f"N {n}, {d:g} changed" for n, d in settings)
        print(f"\n**{title}**\n\n| method | {names} |\n|---|{'--:|' * len(settings)}")
        for name, cells in table.items():
            print(f"| {name} | {' | '.join(cells)} |")


# Error rates of what is shipped -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kind:
    """Data of one kind: `draw(rng, total)` items, and what the first `n` of them give: law and p-value."""

    name: str
    total: int
    truth: float
    draw: Callable[[np.random.Generator, int], Array]
    estimate: Callable[[Array, int], tuple[Law | None, float | None]]


def binary(changes: Array, n: int) -> tuple[Law | None, float | None]:
    """Exact McNemar, and the law of right-or-wrong items at a look."""
    wins, losses = int((changes[:n] == 1).sum()), int((changes[:n] == -1).sum())
    return CautiousLaw(wins, losses, n - wins - losses), mcnemar_exact(wins, losses)


def scores(changes: Array, n: int) -> tuple[Law | None, float | None]:
    """Paired t."""
    found = paired_scores(np.zeros(n), changes[:n])
    return found.law, found.p_value


def clustered(changes: Array, n: int) -> tuple[Law | None, float | None]:
    """Cluster-robust t; the cluster of an item is the second row."""
    found = paired_scores(np.zeros(n), changes[0, :n], [str(label) for label in changes[1, :n]])
    return found.law, found.p_value


def documents(changes: Array, n: int) -> tuple[Law | None, float | None]:
    """Log ratio of perplexities, weighted by words; rows: nll of a, of b, words."""
    found = paired_likelihoods(changes[0, :n], changes[1, :n], changes[2, :n], scale="bits")
    return found.law, found.p_value


def draw_scores(rng: np.random.Generator, total: int) -> Array:
    """Mean 0, skewness 1."""
    return rng.gamma(4.0, 1.0, total) - 4.0


def draw_skewed(rng: np.random.Generator, total: int) -> Array:
    """Mean 0, skewness 3.2: most scores do not change, a few rise much."""
    changes = rng.exponential(1.0, total) - 1.0
    return changes * (rng.random(total) < 0.4)


def draw_clusters(rng: np.random.Generator, total: int) -> Array:
    """Five items a cluster, half of the variance between clusters, in random order."""
    labels = rng.permutation(total) // 5
    effects = rng.standard_normal(total // 5 + 1)
    return np.stack([effects[labels] + rng.standard_normal(total), labels.astype(float)])


def draw_documents(rng: np.random.Generator, total: int) -> Array:
    """Documents of 40 to 400 words whose log-likelihoods differ by noise in each word."""
    words = rng.integers(40, 400, total).astype(float)
    base = words * rng.normal(2.0, 0.3, total)
    return np.stack([base, base + words * rng.normal(0.0, 0.05, total), words])


def kinds() -> list[Kind]:
    """What is simulated."""
    found = []
    for total, discordance, delta in [
        (100, 0.1, 0.0), (200, 0.1, 0.0), (200, 0.4, 0.0), (1000, 0.02, 0.0), (1000, 0.2, 0.0),
        (100, 0.05, -MARGIN), (200, 0.05, -MARGIN), (200, 0.2, -MARGIN), (1000, 0.2, -MARGIN),
        (1000, 0.2, 0.05), (1000, 0.2, 0.1),
    ]:  # fmt: skip
        found.append(Kind(
            f"right or wrong, {discordance:g} changed", total, delta,
            lambda rng, n, d=discordance, m=delta: draw(rng, 1, n, d, m)[0], binary,
        ))  # fmt: skip
    for total in (100, 400):
        found.append(Kind("scores, skewness 1", total, 0.0, draw_scores, scores))
        found.append(Kind("scores, skewness 3.2", total, 0.0, draw_skewed, scores))
        found.append(Kind("scores in clusters of 5", total, 0.0, draw_clusters, clustered))
        found.append(Kind("documents (bits)", total, 0.0, draw_documents, documents))
    return found


def error_rates(kind: Kind, runs: int) -> dict[str, float]:
    """Rates over `runs` comparisons that stop as soon as the p-value of no difference is below 0.05; `margin`
    is of those that stop as soon as a drop of 0.05 is excluded.
    """
    rng, sizes = np.random.default_rng(11), look_sizes(kind.total)
    spending = Spending(tuple(size / kind.total for size in sizes))
    tally = dict.fromkeys(("better", "worse", "margin", "covered", "fixed", "items"), 0.0)
    for _ in range(runs):
        data = kind.draw(rng, kind.total)
        found = [kind.estimate(data, size) for size in sizes]
        known = [(place, law, p) for place, (law, p) in enumerate(found) if law is not None and p is not None]
        held = [
            spending.spent(place, min(1.0, 2.0 * law.p_above(-MARGIN))) < ALPHA for place, law, _ in known
        ]
        stop = next((at for at, (place, _, p) in enumerate(known) if spending.spent(place, p) < ALPHA), None)
        seen = known if stop is None else known[: stop + 1]
        sides = [(place, min(law.p_above(kind.truth), law.p_below(kind.truth))) for place, law, _ in seen]
        tally["covered"] += all(spending.spent(place, min(1.0, 2.0 * p)) >= ALPHA for place, p in sides)
        tally["margin"] += any(held)
        tally["items"] += kind.total if stop is None else sizes[known[stop][0]]
        if stop is not None:
            tally["better" if known[stop][1].p_above(0.0) < 0.5 else "worse"] += 1
        tally["fixed"] += (found[-1][1] or 1.0) < ALPHA
    return {name: value / runs for name, value in tally.items()} | {
        "items": tally["items"] / runs / kind.total
    }


def print_errors(runs: int) -> None:
    """Print the rates of every kind."""
    heads = ("data", "N", "true", "better", "worse", "not worse", "covers", "one look", "items")
    print(f"| {' | '.join(heads)} |\n|---|{'--:|' * 8}")
    for kind in kinds():
        rates = error_rates(kind, runs)
        names = ("better", "worse", "margin", "covered", "fixed")
        cells = [
            f"{rates[name]:.3f}" if name != "margin" or kind.estimate is binary else "" for name in names
        ]
        print(f"| {kind.name} | {kind.total} | {kind.truth:g} | {' | '.join(cells)} | {rates['items']:.2f} |",
              flush=True)  # fmt: skip


def main() -> None:
    """Print the tables in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["methods", "errors"])
    parser.add_argument("--runs", type=int, default=4000)
    options = parser.parse_args()
    (compare_methods if options.what == "methods" else print_errors)(options.runs)


if __name__ == "__main__":
    main()
