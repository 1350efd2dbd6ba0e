"""Everything that was given, read and checked before the first expensive step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_eval.chat import named_text, resolve_template, set_template
from lora_eval.errors import InputError, ModelError, RecordError
from lora_eval.fingerprint import fingerprint_data, fingerprint_folder, sha256_file
from lora_eval.models import load_tokenizer, resolve_model
from lora_eval.models.adapters import changes_the_base
from lora_eval.models.locate import read_config
from lora_eval.models.mergeable import merge_refusals
from lora_eval.recipes import ResolvedRecipe, check_family
from lora_eval.records import ChatTemplate, Recipe, RowCounts
from lora_eval.registry import looks_like_path
from lora_eval.resources import resolve_path
from lora_eval.train.rows import Row, Tokenization, make_rows, read_files
from lora_eval.train.target import check_target

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Plan:
    """A run that can start: what is trained on what, with which rows.

    `base_name` is how the base was named (what `adapter_config.json` says), `template_name` the template's,
    `tokenizer` carries the texts `default` and `training`, `identity` tells this run from another.
    """

    resolved: ResolvedRecipe
    base: Path
    base_name: str
    tokenizer: PreTrainedTokenizerBase
    template_name: str
    stop_ids: tuple[int, ...]
    rows: list[Row]
    counts: RowCounts
    eval_rows: list[Row]
    eval_counts: RowCounts | None
    identity: dict[str, str]

    @property
    def recipe(self) -> Recipe:
        """The recipe with everything it extends and every override in it."""
        return self.resolved.recipe


def resolve_base(resolved: ResolvedRecipe, given: str | None = None) -> tuple[Path, str]:
    """Return the base's folder and its name: `given`, or else the recipe's `base`, which may also be
    `package:path/in/package` or a path relative to the recipe's file.

    Raises:
        InputError: neither names one.
        ModelError: it is missing, empty, or no whole model.
    """
    name = given or resolved.recipe.base
    if name is None:
        raise InputError(f"recipe '{resolved.recipe.name}' names no base; give one with --base")
    revision = resolved.recipe.model.get("revision")
    if given is None and (":" in name or (resolved.folder / name).is_dir()):
        return resolve_model(str(resolve_path(name, resolved.folder))), name
    folder = resolve_model(name, None if Path(name).expanduser().is_dir() else revision)
    return folder, str(folder) if Path(name).expanduser().is_dir() else name


def make_plan(
    resolved: ResolvedRecipe, base: Path, base_name: str, progress: Callable[[str, int, int], None]
) -> Plan:
    """Return the plan.

    Raises:
        InputError: the base, the recipe, the template or the data cannot be used; each message says why.
    """
    recipe = resolved.recipe
    _refuse_what_cannot_be_measured(recipe)
    config = read_config(base, "config.json")
    if "quantization_config" in config:
        raise ModelError(f"{base}: its weights are already quantized; train on the base in 16 or 32 bits")
    check_target(recipe, base)
    data, held_out = resolved.data_files(), resolved.eval_files()
    tokenizer = load_tokenizer(base)
    check_family(recipe, str(config.get("model_type")), _own_default(tokenizer))
    reading = read_files(data, shuffle_seed=recipe.data.shuffle_seed, max_rows=recipe.data.max_rows)
    template, how = _tokenization(resolved, tokenizer)
    total = len(reading.conversations)
    rows, counts = make_rows(reading, how, lambda done: progress("reading rows", done, total))
    eval_rows: list[Row] = []
    eval_counts = None
    if held_out:
        reading = read_files(held_out, shuffle_seed=None, max_rows=None)
        eval_rows, eval_counts = make_rows(reading, how)
    return Plan(
        resolved,
        base,
        base_name,
        tokenizer,
        template.name,
        tuple(sorted(how.stop_ids)),
        rows,
        counts,
        eval_rows,
        eval_counts,
        _identity(recipe, base, [*data, *held_out], template),
    )


def _tokenization(
    resolved: ResolvedRecipe, tokenizer: PreTrainedTokenizerBase
) -> tuple[ChatTemplate, Tokenization]:
    training = resolved.recipe.training
    assistant_only = bool(training.get("assistant_only_loss", True))
    template = _template(resolved, tokenizer, assistant_only)
    set_template(tokenizer, template)
    how = Tokenization(
        tokenizer,
        template="training" if assistant_only else "default",
        assistant_only=assistant_only,
        max_length=training.get("max_length", 1024),  # TRL's default
        keep_end=training.get("truncation_mode") == "keep_end",
        stop_ids=_stop_ids(tokenizer, template),
    )
    return template, how


def _template(
    resolved: ResolvedRecipe, tokenizer: PreTrainedTokenizerBase, assistant_only: bool
) -> ChatTemplate:
    name = resolved.recipe.chat_template
    if name is not None and looks_like_path(name):
        name = str(resolve_path(name, resolved.folder))
    if name is None and not assistant_only:
        return ChatTemplate(name="own", default=named_text(tokenizer, "default"))
    return resolve_template(tokenizer, name)


def _stop_ids(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> frozenset[int]:
    """Ids of the tokens that end a turn: the template's, or else the tokenizer's end of sequence."""
    known = tokenizer.get_vocab()
    named = [text for text in template.stop_tokens if text in known] or [tokenizer.eos_token]
    return frozenset(known[text] for text in named if text is not None)


def _own_default(tokenizer: PreTrainedTokenizerBase) -> str | None:
    return named_text(tokenizer, "default") if tokenizer.chat_template else None


def _refuse_what_cannot_be_measured(recipe: Recipe) -> None:
    """Raise RecordError for options with which the base could not be measured beside the adapter, with which
    the adapter does not survive saving (measured: `pissa_niter_*`; bf16 copies of embeddings), or which no
    export knows.
    """
    lora, source = recipe.lora, f"recipe '{recipe.name}'"
    problems = []
    initial = str(lora.get("init_lora_weights", True)).lower()
    if changes_the_base(initial):
        problems.append(
            f"lora.init_lora_weights: '{initial}' changes the base's own weights, so base and adapter could "
            "not be compared; use true, gaussian or eva"
        )
    if lora.get("bias", "none") != "none":
        problems.append(f"lora.bias: '{lora['bias']}' trains the base's own biases; use none")
    if lora.get("layer_replication"):
        problems.append("lora.layer_replication: changes the base's layers; leave it out")
    whole = [key for key in ("modules_to_save", "trainable_token_indices") if lora.get(key)]
    if whole and recipe.model.get("dtype") != "float32":
        problems.append(
            f"lora.{whole[0]}: trains whole weights, which in 16 bits lose small updates and are not "
            "the same after saving; set model.dtype=float32 (bnb_4bit_compute_dtype may stay bfloat16)"
        )
    if recipe.training.get("eval_strategy", "no") not in ("no", False) and not recipe.data.eval_files:
        problems.append("training.eval_strategy: there is nothing to evaluate on; set data.eval_files")
    told = {"layer_replication"} | ({"init_lora_weights"} if changes_the_base(initial) else set())
    problems += [
        f"lora.{key}: no export could merge such an adapter" + (f" ({why})" if why else "")
        for key, why in merge_refusals(lora).items()
        if key not in told
    ]
    if problems:
        raise RecordError(source, problems)


def _identity(recipe: Recipe, base: Path, data: list[Path], template: ChatTemplate) -> dict[str, str]:
    values: dict[str, Any] = recipe.model_dump(
        mode="json", include={"model", "lora", "quantization", "training"}
    )
    values["data"] = recipe.data.model_dump(include={"shuffle_seed", "max_rows"})
    return {
        "recipe": fingerprint_data(values),
        "base": fingerprint_folder(base),
        "data": fingerprint_data([sha256_file(path) for path in data]),
        "template": fingerprint_data([template.default, template.training]),
    }
