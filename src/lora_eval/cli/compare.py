"""`lora-eval compare`: base and arms on the same items, tested, with a verdict for each task."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_eval.cli.compare_options import (
    check_asked,
    check_gate,
    check_method,
    check_out,
    open_store,
    parse_arms,
    parse_batch_tokens,
    parse_engine_option,
    parse_margin,
    parse_pairs,
    read_gate,
    read_suite,
    training_runs,
)
from lora_eval.cli.judge_options import SUITES as JUDGED
from lora_eval.cli.judge_options import judged_suite_options
from lora_eval.errors import InputError

if TYPE_CHECKING:
    from lora_eval.engines.parallel import Processes
    from lora_eval.evaluate import Evaluated
    from lora_eval.records import Comparison, Gate


@click.command()
@click.option("--base", metavar="ID_OR_PATH[@REV]", help="The model before fine-tuning.")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="[NAME=]PATH[@REV]",
    help="A LoRA adapter; repeatable. One NAME for several: training runs of one arm.",
)
@click.option(
    "--arm", "others", multiple=True, metavar="NAME=KIND:PATH",
    help="A merged, gptq or awq folder, or served:URL#MODEL of a running server.",
)  # fmt: skip
@click.option("--suite", "suites", multiple=True, metavar="NAME_OR_PATH", help="What to run; repeatable.")
@click.option("--tasks", metavar="A,B", help="lm-eval tasks, groups or tags by name.")
@click.option(
    "--include-path", metavar="DIR", help="Folder with lm-eval task files of your own, for --tasks."
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N items of every task.")
@click.option("--num-fewshot", type=click.IntRange(min=0), help="Number of shots, for every task.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    help="auto: as trained, else as stored.",
)
@click.option(
    "--quantize",
    type=click.Choice(["auto", "nf4", "none"]),
    default="auto",
    help="The resident base; auto: as the adapter was trained.",
)
@click.option("--add-original", is_flag=True, help="Add the unquantized base as the arm base-16bit.")
@click.option("--engine", default="transformers", show_default=True, help="What computes; see `plugins`.")
@click.option(
    "--engine-option",
    "engine_options",
    multiple=True,
    metavar="NAME=VALUE",
    help="Setting of vLLM, by its own name (tensor_parallel_size=2); repeatable.",
)
@click.option("--batch-tokens", default="auto", metavar="auto|N", help="Tokens forwarded at once.")
@click.option("--store", metavar="FILE|none", help="Answers of earlier runs; default: one for each user.")
@click.option(
    "--check-reference",
    type=click.IntRange(min=1),
    metavar="K",
    help="Answer K random items with stock lm-eval too, and print what differs.",
)
@click.option(
    "--fixed-fewshot", is_flag=True, help="One draw of shots for all items: another benchmark, much cheaper."
)
@click.option("--seed", type=int, help="Seed of shots and sampling (default: the suite's).")
@click.option("--pair", "pairs", multiple=True, metavar="A,B", help="Also test arm B against A; repeatable.")
@click.option(
    "--method",
    type=click.Choice(["auto", "bootstrap", "permutation"]),
    default="auto",
    help="auto: exact or t; bootstrap: BCa interval, sign-flip test; permutation: sign-flip test.",
)
@click.option("--margin", "margins", multiple=True, metavar="TASK=X", help="Loss that may pass; repeatable.")
@click.option(
    "--gate", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Rules that decide the exit status; see `lora-eval gate`.",
)  # fmt: skip
@click.option(
    "--plan", "only_plan", is_flag=True,
    help="Print what a comparison of these tasks can find; no model is loaded.",
)  # fmt: skip
@click.option(
    "--sequential", is_flag=True,
    help="Items in random order, look by look; a task stops as soon as it is decided.",
)  # fmt: skip
@judged_suite_options
@click.option("--strict", is_flag=True, help="End with status 4 where the gate is inconclusive.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("comparison"), help="Folder; default: comparison."
)
@click.option("--json", "as_json", is_flag=True, help="Print comparison.json on stdout.")
@click.option("-q", "--quiet", "silent", is_flag=True, help="Print the verdict's sentence only.")
@click.option("-v", "--verbose", is_flag=True, help="Show what the libraries log.")
def command(
    base: str | None,
    adapters: tuple[str, ...],
    others: tuple[str, ...],
    out: Path,
    as_json: bool,
    silent: bool,
    verbose: bool,
    only_plan: bool,
    **options: Any,
) -> int:
    r"""Score base and adapters on the same items and test the differences.

    Adapters share one copy of the base's weights; one that changes them (PiSSA, OLoRA) gets its own. The base
    of a QLoRA adapter is quantized as it was in training, and the report says so. The base is first compared
    with itself: a difference that is not exactly zero ends with status 3. Interrupted or killed, the same
    command computes only the rest.

    With --gate: status 0 for PASS, and for INCONCLUSIVE without --strict; 3 for FAIL; 4 for INCONCLUSIVE with
    --strict.

    OUT holds comparison.json, report.html, report.md and runs/ARM/.

    --plan needs no model: it says which differences the tasks' numbers of items can find, and how many items
    would find others; with the figures of an earlier comparison, where OUT holds one.

    Several processes, each with its own copy of the model, share the work:

    \b
      accelerate launch --config_file templates/accelerate/cpu-two.yaml -m lora_eval compare ...

    \b
    Example:
      lora-eval compare --plan --suite pocket --gate gate.yaml
      lora-eval compare --base ./base --adapter ./adapter --suite pocket --out runs/mine
      lora-eval compare --base org/model@v1 --adapter a=./a --adapter b=./b --tasks hellaswag,gsm8k
      lora-eval compare --base ./base --adapter a=./seed1 --adapter a=./seed2 --suite pocket
      lora-eval compare --base ./base --adapter ./adapter --arm shipped=merged:./merged --suite pocket
      lora-eval compare --base ./base --adapter ./adapter --suite pocket --gate gate.yaml --strict
      lora-eval compare --base ./base --adapter ./adapter --suite open-llm --gate gate.yaml --sequential
    """
    from lora_eval.cli.compare_judged import check_not_judged, compare_judged
    from lora_eval.cli.gate import exit_status
    from lora_eval.cli.progress import progress_bar
    from lora_eval.engines.parallel import connected
    from lora_eval.models.processes import check_launch
    from lora_eval.models.quiet import quiet

    if set(options["suites"]) & set(JUDGED):
        return compare_judged(base, adapters, others, out, options | {"plan": only_plan}, as_json, silent)
    check_not_judged(options)
    if only_plan:
        _plan(out, options, as_json=as_json)
        return 0
    if base is None:
        raise InputError("nothing to compare: give the model before fine-tuning with --base ID_OR_PATH")
    check_launch()
    with connected() as processes:
        shown = not silent and processes.is_first
        with progress_bar(shown) as progress, quiet(verbose):
            comparison = _compare(base, adapters, others, out, options, progress, processes)
    if comparison is None:
        return 0  # the first process says it
    _print(comparison, out, as_json=as_json, silent=silent)
    return exit_status(comparison.gate, strict=options["strict"])


def _plan(out: Path, options: dict[str, Any], *, as_json: bool) -> None:
    """Print what the comparison will be able to find."""
    from lora_eval.cli.compare_plan import check_tasks, earlier_comparison, make_plan, show_plan

    check_asked(options)
    margins = dict(parse_margin(text) for text in options["margins"])
    gate = read_gate(options["gate"], strict=options["strict"])
    earlier = earlier_comparison(out)
    suite = read_suite(options)
    if gate is not None:
        check_tasks(gate, suite, options["gate"])
    show_plan(make_plan(suite, margins, gate, earlier), suite.name, as_json=as_json)


def _compare(
    base: str,
    adapters: tuple[str, ...],
    others: tuple[str, ...],
    out: Path,
    options: dict[str, Any],
    progress: Any,
    processes: Processes,
) -> Comparison | None:
    """Return the comparison that was written; None in processes other than the first."""
    from lora_eval.cli.compare_sequential import check_sequential, decider
    from lora_eval.evaluate import evaluate_arms
    from lora_eval.registry import find_plugin

    processes.first("checking --out", lambda: check_out(out))
    gate = read_gate(options["gate"], strict=options["strict"])
    batch_tokens = parse_batch_tokens(options["batch_tokens"])
    margins = dict(parse_margin(text) for text in options["margins"])
    check_asked(options)
    find_plugin("engine", options["engine"])
    engine_options = dict(parse_engine_option(text) for text in options["engine_options"])
    arms = parse_arms(base, adapters, others, options, served=True)
    arms.check()
    more_pairs = parse_pairs(options["pairs"], arms)
    members = training_runs(arms.adapters)
    if options["sequential"]:
        check_sequential(arms, options)
    progress("loading the tasks", 0, 1)
    suite = read_suite(options)
    if not arms.adapters and not arms.alone:
        raise InputError("nothing to compare the base with: give --adapter PATH or --arm NAME=KIND:PATH")
    check_method(options["method"], suite, members)
    if gate is not None:
        check_gate(gate, options["gate"], arms, suite)
    settings = {
        "suite": suite.record,
        "groups": suite.groups,
        "margins": margins,
        "more_pairs": more_pairs,
        "training_runs": members,
        "method": options["method"],
    }
    with open_store(options["store"], spoken=processes.is_first) as store:
        found = evaluate_arms(
            arms,
            suite,
            out / "runs",
            progress=progress,
            batch_tokens=batch_tokens,
            engine=options["engine"],
            engine_options=engine_options,
            store=store,
            check_reference=options["check_reference"],
            decide=decider(settings, gate, options["gate"]) if options["sequential"] else None,
            processes=processes,
        )
    if not processes.is_first:
        return None
    return _conclude(found, settings, gate, suite.name, out, options["gate"])


def _conclude(
    found: Evaluated, settings: dict[str, Any], gate: Gate | None, suite: str, out: Path, source: Path | None
) -> Comparison:
    """Return the comparison of the runs that are there, after it was written."""
    from lora_eval.compare import compare_loaded, load_runs, write_comparison
    from lora_eval.stats.gate import gated

    runs = load_runs(found.runs)
    arms = dict.fromkeys(name.partition("#")[0] for name in list(runs)[1:])
    comparison = compare_loaded(
        runs,
        **settings,
        controls=found.controls,
        timing=found.timing,
        notes=found.notes,
        sequential=found.sequential,
        title=f"{', '.join(arms)} against {next(iter(runs))} on {suite}",
    )
    created = datetime.now(UTC).isoformat(timespec="seconds")
    comparison = comparison.model_copy(update={"created": created})
    try:
        if gate is not None:
            comparison = gated(comparison, gate, str(source))
    finally:  # where the gate's file is at fault, what was scored is kept
        write_comparison(comparison, runs, out)
    return comparison


def _print(comparison: Comparison, out: Path, *, as_json: bool, silent: bool) -> None:
    from rich.console import Console

    from lora_eval.reports.controls import reference_checks, reference_line
    from lora_eval.reports.terminal import print_comparison
    from lora_eval.reports.words import headline
    from lora_eval.schema import dump_record

    if as_json:
        click.echo(dump_record(comparison), nl=False)
    elif silent:
        click.echo(headline(comparison))
    else:
        print_comparison(comparison, Console())
    for note in (*comparison.notes, *map(reference_line, reference_checks(comparison))):
        click.echo(note, err=True)
    click.echo(f"wrote {out / 'comparison.json'}, {out / 'report.html'} and {out / 'report.md'}", err=True)
