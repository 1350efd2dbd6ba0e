"""Runs, records and reports on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_eval.compare.pairs import mean_arms
from lora_eval.errors import InputError
from lora_eval.records import Comparison, LoadedRun, Verification
from lora_eval.schema import read_record, write_record, write_text


def load_runs(runs: Mapping[str, Path]) -> dict[str, LoadedRun]:
    """Return every run by the name of its arm, in the order given."""
    from lora_eval.runstore import read_run

    return {name: read_run(folder) for name, folder in runs.items()}


def write_comparison(
    comparison: Comparison,
    runs: Mapping[str, LoadedRun],
    out: Path,
    verifications: Sequence[Verification] = (),
) -> None:
    """Write `comparison.json`, `report.md` and `report.html` into `out`, each whole or not at all, and copies
    of the arms' lineage and training log beside their runs.
    """
    from lora_eval.reports.origins import keep_origins

    keep_origins(comparison, out / "runs")
    texts = render_reports(comparison, runs, verifications, out / "runs")
    write_record(out / "comparison.json", comparison)
    write_texts(out, texts)


def write_reports(stored: Stored, out: Path) -> None:
    """Write `report.md` and `report.html` of a stored comparison into `out`."""
    write_texts(out, render_reports(stored.comparison, stored.runs, stored.verifications, out / "runs"))


def render_reports(
    comparison: Comparison,
    runs: Mapping[str, LoadedRun],
    verifications: Sequence[Verification],
    folder: Path,
) -> dict[str, str]:
    """Return the reports' texts by file name; `folder` holds the arms' runs, with their lineage where kept.

    Raises:
        InputError: an arm's run is not among `runs`.
    """
    from lora_eval.reports.html import render_html
    from lora_eval.reports.markdown import render_markdown
    from lora_eval.reports.origins import read_origins

    missing = [name for name in stored_runs(comparison) if name not in runs]
    if missing:
        raise InputError(f"the report needs the run of every arm; missing: {', '.join(missing)}")
    members = {
        arm.name: {run.name: runs[run.name] for run in arm.runs} for arm in comparison.arms if arm.runs
    }
    runs = mean_arms(runs, members)
    origins = read_origins(comparison, folder)
    return {
        "report.md": render_markdown(comparison, verifications, origins, runs),
        "report.html": render_html(comparison, runs, verifications, origins),
    }


def stored_runs(comparison: Comparison) -> list[str]:
    """Return the names of the runs behind the arms: an arm's own, or those of its training runs."""
    return [
        name
        for arm in comparison.arms
        for name in ([run.name for run in arm.runs] if arm.runs else [arm.name])
    ]


def write_texts(out: Path, texts: Mapping[str, str]) -> None:
    """Write each text into its file of the folder."""
    for name, text in texts.items():
        write_text(out / name, text)


@dataclass(frozen=True, slots=True)
class Stored:
    """What a comparison's folder holds."""

    comparison: Comparison
    runs: dict[str, LoadedRun]
    verifications: tuple[Verification, ...]


def load_stored(folder: Path) -> Stored:
    """Return the comparison of a folder with its runs (`runs/ARM/`) and every `verification*.json` below it.

    Raises:
        InputError: no comparison there, or an arm's run is missing.
    """
    path = folder / "comparison.json"
    if not path.is_file():
        raise InputError(f"{folder}: no comparison.json here; give the folder that `compare --out` wrote")
    comparison = read_record(path, Comparison)
    runs = load_runs({name: folder / "runs" / name for name in stored_runs(comparison)})
    found = sorted(folder.rglob("verification*.json"))
    return Stored(comparison, runs, tuple(read_record(each, Verification) for each in found))
