"""The engine on transformers: log-likelihoods and answers of every arm of one resident model.

Batches depend on the requests only, never on the arm or on when a row stops, so all arms meet the same
shapes and equal weights give equal numbers. Answers stop as lm-eval's do at batch size 1: each row at its own
stop text.
"""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lora_eval.engines.decoding import StopAtText, sampler
from lora_eval.errors import InputError
from lora_eval.models import Resident
from lora_eval.protocols import Finished, GenerateRequest, Generation, Progress, Score, ScoreRequest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# Tokens of a scoring batch where nothing is asked for. On a CPU 512 tokens saturate the matrix product of a
# small model; more only saves calls. Decoding needs wide batches: it moves one token of each row a step.
_AUTO_TOKENS = {"cpu": 2048, "cuda": 16384}
_DECODE_FACTOR = 4
_DEFAULT_MAX_LENGTH = 2048  # lm-eval's, where neither config nor tokenizer knows
_UNKNOWN_LENGTH = int(1e30)  # what transformers gives for a tokenizer without a length
_CHUNK = 1 << 24  # logits in float32 at a time: 64 MiB


def open_engine(resident: Resident, *, batch_tokens: int | None = None) -> TransformersEngine:
    """Return the engine for a resident model; `batch_tokens` None chooses by device."""
    return TransformersEngine(resident, batch_tokens=batch_tokens)


class TransformersEngine:
    """Scores and generates with one resident model."""

    name = "transformers"

    def __init__(self, resident: Resident, *, batch_tokens: int | None = None) -> None:
        if batch_tokens is not None and batch_tokens < 1:
            raise InputError(f"batch tokens must be at least 1, got {batch_tokens}")
        self.resident = resident
        self.dtype = resident.dtype
        self.max_length = max_length(resident)
        self.work: Counter[str] = Counter()
        self.batch_tokens = batch_tokens or _AUTO_TOKENS.get(resident.device.type, _AUTO_TOKENS["cuda"])

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
        """Return the log-likelihood of each continuation; equal inputs are forwarded once."""
        import torch

        # The last token is only predicted, never read: choices of one token share one forward pass.
        inputs: dict[tuple[int, ...], list[int]] = {}
        for index, request in enumerate(requests):
            inputs.setdefault((request.context_ids + request.continuation_ids)[:-1], []).append(index)
        scores: list[Score | None] = [None] * len(requests)
        order = sorted(inputs, key=lambda ids: (-len(ids), ids))
        done = 0
        with self.resident.activate(arm) as model, torch.inference_mode():
            for batch in _batches(order, self.batch_tokens):
                found = [(row, index) for row, ids in enumerate(batch) for index in inputs[ids]]
                answers = self._score_batch(model, batch, [(row, requests[i]) for row, i in found])
                for (_, index), answer in zip(found, answers, strict=True):
                    scores[index] = answer
                if finished:
                    finished([(index, answer) for (_, index), answer in zip(found, answers, strict=True)])
                done += len(found)
                progress(f"{arm}: scoring", done, len(requests))
        return [score for score in scores if score is not None]

    def _score_batch(
        self,
        model: PreTrainedModel,
        batch: Sequence[tuple[int, ...]],
        requests: Sequence[tuple[int, ScoreRequest]],
    ) -> list[Score]:
        import torch

        width = len(batch[0])
        # Padding is on the right and the model is causal: no position that counts sees it, so no mask.
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in batch], device=self.resident.device)
        wanted = torch.zeros(ids.shape, dtype=torch.bool)  # (B, T)
        for row, request in requests:
            wanted[row, len(request.context_ids) - 1 : len(batch[row])] = True
        place = wanted.flatten().cumsum(0) - 1  # where a position stands among the wanted ones
        logits = _logits_at(model, ids, wanted.to(ids.device))  # (K, V)
        where = torch.cat([
            place[row * width + len(request.context_ids) - 1 :][: len(request.continuation_ids)]
            for row, request in requests
        ])  # fmt: skip
        targets = torch.tensor([token for _, request in requests for token in request.continuation_ids])
        chosen, greedy = _log_probabilities(logits, where.to(ids.device), targets.to(ids.device))
        lengths = [len(request.continuation_ids) for _, request in requests]
        return [
            Score(float(values.sum()), bool(same.all()))
            for values, same in zip(chosen.split(lengths), greedy.split(lengths), strict=True)
        ]

    def generate(
        self,
        arm: str,
        requests: Sequence[GenerateRequest],
        progress: Progress,
        finished: Finished | None = None,
    ) -> list[Generation]:
        """Return each answer up to its own stop text, end-of-sequence token or number of tokens."""
        import torch

        answers: dict[int, Generation] = {}
        groups: dict[tuple[int, str], list[int]] = {}
        for index, request in enumerate(requests):
            key = (request.max_new_tokens, repr(sorted(request.sampling.items())))
            groups.setdefault(key, []).append(index)
        with self.resident.activate(arm) as model, torch.inference_mode():
            for (new_tokens, _), members in groups.items():
                order = sorted(members, key=lambda i: (-len(requests[i].input_ids), requests[i].input_ids, i))
                settings = _settings(model, requests[members[0]])
                for chosen in self._decode_batches(order, requests, new_tokens, _reads_prompt(settings)):
                    batch = [requests[index] for index in chosen]
                    for index, answer in zip(chosen, self._decode(model, batch, settings), strict=True):
                        answers[index] = answer
                    if finished:
                        finished([(index, answers[index]) for index in chosen])
                    progress(f"{arm}: generating", len(answers), len(requests))
        return [answers[index] for index in range(len(requests))]

    def _decode_batches(
        self, order: Sequence[int], requests: Sequence[GenerateRequest], new_tokens: int, equal: bool
    ) -> Iterator[list[int]]:
        """Indices by falling length; `equal`: only prompts of one length together, so that none is padded."""
        batch: list[int] = []
        for index in order:
            first = len(requests[batch[0] if batch else index].input_ids)
            full = (len(batch) + 1) * (first + new_tokens) > self.batch_tokens * _DECODE_FACTOR
            if batch and (full or (equal and len(requests[index].input_ids) != first)):
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _decode(
        self, model: PreTrainedModel, batch: Sequence[GenerateRequest], settings: Any
    ) -> list[Generation]:
        import torch

        width = max(len(request.input_ids) for request in batch)
        pad = settings.pad_token_id
        rows = [[*[pad] * (width - len(request.input_ids)), *request.input_ids] for request in batch]
        ids = torch.tensor(rows, device=self.resident.device)
        mask = torch.tensor([[int(i >= width - len(r.input_ids)) for i in range(width)] for r in batch])
        stop = StopAtText(self.tokenizer, [request.until for request in batch], width)
        sampling = batch[0].sampling
        output = model.generate(
            input_ids=ids,
            attention_mask=mask.to(ids.device),
            generation_config=settings,
            stopping_criteria=[stop],
            logits_processor=sampler(sampling, model.generation_config, [r.seed for r in batch])
            if sampling.get("do_sample")
            else [],
        )
        ends = _as_ids(settings.eos_token_id)
        return [
            self._answer(request, row[width:], stop.lengths[index], ends)
            for index, (request, row) in enumerate(zip(batch, output.tolist(), strict=True))
        ]

    def _answer(
        self, request: GenerateRequest, tokens: list[int], stopped: int | None, ends: set[int]
    ) -> Generation:
        end = next((place + 1 for place, token in enumerate(tokens) if token in ends), None)
        length = min(stop for stop in (stopped, end, len(tokens)) if stop is not None)
        text = self.tokenizer.decode(tokens[:length], skip_special_tokens=True)
        for stop_text in request.until:
            text = text.split(stop_text)[0] if stop_text else text
        reason = "length" if stopped is None and end is None else "stop"
        return Generation(text, tuple(tokens[:length]), reason)


