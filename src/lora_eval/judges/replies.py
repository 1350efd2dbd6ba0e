"""What an endpoint's reply says: the verdict, the judge's text, what it cost. Nothing in a reply can
raise.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from lora_eval.judges.files import clean_text
from lora_eval.judges.ratings import parse_five, parse_pair, parse_rating
from lora_eval.records import JudgeLabels, JudgeProfile, JudgeReply, UpstreamParser

TOOL = "give_verdict"
_PROMETHEUS = re.compile(r"\[RESULT\]\s*\(?([AB])\b")
_LONGEST = 200


def read_reply(profile: JudgeProfile, body: Any) -> JudgeReply:
    """Return what a chat completion says, whatever shape it has."""
    body = body if isinstance(body, Mapping) else {}
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], Mapping) else {}
    message = choice.get("message")
    message = message if isinstance(message, Mapping) else {}
    content = message.get("content")
    text = clean_text(content) if isinstance(content, str) else ""
    value, reason = _verdict(profile, choice, message, text)
    usage = body.get("usage")
    usage = usage if isinstance(usage, Mapping) else {}
    return JudgeReply(
        value=value,
        reason=reason if value is None else None,
        text=text or _tool_arguments(message) or "",
        finish_reason=_text(choice.get("finish_reason")),
        model=_text(body.get("model")),
        system_fingerprint=_text(body.get("system_fingerprint")),
        input_tokens=_count(usage.get("prompt_tokens")),
        output_tokens=_count(usage.get("completion_tokens")),
    )


def _verdict(
    profile: JudgeProfile, choice: Mapping[str, Any], message: Mapping[str, Any], text: str
) -> tuple[float | None, str]:
    if not choice:
        return None, "the reply has no choice"
    if profile.upstream is not None:
        return _from_upstream(profile.upstream, choice, message, text)
    if profile.labels and profile.verdict == "tool":
        return _from_tool(message, profile.labels)
    if profile.labels and profile.verdict == "logprob":
        return _from_logprobs(choice, profile.labels)
    if profile.labels and profile.verdict == "choice":
        return _from_choice(choice, text, profile.labels)
    if not text.strip():
        return None, f"the reply is empty (finish reason {choice.get('finish_reason')})"
    value = _from_text(profile, text)
    if value is None and choice.get("finish_reason") == "length":
        return None, "the reply was cut off before its verdict; raise params.max_tokens"
    return value, "the text has no verdict"


def _from_upstream(
    parser: UpstreamParser, choice: Mapping[str, Any], message: Mapping[str, Any], text: str
) -> tuple[float | None, str]:
    """What alpaca_eval's own parser says, of the choice or its text (a function's arguments are text to
    it).
    """
    from lora_eval.judges.alpaca import read_preference

    said = _tool_arguments(message) or text or " "
    whole = {**choice, "text": said}
    preference = read_preference(parser.function, parser.arguments, whole if parser.whole else said)
    return (
        None if preference is None else preference - 1.0,
        f"alpaca_eval's {parser.function} reads no verdict in it",
    )


def _from_text(profile: JudgeProfile, text: str) -> float | None:
    if profile.parser == "rating":
        return parse_rating(text, profile.rule)
    if profile.parser == "letter":
        return parse_pair(text, profile.rule)
    if profile.parser == "five":
        return parse_five(text)
    if profile.parser == "prometheus":
        found = _PROMETHEUS.findall(text)
        return float(found[-1] == "B") if found else None
    return _of_label(text, profile.labels) if profile.labels else None


def _from_tool(message: Mapping[str, Any], labels: JudgeLabels) -> tuple[float | None, str]:
    arguments = _tool_arguments(message)
    if arguments is None:
        return None, "the reply calls no function"
    try:
        verdict = json.loads(arguments).get("verdict")
    except (ValueError, AttributeError, RecursionError):
        return None, "the function's arguments are not a JSON object"
    value = _of_label(verdict, labels) if isinstance(verdict, str) else None
    return value, f"the function's verdict is none of the labels: {str(verdict)[:_LONGEST]!r}"


def _from_logprobs(choice: Mapping[str, Any], labels: JudgeLabels) -> tuple[float | None, str]:
    """alpaca_eval's weighted preference: p(second) / (p(first) + p(second)) of the first token."""
    top = _top_logprobs(choice)
    if len(top) < 2:
        # vLLM with allowed_token_ids or logit_bias shows the sampled token only: that would be a coin toss.
        return None, f"the reply gives log-probabilities of {len(top)} tokens, at least 2 are needed"
    chances = _label_chances(top, labels)
    if chances is None:
        return (
            None,
            f"neither {labels.first!r} nor {labels.second!r} is among the likeliest {len(top)} tokens",
        )
    return chances[1] / (chances[0] + chances[1]), ""


def _from_choice(choice: Mapping[str, Any], text: str, labels: JudgeLabels) -> tuple[float | None, str]:
    """The probabilities of both labels where the server gives them, else the label itself."""
    value = _of_label(text, labels)
    if value is None:
        return None, f"the answer is none of the choices (constraint ignored?): {text[:_LONGEST]!r}"
    top = _top_logprobs(choice)
    chances = _label_chances(top, labels) if len(top) >= 2 and labels.tie is None else None
    if chances is not None and min(chances) > 0.0:
        return chances[1] / (chances[0] + chances[1]), ""
    return value, ""


def _label_chances(top: list[tuple[str, float]], labels: JudgeLabels) -> tuple[float, float] | None:
    """Probabilities of both labels' tokens. Tokens with spaces count where no exact one is there."""
    for clean in (str, str.strip):
        likely = {
            label: [p for token, p in top if clean(token) == label] for label in (labels.first, labels.second)
        }
        if any(likely.values()):
            first, second = (
                math.fsum(math.exp(p) for p in likely[label]) for label in (labels.first, labels.second)
            )
            return (first, second) if first + second > 0.0 else None
    return None


def _top_logprobs(choice: Mapping[str, Any]) -> list[tuple[str, float]]:
    try:
        top = choice["logprobs"]["content"][0]["top_logprobs"]
        pairs = [(entry["token"], entry["logprob"]) for entry in top]
    except (KeyError, IndexError, TypeError):
        return []
    found = [(token, _log_probability(value)) for token, value in pairs if isinstance(token, str)]
    return [(token, p) for token, p in found if p is not None]


def _log_probability(value: Any) -> float | None:
    """The value if it can be one: a number that is at most 0, but for rounding."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not -1e6 < value <= 1e-6:
        return None
    return float(value)


def _tool_arguments(message: Mapping[str, Any]) -> str | None:
    try:
        arguments = message["tool_calls"][0]["function"]["arguments"]
    except (KeyError, IndexError, TypeError):
        return None
    return clean_text(arguments) if isinstance(arguments, str) else None


def _of_label(text: str, labels: JudgeLabels) -> float | None:
    written = text.strip()
    return {labels.first: 0.0, labels.second: 1.0, **({labels.tie: 0.5} if labels.tie else {})}.get(written)


def _text(value: Any) -> str | None:
    return clean_text(value[:_LONGEST]) if isinstance(value, str) else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
