"""The body of a request, as OpenAI-compatible endpoints take it."""

from __future__ import annotations

from typing import Any

from lora_eval.judges.mt_bench import Messages
from lora_eval.judges.replies import TOOL
from lora_eval.records import JudgeProfile


def request_body(profile: JudgeProfile, messages: Messages) -> dict[str, Any]:
    """Return the JSON body of one chat completion."""
    params = profile.params
    body: dict[str, Any] = {
        "model": profile.model,
        "messages": [{"role": role, "content": text} for role, text in messages],
        params.max_tokens_field: params.max_tokens,
    }
    for name in ("temperature", "top_p", "seed"):
        value = getattr(params, name)
        if value is not None:
            body[name] = value
    if params.top_logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": params.top_logprobs}
    if profile.verdict == "tool" and profile.labels is not None:
        body |= _tool(profile)
    return body | params.extra_body


def _tool(profile: JudgeProfile) -> dict[str, Any]:
    labels = profile.labels
    names = [label for label in (labels.first, labels.second, labels.tie) if label] if labels else []
    function = {
        "name": TOOL,
        "description": "Say which answer is better.",
        "parameters": {
            "type": "object",
            "properties": {
                "explanation": {"type": "string", "description": "Why, in one or two sentences."},
                "verdict": {"type": "string", "enum": names},
            },
            "required": ["explanation", "verdict"],
        },
    }
    return {
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": TOOL}},
    }
