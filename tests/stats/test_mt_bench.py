"""Real judged answers: both turns of a question are one unit. Skipped where the data are not there."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import statsmodels.api as sm

from lora_eval.compare import compare_loaded
from tests.simulated import make_row, make_run

JUDGED = Path(__file__).resolve().parents[3] / "shared" / "data" / "mt_bench" / "judged"
pytestmark = pytest.mark.skipif(not JUDGED.is_dir(), reason=f"no judged MT-Bench answers in {JUDGED}")


@pytest.fixture(scope="module")
def bench(benchmark_module):
    return benchmark_module("mt_bench_false_alarms")


@pytest.fixture(scope="module")
def scores(bench):
    return bench.read_scores(JUDGED)


def test_scores_are_the_published_ones(scores):
    published = json.loads((JUDGED / "expected_scores.json").read_text("utf-8"))
    averages = {model: figures["average"] for fork in published.values() for model, figures in fork.items()}
    assert {model: np.mean(list(own.values())) for model, own in scores.items()} == pytest.approx(averages)


def test_a_comparison_takes_both_turns_as_one_unit(scores):
    base, tuned = scores["llama2_7b"], scores["finetune_llama2_chat_7b"]
    runs = {}
    for name, own in (("base", base), ("tuned", tuned)):
        rows = [
            make_row("mt_bench", 10 * question + turn, {"score": score}, cluster=str(question))
            for (question, turn), score in sorted(own.items())
        ]
        runs[name] = make_run(name, rows)
    pair = compare_loaded(runs).tasks[0].pairs[0]
    assert pair.method == "cluster-robust t (80 clusters)"
    difference = np.array([tuned[key] - base[key] for key in sorted(base)])
    groups = np.array([question for question, _ in sorted(base)])
    fit = sm.OLS(difference, np.ones(160)).fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
    assert pair.difference == pytest.approx(fit.params[0], abs=1e-12)
    assert pair.p_value == pytest.approx(fit.pvalues[0], rel=1e-12)
    assert pair.verdict == "better"


@pytest.mark.slow
def test_rows_as_independent_raise_false_alarms_twice_as_often(bench, scores):
    """docs/simulation.md: 10.4 % against 4.9 % over 15 pairs of models with 1,000 swaps each."""
    found = [
        bench.alarm_rates(scores[one], scores[other], 200, seed)
        for seed, (one, other) in enumerate(itertools.combinations(sorted(scores), 2))
    ]
    rows, questions = (np.mean([rates[name] for rates in found]) for name in ("rows", "questions"))
    assert len(found) == 15
    assert 0.09 < rows < 0.12
    assert 0.04 < questions < 0.06
