"""The verify stage: reference and candidate answer the same prompts, and the record says how they differ."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_eval.engines.transformers import max_length, open_engine
from lora_eval.errors import InputError, ModelError, VerificationFailed
from lora_eval.exporters.rows import Row
from lora_eval.models import load_tokenizer, package_versions
from lora_eval.protocols import Progress
from lora_eval.records import Divergence, Verification
from lora_eval.records.verification import PerplexityRatio, StoredFloor, SuiteCheck
from lora_eval.schema import write_record
from lora_eval.suites.reference import covered
from lora_eval.verify.arms import ArmPath, arm_vocabulary
from lora_eval.verify.checks import changed_since_export, check_files, stop_failures, token_failures
from lora_eval.verify.diagnose import Diagnosis, diagnose
from lora_eval.verify.divergence import Tally, logits_of
from lora_eval.verify.floors import Expected, find_floors
from lora_eval.verify.prompts import read_prompts, sequences_fingerprint
from lora_eval.verify.reference import Reference, stop_ids
from lora_eval.verify.suite_items import AnySuite, check_suite, loaded, suite_failures
from lora_eval.verify.tolerance import (
    FACTOR,
    FACTOR_REASON,
    NEAR_FACTOR,
    NEAR_REASON,
    Tolerance,
    from_floor,
    near,
)


@dataclass(frozen=True, slots=True)
class Options:
    """How to verify. `samples` prompts (and as many items of the suite) of at most the model's length,
    answers of `new_tokens`; `expected` None: near where only the candidate is quantized, else equal;
    `tolerance` overrides single limits; `margin` is what a suite's right-or-wrong items may lose (a share).
    Reference logits are kept in `store`, and read there again (None: not kept).
    """

    samples: int = 64
    new_tokens: int = 16
    expected: Expected | None = None
    tolerance: dict[str, float] = field(default_factory=dict)
    dtype: str = "auto"
    quantize: str = "auto"
    margin: float = 0.02
    store: Path | None = None


def verify(
    reference: ArmPath,
    candidate: ArmPath,
    prompts: Path | list[Row] | None,
    out: Path | None = None,
    options: Options | None = None,
    progress: Progress = lambda what, done, total: None,
    *,
    suite: AnySuite | None = None,
) -> Verification:
    """Compare the arms on the prompts (a file, a run's folder, or rows), on the suite's items, or on both;
    return (and store at `out`) the verification, passed or not.

    Raises:
        InputError: prompts cannot be read, an arm cannot be opened, or there is nothing to ask.
        VerificationFailed: the candidate's files are not whole, or the arms have different vocabularies, so
            nothing can be compared; the message says what is wrong with it.
    """
    options = options or Options()
    started = time.perf_counter()
    rows = _rows(prompts, options.samples)
    if not rows and suite is None:
        raise InputError("nothing to ask: give prompts, a suite, or both")
    check_files(candidate.path)
    expected = options.expected or ("near" if candidate.quantized and not reference.quantized else "equal")
    with _store(options.store) as store:
        asked = Reference(reference, rows, suite, _settings(options), store, progress)
        comparison = _Comparison(asked, candidate, rows, suite, options, progress)
        floor, others = find_floors(asked, candidate, expected)
        asked.close()
        gc.collect()  # the candidate needs the memory
        found = comparison.run()
        record = _record(comparison, found, floor, others, expected)
    record = record.model_copy(update={"wall_seconds": round(time.perf_counter() - started, 3)})
    if out is not None:
        write_record(out, record)
    return record


def _rows(prompts: Path | list[Row] | None, samples: int) -> list[Row]:
    if prompts is None:
        return []
    return read_prompts(prompts, samples) if isinstance(prompts, Path) else prompts[:samples]


def _settings(options: Options) -> dict[str, Any]:
    names = ("samples", "new_tokens", "dtype", "quantize")
    return {name: getattr(options, name) for name in names}


@contextmanager
def _store(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="lora-eval-verify-") as scratch:
        yield Path(scratch)


@dataclass(frozen=True, slots=True)
class _Found:
    """What was measured of the candidate, by source of the sequences."""

    measured: dict[str, Divergence]
    perplexity: PerplexityRatio | None
    failures: tuple[str, ...]
    suite: SuiteCheck | None


@dataclass(frozen=True, slots=True)
class _Comparison:
    """A stored reference and a candidate that is yet to be opened."""

    asked: Reference
    candidate: ArmPath
    rows: list[Row]
    suite: AnySuite | None
    options: Options
    progress: Progress

    def run(self) -> _Found:
        """Open the candidate and compare."""
        changed = changed_since_export(self.candidate)
        self.progress("opening the candidate", 0, 1)
        with self._usable("opened", changed):
            other = self.candidate.open(quantize=self.options.quantize)
        sizes = self.asked.header.vocabulary, arm_vocabulary(other)
        length = max_length(other) - self.options.new_tokens
        failures = (
            *token_failures(
                _tokenizer(self.asked.arm), other.tokenizer, self.rows, self.asked.header.prompts, length
            ),
            *stop_failures(self.asked.header.stop_ids, stop_ids(other)),
            *changed,
        )
        if sizes[0] != sizes[1]:
            lost = (
                f"the reference distinguishes {sizes[0]} next tokens, the candidate {sizes[1]}: tokens were "
                "added or lost, so this is not the model that was measured"
            )
            raise self._refused(lost, failures)
        with self._usable("run", failures):
            tallies = self._tally(other)
        try:
            measured = {source: tally.divergence() for source, tally in tallies.items()}
        except VerificationFailed as error:
            raise self._refused(str(error), failures) from error
        first = next(iter(tallies.values()))
        return _Found(measured, first.perplexity(), failures, self._suite(other))

    def _tally(self, other: Any) -> dict[str, Tally]:
        """By source, the prompts first."""
        tallies = {"prompts": Tally(), "suite": Tally()}
        done = 0
        for chunk in self.asked.chunks():
            batch = [asked for asked, _ in chunk]
            for (asked, kept), logits in zip(
                chunk, logits_of(other, self.candidate.name, batch), strict=True
            ):
                tallies[asked.source].add(kept, logits, asked)
            done += len(batch)
            self.progress("comparing", done, self.asked.header.sequences)
        return {source: tally for source, tally in tallies.items() if tally.items}

    def _suite(self, other: Any) -> SuiteCheck | None:
        stored = self.asked.suite_run
        if self.suite is None or stored is None:
            return None
        engine = covered(open_engine(other))
        found = self.suite.run(engine, self.candidate.name, self.progress)
        run = loaded(self.suite, self.candidate.name, self.candidate.variant(), engine, found)
        return check_suite(self.suite, stored, run, self.options.margin)

    @contextmanager
    def _usable(self, what: str, failures: tuple[str, ...]) -> Iterator[None]:
        """What libraries say of a damaged model is a failed verification, with the causes. Where the files
        are what they should be, the error is not the candidate's.
        """
        try:
            yield
        except ModelError as error:
            raise self._refused(f"the candidate cannot be {what}: {error}", failures) from error
        except (IndexError, KeyError, RuntimeError, ValueError) as error:
            found = self.diagnosis()
            if not found.causes:
                raise
            said = f"the candidate cannot be {what} ({type(error).__name__}: {error})"
            raise self._refused(said, failures, found) from error

    def _refused(
        self, said: str, failures: tuple[str, ...], found: Diagnosis | None = None
    ) -> VerificationFailed:
        """`found` is the diagnosis, where it is known: it reads every tensor of both models."""
        causes = (found or self.diagnosis()).causes
        return VerificationFailed("\n  ".join([said, *failures, *causes]))

    def diagnosis(self) -> Diagnosis:
        """Return what is wrong with the candidate's files."""
        changed = bool(changed_since_export(self.candidate))
        return diagnose(self.asked.arm, self.candidate, self.options.quantize, exact=changed)


def _tokenizer(arm: ArmPath) -> Any:
    own = (arm.path / "tokenizer_config.json").is_file() or arm.base is None
    return load_tokenizer(arm.path if own else arm.base)  # type: ignore[arg-type]


def _record(
    comparison: _Comparison,
    found: _Found,
    floor: StoredFloor | None,
    others: dict[str, StoredFloor],
    expected: Expected,
) -> Verification:
    options, asked = comparison.options, comparison.asked
    limits = {
        source: _limits(expected, None if floor is None else floor.measured[source], floor, options)
        for source in found.measured
    }
    main = next(iter(found.measured))
    failures = [*found.failures]
    for source, measured in found.measured.items():
        where = "" if len(limits) == 1 else f"{source}: "
        failures += [f"{where}{line}" for line in limits[source].failures(measured)]
    suite = found.suite
    if suite is not None:
        failures += suite_failures(suite, expected)
        own = {"measured": found.measured["suite"], "tolerance": limits["suite"].limits,
               "floor": floor.measured["suite"] if floor else None}  # fmt: skip
        suite = suite.model_copy(update={} if main == "suite" else own)
    causes = _look_at_tensors(comparison, expected, failures)
    known = floor is not None
    return Verification(
        reference=asked.variant,
        candidate=comparison.candidate.variant(),
        measured=found.measured[main],
        floor=floor.measured[main] if floor else None,
        tolerance=limits[main].limits,
        tolerance_source=limits[main].source,
        passed=not failures,
        failures=tuple(failures),
        packages=package_versions(),
        prompts_sha256=sequences_fingerprint(asked.header.prompts),
        expected=expected,
        floor_source=floor.words if floor else None,
        factor=(FACTOR if expected == "equal" else NEAR_FACTOR) if known else None,
        factor_reason=(FACTOR_REASON if expected == "equal" else NEAR_REASON) if known else None,
        other_floors={words: other.measured[main] for words, other in others.items()},
        perplexity=found.perplexity,
        suite=suite,
        causes=causes,
        reference_logits="stored" if asked.was_stored else "computed",
    )


def _look_at_tensors(comparison: _Comparison, expected: Expected, failures: list[str]) -> tuple[str, ...]:
    """Return the causes of a failure. A merge and a GPTQ model are looked at in any case, since one damaged
    weight of millions changes no answer, and a model made from the wrong merge lies as near as the right one:
    then it fails for that (unless limits were given by hand, which ask for answers alone).
    """
    by_hand, gptq = comparison.options.tolerance, comparison.candidate.is_gptq
    if not failures and (by_hand or (expected == "near" and not gptq)):
        return ()
    found = comparison.diagnosis()
    if found.tensors and not failures:
        failures.append("weights are not those that the reference's files give, whatever the answers")
    return found.causes if failures else ()


def _limits(
    expected: Expected, measured: Divergence | None, floor: StoredFloor | None, options: Options
) -> Tolerance:
    words = floor.words if floor else ""
    if expected == "equal":
        assert measured is not None
        return from_floor(measured, words, options.tolerance)
    return near(measured, words, options.tolerance)
