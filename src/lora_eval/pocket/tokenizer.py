"""The pocket model's tokenizer: byte-level BPE of 2,048 tokens, digits apart, one token for each role.

Every stretch of text between two special tokens begins with a space for the tokenizer, so that a word has
one token at the start of an answer and in the middle of a sentence; copying is then the same token twice.
"""

from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

from .items import Message

VOCABULARY = 2048
PAD, END, SYSTEM, USER, ASSISTANT, TEXT = SPECIALS = (
    "<|pad|>",
    "<|end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|text|>",
)

_ROLE_CHECK = (
    "{%- if message.role not in ('system', 'user', 'assistant') -%}"
    "{{- raise_exception('roles are system, user and assistant, not ' + message.role) -}}{%- endif -%}"
)
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    + _ROLE_CHECK
    + "{{- '<|' + message.role + '|>' + message.content + '<|end|>' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def corpus(seed: int, count: int) -> list[str]:
    """``count`` texts of the training mixture for the BPE merges."""
    from .mixture import sample

    rng = Random(seed)
    texts: list[str] = []
    for _ in range(count):
        made = sample(rng)
        texts.extend([turn["content"] for turn in made.messages] if made.messages else [made.text])
    return texts


def train_tokenizer(seed: int = 0, count: int = 60_000) -> Any:
    """A ``PreTrainedTokenizerFast`` with the chat template set, equal for equal seeds."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.ByteLevel(add_prefix_space=True), pre_tokenizers.Digits(individual_digits=True)]
    )
    bpe.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus(seed, count), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=TEXT,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def save_tokenizer(folder: Path) -> None:
    """Writes the tokenizer's files into ``folder``."""
    train_tokenizer().save_pretrained(str(folder))


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer saved in ``folder``."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))


def prompt_text(messages: Iterable[Message]) -> str:
    """What the chat template renders with the generation prompt, without loading a tokenizer."""
    return "".join(f"<|{turn['role']}|>{turn['content']}{END}" for turn in messages) + ASSISTANT
