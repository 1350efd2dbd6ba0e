"""What becomes of each tensor of the base, decided from headers before the first weight is read."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from lora_eval.errors import ModelError
from lora_eval.exporters.base_files import BaseFiles, Layer
from lora_eval.exporters.lora import Adapter, Edit
from lora_eval.exporters.pieces import row_ranges
from lora_eval.exporters.weights import TensorInfo
from lora_eval.models.mergeable import DRIFTING

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor of the merged model. `stored` names the base's that it comes from; `edit` may be empty."""

    name: str
    info: TensorInfo
    stored: str
    layer: Layer | None = None
    edit: Edit = field(default_factory=Edit)

    @property
    def module(self) -> str:
        """The layer's path in the model, or the tensor's name where it is no layer's weight."""
        return self.layer.module if self.layer else self.name.removesuffix(".weight")


class Unrounded(TensorInfo):
    """A tensor that is copied in the width in which it is stored."""

    __slots__ = ()

    @property
    def is_floating(self) -> bool:
        """Nothing that a merge may round."""
        return False


@dataclass(frozen=True, slots=True)
class ConfigChanges:
    """What config.json must say that the base's does not: another vocabulary, layers stored apart."""

    vocab_size: int | None = None
    untied: bool = False

    def changed(self) -> dict[str, object]:
        """Return the keys to set."""
        found: dict[str, object] = {} if self.vocab_size is None else {"vocab_size": self.vocab_size}
        return found | ({"tie_word_embeddings": False} if self.untied else {})


@dataclass(frozen=True, slots=True)
class Plan:
    """All outputs by the base's shard that they are written with; what config.json must say; what to tell."""

    shards: dict[str, tuple[Output, ...]]
    config: ConfigChanges
    notes: tuple[str, ...]


def make_plan(base: BaseFiles, adapter: Adapter | None) -> Plan:
    """Return what becomes of each tensor; without an adapter nothing is added to any.

    Raises:
        ModelError: the adapter changes something that the base does not have, in another shape, or in a way
            that the weights cannot show.
    """
    owners = {name: path for path, name in base.parameters.items()}
    shards = {
        path.name: [
            Output(name, info, name, base.layers.get(owners.get(name, "").removesuffix(".weight")))
            for name, info in tensors.items()
        ]
        for path, tensors in base.shards.items()
    }
    if adapter is None:
        return Plan(_settled(base, shards), ConfigChanges(), ())
    planner = _Planner(base, adapter)
    shards = {
        shard: [planner.edited(output, owners.get(output.name, "")) for output in found]
        for shard, found in shards.items()
    }
    list(shards.values())[-1].extend(planner.untied())
    rows = planner.vocabulary([output for found in shards.values() for output in found])
    config = ConfigChanges(rows, planner.unties)
    return Plan(_settled(base, shards), config, tuple(planner.notes))


def _settled(base: BaseFiles, shards: dict[str, list[Output]]) -> dict[str, tuple[Output, ...]]:
    """Return the outputs; those that the model keeps in float32, and that do not change, are not rounded."""

    def settled(output: Output) -> Output:
        info = output.info
        if output.stored not in base.wide or output.edit != Edit():
            return output
        return replace(output, info=Unrounded(info.name, info.shape, info.dtype))

    return {name: tuple(settled(output) for output in found) for name, found in shards.items()}


