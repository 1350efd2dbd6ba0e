"""What a model's configuration says about which tokens its layers see.

The probe's sequences are short; what only shows beyond some length must be read here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from lora_eval.errors import ModelError

_SEEN_WHOLE, _WINDOW = "full_attention", "sliding_attention"
# What layers look at beyond a full mask or a sliding window: their own cut by places in the row (GPT-Neo's
# `window_size`), or a choice of keys. Only longer sequences than these numbers show it.
_OWN_CUTS = (
    "window_size",
    "attention_window_size",
    "sliding_window_size",
    "local_attention",
    "attention_chunk_size",
    "index_topk",
)
_CHANGING_ROTATIONS = ("longrope", "dynamic")


def text_config(model: Any) -> Any:
    """Return the configuration of the part that reads text."""
    return getattr(model.config, "text_config", None) or model.config


def layer_kinds(model: Any) -> frozenset[str]:
    """Return the kinds of attention: `full_attention`, `sliding_attention` or both.

    Raises:
        NotImplementedError: there are others, which no mask and no order of the cache expresses.
    """
    config = text_config(model)
    own = [name for name in _OWN_CUTS if getattr(config, name, None)]
    kinds = frozenset(getattr(config, "layer_types", None) or ())
    strange = sorted(kinds - {_SEEN_WHOLE, _WINDOW})
    window = getattr(config, "sliding_window", None)
    if strange or own:
        raise NotImplementedError(f"layers with {', '.join(strange + own)}")
    if _WINDOW in kinds and not window:
        raise NotImplementedError("layers with a sliding window of unknown width")
    return kinds or frozenset({_WINDOW if window else _SEEN_WHOLE})


def by_kind(model: Any) -> bool:
    """True where the model takes one mask for each kind of layer."""
    return _WINDOW in (getattr(text_config(model), "layer_types", None) or ())


def window(model: Any) -> int | None:
    """Return how many tokens a sliding layer sees, itself included."""
    width = getattr(text_config(model), "sliding_window", None)
    return int(width) if width else None


@contextlib.contextmanager
def narrow_windows(model: Any, width: int) -> Iterator[None]:
    """Within this, sliding layers see at most `width` tokens, so that short sequences show what a window
    does. The same weights then give other numbers, and must give them both ways.
    """
    before = window(model)
    if before is None or before <= width:
        yield
        return
    layers = [module for module in model.modules() if getattr(module, "sliding_window", None) == before]
    holders = [text_config(model), *layers]
    for holder in holders:
        holder.sliding_window = width
    try:
        yield
    finally:
        for holder in holders:
            holder.sliding_window = before


def length_limit(model: Any) -> int | None:
    """Return up to how many tokens a sequence may have, where longer ones rotate all their positions in
    another way (LongRoPE, dynamic NTK): one tree of both cannot be right. None: no limit.
    """
    config = text_config(model)
    rotations = getattr(config, "rope_parameters", None) or {}
    limits = []
    for rotation in [rotations, *(value for value in rotations.values() if isinstance(value, dict))]:
        if rotation.get("rope_type") in _CHANGING_ROTATIONS:
            length = rotation.get("original_max_position_embeddings")
            length = length or getattr(config, "original_max_position_embeddings", None)
            limits.append(int(length or config.max_position_embeddings))
    return min(limits, default=None)


def check_length(model: Any, tokens: int) -> None:
    """Raise ModelError where a sequence of so many tokens is beyond `length_limit`."""
    limit = length_limit(model)
    if limit is not None and tokens > limit:
        raise ModelError(
            f"a sequence of {tokens} tokens: beyond {limit} this model rotates all positions in another way, "
            "and long and short sequences cannot share what they begin with; expected shorter sequences, "
            "or lm-eval's own path"
        )


def refuse_encoder_decoder(model: Any) -> None:
    """Raise ModelError where lm-eval reads this kind of model as an encoder and a decoder (its rule): loaded
    as a causal language model it is the decoder alone, and no path gives the model's numbers.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES as NAMES

    kind = model.config.model_type
    if kind in NAMES or getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(
            f"model_type is '{kind}', an encoder-decoder model; expected a decoder-only language model: "
            "evaluate this one with lm-eval itself"
        )
