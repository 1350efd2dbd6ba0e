"""Prompts that a chat template rendered, asked as conversations: through the route that users take.

An engine is given token ids. Those of one user turn are the template's own text around it, so the turn is
found again, and counts only where the template renders the very same ids. Whether the server does so too is
asked before any figure counts, and read from every reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lora_eval.engines.http_client import Refused, ServerClient
from lora_eval.engines.http_requests import (
    COMPLETIONS,
    Unread,
    greedy_body,
    read_answer,
    read_chat,
)

CHAT = "/v1/chat/completions"
_MARK = "lora-eval marks the turn"
_QUESTION = "What is the capital of France?"
_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Turns:
    """The text that a template puts before and after one user turn."""

    tokenizer: Any
    before: str
    after: str

    def messages(self, ids: Sequence[int]) -> list[dict[str, str]] | None:
        """Return the conversation of one turn that becomes these ids, None where there is none."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=False)
        if not (text.startswith(self.before) and text.endswith(self.after)):
            return None
        turn = text[len(self.before) : len(text) - len(self.after)]
        found = [{"role": "user", "content": turn}]
        rendered = _render(self.tokenizer, found)
        if rendered is None or self.tokenizer.encode(rendered, add_special_tokens=False) != list(ids):
            return None
        return found


def turns_of(tokenizer: Any) -> Turns | None:
    """Return the template's text around a user turn; None where there is no template, or no such text."""
    rendered = _render(tokenizer, [{"role": "user", "content": _MARK}]) if tokenizer.chat_template else None
    if rendered is None or rendered.count(_MARK) != 1:
        return None
    before, after = rendered.split(_MARK)
    return Turns(tokenizer, before, after) if after else None


def _render(tokenizer: Any, messages: list[dict[str, str]]) -> str | None:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except Exception:  # jinja2's, or whatever a template raises: it has no such conversations
        return None


def find_chat(client: ServerClient, model: str, tokenizer: Any) -> tuple[Turns | None, str]:
    """Return how conversations are found again where the server's chat completions are completions of the
    measured template's token ids; else None, with a note that says what is otherwise.
    """
    turns = turns_of(tokenizer)
    if turns is None:
        return None, ""
    messages = [{"role": "user", "content": _QUESTION}]
    ids = tokenizer.encode(turns.before + _QUESTION + turns.after, add_special_tokens=False)
    why = ""
    try:
        plain = read_answer(client.post(COMPLETIONS, greedy_body(model, ids, _TOKENS)))
        body = greedy_body(model, (), _TOKENS, messages=messages, logprobs=False)
        del body["prompt"]
        told = read_chat(client.post(CHAT, body))
    except (Refused, Unread) as error:
        why = f"answer {error}"
    else:
        if told.prompt_token_ids is None or told.token_ids is None:
            why = "do not say which token ids they read"
        elif list(told.prompt_token_ids) != ids:
            why = "render a conversation otherwise than the measured template"
        elif told.token_ids != plain.token_ids:
            why = "answer otherwise than completions of the same token ids"
    if why:
        return None, (
            f"{model}: chat completions {why}, so answers are generated through completions of the measured "
            "template's token ids; what users of chat completions get was not measured (lora-eval smoke)"
        )
    return turns, ""
