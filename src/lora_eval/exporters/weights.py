"""Read and write safetensors one tensor at a time, so that memory is bounded by the largest tensor."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from lora_eval.errors import ModelError
from lora_eval.exporters.direct_file import DirectFile, open_direct

INDEX = "model.safetensors.index.json"
_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}  # fmt: skip
_SIZES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
          "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}  # fmt: skip
FLOATING = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor is and what it is, from the file's header alone; `dtype` as safetensors spells it."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def is_floating(self) -> bool:
        """A 16, 32 or 64 bit number: what a merge may round to another width."""
        return self.dtype in FLOATING

    def n_bytes(self, dtype: str) -> int:
        """Size of the tensor if stored as `dtype`."""
        size = _SIZES[dtype]
        for length in self.shape:
            size *= length
        return size


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Return every tensor of a safetensors file in the order in which it lies there.

    Raises:
        ModelError: the file is cut short or is not safetensors.
    """
    return _read(path)[0]


def read_metadata(path: Path) -> dict[str, str]:
    """Return what a safetensors file says about itself, mostly `{"format": "pt"}` (ModelError as above)."""
    return _read(path)[1]


def _read(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > size - 8:
                raise ValueError(f"its header claims {length} bytes, the file has {size}")
            header = json.loads(file.read(length))
        metadata = {str(key): str(value) for key, value in header.pop("__metadata__", {}).items()}
        entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        found = {name: TensorInfo(name, tuple(e["shape"]), e["dtype"]) for name, e in entries}
        end = 8 + length + max((e["data_offsets"][1] for e in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: is not a safetensors file: {error}; copy or download it again") from error
    if end != size:
        raise ModelError(
            f"{path}: is {size} bytes long, its header promises {end}; copy or download it again"
        )
    return found, metadata


def dtype_code(name: str) -> str:
    """Return safetensors' name for a torch dtype's name, for example `BF16` for `bfloat16`."""
    return _NAMES[name]


class Writer:
    """Writes tensors whole or in pieces, in any order and from several threads; `close` refuses gaps."""

    def __init__(self, file: DirectFile, places: Mapping[str, tuple[int, int, str]]) -> None:
        self._file = file
        self._places = places  # of each tensor: byte in the file, elements, dtype code
        self._missing = {name: count for name, (_, count, _) in places.items()}
        self._lock = threading.Lock()

    def write(self, name: str, piece: Any, first: int = 0) -> None:
        """Put elements of a tensor where they belong, from its element `first` on, in the dtype announced."""
        import torch

        code = dtype_code(str(piece.dtype).removeprefix("torch."))
        start, count, expected = self._places.get(name, (0, 0, ""))
        if code != expected or first + piece.numel() > count:
            raise ValueError(f"{name} ({code}, to {first + piece.numel()}): {count} of {expected} announced")
        self._file.put(start + first * _SIZES[code], piece.contiguous().reshape(-1).view(torch.uint8))
        with self._lock:
            self._missing[name] -= piece.numel()

    def close(self) -> None:
        """Check that every announced element was written once."""
        wrong = [name for name, count in self._missing.items() if count]
        if wrong:
            raise ValueError(f"{len(wrong)} tensors announced and not written: {wrong[:3]}")


@contextmanager
def open_writer(
    path: Path, tensors: Mapping[str, tuple[TensorInfo, str]], metadata: Mapping[str, str] | None = None
) -> Iterator[Writer]:
    """Open a safetensors file for the tensors (with the dtype code each is to be stored in). At the end it is
    on the disk, and `sha256_file` knows its digest.
    """
    import torch

    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset = 0
    for name, (info, code) in tensors.items():
        size = info.n_bytes(code)
        header[name] = {"dtype": code, "shape": list(info.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    places = {
        name: (8 + len(text) + header[name]["data_offsets"][0], prod(info.shape), code)
        for name, (info, code) in tensors.items()
    }
    with open_direct(path, 8 + len(text) + offset) as file:
        start = bytearray(len(text).to_bytes(8, "little") + text)
        file.put(0, torch.frombuffer(start, dtype=torch.uint8))
        writer = Writer(file, places)
        yield writer
        writer.close()


def write_index(
    folder: Path, weight_map: Mapping[str, str], total_size: int, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write the index of a sharded model: which file holds which tensor; `metadata` is kept."""
    data = {
        "metadata": {**(metadata or {}), "total_size": total_size},
        "weight_map": dict(sorted(weight_map.items())),
    }
    (folder / INDEX).write_text(json.dumps(data, indent=2) + "\n", "utf-8")
