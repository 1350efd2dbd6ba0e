"""`lora-eval verify`: is the exported model the one that was measured?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lora_eval.records import Verification

_ARM = "[NAME=][KIND:]PATH[@REV]"


@click.command()
@click.option(
    "--reference", required=True, metavar=_ARM, help="What was measured; KIND: base, adapter, merged."
)
@click.option("--candidate", required=True, metavar=_ARM, help="What ships; KIND: merged, gptq, awq.")
@click.option("--base", metavar="ID_OR_PATH[@REV]", help="The model under an adapter.")
@click.option(
    "--prompts", required=True, type=click.Path(path_type=Path, exists=True), metavar="FILE|RUN",
    help="Held-out rows (JSON lines: messages, text or prompt), or a run folder of compare (OUT/runs/ARM).",
)  # fmt: skip
@click.option("--samples", type=click.IntRange(min=1), default=64, show_default=True, help="Prompts to use.")
@click.option(
    "--new-tokens", type=click.IntRange(min=1), default=16, show_default=True,
    help="Length of the reference's greedy answer, which is compared too.",
)  # fmt: skip
@click.option(
    "--expect", type=click.Choice(["equal", "near"]),
    help="equal: within the reference's own rounding noise; near: within the limits for 4-bit weights "
    "(default: near where the candidate is quantized).",
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
    "--out", type=click.Path(path_type=Path), required=True, metavar="FILE", help="verification.json."
)
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON on stdout.")
@click.option("-q", "--quiet", "silent", is_flag=True, help="Print the verdict only.")
@click.option("-v", "--verbose", is_flag=True, help="Show what the libraries log.")
def command(
    reference: str, candidate: str, base: str | None, prompts: Path, out: Path, as_json: bool, silent: bool,
    verbose: bool, **options: Any,
) -> int:  # fmt: skip
    r"""Prove that the exported model is the measured one: its next-token distributions are the reference's.

    Both arms read the same prompts and the reference's own greedy answers. The record holds KL(reference ||
    candidate) per token, how often the likeliest token is the same, and how many answers flip. A merged model
    must lie within the reference's own rounding noise, which is measured first; a quantized one within stated
    limits. Status 0: passed; 3: not the measured model.

    \b
    Example:
      lora-eval verify --base ./base --reference adapter:./adapter --candidate merged:./merged \
        --prompts held-out.jsonl --out verification.json
      lora-eval verify --reference merged:./merged --candidate gptq:./gptq --prompts runs/mine/runs/base \
        --out verification-gptq.json
    """
    from lora_eval.cli.progress import progress_bar
    from lora_eval.models import parse_arm, resolve_model
    from lora_eval.models.quiet import quiet

    with progress_bar(not (silent or as_json)) as progress, quiet(verbose):
        from lora_eval.verify import Options, parse_arm_path, parse_tolerance, verify

        _, path, revision = parse_arm(base) if base else (None, "", None)
        folder = resolve_model(path, revision) if base else None
        record = verify(
            parse_arm_path(reference, folder, option="--reference"),
            parse_arm_path(candidate, folder, option="--candidate"),
            prompts,
            out,
            Options(
                samples=options["samples"],
                new_tokens=options["new_tokens"],
                expected=options["expect"],
                tolerance=parse_tolerance(options["tolerances"]),
                dtype=options["dtype"],
                quantize=options["quantize"],
            ),
            progress,
        )
    _print(record, out, as_json=as_json, silent=silent)
    return 0 if record.passed else 3


def _print(record: Verification, out: Path, *, as_json: bool, silent: bool) -> None:
    from lora_eval.schema import dump_record

    if as_json:
        click.echo(dump_record(record), nl=False)
    found = record.measured
    if not silent:
        answers = "" if found.answer_mean_kl is None else f", on the answers {found.answer_mean_kl:.2g}"
        click.echo(
            f"mean KL {found.mean_kl:.2g} nats{answers} (p99 {found.p99_kl:.2g}, largest "
            f"{found.max_kl:.2g}), same likeliest token at {found.top1_agreement:.2%} of {found.tokens} "
            f"tokens, {found.item_flips} of {found.items} answers differ",
            err=True,
        )
        click.echo(f"limits: {record.tolerance_source}", err=True)
    for failure in record.failures:
        click.echo(f"failed: {failure}", err=True)
    verdict = "passed" if record.passed else "failed: the candidate is not the model that was measured"
    click.echo(f"{verdict} ({out})", err=True)
