"""What a model folder holds beside weights: configuration, tokenizer, templates, generation, licence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from lora_eval.errors import ModelError
from lora_eval.models.legacy import legacy_positions, legacy_tokenizer
from lora_eval.models.locate import read_config
from lora_eval.models.trained_base import TRAINED_BASE

_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_TEMPLATES = "additional_chat_templates"
_OTHER = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "*.py")


def carry_config(base: Path, out: Path, dtype: str, changes: dict[str, Any] | None = None) -> None:
    """Write config.json: the base's, with the new dtype, without any quantization, and with `changes` (also
    in the part of a model with several that has the key, as `text_config`).
    """
    config = read_config(base, "config.json")
    for key in ("quantization_config", "torch_dtype", "_name_or_path"):
        config.pop(key, None)
    config["dtype"] = dtype
    for key, value in (changes or {}).items():
        parts = [part for part in config.values() if isinstance(part, dict) and key in part]
        for part in parts:
            part[key] = value
        if key in config or not parts:
            config[key] = value
    _write_json(out / "config.json", config)


def carry_tokenizer(sources: list[Path], out: Path) -> Path:
    """Copy the tokenizer with all its chat templates from the first source that has one; returns the source.

    Raises:
        ModelError: none has one.
    """
    for source in sources:
        if not any((source / name).is_file() for name in _TOKENIZER[:3]):
            continue
        if (source / "tokenizer_config.json").is_file():
            read_config(source, "tokenizer_config.json")  # a fault is named where it lies, not in the copy
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


def pack_templates(out: Path, server: str | None) -> None:
    """Leave the chat templates where the target server looks for them.

    transformers, vLLM and SGLang read chat_template.jinja; TGI and older releases only tokenizer_config.json
    (https://github.com/huggingface/text-generation-inference/issues/3247). None: both, which every one reads.
    """
    config = read_config(out, "tokenizer_config.json") if (out / "tokenizer_config.json").is_file() else {}
    file, folder = out / "chat_template.jinja", out / _TEMPLATES
    texts = {"default": file.read_text("utf-8")} if file.is_file() else {}
    texts |= {path.stem: path.read_text("utf-8") for path in sorted(folder.glob("*.jinja"))}
    inside = config.get("chat_template")
    if isinstance(inside, str):
        texts.setdefault("default", inside)
    elif isinstance(inside, list):
        for entry in inside:
            texts.setdefault(entry["name"], entry["template"])
    if not texts:
        return
    if server in (None, "tgi"):
        listed = [{"name": name, "template": text} for name, text in texts.items()]
        config["chat_template"] = texts["default"] if set(texts) == {"default"} else listed
    else:
        config.pop("chat_template", None)
    _write_json(out / "tokenizer_config.json", config)
    file.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    if server != "tgi":
        for name, text in texts.items():
            path = file if name == "default" else folder / f"{name}.jinja"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, "utf-8")


def suit_server(out: Path, server: str | None) -> None:
    """For TGI, whose transformers is older than what writes our files: in words that it reads, too."""
    if server != "tgi":
        return
    for name, suited in (("tokenizer_config.json", legacy_tokenizer), ("config.json", legacy_positions)):
        if (out / name).is_file():
            _write_json(out / name, suited(read_config(out, name)))


def carry_rest(sources: list[Path], out: Path) -> None:
    """Copy generation settings (of the first source with some), licence files and the model's own code."""
    for source in sources:
        if (source / "generation_config.json").is_file():
            read_config(source, "generation_config.json")
            shutil.copyfile(source / "generation_config.json", out / "generation_config.json")
            break
    for source in reversed(sources):  # the base first; an adapter's own licence stands beside it
        for pattern in _OTHER if source == sources[-1] else _OTHER[:3]:
            for path in sorted(source.glob(pattern)):
                taken = (out / path.name).exists() and (out / path.name).read_bytes() != path.read_bytes()
                shutil.copyfile(path, out / (f"ADAPTER_{path.name}" if taken else path.name))


def licence_of(folder: Path) -> str | None:
    """Return the licence that a model card's front matter names, or None."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    lines = card.read_text("utf-8", errors="replace").splitlines()
    if not lines or lines[0] != "---" or "---" not in lines[1:]:
        return None
    for line in lines[1 : lines.index("---", 1)]:
        key, _, value = line.partition(":")
        if key == "license":
            return value.strip().strip("'\"") or None
    return None


def carry_companions(source: Path, out: Path) -> None:
    """Copy what an adapter's folder holds beside its weights and still holds of another adapter on that base:
    tokenizer, generation settings, what training kept of the base.
    """
    carry_files(source, out, (*_TOKENIZER, "generation_config.json", TRAINED_BASE))
    if (source / _TEMPLATES).is_dir():
        shutil.copytree(source / _TEMPLATES, out / _TEMPLATES, copy_function=shutil.copyfile)


def carry_files(source: Path, out: Path, names: tuple[str, ...]) -> None:
    """Copy the files of these names that the source has."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)


def check_vocabulary(out: Path, rows: int | None) -> tuple[str, ...]:
    """Return what is to be said about the tokenizer: an end token at which generation does not end.

    Raises:
        ModelError: it gives ids that the model's embedding has no row for.
    """
    from lora_eval.models import load_tokenizer

    tokenizer = load_tokenizer(out)
    size = len(tokenizer)
    if rows is not None and size > rows:
        raise ModelError(
            f"the adapter's tokenizer has {size} tokens, the model's embedding {rows} rows: tokens were "
            "added in training, and the adapter holds no weights for them; save it again with "
            "save_embedding_layers=True"
        )
    # Without generation settings every engine ends where config.json says.
    settings = "generation_config.json" if (out / "generation_config.json").is_file() else "config.json"
    stops = read_config(out, settings).get("eos_token_id") if (out / settings).is_file() else None
    known = [] if stops is None else stops if isinstance(stops, list) else [stops]
    if known and tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in known:
        return (
            f"generation ends at {', '.join(map(str, known))}, and not at the tokenizer's own end token "
            f"{tokenizer.eos_token_id}: as measured, but check {settings}",
        )
    return ()


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False, sort_keys=True) + "\n", "utf-8")
