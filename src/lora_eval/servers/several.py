"""Where one machine is not enough: layers shared out to several (vLLM on Ray), or whole copies behind a
router (SGLang's).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lora_eval.records import Finding
from lora_eval.servers.inputs import Model

RAY_PORT = 6379
_JOIN = 'ray start --head --port {port} && exec {program} "$@"'


@dataclass(frozen=True, slots=True)
class Worker:
    """One whole copy of the server behind a router: its names in compose and in the cluster, its port on this
    machine, and the GPUs that it has there (empty: any).
    """

    service: str
    name: str
    port: int
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ray:
    """The commands of a cluster's pods: of the first one, which starts the server, and of the others."""

    port: int
    head: tuple[str, ...]
    node: tuple[str, ...]


def make_workers(server: str, replicas: int, gpus: int, port: int) -> list[Worker]:
    """Return the copies; a single one has the server's own name and port."""
    if replicas == 1:
        return [Worker(server, f"lora-eval-{server}", port)]
    return [
        Worker(
            f"{server}-{number}",
            f"lora-eval-{server}-{number}",
            port + 1 + number,
            tuple(str(device) for device in range(number * gpus, (number + 1) * gpus)),
        )
        for number in range(replicas)
    ]


def make_ray(server: str, program: Sequence[str]) -> Ray:
    """Return the pods' commands; arguments of the server follow those of the first."""
    script = _JOIN.format(port=RAY_PORT, program=" ".join(program))
    head = ("sh", "-c", script, server)
    node = ("ray", "start", "--address", f"lora-eval-{server}-head:{RAY_PORT}", "--block")
    return Ray(RAY_PORT, head, node)


def several_findings(model: Model, nodes: int, replicas: int) -> Iterator[Finding]:
    """Layers are shared out whole; and no such deployment was run."""
    layers = model.value("num_hidden_layers", "n_layer")
    if layers is not None and int(layers) < nodes:
        reason = f"its {layers} layers cannot be shared out to --nodes {nodes}"
        yield Finding(arm=model.name, rule="pipeline-parallel", severity="refused", reason=reason)
    if nodes > 1:
        reason = "several machines were never tried here: ask the running server with smoke"
        yield Finding(arm=model.name, rule="untried", severity="warning", reason=reason)
    if replicas > 1:
        reason = (
            "the router (sglang-router 0.3.2) takes no token ids at /v1/completions and lists no models "
            "(measured): ask each copy with smoke, not the router"
        )
        yield Finding(arm=model.name, rule="router", severity="warning", reason=reason)
