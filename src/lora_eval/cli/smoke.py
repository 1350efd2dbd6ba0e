"""`lora-eval smoke`: does the running server serve what was measured?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_eval.errors import InputError

if TYPE_CHECKING:
    from lora_eval.records import Smoke
    from lora_eval.smoke import Asked

_SAID = {True: "passed", False: "FAILED", None: "not checked"}


@click.command()
@click.argument("url")
@click.option(
    "--base", metavar="[NAME=]ID_OR_PATH[@REV]", help="The model under the adapters; NAME as served."
)
@click.option(
    "--adapter", "adapters", multiple=True, metavar="NAME=PATH[@REV]",
    help="An adapter and the name under which it is served. Repeatable.",
)  # fmt: skip
@click.option(
    "--model", "models", multiple=True, metavar="NAME=DIR",
    help="A whole model (merged, GPTQ, AWQ) and its served name. Repeatable.",
)  # fmt: skip
@click.option(
    "--prompts", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
    help="Prompts to ask too (JSON lines: messages, text or prompt); 32 of a longer file.",
)  # fmt: skip
@click.option("--allow-load", is_flag=True, help="Load and unload a copy of an adapter: the server changes.")
@click.option("--load", is_flag=True, help="Measure answers per second; only on a server of this machine.")
@click.option(
    "--quantize", type=click.Choice(["auto", "nf4", "none"]), default="auto",
    help="The base here; auto: as the adapters were trained.",
)  # fmt: skip
@click.option(
    "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto",
    help="In which to answer here, as the server computes; auto: as trained, else as stored.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON on stdout.")
@click.option("-q", "--quiet", "silent", is_flag=True, help="Print the verdict and what failed only.")
@click.option("-v", "--verbose", is_flag=True, help="Show what the libraries log.")
def command(url: str, as_json: bool, silent: bool, verbose: bool, **options: Any) -> int:
    r"""Ask a running server whether it serves what was measured.

    URL ends with /v1, as OpenAI's clients take it. Each name must answer with its own weights (not with the
    base, not with another adapter), with the greedy answers and log-probabilities that the same weights give
    here; conversations must become the same token ids, answers end at the stop token, and requests for
    several models at a time not disturb each other. A key is read from $LORA_EVAL_SERVER_KEY. Status 0:
    passed; 3: a check failed.

    \b
    Example:
      lora-eval smoke http://127.0.0.1:8000/v1 --base ./base --adapter support=./adapter
      lora-eval smoke http://127.0.0.1:8000/v1 --model shipped=./merged --json
      lora-eval smoke http://127.0.0.1:8000/v1 --model shipped=./merged --prompts held-out.jsonl
      lora-eval smoke http://127.0.0.1:8000/v1 --base ./base --adapter support=./adapter --allow-load --load
    """
    from lora_eval.cli.progress import progress_bar
    from lora_eval.models.quiet import quiet

    with progress_bar(not (silent or as_json)) as progress, quiet(verbose):
        from lora_eval.smoke import smoke

        record = smoke(url, _asked(options), progress)
    _print(record, as_json=as_json, silent=silent)
    return 0 if record.passed else 3


def _asked(options: dict[str, Any]) -> Asked:
    from lora_eval.evaluate.arms import Arms, choose_dtype, choose_quantization
    from lora_eval.models import parse_arm, resolve_adapter, resolve_model
    from lora_eval.smoke import Asked

    base_name, folder = None, None
    if options["base"]:
        base_name, place = served_name(options["base"], "--base", required=False)
        _, path, revision = parse_arm(place)
        folder = resolve_model(path, revision)
    adapters = named_folders(options["adapters"], "--adapter", resolve_adapter)
    models = named_folders(options["models"], "--model", resolve_model)
    dtype, quantization = options["dtype"], None
    if folder is not None and adapters:
        arms = Arms(folder, adapters, dtype=dtype, quantize=options["quantize"])
        dtype, (quantization, _) = choose_dtype(arms), choose_quantization(arms)
    return Asked(
        base=folder,
        base_name=base_name,
        adapters=adapters,
        models=models,
        dtype=dtype,
        model_dtype=options["dtype"],
        quantization=quantization,
        prompts=options["prompts"],
        allow_load=options["allow_load"],
        load=options["load"],
    )


def named_folders(texts: tuple[str, ...], option: str, resolve: Any) -> dict[str, Path]:
    """Return folders by the served names of `NAME=PATH`.

    Raises:
        InputError: there is no name, or one is given twice.
        ModelError: there is no such folder.
    """
    from lora_eval.models import parse_arm

    found: dict[str, Path] = {}
    for text in texts:
        name, place = served_name(text, option)
        if name in found:
            raise InputError(f"{option} {text}: the name '{name}' is given twice")
        _, path, revision = parse_arm(place)
        found[str(name)] = resolve(path, revision)
    return found


def served_name(text: str, option: str, *, required: bool = True) -> tuple[str | None, str]:
    """Return (served name, place) of `NAME=PATH`; a served name may hold `/` and `:`.

    Raises:
        InputError: there is no name, and one is required.
    """
    name, equals, place = text.partition("=")
    if equals and name and place and not (not required and Path(text).expanduser().exists()):
        return name, place
    if required:
        raise InputError(f"{option} {text}: expected NAME=PATH, with the name under which it is served")
    return None, text


def _print(record: Smoke, *, as_json: bool, silent: bool) -> None:
    """Print the record on stdout (`as_json`), the checks on stderr."""
    from lora_eval.schema import dump_record

    if as_json:
        click.echo(dump_record(record), nl=False)
    for check in record.checks:
        if not silent or check.passed is False:
            arm = f"{check.arm}: " if check.arm else ""
            click.echo(f"{_SAID[check.passed]:<11}  {check.name:<24}  {arm}{check.detail}", err=True)
    for load in record.load:
        who = (
            f"{load.adapters} adapter{'s in turn' if load.adapters > 1 else ''}" if load.adapters else "base"
        )
        click.echo(
            f"{who}: not measured: {load.reason}" if load.reason else
            f"{who}: {load.requests_per_second} answers of {load.new_tokens} tokens a second, "
            f"{load.p50_ms:.0f} / {load.p90_ms:.0f} / {load.p99_ms:.0f} ms (p50 / p90 / p99), "
            f"{load.concurrency} at a time",
            err=True,
        )  # fmt: skip
    if not silent:
        click.echo(f"limits: {record.tolerance_source}", err=True)
    click.echo(_verdict(record), err=True)


def _verdict(record: Smoke) -> str:
    server = f"{record.url}{f' ({record.server})' if record.server else ''}"
    failed = sum(check.passed is False for check in record.checks)
    unasked = sum(check.passed is None for check in record.checks)
    left = f"; {unasked} could not be checked" if unasked else ""
    if record.passed:
        return f"passed: {server} serves what was measured, {len(record.checks)} checks{left}"
    return f"failed: {server}, {failed} of {len(record.checks)} checks{left}"
