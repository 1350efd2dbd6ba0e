"""Is a server's word good enough to score with? Asked before any figure counts; its weights are not known.

A server contradicts itself where it lies: the log-probabilities of its own greedy answer must be the same
when it is put to it as a prompt. (vLLM leaves an adapter's change of lm_head out: vllm-project/vllm#51594.)
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from lora_eval.engines.http_chat import Turns, find_chat
from lora_eval.engines.http_client import Refused, ServerClient
from lora_eval.engines.http_requests import (
    COMPLETIONS,
    ECHO,
    PROMPT_LOGPROBS,
    Answer,
    Unread,
    greedy_body,
    listed_entry,
    read_answer,
    read_rows,
    read_score,
    score_body,
    unknown_name,
)
from lora_eval.engines.vllm_probe import TOLERANCES, Probe, make_probe
from lora_eval.errors import InputError, ServerError
from lora_eval.fingerprint import fingerprint_data
from lora_eval.protocols import ScoreRequest
from lora_eval.schema import suggest

SCORE, GENERATE = "score", "generate"
_WIDTH = 8  # requests at a time
# A server's arithmetic is not known: 16 bits are allowed for.
_TOLERANCE = TOLERANCES["bfloat16"]
_REMEDY = "measure the weights themselves (--adapter, or --arm NAME=merged:PATH)"


@dataclass(frozen=True, slots=True)
class Learned:
    """What the probe found: `mode` is how prompts' log-probabilities are asked for (None: they are refused),
    `width` maps a kind of request to how many at a time, `fingerprint` stands for the model that answered,
    `turns` finds conversations again that chat completions are asked (None: none are).
    """

    max_length: int
    fingerprint: str
    mode: str | None
    width: dict[str, int]
    refused: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    turns: Turns | None = None


def learn(client: ServerClient, model: str, tokenizer: Any, length: int) -> Learned:
    """Probe one model of a server; `length` is how many tokens the local model reads.

    Raises:
        ServerError: the server does not have the model, or does not answer.
        InputError: it answers with its base, or whatever the name is.
    """
    try:
        return _learn(client, model, tokenizer, length)
    except (Refused, Unread) as error:
        raise ServerError(f"{client.url}: the probe of {model} ends with {error}") from error


def _learn(client: ServerClient, model: str, tokenizer: Any, length: int) -> Learned:
    entries = _entries(client)
    known = listed_entry(entries, model) is not None
    # Of a name that it does not have SGLang says 400; a server of texts says 422, and lists other models.
    _check_ids(client, model, tokenizer, (400, 422) if known or not entries else (422,))
    if entries and not known:
        raise ServerError(
            f"{client.url}: has no model '{model}'{suggest(model, list(entries))}; it has "
            f"{', '.join(entries)}"
        )
    entry, notes = listed_entry(entries, model) or {}, []
    served = [int(e["max_model_len"]) for e in entries.values() if e.get("max_model_len")]
    # A scored text is a prompt, and one token is generated after it.
    read = min([length, *(each - 2 for each in served)])
    if read < length:
        notes.append(
            f"{model}: the server reads {min(served)} tokens, so long texts are cut to {read} where other "
            f"arms read {length}"
        )
    probe = make_probe(tokenizer, read)
    answers = _answers(client, model, probe)
    if len(entries) > 1:
        _check_name(client, model, probe, unknown_name(entries, model))
    parent = entry.get("parent")
    if parent in entries and _answers(client, str(parent), probe) == answers:
        raise InputError(
            f"{client.url}: {model} answers the probe exactly as its base {parent}: the adapter is not "
            "applied; ask lora-eval smoke"
        )
    identity: dict[str, Any] = {"entry": {k: entry.get(k) for k in ("id", "root", "parent", "max_model_len")}}
    identity |= {
        "version": _version(client),
        "answers": [(a.text, a.token_ids, a.log_probabilities) for a in answers],
    }
    if _answers(client, model, probe) != answers:
        notes.append(
            f"{model}: the server gives other digits each time, so no answer of an earlier run is used"
        )
        identity["once"] = uuid.uuid4().hex
    if any(answer.token_ids is None for answer in answers):
        notes.append(f"{model}: the server names no token ids; answers are read from its text")
    mode, reason = _find_mode(client, model, probe, answers)
    turns, chat_note = find_chat(client, model, tokenizer)
    notes += [chat_note] if chat_note else []
    adapters = _has_lora(client, entries)
    if mode and adapters:
        notes.append(
            f"{model}: scored one request at a time, for a server with adapters may end at several prompts "
            "with log-probabilities (vLLM on a CPU does)"
        )
    return Learned(
        read, fingerprint_data(identity), mode, {SCORE: 1 if adapters else _WIDTH, GENERATE: _WIDTH},
        {SCORE: f"{reason}; {_REMEDY}"} if reason else {}, tuple(notes),
        turns,
    )  # fmt: skip


def _check_ids(client: ServerClient, model: str, tokenizer: Any, told_by: tuple[int, ...]) -> None:
    """Raise ServerError where the server takes texts only (a status of `told_by`): arms are compared on the
    same token ids.
    """
    ids = tokenizer.encode("a", add_special_tokens=False)
    try:
        client.post(COMPLETIONS, greedy_body(model, ids, 1))
    except Refused as error:
        if error.status not in told_by:
            return  # the name, perhaps: that is said better by the list of names
        raise ServerError(
            f"{client.url}: refuses completions of token ids with log-probabilities ({error}), so {model} "
            f"cannot be asked what other arms are asked (transformers serve cannot); {_REMEDY}, or serve it "
            "with vLLM"
        ) from error


def _entries(client: ServerClient) -> dict[str, dict[str, Any]]:
    """What the server lists by name; nothing where it lists nothing."""
    try:
        return {entry["id"]: entry for entry in client.get("/v1/models")["data"]}
    except (Refused, KeyError, TypeError):
        return {}


def _has_lora(client: ServerClient, entries: dict[str, dict[str, Any]]) -> bool:
    """Whether the server has adapters, or loads some while it runs: vLLM's CPU build ends then at several
    prompts with log-probabilities, without any adapter too (measured with 0.32.0).
    """
    if any(entry.get("parent") for entry in entries.values()):
        return True
    try:
        client.get("/v1/load_lora_adapter")
    except Refused as error:
        return error.status == 405  # the route is there, for POST
    return True


def _version(client: ServerClient) -> Any:
    try:
        return client.get("/version")
    except Refused:
        return None


def _check_name(client: ServerClient, model: str, probe: Probe, unknown: str) -> None:
    """Raise InputError where a server with several models does not look at the name."""
    try:
        client.post(COMPLETIONS, greedy_body(unknown, probe.generations[-1].input_ids, 1))
    except Refused:
        return
    raise InputError(
        f"{client.url}: answers for a model '{unknown}' that it does not have, so nobody knows whose answers "
        f"those for {model} are; ask lora-eval smoke"
    )


def _answers(client: ServerClient, model: str, probe: Probe) -> list[Answer]:
    """Greedy answers, one at a time and past any prefix cache: the same digits each time."""
    bodies = [
        greedy_body(model, r.input_ids, r.max_new_tokens, cache_salt=uuid.uuid4().hex)
        for r in probe.generations
    ]
    return [read_answer(client.post(COMPLETIONS, body)) for body in bodies]


def _find_mode(
    client: ServerClient, model: str, probe: Probe, answers: list[Answer]
) -> tuple[str | None, str]:
    """Return how to ask for the log-probabilities of a prompt, or why that cannot be done."""
    reasons = []
    for mode in (PROMPT_LOGPROBS, ECHO):
        try:
            reason = _contradiction(client, model, probe, answers, mode)
        except (Unread, Refused) as error:
            reason = str(error)
        if not reason:
            return mode, ""
        reasons.append(reason)
    return None, f"{client.url} cannot be scored with: {'; '.join(dict.fromkeys(reasons))}"


def _contradiction(client: ServerClient, model: str, probe: Probe, answers: list[Answer], mode: str) -> str:
    """Put the server's own answers to it as prompts; returns what differs, empty where nothing does."""
    differences: list[float] = []
    for request, answer in zip(probe.generations, answers, strict=True):
        ids, values = answer.token_ids, answer.log_probabilities
        if ids is None or len(ids) != len(values):
            raise Unread(
                "the server gives no token ids with log-probabilities, so its word cannot be checked"
            )
        asked = ScoreRequest(request.input_ids, ids)
        whole = request.input_ids + ids
        rows = read_rows(client.post(COMPLETIONS, score_body(model, whole, mode)), whole, mode)
        told = read_score(rows, asked).token_log_probabilities
        differences += [abs(a - b) for a, b in zip(told, values, strict=True)]
    if not differences:
        raise Unread("the server's answers to the probe are empty")
    # A comparison with NaN is false: ask for what is right.
    mean, largest = fmean(differences), max(differences, key=lambda x: (x != x, x))
    if mean <= _TOLERANCE.mean and largest <= _TOLERANCE.largest:
        return ""
    return (
        f"the log-probabilities that it gives for a prompt ({mode}) are not those with which it generates "
        f"the same tokens: {mean:.3g} nats apart in the mean and {largest:.3g} at most "
        "(vllm-project/vllm#51594 for an adapter on lm_head)"
    )
