"""Are conversations put to the model as it was measured, and do answers end where they should?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lora_eval.engines.http_chat import CHAT
from lora_eval.engines.http_client import Refused
from lora_eval.engines.http_requests import COMPLETIONS, Answer, Unread, greedy_body, read_answer, read_chat
from lora_eval.smoke.answers import distance, of_answers
from lora_eval.smoke.local import LocalArm
from lora_eval.smoke.served import Outcome, Served

Turns = list[dict[str, str]]
_CONVERSATIONS: tuple[Turns, ...] = (
    [{"role": "user", "content": "What is the capital of France?"}],
    [
        {"role": "user", "content": "  Count: one,\n\ttwo "},
        {"role": "assistant", "content": "three"},
        {"role": "user", "content": "Größe <b>4</b> & 🙂?"},
    ],
    [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": "Ready?"}],
)
_FORCE = 100  # added to a token's logit
_TOKENS = 3
_CHAT_TOKENS = 8


def check_template(served: Served, arm: LocalArm) -> Outcome:
    """The server turns conversations into the token ids that the measured template gives."""
    if not arm.templated.chat_template:
        return None, f"{arm.path}: the tokenizer has no chat template, so there is nothing to compare"
    compared = 0
    sources: dict[str, Sequence[int]] = {}
    for turns in _CONVERSATIONS:
        wanted = _local(arm.templated, turns)
        if wanted is None:
            continue
        found = _served_ids(served, arm.name, turns)
        sources |= found
        for source, ids in found.items():
            if list(ids) != wanted:
                return False, f"{source}: {_first_difference(ids, wanted, arm.templated)}"
        compared += bool(found)
    if not compared:
        return None, "not checked: the server has no /tokenize, and chat completions name no prompt_token_ids"
    return True, f"{compared} conversations give the same token ids (through {', '.join(sources)})"


def _local(tokenizer: Any, turns: Turns) -> list[int] | None:
    """The measured template's ids; None where it refuses such a conversation (no system role)."""
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except Exception:  # jinja2's, or whatever a template raises: it has no such conversations
        return None
    return list(tokenizer.encode(text, add_special_tokens=False))


def _served_ids(served: Served, model: str, turns: Turns) -> dict[str, Sequence[int]]:
    """The server's ids by where they come from; empty where it tells none."""
    found: dict[str, Sequence[int]] = {}
    body: dict[str, Any] = {"model": model, "messages": turns}
    try:
        reply = served.client.post("/tokenize", body | {"add_generation_prompt": True})
        if isinstance(reply, dict) and reply.get("tokens"):
            found["/tokenize"] = reply["tokens"]
    except Refused as error:
        if error.status not in (404, 405, 501):
            raise
    reply = served.client.post(CHAT, body | {"max_tokens": 1, "temperature": 0.0, "return_token_ids": True})
    choice = (reply.get("choices") or [{}])[0]
    if ids := reply.get("prompt_token_ids") or choice.get("prompt_token_ids"):
        found["chat completions"] = ids
    return found


def _first_difference(ids: Sequence[int], wanted: Sequence[int], tokenizer: Any) -> str:
    place = next((i for i, (a, b) in enumerate(zip(ids, wanted, strict=False)) if a != b), None)
    place = min(len(ids), len(wanted)) if place is None else place
    theirs, ours = (tokenizer.decode(list(part[place : place + 12])) for part in (ids, wanted))
    return (
        f"{len(ids)} token ids against {len(wanted)} of the measured template, other from token {place} on: "
        f"{theirs!r} against {ours!r}"
    )


def check_chat(served: Served, arm: LocalArm) -> Outcome:
    """A chat completion is answered by the same weights as a completion of the same token ids."""
    turns = _CONVERSATIONS[0]
    wanted = _local(arm.templated, turns) if arm.templated.chat_template else None
    if wanted is None:
        return None, f"{arm.path}: the tokenizer has no chat template that renders a question"
    plain = read_answer(served.client.post(COMPLETIONS, greedy_body(arm.name, wanted, _CHAT_TOKENS)))
    body = greedy_body(arm.name, (), _CHAT_TOKENS, messages=turns, logprobs=False)
    del body["prompt"]
    told = read_chat(served.client.post(CHAT, body))
    found = distance([told], of_answers([plain], arm.tokenizer), arm.tolerance, arm.tokenizer)
    if found.parted:
        return (
            False,
            f"chat completions answer otherwise: {found.parted[0].replace('here', 'in completions')}",
        )
    return True, f"chat completions answer as completions do ({_CHAT_TOKENS} tokens)"


def check_stop_token(served: Served, arm: LocalArm) -> Outcome:
    """Each end-of-sequence token, forced, ends the answer at once, with the reason `stop`."""
    if not arm.ends:
        return None, f"{arm.path}: names no end-of-sequence token"
    for token in arm.ends:
        answer = _forced(served, arm, token)
        count = len(answer.ids(arm.tokenizer))
        # Without ids only the text is known: it may leave the end token out.
        if answer.finish_reason != "stop" or count > 1:
            return False, (
                f"end token {token} was forced, and the answer went on: {count} tokens, finish_reason "
                f"{answer.finish_reason!r} (or the server ignores logit_bias)"
            )
        if answer.token_ids is not None and answer.token_ids not in ((token,), ()):
            return False, f"end token {token} was forced with logit_bias, and {answer.token_ids} came"
    return True, f"end tokens {', '.join(map(str, arm.ends))} forced: each ends the answer"


def check_finish_reason(served: Served, arm: LocalArm) -> Outcome:
    """An answer that reaches max_tokens ends with `length`, one that reaches a stop text with `stop`."""
    token = _plain_token(arm)
    answer = _forced(served, arm, token)
    count = len(answer.ids(arm.tokenizer))
    if answer.finish_reason != "length" or count != _TOKENS:
        return False, (
            f"max_tokens {_TOKENS} and a token forced that ends nothing: {count} tokens, finish_reason "
            f"{answer.finish_reason!r}; expected {_TOKENS} and 'length'"
        )
    text = arm.tokenizer.decode([token])
    stopped = _forced(served, arm, token, stop=[text])
    if stopped.finish_reason != "stop" or text in stopped.text:
        return False, (
            f"stop text {text!r} was forced: finish_reason {stopped.finish_reason!r}, text {stopped.text!r}"
        )
    return True, "'length' at max_tokens, 'stop' at a stop text"


def _forced(served: Served, arm: LocalArm, token: int, **more: Any) -> Answer:
    prompt = min((r.input_ids for r in arm.probe.generations), key=len)
    settings: Mapping[str, Any] = {"logit_bias": {str(token): _FORCE}, "ignore_eos": False} | more
    answer = read_answer(served.client.post(COMPLETIONS, greedy_body(arm.name, prompt, _TOKENS, **settings)))
    if answer.token_ids is None and not answer.text and answer.finish_reason is None:
        raise Unread("the reply holds neither tokens nor text nor a finish reason")
    return answer


def _plain_token(arm: LocalArm) -> int:
    """A token with a visible text that is no special one."""
    special = {*arm.ends, *arm.tokenizer.all_special_ids}
    words = arm.tokenizer.encode("a b c yes the one", add_special_tokens=False)
    for token in words:
        text = arm.tokenizer.decode([token])
        if token not in special and text.strip() and "\ufffd" not in text:
            return int(token)
    raise Unread("the tokenizer has no plain token for the letters a, b, c")
