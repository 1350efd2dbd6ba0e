"""Where an answer stops, and how a token is drawn: row by row, whatever the other rows do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class StopAtText:
    """A stopping criterion for `generate`: each row ends when one of its own stop texts stands among its last
    tokens, as lm-eval's `MultiTokenEOSCriteria` decides for a single row.

    `lengths` holds the number of new tokens when a row stopped, or None.
    """

    def __init__(self, tokenizer: Any, until: Sequence[Sequence[str]], prompt_length: int) -> None:
        self.lengths: list[int | None] = [None] * len(until)
        self._tokenizer = tokenizer
        self._start = prompt_length
        windows: dict[str, int] = {}
        for text in {text for texts in until for text in texts if text}:
            # Two tokens more than the text takes: a model may spell it with other tokens.
            windows[text] = len(tokenizer.encode(text, add_special_tokens=False)) + 2
        self._stops = [{text: windows[text] for text in texts if text} for texts in until]

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Return a boolean for each row."""
        import torch

        for row, tokens in enumerate(input_ids[:, self._start :].tolist()):
            if self.lengths[row] is None and self._stops[row] and self._stopped(tokens, self._stops[row]):
                self.lengths[row] = len(tokens)
        return torch.tensor([length is not None for length in self.lengths], device=input_ids.device)

    def _stopped(self, tokens: list[int], stops: dict[str, int]) -> bool:
        recent = self._tokenizer.decode(tokens[-max(stops.values()) :])
        return any(
            text in recent and text in self._tokenizer.decode(tokens[-window:])
            for text, window in stops.items()
        )


def sampler(
    sampling: dict[str, Any], defaults: Any, seeds: Sequence[int]
) -> list[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
    """Return logits processors after which the largest score is a sample.

    Temperature, top-k, top-p and min-p are transformers' own, in its order; what is not given comes from the
    model's generation settings. Noise comes from one generator for each row, so an item's answer depends on
    its seed alone and not on its batch.
    """
    from transformers import (
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    warpers = {
        "temperature": (TemperatureLogitsWarper, 1.0),
        "top_k": (TopKLogitsWarper, 0),
        "top_p": (TopPLogitsWarper, 1.0),
        "min_p": (MinPLogitsWarper, 0.0),
    }
    chain: list[Any] = []
    for name, (warper, neutral) in warpers.items():
        value = sampling.get(name, getattr(defaults, name, None))
        if value is not None and value != neutral:
            chain.append(warper(value))
    return [*chain, _Gumbel(seeds)]


class _Gumbel:
    """Adds Gumbel noise: argmax(log p + g) is a sample of p (Gumbel 1954; the "Gumbel-max trick")."""

    def __init__(self, seeds: Sequence[int]) -> None:
        import torch

        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        import torch

        noise = [torch.empty(scores.shape[-1]).exponential_(generator=g) for g in self._generators]
        return scores - torch.stack(noise).log().to(scores.device)
