"""The summary's counts: tokens, answers that flip, how far they agree, held-out text, what is not finite."""

from __future__ import annotations

import math

import pytest

from lora_eval.errors import VerificationFailed
from lora_eval.verify.divergence import Tally, batches
from lora_eval.verify.kept import compare, keep
from lora_eval.verify.prompts import Asked
from tests.verify.test_kept import logits, tokens


def tally(*items):
    """Count (asked, reference's logits, candidate's logits)."""
    import torch

    counted = Tally()
    for asked, p, q in items:
        counted.add(keep(p, torch.tensor(asked.ids)), q, asked)
    return counted


def rolled(p, *places):
    """The same logits with another likeliest token at those places."""
    import torch

    q = p.clone()
    for place in places:
        q[place] = torch.roll(p[place], 1)
    return q


def test_the_tally_counts_tokens_and_flipped_answers():
    p = [logits(seed, 6, 10) for seed in range(3)]
    asked = Asked((1,) * 6, 4)
    counted = tally(
        (asked, p[0], rolled(p[0], 4)),  # inside the answer
        (asked, p[1], rolled(p[1], 1)),  # inside the prompt
        (Asked((1,) * 5, 3), p[2][:5], p[2][:5]),
    )
    found = counted.divergence()
    assert (found.tokens, found.items, found.item_flips, found.broken_tokens) == (17, 3, 1, 0)
    assert found.top1_agreement == pytest.approx(15 / 17)
    assert found.max_kl == found.p99_kl > found.mean_kl > 0
    changed = compare(keep(p[0], tokens(6)), rolled(p[0], 4), tokens(6)).kl[4].item()
    assert found.answer_mean_kl == pytest.approx(changed / 6)  # answers of 2, 2 and 2 predicted tokens


def test_the_agreement_ends_at_the_first_token_that_differs():
    p = logits(0, 8, 10)
    asked = Asked((1,) * 8, 3)  # an answer of five tokens, predicted at places 2 to 6
    found = tally((asked, p, rolled(p, 4, 6)), (asked, p, p)).divergence()
    assert found.answer_tokens == 5
    assert found.greedy_agreement == (2 + 5) / 2


def test_an_answer_without_tokens_is_compared_by_its_next_token():
    p = logits(0, 3, 10)
    found = tally((Asked((1, 2, 3), 3), p, rolled(p, 2))).divergence()
    assert (found.item_flips, found.answer_tokens, found.greedy_agreement) == (1, None, None)


def test_the_percentile_is_not_exceeded_by_99_of_100():
    counted = Tally(kl=[float(n) for n in range(200)], same=200, items=1)
    assert counted.divergence().p99_kl == 197.0


def test_perplexity_is_that_of_held_out_text_alone():
    """Of a conversation the held-out answer; of a text the text; never what the reference answered."""
    import torch

    p, q, ids = logits(0, 6, 10), logits(1, 6, 10), (0, 1, 2, 3, 4, 5)
    log_p, log_q = (torch.log_softmax(each.double(), -1)[range(5), list(ids[1:])] for each in (p, q))
    counted = tally((Asked(ids, 4, has_text=True), p, q), (Asked(ids, 4, is_text=True), p, q))
    found = counted.perplexity()
    assert (found.tokens, found.documents, found.ratio_low) == (2, 1, None)  # one document has no interval
    assert found.reference == pytest.approx(math.exp(-float(log_p[3:].mean())))
    assert found.ratio == pytest.approx(math.exp(float((log_p[3:] - log_q[3:]).mean())))
    assert counted.divergence().tokens == 6 + 3  # places 3 to 5 of the text predict its answer
    assert counted.divergence().items == 1

    alone = tally((Asked(ids, 4), p, q), (Asked(ids[:5], 5), p[:5], q[:5])).perplexity()
    assert (alone.tokens, alone.documents) == (3 + 4, 2)
    assert alone.ratio_low < alone.ratio < alone.ratio_high
    assert tally((Asked(ids, 4, has_text=True), p, q)).perplexity() is None


def test_what_is_not_finite_is_counted_and_never_taken_for_agreement():
    import torch

    p = logits(0, 6, 10)
    q = p.clone()
    q[1, 0] = torch.nan
    found = tally((Asked((1,) * 6, 5), p, q)).divergence()
    assert (found.broken_tokens, found.tokens, found.mean_kl) == (1, 5, 0.0)
    with pytest.raises(VerificationFailed, match="finite at none of 6 tokens"):
        tally((Asked((1,) * 6, 5), p, torch.full_like(p, torch.nan))).divergence()


def test_an_answer_with_a_place_that_is_not_finite_is_no_agreement():
    """torch takes NaN for the largest logit: the likeliest token would be the reference's."""
    import torch

    p = logits(0, 6, 10)
    q = p.clone()
    q[4, int(p[4].argmax())] = torch.nan
    found = tally((Asked((1,) * 6, 4), p, q)).divergence()
    assert (found.item_flips, found.greedy_agreement, found.broken_tokens) == (1, 1, 1)


def test_batches_hold_every_sequence_once_within_the_limit():
    asked = [Asked(tuple(range(n % 90 + 2)), 1, is_text=n % 3 == 0) for n in range(200)]
    made = list(batches(asked))
    assert sorted(map(id, (item for batch in made for item in batch))) == sorted(map(id, asked))
    assert all(len(batch) * len(batch[0].ids) <= 1024 for batch in made)
