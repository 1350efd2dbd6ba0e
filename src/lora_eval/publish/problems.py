"""Why a folder of weights must not be published with its records: all reasons, none of them raised here."""

from __future__ import annotations

from collections.abc import Iterator

from lora_eval.errors import GateFailed, VerificationFailed
from lora_eval.publish.card import measured_rows
from lora_eval.publish.licences import check_known_licence, check_languages, check_licence
from lora_eval.publish.measured import Measured, Options
from lora_eval.schema import suggest


def verification_problems(variant: Measured) -> Iterator[VerificationFailed]:
    """Yield why an export is not known to be what was measured."""
    found = variant.verification
    if variant.kind != "adapter" and found is None:
        yield VerificationFailed(
            f"{variant.folder}: not verified: no verification*.json beside it is of these weights; run "
            "`lora-eval verify`, or name the file with --verification"
        )
    if found is not None and found.candidate.fingerprint != variant.fingerprint:
        yield VerificationFailed(
            f"{variant.folder}: the verification is of {found.candidate.fingerprint}, the files are "
            f"{variant.fingerprint}: they changed since"
        )
    if found is not None and not found.passed:
        yield VerificationFailed(f"{variant.folder}: its verification failed: {'; '.join(found.failures)}")
    if variant.lineage and variant.lineage.variants[-1].fingerprint not in (None, variant.fingerprint):
        yield VerificationFailed(
            f"{variant.folder}: lineage.json is of {variant.lineage.variants[-1].fingerprint}, the files are "
            f"{variant.fingerprint}: they changed since they were made"
        )


def gate_problems(variant: Measured, options: Options) -> Iterator[GateFailed]:
    """Yield that the gate failed, unless it is overridden."""
    gate = variant.comparison.gate
    if gate is not None and gate.verdict == "FAIL" and options.override is None:
        reasons = [f"{c.task}, {c.b}: {'; '.join(c.reasons)}" for c in gate.checks if c.verdict == "FAIL"]
        yield GateFailed(
            f"the gate failed ({' | '.join(reasons)}); --override-gate REASON publishes all the same, "
            "and the card says so"
        )


def input_problems(variant: Measured, options: Options) -> Iterator[str]:
    """Yield what is missing or wrong in what was given besides."""
    yield from _base_problems(variant, options)
    gate = variant.comparison.gate
    if options.override is not None and (gate is None or gate.verdict != "FAIL"):
        yield f"--override-gate: the gate {'did not fail' if gate else 'was not asked'}; leave the option out"
    yield from check_licence(
        options.license or options.base_license, options.base_license,
        name=options.license_name, link=options.license_link, repo=options.repo_id.partition("/")[2],
    )  # fmt: skip
    yield from check_known_licence("--data-license", options.data_license)
    yield from check_languages(options.language)
    tasks = [task.task for task in variant.comparison.tasks]
    for task in options.benchmarks:
        if task not in tasks:
            yield f"--benchmark {task}: no such task in the comparison{suggest(task, tasks)}"


def arm_problems(variant: Measured) -> Iterator[str]:
    """Yield why there can be no card: it shows these weights against their base, so both must be measured."""
    arms = variant.comparison.arms
    base = next((arm for arm in arms if arm.kind == "base"), None)
    if variant.arm is None:
        known = ", ".join(f"{arm.name} {arm.fingerprint}" for arm in arms)
        served = any(arm.kind == "served" for arm in arms)
        yield (
            f"{variant.folder}: the comparison measured other weights ({known}), not {variant.fingerprint}"
            f"{'; a server shows no weights: measure the folder itself too' if served else ''}"
        )
    if base is None:
        yield "the comparison has no base among its arms: nothing says what the fine-tune changed"
    elif variant.arm is not None and not measured_rows(variant.comparison, base.name, variant.arm):
        yield (
            f"the comparison holds no figures of {variant.arm} against {base.name}; run `compare` again with "
            f"--pairs {base.name}:{variant.arm}"
        )
    trained = variant.lineage.variants[0].fingerprint if variant.lineage else None
    if base is not None and trained and base.fingerprint and trained != base.fingerprint:
        yield (
            f"the comparison's base is {base.fingerprint}, the one trained on {trained} (lineage.json): "
            "another base says nothing of what the training changed"
        )


def _base_problems(variant: Measured, options: Options) -> Iterator[str]:
    named = variant.lineage.base_model if variant.lineage else None
    if variant.base_model(options) is None:
        yield f"base model '{named or 'unknown'}' is no name on the Hub; give --base-model OWNER/NAME[@REV]"
    recorded = variant.recorded_base()
    if recorded is not None and options.base_model not in (None, recorded):
        yield f"--base-model {options.base_model}: lineage.json says that the base was {recorded}"
    revision = variant.lineage.variants[0].revision if variant.lineage else None
    if revision and options.base_model_revision not in (None, revision):
        yield f"--base-model ...@{options.base_model_revision}: lineage.json says revision {revision}"
