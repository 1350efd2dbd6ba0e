"""The engine on transformers: log-likelihoods and answers of every arm of one resident model.

Requests become one token tree; each of its tokens is forwarded once for each arm (`tree`, `scoring`,
`generation`). The packs depend on the requests only, so all arms meet the same shapes, and equal weights give
equal numbers. Whether the model can be evaluated this way is tried out when the engine is opened (`probe`).
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lora_eval.errors import InputError, ModelError
from lora_eval.models import Resident
from lora_eval.protocols import Finished, GenerateRequest, Generation, Progress, Score, ScoreRequest
from lora_eval.sequences import as_bytes, count_work

if TYPE_CHECKING:
    from lora_eval.engines.scoring import ScorePlan

# Tokens of a pack where nothing is asked for: on a CPU 512 saturate the matrix product of a small model.
_AUTO_TOKENS = {"cpu": 512, "cuda": 4096}
_PLANS = 4  # lists of requests that alternate while a suite runs: scores and windows, with chat and without
_ROWS = 8  # one row of decoding for so many tokens of a pack: 64 rows reach nine tenths of a CPU's rate
_PACKED_BYTES = 256 * 2**20  # copies of weights while answers are decoded: a model of 64 million weights
_DEFAULT_MAX_LENGTH = 2048  # lm-eval's, where neither config nor tokenizer knows
_UNKNOWN_LENGTH = int(1e30)  # what transformers gives for a tokenizer without a length
Drafts = dict[bytes, tuple[int, ...]]
"""Answers by their prompt's tokens, from any arm with the same tokenizer."""


def open_engine(resident: Resident, *, batch_tokens: int | None = None) -> TransformersEngine:
    """Return the engine for a resident model; `batch_tokens` None chooses by device."""
    return TransformersEngine(resident, batch_tokens=batch_tokens)


