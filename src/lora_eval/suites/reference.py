"""lm-eval's own model behind our protocol: the fall-back for models that the fast engine does not cover, and
the yardstick that the fast engine is measured against.

It imports lm_eval and torch, so it is imported only where it is used.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import postprocess_generated_text
from lm_eval.models.utils_hf import stop_sequences_criteria

from lora_eval.errors import InputError
from lora_eval.models import Resident
from lora_eval.protocols import Finished, GenerateRequest, Generation, Progress, Score, ScoreRequest
from lora_eval.sequences import count_work
from lora_eval.suites.lm_eval import quiet


def covered(engine: Any) -> Any:
    """Return the engine, or lm-eval's own path on the same model where the engine's start-up probe found that
    it does not cover it (`fallback_reason` says why).
    """
    reason = getattr(engine, "fallback_reason", None)
    if reason is None:
        return engine
    return ReferenceEngine(engine.resident, fallback_reason=reason)


class ReferenceEngine:
    """Stock `HFLM` at batch size 1 on a resident model, whatever its architecture; nothing of the model or
    its tokenizer is changed.

    `softmax_dtype` is HFLM's: "float32" is the fall-back's, None is lm-eval's default, which rounds
    log-likelihoods to the model's own type. `fallback_reason` says why the fast engine is not used.
    """

    name = "lm-eval-hf"

    def __init__(
        self,
        resident: Resident,
        *,
        softmax_dtype: str | None = "float32",
        fallback_reason: str | None = None,
    ) -> None:
        self.resident = resident
        self.dtype = resident.dtype
        self.fallback_reason = fallback_reason
        self.work: Counter[str] = Counter()
        self._softmax_dtype = softmax_dtype
        with quiet(), _untied(resident.model):
            # A copy of the tokenizer: HFLM gives it a padding token where it has none.
            self._lm = HFLM(
                pretrained=resident.model,
                tokenizer=copy.deepcopy(resident.tokenizer),
                batch_size=1,
                softmax_dtype=softmax_dtype,
            )
        self.max_length = int(self._lm.max_length)

    @property
    def numerics(self) -> str:
        """Whose numbers these are, for the store of results."""
        return f"hflm-{version('lm_eval')}-{self._softmax_dtype}"

    @property
    def generation_digest(self) -> str:
        """Digest of the generation settings that the model brings along."""
        return self.resident.generation_digest

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the resident model."""
        return self.resident.tokenizer

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms, base first."""
        return self.resident.arms

    def score(
        self, arm: str, requests: Sequence[ScoreRequest], progress: Progress, finished: Finished | None = None
    ) -> list[Score]:
        """Return HFLM's log-likelihood of each continuation, and whether it is greedy."""
        # HFLM answers requests of equal context + continuation[:-1] from one forward pass. It does so at the
        # places of the first of them, wrong for another split (0.4.13), so only equal splits go in together.
        groups: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
        for index, request in enumerate(requests):
            key = (request.context_ids, request.continuation_ids[:-1])
            groups.setdefault(key, []).append(index)
        scores: dict[int, Score] = {}
        with self.resident.activate(arm), quiet():
            for (context, start), members in groups.items():
                began = time.perf_counter()
                # No text beside the tokens: it is HFLM's key for a cache that we do not use.
                asked = [(None, list(context), list(requests[i].continuation_ids)) for i in members]
                answers = self._lm._loglikelihood_tokens(asked, disable_tqdm=True)
                found = [(i, Score(*answer)) for i, answer in zip(members, answers, strict=True)]
                scores.update(found)
                self.work["forwarded_tokens"] += len(context) + len(start)
                self._report(began, found, finished)
                progress(f"{arm}: scoring", len(scores), len(requests))
        inputs = [(r.context_ids + r.continuation_ids)[:-1] for r in requests]
        self.work.update(count_work(inputs, ()))
        return [scores[index] for index in range(len(requests))]

    def generate(
        self,
        arm: str,
        requests: Sequence[GenerateRequest],
        progress: Progress,
        finished: Finished | None = None,
    ) -> list[Generation]:
        """Return HFLM's answers, one request at a time; a sampled one depends on its own seed alone.

        Raises:
            InputError: transformers refuses the request's generation settings.
        """
        answers: list[Generation] = []
        with self.resident.activate(arm) as model, quiet():
            for index, request in enumerate(requests):
                began = time.perf_counter()
                answers.append(self._generate(model, request))
                self.work["forwarded_tokens"] += len(request.input_ids) + len(answers[-1].token_ids) - 1
                self._report(began, [(index, answers[-1])], finished)
                progress(f"{arm}: generating", len(answers), len(requests))
        new_tokens = (len(answer.token_ids) for answer in answers)
        self.work.update(count_work((request.input_ids for request in requests), new_tokens))
        return answers

    def _generate(self, model: Any, request: GenerateRequest) -> Generation:
        ids = torch.tensor([request.input_ids], device=self.resident.device)
        settings = {"do_sample": False, **request.sampling}
        if settings["do_sample"]:  # HFLM takes no temperature for 0
            settings.setdefault("temperature", model.generation_config.temperature or 1.0)
        if model.generation_config.max_new_tokens is not None:  # else it would overrule the task's limit
            settings["max_new_tokens"] = request.max_new_tokens
        try:
            with _seeded(request.seed, self.resident.device):
                output = self._lm._model_generate(
                    context=ids,
                    attention_mask=torch.ones_like(ids),
                    stop=list(request.until),
                    max_length=ids.shape[1] + request.max_new_tokens,
                    **settings,
                )
        except (ValueError, TypeError) as error:
            raise InputError(f"generation settings {request.sampling}: {error}") from error
        tokens = output[0, ids.shape[1] :].tolist()
        text = postprocess_generated_text(
            self._lm.tok_decode(tokens), stop=list(request.until), think_end_token=None
        )
        reason = "stop" if self._stopped(model, request, output, ids.shape[1]) else "length"
        return Generation(text, tuple(tokens), reason)

    def _stopped(self, model: Any, request: GenerateRequest, output: torch.Tensor, start: int) -> bool:
        """Whether the last token ended the answer, and not the limit."""
        ends = model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        criteria = stop_sequences_criteria(self._lm.tokenizer, list(request.until), start, 1)
        return int(output[0, -1]) in ends or any(stop(output, None) for stop in criteria)

    def _report(
        self, began: float, found: Sequence[tuple[int, Any]], finished: Callable[..., None] | None
    ) -> None:
        self.work["seconds"] += time.perf_counter() - began  # type: ignore[assignment]
        if finished:
            finished(found)


@contextlib.contextmanager
def _untied(model: Any) -> Iterator[None]:
    """HFLM's constructor ties weights again. They are tied where they should be, and an adapter's wrapper
    around one of two tied layers must not be.
    """
    model.tie_weights = lambda *_, **__: None
    try:
        yield
    finally:
        del model.tie_weights


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from this seed, and leave the process's generators as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
