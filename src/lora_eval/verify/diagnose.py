"""What is wrong with a candidate that failed: its tensors, one by one, against what they should be.

Each weight that is not the merge is taken apart by least squares: found = base + c * delta + g * (original -
base). c says how often the adapter's change is in it, g whether it lies on the base that was trained (0) or
on the original 16-bit one (1). What is left over must be no more than rounding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from lora_eval.errors import ModelError
from lora_eval.models import read_lineage
from lora_eval.models.locate import read_config
from lora_eval.verify.arms import ArmPath
from lora_eval.verify.expected import Expected, MergedTensors, SameTensors, StoredTensors

_SHOWN = 3
_FEW = 1e-3  # share of elements up to which a difference is damage, and not another weight
_NEAR = 0.1
_ROWS = 256  # of a tensor taken apart at once
# Keys of config.json that an export may change, or that decide nothing of the model.
_FREE = {
    "_name_or_path", "architectures", "dtype", "quantization_config", "tie_word_embeddings", "torch_dtype",
    "transformers_version", "use_cache",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One line for each cause; both empty where the files are what they should be. `tensors` are the weights
    that are not those which the reference's files give, `others` what lineage and configuration say.
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
    if candidate.kind == "awq":
        return Diagnosis((), others)  # AWQ moves scales into the norms before it: nothing is to be the same
    try:
        stored = StoredTensors(candidate.path)
        if not stored.infos:
            return Diagnosis((), (*others, "the tensors were not looked at: they are no safetensors"))
        source = _source(reference, quantize)
        if isinstance(source, MergedTensors) and not source.can_tell:
            return Diagnosis((), others)
        lines = _tensor_lines(source, stored, quantized=candidate.quantized, exact=exact)
    except ModelError as error:  # an adapter that we cannot merge: nothing to compare with
        return Diagnosis((), (*others, f"the tensors were not looked at: {error}"))
    return Diagnosis(tuple(lines), others)


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
    ours = read_config(reference.base or reference.path, "config.json")
    theirs = read_config(candidate.path, "config.json")
    return [
        f"config.json: {key} is {theirs.get(key)!r}, the reference's is {ours.get(key)!r}"
        for key in sorted((ours.keys() | theirs.keys()) - _FREE)
        if ours.get(key) != theirs.get(key)
    ]


def _tensor_lines(
    source: MergedTensors | SameTensors, stored: StoredTensors, *, quantized: bool, exact: bool
) -> list[str]:
    """`quantized`: only the tensors that were not quantized can be compared."""
    causes: dict[str, list[str]] = {}
    unknown: dict[str, tuple[str, str]] = {}  # tensor -> digests of what was found and of what should be
    missing, compared = [], 0
    for name in source.names():
        if name not in stored.infos:
            missing.append(name)
            continue
        if stored.infos[name].shape != source.shape(name):
            shapes = f"has shape {list(stored.infos[name].shape)}, not {list(source.shape(name))}"
            causes.setdefault(shapes, []).append(name)
            continue
        compared += 1
        found = stored.read(name)
        expected = source.expect(name, found.dtype)
        cause = explain(found, expected, exact=exact)
        if cause is None:
            continue
        causes.setdefault(cause, []).append(name)
        unknown[name] = (_digest(found), _digest(expected.tensor))
    _name_swaps(causes, unknown)
    lines = [] if quantized else _missing_lines(missing)
    return lines + [f"{_listed(names, compared)}: {cause}" for cause, names in causes.items()]


def explain(found: Any, expected: Expected, *, exact: bool = False) -> str | None:
    """Return what makes the tensor another one than expected; None where only rounding does."""
    import torch

    if torch.equal(found, expected.tensor):
        return None
    if not found.is_floating_point():
        return "holds other numbers"
    different = found != expected.tensor
    count = int(different.sum())
    if count <= max(8, _FEW * found.numel()):
        beyond = different & ~torch.isclose(found.float(), expected.tensor.float(), rtol=_unit(found), atol=0)
        if exact or bool(beyond.any()):
            return _damage(found, expected.tensor, different, count)
        return None
    if not bool(torch.isfinite(found).all()):
        return f"{int((~torch.isfinite(found)).sum())} of {found.numel()} elements are not finite"
    return _taken_apart(found, expected)


def _damage(found: Any, expected: Any, different: Any, count: int) -> str:
    place = tuple(int(index) for index in different.nonzero()[0])
    return (
        f"{count} of {found.numel()} elements are not what was written, the first at {list(place)}: "
        f"{float(found[place]):.6g} in place of {float(expected[place]):.6g} (a damaged or edited file)"
    )


def _by_rounding(found: Any, expected: Any) -> str | None:
    sums = _products(lambda part: [found[part].double() - expected[part].double(), expected[part].double()],
                     len(found))  # fmt: skip
    distance, size = float(sums[0, 0].sqrt()), float(sums[1, 1].sqrt())
    if distance <= _unit(found) * size:
        return None
    share = distance / max(size, 1e-30)
    return f"is another weight (relative distance about {share:.1g})"  # one digit: layers alike are one line


def _taken_apart(found: Any, expected: Expected) -> str | None:
    """Least squares over delta and original - base (see the module)."""
    import torch

    if expected.parts is None:
        return _by_rounding(found, expected.tensor)
    parts = expected.parts()

    def vectors(part: slice) -> list[Any]:
        base, size = parts.base[part].double(), found[part].double()
        columns = [size - base, size, size - expected.tensor[part].double()]
        columns += [] if parts.delta is None else [parts.delta[part].double()]
        columns += [] if parts.original is None else [parts.original[part].double() - base]
        columns += [] if parts.again is None else [size - parts.again[part].double()]
        return columns

    sums = _products(vectors, len(found))
    names = ["rest", "found", "wrong"]
    names += ["c"] if parts.delta is not None else []
    names += ["g"] if parts.original is not None else []
    used = [n for n, name in enumerate(names) if name in "cg" and float(sums[n, n]) > 0]
    left, share = float(sums[0, 0]), {"c": 1.0, "g": 0.0}
    if used:
        solved = torch.linalg.lstsq(sums[used][:, used], sums[used][:, :1]).solution[:, 0]
        share |= {names[n]: float(value) for n, value in zip(used, solved, strict=True)}
        left -= float(sums[used, 0] @ solved)
    rounding = _unit(found) ** 2 * float(sums[1, 1])
    if left <= rounding:
        return _words(share["c"], share["g"])
    if parts.again is not None and float(sums[-1, -1]) < 0.5 * float(sums[2, 2]):
        return (
            "was quantized again after the merge (as PEFT's merge_and_unload does in a 4-bit model): lies on "
            "neither base"
        )
    return _by_rounding(found, expected.tensor)


def _products(vectors: Callable[[slice], list[Any]], rows: int) -> Any:
    """Return the products of every pair of vectors in float64, summed up over stretches of rows, so that a
    large tensor is never there in float64 as a whole.
    """
    import torch

    total: Any = 0
    for start in range(0, rows, _ROWS):
        some = torch.stack([each.reshape(-1) for each in vectors(slice(start, start + _ROWS))])
        total = total + some @ some.T
    return total


def _words(times: float, original: float) -> str | None:
    """Say what the two shares mean; None for once, on the trained base."""
    said = []
    if abs(original - 1) < _NEAR:
        said.append("lies on the original 16-bit base, not on the quantized one that was trained")
    elif abs(original) >= _NEAR:
        said.append(f"lies {original:.2f} of the way from the trained base to the original 16-bit one")
    if abs(times) < _NEAR:
        said.append("the adapter's change is not in it")
    elif abs(times - 2) < _NEAR:
        said.append("delta applied twice (or scaled by 2 times the trained scaling)")
    elif abs(times - 1) >= _NEAR:
        said.append(f"scaling is {round(times, 2):g} times the trained one")
    return "; ".join(said) or None


def _name_swaps(causes: dict[str, list[str]], unknown: dict[str, tuple[str, str]]) -> None:
    """Where a tensor holds exactly what another should be, that is the cause."""
    owners = {expected: name for name, (_, expected) in unknown.items()}
    for name, (found, _) in unknown.items():
        other = owners.get(found)
        if other is None:
            continue
        for names in causes.values():
            if name in names:
                names.remove(name)
        causes.setdefault(f"holds the weight of {other}", []).append(name)
    for cause in [cause for cause, names in causes.items() if not names]:
        del causes[cause]


def _missing_lines(missing: Iterable[str]) -> list[str]:
    """Tensors that are not there, by the module that lacks them: a layer counts as one."""
    layers: dict[str, int] = {}
    for name in missing:
        parts = name.split(".")
        number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        layer = name if number is None else ".".join(parts[: number + 1])
        layers[layer] = layers.get(layer, 0) + 1
    return [f"{layer}: missing in the candidate ({count} tensors)" for layer, count in layers.items()]


def _listed(names: list[str], compared: int) -> str:
    short = ", ".join(name.removesuffix(".weight") for name in names[:_SHOWN])
    if len(names) <= _SHOWN:
        return short
    return f"{short} and {len(names) - _SHOWN} more ({len(names)} of {compared} tensors)"


def _digest(tensor: Any) -> str:
    import torch

    return hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def _unit(tensor: Any) -> float:
    """Twice the largest relative error of one rounding in the tensor's dtype."""
    import torch

    return float(torch.finfo(tensor.dtype).eps)
