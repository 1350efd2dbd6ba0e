"""What a finished run leaves beside the adapter's weights, and what is recorded about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lora_eval.exporters.carry import pack_templates
from lora_eval.fingerprint import fingerprint_folder
from lora_eval.models import package_versions
from lora_eval.records import Lineage, LossPoint, Step, Variant
from lora_eval.schema import load_json, write_text
from lora_eval.train.plan import Plan

# What transformers and PEFT leave: pickled arguments with paths of this machine, an empty model card.
_NOT_WANTED = ("training_args.bin", "README.md", "chat_template.jinja", "tokenizer.json")


def save_companions(plan: Plan, folder: Path) -> None:
    """Complete an adapter folder that the trainer has saved: the base's name as it was given, the tokenizer
    with its templates, the stop tokens that were trained, the whole recipe.
    """
    for name in _NOT_WANTED:
        (folder / name).unlink(missing_ok=True)
    config = load_json(folder / "adapter_config.json")
    config["base_model_name_or_path"] = plan.base_name
    config["revision"] = plan.recipe.model.get("revision")
    write_text(folder / "adapter_config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    plan.tokenizer.save_pretrained(folder)
    pack_templates(folder, None)  # both packagings: an adapter is served beside its base by any server
    _save_generation_config(plan, folder)
    write_text(folder / "recipe.resolved.yaml", plan.resolved.to_yaml())


def make_lineage(plan: Plan, folder: Path, out: Path, *, dtype: str, seconds: float) -> Lineage:
    """Return how the adapter in `folder` (about to become `out`) came about."""
    packages = package_versions()
    base = Variant(
        kind="base",
        path=plan.base_name,
        revision=plan.recipe.model.get("revision"),
        fingerprint=plan.identity["base"],
    )
    adapter = Variant(
        kind="adapter",
        path=str(out),
        fingerprint=fingerprint_folder(folder),
        parent=base.fingerprint,
        made_by="lora-eval train",
    )
    step = Step(
        tool="lora-eval train",
        version=packages["lora-eval"],
        arguments={"recipe": plan.recipe.name, "overrides": _overrides(plan)},
        inputs=plan.identity,
        wall_seconds=seconds,
    )
    return Lineage(
        variants=(base, adapter),
        steps=(step,),
        quantization=plan.recipe.quantization or None,
        base_model=plan.base_name,
        base_dtype=dtype,
        chat_template=plan.template_name,
        packages=packages,
    )


def loss_curve(history: list[dict[str, Any]]) -> tuple[LossPoint, ...]:
    """Return the points of a trainer's log history that hold a loss."""
    points = []
    for entry in history:
        if "loss" in entry or "eval_loss" in entry:
            point = LossPoint(step=entry["step"], loss=entry.get("loss"), eval_loss=entry.get("eval_loss"))
            points.append(point)
    return tuple(points)


def _save_generation_config(plan: Plan, folder: Path) -> None:
    """The base's settings; generation also ends at the tokens that were trained to end a turn."""
    from transformers import AutoConfig, GenerationConfig

    if (plan.base / "generation_config.json").is_file():
        settings = GenerationConfig.from_pretrained(plan.base, local_files_only=True)
    else:
        config = AutoConfig.from_pretrained(plan.base, local_files_only=True)
        settings = GenerationConfig.from_model_config(config)
    known = settings.eos_token_id
    ends = [] if known is None else [known] if isinstance(known, int) else list(known)
    missing = [token for token in plan.stop_ids if token not in ends]
    if missing:
        ends = [*ends, *missing]
        settings.eos_token_id = ends[0] if len(ends) == 1 else ends
    settings.save_pretrained(folder)


def _overrides(plan: Plan) -> dict[str, str]:
    return {key: origin for key, origin in plan.resolved.origins.items() if origin.startswith("command line")}
