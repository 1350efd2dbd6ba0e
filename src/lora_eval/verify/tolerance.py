"""Limits of a verification, where they come from, and what breaks them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lora_eval.errors import InputError
from lora_eval.records import Divergence
from lora_eval.schema import suggest

KEYS = ("kl_mean", "kl_p99", "kl_max", "answer_kl", "top1", "flips")
FACTOR = 4.0
FACTOR_REASON = (
    "right merges lie at 0.6 to 2.0 times the floor (48 of them measured, bf16 and float32, docs/verify.md), "
    "since each weight is rounded once more than in the unmerged arm; the mildest wrong one, without the "
    "adapter's change in one small tensor, at 17 times"
)
NEAR_FACTOR = 1.5
NEAR_REASON = (
    "a quantizer that looks at data has to do no worse than plain rounding to the same bits and groups, "
    "which looks at none: GPTQ came out at 0.27 to 0.49 of it (docs/verify.md); half as much again is left "
    "to methods that gain less, and to the chance of the prompts"
)
# Beside the factor: whether a quantized model is a usable stand-in where it is used, on its answers.
# (Fine-tuning leaves open what follows inside a prompt, so quantization moves that most, and nobody samples
# there.) llama.cpp's figures for Llama 3 8B (tools/perplexity/README.md, "LLaMA 3 8b Scoreboard", mean KL
# against 16 bit): Q4_K_M 0.031, Q4_0 0.072, Q3_K_M 0.10, Q2_K 0.33 to 0.45.
NEAR = {"answer_kl": 0.1, "flips": 0.5}
_NEAR_SOURCE = (
    "on the answers what 3-bit weights cost Llama 3 8B in llama.cpp's measurements (mean KL 0.10; 4-bit ones "
    "cost it 0.03 to 0.07), and half of the answers"
)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Limits by name: `kl_*` in nats and `flips` (share of prompts) from above, `top1` (share) from below."""

    limits: dict[str, float]
    source: str

    def failures(self, measured: Divergence) -> tuple[str, ...]:
        """Return one line for each limit that is broken, and one where logits are not finite. The mean counts
        with the bound of its error.
        """
        found = values_of(measured)
        lines = []
        if measured.broken_tokens:
            total = measured.tokens + measured.broken_tokens
            lines.append(f"logits are not finite at {measured.broken_tokens} of {total} tokens")
        for key, limit in self.limits.items():
            value = found[key] + (measured.kl_error if key == "kl_mean" else 0.0)
            if value < limit if key == "top1" else value > limit:
                side = "at least" if key == "top1" else "at most"
                lines.append(f"{key} is {value:.3g}, {side} {limit:.3g} is allowed")
        return tuple(lines)


def values_of(measured: Divergence) -> dict[str, float]:
    """Return the figures by the names that limits have."""
    return {
        "kl_mean": measured.mean_kl,
        "kl_p99": measured.p99_kl,
        "kl_max": measured.max_kl,
        "answer_kl": measured.mean_kl if measured.answer_mean_kl is None else measured.answer_mean_kl,
        "top1": measured.top1_agreement,
        "flips": measured.item_flips / measured.items,
    }


def parse_tolerance(texts: Sequence[str]) -> dict[str, float]:
    """Return the limits of `kl_mean=0.001,top1=0.99` (InputError for an unknown name or no number)."""
    limits: dict[str, float] = {}
    for part in (part for text in texts for part in text.split(",") if part.strip()):
        key, _, value = part.strip().partition("=")
        if key not in KEYS:
            raise InputError(
                f"--tolerance {part}: unknown name '{key}'{suggest(key, KEYS)}; known: {', '.join(KEYS)}"
            )
        try:
            limits[key] = float(value)
        except ValueError:
            raise InputError(f"--tolerance {part}: expected {key}=NUMBER") from None
        if not math.isfinite(limits[key]) or limits[key] < 0:
            raise InputError(f"--tolerance {part}: expected a number of at least 0")
    return limits


def from_floor(floor: Divergence, words: str, given: dict[str, float]) -> Tolerance:
    """Return the limits of a model that must equal the reference: FACTOR times its own rounding noise."""
    noise = 1 - floor.top1_agreement
    # The share of tokens at which rounding decides is itself only estimated: two standard errors of a count.
    spread = 2 * math.sqrt(max(noise, 1 / floor.tokens) / floor.tokens)
    limits = {
        "kl_mean": FACTOR * floor.mean_kl,
        "kl_p99": FACTOR * floor.p99_kl,
        "top1": max(0.0, 1 - FACTOR * noise - spread),
    }
    return _with_given(limits, f"{FACTOR:g} times the noise floor: {_shown(floor, words)}", given)


def near(floor: Divergence | None, words: str, given: dict[str, float]) -> Tolerance:
    """Return the limits of a quantized model: NEAR_FACTOR times what plain rounding to its grid costs (None:
    the grid is not known), and what makes it usable at all.
    """
    limits, source = dict(NEAR), _NEAR_SOURCE
    if floor is not None:
        limits = {"kl_mean": NEAR_FACTOR * floor.mean_kl} | limits
        source = f"{NEAR_FACTOR:g} times the cost of {_shown(floor, words)}; {source}"
    return _with_given(limits, source, given)


def _shown(floor: Divergence, words: str) -> str:
    return (
        f"{words} (mean KL {floor.mean_kl:.2g}, p99 {floor.p99_kl:.2g}, top-1 {floor.top1_agreement:.4f} "
        f"over {floor.tokens} tokens)"
    )


def _with_given(limits: dict[str, float], source: str, given: dict[str, float]) -> Tolerance:
    if given:
        source += f"; given by hand: {', '.join(f'{key}={value:g}' for key, value in given.items())}"
    return Tolerance(limits | given, source)
