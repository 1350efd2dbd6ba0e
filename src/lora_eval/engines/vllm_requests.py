"""What is asked of vLLM, and what its answers mean: plain functions that need no vLLM.

A scoring request is put as the generation of one token after everything but its last token. The last token's
log-probability then comes from the generated position: answers of one token need no prompt log-probabilities,
choices of one token share one request, and an input as long as the model reads fits.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lora_eval.engines.decoding import before_stop
from lora_eval.errors import InputError, LoraEvalError
from lora_eval.protocols import GenerateRequest, Generation, Score, ScoreRequest

NEXT_TOKENS = 128  # how many tokens of one position vLLM 0.32 gives (MAX_LOGPROB_TOKEN_IDS)
# What vLLM computes as transformers does. Everything else would be left out in silence, so it is refused.
_SERVED = {"do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "num_beams"}
# Rules of decoding that a generation_config.json may hold, and the values with which they do nothing.
_RULES: dict[str, tuple[Any, ...]] = {
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "bad_words_ids": ((), []),
    "suppress_tokens": ((), []),
    "begin_suppress_tokens": ((), []),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "exponential_decay_length_penalty": (),
    "sequence_bias": ({}, []),
    "guidance_scale": (1.0,),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
}


class Entry(Protocol):
    """One token's log-probability at a position, as vLLM gives it."""

    logprob: float


