"""KL per token against SciPy's, exact zeros, and the summary's counts."""

from __future__ import annotations

import pytest

from lora_eval.verify import divergence
from lora_eval.verify.divergence import Tally, compare_logits
from lora_eval.verify.prompts import Asked


def logits(seed, *shape):
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


def test_kl_is_that_of_the_two_distributions(monkeypatch):
    import numpy
    from scipy.special import softmax
    from scipy.stats import entropy

    p, q = logits(0, 50, 97), logits(1, 50, 97)
    expected = entropy(softmax(p.double().numpy(), axis=1), softmax(q.double().numpy(), axis=1), axis=1)
    kl, same = compare_logits(p, q)
    assert numpy.allclose(kl.numpy(), expected, rtol=1e-9)
    assert same.tolist() == (p.argmax(1) == q.argmax(1)).tolist()
    monkeypatch.setattr(divergence, "_CHUNK", 97 * 7)  # seven rows at a time
    assert compare_logits(p, q)[0].tolist() == kl.tolist()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equal_logits_give_exactly_zero(dtype):
    import torch

    p = logits(0, 20, 300).to(getattr(torch, dtype))
    kl, same = compare_logits(p, p.clone())
    assert kl.tolist() == [0.0] * 20
    assert same.all()


def test_small_differences_are_seen_in_float32():
    """A change of 1e-5 in the logits is a KL of about 1e-11: float32 sums would bury it in 1e-7."""
    p = logits(0, 5, 100)
    kl, _ = compare_logits(p, p + 1e-5 * logits(1, 5, 100))
    assert all(1e-12 < value < 1e-9 for value in kl.tolist())


def test_the_tally_counts_tokens_and_flipped_answers():
    import torch

    reference = logits(0, 3, 6, 10)
    candidate = reference.clone()
    # Sequence 0: another likeliest token inside the answer; 1: inside the prompt; 2: only in the padding.
    for row, place in ((0, 4), (1, 1), (2, 5)):
        candidate[row, place] = torch.roll(reference[row, place], 1)
    asked = [Asked((1,) * 6, 4), Asked((1,) * 6, 4), Asked((1,) * 5, 3)]
    counted = Tally()
    counted.add(reference, candidate, asked)
    found = counted.divergence()
    assert (found.tokens, found.items, found.item_flips) == (17, 3, 1)
    assert found.top1_agreement == pytest.approx(15 / 17)
    assert found.max_kl == found.p99_kl > found.mean_kl > 0
    changed = compare_logits(reference[0, 4:5], candidate[0, 4:5])[0].item()
    assert found.answer_mean_kl == pytest.approx(changed / 6)  # answers of 2, 2 and 2 predicted tokens


def test_an_answer_without_tokens_is_compared_by_its_next_token():
    import torch

    reference = logits(0, 1, 3, 10)
    candidate = reference.clone()
    candidate[0, 2] = torch.roll(reference[0, 2], 1)
    counted = Tally()
    counted.add(reference, candidate, [Asked((1, 2, 3), 3)])
    assert counted.divergence().item_flips == 1


def test_the_percentile_is_not_exceeded_by_99_of_100():
    counted = Tally(kl=[float(n) for n in range(200)], same=200, items=1)
    assert counted.divergence().p99_kl == 197.0
