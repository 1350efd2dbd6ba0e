"""What is stored of next-token distributions, and the KL divergence that can be had from it.

A small vocabulary is stored whole, in the model's own numbers. Of a large one the `TOP` likeliest logits are
kept, the log-sum-exp of all, and `TAIL` tokens drawn from the rest in proportion to their probability. With
the rest's mass P under the reference and Q under the candidate, its part of the divergence is

    sum p log(p / q) = P - Q + P E[r - 1 - log r],  r = q / p, over the rest drawn from p

an identity in which only the last term is estimated. It is of second order in log r (John Schulman,
"Approximating KL Divergence", 2020, estimator k3), so its standard error is about P / sqrt(TAIL) of the
whole.
The log-sum inequality (Cover and Thomas, Elements of Information Theory, theorem 2.7.1) bounds the rest from
below by P log(P / Q), which holds whatever was drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

TOP = 512
TAIL = 64
WHOLE = 4096  # a vocabulary up to this size is stored whole
_CHUNK = 1 << 23  # elements of a chunk of log-probabilities in float64: 64 MiB each


@dataclass(frozen=True, slots=True)
class Kept:
    """The distributions after each of T tokens of one sequence.

    `values` are logits (T, K) in the model's dtype, `ids` their tokens (None: all, in order), `lse` the
    log-sum-exp (T) in float64, `best` the likeliest token (T), `next_log_p` the log-probability of the token
    that follows (T - 1). `tail_ids` and `tail_values` (T, M) were drawn from the tokens that are not kept.
    """

    values: Any
    lse: Any
    best: Any
    next_log_p: Any
    ids: Any = None
    tail_ids: Any = None
    tail_values: Any = None

    def tensors(self) -> dict[str, Any]:
        """Return what there is to store, by name."""
        names = Kept.__slots__
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, slots=True)
class Compared:
    """For each of T places: KL in nats, its standard error, whether the likeliest token is the same, and
    (T - 1) the candidate's log-probability of the token that follows.
    """

    kl: Any
    error: Any
    same: Any
    next_log_q: Any


def keep(logits: Any, ids: Any, *, top: int = TOP, tail: int = TAIL, whole: int = WHOLE) -> Kept:
    """Return what is kept of the logits (T, V) after the token ids (T). The draw depends on them alone."""
    import torch

    size = logits.shape[-1]
    lse = torch.cat([torch.logsumexp(part.double(), -1) for part in logits.split(_rows(size))])
    following = logits[:-1].gather(1, ids[1:, None])[:, 0].double() - lse[:-1]
    common = {"lse": lse.cpu(), "best": logits.argmax(-1).int().cpu(), "next_log_p": following.cpu()}
    if size <= max(whole, top + tail):
        return Kept(logits.cpu().contiguous(), **common)
    kept = logits.topk(top, dim=-1)
    drawn = torch.cat(
        [
            _draw(part, chosen, total, tail)
            for part, chosen, total in zip(
                logits.split(_rows(size)),
                kept.indices.split(_rows(size)),
                lse.split(_rows(size)),
                strict=True,
            )
        ]
    )
    return Kept(
        kept.values.cpu(),
        **common,
        ids=kept.indices.int().cpu(),
        tail_ids=drawn.int().cpu(),
        tail_values=logits.gather(1, drawn).cpu(),
    )


def _draw(logits: Any, kept: Any, lse: Any, tail: int) -> Any:
    """Systematic sampling: `tail` evenly spaced places on the cumulated probability of what is not kept."""
    import torch

    p = (logits.double() - lse[:, None]).exp().scatter(1, kept, 0.0)
    cumulated = p.cumsum(-1)
    steps = (torch.arange(tail, dtype=torch.float64, device=p.device) + 0.5) / tail
    found = torch.searchsorted(cumulated, cumulated[:, -1:] * steps, right=True)
    return found.clamp_max(logits.shape[-1] - 1)


def compare(kept: Kept, logits: Any, ids: Any) -> Compared:
    """Return how the candidate's logits (T, V) after the token ids (T) differ from what was kept. Equal
    logits give exactly 0; what is not finite stays so.
    """
    import torch

    kl, error, lse = [], [], []
    start = 0
    for part in logits.split(_rows(logits.shape[-1])):
        rows = slice(start, start + len(part))
        start = rows.stop
        # float64, because the difference of two float32 log-softmaxes has an error of 1e-7 to 1e-6, which is
        # as large as the KL of two correct float32 models.
        total = torch.logsumexp(part.double(), -1)
        found = _whole(kept, rows, part, total) if kept.ids is None else _parts(kept, rows, part, total)
        kl.append(found[0])
        error.append(found[1])
        lse.append(total)
    following = logits[:-1].gather(1, ids[1:, None])[:, 0].double() - torch.cat(lse)[:-1]
    return Compared(
        torch.cat(kl).cpu(),
        torch.cat(error).cpu(),
        (logits.argmax(-1).cpu() == kept.best),
        following.cpu(),
    )


def _whole(kept: Kept, rows: slice, logits: Any, lse: Any) -> tuple[Any, Any]:
    import torch

    device = logits.device
    log_p = kept.values[rows].to(device).double() - kept.lse[rows].to(device)[:, None]
    log_q = logits.double() - lse[:, None]
    kl = _terms(log_p, log_q).sum(-1).clamp_min(0)
    return kl, torch.zeros_like(kl)


def _parts(kept: Kept, rows: slice, logits: Any, lse: Any) -> tuple[Any, Any]:
    import torch

    device = logits.device
    total = kept.lse[rows].to(device)[:, None]

    def both(values: Any, ids: Any) -> tuple[Any, Any]:
        log_p = values[rows].to(device).double() - total
        return log_p, logits.gather(1, ids[rows].to(device).long()).double() - lse[:, None]

    log_p, log_q = both(kept.values, kept.ids)
    head = _terms(log_p, log_q).sum(-1)
    p_rest = (1 - log_p.exp().sum(-1)).clamp_min(0)
    q_rest = (1 - log_q.exp().sum(-1)).clamp_min(0)
    tail_p, tail_q = both(kept.tail_values, kept.tail_ids)
    ratio = tail_q - tail_p
    second = ratio.exp() - 1 - ratio
    estimated = p_rest - q_rest + p_rest * second.mean(-1)
    least = torch.where(p_rest > 0, p_rest * (p_rest.log() - q_rest.clamp_min(1e-300).log()), p_rest)
    kl = (head + torch.maximum(estimated, least)).clamp_min(0)
    return kl, p_rest * second.std(-1) / second.shape[-1] ** 0.5


def _terms(log_p: Any, log_q: Any) -> Any:
    """Return p log(p / q), 0 where p is 0 (models that mask tokens give them a logit of minus infinity)."""
    import torch

    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), torch.zeros_like(p))


def _rows(size: int) -> int:
    return max(1, _CHUNK // size)
