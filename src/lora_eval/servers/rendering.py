"""A deployment's folder from the templates in `templates/deploy/`."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_eval.records import Deployment, Finding, ServedArm
from lora_eval.registry import own_version
from lora_eval.resources import resource_folder
from lora_eval.schema import write_text
from lora_eval.servers.base import LoraServer, Place, Plan
from lora_eval.servers.layout import Mount, adapter_folder, copy_adapter, mount_of
from lora_eval.servers.several import Worker, make_ray, make_workers
from lora_eval.servers.sizes import kv_shares
from lora_eval.servers.texts import read_stops

if TYPE_CHECKING:
    from jinja2.sandbox import SandboxedEnvironment

_GPUS = (16, 24, 48, 80, 141)  # GiB of memory that cards have
_SHARE = 0.9  # of it that a server takes: vLLM's --gpu-memory-utilization
_INSIDE, _FILES = "/model", "/deploy"  # where a container finds the model, and the deployment
_GIB = 2**30


def render(server: LoraServer, plan: Plan, out: Path, findings: Sequence[Finding]) -> Deployment:
    """Write every file of the deployment but its record into `out`; returns the record."""
    files: list[str] = []
    for adapter in plan.adapters:
        files += copy_adapter(adapter, out)
    for name, text in server.companions(plan).items():
        files += _write(out, name, text)
    containers = set(plan.targets) - {"command"} or not server.runs_in_python
    mount = mount_of(plan.model.folder) if containers else Mount(str(plan.model.folder), "")
    values = _values(server, plan, mount, findings)
    chosen = {
        "server.env": True,
        "compose.yaml": "compose" in plan.targets,
        "kubernetes.yaml": "kubernetes" in plan.targets,
        "serve.sh": "command" in plan.targets,
        "join.sh": "command" in plan.targets and plan.nodes > 1,
        "router.sh": "command" in plan.targets and plan.replicas > 1,
        "README.md": True,
    }
    environment = _environment()
    for name in (name for name, wanted in chosen.items() if wanted):
        files += _write(out, name, environment.get_template(f"{name}.jinja").render(values))
    for script in out.glob("*.sh"):
        script.chmod(0o755)
    return Deployment(
        server=server.name,
        version=server.version,
        arms=_arms(plan),
        settings=_settings(plan),
        findings=tuple(findings),
        sizes=plan.sizes,
        files=tuple(sorted(files)),
    )


def memory_table(plan: Plan) -> list[dict[str, Any]]:
    """Return for each size of card what is left on each beside its share of the weights, the tokens that fit,
    and the adapters that fit beside one request of full length; None where it does not follow. With several
    GPUs an adapter is counted whole on each, which is more than it takes.
    """
    sizes, rows = plan.sizes, []
    for gibibytes in _GPUS:
        free = gibibytes * _GIB * _SHARE - sizes.weight_bytes / (plan.gpus * plan.nodes)
        slots = (sizes.adapter_slot_bytes or 0) * (plan.slots if plan.adapters else 0)
        each = (sizes.kv_bytes_per_token or 0) / (kv_shares(plan.model, plan.gpus) * plan.nodes)
        tokens = int((free - slots) // each) if each else None
        room = free - plan.length * each
        fit = int(room // sizes.adapter_slot_bytes) if each and sizes.adapter_slot_bytes else None
        rows.append({"gpu": gibibytes, "free": free, "tokens": tokens, "adapters": fit})
    return rows


def _values(server: LoraServer, plan: Plan, mount: Mount, findings: Sequence[Finding]) -> dict[str, Any]:
    inside = Place(f"{_INSIDE}{mount.inside}", _FILES, "0.0.0.0", server.inner_port)
    workers = make_workers(server.name, plan.replicas, plan.gpus, plan.port)
    own = Place(str(plan.model.folder), ".", "127.0.0.1", workers[0].port)
    container = server.launch(plan, inside)
    command = server.launch(plan, own) if server.runs_in_python else container
    return {
        "workers": workers,
        "ray": make_ray(server.name, container.program),
        **_routers(server, plan, workers),
        "server": server,
        "plan": plan,
        "version": own_version(),
        "mount": mount,
        "inside": _INSIDE,
        "files": _FILES,
        "container": container,
        "command": command,
        "lines": _lines(command.arguments),
        "adapters": [(adapter, adapter_folder(adapter)) for adapter in plan.adapters],
        "findings": findings,
        "smoke": _smoke(server, plan),
        "sizes": plan.sizes,
        "memory": memory_table(plan),
        "storage": -(-plan.sizes.weight_bytes * 5 // (4 * _GIB)) + 1,
        "stops": plan.texts.stops or read_stops(plan.model.folder),
    }


def _routers(server: LoraServer, plan: Plan, workers: Sequence[Worker]) -> dict[str, Any]:
    """The router's commands: in a cluster, in compose, and (its workers are given to it) on a machine."""
    if plan.replicas == 1:
        return {}
    port, inner = plan.port, server.inner_port
    alone = server.router(plan, (), "127.0.0.1", port)
    return {
        "router": server.router(plan, [f"http://{one.name}:{inner}" for one in workers], "0.0.0.0", inner),
        "compose_router": server.router(
            plan, [f"http://{one.service}:{inner}" for one in workers], "0.0.0.0", inner
        ),
        "router_lines": _lines(alone.arguments) if alone else [],
    }


