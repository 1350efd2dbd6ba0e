"""`lora-eval deploy`: a checked configuration for an inference server, or the reasons against it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lora_eval.protocols import DeployRequest
    from lora_eval.records import Deployment, Finding

_SHOWN = ("server", "version", "findings", "files")


@click.command(
    epilog="Status 3: a finding says that the server refuses an arm, or would answer with another model; "
    "nothing is written."
)
@click.argument("server", metavar="vllm|sglang|tgi|lorax")
@click.option("--base", metavar="[NAME=]ID_OR_PATH[@REV]", help="Model that the adapters are served on.")
@click.option(
    "--adapter", "adapters", multiple=True, metavar="[NAME=]ID_OR_PATH[@REV]",
    help="Adapter and the name that requests give it; repeatable.",
)  # fmt: skip
@click.option(
    "--model", metavar="[NAME=]ID_OR_PATH[@REV]",
    help="Whole model (merged, GPTQ, AWQ), in place of --base and --adapter.",
)  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path), help="New folder.")
@click.option(
    "--target", "targets", multiple=True, type=click.Choice(["compose", "kubernetes", "command"]),
    help="What to write; repeatable (default: all three).",
)  # fmt: skip
@click.option("--device", type=click.Choice(["gpu", "cpu"]), help="vllm only: its GPU or its CPU build.")
@click.option(
    "--dtype", type=click.Choice(["bfloat16", "float16", "float32"]),
    help="Of the weights while they are served (default: as they are stored).",
)  # fmt: skip
@click.option(
    "--max-model-len", type=click.IntRange(min=1), help="Tokens of one request (default: the model's own)."
)
@click.option(
    "--max-loras", type=click.IntRange(min=1), help="Adapters in one batch (default: enough for all of them)."
)
@click.option(
    "--tensor-parallel", type=click.IntRange(min=1),
    help="vllm and sglang: GPUs of one machine that share every layer (default: 1).",
)  # fmt: skip
@click.option(
    "--nodes", type=click.IntRange(min=1),
    help="vllm: machines that share out the layers, on Ray (default: 1).",
)  # fmt: skip
@click.option(
    "--replicas", type=click.IntRange(min=1),
    help="sglang: whole copies behind its router (default: 1).",
)  # fmt: skip
@click.option("--port", type=click.IntRange(1, 65535), help="On this machine (default: the server's own).")
@click.option("--json", "as_json", is_flag=True, help="Print the findings and files as JSON on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Print findings that forbid the deployment, and errors.")
def command(
    server: str,
    base: str | None,
    adapters: tuple[str, ...],
    model: str | None,
    out: Path,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> int:
    r"""Check whether a server will serve these arms as they were measured, and write its configuration.

    Judged from configurations, headers of weights and lineage.json: no server and no model is started. Each
    finding has a reason, where upstream says so, and the command that makes the arm servable. The folder
    holds compose.yaml, kubernetes.yaml, serve.sh, server.env, a README with sizes for this model,
    deployment.json, and the adapters under names that follow from their contents.

    \b
    Example:
      lora-eval deploy vllm --base ./base --adapter tuned=./adapter --out ./serving
      lora-eval deploy vllm --model ./merged --target compose --out ./serving
      lora-eval deploy sglang --base ./base-as-trained --adapter a=./a --adapter b=./b --out ./serving
      lora-eval deploy vllm --model ./merged --tensor-parallel 8 --nodes 2 --out ./serving
      lora-eval deploy sglang --model ./merged --replicas 4 --out ./serving
    """
    from lora_eval.deploy import deploy

    request = _request(base, adapters, model, {key: value for key, value in options.items() if value})
    silent = quiet or as_json
    done = deploy(server, request, out, lambda what: None if silent else click.echo(f"{what} ...", err=True))
    if as_json:
        data = done.model_dump(mode="json", include=set(_SHOWN))
        click.echo(json.dumps({key: data[key] for key in _SHOWN}, indent=2, ensure_ascii=False))
    else:
        _tell(done, out, quiet=quiet)
    return 3 if done.blocking else 0


def _request(
    base: str | None, adapters: tuple[str, ...], model: str | None, options: dict[str, Any]
) -> DeployRequest:
    """Return what is to be served (UsageError where it is not said, or said twice)."""
    from lora_eval.models import parse_arm, resolve_adapter, resolve_model
    from lora_eval.protocols import DeployRequest

    if (base is None) == (model is None):
        raise click.UsageError("give either --base with --adapter, or --model")
    if model is not None and adapters:
        raise click.UsageError("--adapter goes with --base; a merged model is given alone, as --model")
    if base is not None and not adapters:
        raise click.UsageError("--base needs at least one --adapter; a model alone is given as --model")
    name, path, revision = parse_arm(str(base or model))
    found: dict[str, Path] = {}
    for given in adapters:
        own, place, version = parse_arm(given)
        own = own or Path(place).name
        if own in found:
            raise click.UsageError(f"--adapter {given}: two adapters are called '{own}'; give NAME=PATH")
        found[own] = resolve_adapter(place, version)
    folder = resolve_model(path, revision)
    return DeployRequest(folder, name or Path(path).resolve().name, found, options)


def print_findings(findings: Iterable[Finding]) -> None:
    """Print what a server makes of its arms on stderr, with upstream's issue and the command that helps."""
    for finding in findings:
        click.echo(f"{finding.severity}: {finding.arm}: {finding.rule}: {finding.reason}", err=True)
        if finding.issue:
            click.echo(f"  see {finding.issue}", err=True)
        if finding.fix:
            click.echo(f"  fix: {finding.fix}", err=True)


def _tell(done: Deployment, out: Path, *, quiet: bool) -> None:
    print_findings(done.blocking if quiet else done.findings)
    if done.blocking:
        many = len(done.blocking) != 1
        said = f"{len(done.blocking)} finding{'s' * many} forbid{'s' * (not many)} it"
        click.echo(f"nothing written: {said}", err=True)
    elif not quiet:
        click.echo(f"wrote {out}: {', '.join(name for name in done.files if '/' not in name)}", err=True)