def max_length(resident: Resident) -> int:
    """Return how many tokens the model reads at once, found where lm-eval finds it."""
    config = resident.model.config
    config = getattr(config, "text_config", None) or config
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        if getattr(config, name, None) is not None:
            return int(getattr(config, name))
    length = resident.tokenizer.model_max_length
    return int(length) if length < _UNKNOWN_LENGTH else _DEFAULT_MAX_LENGTH


def _batches(order: Sequence[tuple[int, ...]], tokens: int) -> Iterator[list[tuple[int, ...]]]:
    """Inputs of falling length, in batches of at most `tokens` with padding (one input may be longer)."""
    batch: list[tuple[int, ...]] = []
    for ids in order:
        if batch and (len(batch) + 1) * len(batch[0]) > tokens:
            yield batch
            batch = []
        batch.append(ids)
    if batch:
        yield batch


def _logits_at(model: PreTrainedModel, ids: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the logits (K, V) of the K positions that are True in `wanted` (B, T)."""
    from transformers import modeling_utils

    # transformers takes such a mask since it has this function; before, and for models without the
    # argument, the whole vocabulary of every position is computed and then thrown away.
    if hasattr(modeling_utils, "slice_logits_to_keep") and "logits_to_keep" in _parameters(model):
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=wanted).logits
    else:
        logits = model(input_ids=ids, use_cache=False).logits
    return logits if logits.dim() == 2 else logits[wanted]


def _parameters(model: PreTrainedModel) -> set[str]:
    return set(inspect.signature(model.forward).parameters)


def _log_probabilities(
    logits: torch.Tensor, where: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log p(target) in float32, and whether the target is the likeliest token, for each place."""
    import torch

    chosen, greedy = [], []
    step = max(1, _CHUNK // logits.shape[-1])
    for start in range(0, len(where), step):
        rows = logits[where[start : start + step]].float()  # (n, V)
        wanted = targets[start : start + step]
        values = torch.log_softmax(rows, dim=-1)
        chosen.append(values.gather(1, wanted[:, None])[:, 0])
        greedy.append(values.argmax(dim=-1) == wanted)
    return torch.cat(chosen).cpu(), torch.cat(greedy).cpu()


def _settings(model: PreTrainedModel, request: GenerateRequest) -> Any:
    """Return the model's own generation settings with what the request asks for; sampling is ours."""
    settings = copy.deepcopy(model.generation_config)
    ours = {"do_sample", "temperature", "top_k", "top_p", "min_p"}
    other = {key: value for key, value in request.sampling.items() if key not in ours}
    if other.get("num_beams", 1) != 1:
        raise InputError(f"num_beams={other['num_beams']}: only greedy and sampled decoding can be compared")
    unknown = settings.update(**other)
    if unknown:
        raise InputError(f"unknown generation settings: {', '.join(sorted(unknown))}")
    settings.update(do_sample=False, temperature=None, top_k=None, top_p=None, min_p=None, num_beams=1)
    settings.update(max_new_tokens=request.max_new_tokens, max_length=None, use_cache=True)
    if settings.pad_token_id is None:
        settings.pad_token_id = next(iter(sorted(_as_ids(settings.eos_token_id))), 0)
    return settings


def _reads_prompt(settings: Any) -> bool:
    """Whether a rule of decoding looks at the prompt's tokens, padding included."""
    penalty = settings.repetition_penalty not in (None, 1.0)
    return penalty or bool(settings.no_repeat_ngram_size) or bool(settings.bad_words_ids)


def _as_ids(value: Any) -> set[int]:
    return set() if value is None else set(value) if isinstance(value, (list, tuple)) else {int(value)}
