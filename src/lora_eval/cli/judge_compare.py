"""`lora-eval judge compare`: answers, verdicts and the ordinary comparison of arms, in one command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_eval.cli.judge_arms import Written, arm_options, read_arms, read_asked, write_arms
from lora_eval.cli.judge_options import SUITES, control_option, judge_options, local_path, read_profile
from lora_eval.cli.judge_trust import check_after, check_before, trust_options
from lora_eval.errors import InputError

if TYPE_CHECKING:
    from lora_eval.judges.answers import AnswerSet
    from lora_eval.judges.calls import Plan
    from lora_eval.records import Comparison, Gate, JudgeProfile, JudgeVerdict, LoadedRun, Variant


@click.command(
    epilog="Writes DIR/answers, DIR/judged, DIR/runs, comparison.json, report.md and report.html. Status: "
    "that of judge run, or of the gate. The same command goes on, and repeats no answer and no finished call."
)
@arm_options
@judge_options
@trust_options
@control_option
@click.option("--suite", type=click.Choice(SUITES), default="mt-bench", show_default=True,
              help="MT-Bench's questions, or your own with --questions.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, metavar="DIR",
              help="Folder for everything.")  # fmt: skip
@click.option("--max-cost", type=click.FloatRange(0), metavar="DOLLARS",
              help="Never spend more; needed where the profile has a price.")  # fmt: skip
@click.option("--gate", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Rules that decide the exit status; see `lora-eval gate`.")  # fmt: skip
@click.option("--strict", is_flag=True, help="End with status 4 where the gate is inconclusive.")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON on stdout.")
@click.option("-q", "--quiet", "silent", is_flag=True, help="Print the verdict's sentence only.")
def compare(
    judge: str, judge_model: str | None, judge_url: str | None, calibration: Path | None, trust_judge: bool,
    control: int | None, suite: str, out: Path, max_cost: float | None, gate: Path | None, strict: bool,
    as_json: bool, silent: bool, **options: Any,
) -> int:  # fmt: skip
    r"""Let base and adapters answer, and a judge say whose answers are better.

    The base answers some questions twice, and the judge compares it with itself: what it finds there is its
    own noise, and stands in the report under controls. A judge that is refused (see judge run) ends with
    status 3 before anything is concluded.

    \b
    Example:
      lora-eval judge compare --base ./base --adapter ./adapter --suite mt-bench \
          --judge mtbench-single --judge-model MODEL --max-cost 2 --out judged
    """
    from lora_eval.cli.compare_options import check_out, read_gate
    from lora_eval.cli.gate import exit_status

    if suite != "mt-bench" and options["questions"] is None:
        raise click.UsageError(f"--suite {suite}: give --questions FILE")
    check_out(out)
    rules = read_gate(gate, strict=strict)
    profile = read_profile(judge, judge_model, judge_url, suite)
    told = check_before(profile, calibration, trusted=trust_judge)
    quiet = silent or as_json
    written = _answers(out / "answers", options, control, shown=not quiet)
    local = local_path(judge, judge_model)
    found = _judged(profile, suite, written, local, out / "judged", max_cost, quiet)
    told += (*check_after(found.verdicts, trusted=trust_judge), *_own_answers(profile, written.variants))
    runs = judged_runs(found, written, options)
    notes = (*next(iter(runs.values())).run.notes, *told, *written.notes)
    comparison = _conclude(found, runs, out, rules, gate, notes)
    _show(comparison, out, found, as_json=as_json, silent=silent)
    return exit_status(comparison.gate, strict=strict)


@dataclass(frozen=True, slots=True)
class Judged:
    """The arms' answers with the judge's verdicts on them, and the controls (empty: none was asked for)."""

    plan: Plan
    sets: list[AnswerSet]
    verdicts: list[JudgeVerdict]
    controls: dict[str, Any]


def _answers(folder: Path, options: Mapping[str, Any], control: int | None, *, shown: bool) -> Written:
    from lora_eval.cli.progress import progress_bar
    from lora_eval.judges.control import control_questions
    from lora_eval.models.quiet import quiet

    asked, arms = read_asked(options), read_arms(options)
    if not (arms.adapters or arms.alone):
        raise InputError("nothing to compare the base with: give --adapter PATH or --arm NAME=KIND:PATH")
    again = control_questions(asked, control)
    with progress_bar(shown) as progress, quiet():
        return write_arms(arms, asked, folder, options, progress, again)


def _judged(
    profile: JudgeProfile, suite: str, written: Written, local: str | None, folder: Path,
    max_cost: float | None, quiet: bool,
) -> Judged:  # fmt: skip
    """Ask the judge for everything, the base against itself included."""
    from lora_eval.cli.judge_run import ask
    from lora_eval.judges.answers import read_answers
    from lora_eval.judges.calls import make_plan
    from lora_eval.judges.control import control_result, is_control, with_control

    sets = read_answers(written.files)
    plan = make_plan(suite, profile, sets)  # type: ignore[arg-type]
    if written.again is None:
        return Judged(plan, sets, ask(plan, local, folder, max_cost, quiet).verdicts, {})
    (again,) = read_answers({written.again.stem: written.again})
    whole = with_control(plan, suite, sets[0], again)  # type: ignore[arg-type]
    verdicts = ask(whole, local, folder, max_cost, quiet).verdicts
    controls = {"judge": control_result(verdicts, again.arm)}
    return Judged(plan, sets, [v for v in verdicts if not is_control(v, again.arm)], controls)


def _own_answers(profile: JudgeProfile, variants: Mapping[str, Variant]) -> tuple[str, ...]:
    """Say where the judge is one of the arms: models prefer their own answers (Panickssery et al. 2024, arXiv
    2404.13076).
    """
    from lora_eval.judges.profiles import LOCAL

    model = profile.model or ""
    weights = model.rpartition("@")[2] if model.startswith(LOCAL) else ""
    own = [
        arm
        for arm, variant in variants.items()
        if variant.path == f"{profile.base_url}#{model}"
        or (weights and (variant.fingerprint or "").removeprefix("sha256:").startswith(weights))
    ]
    return tuple(f"the judge is the arm {arm} itself, and models prefer their own answers" for arm in own)


def judged_runs(judged: Judged, written: Written, options: Mapping[str, Any]) -> dict[str, LoadedRun]:
    """Return each arm's run: its header, and a row for each prompt's turn."""
    from lora_eval.fingerprint import fingerprint_data
    from lora_eval.judges.own_rows import notes
    from lora_eval.judges.rows import judged_result, judged_rows
    from lora_eval.models import hardware_info, package_versions
    from lora_eval.records import LoadedRun, Run

    asked = {name: options[name] for name in ("max_new_tokens", "temperature", "seed", "limit")}
    plan, found = judged.plan, {}
    suite = plan.calls[0].suite
    for arm, rows in judged_rows(plan, judged.verdicts, judged.sets).items():
        served = written.variants[arm].kind == "served"
        run = Run(
            arm=arm,
            variant=written.variants[arm],
            suite=suite,
            suite_fingerprint=fingerprint_data(
                [suite, plan.judge, [row.prompt_sha256 for row in rows], asked]
            ),
            engine="http" if served else "transformers",
            dtype="as served" if served else options["dtype"],
            seeds={"answers": options["seed"]},
            limit=options["limit"],
            results=(judged_result(plan, rows),),
            packages=package_versions(),
            hardware=hardware_info(),
            notes=(f"judged by {plan.judge}", *notes(judged.verdicts)),
        )
        found[arm] = LoadedRun(run, rows)
    return found


def _conclude(
    judged: Judged, runs: Mapping[str, LoadedRun], out: Path, rules: Gate | None, source: Path | None,
    notes: Sequence[str],
) -> Comparison:  # fmt: skip
    """Return the comparison, gated, after runs and reports were written."""
    from lora_eval.compare import compare_loaded, write_comparison
    from lora_eval.judges.rows import FILTER, metric_of
    from lora_eval.records import EvalSuite, TaskEntry
    from lora_eval.runstore import write_run
    from lora_eval.stats.gate import gated

    name = judged.plan.calls[0].suite
    entry = TaskEntry(task=name, metric=f"{metric_of(judged.plan)},{FILTER}", role="target")
    for arm, loaded in runs.items():
        write_run(out / "runs" / arm, loaded.run, loaded.rows)
    base, *tuned = runs
    comparison = compare_loaded(
        runs,
        suite=EvalSuite(name=name, version="1", summary=f"judged by {judged.plan.judge}", tasks=(entry,)),
        controls=judged.controls,
        notes=notes,
        title=f"{', '.join(tuned)} against {base} on {name}",
    )
    comparison = comparison.model_copy(update={"created": datetime.now(UTC).isoformat(timespec="seconds")})
    try:
        if rules is not None:
            comparison = gated(comparison, rules, str(source))
    finally:  # where the gate's file is at fault, what was judged is kept
        write_comparison(comparison, runs, out)
    return comparison


def _show(comparison: Comparison, out: Path, judged: Judged, *, as_json: bool, silent: bool) -> None:
    from rich.console import Console

    from lora_eval.judges.report import report_verdicts
    from lora_eval.judges.tables import control_text, print_report
    from lora_eval.reports.terminal import print_comparison
    from lora_eval.reports.words import headline
    from lora_eval.schema import dump_record

    if as_json:
        click.echo(dump_record(comparison), nl=False)
    elif silent:
        click.echo(headline(comparison))
    else:
        console = Console()
        print_comparison(comparison, console)
        suite = judged.plan.calls[0].suite
        print_report(report_verdicts(suite, judged.verdicts, str(out / "judged")), console)
    for control in judged.controls.values():
        click.echo(control_text(control), err=True)
    for note in comparison.notes:
        click.echo(f"Note: {note}", err=True)
    click.echo(f"wrote {out / 'comparison.json'}, {out / 'report.md'} and {out / 'report.html'}", err=True)
