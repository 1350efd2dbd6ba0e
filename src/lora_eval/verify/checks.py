"""What can be seen without the candidate's weights: whole files, fingerprint, tokenizer, template, stops."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_eval.errors import ModelError, TemplateError, VerificationFailed
from lora_eval.exporters.rows import Row
from lora_eval.exporters.weights import TensorInfo, read_header
from lora_eval.fingerprint import fingerprint_folder
from lora_eval.models import read_lineage
from lora_eval.models.locate import read_config, weight_files
from lora_eval.verify.arms import ArmPath
from lora_eval.verify.prompts import prompt_ids

_INDEX = "model.safetensors.index.json"
_SHOWN = 3
_AROUND = 20  # characters shown before a difference


def check_files(folder: Path) -> dict[Path, dict[str, TensorInfo]]:
    """Return the tensors of every safetensors file of the candidate, from the headers alone.

    Raises:
        VerificationFailed: a file is cut short or damaged, or lacks a tensor that the index promises.
    """
    try:
        files = [path for path in weight_files(folder) if path.suffix == ".safetensors"]
    except ModelError as error:
        raise VerificationFailed(f"the candidate is not whole: {error}") from error
    found, problems = {}, []
    for path in files:
        try:
            found[path] = read_header(path)
        except ModelError as error:
            problems.append(str(error))
    index = folder / _INDEX
    if index.is_file() and len(found) == len(files):
        promised = read_config(folder, _INDEX).get("weight_map", {})
        problems += [
            f"{folder / shard}: lacks {name}, which {_INDEX} promises"
            for name, shard in promised.items()
            if name not in found.get(folder / shard, {})
        ][:_SHOWN]
    if problems:
        raise VerificationFailed("the candidate is not whole: " + "; ".join(problems))
    return found


def changed_since_export(candidate: ArmPath) -> tuple[str, ...]:
    """Say where the folder is not the one that its own lineage names."""
    lineage = read_lineage(candidate.path)
    named = lineage.variants[-1].fingerprint if lineage else None
    found = fingerprint_folder(candidate.path)
    if named is None or named == found:
        return ()
    return (
        f"the candidate's files were changed after it was made: its fingerprint is {found[:19]}, its "
        f"lineage.json says {named[:19]}",
    )


def token_failures(
    reference: Any, candidate: Any, rows: Sequence[Row], ids: Sequence[tuple[int, ...]], length: int
) -> tuple[str, ...]:
    """Say where the candidate's tokenizer (vocabulary, chat template, end of sequence) is not the
    reference's, and how many of the prompts (the reference's: `ids`) it turns into other tokens.
    """
    failures = [*_vocabulary_failures(reference, candidate), *_template_failures(reference, candidate)]
    if reference.eos_token_id != candidate.eos_token_id:
        failures.append(
            f"the candidate's tokenizer has the eos_token {_token(candidate, candidate.eos_token_id)}, the "
            f"reference's {_token(reference, reference.eos_token_id)}"
        )
    try:
        theirs = prompt_ids(candidate, rows, length)
    except TemplateError as error:
        return (*failures, f"the candidate's chat template cannot render the prompts: {error}")
    different = sum(a != b for a, b in zip(ids, theirs, strict=True))
    if different:
        failures.append(
            f"{different} of {len(ids)} prompts become other token ids with the candidate's own "
            "tokenizer and chat template"
        )
    return tuple(failures)


def _vocabulary_failures(reference: Any, candidate: Any) -> list[str]:
    ours, theirs = reference.get_vocab(), candidate.get_vocab()
    lost = sorted((number, text) for text, number in ours.items() if text not in theirs)
    more = sorted((number, text) for text, number in theirs.items() if text not in ours)
    moved = sorted((number, text) for text, number in ours.items() if theirs.get(text, number) != number)
    apart, special = (_added(reference, candidate, theirs, only_special=only) for only in (False, True))
    words = (
        (lost, "lacks {n} tokens of the reference's"),
        (more, "has {n} tokens that the reference's has not"),
        (moved, "gives {n} tokens another id than the reference's"),
        (apart, "reads {n} added tokens of the reference's as ordinary text"),
        (special, "takes {n} special tokens of the reference's for ordinary ones"),
    )
    return [
        f"the candidate's tokenizer {what.format(n=len(tokens))}: "
        + ", ".join(f"{text!r} ({number})" for number, text in tokens[:_SHOWN])
        + (f" and {len(tokens) - _SHOWN} more" if len(tokens) > _SHOWN else "")
        for tokens, what in words
        if tokens
    ]


def _added(
    reference: Any, candidate: Any, vocabulary: dict[str, int], *, only_special: bool
) -> list[tuple[int, str]]:
    """The reference's added tokens that are in the candidate's vocabulary but not added there (they are found
    in no text then), or that are special in the reference alone (decoding keeps them then).
    """
    ours, theirs = (
        {token.content: (number, token.special) for number, token in each.added_tokens_decoder.items()}
        for each in (reference, candidate)
    )
    if only_special:
        return sorted(
            (n, text) for text, (n, special) in ours.items() if special and not theirs.get(text, (0, 1))[1]
        )
    return sorted((n, text) for text, (n, _) in ours.items() if text in vocabulary and text not in theirs)


def _template_failures(reference: Any, candidate: Any) -> list[str]:
    ours, theirs = _templates(reference), _templates(candidate)
    lines = []
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) == theirs.get(name):
            continue
        label = "chat template" if name == "default" else f"chat template '{name}'"
        if name not in theirs:
            lines.append(f"the candidate has no {label}; the reference has one")
        elif name not in ours:
            lines.append(f"the candidate has a {label}; the reference has none")
        else:
            where = _first_difference(ours[name], theirs[name])
            lines.append(f"the candidate's {label} is another one: {where}")
    return lines


def _templates(tokenizer: Any) -> dict[str, str]:
    found = tokenizer.chat_template
    return {} if not found else {"default": found} if isinstance(found, str) else dict(found)


def _first_difference(ours: str, theirs: str) -> str:
    """The first place where two texts differ, with a little around it."""
    pairs = enumerate(zip(ours, theirs, strict=False))
    place = next((n for n, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
    part = slice(max(0, place - _AROUND), place + 2 * _AROUND)
    return f"at character {place + 1} it has {theirs[part]!r} in place of {ours[part]!r}"


def stop_failures(reference: Sequence[int], candidate: Sequence[int]) -> tuple[str, ...]:
    """Say where generation ends at other tokens."""
    if list(reference) == list(candidate):
        return ()
    return (
        f"the candidate's generation stops at token {_listed(candidate)}, the reference's at "
        f"{_listed(reference)} (eos_token_id of generation_config.json)",
    )


def _token(tokenizer: Any, number: int | None) -> str:
    return "no token" if number is None else f"{tokenizer.convert_ids_to_tokens(number)!r} ({number})"


def _listed(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids)) or "none"
