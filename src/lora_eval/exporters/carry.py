"""What a model folder holds beside weights: configuration, tokenizer, templates, generation, licence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from lora_eval.errors import ModelError
from lora_eval.models.locate import read_config

_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_TEMPLATES = "additional_chat_templates"
_OTHER = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "*.py")


def carry_config(base: Path, out: Path, dtype: str) -> None:
    """Write config.json: the base's, with the new dtype and without any quantization."""
    config = read_config(base, "config.json")
    for key in ("quantization_config", "torch_dtype", "_name_or_path"):
        config.pop(key, None)
    config["dtype"] = dtype
    _write_json(out / "config.json", config)


def carry_tokenizer(sources: list[Path], out: Path) -> Path:
    """Copy the tokenizer with all its chat templates from the first source that has one; returns the source.

    Raises:
        ModelError: none has one.
    """
    for source in sources:
        if not any((source / name).is_file() for name in _TOKENIZER[:3]):
            continue
        for name in _TOKENIZER:
            if (source / name).is_file():
                shutil.copyfile(source / name, out / name)
        if (source / _TEMPLATES).is_dir():
            # gptqmodel has saved the tokenizer there already; ours go over it.
            shutil.copytree(
                source / _TEMPLATES, out / _TEMPLATES, copy_function=shutil.copyfile, dirs_exist_ok=True
            )
        return source
    places = " and ".join(str(source) for source in sources)
    raise ModelError(f"no tokenizer in {places}; expected tokenizer.json and tokenizer_config.json")


def carry_rest(sources: list[Path], out: Path) -> None:
    """Copy generation settings (of the first source with some), licence files and the model's own code."""
    for source in sources:
        if (source / "generation_config.json").is_file():
            shutil.copyfile(source / "generation_config.json", out / "generation_config.json")
            break
    for pattern in _OTHER:
        for path in sorted(sources[-1].glob(pattern)):
            shutil.copyfile(path, out / path.name)


def carry_files(source: Path, out: Path, names: tuple[str, ...]) -> None:
    """Copy the files of these names that the source has."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)


def check_vocabulary(out: Path, rows: int | None) -> None:
    """Raise ModelError where the tokenizer gives ids that the model's embedding has no row for."""
    from lora_eval.models import load_tokenizer

    size = len(load_tokenizer(out))
    if rows is not None and size > rows:
        raise ModelError(
            f"the adapter's tokenizer has {size} tokens, the base's embedding {rows} rows: tokens were "
            "added in training; merging a resized vocabulary is not supported yet"
        )


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False, sort_keys=True) + "\n", "utf-8")
