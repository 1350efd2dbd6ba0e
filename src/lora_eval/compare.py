"""Compare runs: every pair of arms, task by task, with interval, test and verdict.

Reads runs and writes `comparison.json`, `report.md` and `report.html`. It imports no model library, so a
comparison can be made again on a laptop from the run folders. The mathematics is in `lora_eval.stats`, what
is a task and which metric counts in `lora_eval.stats.tasks`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_eval.errors import InputError
from lora_eval.records import Arm, ArmRun, Comparison, EvalSuite, LoadedRun, Sequential, Verification
from lora_eval.schema import read_record, suggest, write_record, write_text
from lora_eval.stats.differences import Method
from lora_eval.stats.estimate import check_level
from lora_eval.stats.lines import Asked, PairNames
from lora_eval.stats.looks import check_looks
from lora_eval.stats.table import build_tasks
from lora_eval.stats.tasks import Unit, list_units
from lora_eval.stats.training_runs import average_runs


def compare_runs(runs: Mapping[str, Path], **options: Any) -> Comparison:
    """Return the comparison of stored runs; arm name -> run folder, and the options of `compare_loaded`.

    Raises:
        InputError: a folder holds no complete run, or the runs cannot be paired.
    """
    return compare_loaded(load_runs(runs), **options)


def load_runs(runs: Mapping[str, Path]) -> dict[str, LoadedRun]:
    """Return every run by the name of its arm, in the order given."""
    from lora_eval.runstore import read_run

    return {name: read_run(folder) for name, folder in runs.items()}


def compare_loaded(
    runs: Mapping[str, LoadedRun],
    *,
    suite: EvalSuite | None = None,
    pairs: Sequence[PairNames] | None = None,
    more_pairs: Sequence[PairNames] = (),
    training_runs: Mapping[str, Sequence[str]] | None = None,
    method: Method = "auto",
    level: float = 0.95,
    margins: Mapping[str, float] | None = None,
    controls: Mapping[str, Any] | None = None,
    timing: Mapping[str, Any] | None = None,
    arm_notes: Mapping[str, Sequence[str]] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    sequential: Sequential | None = None,
    notes: Sequence[str] = (),
    title: str = "",
) -> Comparison:
    """Return the comparison of runs in memory.

    `suite` says which metric a task's verdict rests on, its role and margin; without it each task's first
    metric counts. `pairs` are (a, b) for b against a; the default is `default_pairs`, and `more_pairs` are
    compared beside them. `training_runs` maps an arm to those of `runs` that are trainings of it: it is
    compared as their mean, and they are no arms of their own. `method` is `auto`, `bootstrap` (BCa interval,
    sign-flip test) or `permutation` (sign-flip test). `margins` (by task, in the metric's units) go before
    the suite's. `groups` maps a group to its tasks; without it, tasks that the suite names only through their
    group are found by the group's name. `sequential` says how runs were stopped early: intervals and p-values
    then hold at every look, and there is no macro average.

    Raises:
        InputError: runs of different suites or seeds, unfinished or stopped early without `sequential`,
            unknown names, unequal prompts, or too few items for `method`.
    """
    check_level(level)
    check_pairable(runs)
    members = {arm: {name: runs[name] for name in names} for arm, names in (training_runs or {}).items()}
    arms = mean_arms(runs, members)
    units = list_units(arms, suite, groups or {}, margins or {})
    chosen = check_pairs(arms, [*(default_pairs(arms) if pairs is None else pairs), *more_pairs])
    looks = check_looks(runs, sequential, method)
    asked = Asked(arms, {arm: tuple(own.values()) for arm, own in members.items()}, level, method, looks)
    tasks, scores = build_tasks(asked, units, chosen)
    notes_of = arm_notes or {}
    return Comparison(
        title=title,
        arms=tuple(
            describe_arm(name, run, notes_of.get(name, ()), members.get(name)) for name, run in arms.items()
        ),
        suite=describe_suite(runs, suite, units),
        tasks=tasks,
        suite_scores=() if sequential else scores,
        sequential=sequential,
        controls=dict(controls or {}),
        timing=dict(timing or {}) | {"arms": {name: run_timing(run) for name, run in arms.items()}},
        packages=next(iter(runs.values())).run.packages,
        notes=(*notes, *missing_task_notes(units, suite), *package_notes(runs)),
    )


def mean_arms(
    runs: Mapping[str, LoadedRun], members: Mapping[str, Mapping[str, LoadedRun]]
) -> dict[str, LoadedRun]:
    """Return the run of every arm: training runs are replaced, in their place, by their mean."""
    owners = {name: arm for arm, own in members.items() for name in own}
    found: dict[str, LoadedRun] = {}
    for name, run in runs.items():
        arm = owners.get(name)
        if arm is None:
            found[name] = run
        elif arm not in found:
            found[arm] = average_runs(arm, members[arm])
    return found


def write_comparison(
    comparison: Comparison,
    runs: Mapping[str, LoadedRun],
    out: Path,
    verifications: Sequence[Verification] = (),
) -> None:
    """Write `comparison.json`, `report.md` and `report.html` into `out`, each whole or not at all, and copies of
    the arms' lineage and training log beside their runs.
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


def default_pairs(runs: Mapping[str, LoadedRun]) -> list[PairNames]:
    """Return every arm against the base, then every exported arm against the first adapter.

    The base is the first arm of kind `base`, else the first arm.
    """
    kinds = {name: run.run.variant.kind for name, run in runs.items()}
    base = next((name for name, kind in kinds.items() if kind == "base"), next(iter(kinds)))
    pairs = [(base, name) for name in kinds if name != base]
    adapter = next((name for name, kind in kinds.items() if kind == "adapter"), None)
    if adapter is not None and {"merged", "gptq", "awq", "served"} & set(kinds.values()):
        pairs += [(adapter, name) for name in kinds if name not in (base, adapter)]
    return pairs


def check_pairs(runs: Mapping[str, LoadedRun], pairs: Sequence[PairNames]) -> list[PairNames]:
    """Return the pairs; InputError for an arm that is not among the runs, or paired with itself."""
    for a, b in pairs:
        for name in (a, b):
            if name not in runs:
                known = list(runs)
                raise InputError(
                    f"pair {a}, {b}: no arm '{name}'{suggest(name, known)}; arms: {', '.join(known)}"
                )
        if a == b:
            raise InputError(f"pair {a}, {b}: an arm cannot be compared with itself")
    return list(dict.fromkeys(pairs))


def check_pairable(runs: Mapping[str, LoadedRun]) -> None:
    """InputError unless all runs are complete and of one suite, with the same seeds."""
    if len(runs) < 2:
        raise InputError(f"a comparison needs two arms, got {', '.join(runs) or 'none'}")
    first_name, first = next((name, run.run) for name, run in runs.items())
    for name, loaded in runs.items():
        run = loaded.run
        if run.status != "complete":
            raise InputError(f"arm {name}: its run is not complete; run the same command again to finish it")
        for what, one, other in (
            ("suite fingerprint", first.suite_fingerprint, run.suite_fingerprint),
            ("seeds", first.seeds, run.seeds),
            ("limit", first.limit, run.limit),
        ):
            if one != other:
                raise InputError(
                    f"arm {name}: its run's {what} is {other}, but arm {first_name} has {one}; "
                    "run both with the same suite and settings"
                )


def describe_arm(
    name: str, loaded: LoadedRun, notes: Sequence[str], members: Mapping[str, LoadedRun] | None = None
) -> Arm:
    """Return the arm's column: its weights (or those of its training runs), and how they were opened."""
    run = loaded.run
    kind = (run.quantization or {}).get("bnb_4bit_quant_type") or ("int8" if run.quantization else None)
    opened = [f"dtype {run.dtype}", *([f"base quantized to {kind} while scored"] if kind else [])]
    return Arm(
        name=name,
        kind=run.variant.kind,
        fingerprint=run.variant.fingerprint,
        path=run.variant.path,
        notes=tuple(dict.fromkeys((*opened, *run.notes, *notes))),
        runs=tuple(
            ArmRun(name=own, fingerprint=each.run.variant.fingerprint, path=each.run.variant.path)
            for own, each in (members or {}).items()
        ),
    )


def describe_suite(
    runs: Mapping[str, LoadedRun], suite: EvalSuite | None, units: Sequence[Unit]
) -> dict[str, Any]:
    """Return what was asked: name, fingerprint, seeds, the suite's own tasks, the tasks of groups."""
    run = next(iter(runs.values())).run
    asked = suite.model_dump(mode="json", by_alias=True, exclude_none=True) if suite else {"name": run.suite}
    groups = {unit.task: list(unit.leaves) for unit in units if unit.leaves != (unit.task,)}
    limits = {"seeds": run.seeds, "limit": run.limit}
    return asked | {"fingerprint": run.suite_fingerprint, **limits, "groups": groups}


def run_timing(loaded: LoadedRun) -> dict[str, Any]:
    """Return how long an arm took, how many prompt tokens it read, and what the engine did for them."""
    run = loaded.run
    timing: dict[str, Any] = {"wall_seconds": run.wall_seconds, "prompt_tokens": run.prompt_tokens}
    return timing | (run.work.model_dump(exclude={"seconds"}) if run.work else {})


def package_notes(runs: Mapping[str, LoadedRun]) -> list[str]:
    """Return a note for each package whose version differs between the arms."""
    versions: dict[str, dict[str, str]] = {}
    for name, run in runs.items():
        for package, version in run.run.packages.items():
            versions.setdefault(package, {})[name] = version
    return [
        f"{package} differs between the arms: " + ", ".join(f"{arm} {v}" for arm, v in found.items())
        for package, found in sorted(versions.items())
        if len(set(found.values())) > 1
    ]


def missing_task_notes(units: Sequence[Unit], suite: EvalSuite | None) -> list[str]:
    """Return a note for each of the suite's tasks that no run has items of."""
    known = {unit.task for unit in units}
    absent = [entry.task for entry in suite.entries() if entry.task not in known] if suite else []
    return [f"task {name}: of the suite, but no run has items of it" for name in absent]
