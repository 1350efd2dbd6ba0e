"""The deploy stage: a server's configuration for its arms, checked first, written whole or not at all."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from lora_eval.errors import InputError, OutputError
from lora_eval.protocols import DeployRequest, Server
from lora_eval.records import Deployment, Finding, ServedArm
from lora_eval.registry import get
from lora_eval.schema import suggest, write_record

RECORD = "deployment.json"


def lint(name: str, request: DeployRequest) -> list[Finding]:
    """Return what the server `name` makes of the request, worst first.

    Raises:
        PluginError: no such server.
        InputError: an option that the server does not have, or files that cannot be read.
    """
    return _server(name, request).lint(request)


def deploy(
    name: str, request: DeployRequest, out: Path, said: Callable[[str], None] = lambda what: None
) -> Deployment:
    """Check the arms, and write the configuration into the new or empty folder `out`; returns the record that
    was stored in it as `deployment.json`. Where a finding forbids it (`Deployment.blocking`) nothing is
    written and `files` is empty.

    Raises:
        PluginError: no such server.
        InputError: an option that the server does not have, or files that cannot be read.
        OutputError: the folder is not empty or cannot be written; nothing is left.
    """
    server = _server(name, request)
    _check_empty(out)
    said("checking the arms")
    findings = server.lint(request)
    checked = Deployment(
        server=server.name, version=server.version, arms=_arms(request), findings=tuple(findings)
    )
    if checked.blocking:
        return checked
    partial = out.absolute().with_name(f".{out.absolute().name}.{secrets.token_hex(4)}.partial")
    try:
        partial.mkdir(parents=True)
        said("reading the weights for their fingerprints")
        deployment = server.render(request, partial, findings)
        deployment = deployment.model_copy(update={"files": tuple(sorted((*deployment.files, RECORD)))})
        write_record(partial / RECORD, deployment)
        partial.replace(out)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return deployment


def _server(name: str, request: DeployRequest) -> Server:
    server: Server = get("server", name)
    for key in request.options:
        if key not in server.options:
            raise InputError(
                f"deploy {name}: has no option '{key}'{suggest(key, list(server.options))}; it knows: "
                f"{', '.join(server.options)}"
            )
    return server


def _arms(request: DeployRequest) -> tuple[ServedArm, ...]:
    model = ServedArm(name=request.base_name, kind="model", path=str(request.base))
    adapters = [
        ServedArm(name=name, kind="adapter", path=str(path)) for name, path in request.adapters.items()
    ]
    return (model, *adapters)


def _check_empty(out: Path) -> None:
    if out.is_file():
        raise OutputError(f"{out}: is a file; give a new folder as --out")
    if out.is_dir() and any(out.iterdir()):
        raise OutputError(f"{out}: is not empty; give a new folder as --out, or empty this one first")
