"""What is wrong with a candidate that failed: its tensors, one by one, against what they should be (`explain`
says of one weight what makes it another one), and what its lineage and configuration say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lora_eval.errors import ModelError
from lora_eval.models import read_lineage
from lora_eval.models.legacy import legacy_positions
from lora_eval.models.locate import read_config
from lora_eval.verify.arithmetic import Grid
from lora_eval.verify.arms import ArmPath
from lora_eval.verify.expected import MergedTensors, SameTensors, StoredTensors
from lora_eval.verify.explain import explain, explain_rounded
from lora_eval.verify.packed import PACKED, GptqTensors

_SHOWN = 3
_SAMPLE = 4096  # elements of a quantized weight by which it is known again
_ALIKE = 0.9
# Keys of config.json that an export may change, or that decide nothing of the model.
_FREE = {
    "_name_or_path", "architectures", "dtype", "quantization_config", "tie_word_embeddings", "torch_dtype",
    "transformers_version", "use_cache",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One line for each cause; both empty where the files are what they should be. `tensors` are the weights
    that are not those which the reference's files give, `others` what lineage and configuration say, and
    which tensors are not there (a buffer that transformers makes itself is no damage).
    """

    tensors: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def causes(self) -> tuple[str, ...]:
        """All lines."""
        return (*self.others, *self.tensors)


def diagnose(reference: ArmPath, candidate: ArmPath, quantize: str, *, exact: bool = False) -> Diagnosis:
    """Return what is wrong with the candidate's files. Reads every tensor of both models once, in memory of a
    few tensors. `exact`: a few elements that differ by no more than rounding are damage too (files that were
    changed after they were written).
    """
    if candidate.kind == "adapter":
        return Diagnosis()
    others = (
        *_lineage_lines(reference, candidate),
        *_base_lines(reference, candidate, quantize),
        *_config_lines(reference, candidate),
    )
    quantization = read_config(candidate.path, "config.json").get("quantization_config") or {}
    moved = candidate.kind == "awq" or quantization.get("quant_method") in ("awq", "compressed-tensors")
    try:
        stored = StoredTensors(candidate.path)
        if not stored.infos:
            return Diagnosis((), (*others, "the tensors were not looked at: they are no safetensors"))
        source = _source(reference, quantize)
        if isinstance(source, MergedTensors) and not source.can_tell:
            return Diagnosis((), others)
        if moved:  # AWQ moves scales into the norms before it: nothing is to be the same
            return Diagnosis((), (*others, *_missing_lines(_missing(source, stored)), *_broken_lines(stored)))
        seen = _look(source, stored, GptqTensors(stored, quantization), exact=exact)
    except ModelError as error:  # an adapter that we cannot merge: nothing to compare with
        return Diagnosis((), (*others, f"the tensors were not looked at: {error}"))
    return Diagnosis(tuple(seen.lines()), (*others, *_missing_lines(seen.missing)))


def _source(reference: ArmPath, quantize: str) -> MergedTensors | SameTensors:
    if reference.base is not None:
        return MergedTensors(reference.base, reference.path, reference.quantization(quantize))
    if reference.quantized_as:
        return MergedTensors(reference.path, None, reference.quantized_as, reference.loaded_as)
    return SameTensors(reference.path)


def _lineage_lines(reference: ArmPath, candidate: ArmPath) -> list[str]:
    """Say where the candidate was made from something else, or onto another base, by its own account."""
    lineage = read_lineage(candidate.path)
    if lineage is None or reference.kind != "adapter":
        return []
    known = {variant.fingerprint for variant in lineage.variants}
    found = reference.variant().fingerprint
    if found in known:
        return []
    made = next((v for v in reversed(lineage.variants) if v.kind == "adapter"), None)
    if made is None or made.fingerprint is None or found is None:
        return []
    return [f"lineage.json: made from the adapter {made.fingerprint[:19]}, the reference is {found[:19]}"]


def _base_lines(reference: ArmPath, candidate: ArmPath, quantize: str) -> list[str]:
    """Say where the candidate lies on a quantized base and the reference on none, by its own account."""
    lineage = read_lineage(candidate.path)
    step = next((s for s in reversed(lineage.steps) if "onto" in s.arguments), None) if lineage else None
    if step is None or step.arguments["onto"] != "trained" or reference.base is None:
        return []
    if not step.arguments.get("quantization") or reference.quantization(quantize):
        return []
    return ["lineage.json: merged onto the base as quantized in training, the reference's is not quantized"]


def _config_lines(reference: ArmPath, candidate: ArmPath) -> list[str]:
    # Where one says positions in older words too (`export merge --server tgi`), both do.
    ours = legacy_positions(read_config(reference.base or reference.path, "config.json"))
    theirs = legacy_positions(read_config(candidate.path, "config.json"))
    return [
        f"config.json: {key} is {theirs.get(key)!r}, the reference's is {ours.get(key)!r}"
        for key in sorted((ours.keys() | theirs.keys()) - _FREE)
        if ours.get(key) != theirs.get(key)
    ]


