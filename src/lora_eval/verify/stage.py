"""The verify stage: reference and candidate answer the same prompts, and the record says how they differ."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lora_eval.engines.transformers import max_length
from lora_eval.errors import InputError, VerificationFailed
from lora_eval.models import Resident, package_versions
from lora_eval.protocols import Progress
from lora_eval.records import Divergence, Verification
from lora_eval.schema import write_record
from lora_eval.verify.arithmetic import convert, floor_dtype
from lora_eval.verify.arms import ArmPath, arm_vocabulary
from lora_eval.verify.divergence import batches, logits_of, tally
from lora_eval.verify.prompts import Asked, answer, prompt_ids, read_prompts, sequences_fingerprint
from lora_eval.verify.tolerance import Tolerance, from_floor, near

FLOOR_PROMPTS = 32


@dataclass(frozen=True, slots=True)
class Options:
    """How to verify. `samples` prompts of at most the model's length, answers of `new_tokens`; `expected`
    None: near where only the candidate is quantized, else equal; `tolerance` overrides single limits.
    """

    samples: int = 64
    new_tokens: int = 16
    expected: Literal["equal", "near"] | None = None
    tolerance: dict[str, float] = field(default_factory=dict)
    dtype: str = "auto"
    quantize: str = "auto"


def verify(
    reference: ArmPath,
    candidate: ArmPath,
    prompts: Path,
    out: Path | None = None,
    options: Options | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Verification:
    """Compare the arms on the prompts and return (and store at `out`) the verification, passed or not.

    Raises:
        InputError: prompts cannot be read, or an arm cannot be opened.
        VerificationFailed: the arms have different vocabularies, so nothing can be compared.
    """
    options = options or Options()
    started = time.perf_counter()
    rows = read_prompts(prompts, options.samples)
    expected = options.expected or ("near" if candidate.quantized and not reference.quantized else "equal")
    opened = reference.open(dtype=options.dtype, quantize=options.quantize)
    length = max_length(opened) - options.new_tokens
    if length < 1:
        raise InputError(f"--new-tokens {options.new_tokens}: the model reads {max_length(opened)} tokens")
    ids = prompt_ids(opened.tokenizer, rows, length)
    asked = answer(opened, reference.name, ids, options.new_tokens, progress)
    other = candidate.open(quantize=options.quantize)
    _check_vocabulary(opened, other)
    failures = _token_failures(opened, other, rows, ids, length)
    run = _Run(opened, reference.name, asked, progress)
    measured = run.against(other, candidate.name)
    words, floor_type = "", floor_dtype(opened.dtype, other.dtype)
    del other
    floor = None
    if expected == "equal":
        floor = run.floor(floor_type)
        words = f"the reference's own weights computed in {floor_type} instead of {run.dtype}"
        tolerance = from_floor(floor, words, options.tolerance)
    else:
        tolerance = near(options.tolerance)
    record = _record(reference, candidate, measured, floor, tolerance, failures, expected)
    record = record.model_copy(
        update={
            "prompts_sha256": sequences_fingerprint(ids),
            "wall_seconds": round(time.perf_counter() - started, 3),
        }
    )
    if out is not None:
        write_record(out, record)
    return record


class _Run:
    """The reference with what was asked of it."""

    def __init__(self, resident: Resident, arm: str, asked: Sequence[Asked], progress: Progress) -> None:
        self._resident, self._arm, self._asked, self._progress = resident, arm, asked, progress
        self.dtype = resident.dtype

    def against(self, other: Resident, arm: str) -> Divergence:
        """Return the divergence of another model; both are in memory, logits only of one batch."""

        def pairs() -> Iterator[tuple[Any, Any, Sequence[Asked]]]:
            for batch in self._counted("comparing", self._asked):
                yield logits_of(self._resident, self._arm, batch), logits_of(other, arm, batch), batch

        return tally(pairs())

    def floor(self, dtype: str) -> Divergence:
        """Return the divergence of the same weights in another arithmetic. Converts the reference in
        place, so its own logits go to the disk first: a second copy may not fit into memory.
        """
        import torch

        some = self._asked[:: max(1, len(self._asked) // FLOOR_PROMPTS)][:FLOOR_PROMPTS]
        with tempfile.TemporaryDirectory(prefix="lora-eval-verify-") as scratch:
            files = []
            for number, batch in enumerate(self._counted("noise floor", some)):
                files.append((Path(scratch) / f"{number}.pt", batch))
                torch.save(logits_of(self._resident, self._arm, batch).cpu(), files[-1][0])
            convert(self._resident, dtype)

            def pairs() -> Iterator[tuple[Any, Any, Sequence[Asked]]]:
                for path, batch in files:
                    yield torch.load(path), logits_of(self._resident, self._arm, batch), batch

            return tally(pairs())

    def _counted(self, what: str, asked: Sequence[Asked]) -> Iterator[list[Asked]]:
        done = 0
        for batch in batches(asked):
            yield batch
            done += len(batch)
            self._progress(what, done, len(asked))


def _check_vocabulary(reference: Resident, candidate: Resident) -> None:
    sizes = arm_vocabulary(reference), arm_vocabulary(candidate)
    if sizes[0] != sizes[1]:
        raise VerificationFailed(
            f"the reference distinguishes {sizes[0]} next tokens, the candidate {sizes[1]}: tokens were "
            "added or lost, so this is not the model that was measured"
        )


def _token_failures(
    reference: Resident, candidate: Resident, rows: Sequence[Any], ids: Sequence[tuple[int, ...]], length: int
) -> tuple[str, ...]:
    """Say where the candidate's own tokenizer, chat template or stop tokens differ from the reference's."""
    failures = []
    theirs = prompt_ids(candidate.tokenizer, rows, length)
    different = sum(a != b for a, b in zip(ids, theirs, strict=True))
    if different:
        failures.append(
            f"{different} of {len(ids)} prompts become other token ids with the candidate's own "
            "tokenizer and chat template"
        )
    stops = _stop_ids(reference), _stop_ids(candidate)
    if stops[0] != stops[1]:
        failures.append(
            f"the candidate's generation stops at token {_listed(stops[1])}, the reference's at "
            f"{_listed(stops[0])}"
        )
    return tuple(failures)


def _stop_ids(resident: Resident) -> list[int]:
    """Return the tokens at which generation ends; an adapter's folder may have its own settings."""
    found = resident.model.generation_config.eos_token_id
    return [] if found is None else [found] if isinstance(found, int) else sorted(found)


def _listed(ids: list[int]) -> str:
    return ", ".join(map(str, ids)) or "none"


def _record(
    reference: ArmPath,
    candidate: ArmPath,
    measured: Divergence,
    floor: Divergence | None,
    tolerance: Tolerance,
    failures: tuple[str, ...],
    expected: Literal["equal", "near"],
) -> Verification:
    failures = (*failures, *tolerance.failures(measured))
    return Verification(
        reference=reference.variant(),
        candidate=candidate.variant(),
        measured=measured,
        floor=floor,
        tolerance=tolerance.limits,
        tolerance_source=tolerance.source,
        passed=not failures,
        failures=failures,
        packages=package_versions(),
        expected=expected,
    )
