"""ChatTemplate: a model family's own text, and the same text with generation marks for training."""

from __future__ import annotations

from pydantic import Field

from lora_eval.records.base import Record


class ChatTemplate(Record):
    """A named pair of Jinja texts.

    `default` is the model's own text, untouched, so that serving is unchanged; `training` renders the
    same bytes and adds `{% generation %}` marks around what is trained (end of turn included).
    `stop_tokens` are the tokens that end an assistant turn; `families` the `model_type`s it was made for.
    `upstream_sha256` identifies the vendor's text that `default` was taken from, `licence` whose it is.
    """

    name: str
    default: str
    training: str | None = None
    stop_tokens: tuple[str, ...] = ()
    upstream_sha256: str | None = None
    families: tuple[str, ...] = Field(default=())
    licence: str = ""
    summary: str = ""
