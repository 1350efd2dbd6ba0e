"""A folder of weights and the records that speak of it: whether they fit, and what the card will say."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from lora_eval.errors import ModelError
from lora_eval.fingerprint import fingerprint_folder
from lora_eval.publish.records import (
    RECIPE,
    Records,
    arm_names,
    find_verification,
    portable,
    read_optional,
    read_rank,
    read_recipe,
)
from lora_eval.records import (
    Comparison,
    Lineage,
    LoadedRun,
    Publication,
    TrainingLog,
    Variant,
    Verification,
)
from lora_eval.records.publication import Benchmark, Relation
from lora_eval.schema import read_record

Kind = Literal["adapter", "merged", "gptq", "awq"]
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")

RELATIONS: dict[Kind, Relation] = {
    "adapter": "adapter", "merged": "merge", "gptq": "quantized", "awq": "quantized",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Options:
    """What the user says beside the folder and the comparison. `base_license` is the base's, where known;
    `ask_licence` finds it by the base's name on the Hub (None: it is not asked); `override` is why a failed
    gate is published all the same.
    """

    repo_id: str
    kind: str | None = None
    base_model: str | None = None
    base_model_revision: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    base_license: str | None = None
    ask_licence: Callable[[str], str | None] | None = None
    data_license: str | None = None
    language: tuple[str, ...] = ()
    verification: Path | None = None
    override: str | None = None
    samples: bool = False
    benchmarks: Mapping[str, Benchmark] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measured:
    """A folder of weights with the records that speak of it."""

    folder: Path
    kind: Kind
    fingerprint: str
    comparison: Comparison
    comparison_folder: Path
    date: str
    lineage: Lineage | None
    verification: Verification | None

    @classmethod
    def read(cls, folder: Path, comparison: Path, options: Options) -> Measured:
        """Return what a folder holds and what is recorded of it.

        Raises:
            ModelError: no folder, or no weights of a kind that can be published.
            RecordError: a record is faulty.
        """
        if not folder.is_dir():
            raise ModelError(f"{folder}: no such folder; --variant names the folder of the weights")
        lineage = read_optional(folder / "lineage.json", Lineage)
        found = _kind(folder, lineage)
        kind = next((known for known in RELATIONS if known == found), None)
        if options.kind is not None and kind != options.kind:
            raise ModelError(f"{folder}: holds {found or 'no'} weights, not {options.kind} ones")
        if kind is None:
            raise ModelError(
                f"{folder}: holds no adapter, merged or quantized model (kind: {found or 'unknown'}); "
                "expected adapter_config.json, or the lineage.json that `lora-eval export` writes"
            )
        fingerprint = fingerprint_folder(folder)
        record = read_record(comparison, Comparison)
        if options.verification is not None:
            verification: Verification | None = read_record(options.verification, Verification)
        else:
            verification = find_verification(fingerprint, [folder, folder.parent, comparison.parent])
        made = record.created or datetime.fromtimestamp(comparison.stat().st_mtime, UTC).isoformat()
        return cls(folder, kind, fingerprint, record, comparison.parent, made[:10], lineage, verification)

    @property
    def own_arm(self) -> str | None:
        """The arm with these very weights."""
        return _arm_with(self.comparison, self.fingerprint)

    @property
    def arm(self) -> str | None:
        """The arm whose figures are these weights': their own, or the one they were verified against."""
        if self.own_arm is not None or self.verification is None:
            return self.own_arm
        return _arm_with(self.comparison, self.verification.reference.fingerprint)

    def base_model(self, options: Options) -> str | None:
        """The base's name on the Hub."""
        named = options.base_model or self.recorded_base()
        return named if named and _HUB_NAME.fullmatch(named) else None

    def recorded_base(self) -> str | None:
        """The base's name on the Hub, where training knew it by one."""
        named = self.lineage.base_model if self.lineage else None
        is_local = named is not None and Path(named).is_dir()  # `models/base` looks like OWNER/NAME
        return named if named and _HUB_NAME.fullmatch(named) and not is_local else None

    def publication(self, options: Options) -> Publication:
        """The record, still without its files."""
        from lora_eval.registry import own_version

        return Publication(
            repo_id=options.repo_id,
            kind=self.kind,
            fingerprint=self.fingerprint,
            arm=self.arm or "",
            verified_as=self.own_arm is None,
            base_model=self.base_model(options) or "",
            base_model_revision=options.base_model_revision
            or (self.lineage.variants[0].revision if self.lineage else None),
            base_model_relation=RELATIONS[self.kind],
            license=options.license or options.base_license or "unknown",
            license_name=options.license_name,
            license_link=options.license_link,
            base_license=options.base_license,
            data_license=options.data_license,
            language=options.language,
            override=options.override,
            samples=options.samples,
            date=self.date,
            version=own_version(),
            benchmarks=dict(options.benchmarks),
        )

    def names(self, publication: Publication) -> dict[str, str]:
        """What the paths in the records are called where they are published."""
        names = arm_names(self.comparison)
        for variant in (*(self.lineage.variants if self.lineage else ()), *self._verified()):
            if variant.path.startswith("/"):
                names.setdefault(variant.path, Path(variant.path).name)
                if variant.kind == "base" and publication.base_model:
                    names[variant.path] = publication.base_model
        for arm in self.comparison.arms:
            if arm.kind == "base" and arm.path.startswith("/") and publication.base_model:
                names[arm.path] = publication.base_model
        return names | {str(self.folder.absolute()): publication.repo_id}

    def _verified(self) -> tuple[Variant, ...]:
        return (self.verification.reference, self.verification.candidate) if self.verification else ()

    def _kept_training(self) -> TrainingLog | None:
        """The training of the arm that an export was made from, as it was kept with the arm's run."""
        from lora_eval.reports.origins import read_origins

        found = read_origins(self.comparison, self.comparison_folder / "runs")
        trained = [origin.training for origin in found.values() if origin.training is not None]
        return trained[0] if len(trained) == 1 else None

    def portable_records(self, publication: Publication, runs: Mapping[str, LoadedRun]) -> Records:
        """The records as they are published; `runs` are portable already."""
        names = self.names(publication)
        training = read_optional(self.folder / "training_log.json", TrainingLog) or self._kept_training()
        return Records(
            comparison=portable(self.comparison, names),
            verification=portable(self.verification, names) if self.verification else None,
            lineage=portable(self.lineage, names) if self.lineage else None,
            training=portable(training, names) if training else None,
            recipe=read_recipe(self.folder / RECIPE, names),
            headers={name: loaded.run for name, loaded in runs.items()},
            rank=read_rank(self.folder),
        )


def _kind(folder: Path, lineage: Lineage | None) -> str | None:
    if lineage is not None:
        return lineage.variants[-1].kind
    return "adapter" if (folder / "adapter_config.json").is_file() else None


def _arm_with(comparison: Comparison, fingerprint: str | None) -> str | None:
    for arm in comparison.arms:
        if fingerprint is not None and fingerprint in (
            arm.fingerprint,
            *(run.fingerprint for run in arm.runs),
        ):
            return arm.name
    return None
