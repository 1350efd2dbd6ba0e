"""`lora-eval judge plan`, `run` and `calibrate`: what it would cost, the verdicts, and whether to trust
them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_eval.cli.judge_options import judge_options, local_path, plan_options, read_plan, read_profile
from lora_eval.cli.judge_trust import check_after, check_before, keep, trust_options

if TYPE_CHECKING:
    from lora_eval.judges.calls import Plan
    from lora_eval.judges.run import Outcome
    from lora_eval.protocols import Progress


@click.command(epilog="Nothing is asked of any endpoint, and no key is read.")
@plan_options
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="A folder of judge run: what it holds is not counted again.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the forecast as JSON on stdout.")
def plan(out: Path | None, as_json: bool, **options: Any) -> None:
    r"""Say what a run would ask and cost, and the smallest difference that it could find.

    \b
    Example:
      lora-eval judge plan --suite pairwise --judge openai-text --judge-model MODEL \
          --answers base=base.json --answers tuned=tuned.json
    """
    from lora_eval.judges.forecast import forecast

    found = forecast(read_plan(options), out)
    if as_json:
        from lora_eval.schema import dump_record

        click.echo(dump_record(found), nl=False)
    else:
        from lora_eval.judges.tables import forecast_text

        click.echo(forecast_text(found))


@click.command(
    epilog="Exit status: 0; 2 the endpoint refuses or fails; 3 the judge was refused; 5 --max-cost was "
    "reached. After any of them the same command goes on, and repeats no finished call."
)
@plan_options
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, metavar="DIR",
              help="Folder of verdicts.jsonl, one line for each finished call.")  # fmt: skip
@click.option("--max-cost", type=click.FloatRange(0), metavar="DOLLARS",
              help="Never spend more; needed where the profile has a price.")  # fmt: skip
@trust_options
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar.")
def run(
    out: Path, max_cost: float | None, calibration: Path | None, trust_judge: bool, as_json: bool,
    quiet: bool, **options: Any,
) -> None:  # fmt: skip
    r"""Let a judge compare or rate the answers, and report what it says.

    A judge is refused where it did not pass its calibration (given, or this user's last one of that judge),
    and where its verdicts here follow the position of the answers. What it said is stored in any case.

    \b
    Example:
      lora-eval judge run --suite pairwise --judge openai-text --judge-model MODEL --max-cost 2 \
          --answers base=base.json --answers tuned=tuned.json --out judged
    """
    from lora_eval.judges.report import report_verdicts

    made = read_plan(options)
    told = check_before(made.profile, calibration, trusted=trust_judge)
    outcome = ask(made, local_path(options["judge"], options["judge_model"]), out, max_cost, quiet)
    for note in (*told, *check_after(outcome.verdicts, trusted=trust_judge)):
        click.echo(f"Note: {note}", err=True)
    report = report_verdicts(options["suite"], outcome.verdicts, str(out))
    if as_json:
        from lora_eval.schema import dump_record

        click.echo(dump_record(report), nl=False)
        return
    from rich.console import Console

    from lora_eval.judges.tables import print_report

    print_report(report, Console())


@click.command(
    epilog="Writes DIR/calibration.json; later runs of this user with the same judge go by it. Exit status: "
    "0 the judge may be used; 3 it is refused; 5 --max-cost was reached."
)
@judge_options
@click.option("--pairs", type=click.Path(path_type=Path, dir_okay=False), multiple=True, required=True,
              metavar="FILE",
              help="Rows {prompt, chosen, rejected}, or {question, answer_a, answer_b, label}.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, metavar="DIR",
              help="Folder of verdicts.jsonl and calibration.json.")  # fmt: skip
@click.option("--max-cost", type=click.FloatRange(0), metavar="DOLLARS",
              help="Never spend more; needed where the profile has a price.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the calibration as JSON on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar.")
def calibrate(
    judge: str, judge_model: str | None, judge_url: str | None, pairs: tuple[Path, ...], out: Path,
    max_cost: float | None, as_json: bool, quiet: bool,
) -> int:  # fmt: skip
    r"""Measure a judge on pairs whose better answer is known.

    \b
    Example:
      lora-eval judge calibrate --judge vllm-choice --judge-model my-judge \
          --pairs preferences.jsonl --out judge-check
    """
    from lora_eval.judges import calibrate as measure
    from lora_eval.judges.tables import calibration_text
    from lora_eval.schema import dump_record, write_record

    made = measure.calibration_plan(read_profile(judge, judge_model, judge_url), measure.read_pairs(pairs))
    outcome = ask(made, local_path(judge, judge_model), out, max_cost, quiet)
    found = measure.calibrate(made, outcome.verdicts)
    write_record(out / "calibration.json", found)
    keep(found)
    click.echo(dump_record(found) if as_json else calibration_text(found), nl=not as_json)
    return 0 if found.passed else 3


def ask(made: Plan, local: str | None, out: Path, max_cost: float | None, quiet: bool) -> Outcome:
    """Return what the plan's judge says, after it was asked (`local`: opened there); says on stderr what was
    done.
    """
    from lora_eval.cli.progress import progress_bar
    from lora_eval.judges.run import run_plan

    with progress_bar(not quiet) as progress:
        if local is not None:
            outcome = _run_locally(made, local, out, progress)
        else:
            outcome = run_plan(made, out, max_cost=max_cost, progress=progress)
    said = f"{outcome.asked} calls made, {outcome.known} known before, {outcome.retried} tried again"
    click.echo(f"{said}, ${outcome.spent:.4f} spent in all", err=True)
    for note in outcome.notes:
        click.echo(f"Note: {note}", err=True)
    return outcome


def _run_locally(made: Plan, path: str, out: Path, progress: Progress) -> Outcome:
    from lora_eval.cli.judge_local import open_judge
    from lora_eval.judges.local import run_locally
    from lora_eval.models.quiet import quiet

    with quiet():
        return run_locally(made, out, open_judge(path, made.profile.model or "", progress), progress)
