"""One thing that was found, as every report tells it; and what a verification found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from lora_eval.records import Verification
from lora_eval.reports.numbers import count_text

Tone = Literal["gain", "loss", "safe", "open"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found: a heading, its tone, one sentence, and the lines that support it."""

    heading: str
    tone: Tone
    text: str
    lines: tuple[str, ...] = ()


def verification_finding(record: Verification) -> Finding:
    """What a verification says about the exported model."""
    measured = record.measured
    name = record.candidate.kind
    lines = (
        f"mean KL {measured.mean_kl:.2g} nats (99th percentile {measured.p99_kl:.2g}, largest "
        f"{measured.max_kl:.2g}) and the same likeliest token at {100 * measured.top1_agreement:.2f} % of "
        f"{count_text(measured.tokens)} tokens; {measured.item_flips} of {measured.items} prompts answered "
        "differently",
        *_other_checks(record),
        *record.failures,
        *(f"cause: {cause}" for cause in record.causes),
    )
    if record.passed:
        text = f"The {name} model passes its verification against the {record.reference.kind}."
        return Finding(f"Verification: {name}", "safe", text, lines)
    text = f"The {name} model is not the one that was measured: its verification failed."
    return Finding(f"Verification: {name}", "loss", text, lines)


def _other_checks(record: Verification) -> Iterator[str]:
    if record.perplexity is not None:
        yield f"perplexity of held-out text: {record.perplexity.ratio:.4f} times the reference's"
    suite = record.suite
    if suite is not None:
        yield f"suite {suite.name}: {suite.gained} items gained, {suite.lost} lost of {suite.items}"
