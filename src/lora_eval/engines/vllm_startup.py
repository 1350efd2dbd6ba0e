"""What happens before the first figure: transformers answers the probe, vLLM answers it, and what vLLM gets
wrong is refused, or avoided by asking one request at a time.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_eval.engines.transformers import max_length
from lora_eval.engines.vllm_probe import (
    Expected,
    Probe,
    Tolerance,
    Verdict,
    calibrate,
    cannot_tell,
    expected_of,
    judge_answers,
    judge_scores,
    make_probe,
)
from lora_eval.engines.vllm_process import RANKS, EngineDied, VllmProcess, version
from lora_eval.engines.vllm_requests import Ask, Told, generation_arguments
from lora_eval.errors import ModelError
from lora_eval.models import IDENTITY, Resident, open_folder, open_resident
from lora_eval.models.locate import read_adapter_config
from lora_eval.protocols import Score

SCORE, GENERATE = "score", "generate"
_WHAT = {SCORE: "log-likelihoods", GENERATE: "answers"}
_REMEDY = {
    True: "use --engine transformers",
    False: "use --engine transformers, or merge the adapter and give it as --arm NAME=merged:PATH",
}


@dataclass(frozen=True, slots=True)
class Learned:
    """What transformers knows of the model: `expected` answers to the probe by arm, base first; `folders`
    of the adapters; `defaults`, the model's own generation settings; `note`, on the tolerance.
    """

    dtype: str
    max_length: int
    tokenizer: Any
    defaults: dict[str, Any]
    probe: Probe
    expected: dict[str, Expected]
    folders: dict[str, Path]
    on_cpu: bool
    tolerance: Tolerance
    note: str

    @property
    def base(self) -> str:
        """Name of the base's arm."""
        return next(iter(self.expected))


@dataclass(slots=True)
class Settled:
    """How vLLM may be used: `refused` maps (arm, kind) to the reason; `width` maps a kind to how many
    requests at a time, None for any number; `notes` are for the report.
    """

    refused: dict[tuple[str, str], str] = field(default_factory=dict)
    width: dict[str, int | None] = field(default_factory=lambda: {SCORE: None, GENERATE: None})
    notes: list[str] = field(default_factory=list)


def learn(
    base: Path,
    adapters: Mapping[str, Path],
    *,
    base_name: str,
    dtype: str,
    identity: Path | None = None,
) -> Learned:
    """Answer the probe in transformers; the model is freed again, because vLLM wants a GPU's memory.

    `identity` is an empty folder for an adapter that does nothing, which becomes the arm `IDENTITY`.
    """
    import torch

    if adapters or identity:
        resident = open_resident(
            base, adapters, base_name=base_name, dtype=dtype, identity_control=identity is not None
        )
    else:
        resident = open_folder(base, name=base_name, dtype=dtype)
    arms = (*resident.arms, *([IDENTITY] if identity else []))
    folders = dict(adapters)
    if identity:
        _save_identity(resident, identity)
        folders[IDENTITY] = identity
    probe = make_probe(resident.tokenizer, max_length(resident))
    expected = {arm: expected_of(resident, arm, probe) for arm in arms}
    # Last, because it leaves the model in float32.
    tolerance, note = calibrate(resident, base_name, probe, expected[base_name])
    found = Learned(
        dtype=resident.dtype,
        max_length=max_length(resident),
        tokenizer=resident.tokenizer,
        defaults=resident.model.generation_config.to_dict(),
        probe=probe,
        expected=expected,
        folders=folders,
        on_cpu=resident.device.type == "cpu",
        tolerance=tolerance,
        note=note,
    )
    del resident
    gc.collect()
    torch.cuda.empty_cache()
    return found


def _save_identity(resident: Resident, folder: Path) -> None:
    """Write the resident's adapter that does nothing in PEFT's format."""
    import torch

    marker = ".identity."
    state = {
        f"base_model.model.{name.replace(marker, '.')}": value.detach().cpu()
        for name, value in resident.model.named_parameters()
        if marker in name
    }
    modules = {name.partition(".lora_")[0].rpartition(".")[2] for name in state}
    rank = next(value.shape[0] for name, value in state.items() if ".lora_A." in name)
    torch.save(state, folder / "adapter_model.bin")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "bias": "none"}
    text = json.dumps(config | {"target_modules": sorted(modules)})
    (folder / "adapter_config.json").write_text(text, "utf-8")


def lora_rank(folders: Mapping[str, Path]) -> int:
    """Return the smallest `max_lora_rank` that vLLM takes and that holds every adapter.

    Raises:
        ModelError: an adapter's rank is larger than any of them.
    """
    needed = 1
    for folder in folders.values():
        config = read_adapter_config(folder)
        rank = max([int(config.get("r", 8)), *map(int, (config.get("rank_pattern") or {}).values())])
        if rank > RANKS[-1]:
            raise ModelError(
                f"{folder}: rank {rank}, vLLM takes at most {RANKS[-1]}; use --engine transformers"
            )
        needed = max(needed, rank)
    return next(rank for rank in RANKS if rank >= needed)


