"""Recipe: how an adapter is trained, in the field names of the libraries that do it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from lora_eval.records.base import Record


class DataSection(Record):
    """Where the conversations come from.

    A file is a path (relative to the recipe's folder) or `package:path/in/package`; rows are JSON lines
    `{"messages": [{"role", "content"}, ...]}`.
    """

    files: tuple[str, ...] = ()
    eval_files: tuple[str, ...] = ()
    shuffle_seed: int | None = 0
    max_rows: int | None = Field(default=None, ge=1)


class FamilyCheck(Record):
    """What a base must look like for the recipe to fit: decided by its config and template text,
    never by its name. An empty tuple accepts everything.
    """

    model_type: tuple[str, ...] = ()
    template_sha256: tuple[str, ...] = ()


class Hardware(Record):
    """What the recipe was measured on, or None where it was not measured by us."""

    device: str | None = None
    peak_memory_gib: float | None = None
    wall_minutes: float | None = None
    source: str | None = None


class Recipe(Record):
    """One training run. `lora` is passed to `peft.LoraConfig`, `quantization` to
    `transformers.BitsAndBytesConfig` (empty: no quantization), `training` to `trl.SFTConfig`, `model` to
    `AutoModelForCausalLM.from_pretrained`; a test binds every packaged recipe to those signatures.

    `extends` names another recipe (or a path) whose values this one overrides, key by key. `target_server`
    names the server that the adapter is made for (`vllm`): what it would refuse or ignore is not trained.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    name: str
    summary: str = ""
    extends: str | None = None
    base: str | None = None
    family: FamilyCheck = FamilyCheck()
    model: dict[str, Any] = Field(default_factory=dict)
    lora: dict[str, Any] = Field(default_factory=dict)
    quantization: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    data: DataSection = DataSection()
    chat_template: str | None = None
    suite: str | None = None
    target_server: str | None = None
    hardware: Hardware = Hardware()
    references: tuple[str, ...] = ()
