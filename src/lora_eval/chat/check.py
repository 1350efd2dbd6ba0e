"""Is a template's training text safe to train with? Rendered, and compared with its default text.

Three questions: does it render the very bytes of the default text; is exactly what the assistant wrote, with
the end of its turn, inside the marks; and, with a tokenizer, is it so by token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

from lora_eval.chat.mask import mask_with_text
from lora_eval.chat.render import Messages, Rendered, render
from lora_eval.errors import TemplateError
from lora_eval.records import ChatTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def _chat(*turns: str, system: str | None = None) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
    return [{"role": "system", "content": system}, *messages] if system is not None else messages


PROBES: tuple[list[dict[str, str]], ...] = (
    _chat("What is 2 + 2?", "4"),
    _chat("Hello", "Hello! How can I help?", system="Answer in one sentence."),
    _chat("One", "1", "Two", "2", "Three", "3"),
    _chat("One", "1", "Two", "2", system="Count."),
    _chat("Say nothing", ""),
    _chat("  spaces around  ", "  kept or trimmed  "),
    _chat("Two\n\nparagraphs", "First.\n\nSecond.\n"),
    _chat("Code", "\n```python\nprint('{{ x }} {% y %}')\n```"),
    _chat("Ж漢字🙂\u2028", "é\u0085naïve\u2028🙂"),
    _chat("The last word is mine", "Yes", "Really"),
)
"""Conversations that tell good templates from bad ones: a system message, several turns, an empty answer,
white space at the edges, Jinja inside the text, other line ends than `\\n`, a user's turn at the end."""


@dataclass(frozen=True, slots=True)
class TemplateCheck:
    """What was found. `conversations` were tried, `refused` of them by both texts alike (a template may
    refuse a system message). `problems` is empty where the training text is safe.
    """

    conversations: int
    refused: int
    problems: tuple[str, ...] = field(default=())

    @property
    def passed(self) -> bool:
        """True where nothing is wrong, and at least one conversation was rendered."""
        return not self.problems and self.refused < self.conversations


def check_template(
    template: ChatTemplate,
    tokenizer: PreTrainedTokenizerBase | None = None,
    conversations: Sequence[Messages] = PROBES,
) -> TemplateCheck:
    """Return what is wrong with the training text on these conversations.

    Raises:
        TemplateError: the template has no training text.
    """
    if template.training is None:
        raise TemplateError(
            f"template '{template.name}' has no training text; write NAME_training.jinja beside NAME.jinja, "
            "the same text with {% generation %} and {% endgeneration %} around what the assistant writes"
        )
    problems: list[str] = []
    refused = 0
    names = {} if tokenizer is None else tokenizer.special_tokens_map
    special = {"bos_token": "<bos>", "eos_token": "<eos>", **names}
    for number, messages in enumerate(conversations):
        default, training = (_try(text, messages, special) for text in (template.default, template.training))
        if default is None and training is None:
            refused += 1
            continue
        found = _compare(default, training, messages, template.stop_tokens)
        if not found and tokenizer is not None:
            found = _token_problems(tokenizer, messages, template)
        problems += [f"conversation {number} ({_roles(messages)}): {problem}" for problem in found]
    return TemplateCheck(len(conversations), refused, tuple(problems))


def _try(text: str, messages: Messages, special: dict[str, Any]) -> Rendered | None:
    """The rendered conversation, or None where the template refuses it."""
    try:
        return render(text, messages, special)
    except TemplateError:  # not lost: counted as refused, or reported where only one text does it
        return None


def _compare(
    default: Rendered | None, training: Rendered | None, messages: Messages, stop_tokens: Sequence[str]
) -> list[str]:
    if default is None or training is None:
        refusing = "default" if default is None else "training"
        return [f"the {refusing} text refuses it and the other does not"]
    if default.text != training.text:
        at = _first_difference(default.text, training.text)
        return [
            f"the texts differ from character {at} on: default {default.text[at : at + 30]!r}, "
            f"training {training.text[at : at + 30]!r}"
        ]
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    spans = training.marked
    if len(spans) != len(answers):
        return [f"{len(answers)} assistant turns, and {len(spans)} marked parts"]
    return list(_span_problems(answers, spans, stop_tokens))


def _span_problems(answers: Sequence[str], spans: Sequence[str], stop_tokens: Sequence[str]) -> Iterable[str]:
    for answer, span in zip(answers, spans, strict=True):
        stop = next((token for token in stop_tokens if span.endswith(token)), None)
        if stop_tokens and stop is None:
            yield f"the marked part ends in {span[-20:]!r}, not in {' or '.join(map(repr, stop_tokens))}"
            continue
        text = span.removesuffix(stop) if stop else span
        if stop_tokens and text.strip() != answer.strip():
            yield f"the marked part is {text[:40]!r}, the assistant wrote {answer[:40]!r}"


def _token_problems(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, template: ChatTemplate
) -> list[str]:
    ids, mask = mask_with_text(tokenizer, messages, template.training or "")
    plain = tokenizer.apply_chat_template(
        list(messages), chat_template=template.default, tokenize=True, return_dict=True
    )
    if ids != list(plain["input_ids"]):
        return ["the token ids differ between default and training text"]
    # As in TRL's is_chat_template_stop_token_trained: the end of a turn is an added token, white space aside.
    added = set(tokenizer.get_added_vocab().values())
    loose = [run for run in _trained_runs(ids, mask) if _last_word(tokenizer, run) not in added]
    return [f"the trained tokens {tokenizer.decode(run)[-20:]!r} do not end in a stop token" for run in loose]


def _trained_runs(ids: Sequence[int], mask: Sequence[int]) -> list[list[int]]:
    runs = groupby(zip(ids, mask, strict=True), key=lambda pair: pair[1])
    return [[token for token, _ in run] for trained, run in runs if trained]


def _last_word(tokenizer: PreTrainedTokenizerBase, run: Sequence[int]) -> int | None:
    return next((token for token in reversed(run) if tokenizer.decode([token]).strip()), None)


def _first_difference(left: str, right: str) -> int:
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


def _roles(messages: Messages) -> str:
    return ", ".join(message["role"] for message in messages)
