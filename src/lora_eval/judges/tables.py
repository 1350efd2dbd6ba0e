"""A judge's report as a screen of text. Fits 80 columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_eval.judges.mt_bench import CATEGORIES
from lora_eval.records import (
    AlpacaScore,
    BradleyTerry,
    Calibration,
    JudgeForecast,
    JudgeReport,
    LengthAdjusted,
    MtBenchScore,
    PairCounts,
    PairRate,
    ScoreDifference,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_SHORT = ("writ.", "role.", "reas.", "math", "code", "extr.", "stem", "hum.")
_FAR = 0.05


def print_report(report: JudgeReport, console: Console) -> None:
    """Print every table of the report, then its notes."""
    from rich.text import Text

    console.print(Text(f"{report.suite}, judge: {', '.join(_judges(report))}", style="bold"))
    for kind, draw in _TABLES:
        rows = {name: row for name, row in report.models.items() if isinstance(row, kind)}
        if rows:
            for table in draw(rows):
                console.print(table)
    if report.differences:
        console.print(_difference_table(report.differences))
    if report.pairs:
        console.print(_pair_table(report.pairs))
        console.print(_length_table(report.pairs))
    for strengths in report.bradley_terry:
        console.print(_strength_table(strengths))
    for note in (*report.notes, *_extrapolations(report)):
        console.print(Text(f"Note: {note}", style="yellow"))


def forecast_text(found: JudgeForecast) -> str:
    """Return the forecast in sentences."""
    lines = [
        f"Judge: {found.judge}",
        f"Calls: {found.left:,} to make, {found.known:,} known, {found.equal_answers:,} ties of equal "
        "answers that need none",
        f"Tokens: about {found.input_tokens:,} in (at most {found.most_input_tokens:,}), at most "
        f"{found.most_output_tokens:,} out",
    ]
    if found.most_dollars is None or found.likely_dollars is None:
        lines.append("Dollars: the profile has no price")
    else:
        lines.append(
            f"Dollars: about {found.likely_dollars:.4f}, at most {found.most_dollars:.4f} for one reply each"
        )
    if found.smallest_difference is not None:
        scale = 100.0 if found.unit == "share of prompts" else 1.0
        unit = "points from 50 %" if scale == 100.0 else found.unit
        lines.append(
            f"Smallest difference found with power 0.8: {scale * found.smallest_difference:.2f} {unit}, over "
            f"{found.prompts} prompts, if {found.assumption}"
        )
    return "\n".join(lines)


def calibration_text(found: Calibration) -> str:
    """Return the calibration in sentences."""
    verdict = "PASSED" if found.passed else f"REFUSED: {'; '.join(found.reasons)}"
    interval = _interval(found.ci_low, found.ci_high, 1, scale=100.0)
    lines = [
        f"Judge: {found.judge}",
        f"Right on {_percent(found.agreement)} % of {found.n} pairs ({interval}), "
        f"{found.n_invalid} without a verdict",
        f"Same verdict in both orders: {_percent(found.order_agreement)} %; decided games won by the answer "
        f"shown first: {_percent(found.position_rate)} %",
        f"Same verdict when asked again: {_percent(found.repeat_agreement)} % of {found.repeats}",
        verdict,
    ]
    if found.order_agreement is None and found.position_rate is None:
        del lines[2]  # it rates one answer at a time
    return "\n".join(lines)


def control_text(found: Mapping[str, Any]) -> str:
    """Return what the judge made of the base against itself, in a sentence."""
    pairs = "position_rate" in found
    scale, unit = (100.0, " points") if pairs else (1.0, "")
    low, high, difference = found["ci_low"], found["ci_high"], found["difference"]
    shown = _number(None if difference is None else scale * difference, 2, sign=True)
    bounds = "" if low is None else f" ({_interval(low, high, 2, sign=True, scale=scale)})"
    said = f"Base against its own second answers: {shown}{unit}{bounds} on {found['prompts']} prompts"
    if not pairs:
        return said
    agree, first = _percent(found["order_agreement"]), _percent(found["position_rate"])
    return f"{said}; both orders agree on {agree} %, the answer shown first wins {first} % of decided games"


def _alpaca_tables(models: dict[str, AlpacaScore]) -> list[Table]:
    controlled = any(row.length_controlled_winrate is not None for row in models.values())
    table = _table("Win rate in percent (± standard error)")
    table.add_column("model", overflow="fold", ratio=1)
    _numbers(table, "win rate", f"{_level(models)} interval", "equal length")
    if controlled:
        _numbers(table, "LC")
    _numbers(table, "n", "chars")
    for name, row in models.items():
        adjusted = row.length_adjusted
        cells = [
            _with_error(row.win_rate, row.standard_error, 2),
            _interval(row.ci_low, row.ci_high, 1),
            _with_error(adjusted.win_rate, adjusted.standard_error, 1),
            *([_number(row.length_controlled_winrate, 2)] if controlled else []),
            str(row.n_total),
            _number(row.avg_length, 0),
        ]
        table.add_row(name, *cells)
    if controlled:
        table.caption = "LC: alpaca_eval's length-controlled win rate"
    return [table]


def _mt_bench_tables(models: dict[str, MtBenchScore]) -> list[Table]:
    scores = _table("Score, 1 to 10 (± standard error, both turns of a question as one)")
    scores.add_column("model", overflow="fold", ratio=1)
    _numbers(scores, "turn 1", "turn 2", "average", "n", "invalid")
    for name, row in models.items():
        average = _with_error(row.average, row.standard_error, 2)
        cells = (_number(row.first_turn, 2), _number(row.second_turn, 2), average, str(row.n))
        scores.add_row(name, *cells, str(row.n_invalid))
    if not any(row.categories for row in models.values()):
        return [scores]
    categories = _table("Mean score of each category")
    categories.add_column("model", overflow="fold", ratio=1)
    _numbers(categories, *_SHORT)
    for name, row in models.items():
        found = [row.categories.get(category) for category in CATEGORIES]
        categories.add_row(name, *(_number(score.score if score else None, 2) for score in found))
    return [scores, categories]


def _count_tables(models: dict[str, PairCounts]) -> list[Table]:
    table = _table("Wins in both orders (FastChat's rule: all else is a tie)")
    table.add_column("model", overflow="fold", ratio=1)
    _numbers(table, "win", "tie", "loss", "win rate", "adjusted")
    for name, row in models.items():
        counts = (str(row.win), str(row.tie), str(row.loss))
        table.add_row(name, *counts, _percent(row.win_rate), _percent(row.win_rate_adjusted))
    return [table]


def _difference_table(rows: Sequence[ScoreDifference]) -> Table:
    table = _table(f"Difference of scores ({100 * rows[0].level:g} % interval; question is the unit)")
    table.add_column("models", overflow="fold", ratio=1)
    _numbers(table, "difference", "interval", "p", "+/=/-", "mde")
    for row in rows:
        table.add_row(
            f"{row.b} - {row.a}",
            _number(row.difference, 2, sign=True),
            _interval(row.ci_low, row.ci_high, 2, sign=True),
            _p(row.p_value),
            f"{row.higher}/{row.ties}/{row.lower}",
            _number(row.mde, 2),
        )
    return table


def _pair_table(rows: Sequence[PairRate]) -> Table:
    table = _table(f"How often the judge prefers the first named ({100 * rows[0].level:g} % interval)")
    table.add_column("pair", overflow="fold", ratio=1)
    _numbers(table, "rate %", "interval", "p", "mde", "agree %", "first %", "n")
    for row in rows:
        table.add_row(
            f"{row.b} : {row.a}",
            _percent(row.rate),
            _interval(row.ci_low, row.ci_high, 1, scale=100.0),
            _p(row.p_value),
            _percent(row.mde),
            _percent(row.order_agreement),
            _percent(row.position_rate),
            str(row.n),
        )
    table.caption = "agree: same verdict in both orders; first: decided games won by the answer shown first"
    return table


def _length_table(rows: Sequence[PairRate]) -> Table:
    table = _table("The same at equal length of both answers")
    table.add_column("pair", overflow="fold", ratio=1)
    _numbers(table, "rate %", "interval", "length effect", "chars", "chars")
    for row in rows:
        adjusted = row.length_adjusted
        if adjusted.win_rate is None:
            table.add_row(f"{row.b} : {row.a}", "-", "-", "-", "-", "-")
            continue
        table.add_row(
            f"{row.b} : {row.a}",
            _with_error(adjusted.win_rate, adjusted.standard_error, 1),
            _interval(adjusted.ci_low, adjusted.ci_high, 1),
            _number(adjusted.slope, 2, sign=True),
            _number(row.mean_length_b, 0),
            _number(row.mean_length_a, 0),
        )
    return table


def _strength_table(found: BradleyTerry) -> Table:
    table = _table(f"Bradley-Terry strength in logits above {found.arms[0].arm}, {found.games} games")
    table.add_column("arm", overflow="fold", ratio=1)
    _numbers(table, "strength", "interval")
    for row in found.arms:
        table.add_row(
            row.arm,
            _with_error(row.strength, row.standard_error, 2),
            _interval(row.ci_low, row.ci_high, 2, sign=True),
        )
    if found.position is not None:
        table.caption = f"position: {found.position:+.2f} logits for the answer shown first"
    return table


_TABLES: tuple[tuple[type, Callable[..., list[Table]]], ...] = (
    (AlpacaScore, _alpaca_tables),
    (MtBenchScore, _mt_bench_tables),
    (PairCounts, _count_tables),
)


def _extrapolations(report: JudgeReport) -> list[str]:
    adjusted: list[tuple[str, LengthAdjusted]] = [
        (name, row.length_adjusted) for name, row in report.models.items() if isinstance(row, AlpacaScore)
    ]
    adjusted += [(row.b, row.length_adjusted) for row in report.pairs]
    return [
        f"{name}: its answer is the longer one for {100 * row.share_longer:.0f} % of the prompts; equal "
        "length is an extrapolation"
        for name, row in adjusted
        if row.share_longer is not None and not _FAR <= row.share_longer <= 1.0 - _FAR
    ]


def _judges(report: JudgeReport) -> list[str]:
    judges = [row.judge for row in report.models.values()] + [pair.judge for pair in report.pairs]
    return list(dict.fromkeys(judges))


def _level(models: dict[str, AlpacaScore]) -> str:
    return f"{100 * next(iter(models.values())).level:g} %"


def _table(title: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(
        title=title, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )


def _numbers(table: Table, *headers: str) -> None:
    for header in headers:
        table.add_column(header, justify="right", no_wrap=len(header) < 9)


def _number(value: float | None, digits: int, *, sign: bool = False) -> str:
    return "-" if value is None else f"{value:{'+' if sign else ''}.{digits}f}"


def _percent(share: float | None) -> str:
    return _number(None if share is None else 100.0 * share, 1)


def _with_error(value: float | None, error: float | None, digits: int) -> str:
    return _number(value, digits) if error is None else f"{_number(value, digits)} ±{error:.{digits}f}"


def _interval(
    low: float | None, high: float | None, digits: int, *, sign: bool = False, scale: float = 1.0
) -> str:
    if low is None or high is None:
        return "-"
    return f"{_number(scale * low, digits, sign=sign)} to {_number(scale * high, digits, sign=sign)}"


def _p(value: float | None) -> str:
    return "-" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"