Row = Mapping[int, Entry]


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to vLLM: arguments of its `SamplingParams`, and the adapter (None: the base)."""

    input_ids: tuple[int, ...]
    arguments: Mapping[str, Any]
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """vLLM's answer. `prompt_rows[i]` holds the log-probabilities of prompt token i (the first has none),
    `rows[i]` those of the i-th new token; `cached_tokens` of the prompt were not computed for this request.
    """

    token_ids: tuple[int, ...]
    finish_reason: str
    cached_tokens: int
    prompt_rows: Sequence[Row | None] | None = None
    rows: Sequence[Row] | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """One input that answers the score requests `members`. `first` is the position whose output predicts the
    first token that is wanted; `next_tokens` are wanted after the whole input.
    """

    input_ids: tuple[int, ...]
    first: int
    members: tuple[int, ...]
    next_tokens: tuple[int, ...]

    def arguments(self, *, cache: bool) -> dict[str, Any]:
        """Return the arguments of `SamplingParams`; `cache`: the prefix cache may be read."""
        asked: dict[str, Any] = {
            "temperature": 0.0,
            "max_tokens": 1,
            "detokenize": False,
            "ignore_eos": True,
            "logprob_token_ids": list(self.next_tokens),
            "skip_reading_prefix_cache": not cache,
        }
        if self.first < len(self.input_ids) - 1:
            asked["prompt_logprobs"] = 1
        return asked

    def is_answered(self, told: Told) -> bool:
        """True where every wanted position was computed. vLLM computes nothing for cached positions, and
        returns for them what happened to lie in memory (vllm-project/vllm#42019).
        """
        return told.cached_tokens <= self.first


def plan_readings(requests: Sequence[ScoreRequest]) -> list[Reading]:
    """Return the distinct inputs in sorted order, so that equal beginnings follow one another."""
    members: dict[tuple[int, ...], list[int]] = {}
    for index, request in enumerate(requests):
        members.setdefault((request.context_ids + request.continuation_ids)[:-1], []).append(index)
    found = []
    for ids, indices in sorted(members.items()):
        indices.sort(key=lambda i: requests[i].continuation_ids[-1])
        wanted = sorted({requests[i].continuation_ids[-1] for i in indices})
        for start in range(0, len(wanted), NEXT_TOKENS):
            tokens = tuple(wanted[start : start + NEXT_TOKENS])
            part = tuple(i for i in indices if requests[i].continuation_ids[-1] in tokens)
            first = min(len(requests[i].context_ids) for i in part) - 1
            found.append(Reading(ids, first, part, tokens))
    return found


def read_scores(reading: Reading, requests: Sequence[ScoreRequest], told: Told) -> list[tuple[int, Score]]:
    """Return the score of each member of the reading."""
    ids = reading.input_ids
    found = []
    for index in reading.members:
        request = requests[index]
        places = range(len(request.context_ids), len(ids))
        read = [_token(_prompt_row(told, place), ids[place]) for place in places]
        last = request.continuation_ids[-1]
        values = array("f", [value for value, _ in read])
        values.append(_token((told.rows or [{}])[0], last)[0])
        greedy = all(is_greedy for _, is_greedy in read) and told.token_ids[0] == last
        found.append((index, Score(sum(values), greedy, values)))
    return found


def _prompt_row(told: Told, place: int) -> Row:
    rows = told.prompt_rows or ()
    row = rows[place] if place < len(rows) else None
    return {} if row is None else row


def _token(row: Row, token: int) -> tuple[float, bool]:
    """Return log p(token), and whether it is the likeliest (of equals the lower id, as in torch)."""
    if token not in row:
        raise LoraEvalError(f"vLLM gave no log-probability for token {token}; it gave {sorted(row)[:4]}")
    value = row[token].logprob
    best = max(entry.logprob for entry in row.values())
    return value, value == best and token == min(t for t, e in row.items() if e.logprob == best)


def generation_arguments(
    request: GenerateRequest, defaults: Mapping[str, Any], ends: Iterable[int]
) -> dict[str, Any]:
    """Return the arguments of `SamplingParams` for one answer. `defaults` are the model's own generation
    settings, `ends` its end-of-sequence tokens.

    Raises:
        InputError: a setting that vLLM does not compute as transformers does.
    """
    unknown = sorted(set(request.sampling) - _SERVED)
    rules = sorted(name for name, idle in _RULES.items() if defaults.get(name) not in (None, *idle))
    beams = request.sampling.get("num_beams", defaults.get("num_beams")) not in (None, 1)
    if unknown or rules or beams:
        names = ", ".join([*unknown, *rules, *(["num_beams"] if beams else [])])
        raise InputError(
            f"generation settings {names}: this engine does not hand them to vLLM, so answers would differ "
            "from the model's own; leave them out of the suite (or of generation_config.json), or use "
            "--engine transformers"
        )
    values = {name: request.sampling.get(name, defaults.get(name)) for name in _SERVED}
    asked: dict[str, Any] = {
        "max_tokens": request.max_new_tokens,
        # A stop text may be a special token: lm-eval looks for it in the text with special tokens.
        "stop": [text for text in request.until if text],
        "skip_special_tokens": False,
        # vLLM ends at the tokenizer's end of sequence, transformers only at those of the model's settings.
        "ignore_eos": True,
        "stop_token_ids": sorted(ends),
        "repetition_penalty": values["repetition_penalty"] or 1.0,
        "temperature": 0.0,
    }
    if request.sampling.get("do_sample"):
        asked |= {
            "temperature": 1.0 if values["temperature"] is None else values["temperature"],
            "top_k": values["top_k"] or 0,
            "top_p": 1.0 if values["top_p"] is None else values["top_p"],
            "min_p": values["min_p"] or 0.0,
            "seed": request.seed,
        }
    return asked


def read_generation(
    request: GenerateRequest, told: Told, ends: Collection[int], tokenizer: Any
) -> Generation | None:
    """Return the answer as lm-eval cuts it: stopped by the text with special tokens, cut in the one without.

    None where vLLM has stopped at a text that is not in the answer. It begins the text of an answer with the
    prompt's where the prompt ends inside a character (measured with 0.32): ask again without stop texts.
    """
    ids, reason = told.token_ids, told.finish_reason
    stopped = _stop_length(ids, request.until, tokenizer)
    if stopped is not None:
        ids, reason = ids[:stopped], "stop"
    elif reason == "stop" and not (ids and ids[-1] in ends):
        return None
    text = tokenizer.decode(list(ids), skip_special_tokens=True)
    text = before_stop(text, request.until)
    return Generation(text, ids, "stop" if reason == "stop" else "length")


def _stop_length(ids: Sequence[int], until: Sequence[str], tokenizer: Any) -> int | None:
    """Return the number of tokens with which the first stop text is complete, or None."""
    texts = [text for text in until if text]

    def holds(length: int) -> bool:
        text = tokenizer.decode(list(ids[:length])) if texts else ""
        return any(stop in text for stop in texts)

    length = len(ids)
    if not holds(length):
        return None
    while holds(length - 1):
        length -= 1
    return length
