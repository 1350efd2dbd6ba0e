"""Which judge is believed: a calibration given or kept, and what its own verdicts say of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_eval.errors import CalibrationFailed, OutputError

if TYPE_CHECKING:
    from lora_eval.records import Calibration, JudgeProfile, JudgeVerdict


def trust_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which judge is refused."""
    for option in reversed((
        click.option("--calibration", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
                     help="calibration.json of this judge (default: its last calibration by this user)."),
        click.option("--trust-judge", is_flag=True,
                     help="Report the verdicts of a judge that is refused all the same."),
    )):  # fmt: skip
        function = option(function)
    return function


def check_before(profile: JudgeProfile, calibration: Path | None, *, trusted: bool) -> tuple[str, ...]:
    """Return what a report must say of the judge's calibration, before anything is asked.

    Raises:
        CalibrationFailed: the judge did not pass, and is not `trusted` all the same.
    """
    from lora_eval.judges.calls import judge_name
    from lora_eval.judges.trust import check_calibration, kept_calibration

    judge, folder = judge_name(profile), _folder()
    if calibration is not None:
        found: Calibration | None = check_calibration(judge, calibration)
    else:
        found = kept_calibration(folder, judge) if folder else None
    if found is None:
        return ("nobody has measured how often this judge is right: judge calibrate does, on labelled pairs",)
    if found.passed:
        share = "-" if found.agreement is None else f"{100 * found.agreement:.1f}"
        return (f"calibration: the judge is right on {share} % of {found.n} labelled pairs",)
    return _refused(judge, found.reasons, trusted)


def check_after(verdicts: Sequence[JudgeVerdict], *, trusted: bool) -> tuple[str, ...]:
    """Return what a report must say of the verdicts themselves.

    Raises:
        CalibrationFailed: the judge follows the position, and is not `trusted` all the same.
    """
    from lora_eval.judges.trust import doubts

    reasons = doubts(verdicts)
    return _refused("", reasons, trusted) if reasons else ()


def _refused(judge: str, reasons: Sequence[str], trusted: bool) -> tuple[str, ...]:
    said = "; ".join(reasons)
    if not trusted:
        raise CalibrationFailed(
            f"the judge {judge} is refused: ".replace("  ", " ")
            + f"{said}; nothing is reported of its verdicts without --trust-judge"
        )
    return (f"the judge is refused ({said}), and was trusted all the same (--trust-judge)",)


def keep(found: Calibration) -> None:
    """Keep the calibration for this user's later runs; where that cannot be done, say so."""
    from lora_eval.judges.trust import keep_calibration

    folder = _folder()
    try:
        if folder is None:
            raise OutputError("this user has no home folder")
        keep_calibration(folder, found)
    except OutputError as error:
        click.echo(f"not kept for later runs: {error}; give the file with --calibration", err=True)


def _folder() -> Path | None:
    """Beside the stored answers."""
    from lora_eval.engines.store import default_store_path

    try:
        return default_store_path().parent / "calibrations"
    except OutputError:
        return None
