"""AlpacaEval's figures from preferences: raw win rate as alpaca_eval has it, and ours at equal length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lora_eval.errors import InputError
from lora_eval.judges.alpaca_rows import Preference
from lora_eval.judges.lengths import length_adjusted, undefined
from lora_eval.judges.logistic import Values
from lora_eval.records import AlpacaScore, Figures, JudgeReport, LengthAdjusted
from lora_eval.stats import cluster_mean, paired_scores


def report_preferences(
    rows: Sequence[Preference], sources: Sequence[str], df_gamed: Path | None = None, level: float = 0.95
) -> JudgeReport:
    """Return one score for each (model, baseline, judge), in the order of the rows.

    `df_gamed` is alpaca_eval's table of that name; with it its length-controlled win rate is computed too.

    Raises:
        InputError: a model has no verdict at all.
        MissingExtraError: `df_gamed` is given and alpaca_eval is not installed.
    """
    groups: dict[tuple[str, str, str], list[Preference]] = {}
    for row in rows:
        groups.setdefault((row.model, row.baseline, row.judge), []).append(row)
    names = _names(list(groups))
    notes = _about_table(df_gamed)
    models: dict[str, Figures] = {}
    for key, group in groups.items():
        score = _score(names[key], group, level)
        if df_gamed is not None:
            score = _length_controlled(names[key], score, group, df_gamed, notes)
        models[names[key]] = score
        notes += _doubts(names[key], group)
    return JudgeReport(suite="alpaca-eval", sources=tuple(sources), models=models, notes=tuple(notes))


def _about_table(df_gamed: Path | None) -> list[str]:
    if df_gamed is None:
        return []
    from lora_eval.judges import alpaca

    note = alpaca.check_table(df_gamed)
    return [note] if note else []


def _score(name: str, group: Sequence[Preference], level: float) -> AlpacaScore:
    judged = [(row.value, row) for row in group if row.value is not None]
    if not judged:
        raise InputError(f"{name}: none of its {len(group)} rows has a verdict")
    scores = np.asarray([value for value, _ in judged]) - 1.0
    # With one row for each prompt the cluster-robust error is alpaca_eval's, sd / sqrt(n).
    mean = cluster_mean(scores)
    estimate = paired_scores(np.full(len(scores), 0.5), scores, [row.prompt for _, row in judged], level)
    wins, losses = int((scores > 0.5).sum()), int((scores < 0.5).sum())
    draws, total = int((scores == 0.5).sum()), len(scores)
    lengths = [row.length for row in group if row.length is not None]
    return AlpacaScore(
        win_rate=100.0 * mean.mean,
        standard_error=None if mean.standard_error is None else 100.0 * mean.standard_error,
        n_wins=wins,
        n_wins_base=losses,
        n_draws=draws,
        n_total=total,
        discrete_win_rate=100.0 * (wins + 0.5 * draws) / total,
        avg_length=int(np.mean(lengths)) if lengths else None,
        ci_low=None if estimate.ci_low is None else 50.0 + 100.0 * estimate.ci_low,
        ci_high=None if estimate.ci_high is None else 50.0 + 100.0 * estimate.ci_high,
        level=level,
        p_value=estimate.p_value,
        mde=None if estimate.mde is None else 100.0 * estimate.mde,
        n_invalid=len(group) - total,
        baseline=group[0].baseline,
        judge=group[0].judge,
        length_adjusted=_adjusted([row for _, row in judged], scores, level),
        reason=estimate.reason,
    )


def _adjusted(rows: Sequence[Preference], scores: Values, level: float) -> LengthAdjusted:
    lengths = [
        row.length - row.length_baseline
        for row in rows
        if row.length is not None and row.length_baseline is not None
    ]
    if len(lengths) < len(rows):
        return undefined(level, "some rows lack the text of an answer")
    return length_adjusted(scores, np.asarray(lengths, dtype=np.float64), [row.prompt for row in rows], level)


def _length_controlled(
    name: str, score: AlpacaScore, group: Sequence[Preference], df_gamed: Path, notes: list[str]
) -> AlpacaScore:
    from lora_eval.judges import alpaca

    found = alpaca.length_controlled([row.row for row in group], df_gamed)
    if found.note:
        notes.append(f"{name}: {found.note}")
    return score.model_copy(
        update={"length_controlled_winrate": found.win_rate, "lc_standard_error": found.standard_error}
    )


def _names(keys: Sequence[tuple[str, str, str]]) -> dict[tuple[str, str, str], str]:
    """A model judged by several judges, or against several baselines, has a row for each."""
    models = [model for model, _, _ in keys]
    return {key: key[0] if models.count(key[0]) == 1 else f"{key[0]} (vs {key[1]}, {key[2]})" for key in keys}


def _doubts(name: str, group: Sequence[Preference]) -> list[str]:
    notes = []
    invalid = sum(row.value is None for row in group)
    if invalid:
        notes.append(f"{name}: {invalid} of {len(group)} rows have no verdict and are in no figure")
    repeated = len(group) - len({row.prompt for row in group})
    if repeated:
        notes.append(
            f"{name}: {repeated} rows repeat an instruction; they are one cluster of the interval, "
            "while standard_error is alpaca_eval's, which takes them as independent"
        )
    return notes
