"""Which tokens of a conversation train, and what `max_length` takes away from them.

The mask is the one that TRL's SFTTrainer computes with `assistant_only_loss`: transformers maps the
character spans inside `{% generation %}` to tokens. A token that straddles a mark's edge counts as trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_eval.chat.templates import named_text
from lora_eval.errors import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[dict[str, str]]


@dataclass(frozen=True, slots=True)
class MaskReport:
    """What of a data set trains. Row numbers count from 0, in the order of the conversations.

    `tokens` and `trained_tokens` are what is left within `max_length`. `cut` rows are longer than it;
    `without_end` are cut rows whose last assistant turn has lost its end-of-turn token; `untrained` rows
    have no trained token left: TRL drops them without a word, or, when packing, keeps them for nothing.
    """

    rows: int
    tokens: int
    trained_tokens: int
    max_length: int | None
    cut: tuple[int, ...] = ()
    without_end: tuple[int, ...] = ()
    untrained: tuple[int, ...] = ()

    @property
    def summary(self) -> str:
        """One sentence for people."""
        share = f"{self.trained_tokens / self.tokens:.0%}" if self.tokens else "none"
        text = f"{self.rows} rows, {self.tokens} tokens, {self.trained_tokens} trained ({share})"
        if self.cut:
            text += f"; {len(self.cut)} rows cut at max_length {self.max_length}"
            text += f", {len(self.without_end)} of them inside the last answer"
        return text + (f"; {len(self.untrained)} rows without a trained token" if self.untrained else "")


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
    from jinja2.exceptions import TemplateError as JinjaError

    if not tokenizer.is_fast:
        raise TemplateError("the mask needs a fast tokenizer (tokenizer.json): this one maps no characters")
    try:
        encoded = tokenizer.apply_chat_template(
            list(messages),
            chat_template=text,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
    except (JinjaError, TypeError) as error:
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise TemplateError(
            f"the chat template does not render a conversation of roles {roles}: {error}"
        ) from error
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
    cut: list[int] = []
    without_end: list[int] = []
    untrained: list[int] = []
    for row, messages in enumerate(conversations):
        ids, mask = mask_with_text(tokenizer, messages, text)
        kept = mask[:max_length]
        rows, tokens, trained = row + 1, tokens + len(kept), trained + sum(kept)
        if len(ids) > len(kept):
            cut.append(row)
            if any(mask[len(kept) :]):
                without_end.append(row)
        if not any(kept):
            untrained.append(row)
    return MaskReport(rows, tokens, trained, max_length, tuple(cut), tuple(without_end), tuple(untrained))
