"""KL per token against SciPy's, exact zeros, and what a large vocabulary's stored part still tells."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_eval.verify import kept
from lora_eval.verify.kept import Kept, compare, keep


def logits(seed, *shape, scale=3.0):
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def tokens(length):
    import torch

    return torch.arange(length)


def exact(p, q):
    from scipy.special import softmax
    from scipy.stats import entropy

    return entropy(softmax(p.double().numpy(), axis=1), softmax(q.double().numpy(), axis=1), axis=1)


def test_kl_is_that_of_the_two_distributions(monkeypatch):
    import numpy

    p, q, ids = logits(0, 50, 97), logits(1, 50, 97), tokens(50)
    found = compare(keep(p, ids), q, ids)
    assert numpy.allclose(found.kl.numpy(), exact(p, q), rtol=1e-9)
    assert found.same.tolist() == (p.argmax(1) == q.argmax(1)).tolist()
    assert found.error.tolist() == [0.0] * 50
    monkeypatch.setattr(kept, "_CHUNK", 97 * 7)  # seven rows at a time
    assert compare(keep(p, ids), q, ids).kl.tolist() == found.kl.tolist()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [300, 5000])
def test_equal_logits_give_exactly_zero(dtype, size):
    import torch

    p, ids = logits(0, 20, size).to(getattr(torch, dtype)), tokens(20)
    found = compare(keep(p, ids), p.clone(), ids)
    assert found.kl.tolist() == [0.0] * 20
    assert found.error.tolist() == [0.0] * 20
    assert found.same.all()


def test_small_differences_are_seen_in_float32():
    """A change of 1e-5 in the logits is a KL of about 1e-11: float32 sums would bury it in 1e-7."""
    p, ids = logits(0, 5, 100), tokens(5)
    found = compare(keep(p, ids), p + 1e-5 * logits(1, 5, 100), ids)
    assert all(1e-12 < value < 1e-9 for value in found.kl.tolist())


def test_the_following_token_is_scored_under_both():
    import torch

    p, q, ids = logits(0, 6, 50), logits(1, 6, 50), torch.tensor([3, 9, 9, 1, 0, 44])
    stored = keep(p, ids)
    expected = torch.log_softmax(p.double(), -1)[range(5), ids[1:]]
    assert torch.allclose(stored.next_log_p, expected)
    assert torch.allclose(
        compare(stored, q, ids).next_log_q, torch.log_softmax(q.double(), -1)[range(5), ids[1:]]
    )


def test_what_is_impossible_under_the_reference_costs_nothing():
    """Some models give the tokens of their padding a logit of minus infinity."""
    import torch

    p, ids = logits(0, 4, 40), tokens(4)
    p[:, 30:] = -torch.inf
    q = p + 0.1 * logits(1, 4, 40)
    found = compare(keep(p, ids), q, ids)
    assert torch.isfinite(found.kl).all()
    q[0, 3] = -torch.inf  # impossible under the candidate alone
    assert compare(keep(p, ids), q, ids).kl.isinf().tolist() == [True, False, False, False]


@given(seed=st.integers(0, 2**16), noise=st.floats(1e-4, 1.0), scale=st.floats(0.5, 4.0))
@settings(max_examples=25, deadline=None)
def test_the_stored_part_of_a_large_vocabulary_gives_the_kl_within_its_error(seed, noise, scale):
    """20,000 tokens, of which 512 and 64 drawn ones are kept; noise as rounding makes it."""
    p, ids = logits(seed, 40, 20_000, scale=scale), tokens(40)
    q = p + noise * logits(seed + 1, 40, 20_000, scale=1.0)
    found = compare(keep(p, ids), q, ids)
    mean, error = float(found.kl.mean()), 3 * float((found.error**2).sum().sqrt()) / 40
    assert abs(mean - exact(p, q).mean()) <= error + 1e-12
    assert 0 < error < 0.25 * mean  # flat distributions (scale 0.5) leave nearly everything to the drawn ones


def test_a_peaked_distribution_leaves_next_to_nothing_to_the_drawn_tokens():
    """With 99.9 % of the probability kept, as language models have it, the error is beside the point."""
    p, ids = logits(7, 200, 50_000, scale=1.5), tokens(200)
    p[:, :40] += 18
    q = p + 0.03 * logits(8, 200, 50_000, scale=1.0)
    found = compare(keep(p, ids), q, ids)
    assert 3 * float((found.error**2).sum().sqrt()) / 200 < 1e-3 * float(found.kl.mean())


def test_probability_that_moves_into_the_rest_is_seen_whatever_was_drawn():
    """The log-sum bound: half of the candidate's probability on one token that nobody drew."""
    p, ids = logits(3, 10, 20_000, scale=6.0), tokens(10)
    q = p.clone()
    q[range(10), p.argmin(-1)] = p.logsumexp(-1)
    found = compare(keep(p, ids), q, ids)
    truth = exact(p, q)
    assert (found.kl.numpy() <= truth + 1e-9).all()
    assert (found.kl.numpy() > 0.9 * truth).all()


def test_it_goes_through_a_file(tmp_path):
    import torch

    p, ids = logits(0, 8, 6000).bfloat16(), tokens(8)
    stored = keep(p, ids)
    torch.save(stored.tensors(), tmp_path / "kept.pt")
    again = Kept(**torch.load(tmp_path / "kept.pt", weights_only=True))
    q = p + logits(1, 8, 6000).bfloat16()
    assert compare(again, q, ids).kl.tolist() == compare(stored, q, ids).kl.tolist()
    size = sum(tensor.numel() * tensor.element_size() for tensor in again.tensors().values())
    assert size < 0.4 * p.numel() * p.element_size()
