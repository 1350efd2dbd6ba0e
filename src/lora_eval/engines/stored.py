"""An engine that asks another one only what no run has asked before.

The key of an answer is a sha256 over everything that decides it: the engine and its numerics, the identity of
the arm (fingerprints of weights, not names or paths), and the request's token ids and limits. So an answer is
never given for another model, dtype or tokenizer.
"""

from __future__ import annotations

import hashlib
import struct
import sys
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from lora_eval.engines.store import ResultStore
from lora_eval.engines.wrapped import WrappedEngine
from lora_eval.errors import RecordError
from lora_eval.fingerprint import fingerprint_data
from lora_eval.protocols import Engine, Finished, GenerateRequest, Generation, Progress, Score, ScoreRequest

_KEY_BYTES = 16  # 2**64 answers before two are likely to share a key
_BLOCK = 4096  # requests that are looked up, and told as finished, at a time
_SCORE = struct.Struct("<d?")
_GENERATION = struct.Struct("<IB")

Request = TypeVar("Request", ScoreRequest, GenerateRequest)
Answer = TypeVar("Answer", Score, Generation)


@runtime_checkable
class StorableEngine(Engine, Protocol):
    """An engine whose answers may be stored: it can say what they depend on besides arm and request."""

    @property
    def numerics(self) -> str:
        """How the numbers are computed, and in which version: changed whenever an answer might change."""

    @property
    def generation_digest(self) -> str:
        """Digest of the generation settings that the model brings (its end-of-sequence tokens and others)."""


@dataclass(frozen=True, slots=True)
class _Kind(Generic[Request, Answer]):
    """What scoring and generating do differently."""

    name: str
    ask: Callable[[str, Sequence[Request], Progress, Finished | None], list[Answer]]
    question: Callable[[Request], bytes]
    pack: Callable[[Answer], bytes]
    unpack: Callable[[bytes], Answer]


class StoredEngine(WrappedEngine):
    """Answers from the store what is there, asks `engine` for the rest and stores each step it finishes.

    `identities` maps an arm to a dictionary of all that decides its answers: fingerprints of weights and
    adapter, quantization, device type, attention implementation, versions of packages. Arms that are not in
    it are never stored. Equal requests of one call are asked once; sampled ones are equal only with equal
    seeds. Other attributes (`resident`, `batch_tokens`) are those of `engine`.

    Where the engine has a method `remember(arm, request, generation)`, it is told about answers that came
    from the store: it can use them as drafts for another arm. Only engines that draft have it, so it is no
    part of the protocol and is asked for by name.
    """

    def __init__(
        self, engine: StorableEngine, store: ResultStore, identities: Mapping[str, Mapping[str, Any]]
    ) -> None:
        super().__init__(engine)
        self._numerics, self._digest = engine.numerics, engine.generation_digest
        self._store = store
        self._identities = {arm: fingerprint_data(dict(identity)) for arm, identity in identities.items()}

    def score(
        self, arm: str, requests: Sequence[ScoreRequest], progress: Progress, finished: Finished | None = None
    ) -> list[Score]:
        """Return the log-likelihood of each continuation, stored or computed.

        Raises:
            RecordError: the store is damaged.
        """
        kind = _Kind("score", self._engine.score, score_question, pack_score, unpack_score)
        return self._answer(kind, arm, requests, progress, finished)

    def generate(
        self,
        arm: str,
        requests: Sequence[GenerateRequest],
        progress: Progress,
        finished: Finished | None = None,
    ) -> list[Generation]:
        """Return each answer, stored or computed.

        Raises:
            RecordError: the store is damaged.
        """
        kind = _Kind("generate", self._engine.generate, generate_question, pack_generation, unpack_generation)
        remember = getattr(self._engine, "remember", None)
        return self._answer(kind, arm, requests, progress, finished, remember)

    def _answer(
        self,
        kind: _Kind[Request, Answer],
        arm: str,
        requests: Sequence[Request],
        progress: Progress,
        finished: Finished | None,
        remember: Callable[[str, Request, Answer], None] | None = None,
    ) -> list[Answer]:
        counted = self.work["requests"]
        answers: dict[int, Answer] = {}
        missing: dict[bytes, list[int]] = {}
        prefix = self._prefix(kind.name, arm)
        for start in range(0, len(requests), _BLOCK):
            block = requests[start : start + _BLOCK]
            keys = [hashlib.sha256(prefix + kind.question(r)).digest()[:_KEY_BYTES] for r in block]
            stored = self._store.lookup(keys) if arm in self._identities else {}
            for place, key in enumerate(keys, start):
                if key in stored:
                    answers[place] = self._unpack(kind, stored[key])
                    if remember:
                        remember(arm, requests[place], answers[place])
                else:
                    missing.setdefault(key, []).append(place)
            told = [(place, answers[place]) for place in range(start, start + len(block)) if place in answers]
            if finished and told:
                finished(told)
            progress(f"{arm}: reading stored answers", start + len(block), len(requests))
        self.work["stored_requests"] += len(answers)
        if missing:
            self._compute(kind, arm, requests, missing, answers, progress, finished)
        self.work["requests"] = counted + len(requests)  # whatever the engine has counted of them
        return [answers[place] for place in range(len(requests))]

    def _compute(
        self,
        kind: _Kind[Request, Answer],
        arm: str,
        requests: Sequence[Request],
        missing: Mapping[bytes, list[int]],
        answers: dict[int, Answer],
        progress: Progress,
        finished: Finished | None,
    ) -> None:
        """Ask for one request of each key; `answers` then holds all places, and the store what it may."""
        keys = list(missing)

        def heard(pairs: Sequence[tuple[int, Answer]]) -> None:
            if arm in self._identities:
                self._store.insert([(keys[index], kind.pack(answer)) for index, answer in pairs])
            told = [(place, answer) for index, answer in pairs for place in missing[keys[index]]]
            answers.update(told)
            if finished:
                finished(told)

        asked = [requests[places[0]] for places in missing.values()]
        computed = kind.ask(arm, asked, progress, heard)
        # An engine that calls nobody back still has its answers stored, at the end.
        silent = [pair for pair in enumerate(computed) if missing[keys[pair[0]]][0] not in answers]
        if silent:
            heard(silent)

    def _prefix(self, kind: str, arm: str) -> bytes:
        """Return 32 bytes for all that decides an answer besides the request."""
        decides = {
            "kind": kind,
            "engine": self.name,
            "numerics": self._numerics,
            "dtype": self.dtype,
            "generation": self._digest if kind == "generate" else None,
            "arm": self._identities.get(arm),
            "byteorder": sys.byteorder,  # of token ids in keys and numbers in values
        }
        return bytes.fromhex(fingerprint_data(decides).removeprefix("sha256:"))

    def _unpack(self, kind: _Kind[Request, Answer], value: bytes) -> Answer:
        try:
            return kind.unpack(value)
        except (struct.error, ValueError) as error:
            problem = f"holds a damaged answer ({error}); move it away: answers are then computed again"
            raise RecordError(str(self._store.path), [problem]) from error


