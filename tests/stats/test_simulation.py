"""Error rates by simulation, at a reduced size: docs/simulation.md has the full one and its command."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "simulation.md"
RESULTS = PAGE.parent.parent / "benchmarks" / "results" / "simulation.md"
# Of 500 comparisons a rate of 0.025 has a standard error of 0.007. Those in clusters take longer.
RUNS, CLUSTERED_RUNS = 500, 150


@pytest.fixture(scope="module")
def comparisons(benchmark_module):
    return benchmark_module("simulated_comparisons")


@pytest.fixture(scope="module")
def suites(benchmark_module):
    return benchmark_module("simulated_suites")


def no_more_than(rate, nominal, runs=RUNS):
    """Whether a rate is at most the nominal one, within four standard errors of the simulation."""
    return rate <= nominal + 4 * math.sqrt(nominal * (1 - nominal) / runs)


def covers(rate, nominal=0.95, runs=RUNS):
    return no_more_than(1 - rate, 1 - nominal, runs)


def mean(rows, name):
    return sum(row[name] for row in rows) / len(rows)


@pytest.mark.slow
def test_verdicts_on_right_or_wrong_items(comparisons):
    rows = list(comparisons.rates(RUNS))
    for row in rows:
        assert covers(row["covered"], 0.93), row
        if row["true difference"] <= 0:
            assert no_more_than(row["better"], 0.025), row
        if row["true difference"] >= 0:
            assert no_more_than(row["worse"], 0.025), row
        if row["true difference"] == -comparisons.MARGIN:
            assert no_more_than(row["not_worse"], 0.033), row
            assert no_more_than(row["equivalent"], 0.03), row
    assert mean(rows, "covered") > 0.945
    same = [row for row in rows if row["true difference"] == 0]
    assert mean(same, "better") + mean(same, "worse") < 0.03  # an exact test is below its level
    at_margin = [row for row in rows if row["true difference"] == -comparisons.MARGIN]
    assert mean(at_margin, "not_worse") < 0.025
    found = {(row["n"], row["accuracy"], row["correlation"], row["true difference"]): row for row in rows}
    assert found[(200, 0.9, 0.9, 0.05)]["better"] > 0.65
    assert found[(200, 0.9, 0.9, -0.05)]["worse"] > 0.5
    assert found[(200, 0.98, 0.9, 0.0)]["equivalent"] > 0.9
    assert found[(20, 0.9, 0.9, 0.05)]["inconclusive"] > 0.5  # 20 items decide nothing
    assert found[(1000, 0.5, 0.5, 0.05)]["better"] > 0.7  # and 1,000 do, of arms that agree little
    sizes = {row["n"] for row in rows}, {row["accuracy"] for row in rows}
    assert sizes == ({20, 50, 200, 1000}, {0.5, 0.9, 0.98})


@pytest.mark.slow
def test_clusters_are_the_units(comparisons):
    rows = list(comparisons.clusters(CLUSTERED_RUNS))
    for row in rows:
        assert covers(row["covered"], 0.93, CLUSTERED_RUNS), row
        assert no_more_than(row["better"] + row["worse"], 0.05, CLUSTERED_RUNS), row
    together = [row for row in rows if row["inside"]]
    assert mean(together, "rows alarm") > 2 * (mean(together, "better") + mean(together, "worse"))
    assert max(row["better gain"] for row in rows) > 0.9


@pytest.mark.slow
def test_scores_and_perplexities(comparisons):
    rows = list(comparisons.scores(RUNS))
    for row in rows:
        # Skewed differences need more items: the t interval of 20 covers 0.90 (docs/simulation.md).
        assert covers(row["covered"], 0.95 if row["differences"] == "symmetric" else 0.90), row
    clustered = [row for row in rows if row["inside"]]
    assert mean(clustered, "rows alarm") > 0.1
    for row in comparisons.perplexities(RUNS):
        assert covers(row["covered"]), row
        assert no_more_than(row["better"] + row["worse"], 0.05), row
    assert row["better gain"] > 0.95


@pytest.mark.slow
def test_many_tasks_and_suite_scores(suites):
    for row in suites.many_tasks(RUNS):
        assert no_more_than(row["any alarm Holm"], 0.05), row
        assert no_more_than(row["false share BH"], 0.05), row
        assert row["any alarm Holm"] <= row["any alarm plain"]
    for row in suites.macro(RUNS):
        assert covers(row["covered"]), row
        assert covers(row["covered gain"]), row
        assert no_more_than(row["alarm"], 0.05), row


@pytest.mark.slow
def test_the_spread_between_training_runs_is_held(suites):
    rows = list(suites.training_runs(RUNS))
    for row in rows:
        assert covers(row["covered"]), row
    spread = [row for row in rows if row["spread"] == 4.0]
    assert mean(spread, "items only") < 0.6
    assert mean([row for row in rows if row["runs"] == 2], "satterthwaite") < 0.95


def test_the_page_shows_the_results():
    table = RESULTS.read_text("utf-8")
    assert f"<!-- tables -->\n{table}<!-- end of tables -->" in PAGE.read_text("utf-8")
    assert "simulate_statistics.py --runs 2000" in table
