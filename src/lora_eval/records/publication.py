"""Publication: what a repository holds and what its card rests on; `evaluation/publication.json` in it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from lora_eval.records.base import Record

Relation = Literal["adapter", "merge", "quantized", "finetune"]


class PublishedFile(Record):
    """One uploaded file: its size in bytes and its hexadecimal sha256."""

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Benchmark(Record):
    """Where a task's items live on the Hub, for `.eval_results`: data set and the task's id in it."""

    dataset_id: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    task_id: str = Field(min_length=1)


class BenchmarkResult(Record):
    """One entry of `.eval_results/*.yaml`, in our own strict form: huggingface_hub checks none of it."""

    task: str
    dataset: Benchmark
    value: float = Field(allow_inf_nan=False)
    date: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    notes: str | None = None


class Publication(Record):
    """What decides a card besides the records that lie beside it.

    `fingerprint` is that of the uploaded weights; `arm` is the arm of the comparison whose figures the card
    shows: these weights themselves, or (`verified_as`) the arm that a verification proved them equal or near
    to. `override` is the reason given for publishing in spite of a failed gate. `data_license` is what the
    publisher says of the training data. `files` holds every other file of the repository that we wrote.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    repo_id: str
    kind: Literal["adapter", "merged", "gptq", "awq"]
    fingerprint: str
    arm: str
    verified_as: bool = False
    base_model: str
    base_model_revision: str | None = None
    base_model_relation: Relation
    license: str
    license_name: str | None = None
    license_link: str | None = None
    base_license: str | None = None
    data_license: str | None = None
    language: tuple[str, ...] = ()
    override: str | None = None
    samples: bool = False
    date: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    version: str
    benchmarks: dict[str, Benchmark] = Field(default_factory=dict)
    files: dict[str, PublishedFile] = Field(default_factory=dict)

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, PublishedFile]) -> dict[str, PublishedFile]:
        for path in files:
            if path.startswith("/") or ".." in path.split("/"):
                raise ValueError(f"Expected paths inside the repository, got {path!r}")
        return files
