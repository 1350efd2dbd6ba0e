"""Every export ends with a verification on a small set: is what was written the model that was measured?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from lora_eval.records import Lineage, Verification

SAMPLES = 16
_KEY = __name__
_FILE = "verification.json"


def verify_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add what every export has for its verification; the values come from `chosen_options`."""
    for option in (
        click.option(
            "--verify-prompts",
            type=click.Path(path_type=Path, exists=True),
            metavar="FILE|RUN",
            help="Prompts of the verification (default: rows of the training data, else texts of our own).",
            expose_value=False,
            callback=_keep,
        ),
        click.option(
            "--verify-suite",
            multiple=True,
            metavar="NAME|PATH",
            help="Suite whose items are asked too: how many flip, and what the suite loses.",
            expose_value=False,
            callback=_keep,
        ),
        click.option(
            "--no-verify",
            is_flag=True,
            help="Do not compare the export with what it was made from; lineage.json then says unverified, "
            "and publish refuses it.",
            expose_value=False,
            callback=_keep,
        ),
    ):
        function = option(function)
    return function


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    context.meta.setdefault(_KEY, {})[parameter.name] = value
    return value


def chosen_options() -> dict[str, Any]:
    """Return the values of `verify_options` that the running command was given, by name.

    Raises:
        InputError: the prompts or suites that were named cannot be read or found. It is told before the
            export begins, which would else end well and unverified.
    """
    chosen = dict(click.get_current_context().meta.get(_KEY, {}))
    if chosen.get("no_verify"):
        return chosen
    if chosen.get("verify_prompts"):
        from lora_eval.verify.prompts import read_prompts

        read_prompts(chosen["verify_prompts"], SAMPLES, "--verify-prompts")
    if chosen.get("verify_suite"):
        from lora_eval.evaluate import open_suite

        open_suite(chosen["verify_suite"])
    return chosen


def check_export(
    base: Path, adapter: Path | None, out: Path, lineage: Lineage, options: dict[str, Any], progress: Any
) -> tuple[Lineage, Verification | None, str | None]:
    """Verify the export in `out` against the adapter on its base (or, without one, the whole model `base`),
    write `verification.json` and its outcome into `lineage.json`, and return the lineage, the verification
    and what kept it from being made.

    The base under an adapter is quantized as the export's lineage says. `options` are the command's:
    `no_verify`, `verify_prompts` and `verify_suite`. What cannot be opened or asked is no failure of the
    export: it stays unverified, with the reason.

    Raises:
        VerificationFailed: it cannot even be compared; the folder stays, marked as failed.
    """
    from lora_eval.errors import InputError, VerificationFailed

    if options.get("no_verify"):
        reason = "--no-verify"
        return _mark(out, lineage, "no", reason), None, reason
    try:
        record = _verify(base, adapter, out, lineage, options, progress)
    except VerificationFailed as error:
        _mark(out, lineage, "failed", str(error).splitlines()[0])
        raise
    except InputError as error:
        return _mark(out, lineage, "no", str(error)), None, str(error)
    return (
        _mark(out, lineage, "passed" if record.passed else "failed", "; ".join(record.failures)),
        record,
        None,
    )


def _verify(
    base: Path, adapter: Path | None, out: Path, lineage: Lineage, options: dict[str, Any], progress: Any
) -> Verification:
    from lora_eval.verify import ArmPath, Options, default_folder, small_set, verify
    from lora_eval.verify.arms import parse_arm_path

    kind = lineage.variants[-1].kind
    candidate = ArmPath("export", kind, out, base=base if kind == "adapter" else None)
    made = lineage.steps[-1].arguments if lineage.steps else {}
    # The dequantized base is itself to be quantized no more: only its step says how it was.
    trained = lineage.quantization or made.get("quantization") or None
    if candidate.kind == "base":
        reference = ArmPath("trained", "base", base, quantized_as=trained, loaded_as=made.get("base_dtype"))
    elif adapter is None:
        reference = parse_arm_path(str(base), None, option="--model")
    else:
        reference = ArmPath("measured", "adapter", adapter, base=base, quantized_as=trained)
    prompts: Any = options.get("verify_prompts") or small_set(out, SAMPLES)
    chosen = Options(samples=SAMPLES, store=default_folder())
    suites = options.get("verify_suite")
    if not suites:
        return verify(reference, candidate, prompts, out / _FILE, chosen, progress)
    from lora_eval.evaluate import open_suite

    return verify(reference, candidate, prompts, out / _FILE, chosen, progress, suite=open_suite(suites))


def _mark(out: Path, lineage: Lineage, verified: str, reason: str) -> Lineage:
    """Store in the export's own step whether it was verified: `passed`, `failed` or `no`."""
    from lora_eval.models import write_lineage
    from lora_eval.records import Step
    from lora_eval.registry import own_version

    *before, last = lineage.steps or (Step(tool="lora-eval export", version=own_version()),)
    outcome = {"verified": verified} | ({"verified_reason": reason} if reason else {})
    marked = lineage.model_copy(
        update={"steps": (*before, last.model_copy(update={"arguments": last.arguments | outcome}))}
    )
    write_lineage(out, marked)
    return marked


def conclude(
    record: Verification | None, reason: str | None, *, asked_for_another: bool, quiet: bool = False
) -> None:
    """Print the outcome on stderr.

    Raises:
        VerificationFailed: the export is not the measured model, and no other one was asked for (with
            `--onto original`, whose cost the figures then are).
    """
    from lora_eval.cli.verify import figures
    from lora_eval.errors import VerificationFailed

    if record is None:
        click.echo(f"unverified: {reason}", err=True)
        return
    for line in () if quiet else figures(record):
        click.echo(line, err=True)
    if record.passed:
        if not quiet:
            click.echo("verified: it is the model that was measured", err=True)
        return
    found = "\n  ".join(["not the model that was measured:", *record.failures, *record.causes])
    if not asked_for_another:
        raise VerificationFailed(f"{record.candidate.path}: {found}")
    click.echo(f"note: {found}", err=True)
