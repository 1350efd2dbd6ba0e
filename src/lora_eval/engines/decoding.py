"""Where an answer stops, and how its next token is chosen: row by row, whatever the other rows do."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lora_eval.errors import InputError
from lora_eval.protocols import GenerateRequest, Generation

if TYPE_CHECKING:
    import torch

Choose = Callable[[Sequence[int], "torch.Tensor"], int]
"""Called with the tokens so far, prompt included, and the logits (V,); returns the next token."""
_SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "min_p")


class StopTexts:
    """Whether one of the stop texts stands among a row's last tokens, as lm-eval's `MultiTokenEOSCriteria`
    decides at batch size 1.
    """

    def __init__(self, tokenizer: Any, until: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        # Two tokens more than the text takes: a model may spell it with other tokens.
        self._windows = {text: len(tokenizer.encode(text, add_special_tokens=False)) + 2 for text in until}
        self._longest = max(self._windows.values(), default=0)

    def found(self, tokens: Sequence[int]) -> bool:
        """Look at the new tokens of a row; the prompt is not among them."""
        if not self._windows:
            return False
        recent = self._tokenizer.decode(tokens[-self._longest :])
        return any(
            text in recent and text in self._tokenizer.decode(tokens[-window:])
            for text, window in self._windows.items()
        )


@dataclass(slots=True)
class Row:
    """One answer in progress: `number` of its request, and the tokens so far."""

    number: int
    request: GenerateRequest
    stops: StopTexts
    choose: Choose | None = None
    tokens: list[int] = field(default_factory=list)

    def add(self, token: int, ends: frozenset[int]) -> str | None:
        """Append a token; returns the finish reason where the answer is now complete."""
        self.tokens.append(token)
        if token in ends or self.stops.found(self.tokens):
            return "stop"
        return "length" if len(self.tokens) >= self.request.max_new_tokens else None

    def answer(self, tokenizer: Any, reason: str) -> Generation:
        """Return the text before the stop text, as lm-eval cuts it."""
        text = tokenizer.decode(self.tokens, skip_special_tokens=True)
        return Generation(before_stop(text, self.request.until), tuple(self.tokens), reason)


def before_stop(text: str, until: Sequence[str]) -> str:
    """Return the text before the first of its stop texts, as lm-eval cuts it."""
    for stop_text in until:
        text = text.split(stop_text)[0] if stop_text else text
    return text


def generation_settings(model: Any, sampling: Mapping[str, Any]) -> Any:
    """Return the model's own generation settings with what a request asks for; sampling itself is ours.

    Raises:
        InputError: beams, guidance, or a name that transformers does not know.
    """
    settings = copy.deepcopy(model.generation_config)
    unknown = settings.update(**{key: value for key, value in sampling.items() if key not in _SAMPLING})
    if unknown:
        raise InputError(f"unknown generation settings: {', '.join(sorted(unknown))}")
    if settings.num_beams not in (None, 1) and "num_beams" in sampling:
        raise InputError(f"num_beams={settings.num_beams}: only greedy and sampled decoding can be compared")
    if settings.guidance_scale not in (None, 1):
        raise InputError(f"guidance_scale={settings.guidance_scale}: is not supported; leave it out")
    settings.update(do_sample=False, temperature=None, top_k=None, top_p=None, min_p=None, num_beams=1)
    return settings


def end_tokens(value: Any) -> frozenset[int]:
    """Return the tokens that end an answer, from what generation settings hold: one, several or None."""
    return frozenset(() if value is None else value if isinstance(value, (list, tuple)) else (int(value),))


def chooser(model: Any, settings: Any, request: GenerateRequest) -> Choose | None:
    """Return how the request's tokens are chosen; None where it is the likeliest one.

    Rules such as a repetition penalty are transformers' own. Temperature, top-k, top-p and min-p too, in its
    order; what is not given comes from the model's generation settings. A sample is the largest of the scores
    plus Gumbel noise (Gumbel 1954) from the request's own generator, so that it depends on the seed alone.
    """
    import torch

    length = len(request.input_ids)
    own = copy.deepcopy(settings)
    own.update(max_new_tokens=request.max_new_tokens, max_length=length + request.max_new_tokens)
    if request.sampling.get("do_sample"):
        asked = {
            name: request.sampling.get(name, getattr(model.generation_config, name, None))
            for name in _SAMPLING
        }
        own.update(**asked)
        own.update(**own._get_default_generation_params(), defaults_only=True)
    model._prepare_special_tokens(own, kwargs_has_attention_mask=True, device=model.device)
    rules = model._get_logits_processor(own, input_ids_seq_length=length, device=model.device)
    if request.sampling.get("do_sample"):
        rules = [*rules, _Gumbel(request.seed)]
    if not rules:
        return None

    def choose(tokens: Sequence[int], logits: torch.Tensor) -> int:
        ids = torch.tensor([tokens], device=logits.device)
        scores = logits.float()[None]
        for rule in rules:
            scores = rule(ids, scores)
        return int(scores[0].argmax())

    return choose


class _Gumbel:
    """Adds Gumbel noise: argmax(log p + g) is a sample of p."""

    def __init__(self, seed: int) -> None:
        import torch

        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        import torch

        noise = torch.empty(scores.shape[-1]).exponential_(generator=self._generator)
        return scores - noise.log().to(scores.device)
