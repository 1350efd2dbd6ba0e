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

from lora_eval.engines import architecture, attention, products
from lora_eval.engines.generation import Generator, Limits
from lora_eval.engines.scoring import ScorePlan, score_plan
from lora_eval.models import Resident
from lora_eval.protocols import GenerateRequest, ScoreRequest

_RELATIVE = 1e-5  # float32, of a log-likelihood
# Steps of float32 at the largest logit that rounding alone may make: the pocket model's own numbers lie
# up to 29 of them from those in float64 (2 on average), those of two right ways up to 8 apart.
_STEPS = 16
_NOISE = 4.0  # other dtypes: times what another batch does to the model's own numbers
_LEAST_NOISE = 0.01  # nats for a token
_GREEDY = 1e-4  # float32: nats that a greedy token may be from the likeliest one
_NEW_TOKENS = (2, 4, 3, 3)  # of each prompt: rows leave at different steps, and others move up
_WINDOW = 8  # tokens that sliding layers see in the probe: fewer than its sequences have
Read = tuple[torch.Tensor, torch.Tensor]
"""For each token of a continuation: its log-probability, and how far that is from the likeliest token's."""
Steps = dict[tuple[int, int], list[float]]
"""The likeliest next token's log-probability, by the place and the token that a step of decoding read."""


def find_mode(resident: Resident, max_length: int) -> tuple[str | None, str | None]:
    """Return how the model is to be evaluated: `fused` (our attention), `masked` (its own, with masks), or
    None with the reason why neither is right.

    Raises:
        ModelError: this is the decoder of an encoder-decoder model.
    """
    architecture.refuse_encoder_decoder(resident.model)
    limit = architecture.length_limit(resident.model)
    if limit is not None and limit < max_length:
        return None, f"sequences beyond {limit} tokens rotate all their positions in another way"
    known: dict[str, _Plain] = {arm: _Plain() for arm in resident.arms}
    reasons: list[str] = []
    for mode in ("fused", "masked"):
        reason = next(
            (found for arm in resident.arms if (found := _try(resident, arm, mode, max_length, known[arm]))),
            None,
        )
        if reason is None:
            return mode, None
        reasons.append(reason)
    fused, masked = reasons
    return None, fused if fused == masked else f"fused: {fused}; masked: {masked}"


