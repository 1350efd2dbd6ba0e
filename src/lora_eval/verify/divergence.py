"""KL divergence of next-token distributions, token by token, in chunks that large vocabularies fit into."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_eval.models import Resident
from lora_eval.records import Divergence
from lora_eval.verify.prompts import Asked

_CHUNK = 1 << 23  # elements of a chunk of log-probabilities in float64: 64 MiB each
_BATCH_TOKENS = 1024


@dataclass
class Tally:
    """What was found so far; `flips` counts sequences whose greedy answer differs."""

    kl: list[float] = field(default_factory=list)
    answer_kl: list[float] = field(default_factory=list)
    same: int = 0
    items: int = 0
    flips: int = 0

    def add(self, reference: Any, candidate: Any, batch: Sequence[Asked]) -> None:
        """Count one batch: logits (B, T, V) of both arms, padding on the right."""
        for row, asked in enumerate(batch):
            length = len(asked.ids)
            kl, same = compare_logits(reference[row, :length], candidate[row, :length])
            self.kl += kl.tolist()
            self.same += int(same.sum())
            # The token at `start` is predicted one place before it; without an answer the next token counts.
            answer = slice(asked.start - 1, max(length - 1, asked.start))
            self.answer_kl += kl[answer].tolist()
            self.items += 1
            self.flips += int(not bool(same[answer].all()))

    def divergence(self) -> Divergence:
        """Return the summary; the percentile is the smallest value that 99 % do not exceed."""
        ordered = sorted(self.kl)
        n = len(ordered)
        return Divergence(
            tokens=n,
            mean_kl=sum(ordered) / n,
            p99_kl=ordered[-(-99 * n // 100) - 1],
            max_kl=ordered[-1],
            top1_agreement=self.same / n,
            items=self.items,
            item_flips=self.flips,
            answer_mean_kl=sum(self.answer_kl) / len(self.answer_kl) if self.answer_kl else None,
        )


def compare_logits(reference: Any, candidate: Any) -> tuple[Any, Any]:
    """Return KL(reference || candidate) in nats and whether the likeliest token is the same, for each row of
    logits (T, V). Equal logits give exactly 0.
    """
    import torch

    rows = max(1, _CHUNK // reference.shape[-1])
    kl, same = [], []
    for p, q in zip(reference.split(rows), candidate.split(rows), strict=True):
        # float64, because the difference of two float32 log-softmaxes has an error of 1e-7 to 1e-6, which is
        # as large as the KL of two correct float32 models.
        log_p = torch.log_softmax(p.double(), dim=-1)
        log_q = torch.log_softmax(q.double(), dim=-1)
        kl.append((log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0))
        same.append(p.argmax(-1) == q.argmax(-1))
    return torch.cat(kl), torch.cat(same)


def batches(asked: Sequence[Asked]) -> Iterator[list[Asked]]:
    """Sequences by falling length, in batches of at most 1024 tokens with padding (one may be longer). Both
    arms see the same batches: another batching is another arithmetic.
    """
    batch: list[Asked] = []
    for item in sorted(asked, key=lambda item: (-len(item.ids), item.ids)):
        if batch and (len(batch) + 1) * len(batch[0].ids) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def logits_of(resident: Resident, arm: str, batch: Sequence[Asked]) -> Any:
    """Return the logits (B, T, V) of a batch. The model is causal and padding stands on the right, so no
    position that counts sees it, and no mask is needed.
    """
    import torch

    width = len(batch[0].ids)
    rows = [[*item.ids, *[0] * (width - len(item.ids))] for item in batch]
    with resident.activate(arm) as model, torch.inference_mode():
        return model(input_ids=torch.tensor(rows, device=resident.device), use_cache=False).logits


def tally(pairs: Iterable[tuple[Any, Any, Sequence[Asked]]]) -> Divergence:
    """Return the divergence over batches of (reference's logits, candidate's logits, what was asked)."""
    counted = Tally()
    for reference, candidate, batch in pairs:
        counted.add(reference, candidate.to(reference.device), batch)
    return counted.divergence()
