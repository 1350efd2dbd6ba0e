"""What the server should answer: the same weights in transformers, opened as `compare` opens them."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_eval.engines.decoding import end_tokens
from lora_eval.engines.transformers import max_length
from lora_eval.engines.vllm_probe import Expected, Probe, Tolerance, calibrate, expected_of, make_probe
from lora_eval.exporters.rows import Row
from lora_eval.models import Resident, load_tokenizer, open_folder, open_resident
from lora_eval.smoke.prompts import with_prompts

SOURCE = (
    "rounding of each model's dtype: float32 differs by the order of its sums; float16 and bfloat16 by up to "
    "twice what the dtype itself moves this model (against the same weights in float32), and at least by "
    "what vLLM was measured to differ from transformers (docs/vllm.md)"
)


@dataclass(frozen=True, slots=True)
class LocalArm:
    """One served name with what its weights answer here. `others` are the expectations of all arms that
    share its base, its own among them; `base` names the base of an adapter. `ends` are the tokens at which it
    stops, `templated` the tokenizer whose chat template was measured, `rows` the prompts that the probe ends
    with.
    """

    name: str
    path: Path
    probe: Probe
    expected: Expected
    tolerance: Tolerance
    note: str
    dtype: str
    tokenizer: Any
    templated: Any
    ends: tuple[int, ...]
    others: Mapping[str, Expected]
    base: str | None = None
    rows: tuple[Row, ...] = ()

    @property
    def is_adapter(self) -> bool:
        """Whether it is an adapter on a base that is served too."""
        return self.base is not None


def answer_here(
    base: Path,
    adapters: Mapping[str, Path],
    *,
    base_name: str,
    dtype: str,
    quantization: dict[str, Any] | None,
    longest: int | None,
    rows: Sequence[Row] = (),
) -> list[LocalArm]:
    """Return base and adapters, base first; `longest` is how many tokens the server reads, `rows` are asked
    beside the prompts of the probe.

    Raises:
        ModelError: the base or an adapter cannot be opened.
    """
    if adapters or quantization:
        resident = open_resident(base, adapters, base_name=base_name, dtype=dtype, quantization=quantization)
    else:
        resident = open_folder(base, name=base_name, dtype=dtype)
    return _arms(resident, {base_name: base} | dict(adapters), base_name, longest, rows)


def answer_folder(
    folder: Path, *, name: str, dtype: str, longest: int | None, rows: Sequence[Row] = ()
) -> LocalArm:
    """Return a whole model (merged, GPTQ, AWQ) that is served on its own."""
    (found,) = _arms(open_folder(folder, name=name, dtype=dtype), {name: folder}, name, longest, rows)
    return found


def _arms(
    resident: Resident, folders: Mapping[str, Path], base: str, longest: int | None, rows: Sequence[Row]
) -> list[LocalArm]:
    read = max_length(resident)
    length = min(read, longest or read)
    probe = make_probe(resident.tokenizer, length)
    if rows:
        probe = with_prompts(probe, _renderer(folders, base, resident.tokenizer), rows, length)
    expected = {arm: expected_of(resident, arm, probe) for arm in resident.arms}
    ends = {arm: _ends(resident, folder) for arm, folder in folders.items()}
    dtype, tokenizer = resident.dtype, resident.tokenizer
    # Last, because it leaves the model in float32.
    tolerance, note = calibrate(resident, base, probe, expected[base])
    del resident
    gc.collect()
    return [
        LocalArm(
            arm, folders[arm], probe, expected[arm], tolerance, note, dtype, tokenizer,
            _templated(folders[arm], tokenizer), ends[arm], expected, base if arm != base else None,
            tuple(rows),
        )
        for arm in expected
    ]  # fmt: skip


def _renderer(folders: Mapping[str, Path], base: str, tokenizer: Any) -> Any:
    """The tokenizer that turns conversations into ids: that of the first adapter with a template of its own,
    else the base's.
    """
    own = (_templated(folder, tokenizer) for name, folder in folders.items() if name != base)
    return next((found for found in own if found.chat_template), tokenizer)


def _templated(folder: Path, tokenizer: Any) -> Any:
    """The adapter's own tokenizer where it was saved with a chat template: that is the one it was trained
    with; else the base's.
    """
    if (folder / "tokenizer_config.json").is_file():
        own = load_tokenizer(folder)
        return own if own.chat_template else tokenizer
    return tokenizer


def _ends(resident: Resident, folder: Path) -> tuple[int, ...]:
    """The end-of-sequence tokens of the folder's generation settings, else of the base's, else the
    tokenizer's own.
    """
    settings = resident.model.generation_config
    if (folder / "generation_config.json").is_file():
        from transformers import GenerationConfig

        settings = GenerationConfig.from_pretrained(folder, local_files_only=True)
    found = end_tokens(settings.eos_token_id) or end_tokens(resident.tokenizer.eos_token_id)
    return tuple(sorted(found))
