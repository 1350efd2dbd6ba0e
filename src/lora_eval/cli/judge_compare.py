"""`lora-eval judge compare`: answers, verdicts and the ordinary comparison of arms, in one command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_eval.cli.judge_arms import arm_options, read_arms, read_asked, variants_of, write_arms
from lora_eval.cli.judge_options import SUITES, judge_options, read_profile
from lora_eval.errors import InputError

if TYPE_CHECKING:
    from lora_eval.judges.answers import AnswerSet
    from lora_eval.judges.calls import Plan
    from lora_eval.records import Comparison, Gate, JudgeVerdict, LoadedRun, Variant


@click.command(
    epilog="Writes DIR/answers, DIR/judged, DIR/runs, comparison.json, report.md and report.html. Status: "
    "that of judge run, or of the gate. The same command goes on, and repeats no answer and no finished call."
)
@arm_options
@judge_options
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
    judge: str, judge_model: str | None, judge_url: str | None, suite: str, out: Path, max_cost: float | None,
    gate: Path | None, strict: bool, as_json: bool, silent: bool, **options: Any,
) -> int:  # fmt: skip
    r"""Let base and adapters answer, and a judge say whose answers are better.

    \b
    Example:
      lora-eval judge compare --base ./base --adapter ./adapter --suite mt-bench \
          --judge mtbench-single --judge-model MODEL --max-cost 2 --out judged
    """
    from lora_eval.cli.compare_options import check_out, read_gate
    from lora_eval.cli.gate import exit_status
    from lora_eval.cli.judge_run import ask
    from lora_eval.judges.answers import read_answers
    from lora_eval.judges.calls import make_plan

    if suite != "mt-bench" and options["questions"] is None:
        raise click.UsageError(f"--suite {suite}: give --questions FILE")
    check_out(out)
    rules = read_gate(gate, strict=strict)
    profile = read_profile(judge, judge_model, judge_url)
    files, variants = _answers(out / "answers", options, shown=not (silent or as_json))
    sets = read_answers(files)
    plan = make_plan(suite, profile, sets)  # type: ignore[arg-type]
    outcome = ask(plan, judge_model, out / "judged", max_cost, silent or as_json)
    runs = judged_runs(plan, outcome.verdicts, sets, variants, options)
    comparison = _conclude(plan, runs, out, rules, gate)
    _show(comparison, out, plan, outcome.verdicts, as_json=as_json, silent=silent)
    return exit_status(comparison.gate, strict=strict)


def _answers(
    folder: Path, options: Mapping[str, Any], *, shown: bool
) -> tuple[dict[str, Path], dict[str, Variant]]:
    """The file of answers of each arm, and what the arm is."""
    from lora_eval.cli.progress import progress_bar
    from lora_eval.models.quiet import quiet

    asked, arms = read_asked(options), read_arms(options)
    if not (arms.adapters or arms.others):
        raise InputError("nothing to compare the base with: give --adapter PATH or --arm NAME=KIND:PATH")
    with progress_bar(shown) as progress, quiet():
        variants = variants_of(arms)
        return write_arms(arms, variants, asked, folder, options, progress), variants


def judged_runs(
    plan: Plan,
    verdicts: Sequence[JudgeVerdict],
    sets: Sequence[AnswerSet],
    variants: Mapping[str, Variant],
    options: Mapping[str, Any],
) -> dict[str, LoadedRun]:
    """Return each arm's run: its header, and a row for each prompt's turn."""
    from lora_eval.fingerprint import fingerprint_data
    from lora_eval.judges.own_rows import notes
    from lora_eval.judges.rows import judged_result, judged_rows
    from lora_eval.models import hardware_info, package_versions
    from lora_eval.records import LoadedRun, Run

    asked = {name: options[name] for name in ("max_new_tokens", "temperature", "seed", "limit")}
    suite = plan.calls[0].suite
    found = {}
    for arm, rows in judged_rows(plan, verdicts, sets).items():
        run = Run(
            arm=arm,
            variant=variants[arm],
            suite=suite,
            suite_fingerprint=fingerprint_data(
                [suite, plan.judge, [row.prompt_sha256 for row in rows], asked]
            ),
            engine="transformers",
            dtype=options["dtype"],
            seeds={"answers": options["seed"]},
            limit=options["limit"],
            results=(judged_result(plan, rows),),
            packages=package_versions(),
            hardware=hardware_info(),
            notes=(f"judged by {plan.judge}", *notes(list(verdicts))),
        )
        found[arm] = LoadedRun(run, rows)
    return found


def _conclude(
    plan: Plan, runs: Mapping[str, LoadedRun], out: Path, rules: Gate | None, source: Path | None
) -> Comparison:
    """Return the comparison, gated, after runs and reports were written."""
    from lora_eval.compare import compare_loaded, write_comparison
    from lora_eval.judges.rows import FILTER, metric_of
    from lora_eval.records import EvalSuite, TaskEntry
    from lora_eval.runstore import write_run
    from lora_eval.stats.gate import gated

    name = plan.calls[0].suite
    entry = TaskEntry(task=name, metric=f"{metric_of(plan)},{FILTER}", role="target")
    for arm, loaded in runs.items():
        write_run(out / "runs" / arm, loaded.run, loaded.rows)
    base, *tuned = runs
    comparison = compare_loaded(
        runs,
        suite=EvalSuite(name=name, version="1", summary=f"judged by {plan.judge}", tasks=(entry,)),
        notes=next(iter(runs.values())).run.notes,
        title=f"{', '.join(tuned)} against {base} on {name}",
    )
    comparison = comparison.model_copy(update={"created": datetime.now(UTC).isoformat(timespec="seconds")})
    try:
        if rules is not None:
            comparison = gated(comparison, rules, str(source))
    finally:  # where the gate's file is at fault, what was judged is kept
        write_comparison(comparison, runs, out)
    return comparison


def _show(
    comparison: Comparison,
    out: Path,
    plan: Plan,
    verdicts: Sequence[JudgeVerdict],
    *,
    as_json: bool,
    silent: bool,
) -> None:
    from rich.console import Console

    from lora_eval.judges.report import report_verdicts
    from lora_eval.judges.tables import print_report
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
        print_report(report_verdicts(plan.calls[0].suite, verdicts, str(out / "judged")), console)
    click.echo(f"wrote {out / 'comparison.json'}, {out / 'report.md'} and {out / 'report.html'}", err=True)
