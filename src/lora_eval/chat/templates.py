"""Named chat templates: found by name or path, put on a tokenizer, looked up again without surprises.

A tokenizer holds one text or a dictionary of named ones. `set_template` stores two names, `default` (the
model's own text, untouched, so that serving is unchanged) and `training` (the same text with
`{% generation %}` marks), which travel with `save_pretrained` and to the Hub. Names are resolved here and
never by transformers, which takes an unknown name for a literal Jinja text and renders it in place of the
conversation. A template is identified by its text's sha256 and never by the model's name.
"""

from __future__ import annotations

import copy
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_eval.errors import TemplateError
from lora_eval.fingerprint import sha256_text
from lora_eval.records import ChatTemplate
from lora_eval.registry import find_plugin, list_plugins, load_plugin, looks_like_path
from lora_eval.schema import load_yaml, parse_record, suggest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_CHOOSE = "choose one with `lora-eval template list` and name it as the recipe's chat_template"


def has_marks(text: str) -> bool:
    """True where the text says with `{% generation %}` which part is the assistant's."""
    return _MARKS.search(text) is not None


def load_template(name_or_path: str) -> ChatTemplate:
    """Return a packaged or installed template by name, or one from a path.

    A path `x.jinja` may have `x_training.jinja` (the marked text) and `x.yaml` (stop tokens, families and
    the like) beside it; a known vendor's text needs neither.

    Raises:
        PluginError: no such name (with the nearest one), defined twice, or broken.
        TemplateError: the file is missing or no text, or `x.yaml` has a fault.
    """
    if looks_like_path(name_or_path):
        template = read_template(Path(name_or_path).expanduser())
        known = known_template(template.default) if template.training is None else None
        return known.model_copy(update={"name": template.name}) if known else template
    plugin = find_plugin("template", name_or_path)
    if plugin.path is not None:
        return read_template(plugin.path)
    loaded: ChatTemplate = load_plugin(plugin)
    return loaded


def read_template(path: Path) -> ChatTemplate:
    """Return the template of a `.jinja` file with what stands beside it (see `load_template`)."""
    training = path.with_name(f"{path.stem}_training.jinja")
    metadata = path.with_suffix(".yaml")
    data: dict[str, Any] = load_yaml(metadata) if metadata.is_file() else {}
    data |= {"name": path.stem, "default": _read_text(path)}
    if training.is_file():
        data["training"] = _read_text(training)
    elif has_marks(data["default"]):
        data["training"] = data["default"]
    return parse_record(data, ChatTemplate, str(metadata if metadata.is_file() else path))


def set_template(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> None:
    """Make `tokenizer.chat_template` the names `default` and, where there is one, `training`.

    Other names of the tokenizer (`tool_use`) stay where its default text stays, and go where it is replaced.
    """
    texts = own_texts(tokenizer)
    kept = texts if texts.get("default") == template.default else {}
    texts = {**kept, "default": template.default}
    texts.pop("training", None)
    if template.training is not None:
        texts["training"] = template.training
    tokenizer.chat_template = texts


def own_texts(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return the tokenizer's texts by name; a single text is `default`, none at all is empty."""
    own = tokenizer.chat_template
    if not own:
        return {}
    return {"default": own} if isinstance(own, str) else dict(own)


def named_text(tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    """Return the tokenizer's text of that name.

    `training` is also found where the default text has marks, or is a known vendor's text.

    Raises:
        TemplateError: the tokenizer has no template, or none of that name.
    """
    texts = own_texts(tokenizer)
    if not texts:
        raise TemplateError(f"the tokenizer{_place(tokenizer)} has no chat template; {_CHOOSE}")
    if name in texts:
        return texts[name]
    if name == "training" and "default" in texts:
        training = _training_text(texts["default"])
        if training is not None:
            return training
        raise TemplateError(
            f"the chat template of the tokenizer{_place(tokenizer)} does not say what the assistant wrote "
            "(it has no {% generation %} marks), and its text is none that is known here; " + _CHOOSE
        )
    raise TemplateError(
        f"the tokenizer{_place(tokenizer)} has no chat template named '{name}'{suggest(name, list(texts))}; "
        f"it has: {', '.join(sorted(texts))}"
    )


def resolve_template(tokenizer: PreTrainedTokenizerBase, name_or_path: str | None = None) -> ChatTemplate:
    """Return the named template, or, where none is named, the tokenizer's own with a training text.

    Raises:
        PluginError, TemplateError: unknown; or the tokenizer has none, or none that can be trained with.
    """
    if name_or_path is not None:
        return load_template(name_or_path)
    default = named_text(tokenizer, "default")
    training = named_text(tokenizer, "training")
    known = known_template(default)
    if known is not None and known.training == training:
        return known
    own = known.model_dump(exclude={"name", "training"}) if known else {"default": default}
    return ChatTemplate(name="own", training=training, **own)


def training_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a copy whose one chat template is the training text, for libraries that look only at the
    default one (TRL's SFTTrainer); save the original beside the adapter, not this copy.
    """
    text = named_text(tokenizer, "training")
    twin = copy.deepcopy(tokenizer)
    twin.chat_template = text
    return twin


def known_template(text: str) -> ChatTemplate | None:
    """Return the packaged template that was made from exactly this vendor's text, or None."""
    return _packaged_by_sha256().get(sha256_text(text))


@cache
def _packaged_by_sha256() -> dict[str, ChatTemplate]:
    paths = [plugin.path for plugin in list_plugins("template") if plugin.path is not None]
    templates = [read_template(path) for path in paths]
    return {template.upstream_sha256 or sha256_text(template.default): template for template in templates}


def _training_text(default: str) -> str | None:
    if has_marks(default):
        return default
    known = known_template(default)
    return known.training if known else None


def _read_text(path: Path) -> str:
    # Bytes, not text mode: newline translation would change the text's identity.
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise TemplateError(f"{path}: no such file") from None
    except OSError as error:
        raise TemplateError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise TemplateError(f"{path}: is not UTF-8 text (byte {error.start + 1})") from None


def _place(tokenizer: PreTrainedTokenizerBase) -> str:
    folder = getattr(tokenizer, "name_or_path", "")
    return f" of {folder}" if folder else ""
