"""`lora-eval serve`: a local vLLM for base and adapters or an exported model, or `transformers serve`."""

from __future__ import annotations

import contextlib
import ipaddress
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

_BLOCKING = ("refused", "ignored")

if TYPE_CHECKING:
    from lora_eval.records import Finding
    from lora_eval.serve import LocalServer, Serving, WholeModel


@click.command(
    epilog="Status 3: vLLM would refuse an arm, or answer with another model than the measured one; nothing "
    "is started."
)
@click.option(
    "--base", metavar="[NAME=]ID_OR_PATH[@REV]", help="The model under the adapters; its name: base."
)
@click.option(
    "--adapter", "adapters", multiple=True, metavar="NAME=PATH[@REV]",
    help="An adapter and the name to serve it under. Repeatable.",
)  # fmt: skip
@click.option("--model", metavar="[NAME=]DIR", help="Instead: a whole model (merged, GPTQ); its name: model.")
@click.option(
    "--server", type=click.Choice(["vllm", "transformers"]), default="vllm", show_default=True,
    help="transformers: whole models only, and no log-probabilities.",
)  # fmt: skip
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Another one opens it to other machines."
)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: a free one.")
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto")
@click.option("--allow-load", is_flag=True, help="Adapters may be loaded and unloaded over HTTP.")
@click.option(
    "--timeout", type=click.IntRange(min=1), default=900, show_default=True, help="Seconds to start."
)
@click.option(
    "--log", type=click.Path(path_type=Path, dir_okay=False), help="Where the server's output goes."
)
@click.option(
    "--json", "as_json", is_flag=True, help="When it is ready, print URL and names as JSON on stdout."
)
@click.option("-q", "--quiet", "silent", is_flag=True, help="Print errors only.")
@click.argument("more", nargs=-1, metavar="[-- ARGUMENTS_OF_THE_SERVER]")
def command(port: int, timeout: int, log: Path | None, as_json: bool, silent: bool, **options: Any) -> int:
    r"""Serve base and adapters, or an exported model, with a local vLLM until Ctrl-C or SIGTERM.

    Arms are checked as by `deploy` first. It says when every model has answered once. vLLM is looked for in
    the Python of $LORA_EVAL_VLLM_PYTHON, or in this one. However this command ends, by SIGKILL too, no
    process of the server is left. A key in $LORA_EVAL_SERVER_KEY is asked of clients.

    \b
    Example:
      lora-eval serve --base ./base --adapter support=./adapter
      lora-eval serve --model shipped=./merged --port 8001 -- --max-model-len 4096
      lora-eval serve --model shipped=./merged --server transformers
    """
    from lora_eval.cli.deploy import print_findings
    from lora_eval.cli.progress import progress_bar
    from lora_eval.models.quiet import quiet
    from lora_eval.serve import LocalServer

    serving = _serving(options)
    with quiet():
        serving.check()
        findings = _findings(serving)
    print_findings(found for found in findings if not silent or found.severity in _BLOCKING)
    if any(found.severity in _BLOCKING for found in findings):
        click.echo("nothing started: these arms would not be served as they were measured", err=True)
        return 3
    if not silent:
        for line in _warnings(serving):
            click.echo(line, err=True)
    try:
        with contextlib.ExitStack() as stack:
            with progress_bar(not silent) as progress:
                server = LocalServer(serving, progress, port=port, timeout=timeout, log=log)
                stack.enter_context(server)
            _say(server, serving, as_json=as_json, silent=silent)
            server.wait()
    except KeyboardInterrupt:
        if not silent:
            click.echo(f"stopped; no process of {serving.title} is left", err=True)
    return 0


def _serving(options: dict[str, Any]) -> Serving | WholeModel:
    from lora_eval.cli.smoke import named_folders, served_name
    from lora_eval.models import parse_arm, resolve_adapter, resolve_model
    from lora_eval.serve import Serving, WholeModel, check_whole

    if (options["base"] is None) == (options["model"] is None):
        raise click.UsageError("give --base with --adapter, or --model")
    if options["model"] and options["adapters"]:
        raise click.UsageError("--adapter is for a base: give the model as --base")
    option = "--base" if options["base"] else "--model"
    name, place = served_name(options["base"] or options["model"], option, required=False)
    _, path, revision = parse_arm(place)
    whole = options["server"] == "transformers"
    if whole:
        check_whole(Path(path).expanduser(), name or "model")
    kind = WholeModel if whole else Serving
    return kind(
        resolve_model(path, revision),
        name or option.removeprefix("--"),
        named_folders(options["adapters"], "--adapter", resolve_adapter),
        options["host"],
        options["dtype"],
        options["allow_load"],
        tuple(options["more"]),
    )


def _findings(serving: Serving | WholeModel) -> list[Finding]:
    """What the local vLLM makes of the arms; transformers opens what it measured."""
    from lora_eval.deploy import lint
    from lora_eval.protocols import DeployRequest
    from lora_eval.serve import WholeModel, find_vllm

    if isinstance(serving, WholeModel):
        return []
    options = {"device": "cpu"} if find_vllm().on_cpu else {}
    return lint("vllm", DeployRequest(serving.model, serving.name, serving.adapters, options))


def _warnings(serving: Serving | WholeModel) -> list[str]:
    from lora_eval.engines.http_client import is_loopback
    from lora_eval.serve import WholeModel

    host = serving.host
    said = list(serving.notes()) if isinstance(serving, WholeModel) else []
    if not is_loopback(f"http://{f'[{host}]' if _is_v6(host) else host}"):
        key = "" if said else "; $LORA_EVAL_SERVER_KEY holds a key to ask for"
        said.append(f"{host}: other machines can reach this server{key}")
    return said


def _is_v6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def _say(server: LocalServer, serving: Serving | WholeModel, *, as_json: bool, silent: bool) -> None:
    if as_json:
        click.echo(json.dumps({"url": server.url, "models": list(server.models), "log": str(server.log)}))
    if silent:
        return
    asked = (
        [f"--base {serving.name}={serving.model}"]
        if serving.adapters
        else [f"--model {serving.name}={serving.model}"]
    )
    asked += [f"--adapter {name}={path}" for name, path in serving.adapters.items()]
    asked += ["--quantize none"] if serving.adapters and _is_dequantized(serving.model) else []
    click.echo(f"ready: {server.url} serves {', '.join(server.models)}; Ctrl-C stops it", err=True)
    click.echo(f"ask it: lora-eval smoke {server.url} {' '.join(asked)}", err=True)


def _is_dequantized(model: Path) -> bool:
    """Whether the model is a base that `export base --dequantized` wrote."""
    from lora_eval.models import read_lineage

    own = read_lineage(model)
    return own is not None and any(step.arguments.get("quantization") for step in own.steps)
