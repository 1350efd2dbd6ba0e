"""A chat's text as the token ids that a model continues."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lora_eval.errors import InputError
from lora_eval.judges.mt_bench import Messages


def chat_ids(tokenizer: Any, messages: Messages, arm: str) -> tuple[int, ...]:
    """Return the ids of a conversation, ready for the assistant's next turn.

    A template without a system role gets the system text at the head of the first user turn.

    Raises:
        InputError: the tokenizer has no chat template, or it refuses the conversation.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            f"{arm}: its tokenizer has no chat template; put one on it with lora-eval template apply"
        )
    faults = []
    for turns in (messages, _without_system(messages)):
        try:
            text = tokenizer.apply_chat_template(
                [{"role": role, "content": content} for role, content in turns],
                tokenize=False,
                add_generation_prompt=True,
            )
        except Exception as error:  # jinja2's, or whatever a template raises: told below
            faults.append(str(error))
            continue
        return tuple(tokenizer.encode(text, add_special_tokens=False))
    raise InputError(f"{arm}: its chat template refuses the conversation: {faults[0]}")


def _without_system(messages: Messages) -> Messages:
    system = "\n\n".join(text for role, text in messages if role == "system")
    rest: Sequence[tuple[str, str]] = [turn for turn in messages if turn[0] != "system"]
    if not system or not rest:
        return messages
    (role, text), *others = rest
    return ((role, f"{system}\n\n{text}"), *others)