def score_question(request: ScoreRequest) -> bytes:
    """Return bytes that differ between any two different requests."""
    context, continuation = request.context_ids, request.continuation_ids
    count = len(context) + len(continuation)
    return struct.pack(f"q{count}i", len(context), *context, *continuation)


def generate_question(request: GenerateRequest) -> bytes:
    """Return bytes that differ where answers may differ: greedy decoding has no seed."""
    sampled = bool(request.sampling.get("do_sample"))
    limits = [request.until, request.max_new_tokens, request.sampling, request.seed if sampled else None]
    ids = struct.pack(f"q{len(request.input_ids)}i", len(request.input_ids), *request.input_ids)
    return ids + fingerprint_data(limits).encode()


def pack_score(score: Score) -> bytes:
    """Return 9 bytes and 4 for each token whose log-probability is known."""
    return _SCORE.pack(score.log_likelihood, score.is_greedy) + score.token_log_probabilities.tobytes()


def unpack_score(value: bytes) -> Score:
    """Return the score of which `pack_score` made `value`, bit for bit.

    Raises:
        struct.error, ValueError: it made no such value.
    """
    log_likelihood, is_greedy = _SCORE.unpack_from(value)
    return Score(log_likelihood, is_greedy, array("f", value[_SCORE.size :]))


def pack_generation(generation: Generation) -> bytes:
    """Return 5 bytes, the finish reason, 4 bytes for each token, and the text in UTF-8."""
    reason = generation.finish_reason.encode()
    ids = generation.token_ids
    head = _GENERATION.pack(len(ids), len(reason)) + reason + struct.pack(f"={len(ids)}i", *ids)
    return head + generation.text.encode("utf-8", "surrogatepass")


def unpack_generation(value: bytes) -> Generation:
    """Return the generation of which `pack_generation` made `value`.

    Raises:
        struct.error, ValueError: it made no such value.
    """
    count, length = _GENERATION.unpack_from(value)
    tokens = _GENERATION.size + length
    ids = struct.unpack_from(f"={count}i", value, tokens)
    text = value[tokens + 4 * count :].decode("utf-8", "surrogatepass")
    return Generation(text, ids, value[_GENERATION.size : tokens].decode())
