"""What an engine, a suite and an exporter are to the rest of the package, whoever brings them.

A plugin need not import anything from here: the protocols are structural.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lora_eval.records import Deployment, Finding, Lineage, SampleRow, TaskResult

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done, and how much there is."""

Finished = Callable[[Sequence[tuple[int, Any]]], None]
"""Called with (place of the request, its answer) for the answers that one step of the engine has finished."""


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """How likely is `continuation_ids` after `context_ids`? The context is never empty."""

    context_ids: tuple[int, ...]
    continuation_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """Sum of the continuation's log-probabilities in nats (log-softmax in float32), whether greedy decoding
    would have produced it, and each token's log-probability (type code "f"; empty where not known).
    """

    log_likelihood: float
    is_greedy: bool
    token_log_probabilities: array[float] = field(default_factory=lambda: array("f"), compare=False)


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """Continue `input_ids` until a stop text, the end-of-sequence token, or `max_new_tokens`."""

    input_ids: tuple[int, ...]
    until: tuple[str, ...]
    max_new_tokens: int
    sampling: dict[str, Any] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Generation:
    """Answer text up to (without) the stop text; `finish_reason` is `stop` or `length`."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str


@runtime_checkable
class Engine(Protocol):
    """Scores and generates for named arms. Answers come in the order of the requests; `finished` hears of
    them earlier, as soon as they are known, so that they can be stored.

    `work` holds running totals under the names of the fields of `records.Work`.
    """

    name: str
    dtype: str
    max_length: int
    work: Counter[str]

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the base; all arms share it."""

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms, base first."""

    def score(
        self,
        arm: str,
        requests: Sequence[ScoreRequest],
        progress: Progress,
        finished: Finished | None = None,
    ) -> list[Score]:
        """Log-likelihood of each continuation under `arm`."""

    def generate(
        self,
        arm: str,
        requests: Sequence[GenerateRequest],
        progress: Progress,
        finished: Finished | None = None,
    ) -> list[Generation]:
        """Greedy or sampled answers of `arm`."""


@dataclass(frozen=True, slots=True)
class SuiteResult:
    """One suite on one arm: per-item rows in a fixed order, and the suite's own aggregated figures."""

    rows: list[SampleRow]
    results: list[TaskResult]
    task_versions: dict[str, str] = field(default_factory=dict)
    dropped_items: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@runtime_checkable
class Suite(Protocol):
    """A set of tasks that can be run on any engine's arm."""

    name: str
    fingerprint: str

    def run(self, engine: Engine, arm: str, progress: Progress) -> SuiteResult:
        """Score every item of every task on `arm`."""


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What to export into the empty folder `out`: a base with an adapter, or (adapter None) a model
    folder as it is. `options` holds only names that the exporter lists in its `options`.
    """

    base: Path
    adapter: Path | None
    out: Path
    options: dict[str, Any] = field(default_factory=dict)
    progress: Progress = lambda what, done, total: None


@runtime_checkable
class Exporter(Protocol):
    """Writes a complete model folder (weights, config, tokenizer, template, generation settings,
    `lineage.json`). On failure the caller removes the folder, so nothing half-written stays.
    """

    name: str
    kind: str
    options: tuple[str, ...]

    def export(self, request: ExportRequest) -> Lineage:
        """Write the folder; returns the lineage that was stored in it."""


@dataclass(frozen=True, slots=True)
class DeployRequest:
    """What is to be served: a base with named adapters, or (no adapters) a whole model. `base_name` is what
    requests call the base; `options` holds only names that the server lists in its `options`.
    """

    base: Path
    base_name: str
    adapters: Mapping[str, Path] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Server(Protocol):
    """Knows what one version of an inference server makes of adapters, and how it is started."""

    name: str
    version: str
    options: tuple[str, ...]

    def lint(self, request: DeployRequest) -> list[Finding]:
        """Say what the server refuses, ignores or does otherwise; reads headers only."""

    def render(self, request: DeployRequest, out: Path, findings: Sequence[Finding]) -> Deployment:
        """Write the configuration into the empty folder `out`; returns the record, its `files` complete.

        On failure the caller removes the folder. Nothing in it may name `out`, which is moved afterwards.
        """
