"""The reference's side of a verification, computed once and stored: sequences, what is kept of their
distributions, the suite's rows, and the noise floors. A large reference need not be opened again.

One folder for each key (weights, prompts, settings, packages), named by the key's sha256; its header is
written last, and the folder takes its place as a whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lora_eval.engines.store import default_store_path
from lora_eval.engines.transformers import max_length, open_engine
from lora_eval.errors import InputError, OutputError, RecordError
from lora_eval.exporters.rows import Row
from lora_eval.fingerprint import fingerprint_data
from lora_eval.models import Resident, package_versions
from lora_eval.protocols import Engine, Progress
from lora_eval.records import Divergence, LoadedRun
from lora_eval.records.verification import StoredFloor, StoredReference
from lora_eval.runstore import read_run, write_run
from lora_eval.schema import read_record, write_bytes, write_record
from lora_eval.suites.reference import covered
from lora_eval.verify import kept
from lora_eval.verify.arms import ArmPath, arm_vocabulary
from lora_eval.verify.divergence import Tally, batches, logits_of
from lora_eval.verify.kept import Kept
from lora_eval.verify.prompts import Asked, answer, held_out, prompt_ids, spaced
from lora_eval.verify.suite_items import AnySuite, Recorder, loaded

FLOOR_PROMPTS = 32
_HEADER = "reference.json"
_SUITE = "suite"
_PACKAGES = ("lora-eval", "torch", "transformers", "peft", "bitsandbytes", "optimum", "gptqmodel")
Change = Callable[[Resident], Resident]


def default_folder() -> Path | None:
    """Return where reference logits are stored: beside the store of answers ($LORA_EVAL_STORE, else the
    user's cache). None where that cannot be written.
    """
    try:
        folder = default_store_path().absolute().parent / "references"
    except OutputError:
        return None
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return folder if os.access(existing, os.W_OK) else None


class Reference:
    """The measured arm with what it was asked. It is opened only where something is not stored yet."""

    def __init__(
        self,
        arm: ArmPath,
        rows: Sequence[Row],
        suite: AnySuite | None,
        settings: dict[str, Any],
        store: Path,
        progress: Progress,
    ) -> None:
        self.arm = arm
        self.variant = arm.variant()
        self._rows, self._suite, self._settings, self._progress = rows, suite, settings, progress
        self._resident: Resident | None = None
        key = self._key()
        self.folder = store / fingerprint_data(key).removeprefix("sha256:")[:32]
        self.was_stored = (self.folder / _HEADER).is_file()
        if not self.was_stored:
            self._compute(key)
        self.header = read_record(self.folder / _HEADER, StoredReference)

    @property
    def suite_run(self) -> LoadedRun | None:
        """The suite's rows, where one was run."""
        return read_run(self.folder / _SUITE) if self.header.has_suite else None

    def chunks(self) -> Iterator[list[tuple[Asked, Kept]]]:
        """Yield the batches in the order and composition in which they were computed.

        Raises:
            RecordError: a file is missing or damaged.
        """
        import torch

        for number in range(len(self.header.digests)):
            path = self.folder / f"{number:05}.pt"
            try:
                content = path.read_bytes()
            except OSError as error:
                raise _damaged(path, f"cannot be read: {error.strerror or error}") from error
            if hashlib.sha256(content).hexdigest() != self.header.digests[number]:
                raise _damaged(path, "were changed or cut short since")
            stored = torch.load(io.BytesIO(content), weights_only=True)
            yield [(Asked(**asked), Kept(**tensors)) for asked, tensors in stored]

    def floor(self, name: str, words: str, change: Change, *, alone: bool = False) -> StoredFloor:
        """Return how far the reference is from itself after `change`, which may spoil it; stored by `name`.
        `alone`: every sequence in a batch of its own instead.
        """
        path = self.folder / f"floor-{name}.json"
        if path.is_file():
            return read_record(path, StoredFloor)
        resident = change(self._open())
        if not alone:
            self._resident = None
        floor = StoredFloor(words=words, measured=self._against_itself(resident, alone=alone))
        write_record(path, floor)
        return floor

    def _against_itself(self, resident: Resident, *, alone: bool) -> dict[str, Divergence]:
        chosen, tallies, done = self._floor_sequences(), dict[str, Tally](), 0
        for chunk in self.chunks():
            some = [(asked, found) for asked, found in chunk if asked in chosen]
            for part in [[item] for item in some] if alone else [some] if some else []:
                logits = logits_of(resident, self.arm.name, [asked for asked, _ in part])
                for (asked, found), values in zip(part, logits, strict=True):
                    tallies.setdefault(asked.source, Tally()).add(found, values, asked)
                done += len(part)
                self._progress("noise floor", done, len(chosen))
        return {source: tally.divergence() for source, tally in tallies.items()}

    def _floor_sequences(self) -> set[Asked]:
        """At most 32 answers of each source, evenly spaced."""
        sources: dict[str, list[Asked]] = {}
        for chunk in self.chunks():
            for asked, _ in chunk:
                if not asked.is_text:
                    sources.setdefault(asked.source, []).append(asked)
        return {asked for found in sources.values() for asked in spaced(found, FLOOR_PROMPTS)}

    def close(self) -> None:
        """Let go of the model: the candidate needs the memory."""
        self._resident = None

    def _open(self) -> Resident:
        if self._resident is None:
            self._progress("opening the reference", 0, 1)
            self._resident = self.arm.open(dtype=self._settings["dtype"], quantize=self._settings["quantize"])
        return self._resident

    def _key(self) -> dict[str, object]:
        """Everything that decides what is stored."""
        import torch

        versions = package_versions()
        suite = self._suite
        return {
            "reference": self.variant.fingerprint,
            "base": self.arm.base_fingerprint,
            "arithmetic": self.arm.arithmetic(self._settings["dtype"], self._settings["quantize"]),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "rows": fingerprint_data(list(self._rows)),
            "suite": None if suite is None else [suite.fingerprint, suite.limit],
            "samples": self._settings["samples"],
            "new_tokens": self._settings["new_tokens"],
            "kept": [kept.TOP, kept.TAIL, kept.WHOLE, "sha256"],
            "packages": {name: versions.get(name) for name in _PACKAGES},
        }

    def _compute(self, key: dict[str, object]) -> None:
        partial = self.folder.with_name(f".{self.folder.name}.{secrets.token_hex(4)}.partial")
        try:
            partial.mkdir(parents=True)
            self._write(key, partial)
            with contextlib.suppress(FileExistsError):
                partial.rename(self.folder)
        except (OSError, OutputError) as error:
            said = (error.strerror or error) if isinstance(error, OSError) else error
            raise OutputError(
                f"{self.folder.parent}: reference logits cannot be stored: {said}; give another folder with "
                "--store, or --no-store"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _write(self, key: dict[str, object], folder: Path) -> None:
        import torch

        resident = self._open()
        engine = covered(open_engine(resident))
        prompts, asked = self._prompts(resident, engine)
        if self._suite is not None:
            asked += self._suite_items(engine, folder)
        vocabulary, done = arm_vocabulary(resident), 0
        digests: list[str] = []
        for batch in batches(asked):
            stored = []
            for item, logits in zip(batch, logits_of(resident, self.arm.name, batch), strict=True):
                _check_finite(logits, self.arm)
                ids = torch.tensor(item.ids, device=logits.device)
                stored.append((asdict(item), kept.keep(logits, ids).tensors()))
            buffer = io.BytesIO()
            torch.save(stored, buffer)  # into a file it would say of a full disk only that something failed
            content = buffer.getvalue()
            write_bytes(folder / f"{len(digests):05}.pt", content)
            digests.append(hashlib.sha256(content).hexdigest())
            done += len(batch)
            self._progress("reference", done, len(asked))
        whole = vocabulary <= max(kept.WHOLE, kept.TOP + kept.TAIL)
        header = StoredReference(
            key=key,
            dtype=resident.dtype,
            vocabulary=vocabulary,
            kept=vocabulary if whole else kept.TOP,
            tail_samples=0 if whole else kept.TAIL,
            stop_ids=tuple(stop_ids(resident)),
            prompts=tuple(prompts),
            digests=tuple(digests),
            sequences=len(asked),
            has_suite=self._suite is not None,
        )
        write_record(folder / _HEADER, header)

    def _prompts(self, resident: Resident, engine: Engine) -> tuple[list[tuple[int, ...]], list[Asked]]:
        new_tokens = self._settings["new_tokens"]
        length = max_length(resident) - new_tokens
        if length < 1:
            raise InputError(f"--new-tokens {new_tokens}: the model reads {max_length(resident)} tokens")
        prompts = prompt_ids(resident.tokenizer, self._rows, length)
        texts = held_out(resident.tokenizer, self._rows, prompts, max_length(resident))
        answers = answer(engine, self.arm.name, prompts, new_tokens, self._progress) if prompts else []
        asked = [
            Asked(ids + found, len(ids), has_text=number in texts)
            for number, (ids, found) in enumerate(zip(prompts, answers, strict=True))
        ]
        return prompts, [*asked, *texts.values()]

    def _suite_items(self, engine: Engine, folder: Path) -> list[Asked]:
        assert self._suite is not None
        recorder = Recorder(engine)
        found = self._suite.run(recorder, self.arm.name, self._progress)
        run = loaded(self._suite, self.arm.name, self.variant, engine, found)
        write_run(folder / _SUITE, run.run, run.rows)
        return recorder.asked(self._settings["samples"], self._settings["new_tokens"])


def _damaged(path: Path, what: str) -> RecordError:
    return RecordError(
        str(path), [f"stored logits {what}; delete the folder {path.parent}, they are computed again"]
    )


def _check_finite(logits: Any, arm: ArmPath) -> None:
    import torch

    if bool(torch.isnan(logits).any()) or not bool(torch.isfinite(logits.amax(-1)).all()):
        raise InputError(
            f"{arm.path}: the reference's own logits are not finite, so nothing can be compared with them; "
            "open it in another dtype with --dtype float32 or bfloat16"
        )


def stop_ids(resident: Resident) -> list[int]:
    """Return the tokens at which generation ends; an adapter's folder may have its own settings."""
    found = resident.model.generation_config.eos_token_id
    return [] if found is None else [found] if isinstance(found, int) else sorted(found)
