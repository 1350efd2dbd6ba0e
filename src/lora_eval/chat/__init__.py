"""Chat templates: messages to text and token ids, and which tokens train."""

from lora_eval.chat.mask import MaskReport, assistant_mask, mask_report
from lora_eval.chat.templates import (
    load_template,
    named_text,
    resolve_template,
    set_template,
    training_tokenizer,
)

__all__ = [
    "MaskReport",
    "assistant_mask",
    "load_template",
    "mask_report",
    "named_text",
    "resolve_template",
    "set_template",
    "training_tokenizer",
]
