"""False alarms on real judged answers: both turns of a question as one unit, against rows as independent.

    python benchmarks/mt_bench_false_alarms.py DATA/mt_bench/judged [--swaps 1000]

Reads GPT-4's scores of MT-Bench answers (FastChat's `*_single.jsonl`, gzip). For every pair of models the two
are swapped question by question at random, so that no difference between them is true, and the rest (how the
two turns of a question hang together, the ties, the skew) stays as it is.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
from pathlib import Path

import numpy as np

from lora_eval.stats import paired_scores, permutation_p


def read_scores(folder: Path) -> dict[str, dict[tuple[int, int], float]]:
    """Return each model's scores by (question, turn); of an item judged twice the last one counts."""
    found: dict[str, dict[tuple[int, int], float]] = {}
    for path in sorted(folder.glob("*/*_single.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for judged in map(json.loads, lines):
                if judged["score"] != -1:  # the judge's answer could not be read
                    key = (judged["question_id"], judged["turn"])
                    found.setdefault(judged["model"], {})[key] = float(judged["score"])
    return found


def alarm_rates(one, other, swaps: int, seed: int) -> dict[str, float]:
    """The share of random swaps in which each way of testing finds a difference at 0.05."""
    keys = sorted(one.keys() & other.keys())
    questions = sorted({question for question, _ in keys})
    place = np.array([questions.index(question) for question, _ in keys])
    difference = np.array([other[key] - one[key] for key in keys])
    labels = [str(question) for question, _ in keys]
    zero, rng = np.zeros(len(keys)), np.random.default_rng(seed)
    alarms = dict.fromkeys(("rows", "questions"), 0)
    for _ in range(swaps):
        swapped = difference * rng.choice([-1.0, 1.0], len(questions))[place]
        alarms["rows"] += paired_scores(zero, swapped).p_value < 0.05
        alarms["questions"] += paired_scores(zero, swapped, labels).p_value < 0.05
    return {name: count / swaps for name, count in alarms.items()}


def standard_errors(one, other) -> dict[str, float]:
    """The standard error of the difference: unpaired, of paired rows, and of questions."""
    keys = sorted(one.keys() & other.keys())
    a, b = (np.array([scores[key] for key in keys]) for scores in (one, other))
    labels = [str(question) for question, _ in keys]
    sums = np.array([sum(other[k] - one[k] for k in keys if k[0] == q) for q in {k[0] for k in keys}])
    return {
        "difference": float(b.mean() - a.mean()),
        "unpaired": float(np.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))),
        "rows": paired_scores(a, b).law.standard_error,
        "questions": paired_scores(a, b, labels).law.standard_error,
        "p": paired_scores(a, b, labels).p_value,
        "p flips": permutation_p(sums),
    }


def main() -> None:
    """Print one line for each pair of models, and the mean."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--swaps", type=int, default=1000)
    options = parser.parse_args()
    scores = read_scores(options.folder)
    print(
        "| models | difference | SE unpaired | SE rows | SE questions | p t | p sign flips "
        "| alarms rows | alarms questions |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    rows = []
    for seed, (one, other) in enumerate(itertools.combinations(sorted(scores), 2)):
        rates = alarm_rates(scores[one], scores[other], options.swaps, seed)
        errors = standard_errors(scores[one], scores[other])
        rows.append(list(rates.values()))
        figures = [f"{value:.3f}" for value in (*errors.values(), *rates.values())]
        print(f"| {one}, {other} | {' | '.join(figures)} |", flush=True)
    mean = np.mean(rows, axis=0)
    print(f"| mean of {len(rows)} | | | | | | | {mean[0]:.3f} | {mean[1]:.3f} |")


if __name__ == "__main__":
    main()
