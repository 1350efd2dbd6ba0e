"""Tokenizers with the special tokens of real families, small enough to build in a test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

SPECIAL = {
    "qwen2.5": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "extra": ["<|im_start|>"]},
    "llama3": {
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "extra": ["<|start_header_id|>", "<|end_header_id|>"],
    },
}


def build_tokenizer(family: str) -> Any:
    """A byte-level BPE tokenizer (a few merges) with the family's special tokens and no template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    text = "user assistant system hello the assistant says hello to the user\n\n"
    backend.train_from_iterator([text] * 20, trainer)
    names = {key: value for key, value in SPECIAL[family].items() if key != "extra"}
    special = [*names.values(), *SPECIAL[family]["extra"]]
    backend.add_special_tokens([AddedToken(token, special=True) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        additional_special_tokens=SPECIAL[family]["extra"],
        clean_up_tokenization_spaces=False,
        **names,
    )


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, Any]:
    """One tokenizer for each family. Shared: copy one before changing it."""
    return {family: build_tokenizer(family) for family in SPECIAL}


@pytest.fixture
def tokenizer(tokenizers: dict[str, Any]) -> Callable[[str], Any]:
    """`tokenizer("qwen2.5")` gives a fresh copy that a test may change."""
    import copy

    return lambda family: copy.deepcopy(tokenizers[family])
