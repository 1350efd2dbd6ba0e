"""Which architectures the engine computes itself, and that its numbers are theirs; the others say why not."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_eval.engines import packs
from lora_eval.engines.attention import TreePlan
from lora_eval.engines.slots import Slots
from lora_eval.engines.transformers import TransformersEngine
from lora_eval.errors import ModelError
from lora_eval.models import NF4, Resident, load_tokenizer, open_resident
from lora_eval.protocols import GenerateRequest, ScoreRequest
from tests.conftest import save_tiny_llama, save_tiny_tokenizer
from tests.engines.architectures import MASKED, REFUSED, WHOLE, WINDOWS, Case, build_model

Values = dict[str, Any]
NEW_TOKENS = 12


def _silent(*_: Any) -> None:
    pass


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tiny_tokenizer(folder)
    return load_tokenizer(folder)


def _tokens(rng: random.Random, n: int) -> tuple[int, ...]:
    return tuple(rng.randrange(256) for _ in range(n))


def _score_requests() -> list[ScoreRequest]:
    """Some thirty: alone, with shared beginnings, several choices for one context, one of 120 tokens."""
    rng = random.Random(0)
    stem = _tokens(rng, 40)
    requests = [
        ScoreRequest(_tokens(rng, rng.randint(1, 30)), _tokens(rng, rng.randint(1, 9))) for _ in range(12)
    ]
    for _ in range(4):
        item = stem + _tokens(rng, rng.randint(1, 20))
        requests += [ScoreRequest(item, _tokens(rng, n)) for n in (1, 1, 3, 12)]
    return [*requests, ScoreRequest(stem[:20], stem[20:]), ScoreRequest(_tokens(rng, 100), _tokens(rng, 20))]


def _prompts() -> list[GenerateRequest]:
    """Eight: five behind a shared beginning of 30 tokens, three of their own; all longer than the window."""
    rng = random.Random(1)
    stem = _tokens(rng, 30)
    texts = [stem + _tokens(rng, n) for n in (1, 3, 7, 12, 20)] + [_tokens(rng, n) for n in (9, 10, 25)]
    return [GenerateRequest(text, (), NEW_TOKENS) for text in texts]


def _alone(model: Any, request: ScoreRequest) -> tuple[float, bool]:
    import torch

    ids = torch.tensor([[*request.context_ids, *request.continuation_ids]])
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[0, len(request.context_ids) - 1 : -1].float()
    wanted = torch.tensor(request.continuation_ids)
    values = torch.log_softmax(logits, dim=-1).gather(1, wanted[:, None])
    return float(values.double().sum()), bool((logits.argmax(-1) == wanted).all())


def _generated(model: Any, request: GenerateRequest) -> tuple[int, ...]:
    import torch

    ids = torch.tensor([request.input_ids])
    with torch.inference_mode():
        found = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS
        )
    return tuple(found[0, len(request.input_ids) :].tolist())


def check_numbers(engine: TransformersEngine) -> None:
    """Scores and answers are those of the model alone, one sequence at a time; drafts change nothing."""
    model = engine.resident.model
    requests, prompts = _score_requests(), _prompts()
    for request, score in zip(requests, engine.score("base", requests, _silent), strict=True):
        value, greedy = _alone(model, request)
        assert score.log_likelihood == pytest.approx(value, rel=1e-5)
        assert score.is_greedy is greedy
    expected = [_generated(model, prompt) for prompt in prompts]
    engine.drafts = {}
    for _ in range(2):  # the second time each answer is its own draft
        assert [answer.token_ids for answer in engine.generate("base", prompts, _silent)] == expected
    assert engine.work["accepted_tokens"] > 0
    engine.drafts = {key: (*draft[:5], 7, *draft[6:]) for key, draft in engine.drafts.items()}
    assert [answer.token_ids for answer in engine.generate("base", prompts, _silent)] == expected
    assert len(set(expected)) > 4


@contextlib.contextmanager
def _unprobed(monkeypatch: pytest.MonkeyPatch, mode: str) -> Iterator[None]:
    """Within this, engines are opened as if the probe had found this way right."""
    with monkeypatch.context() as patch:
        patch.setattr("lora_eval.engines.probe.find_mode", lambda resident, max_length: (mode, None))
        yield


COVERED: dict[str, tuple[Case, str]] = {
    **{name: (case, "fused") for name, case in (WHOLE | WINDOWS).items()},
    **{name: (case, "masked") for name, case in MASKED.items()},
}


@pytest.mark.parametrize("name", COVERED)
def test_numbers_are_the_models_own(name: str, tokenizer: Any) -> None:
    case, mode = COVERED[name]
    engine = TransformersEngine(Resident(build_model(case), tokenizer, {"base": None}), batch_tokens=48)
    assert (engine.mode, engine.fallback_reason) == (mode, None)
    check_numbers(engine)


@pytest.mark.parametrize("name", ["llama", *WINDOWS])
def test_masks_give_the_same_numbers(name: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case, _ = COVERED[name]
    with _unprobed(monkeypatch, "masked"):
        engine = TransformersEngine(Resident(build_model(case), tokenizer, {"base": None}), batch_tokens=48)
    check_numbers(engine)


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_tree_cannot_give_is_refused_with_a_reason(name: str, tokenizer: Any) -> None:
    case, reason = REFUSED[name]
    engine = TransformersEngine(Resident(build_model(case), tokenizer, {"base": None}))
    assert engine.mode is None
    assert reason in str(engine.fallback_reason)


def _worst(engine: TransformersEngine) -> float:
    """The largest relative error of the log-likelihoods."""
    requests = _score_requests()[12:-1]  # those that branch, and no more tokens than MPT has biases
    with engine.resident.activate("base") as model:
        expected = [_alone(model, request)[0] for request in requests]
    scores = engine.score("base", requests, _silent)
    return max(abs(score.log_likelihood / value - 1) for score, value in zip(scores, expected, strict=True))


@pytest.mark.parametrize("mode", ["fused", "masked"])
def test_without_the_probe_mpt_is_silently_wrong(
    mode: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, _ = REFUSED["mpt"]
    with _unprobed(monkeypatch, mode):
        engine = TransformersEngine(Resident(build_model(case), tokenizer, {"base": None}))
    assert _worst(engine) > 1e-3


def test_a_window_longer_than_the_probe_is_still_tried(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, values = WINDOWS["mistral-window"]
    model = build_model((kind, values | {"sliding_window": 100}))
    resident = Resident(model, tokenizer, {"base": None})
    assert TransformersEngine(resident).mode == "fused"
    assert model.config.sliding_window == 100
    # What forgets the window is right for every sequence of the probe, unless the window is narrowed.
    attend, masks = TreePlan.attend, packs.layer_masks
    monkeypatch.setattr(TreePlan, "attend", lambda *values: attend(*values[:-1], None))
    assert TransformersEngine(resident).mode == "masked"
    monkeypatch.setattr(packs, "layer_masks", lambda model, seen, distance: masks(model, seen, 0 * distance))
    assert "differ" in str(TransformersEngine(resident).fallback_reason)


@pytest.mark.parametrize("error", [-1, 1])
def test_numbers_that_are_wrong_in_decoding_only_are_seen(
    error: int, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    attend = Slots.attend
    monkeypatch.setattr(Slots, "attend", lambda *v: attend(*v[:-1], None if v[-1] is None else v[-1] + error))
    model = build_model(WINDOWS["gemma3"])  # its greedy answers stay the same
    assert TransformersEngine(Resident(model, tokenizer, {"base": None})).mode == "masked"


def test_local_layers_wider_than_the_probe_are_refused(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, _ = REFUSED["gpt_neo"]  # its window is 256
    resident = Resident(build_model(case), tokenizer, {"base": None})
    monkeypatch.setattr("lora_eval.engines.architecture._OWN_CUTS", ())
    assert TransformersEngine(resident).mode == "masked"  # short sequences do not show it


def test_rotations_that_change_with_the_length_are_refused(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rotation = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64}
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    model = build_model(("llama", {"rope_parameters": rotation | factors}))
    resident = Resident(model, tokenizer, {"base": None})
    assert "beyond 64 tokens" in str(TransformersEngine(resident).fallback_reason)
    with _unprobed(monkeypatch, "fused"):
        engine = TransformersEngine(resident)
    short = [request for request in _score_requests() if len(request.context_ids) < 50]
    for request, score in zip(short, engine.score("base", short, _silent), strict=True):
        assert score.log_likelihood == pytest.approx(_alone(model, request)[0], rel=1e-5)
    with pytest.raises(ModelError, match="a sequence of 119 tokens: beyond 64"):
        engine.score("base", _score_requests(), _silent)


def test_half_of_an_encoder_decoder_is_not_a_language_model(tokenizer: Any) -> None:
    values = {"d_model": 64, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 96}
    model = build_model(("bart", values | {"forced_eos_token_id": None}))
    with pytest.raises(ModelError, match="model_type is 'bart', an encoder-decoder model"):
        TransformersEngine(Resident(model, tokenizer, {"base": None}))


@pytest.mark.parametrize("name", ["llama", "gemma3", "olmoe", "deepseek_v3", "gpt_oss"])
def test_16_bit_models_pass_within_their_own_noise(name: str, tokenizer: Any) -> None:
    import torch

    case, mode = COVERED[name]
    engine = TransformersEngine(Resident(build_model(case).to(torch.bfloat16), tokenizer, {"base": None}))
    assert (engine.mode, engine.fallback_reason) == (mode, None)


def test_alibi_is_caught_in_16_bit(tokenizer: Any) -> None:
    import torch

    case, _ = REFUSED["mpt"]
    engine = TransformersEngine(Resident(build_model(case).to(torch.bfloat16), tokenizer, {"base": None}))
    assert str(engine.fallback_reason).count("nats on average") == 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nf4_models_pass(dtype: str, tmp_path: Path) -> None:
    save_tiny_llama(tmp_path)
    engine = TransformersEngine(open_resident(tmp_path, dtype=dtype, quantization=NF4))
    assert (engine.mode, engine.fallback_reason) == ("fused", None)
