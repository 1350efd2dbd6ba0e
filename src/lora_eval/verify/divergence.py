"""KL divergence of next-token distributions, token by token, summed up over batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_eval.errors import VerificationFailed
from lora_eval.models import Resident
from lora_eval.records import Divergence
from lora_eval.records.verification import PerplexityRatio
from lora_eval.verify.kept import Kept, compare
from lora_eval.verify.prompts import Asked

_BATCH_TOKENS = 1024
_ERRORS = 3  # standard errors that bound what the sampled tail leaves open


@dataclass
class Tally:
    """What was found so far; `flips` counts sequences whose greedy answer differs."""

    kl: list[float] = field(default_factory=list)
    answer_kl: list[float] = field(default_factory=list)
    same: int = 0
    items: int = 0
    flips: int = 0
    broken: int = 0
    variance: float = 0.0
    answer_lengths: list[int] = field(default_factory=list)
    agreements: list[int] = field(default_factory=list)
    texts: list[tuple[float, float, int]] = field(default_factory=list)  # nats of both arms, tokens

    def add(self, kept: Kept, logits: Any, asked: Asked) -> None:
        """Count one sequence: what was kept of the reference, and the candidate's logits (T, V)."""
        import torch

        ids = torch.tensor(asked.ids, device=logits.device)
        found = compare(kept, logits, ids)
        finite = torch.isfinite(found.kl)
        places = torch.zeros_like(finite)
        places[asked.counted] = True
        self.broken += int((places & ~finite).sum())
        self.kl += found.kl[places & finite].tolist()
        self.same += int(found.same[places & finite].sum())
        self.variance += float((found.error[places & finite] ** 2).sum())
        self._add_text(kept, found.next_log_q, asked)
        if asked.is_text:
            return
        right = found.same & finite
        answer = asked.predicted
        self.answer_kl += found.kl[answer][finite[answer]].tolist()
        self.items += 1
        self.flips += int(not bool(right[answer].all()))
        length = len(asked.ids) - asked.start
        if length:
            agreed = right[answer].int().cumprod(0)
            self.answer_lengths.append(length)
            self.agreements.append(int(agreed.sum()))

    def _add_text(self, kept: Kept, log_q: Any, asked: Asked) -> None:
        import torch

        p, q = kept.next_log_p[asked.text], log_q[asked.text]
        if len(p) and bool(torch.isfinite(q).all()):
            self.texts.append((-float(p.sum()), -float(q.sum()), len(p)))

    def divergence(self) -> Divergence:
        """Return the summary; the percentile is the smallest value that 99 % do not exceed.

        Raises:
            VerificationFailed: the candidate's distributions are finite nowhere.
        """
        ordered = sorted(self.kl)
        n = len(ordered)
        if not n:
            raise VerificationFailed(
                f"the candidate's logits are finite at none of {self.broken} tokens: its weights hold NaN or "
                "infinity, or overflow in its dtype"
            )
        lengths = len(self.answer_lengths)
        return Divergence(
            tokens=n,
            mean_kl=sum(ordered) / n,
            p99_kl=ordered[-(-99 * n // 100) - 1],
            max_kl=ordered[-1],
            top1_agreement=self.same / n,
            items=self.items,
            item_flips=self.flips,
            answer_mean_kl=sum(self.answer_kl) / len(self.answer_kl) if self.answer_kl else None,
            answer_tokens=sum(self.answer_lengths) / lengths if lengths else None,
            greedy_agreement=sum(self.agreements) / lengths if lengths else None,
            kl_error=_ERRORS * self.variance**0.5 / n,
            broken_tokens=self.broken,
        )

    def perplexity(self, level: float = 0.95) -> PerplexityRatio | None:
        """Return the ratio of perplexities on held-out text; None where there is none, or where the ratio is
        beyond any number (the divergence says so by itself then).
        """
        import math

        from lora_eval.stats import paired_likelihoods

        if not self.texts:
            return None
        p, q, tokens = (list(column) for column in zip(*self.texts, strict=True))
        try:
            found = paired_likelihoods(p, q, tokens, level=level)
            reference = math.exp(sum(p) / sum(tokens))
        except OverflowError:
            return None
        assert found.ratio is not None
        return PerplexityRatio(
            reference=reference,
            candidate=reference * found.ratio,
            ratio=found.ratio,
            ratio_low=found.ratio_low,
            ratio_high=found.ratio_high,
            level=level,
            tokens=int(sum(tokens)),
            documents=len(tokens),
        )


def batches(asked: Sequence[Asked]) -> Iterator[list[Asked]]:
    """Sequences by falling length, in batches of at most 1024 tokens with padding (one may be longer). Both
    arms see the same batches: another batching is another arithmetic.
    """
    batch: list[Asked] = []
    for item in sorted(asked, key=lambda item: (-len(item.ids), item.ids, item.is_text)):
        if batch and (len(batch) + 1) * len(batch[0].ids) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def logits_of(resident: Resident, arm: str, batch: Sequence[Asked]) -> list[Any]:
    """Return the logits (T, V) of each sequence of a batch. The model is causal and padding stands on the
    right, so no position that counts sees it, and no mask is needed.
    """
    import torch

    width = max(len(item.ids) for item in batch)
    rows = [[*item.ids, *[0] * (width - len(item.ids))] for item in batch]
    with resident.activate(arm) as model, torch.inference_mode():
        logits = model(input_ids=torch.tensor(rows, device=resident.device), use_cache=False).logits
    return [logits[number, : len(item.ids)] for number, item in enumerate(batch)]
