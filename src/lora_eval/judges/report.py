"""`judge report`: files of verdicts, whoever wrote them, as one record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lora_eval.errors import InputError
from lora_eval.judges import own_rows
from lora_eval.judges.alpaca_report import report_preferences
from lora_eval.judges.alpaca_rows import read_preferences
from lora_eval.judges.bradley_terry import bradley_terry
from lora_eval.judges.games import Game, pair_counts, pair_rates
from lora_eval.judges.mt_report import report_ratings
from lora_eval.judges.mt_rows import read_judgments
from lora_eval.judges.trust import position_bound
from lora_eval.records import JudgeReport, JudgeSuite, JudgeVerdict


def build_report(
    suite: JudgeSuite,
    files: Sequence[Path],
    *,
    base: str | None = None,
    df_gamed: Path | None = None,
    level: float = 0.95,
) -> JudgeReport:
    """Return the report of one suite's files; nothing is asked of any judge.

    Raises:
        InputError: with every fault of all files; or `base` is unknown, or single and pair judgments are
        mixed.
    """
    sources = [str(path) for path in files]
    own = [path for path in files if own_rows.is_own(path)]
    foreign = [path for path in files if path not in own]
    verdicts = own_rows.read_own(own, suite)
    report = _build(suite, foreign, verdicts, sources, base=base, df_gamed=df_gamed, level=level)
    return report.model_copy(update={"notes": (*report.notes, *own_rows.notes(verdicts))})


def report_verdicts(
    suite: JudgeSuite, verdicts: Sequence[JudgeVerdict], source: str, level: float = 0.95
) -> JudgeReport:
    """Return the report of the verdicts of one run."""
    last = own_rows.last_replies(verdicts)
    report = _build(suite, (), last, [source], base=None, df_gamed=None, level=level)
    return report.model_copy(update={"notes": (*report.notes, *own_rows.notes(last))})


def _build(
    suite: JudgeSuite,
    foreign: Sequence[Path],
    verdicts: Sequence[JudgeVerdict],
    sources: Sequence[str],
    *,
    base: str | None,
    df_gamed: Path | None,
    level: float,
) -> JudgeReport:
    if suite == "alpaca-eval":
        preferences = [*read_preferences(foreign), *own_rows.preferences(verdicts)]
        report = report_preferences(preferences, sources, df_gamed, level)
        return report.model_copy(update={"notes": (*report.notes, *_bound(own_rows.games(verdicts)))})
    if foreign and suite == "pairwise":
        raise InputError(
            f"{foreign[0]}: no verdicts of judge run; FastChat's pairs are read by --suite mt-bench"
        )
    ratings, games = read_judgments(foreign)
    ratings, games = ratings + own_rows.ratings(verdicts), games + own_rows.games(verdicts)
    if ratings and games:
        raise InputError("--annotations: single and pair judgments have other figures; give them one by one")
    if games:
        return report_games(suite, games, sources, level)
    return report_ratings(ratings, sources, base, level)


def report_games(
    suite: JudgeSuite, games: Sequence[Game], sources: Sequence[str], level: float
) -> JudgeReport:
    """Return the report of games: FastChat's counts, the rate of every pair, strengths from three arms on."""
    pairs = pair_rates(games, level)
    notes = [
        f"{pair.b} against {pair.a}: {pair.n_invalid} items lack a verdict in an order; counting them all "
        f"for one side gives {pair.rate_worst:.3f} to {pair.rate_best:.3f}"
        for pair in pairs
        if pair.n_invalid
    ]
    notes += [
        f"{pair.b} against {pair.a}: one order only was asked, so the judge's position bias is in the rate"
        for pair in pairs
        if pair.order_agreement is None and pair.n
    ]
    notes += _bound(games)
    return JudgeReport(
        suite=suite,
        sources=tuple(sources),
        models=pair_counts(games),
        pairs=tuple(pairs),
        bradley_terry=tuple(bradley_terry(games, level)),
        notes=tuple(notes),
    )


def _bound(games: Sequence[Game]) -> list[str]:
    return [f"{said} (judge calibrate measures it)" for said in position_bound(games)]