def _smoke(server: LoraServer, plan: Plan) -> str:
    """Return what `lora-eval smoke` is told of the arms, in the deployment's folder."""
    model = shlex.quote(f"{plan.model.name}={plan.model.folder}")
    names = [server.asked_as.format(base=plan.model.name, adapter=one.name) for one in plan.adapters]
    adapters = [
        shlex.quote(f"{name}={adapter_folder(one)}") for name, one in zip(names, plan.adapters, strict=True)
    ]
    words = [f"--adapter {adapter}" for adapter in adapters]
    return " ".join([f"--base {model}" if adapters else f"--model {model}", *words])


def _lines(arguments: Sequence[str]) -> list[str]:
    """Return shell words, each option with its values on a line of its own."""
    lines: list[list[str]] = []
    for word in arguments:
        if word.startswith("--") or not lines:
            lines.append([])
        lines[-1].append(shlex.quote(word))
    return [" ".join(line) for line in lines]


def _arms(plan: Plan) -> tuple[ServedArm, ...]:
    model = plan.model
    base = ServedArm(name=model.name, kind="model", path=str(model.folder), fingerprint=model.fingerprint)
    return (
        base,
        *(
            ServedArm(
                name=adapter.name,
                kind="adapter",
                path=str(adapter.folder),
                fingerprint=adapter.fingerprint,
                folder=adapter_folder(adapter),
            )
            for adapter in plan.adapters
        ),
    )


def _settings(plan: Plan) -> dict[str, Any]:
    return {
        "device": plan.device,
        "dtype": plan.dtype,
        "max_model_len": plan.length,
        "max_lora_rank": plan.rank or None,
        "max_loras": plan.slots if plan.adapters else None,
        "tensor_parallel": plan.gpus,
        "nodes": plan.nodes,
        "replicas": plan.replicas,
        "target_modules": list(plan.target_modules),
        "stop_token_ids": list(plan.texts.stops),
        "port": plan.port,
    }


def _write(out: Path, name: str, text: str) -> list[str]:
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    write_text(out / name, text)
    return [name]


def _environment() -> SandboxedEnvironment:
    from jinja2 import FileSystemLoader, StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    environment = SandboxedEnvironment(
        loader=FileSystemLoader(resource_folder("templates") / "deploy"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "compose": lambda value: _quoted(value).replace("$", "$$"),  # compose fills in $NAME, $$ is a dollar
        "kubernetes": lambda value: _quoted(value).replace("$(", "$$("),
        "shell": shlex.quote,
        "size": size_text,
        "cell": lambda value: " ".join(str(value).replace("|", "\\|").split()),
    }
    return environment


def size_text(n_bytes: float) -> str:
    """Return a number of bytes in the largest binary unit of which there is at least one."""
    units = ("bytes", "KiB", "MiB", "GiB")
    power = max(0, min(3, int(math.log(max(n_bytes, 1), 1024))))
    return f"{n_bytes / 1024**power:.{1 if power else 0}f} {units[power]}"


def _quoted(value: object) -> str:
    """A JSON string is a YAML one too."""
    return json.dumps(str(value), ensure_ascii=False)