class _Planner:
    """The adapter's edits, brought to the tensors of the files."""

    def __init__(self, base: BaseFiles, adapter: Adapter) -> None:
        self._base, self._adapter = base, adapter
        self._edits = dict(adapter.edits)
        self.notes: list[str] = []
        self.unties = False
        self._check()
        self._drop_copies()
        if base.tied:
            self._settle_tied()

    def _check(self) -> None:
        problems = [
            problem for module, edit in self._edits.items() for problem in self._misfits(module, edit)
        ]
        adapter = self._adapter
        for path, name in adapter.parameters.items():
            stored = self._base.parameters.get(path)
            if stored is None:
                problems.append(f"{path} is saved whole, and the base has no such parameter")
            elif self._base.info(stored).shape != adapter.shape(name) and (
                path.rpartition(".")[0] not in self._base.vocabulary
            ):
                expected = list(self._base.info(stored).shape)
                problems.append(
                    f"{path} is {list(adapter.shape(name))} in the adapter, {expected} in the base"
                )
        if problems:
            more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
            lines = "".join(f"\n  {problem}" for problem in problems[:_SHOWN])
            raise ModelError(
                f"{adapter.folder}: does not fit the base {self._base.folder} "
                f"(adapter_config.json names '{adapter.config.get('base_model_name_or_path')}'):{lines}{more}"
            )

    def edited(self, output: Output, path: str) -> Output:
        """Return the output with its edit, and the shape that it then has; `path` is the parameter's."""
        adapter = self._adapter
        module, _, kind = path.rpartition(".")
        edit = self._edits.get(module, Edit()) if kind == "weight" else Edit()
        lora = self._edits.get(module, Edit()).lora
        if kind == "bias" and lora is not None and lora.bias is not None:
            edit = Edit(bias=(lora.bias, lora.scaling))
        if path in adapter.parameters:
            edit = replace(edit, whole=adapter.parameters[path])
        shape = adapter.shape(edit.whole) if edit.whole else output.info.shape
        return replace(output, info=replace(output.info, shape=shape), edit=edit)

    def untied(self) -> list[Output]:
        """Return the tensors that the base does not have, since the layer shared the embedding's."""
        if not self.unties:
            return []
        base, found = self._base, []
        for module in base.tied:
            if base.parameters.get(f"{module}.weight") is None:
                stored = str(base.tensor_of(module))
                name = base.names[f"{module}.weight"]
                info = replace(base.info(stored), name=name)
                edit = self._edits.get(module, Edit())
                shape = self._adapter.shape(edit.whole) if edit.whole else info.shape
                found.append(Output(name, replace(info, shape=shape), stored, base.layers[module], edit))
        return found

    def vocabulary(self, outputs: list[Output]) -> int | None:
        """Return the new number of token rows, None where it is the base's (ModelError: layers differ)."""
        rows = {
            output.module: (output.layer.shape[0], output.info.shape[0])
            for output in outputs
            if output.layer and output.module in self._base.vocabulary
        }
        if all(before == after for before, after in rows.values()):
            return None
        if len(set(rows.values())) > 1:
            found = ", ".join(
                f"{module} from {before} to {after}" for module, (before, after) in rows.items()
            )
            raise ModelError(
                f"{self._adapter.folder}: the vocabulary was resized unevenly: {found} rows; save the "
                "adapter again with save_embedding_layers=True"
            )
        before, after = next(iter(rows.values()))
        self.notes.append(f"the vocabulary has {after} rows, the base's {before}: resized in training")
        return after

    def _misfits(self, module: str, edit: Edit) -> list[str]:
        base, adapter = self._base, self._adapter
        layer, stored = base.layers.get(module), base.tensor_of(module)
        if stored is None:
            return [f"{module}: the base has no such layer"]
        shape = base.info(stored).shape
        if edit.whole is not None:
            given = adapter.shape(edit.whole)
            resizable = module in base.vocabulary
            if given[1:] != shape[1:] or (given != shape and not resizable):
                return [f"{module} is {list(given)} in the adapter and {list(shape)} in the base"]
            if layer is not None and layer.quantized and edit.lora is not None:
                return [f"{module} is quantized in the base and saved whole beside its LoRA"]
            shape = given
        problems = []
        if edit.lora is not None and layer is None:
            problems.append(f"{module} is no linear layer and no embedding")
        elif edit.lora is not None and layer is not None:
            lora, expected = edit.lora, shape[::-1] if layer.transposed else shape
            outer, inner = adapter.shape(lora.b)[0], adapter.shape(lora.a)[1]
            found = (inner, outer) if lora.embedding else (outer, inner)
            if found != expected:
                problems.append(f"{module} is {list(found)} in the adapter and {list(expected)} in the base")
            if lora.bias and f"{module}.bias" not in base.parameters:
                problems.append(f"{module}: lora_B has a bias, the base's layer none to add it to")
            if adapter.initial in DRIFTING and (module in base.tied or layer.kind == "embedding"):
                problems.append(
                    f"{module}: init_lora_weights '{adapter.initial}' on a tied layer or embedding"
                )
        if edit.tokens is not None and max(edit.tokens[1]) >= shape[0]:
            problems.append(
                f"{module}: token {max(edit.tokens[1])} was trained, the base has {shape[0]} rows"
            )
        return problems

    def _drop_copies(self) -> None:
        """Forget weights that PEFT saved whole beside LoRA on an embedding where they are the base's own."""
        for module, edit in self._edits.items():
            if edit.whole is None:
                continue
            if self._equal(edit.whole, str(self._base.tensor_of(module))):
                self._edits[module] = replace(edit, whole=None)

    def _settle_tied(self) -> None:
        """Decide whether the layers that share a weight still do after the merge."""
        first, *others = self._base.tied
        edits = {module: self._edits.get(module, Edit()) for module in self._base.tied}
        tokens = edits[first].tokens
        for module in others:
            # PEFT trains one set of rows for all of them, unless the rows named differ.
            mine = edits[module].tokens
            if tokens and (mine is None or mine[1] == tokens[1]):
                edits[module] = replace(edits[module], tokens=tokens)
        if all(self._same(edits[first], edits[module]) for module in others):
            best = next((e for e in edits.values() if e.lora and not e.lora.embedding), edits[first])
            edits = dict.fromkeys(edits, best)
        else:
            self.unties = True
            changed = [module for module in edits if edits[module] != Edit()]
            self.notes.append(
                f"the base's {' and '.join(self._base.tied)} share one weight; the adapter changes "
                f"{' and '.join(changed)}{' differently' if len(changed) > 1 else ' only'}, so they are "
                "stored apart (tie_word_embeddings false)"
            )
        self._edits |= edits

    def _same(self, one: Edit, other: Edit) -> bool:
        """Whether both edits make the same weight of the same weight."""
        adapter = self._adapter
        if (one.whole is None) != (other.whole is None) or (one.lora is None) != (other.lora is None):
            return False
        if one.tokens != other.tokens:
            return False
        if one.whole and other.whole and not self._equal_tensors(one.whole, other.whole):
            return False
        if one.lora and other.lora:
            a, b = (adapter.tensor(name) for name in (one.lora.a, one.lora.b))
            c, d = (adapter.tensor(name) for name in (other.lora.a, other.lora.b))
            if one.lora.embedding != other.lora.embedding:
                c, d = d.T, c.T
            plain = not (one.lora.magnitude or other.lora.magnitude)
            return bool(
                plain and one.lora.scaling == other.lora.scaling
                and a.shape == c.shape and (a == c).all() and (b == d).all()
            )  # fmt: skip
        return True

    def _equal(self, whole: str, stored: str) -> bool:
        return _equal_values(self._adapter.tensor(whole), self._base.tensor(stored))

    def _equal_tensors(self, one: str, other: str) -> bool:
        return _equal_values(self._adapter.tensor(one), self._adapter.tensor(other))


def _equal_values(a: Any, b: Any) -> bool:
    """Whether two tensors hold the same numbers, whatever their widths; piece by piece."""
    if a.shape != b.shape:
        return False
    width = a[0].numel() if a.dim() > 1 and len(a) else 1
    return all(
        bool((a[first:end].float() == b[first:end].float()).all()) for first, end in row_ranges(len(a), width)
    )
