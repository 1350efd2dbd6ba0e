"""The engine over HTTP: one model of a running server, scored and asked as every other arm.

Prompts go as token ids of the local base's tokenizer. What the server does not tell the truth about is found
by a probe when the engine is opened (`http_probe`), and then refused.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lora_eval.engines.decoding import before_stop, end_tokens
from lora_eval.engines.http_chat import CHAT
from lora_eval.engines.http_client import Refused, ServerClient
from lora_eval.engines.http_lint import lint_notes
from lora_eval.engines.http_probe import GENERATE, SCORE, Learned, learn
from lora_eval.engines.http_requests import (
    COMPLETIONS,
    Answer,
    Unread,
    read_answer,
    read_chat,
    read_rows,
    read_score,
    score_body,
)
from lora_eval.engines.vllm_requests import Told, generation_arguments, read_generation
from lora_eval.errors import InputError, ServerError
from lora_eval.fingerprint import fingerprint_data
from lora_eval.models import load_tokenizer
from lora_eval.models.locate import read_config
from lora_eval.protocols import Finished, GenerateRequest, Generation, Progress, Score, ScoreRequest
from lora_eval.records import Variant
from lora_eval.sequences import count_work


def open_served(url: str, model: str, base: Path, *, name: str, progress: Progress) -> HttpEngine:
    """Return the engine for `model` of the server at `url`, with one arm `name`; `close()` it afterwards.

    `base` is the folder whose tokenizer, length and generation settings count.

    Raises:
        InputError: the URL cannot be used, or the probe finds that another model answers.
        ServerError: the server cannot be reached, does not have the model, or ends under the probe.
    """
    from transformers import AutoConfig

    client = ServerClient(url)
    try:
        tokenizer = load_tokenizer(base)
        config = AutoConfig.from_pretrained(base, local_files_only=True)
        from lora_eval.engines.transformers import max_length

        length = max_length(SimpleNamespace(model=SimpleNamespace(config=config), tokenizer=tokenizer))  # type: ignore[arg-type]
        progress(f"probing {model}", 0, 1)
        known = lint_notes(client, model, base)
        learned = learn(client, model, tokenizer, length)
        learned = replace(learned, notes=(*known, *learned.notes))
        settings = base / "generation_config.json"
        defaults = read_config(base, settings.name) if settings.is_file() else {}
        return HttpEngine(client, model, name, tokenizer, defaults, learned)
    except BaseException:
        client.close()
        raise


def _place(body: Mapping[str, Any]) -> str:
    return CHAT if "messages" in body else COMPLETIONS


class HttpEngine:
    """Scores and generates with one model of a server. Made by `open_served`.

    `notes` says what a report must say; `refused` maps "score" or "generate" to the reason.
    """

    name = "http"
    dtype = "as served"

    def __init__(
        self,
        client: ServerClient,
        model: str,
        arm: str,
        tokenizer: Any,
        defaults: dict[str, Any],
        learned: Learned,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = learned.max_length
        self.work: Counter[str] = Counter()
        self.notes = learned.notes
        self.refused = dict(learned.refused)
        self._client = client
        self._model = model
        self._arm = arm
        self._defaults = defaults
        self._learned = learned

    @property
    def arms(self) -> tuple[str, ...]:
        """The one arm's name."""
        return (self._arm,)

    @property
    def numerics(self) -> str:
        """Changes whenever the same request may get other digits than before."""
        return f"http-1-{self._learned.mode}{'-chat' if self._learned.turns else ''}"

    @property
    def generation_digest(self) -> str:
        """Digest of the generation settings of the base's folder."""
        return fingerprint_data({k: v for k, v in self._defaults.items() if k != "transformers_version"})

    @property
    def variant(self) -> Variant:
        """The served model as records name it. Its fingerprint is that of its answers to the probe, for a
        server shows no weights: other answers are another model.
        """
        place = f"{self._client.url}#{self._model}"
        return Variant(kind="served", path=place, fingerprint=self._learned.fingerprint)

    def score(
        self, arm: str, requests: Sequence[ScoreRequest], progress: Progress, finished: Finished | None = None
    ) -> list[Score]:
        """Return the log-likelihood of each continuation; equal inputs are put once.

        Raises:
            InputError: the probe found that the server does not tell prompts' log-probabilities, or not the
                truth.
            ServerError: the server fails.
        """
        self._check(arm, SCORE)
        started, mode = time.perf_counter(), self._learned.mode or ""
        places: dict[tuple[int, ...], list[int]] = {}
        for index, request in enumerate(requests):
            places.setdefault(request.context_ids + request.continuation_ids, []).append(index)
        inputs = sorted(places)  # equal beginnings follow one another
        scores: dict[int, Score] = {}

        def heard(number: int, reply: Any) -> None:
            ids = inputs[number]
            rows = read_rows(reply, ids, mode)
            found = [(index, read_score(rows, requests[index])) for index in places[ids]]
            scores.update(found)
            self.work["forwarded_tokens"] += len(ids)
            if finished:
                finished(found)
            progress(f"{arm}: scoring", len(scores), len(requests))

        self._ask([score_body(self._model, ids, mode) for ids in inputs], SCORE, heard)
        self._count([(r.context_ids + r.continuation_ids)[:-1] for r in requests], (), started)
        return [scores[index] for index in range(len(requests))]

    def generate(
        self,
        arm: str,
        requests: Sequence[GenerateRequest],
        progress: Progress,
        finished: Finished | None = None,
    ) -> list[Generation]:
        """Return each answer up to its own stop text, end-of-sequence token or number of tokens.

        Raises:
            InputError: a setting that servers do not compute as transformers does, or the probe found that
                the server's answers cannot be used.
            ServerError: the server fails.
        """
        self._check(arm, GENERATE)
        started = time.perf_counter()
        ends = end_tokens(self._defaults.get("eos_token_id"))
        answers: dict[int, Generation] = {}
        again: list[int] = []

        def ask(order: Sequence[int], **changed: Any) -> None:
            def heard(place: int, reply: Any) -> None:
                index = order[place]
                answer = self._read(requests[index], self._told(requests[index], reply), ends)
                if answer is None:
                    again.append(index)
                    return
                answers[index] = answer
                self.work["forwarded_tokens"] += len(requests[index].input_ids) + len(answer.token_ids)
                if finished:
                    finished([(index, answer)])
                progress(f"{arm}: generating", len(answers), len(requests))

            bodies = [self._body(requests[index], ends) | changed for index in order]
            self._ask(bodies, GENERATE, heard)  # a body with messages goes to chat completions

        ask(sorted(range(len(requests)), key=lambda i: (requests[i].input_ids, i)))
        if again:
            ask(tuple(again), stop=[])
        self._count([r.input_ids for r in requests], [len(a.token_ids) for a in answers.values()], started)
        return [answers[index] for index in range(len(requests))]

    def _body(self, request: GenerateRequest, ends: frozenset[int]) -> dict[str, Any]:
        asked = generation_arguments(request, self._defaults, ends)
        asked |= {"model": self._model, "return_token_ids": True}
        turns = self._learned.turns
        messages = turns.messages(request.input_ids) if turns is not None else None
        return asked | ({"prompt": list(request.input_ids)} if messages is None else {"messages": messages})

    def _told(self, request: GenerateRequest, reply: Any) -> Answer:
        """Return the answer of either route.

        Raises:
            ServerError: chat completions have read another prompt than the measured one.
        """
        if "message" not in ((reply.get("choices") or [{}])[0] if isinstance(reply, dict) else {}):
            return read_answer(reply)
        told = read_chat(reply)
        if told.prompt_token_ids != request.input_ids:
            raise ServerError(
                f"arm {self._arm}: {self._client.url} renders a conversation of {self._model} into other "
                "token ids than the measured template, and did not when it was probed; ask lora-eval smoke"
            )
        return told

    def _read(self, request: GenerateRequest, told: Answer, ends: frozenset[int]) -> Generation | None:
        if told.token_ids is not None:
            reason = told.finish_reason or "length"
            return read_generation(request, Told(told.token_ids, reason, 0), ends, self.tokenizer)
        text = before_stop(told.text, request.until)
        return Generation(
            text, told.ids(self.tokenizer), "stop" if told.finish_reason == "stop" else "length"
        )

    def _ask(self, bodies: Sequence[dict[str, Any]], kind: str, heard: Any) -> None:
        try:
            self._client.ask_all(_place, bodies, self._learned.width[kind], heard)
        except (Refused, Unread) as error:
            raise ServerError(
                f"arm {self._arm}: {self._client.url} answers a request for {self._model} with {error}; what "
                "was answered is stored, and the same command goes on from there"
            ) from error

    def _check(self, arm: str, kind: str) -> None:
        if arm != self._arm:
            raise KeyError(f"no arm '{arm}'; there is {self._arm}")
        if reason := self.refused.get(kind):
            raise InputError(f"arm {arm}: {reason}")

    def _count(self, inputs: Sequence[tuple[int, ...]], new: Sequence[int], started: float) -> None:
        self.work.update(count_work(inputs, new))
        self.work["seconds"] += time.perf_counter() - started  # type: ignore[assignment]

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
