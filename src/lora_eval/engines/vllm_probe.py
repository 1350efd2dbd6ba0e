"""Does this vLLM compute this model and these adapters as transformers does? Asked before any figure counts.

A few mixed requests are answered by transformers for every arm, from the same weights; vLLM's answers are
then judged token by token. Defects differ from version to version and from device to device, so they are
looked for and not listed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lora_eval.protocols import GenerateRequest, Score, ScoreRequest

if TYPE_CHECKING:
    from lora_eval.models import Resident

_NEW_TOKENS = 8
_PREFIX = 300  # tokens that several requests share: more than two blocks of vLLM's largest prefix cache
_PASSAGE = (
    "The harbour master wrote every arrival into a large book: the name of the ship, the port it came from, "
    "what it carried, and how many people were on board. On the third of March no ship came in, because the "
    "storm of the night before had broken the northern light. Two fishing boats lay at the quay, and their "
    "crews mended nets. In the afternoon a letter arrived from the capital, which asked for a list of all "
    "grain that had been unloaded since autumn. "
)
_QUESTIONS = ("Q: What broke the light?\nA:", "Q: 17 + 25 =", "Q: Who wrote the list of ships?\nA: The")
_SHORT = ("Once upon a time", "def add(a, b):\n    return")
_ANSWERS = (" the storm of the night", " 42, as anyone can see", " harbour master himself")


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Largest mean and largest single difference of log-probabilities, in nats, that are rounding."""

    mean: float
    largest: float


# Measured on a CPU: in bfloat16 trained models differ by 0.004 to 0.009 in the mean and up to 0.08, a random
# one with large weights by 0.03 and up to 0.33 (docs/vllm.md). PEFT keeps adapters in float32, vLLM does not.
TOLERANCES = {
    "float32": Tolerance(1e-4, 2e-3),
    "float16": Tolerance(0.01, 0.15),
    "bfloat16": Tolerance(0.05, 0.75),
}