def probe_requests(vocabulary: int, max_length: int) -> tuple[list[GenerateRequest], list[ScoreRequest]]:
    """Return prompts and requests that branch early and late, share prefixes, are cut over several packs and
    are longer than the probe's window. The first prompts share enough to be answered together; the last
    shares nothing. Some two hundred tokens, the answers included.
    """
    rng = random.Random(0)

    def draw(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(vocabulary) for _ in range(n))

    room = max(2, min(18, max_length // 2 - 4))
    stem, other = draw(room), draw(max(2, room // 3))
    item = stem + draw(max(1, room // 4))
    prompts = [item, stem + draw(2), stem + draw(1), other]
    requests = [ScoreRequest(item, draw(1)), ScoreRequest(item, draw(2)), ScoreRequest(draw(1), draw(room))]
    asked = [GenerateRequest(prompt, (), n) for prompt, n in zip(prompts, _NEW_TOKENS, strict=True)]
    return asked, requests


class _Plain:
    """What one arm gives one sequence at a time; kept, since both ways are compared with it."""

    def __init__(self) -> None:
        self._known: dict[ScoreRequest, Read] = {}
        self.largest = 0.0  # logit seen, by magnitude

    def read(self, model: Any, request: ScoreRequest) -> Read:
        """Forward the sequence alone in its batch, without a cache."""
        if request not in self._known:
            ids = torch.tensor([[*request.context_ids, *request.continuation_ids[:-1]]], device=model.device)
            logits = model(input_ids=ids, use_cache=False).logits[0, len(request.context_ids) - 1 :]
            self.largest = max(self.largest, float(logits.abs().max()))
            values = torch.log_softmax(logits.float(), dim=-1)
            wanted = torch.tensor(request.continuation_ids, device=model.device)[:, None]
            found = values.gather(1, wanted)[:, 0]
            self._known[request] = (found.cpu(), (values.amax(dim=-1) - found).cpu())
        return self._known[request]


def _try(resident: Resident, arm: str, mode: str, max_length: int, plain: _Plain) -> str | None:
    """Return what is wrong with this way for this arm, or None."""
    vocabulary = resident.model.get_input_embeddings().weight.shape[0]
    prompts, requests = probe_requests(min(vocabulary, len(resident.tokenizer)), max_length)
    try:
        with contextlib.ExitStack() as stack:
            model = stack.enter_context(resident.activate(arm))
            stack.enter_context(torch.inference_mode())
            stack.enter_context(architecture.narrow_windows(model, _WINDOW))
            with products.installed(model), _attention(model, mode):
                answers, steps = _answers(resident, model, prompts, mode)
                found = _tree(model, [*requests, *answers], mode)
            expected = [plain.read(model, request) for request in (*requests, *answers)]
            tolerance = _tolerance(model, [*requests, *answers], expected, resident)
    except Exception as error:  # whatever a model's code raises when it meets a row that is a tree
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0][:200] if lines else ''}".strip(": ")
    values = [of_tokens for of_tokens, _ in expected]
    of_answers = expected[len(requests) :]
    decoded = _decoded(answers, [of_tokens for of_tokens, _ in of_answers], steps)
    rounding = _STEPS * torch.finfo(torch.float32).eps * plain.largest
    return (
        _differs(values, found, tolerance, rounding)
        or _differs(*decoded, tolerance, rounding)
        or _not_greedy([behind for _, behind in of_answers], tolerance)
    )


def _attention(model: Any, mode: str) -> contextlib.AbstractContextManager[None]:
    return attention.installed(model) if mode == "fused" else contextlib.nullcontext()


def _tree(model: Any, requests: Sequence[ScoreRequest], mode: str) -> list[torch.Tensor]:
    plan = ScorePlan(requests)
    scores: dict[int, Any] = {}
    pack = max(1, len(plan.tree) // 3)  # several packs, so that the cache is cut and continued
    for part in score_plan(model, plan, pack, fused=mode == "fused", count=lambda tokens: None):
        scores.update(part)
    return [torch.tensor(scores[n].token_log_probabilities) for n in range(len(requests))]


def _answers(
    resident: Resident, model: Any, prompts: Sequence[GenerateRequest], mode: str
) -> tuple[list[ScoreRequest], Steps]:
    """Return each prompt with its greedy answer, and what the steps of decoding gave."""
    generator = Generator(
        # Fewer slots than prompts, so that a slot is used again.
        model, resident.tokenizer, Limits(16, 2, 1 << 28), fused=mode == "fused", count=lambda name, n: None
    )  # fmt: skip
    answers = []
    steps: Steps = {}

    def read(_: Any, __: Any, named: dict[str, Any], output: Any) -> None:
        if named["input_ids"].shape[1] == 1:  # a pack of one token gives one more value to choose from
            likeliest = torch.log_softmax(output.logits[:, -1:].float(), dim=-1).amax(dim=-1)
            rows = zip(named["position_ids"].tolist(), named["input_ids"].tolist(), likeliest, strict=True)
            for (place,), (token,), value in rows:
                steps.setdefault((place, token), []).append(float(value[-1]))

    hook = model.register_forward_hook(read, with_kwargs=True)
    try:
        for group in (prompts[:-1], prompts[-1:]):  # together they would share nothing
            found = dict(answer for part in generator.run(group, plain=True) for answer in part)
            answers += [ScoreRequest(p.input_ids, tuple(found[n].token_ids)) for n, p in enumerate(group)]
    finally:
        hook.remove()
    return answers, steps


def _decoded(
    answers: Sequence[ScoreRequest], expected: Sequence[torch.Tensor], steps: Steps
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the log-probabilities of the decoded tokens, expected ones first: greedy tokens are often right
    though their numbers are not.
    """
    pairs = []
    for answer, values in zip(answers, expected, strict=True):
        place = len(answer.context_ids)
        for k, value in enumerate(values[1:].tolist()):
            near = steps.get((place + k, answer.continuation_ids[k]), [float("inf")])
            pairs.append((value, min(near, key=lambda other: abs(other - value))))
    return [torch.tensor([value]) for value, _ in pairs], [torch.tensor([near]) for _, near in pairs]


def _tolerance(
    model: Any, requests: Sequence[ScoreRequest], expected: Sequence[Read], resident: Resident
) -> float | None:
    """Nats for a token; None in float32 without quantized weights, where the relative limit counts."""
    quantized = getattr(model.config, "quantization_config", None) is not None
    if resident.dtype == "float32" and not quantized:
        return None
    rows = [[*r.context_ids, *r.continuation_ids] for r in requests]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits
    noise = []
    for row, request, (alone, _) in zip(logits, requests, expected, strict=True):
        wanted = torch.tensor(request.continuation_ids, device=model.device)[:, None]
        start = len(request.context_ids) - 1
        values = torch.log_softmax(row[start : start + len(wanted)].float(), dim=-1)
        noise.append((values.gather(1, wanted)[:, 0].cpu() - alone).abs())
    # Logits come rounded to the model's type: two right ones may differ by a step of it. On a CPU batches may
    # agree to the bit, while right decoding was 0.006 to 0.018 nats away in bfloat16 (a step: 0.03).
    step = float(torch.finfo(logits.dtype).eps * logits.float().amax(dim=-1).abs().mean())
    return max(_LEAST_NOISE, step, _NOISE * float(torch.cat(noise).mean()))


def _differs(
    expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor], tolerance: float | None, rounding: float
) -> str | None:
    """Say how far the log-likelihoods are apart; `rounding` nats are nothing where there is no tolerance."""
    if tolerance is not None:
        mean = float((torch.cat(list(expected)) - torch.cat(list(found))).abs().mean())
        text = f"log-probabilities differ by {mean:.2g} nats on average, more than {tolerance:.2g}"
        return None if mean <= tolerance else text
    worst = max(
        max(abs(float(a.double().sum() - b.double().sum())) - rounding, 0.0)
        / max(1.0, abs(float(a.double().sum())))
        for a, b in zip(expected, found, strict=True)
    )
    return None if worst <= _RELATIVE else f"log-likelihoods differ by {worst:.2g} of their size"


def _not_greedy(behind: Sequence[torch.Tensor], tolerance: float | None) -> str | None:
    """Every token of a greedy answer must be the likeliest one, up to rounding."""
    gap = max(float(values.max()) for values in behind)
    if gap > (10 * tolerance if tolerance is not None else _GREEDY):
        return f"a greedy answer holds a token that is {gap:.2g} nats from the likeliest one"
    return None