@dataclass
class _Looked:
    """What was found of the tensors so far: names by cause, those that are missing, and of the wrong ones a
    mark of what is there and of what should be (digests, or samples of quantized weights).
    """

    causes: dict[str, list[str]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    marks: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    compared: int = 0

    def lines(self) -> list[str]:
        """One line for each cause."""
        _name_swaps(self.causes, self.marks)
        return [f"{_listed(names, self.compared)}: {cause}" for cause, names in self.causes.items()]


def _look(
    source: MergedTensors | SameTensors, stored: StoredTensors, gptq: GptqTensors, *, exact: bool
) -> _Looked:
    """Compare every tensor that can be: those of the GPTQ layout as what their integers stand for."""
    seen = _Looked()
    for name in source.names():
        there = _stored_as(name, stored.infos)
        module = name.removesuffix(".weight")
        packed = next((place for place in _places(module, stored.infos) if gptq.holds(place)), None)
        if there is not None:
            _look_at(seen, name, stored.infos[there].shape, source, partial(stored.read, there), None, exact)
        elif packed is not None and f"{packed}.scales" in stored.infos and f"{packed}.qzeros" in stored.infos:
            read = partial(gptq.weight, packed)
            _look_at(seen, name, gptq.shape(packed), source, read, gptq.grid, exact)
    seen.missing = _missing(source, stored)
    return seen


def _missing(source: MergedTensors | SameTensors, stored: StoredTensors) -> list[str]:
    """Return the tensors that are not there, neither by their own names nor, packed, with all their parts."""
    missing = []
    for name in source.names():
        if _stored_as(name, stored.infos) is not None:
            continue
        module = name.removesuffix(".weight")
        packed = [
            (place, end)
            for place in _places(module, stored.infos)
            for end in PACKED
            if place + end in stored.infos
        ]
        if not packed:
            missing.append(name)
        else:
            (place, end), *_ = packed
            missing += [f"{place}.{part}" for part in PACKED[end] if f"{place}.{part}" not in stored.infos]
    return missing


def _broken_lines(stored: StoredTensors) -> list[str]:
    """Scales and other numbers that are none."""
    broken = [name for name in stored.infos if not _finite(stored.read(name))]
    return [f"{_listed(broken, len(stored.infos))}: holds values that are not finite"] if broken else []


def _finite(tensor: Any) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _look_at(
    seen: _Looked,
    name: str,
    shape: tuple[int, ...],
    source: MergedTensors | SameTensors,
    read: Callable[[], Any],
    grid: Grid | None,
    exact: bool,
) -> None:
    if shape != source.shape(name):
        words = f"has shape {list(shape)}, not {list(source.shape(name))}"
        seen.causes.setdefault(words, []).append(name)
        return
    seen.compared += 1
    found = read()
    expected = source.expect(name, found.dtype)
    rounded = grid is not None
    cause = explain_rounded(found, expected, grid) if grid else explain(found, expected, exact=exact)
    if cause is not None:
        seen.causes.setdefault(cause, []).append(name)
        mark = _sample if rounded else _digest
        seen.marks[name] = mark(found), mark(expected.tensor)


def _places(name: str, infos: Mapping[str, Any]) -> Iterator[str]:
    """The names that a tensor or layer may have in the candidate's files: its own, and with or without the
    model's first name (`model.`, `transformer.`), which checkpoints of the bare model lack.
    """
    yield name
    yield name.partition(".")[2]
    yield from (f"{first}.{name}" for first in sorted({stored.partition(".")[0] for stored in infos}))


def _stored_as(name: str, infos: Mapping[str, Any]) -> str | None:
    return next((place for place in _places(name, infos) if place in infos), None)


def _name_swaps(causes: dict[str, list[str]], marks: dict[str, tuple[Any, Any]]) -> None:
    """Where a tensor holds what another should be, that is the cause."""
    for name, (found, _) in marks.items():
        other = next(
            (one for one, (_, expected) in marks.items() if one != name and _same(found, expected)), None
        )
        if other is None:
            continue
        for names in causes.values():
            if name in names:
                names.remove(name)
        causes.setdefault(f"holds the weight of {other}", []).append(name)
    for cause in [cause for cause, names in causes.items() if not names]:
        del causes[cause]


def _same(found: Any, expected: Any) -> bool:
    """Equal digests, or samples of one weight but for rounding (those of others are at right angles)."""
    if isinstance(found, str) or isinstance(expected, str):
        return isinstance(found, str) and isinstance(expected, str) and found == expected
    if found.shape != expected.shape:
        return False
    size = float(found.norm() * expected.norm())
    return size > 0 and float(found @ expected) > _ALIKE * size


def _missing_lines(missing: Iterable[str]) -> list[str]:
    """Tensors that are not there: a layer that lacks several counts as one."""
    layers: dict[str, list[str]] = {}
    for name in missing:
        parts = name.split(".")
        number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        layers.setdefault(name if number is None else ".".join(parts[: number + 1]), []).append(name)
    return [
        f"{names[0]}: missing in the candidate"
        if len(names) == 1
        else f"{layer}: missing in the candidate ({len(names)} tensors)"
        for layer, names in layers.items()
    ]


def _listed(names: list[str], compared: int) -> str:
    short = ", ".join(name.removesuffix(".weight") for name in names[:_SHOWN])
    if len(names) <= _SHOWN:
        return short
    return f"{short} and {len(names) - _SHOWN} more ({len(names)} of {compared} tensors)"


def _sample(tensor: Any) -> Any:
    return tensor.reshape(-1)[:_SAMPLE].double()


def _digest(tensor: Any) -> str:
    import torch

    return hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
