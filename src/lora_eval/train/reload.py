"""The last step: the adapter that was saved, on a freshly loaded base, is the model that was trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_eval.errors import VerificationFailed
from lora_eval.records import ReloadCheck

_ROWS = 4
_TOKENS = 256


def probe_rows(rows: Sequence[Any]) -> list[list[int]]:
    """Return the ids of the first rows, cut to a length that costs little."""
    return [row.input_ids[:_TOKENS] for row in rows[:_ROWS]]


def live_logits(trainer: Any, probes: Sequence[list[int]]) -> list[Any]:
    """Return the logits (length, vocab) of the model that the trainer holds, one tensor for each probe.

    accelerate leaves autocast around the forward pass of a bf16 run; a reloaded model has none, so it is
    taken off. Called in every process: with sharded weights a forward pass needs all of them.
    """
    wrapped = trainer.model_wrapped if trainer.model_wrapped is not None else trainer.model
    model = trainer.accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    return _logits(model.eval(), probes)


def check_reload(base: Any, adapter: Path, live: Sequence[Any], probes: Sequence[list[int]]) -> ReloadCheck:
    """Return the comparison of the saved adapter on `base` (freshly loaded) with the live logits.

    Raises:
        VerificationFailed: a logit differs in any bit.
    """
    import torch
    from peft import PeftModel

    model = PeftModel.from_pretrained(base, adapter).eval()
    again = _logits(model, probes)
    with model.disable_adapter():
        plain = _logits(model, probes)
    pairs = list(zip(live, again, strict=True))
    largest = max(_distance(left, right) for left, right in pairs)
    equal = all(torch.equal(left, right) for left, right in pairs)
    if not equal:
        raise VerificationFailed(
            f"the adapter as saved is not the model that was trained: reloaded on a fresh base, a logit "
            f"differs by {largest:.3g} (expected: equal in every bit); nothing was put in place"
        )
    effect = max(_distance(left, right) for left, right in zip(again, plain, strict=True))
    tokens = sum(len(probe) for probe in probes)
    return ReloadCheck(tokens=tokens, equal=equal, max_difference=largest, effect=effect)


def _logits(model: Any, probes: Sequence[list[int]]) -> list[Any]:
    import torch

    device = model.device
    with torch.no_grad():
        return [
            model(input_ids=torch.tensor([probe], device=device), use_cache=False).logits[0].cpu()
            for probe in probes
        ]


def _distance(left: Any, right: Any) -> float:
    return float((left.float() - right.float()).abs().max())
