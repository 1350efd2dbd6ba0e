"""`lora-eval verify`: is the exported model the one that was measured?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lora_eval.records import Verification
    from lora_eval.verify import Options

_ARM = "[NAME=][KIND:]PATH[@REV]"


@click.command()
@click.option(
    "--reference", required=True, metavar=_ARM, help="What was measured; KIND: base, adapter, merged."
)
@click.option("--candidate", required=True, metavar=_ARM, help="What ships; KIND: merged, gptq, awq.")
@click.option("--base", metavar="ID_OR_PATH[@REV]", help="The model under an adapter.")
@click.option(
    "--prompts", type=click.Path(path_type=Path, exists=True), metavar="FILE|RUN",
    help="Held-out rows (JSON lines: messages, text or prompt), or a run folder of compare (OUT/runs/ARM).",
)  # fmt: skip
@click.option(
    "--suite", "suites", multiple=True, metavar="NAME|PATH",
    help="Its items too: right-or-wrong answers paired by item, and the distributions on them.",
)  # fmt: skip
@click.option(
    "--limit", type=click.IntRange(min=1), help="Only the first N items of every task of the suite."
)
@click.option(
    "--samples", type=click.IntRange(min=1), default=64, show_default=True,
    help="Prompts (and items of the suite) whose distributions are compared.",
)  # fmt: skip
@click.option(
    "--new-tokens", type=click.IntRange(min=1), default=16, show_default=True,
    help="Length of the reference's greedy answer, which is compared too.",
)  # fmt: skip
@click.option(
    "--expect", type=click.Choice(["equal", "near"]),
    help="equal: within the reference's own rounding noise; near: no further than plain rounding to the "
    "candidate's bits, and usable (default: near where the candidate is quantized).",
)  # fmt: skip
@click.option(
    "--margin", type=click.FloatRange(min=0, min_open=True), default=0.02, show_default=True,
    help="What the suite's right-or-wrong items may lose, as a share.",
)  # fmt: skip
@click.option(
    "--tolerance", "tolerances", multiple=True, metavar="NAME=X,...",
    help="Limits that replace the default ones: kl_mean, kl_p99, kl_max, answer_kl (nats), top1, flips "
    "(shares).",
)  # fmt: skip
@click.option(
    "--quantize", type=click.Choice(["auto", "nf4", "none"]), default="auto",
    help="The base under an adapter; auto: as it was trained.",
)  # fmt: skip
@click.option(
    "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto",
    help="The reference's; auto: as trained, else as stored.",
)  # fmt: skip
@click.option(
    "--store", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="Where the reference's logits are kept, so that the next candidate needs them not computed again "
    "(default: the user's cache).",
)  # fmt: skip
@click.option("--no-store", is_flag=True, help="Keep no logits, and use none that are there.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, metavar="FILE", help="verification.json."
)
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON on stdout.")
@click.option("-q", "--quiet", "silent", is_flag=True, help="Print the verdict only.")
@click.option("-v", "--verbose", is_flag=True, help="Show what the libraries log.")
def command(
    reference: str, candidate: str, base: str | None, prompts: Path | None, out: Path, as_json: bool,
    silent: bool, verbose: bool, **options: Any,
) -> int:  # fmt: skip
    r"""Prove that the exported model is the measured one: its next-token distributions are the reference's.

    Both arms read the same prompts and the reference's own greedy answers. The record holds KL(reference ||
    candidate) per token, how often the likeliest token is the same, how many answers flip and after how many
    tokens, and the ratio of perplexities. A merged model must lie within the reference's own rounding noise,
    which is measured first; a quantized one no further away than plain rounding to its bits, measured too.
    Where it fails, the files are compared tensor by tensor, and the cause is named. Status 0: passed; 3: not
    the measured model.

    \b
    Example:
      lora-eval verify --base ./base --reference adapter:./adapter --candidate merged:./merged \
        --prompts held-out.jsonl --out verification.json
      lora-eval verify --reference merged:./merged --candidate gptq:./gptq --prompts runs/mine/runs/base \
        --suite ./my-suite --out verification-gptq.json
    """
    from lora_eval.cli.progress import progress_bar
    from lora_eval.models import parse_arm, resolve_model
    from lora_eval.models.quiet import quiet

    if prompts is None and not options["suites"]:
        raise click.UsageError("nothing to ask: give --prompts FILE, --suite NAME, or both")
    if options["no_store"] and options["store"]:
        raise click.UsageError("--store and --no-store exclude each other")
    with progress_bar(not (silent or as_json)) as progress, quiet(verbose):
        from lora_eval.evaluate import open_suite
        from lora_eval.verify import parse_arm_path, verify

        _, path, revision = parse_arm(base) if base else (None, "", None)
        folder = resolve_model(path, revision) if base else None
        suites = options["suites"]
        record = verify(
            parse_arm_path(reference, folder, option="--reference"),
            parse_arm_path(candidate, folder, option="--candidate"),
            prompts,
            out,
            _chosen(options),
            progress,
            suite=open_suite(suites, limit=options["limit"]) if suites else None,
        )
    print_verification(record, out, as_json=as_json, silent=silent)
    return 0 if record.passed else 3


def _chosen(options: dict[str, Any]) -> Options:
    """The stage's options from the command's."""
    from lora_eval.verify import Options, default_folder, parse_tolerance

    return Options(
        **{name: options[name] for name in ("samples", "new_tokens", "dtype", "quantize", "margin")},
        expected=options["expect"],
        tolerance=parse_tolerance(options["tolerances"]),
        store=None if options["no_store"] else options["store"] or default_folder(),
    )


def print_verification(record: Verification, out: Path, *, as_json: bool, silent: bool) -> None:
    """Print the record on stdout (`as_json`), figures and verdict on stderr."""
    from lora_eval.schema import dump_record

    if as_json:
        click.echo(dump_record(record), nl=False)
    if not silent:
        for line in (*figures(record), f"limits: {record.tolerance_source}"):
            click.echo(line, err=True)
    for failure in record.failures:
        click.echo(f"failed: {failure}", err=True)
    for cause in record.causes:
        click.echo(f"cause: {cause}", err=True)
    verdict = "passed" if record.passed else "failed: the candidate is not the model that was measured"
    click.echo(f"{verdict} ({out})", err=True)


def figures(record: Verification) -> list[str]:
    """Return what was measured, in lines for people."""
    found = record.measured
    answers = "" if found.answer_mean_kl is None else f", on the answers {found.answer_mean_kl:.2g}"
    agreed = ""
    if found.greedy_agreement is not None:
        agreed = f", agreeing for {found.greedy_agreement:.1f} of {found.answer_tokens:.1f} tokens"
    lines = [
        f"mean KL {found.mean_kl:.2g} nats{answers} (p99 {found.p99_kl:.2g}, largest {found.max_kl:.2g}), "
        f"same likeliest token at {found.top1_agreement:.2%} of {found.tokens} tokens, {found.item_flips} of "
        f"{found.items} answers differ{agreed}"
    ]
    if record.perplexity is not None:
        ratio = record.perplexity
        low, high = ratio.ratio_low, ratio.ratio_high
        interval = "" if low is None or high is None else f" ({low:.4f} to {high:.4f})"
        lines.append(f"perplexity of held-out text: {ratio.ratio:.4f} times the reference's{interval}")
    suite = record.suite
    if suite is not None and suite.verdict is not None:
        lines.append(
            f"suite {suite.name}: {suite.lost} right items became wrong, {suite.gained} wrong ones right, of "
            f"{suite.items}; {suite.verdict.replace('_', ' ')} at a margin of {suite.margin:g}"
        )
    return lines
