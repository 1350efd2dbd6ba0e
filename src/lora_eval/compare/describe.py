"""What the record says about arms, suite and packages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lora_eval.records import Arm, ArmRun, EvalSuite, LoadedRun
from lora_eval.stats.tasks import Unit


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
