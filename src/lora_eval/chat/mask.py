"""Which tokens of a conversation train, and what `max_length` takes away from them.

The mask is the one that TRL's SFTTrainer computes with `assistant_only_loss`: transformers maps the
character spans inside `{% generation %}` to tokens. A token that straddles a mark's edge counts as trained,
which happens where an answer begins with white space that the tokenizer merges with the end of the prompt.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_eval.chat.render import Messages, refused, render
from lora_eval.chat.templates import named_text
from lora_eval.errors import TemplateError

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class MaskReport:
    """What of a data set trains. Row numbers count from 0, in the order of the conversations.

    `tokens` and `trained_tokens` are what is left within `max_length`. `cut` rows are longer than it;
    `without_end` are cut rows whose last assistant turn has lost its end-of-turn token; `untrained` rows
    have no trained token left: TRL drops them without a word, or, when packing, keeps them for nothing.
    `merged` rows have an answer whose first token also holds the end of the prompt: asked for an answer,
    the model never sees that token, so it was trained on another prompt than it is served.
    """

    rows: int
    tokens: int
    trained_tokens: int
    max_length: int | None
    cut: tuple[int, ...] = ()
    without_end: tuple[int, ...] = ()
    untrained: tuple[int, ...] = ()
    merged: tuple[int, ...] = ()

    @property
    def summary(self) -> str:
        """One sentence for people."""
        share = f"{self.trained_tokens / self.tokens:.0%}" if self.tokens else "none"
        text = f"{self.rows} rows, {self.tokens} tokens, {self.trained_tokens} trained ({share})"
        if self.cut:
            text += f"; {len(self.cut)} rows cut at max_length {self.max_length}"
            text += f", {len(self.without_end)} of them inside the last answer"
        if self.untrained:
            text += f"; {len(self.untrained)} rows without a trained token"
        if self.merged:
            text += (
                f"; {len(self.merged)} rows whose answer begins with white space and merges with the prompt"
            )
        return text


def assistant_mask(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, template: str = "training"
) -> tuple[list[int], list[int]]:
    """Return the conversation's `input_ids`, and for each 1 where it trains and 0 where it does not.

    Raises:
        TemplateError: the tokenizer has no text named `template`, it refuses the conversation, or the
            tokenizer cannot map characters to tokens.
    """
    return mask_with_text(tokenizer, messages, named_text(tokenizer, template))


def mask_with_text(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, text: str
) -> tuple[list[int], list[int]]:
    """`assistant_mask` with the template's text itself."""
    encoded = _encode(tokenizer, messages, text)
    return list(encoded["input_ids"]), list(encoded["assistant_masks"])


def mask_report(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Iterable[Messages],
    *,
    max_length: int | None = None,
    template: str = "training",
) -> MaskReport:
    """Return what of the conversations trains when each keeps its first `max_length` tokens (None: all)."""
    text = named_text(tokenizer, template)
    rows = tokens = trained = 0
    found: dict[str, list[int]] = {"cut": [], "without_end": [], "untrained": [], "merged": []}
    for row, messages in enumerate(conversations):
        encoded = _encode(tokenizer, messages, text)
        mask = encoded["assistant_masks"]
        kept = mask[:max_length]
        rows, tokens, trained = row + 1, tokens + len(kept), trained + sum(kept)
        facts = {
            "cut": len(mask) > len(kept),
            "without_end": any(mask[len(kept) :]),
            "untrained": not any(kept),
            "merged": _is_merged(tokenizer, encoded, messages, text),
        }
        for fact, holds in facts.items():
            if holds:
                found[fact].append(row)
    return MaskReport(rows, tokens, trained, max_length, **{fact: tuple(at) for fact, at in found.items()})


def _encode(tokenizer: PreTrainedTokenizerBase, messages: Messages, text: str) -> BatchEncoding:
    from jinja2.exceptions import TemplateError as JinjaError

    if not tokenizer.is_fast:
        raise TemplateError("the mask needs a fast tokenizer (tokenizer.json): this one maps no characters")
    try:
        return tokenizer.apply_chat_template(
            list(messages),
            chat_template=text,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
    except (JinjaError, TypeError) as error:
        raise refused(messages, error) from error


def _is_merged(
    tokenizer: PreTrainedTokenizerBase, encoded: BatchEncoding, messages: Messages, text: str
) -> bool:
    """True where a marked part begins inside a token."""
    for start, _ in render(text, messages, tokenizer.special_tokens_map).spans:
        token = encoded.char_to_token(start)
        if token is not None and encoded.token_to_chars(token).start < start:
            return True
    return False
