"""A conversation as text, and where the `{% generation %}` marks stand in it; no tokenizer needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_eval.chat.templates import has_marks
from lora_eval.errors import TemplateError

Messages = Sequence[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Rendered:
    """The text, and the character spans that the marks hold."""

    text: str
    spans: tuple[tuple[int, int], ...]

    @property
    def marked(self) -> list[str]:
        """The texts inside the marks, in order."""
        return [self.text[start:end] for start, end in self.spans]


def render(template: str, messages: Messages, special_tokens: Mapping[str, Any]) -> Rendered:
    """Return the conversation as transformers renders it.

    Raises:
        TemplateError: the template refuses the conversation; the message holds its reason.
    """
    from jinja2.exceptions import TemplateError as JinjaError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        rendered, spans = render_jinja_template(
            conversations=[list(messages)],
            chat_template=template,
            return_assistant_tokens_mask=has_marks(template),
            **special_tokens,
        )
    except (JinjaError, TypeError) as error:
        raise refused(messages, error) from error
    return Rendered(rendered[0], tuple(spans[0]) if spans else ())


def refused(messages: Messages, error: Exception) -> TemplateError:
    """Return the error that says which conversation a template refused, and why."""
    roles = ", ".join(str(message.get("role")) for message in messages)
    return TemplateError(f"the chat template does not render a conversation of roles {roles}: {error}")