@dataclass(frozen=True, slots=True)
class Probe:
    """The requests: shared prefixes, whole answers, choices of one token, and one input inside another."""

    scores: tuple[ScoreRequest, ...]
    generations: tuple[GenerateRequest, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One greedy token of transformers, its log-probability, and its lead over the next likeliest."""

    token: int
    log_probability: float
    lead: float


@dataclass(frozen=True, slots=True)
class Expected:
    """What transformers gives for one arm: each continuation's log-probabilities, and greedy answers."""

    scores: tuple[tuple[float, ...], ...]
    answers: tuple[tuple[Step, ...], ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Empty `reason`: vLLM agrees. `mean` and `largest` are differences in nats over `n` tokens."""

    reason: str
    mean: float = 0.0
    largest: float = 0.0
    n: int = 0


def make_probe(tokenizer: Any, max_length: int) -> Probe:
    """Return the requests in the tokenizer's tokens, as long as the model reads."""

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False))

    room = max_length - _NEW_TOKENS - max(len(ids(text)) for text in (*_QUESTIONS, *_ANSWERS, *_SHORT)) * 2
    passage = (ids(_PASSAGE) * (1 + _PREFIX // max(1, len(ids(_PASSAGE)))))[: max(2, min(_PREFIX, room))]
    prompts = [passage + ids(question) for question in _QUESTIONS]
    answers = [ids(answer) for answer in _ANSWERS]
    scores = [ScoreRequest(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    scores += [ScoreRequest(prompts[0], (answer[0],)) for answer in answers]
    scores += [ScoreRequest(ids(text), answer) for text, answer in zip(_SHORT, answers, strict=False)]
    # Wanted positions that other requests have put into the cache, where vLLM has no log-probabilities.
    middle = max(1, len(passage) // 4)
    scores += [ScoreRequest(prompts[0][:middle], prompts[0][middle:])]
    generations = [GenerateRequest(prompt, (), _NEW_TOKENS) for prompt in (*prompts, *map(ids, _SHORT))]
    return Probe(tuple(scores), tuple(generations))


def expected_of(resident: Resident, arm: str, probe: Probe) -> Expected:
    """Return what the arm gives in transformers, one request at a time."""
    import torch

    with resident.activate(arm) as model, torch.inference_mode():
        scores = tuple(_score(model, request) for request in probe.scores)
        answers = tuple(_greedy(model, request) for request in probe.generations)
    return Expected(scores, answers)


def calibrate(resident: Resident, arm: str, probe: Probe, expected: Expected) -> tuple[Tolerance, str]:
    """Return what counts as rounding for this model, and a note where that is more than usual.

    In 16 bits twice what the dtype itself costs, measured against the same weights in float32: a small model
    on unusual text was off by 0.37 nats in the mean, others by 0.03. The model is float32 afterwards.
    """
    import torch

    usual = TOLERANCES[resident.dtype]
    tensors = [*resident.model.parameters(), *resident.model.buffers()]
    packed = any(tensor.dim() > 1 and not tensor.is_floating_point() for tensor in tensors)
    if resident.dtype == "float32" or packed:
        return usual, ""
    with resident.activate(arm) as model, torch.inference_mode():
        torch.nn.Module.float(model)  # transformers' own refuses what was quantized on disk only
        exact = [value for request in probe.scores for value in _score(model, request)]
    own = [value for row in expected.scores for value in row]
    distances = [abs(a - b) for a, b in zip(own, exact, strict=True)]
    mean, largest = fmean(distances), max(distances)
    found = Tolerance(max(usual.mean, 2 * mean), max(usual.largest, 2 * largest))
    if found == usual:
        return usual, ""
    return found, (
        f"{resident.dtype} alone moves this model's log-probabilities by {mean:.2g} nats in the mean and "
        f"{largest:.2g} at most on the start-up probe; smaller faults of vLLM are not seen (--dtype float32)"
    )


def _score(model: Any, request: ScoreRequest) -> tuple[float, ...]:
    import torch

    ids = torch.tensor([[*request.context_ids, *request.continuation_ids][:-1]], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, len(request.context_ids) - 1 :]
    wanted = torch.tensor(request.continuation_ids, device=logits.device)
    values = torch.log_softmax(logits.float(), dim=-1).gather(1, wanted[:, None])[:, 0]
    return tuple(values.tolist())


def _greedy(model: Any, request: GenerateRequest) -> tuple[Step, ...]:
    import torch

    ids, steps = list(request.input_ids), []
    for _ in range(request.max_new_tokens):
        logits = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0, -1]
        values, tokens = torch.log_softmax(logits.float(), dim=-1).topk(2)
        steps.append(Step(int(tokens[0]), float(values[0]), float(values[0] - values[1])))
        ids.append(steps[-1].token)
    return tuple(steps)


def judge_scores(
    found: Sequence[Score], arm: str, expected: Mapping[str, Expected], tolerance: Tolerance
) -> Verdict:
    """Compare vLLM's log-likelihoods for an arm with those of transformers, and say whose they are."""
    values = [value for score in found for value in score.token_log_probabilities]
    theirs = {name: [v for row in other.scores for v in row] for name, other in expected.items()}
    own = theirs.pop(arm)
    return _judge(values, own, theirs, tolerance)


def judge_answers(
    found: Sequence[Sequence[tuple[int, float]]],
    arm: str,
    expected: Mapping[str, Expected],
    tolerance: Tolerance,
) -> Verdict:
    """Compare vLLM's greedy answers, (token, log-probability) each, with those of transformers.

    Where the likeliest token led by no more than rounding, the other one is right too, and what follows it
    cannot be compared.
    """
    values: list[float] = []
    own: list[float] = []
    for number, (answer, steps) in enumerate(zip(found, expected[arm].answers, strict=True)):
        for place, ((token, value), step) in enumerate(zip(answer, steps, strict=True)):
            if token != step.token:
                if step.lead <= 2 * tolerance.largest:
                    break
                like = [
                    name for name, other in expected.items()
                    if name != arm and [t for t, _ in answer] == [s.token for s in other.answers[number]]
                ]  # fmt: skip
                whose = f"; it answers as arm {like[0]} does" if like else ""
                return Verdict(
                    f"greedy token {place} of probe answer {number} is {token}, in transformers it is "
                    f"{step.token}, which leads by {step.lead:.3g} nats{whose}"
                )
            values.append(value)
            own.append(step.log_probability)
    return _judge(values, own, {}, tolerance)


def _judge(
    values: Sequence[float], own: Sequence[float], others: Mapping[str, Sequence[float]], tolerance: Tolerance
) -> Verdict:
    if not values:
        return Verdict("no token of the probe could be compared")
    distances = [abs(a - b) for a, b in zip(values, own, strict=True)]
    # A comparison with NaN is false: ask for what is right, not for what is wrong.
    mean, largest = fmean(distances), max(distances, key=lambda x: (x != x, x))
    away = {name: fmean(abs(a - b) for a, b in zip(values, o, strict=True)) for name, o in others.items()}
    nearest = min(away, key=lambda name: away[name], default=None)
    # Half as far from another arm's: within rounding of its own too where the adapter is a weak one.
    another = nearest is not None and away[nearest] < mean / 2 and away[nearest] <= tolerance.mean
    if mean <= tolerance.mean and largest <= tolerance.largest and not another:
        return Verdict("", mean, largest, len(distances))
    whose = f"; they are those of arm {nearest}, so the adapter is not applied or another one is"
    whose = whose if another else ""
    return Verdict(
        f"log-probabilities differ from transformers by {mean:.3g} nats in the mean and {largest:.3g} at "
        f"most over {len(distances)} tokens (rounding allows {tolerance.mean:g} and {tolerance.largest:g})"
        f"{whose}",
        mean, largest, len(distances),
    )  # fmt: skip


def cannot_tell(arm: str, expected: Mapping[str, Expected], tolerance: Tolerance, base: str) -> str:
    """Return a note where the probe could not see whether an adapter is applied; empty where it can.

    An adapter that changes log-probabilities by no more than rounding may pass without being there.
    """
    pairs = zip(expected[arm].scores, expected[base].scores, strict=True)
    apart = fmean(abs(a - b) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True))
    if apart > tolerance.mean:
        return ""
    return (
        f"arm {arm}: differs from {base} by {apart:.2g} nats in the mean on the start-up probe, no more than "
        f"rounding ({tolerance.mean:g}): the probe cannot see whether vLLM applies it"
    )
