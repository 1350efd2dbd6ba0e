"""`lora-eval serve`: a local vLLM for base and adapters, or for an exported model."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lora_eval.serve import LocalServer, Serving


@click.command(context_settings={"ignore_unknown_options": False})
@click.option(
    "--base", metavar="[NAME=]ID_OR_PATH[@REV]", help="The model under the adapters; its name: base."
)
@click.option(
    "--adapter", "adapters", multiple=True, metavar="NAME=PATH[@REV]",
    help="An adapter and the name to serve it under. Repeatable.",
)  # fmt: skip
@click.option("--model", metavar="[NAME=]DIR", help="Instead: a whole model (merged, GPTQ); its name: model.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Another one opens it to other machines."
)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: a free one.")
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto")
@click.option("--allow-load", is_flag=True, help="Adapters may be loaded and unloaded over HTTP.")
@click.option(
    "--timeout", type=click.IntRange(min=1), default=900, show_default=True, help="Seconds to start."
)
@click.option("--log", type=click.Path(path_type=Path, dir_okay=False), help="Where vLLM's output goes.")
@click.option(
    "--json", "as_json", is_flag=True, help="When it is ready, print URL and names as JSON on stdout."
)
@click.option("-q", "--quiet", "silent", is_flag=True, help="Print errors only.")
@click.argument("more", nargs=-1, metavar="[-- VLLM_ARGUMENTS]")
def command(port: int, timeout: int, log: Path | None, as_json: bool, silent: bool, **options: Any) -> int:
    r"""Serve base and adapters, or an exported model, with a local vLLM until Ctrl-C or SIGTERM.

    It says when every model has answered once. vLLM is looked for in the Python of $LORA_EVAL_VLLM_PYTHON, or
    in this one. However this command ends, by SIGKILL too, no process of vLLM is left. A key in
    $LORA_EVAL_SERVER_KEY is asked of clients.

    \b
    Example:
      lora-eval serve --base ./base --adapter support=./adapter
      lora-eval serve --model shipped=./merged --port 8001 -- --max-model-len 4096
    """
    from lora_eval.cli.progress import progress_bar
    from lora_eval.serve import LocalServer

    serving = _serving(options)
    if not silent:
        for line in (*serving.notes(), *_warnings(serving.host)):
            click.echo(line, err=True)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with contextlib.ExitStack() as stack:
            with progress_bar(not silent) as progress:
                server = LocalServer(serving, progress, port=port, timeout=timeout, log=log)
                stack.enter_context(server)
            _say(server, as_json=as_json, silent=silent)
            server.wait()
    except KeyboardInterrupt:
        if not silent:
            click.echo("stopped; no process of vLLM is left", err=True)
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _serving(options: dict[str, Any]) -> Serving:
    from lora_eval.cli.smoke import named_folders, served_name
    from lora_eval.models import parse_arm, resolve_adapter, resolve_model
    from lora_eval.serve import Serving

    if (options["base"] is None) == (options["model"] is None):
        raise click.UsageError("give --base with --adapter, or --model")
    if options["model"] and options["adapters"]:
        raise click.UsageError("--adapter is for a base: give the model as --base")
    option = "--base" if options["base"] else "--model"
    name, place = served_name(options["base"] or options["model"], option, required=False)
    _, path, revision = parse_arm(place)
    return Serving(
        resolve_model(path, revision),
        name or option.removeprefix("--"),
        named_folders(options["adapters"], "--adapter", resolve_adapter),
        options["host"],
        options["dtype"],
        options["allow_load"],
        tuple(options["more"]),
    )


def _warnings(host: str) -> list[str]:
    from lora_eval.engines.http_client import is_loopback

    if is_loopback(f"http://{f'[{host}]' if _is_v6(host) else host}"):
        return []
    return [f"{host}: other machines can reach this server; $LORA_EVAL_SERVER_KEY holds a key to ask for"]


def _is_v6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def _say(server: LocalServer, *, as_json: bool, silent: bool) -> None:
    if as_json:
        click.echo(json.dumps({"url": server.url, "models": list(server.models), "log": str(server.log)}))
    if silent:
        return
    serving = server.serving
    asked = (
        [f"--base {serving.name}={serving.model}"]
        if serving.adapters
        else [f"--model {serving.name}={serving.model}"]
    )
    asked += [f"--adapter {name}={path}" for name, path in serving.adapters.items()]
    asked += ["--quantize none"] if serving.adapters and serving.is_dequantized else []
    click.echo(f"ready: {server.url} serves {', '.join(server.models)}; Ctrl-C stops it", err=True)
    click.echo(f"ask it: lora-eval smoke {server.url} {' '.join(asked)}", err=True)
