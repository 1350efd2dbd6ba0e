"""Deployment: what a server makes of a base and its adapters; `deployment.json` beside the configuration."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from lora_eval.records.base import Record

Severity = Literal["refused", "ignored", "warning", "info"]


class Finding(Record):
    """One thing about an arm that a server answers to in its own way.

    `refused`: the server does not start, or does not load the arm. `ignored`: it starts and answers with
    another model than the measured one. `warning`: it serves the model, and something beside it is wrong or
    was never tried. `info`: the configuration deals with it. `issue` is where upstream says so, `fix` the
    command that makes the arm servable.
    """

    arm: str
    rule: str
    severity: Severity
    reason: str
    issue: str | None = None
    fix: str | None = None


class ServedArm(Record):
    """One name that the server answers to: the base (or whole model), or an adapter.

    `path` is where its files lay, `fingerprint` the sha256 of their contents, `folder` where the deployment
    keeps its copy (None: it is read where it lies).
    """

    name: str
    kind: Literal["model", "adapter"]
    path: str
    fingerprint: str | None = None
    folder: str | None = None


class ServingSizes(Record):
    """Bytes on one GPU, from the shapes alone; None where the model's kind has no known rule, with `reason`.

    `kv_bytes_per_token` holds keys and values of all layers for one position; `adapter_slot_bytes` what one
    adapter takes in the server's buffers, padded to its largest rank.
    """

    weight_bytes: int
    kv_bytes_per_token: int | None
    adapter_slot_bytes: int | None
    reason: str | None = None


class Deployment(Record):
    """What `lora-eval deploy` found and wrote; `files` is empty where a finding forbids the deployment."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    server: str
    version: str
    arms: tuple[ServedArm, ...]
    settings: dict[str, Any] = Field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    sizes: ServingSizes | None = None
    files: tuple[str, ...] = ()

    @property
    def blocking(self) -> tuple[Finding, ...]:
        """The findings that forbid it: the server would refuse an arm, or answer with another model."""
        return tuple(finding for finding in self.findings if finding.severity in ("refused", "ignored"))