class TransformersEngine:
    """Scores and generates with one resident model.

    `fallback_reason` is None, or says why this model's numbers would not be right: then it refuses to
    compute, and lm-eval's own path is to be used. Where `drafts` is a dictionary, greedy answers are kept in
    it and tried as drafts for the next arm.
    """

    name = "transformers"

    def __init__(self, resident: Resident, *, batch_tokens: int | None = None) -> None:
        from lora_eval.engines.probe import find_mode

        if batch_tokens is not None and batch_tokens < 1:
            raise InputError(f"batch tokens must be at least 1, got {batch_tokens}")
        self.resident = resident
        self.dtype = resident.dtype
        self.max_length = max_length(resident)
        self.batch_tokens = batch_tokens or _AUTO_TOKENS.get(resident.device.type, _AUTO_TOKENS["cuda"])
        self.work: Counter[str] = Counter()
        self.drafts: Drafts | None = None
        self._plans: deque[tuple[Sequence[ScoreRequest], ScorePlan]] = deque(maxlen=_PLANS)
        self.mode, self.fallback_reason = find_mode(resident, self.max_length)

    @property
    def numerics(self) -> str:
        """Changes whenever the same request may get other digits than before."""
        return f"tree-5-{self.mode}"

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
        self,
        arm: str,
        requests: Sequence[ScoreRequest],
        progress: Progress,
        finished: Finished | None = None,
    ) -> list[Score]:
        """Return the log-likelihood of each continuation; progress is in tokens."""
        from lora_eval.engines.scoring import score_plan

        if not requests:
            return []
        plan = self._plan(requests)
        done = 0

        def count(tokens: int) -> None:
            nonlocal done
            done += tokens
            progress(f"{arm}: scoring", done, len(plan.tree))

        scores: list[Score | None] = [None] * len(requests)
        with self._ready(arm) as model:
            for part in score_plan(model, plan, self.batch_tokens, fused=self.mode == "fused", count=count):
                for number, score in part:
                    scores[number] = score
                if finished and part:
                    finished(part)
        self.work["requests"] += len(requests)
        self.work["requested_tokens"] += plan.requested_tokens
        self.work["distinct_tokens"] += len(plan.tree)
        self.work["forwarded_tokens"] += done
        return [score for score in scores if score is not None]

    def generate(
        self,
        arm: str,
        requests: Sequence[GenerateRequest],
        progress: Progress,
        finished: Finished | None = None,
    ) -> list[Generation]:
        """Return each answer up to its own stop text, end-of-sequence token or number of tokens; progress is
        in tokens of prompts and answers, as if every answer took all it may.
        """
        from lora_eval.engines.generation import Generator

        sizes = [len(request.input_ids) + request.max_new_tokens for request in requests]
        answers: dict[int, Generation] = {}
        done = 0
        with self._ready(arm, packed_bytes=_PACKED_BYTES) as model:
            generator = Generator(
                model, self.tokenizer, self._limits(), fused=self.mode == "fused", count=self._count,
                draft=self._draft,
            )  # fmt: skip
            for part in generator.run(requests):
                answers.update(part)
                done += sum(sizes[number] for number, _ in part)
                progress(f"{arm}: generating", done, sum(sizes))
                if finished:
                    finished(part)
        for number, answer in answers.items():
            self.remember(arm, requests[number], answer)
        new_tokens = (len(answer.token_ids) for answer in answers.values())
        self.work.update(count_work((request.input_ids for request in requests), new_tokens))
        return [answers[number] for number in range(len(requests))]

    def remember(self, arm: str, request: GenerateRequest, answer: Generation) -> None:
        """Keep a greedy answer as a draft for the arms to come."""
        if self.drafts is not None and not request.sampling.get("do_sample"):
            self.drafts[as_bytes(request.input_ids)] = answer.token_ids

    def _plan(self, requests: Sequence[ScoreRequest]) -> ScorePlan:
        """The plan of these requests: that of an earlier arm, where it was asked the same."""
        from lora_eval.engines.scoring import ScorePlan

        for known, plan in self._plans:
            if known is requests or known == requests:
                return plan
        self._plans.append((requests, ScorePlan(requests)))
        return self._plans[-1][1]

    def _draft(self, request: GenerateRequest) -> tuple[int, ...]:
        found = self.drafts.get(as_bytes(request.input_ids), ()) if self.drafts else ()
        return found[: request.max_new_tokens]

    def _count(self, name: str, number: int) -> None:
        self.work[name] += number

    def _limits(self) -> Any:
        from lora_eval.engines.generation import Limits

        return Limits(
            self.batch_tokens, max(1, self.batch_tokens // _ROWS), _slot_bytes(self.resident.device)
        )

    @contextlib.contextmanager
    def _ready(self, arm: str, packed_bytes: int = 0) -> Iterator[Any]:
        """The model with the arm live, computing as was found to be right for it; counts the seconds."""
        import torch

        from lora_eval.engines import attention, products

        if self.fallback_reason is not None:
            raise ModelError(f"this engine cannot evaluate the model: {self.fallback_reason}")
        started = time.perf_counter()
        with contextlib.ExitStack() as stack:
            model = stack.enter_context(self.resident.activate(arm))
            stack.enter_context(torch.inference_mode())
            stack.enter_context(products.installed(model, packed_bytes))
            if self.mode == "fused":
                stack.enter_context(attention.installed(model))
            yield model
        self.work["seconds"] += time.perf_counter() - started  # type: ignore[assignment]


def max_length(resident: Resident) -> int:
    """Return how many tokens the model reads at once, found where lm-eval finds it."""
    config = resident.model.config
    config = getattr(config, "text_config", None) or config
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        if getattr(config, name, None) is not None:
            return int(getattr(config, name))
    length = resident.tokenizer.model_max_length
    return int(length) if length < _UNKNOWN_LENGTH else _DEFAULT_MAX_LENGTH


def _slot_bytes(device: Any) -> int:
    """Memory for the keys and values of rows in progress: half of what a GPU has left, an eighth of what a
    machine has left but at least 512 MiB.
    """
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0]) // 2
    import psutil

    return max(512 * 2**20, int(psutil.virtual_memory().available) // 8)
