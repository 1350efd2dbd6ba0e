"""Before a model is used: does it give through the token tree what it gives one sequence at a time?

No list of architectures decides, for some are wrong without an error (position biases counted by place in
the row, recurrent states). A few mixed requests do.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from typing import Any

import torch

from lora_eval.engines import attention
from lora_eval.engines.generation import Generator, Limits
from lora_eval.engines.scoring import ScorePlan, score_plan
from lora_eval.models import Resident
from lora_eval.protocols import GenerateRequest, ScoreRequest

_RELATIVE = 1e-5  # float32, of a log-likelihood
_NOISE = 4.0  # other dtypes: times what another batch does to the model's own numbers
_LEAST_NOISE = 0.01  # nats for a token
_NEW_TOKENS = 4


def find_mode(resident: Resident, max_length: int) -> tuple[str | None, str | None]:
    """Return how the model is to be evaluated: `fused` (our attention), `masked` (its own, with masks), or
    None with the reason why neither is right.
    """
    reasons = []
    for mode in ("fused", "masked"):
        reason = next(
            (found for arm in resident.every_arm if (found := _try(resident, arm, mode, max_length))), None
        )
        if reason is None:
            return mode, None
        reasons.append(f"{mode}: {reason}")
    return None, "; ".join(reasons)


def probe_requests(vocabulary: int, max_length: int) -> list[ScoreRequest]:
    """Return requests that branch early and late, share prefixes, and are cut over several packs."""
    rng = random.Random(0)

    def draw(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(vocabulary) for _ in range(n))

    room = max(4, min(24, max_length // 4))
    stem, other = draw(room), draw(room // 2)
    item = stem + draw(room // 3)
    requests = [ScoreRequest(item, draw(n)) for n in (1, 1, 3)]
    requests += [ScoreRequest(stem + draw(room // 4), draw(n)) for n in (2, room // 2)]
    requests += [ScoreRequest(other, draw(2)), ScoreRequest(other[:1], other[1:] + draw(1))]
    return [*requests, ScoreRequest(draw(1), draw(room))]


def _try(resident: Resident, arm: str, mode: str, max_length: int) -> str | None:
    """Return what is wrong with this way for this arm, or None."""
    vocabulary = resident.model.get_input_embeddings().weight.shape[0]
    requests = probe_requests(min(vocabulary, len(resident.tokenizer)), max_length)
    try:
        with resident.activate(arm) as model, torch.inference_mode():
            expected = [_plain(model, r) for r in requests]
            tolerance = _tolerance(model, requests, expected, resident)
            with attention.installed(model) if mode == "fused" else contextlib.nullcontext():
                found = _tree(model, requests, mode)
                answers = _answers(resident, model, requests, mode)
            wrong = _differs(expected, found, tolerance) or _not_greedy(model, answers, tolerance)
    except Exception as error:  # whatever a model's code raises when it meets a row that is a tree
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0][:200] if lines else ''}".strip(": ")
    return wrong


def _plain(model: Any, request: ScoreRequest) -> torch.Tensor:
    """Log-probabilities of the continuation, the sequence alone in the batch."""
    ids = torch.tensor([[*request.context_ids, *request.continuation_ids]], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, len(request.context_ids) - 1 : -1]
    wanted = ids[0, len(request.context_ids) :, None]
    return torch.log_softmax(logits.float(), dim=-1).gather(1, wanted)[:, 0].cpu()


def _tree(model: Any, requests: Sequence[ScoreRequest], mode: str) -> list[torch.Tensor]:
    plan = ScorePlan(requests)
    scores: dict[int, Any] = {}
    pack = max(1, len(plan.tree) // 3)  # several packs, so that the cache is cut and continued
    for part in score_plan(model, plan, pack, fused=mode == "fused", count=lambda tokens: None):
        scores.update(part)
    return [torch.tensor(scores[n].token_log_probabilities) for n in range(len(requests))]


def _answers(
    resident: Resident, model: Any, requests: Sequence[ScoreRequest], mode: str
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Short greedy answers, as (prompt, answer)."""
    asked = [GenerateRequest(r.context_ids, (), _NEW_TOKENS) for r in requests[2:6]]
    generator = Generator(
        model, resident.tokenizer, Limits(64, 3, 1 << 28), fused=mode == "fused", count=lambda name, n: None
    )
    found = dict(answer for part in generator.run(asked, plain=True) for answer in part)
    return [(request.input_ids, found[n].token_ids) for n, request in enumerate(asked)]


def _tolerance(
    model: Any, requests: Sequence[ScoreRequest], expected: Sequence[torch.Tensor], resident: Resident
) -> float | None:
    """Nats for a token; None in float32 without quantized weights, where the relative limit counts."""
    quantized = getattr(model.config, "quantization_config", None) is not None
    if resident.dtype == "float32" and not quantized:
        return None
    width = max(len(r.context_ids) + len(r.continuation_ids) for r in requests)
    rows = [[*r.context_ids, *r.continuation_ids] for r in requests]
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)
    logits = torch.log_softmax(model(input_ids=ids, use_cache=False).logits.float(), dim=-1)
    noise = []
    for row, request, alone in zip(logits, requests, expected, strict=True):
        wanted = torch.tensor(request.continuation_ids, device=model.device)[:, None]
        start = len(request.context_ids) - 1
        together = row[start : start + len(wanted)].gather(1, wanted)[:, 0].cpu()
        noise.append((together - alone).abs())
    return max(_LEAST_NOISE, _NOISE * float(torch.cat(noise).mean()))


def _differs(
    expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor], tolerance: float | None
) -> str | None:
    if tolerance is not None:
        mean = float((torch.cat(list(expected)) - torch.cat(list(found))).abs().mean())
        text = f"log-probabilities differ by {mean:.2g} nats on average, more than {tolerance:.2g}"
        return None if mean <= tolerance else text
    worst = max(
        abs(float(a.double().sum() - b.double().sum())) / max(1.0, abs(float(a.double().sum())))
        for a, b in zip(expected, found, strict=True)
    )
    return None if worst <= _RELATIVE else f"log-likelihoods differ by {worst:.2g} of their size"


def _not_greedy(
    model: Any, answers: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], tolerance: float | None
) -> str | None:
    """Every token of a greedy answer must be the likeliest one, up to rounding."""
    limit = 10 * tolerance if tolerance is not None else 1e-4
    for prompt, answer in answers:
        ids = torch.tensor([[*prompt, *answer]], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        gap = float((logits.amax(-1) - logits.gather(1, ids[0, len(prompt) :, None])[:, 0]).max())
        if gap > limit:
            return f"a greedy answer holds a token that is {gap:.2g} nats from the likeliest one"
    return None