def settle(process: VllmProcess, learned: Learned) -> Settled:
    """Put the probe to vLLM and return how it may be used."""
    found = Settled(notes=[f"vllm: {learned.note}"] if learned.note else [])
    for arm, reason in process.refused.items():
        found.refused |= {(arm, kind): f"{reason}; {_REMEDY[False]}" for kind in found.width}
    tolerance = learned.tolerance
    for arm in learned.expected:
        if arm not in (learned.base, IDENTITY):
            note = cannot_tell(arm, learned.expected, tolerance, learned.base)
            found.notes += [f"vllm: {note}"] if note else []
    for kind in (GENERATE, SCORE):
        _settle_kind(process, learned, kind, found)
    if len(learned.expected) > 1 and found.width[GENERATE] is None:
        _ask_mixed(process, learned, found)
    return found


def _settle_kind(process: VllmProcess, learned: Learned, kind: str, found: Settled) -> None:
    arms = [arm for arm in learned.expected if arm not in process.refused]
    faults = _faults(process, learned, kind, arms, None)
    if faults:
        alone = _faults(process, learned, kind, arms, 1)
        if len(alone) < len(faults):
            arm, reason = next(iter(faults.items()))
            found.width[kind] = 1
            found.notes.append(
                f"vllm: {_WHAT[kind]} one request at a time; with several, arm {arm}: {reason}"
            )
            faults = alone
    for arm, reason in faults.items():
        found.refused[arm, kind] = (
            f"the start-up probe finds that vLLM {version()} computes wrong {_WHAT[kind]} for it: {reason}; "
            f"{_REMEDY[arm == learned.base]}"
        )


def _faults(
    process: VllmProcess, learned: Learned, kind: str, arms: list[str], width: int | None
) -> dict[str, str]:
    """Return what is wrong by arm; the base is asked a second time after all adapters."""
    faults: dict[str, str] = {}
    for arm in [*arms, arms[0]] if len(arms) > 1 else arms:
        if arm in faults:
            continue
        try:
            verdict = _ask(process, learned, kind, arm, width)
        except EngineDied as error:
            process.restart()
            faults[arm] = f"vLLM's process ends: {error}"
            if width is None:  # one such end says enough: it is tried again one request at a time
                return faults | {other: faults[arm] for other in arms if other not in faults}
            continue
        if verdict.reason:
            faults[arm] = verdict.reason
    return faults


def _ask(process: VllmProcess, learned: Learned, kind: str, arm: str, width: int | None) -> Verdict:
    tolerance, adapter = learned.tolerance, None if arm == learned.base else arm
    # The control that does nothing gives the base's own answers: that is no fault of it.
    others = {name: value for name, value in learned.expected.items() if IDENTITY not in (name, arm)}
    expected = {arm: learned.expected[arm]} | others
    if kind == SCORE:
        scores: dict[int, Score] = {}
        process.score(learned.probe.scores, adapter, scores.update, width=width)
        return judge_scores([scores[i] for i in range(len(scores))], arm, expected, tolerance)
    told = _generate(process, learned, [adapter] * len(learned.probe.generations), width)
    return judge_answers([_tokens(answer) for answer in told], arm, expected, tolerance)


def _generate(
    process: VllmProcess, learned: Learned, adapters: list[str | None], width: int | None
) -> list[Told]:
    """Answer the probe's prompts in turn, with the adapter given for each place."""
    requests = learned.probe.generations
    asks = [
        Ask(request.input_ids, generation_arguments(request, {}, ()) | {"logprobs": 0}, adapter)
        for adapter, request in zip(adapters, requests * (len(adapters) // len(requests)), strict=True)
    ]
    told: dict[int, Told] = {}
    process.run(asks, told.__setitem__, width=width)
    return [told[place] for place in range(len(asks))]


def _tokens(told: Told) -> list[tuple[int, float]]:
    rows = told.rows or ()
    return [(token, row[token].logprob) for token, row in zip(told.token_ids, rows, strict=True)]


def _ask_mixed(process: VllmProcess, learned: Learned, found: Settled) -> None:
    """Say in a note where vLLM mixes arms up in one batch: servers do such batches, this engine never."""
    arms = [arm for arm in learned.expected if arm not in process.refused]
    each = len(learned.probe.generations)
    adapters = [None if arm == learned.base else arm for arm in arms for _ in range(each)]
    try:
        told = _generate(process, learned, adapters, None)
    except EngineDied as error:
        process.restart()
        found.notes.append(f"vllm: ends on a batch of several arms ({error}); here arms are never mixed")
        return
    for number, arm in enumerate(arms):
        answers = [_tokens(answer) for answer in told[number * each : (number + 1) * each]]
        expected = {arm: learned.expected[arm]} | learned.expected
        verdict = judge_answers(answers, arm, expected, learned.tolerance)
        if verdict.reason and (arm, GENERATE) not in found.refused:
            found.notes.append(
                f"vllm: wrong answers of arm {arm} in batches of several arms, which this engine never makes "
                f"and a server does: {verdict.reason}"
            )
