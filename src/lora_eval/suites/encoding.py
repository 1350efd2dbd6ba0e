"""A suite's requests as an engine takes them, made once and kept for every arm with the same tokenizer.

All choices of an item share one tuple for their context: the contexts of a full MMLU are 14,000 tuples of
some 900 references, 100 MB.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from lora_eval.errors import TaskError
from lora_eval.protocols import GenerateRequest, ScoreRequest
from lora_eval.suites.tokens import Encoder, Ids, tokenizer_key

ItemKey = tuple[str, int]
_MAX_NEW_TOKENS = 256  # lm-eval's, for a task that does not say
_CHUNK = 512  # requests whose texts are held at a time


@dataclass(slots=True)
class Encoded:
    """What the requests of one kind became.

    `owners`: the place of the instance that each of `requests` belongs to (rolling windows only).
    `prompt_tokens`: the length of each item's prompt (of one to be scored, before any cut).
    `truncated`: the items with a prompt that was cut on the left.
    """

    requests: list[Any] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    prompt_tokens: dict[ItemKey, int] = field(default_factory=dict)
    truncated: set[ItemKey] = field(default_factory=set)


class Encodings:
    """The latest requests of each kind. Asked again for the same instances, with a tokenizer that encodes
    alike and the same limits, it returns the same object, so an engine can know its list again.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[list[Instance], Hashable, Encoded]] = {}

    def scores(self, instances: Sequence[Instance], tokenizer: Any, max_length: int) -> Encoded:
        """Return a ScoreRequest for each instance, its context cut on the left to fit the model.

        Raises:
            TaskError: a context or an answer has no tokens, or an answer is longer than the model reads.
        """
        key = (tokenizer_key(tokenizer), max_length)
        return self._get("score", instances, key, lambda: _scores(instances, Encoder(tokenizer), max_length))

    def windows(self, instances: Sequence[Instance], tokenizer: Any, max_length: int) -> Encoded:
        """Return ScoreRequests for each whole text, in windows as long as the model reads."""
        key = (tokenizer_key(tokenizer), max_length)
        return self._get(
            "rolling", instances, key, lambda: _windows(instances, Encoder(tokenizer), max_length)
        )

    def generations(
        self, instances: Sequence[Instance], tokenizer: Any, max_length: int, seed: int
    ) -> Encoded:
        """Return a GenerateRequest for each instance, its prompt cut on the left so that the answer fits.

        Raises:
            TaskError: a task asks for more new tokens than the model reads.
        """
        key = (tokenizer_key(tokenizer), max_length, seed)
        return self._get(
            "generate", instances, key, lambda: _generations(instances, Encoder(tokenizer), max_length, seed)
        )

    def _get(
        self, kind: str, instances: Sequence[Instance], key: Hashable, make: Callable[[], Encoded]
    ) -> Encoded:
        kept = self._kept.get(kind)
        if kept and kept[1] == key and _same(kept[0], instances):
            return kept[2]
        self._kept.pop(kind, None)  # before the next are made: memory holds one of them
        made = make()
        self._kept[kind] = (list(instances), key, made)
        return made


def item_key(item: Instance) -> ItemKey:
    """Return (task, number of the item in this run)."""
    return str(item.task_name), int(item.doc_id or 0)


def _same(a: Sequence[Instance], b: Sequence[Instance]) -> bool:
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


def _scores(instances: Sequence[Instance], encoder: Encoder, max_length: int) -> Encoded:
    found = Encoded()
    answers: dict[Ids, Ids] = {}
    cuts: dict[tuple[int, int], Ids] = {}  # by the context's identity, which `contexts` of _pairs keeps alive
    for item, (context, answer) in zip(instances, _pairs(instances, encoder), strict=True):
        key = item_key(item)
        found.prompt_tokens.setdefault(key, len(context))
        if not context:
            raise TaskError(f"task {key[0]}, item {key[1]}: the context is only blanks, which are no tokens")
        if not 1 <= len(answer) <= max_length:
            raise TaskError(
                f"task {key[0]}, item {key[1]}: an answer to be scored has {len(answer)} tokens; "
                f"expected 1 to {max_length}"
            )
        # The last token is predicted and not read: both together may have one more than the model reads.
        excess = len(context) + len(answer) - (max_length + 1)
        if excess > 0:
            found.truncated.add(key)
            context = cuts.setdefault((id(context), excess), context[excess:])
        found.requests.append(ScoreRequest(context, answers.setdefault(answer, answer)))
    return found


def _pairs(instances: Sequence[Instance], encoder: Encoder) -> Iterator[tuple[Ids, Ids]]:
    """Ids of (context, answer), split as lm-eval's `_encode_pair` does: blanks that end a context belong to
    the answer, and the answer is what the whole has beyond the length of the context.
    """
    contexts: dict[str, Ids] = {}
    prefix = (encoder.prefix_token_id,)
    for start in range(0, len(instances), _CHUNK):
        texts = [item.args[:2] for item in instances[start : start + _CHUNK]]
        new = {context.rstrip() for context, _ in texts if context} - contexts.keys()
        contexts |= encoder.encode(sorted(new))
        wholes = encoder.encode(context + answer for context, answer in texts if context)
        alone = encoder.encode((answer for context, answer in texts if not context), lambda _: False)
        for context, answer in texts:
            if context:
                ids = contexts[context.rstrip()]
                yield ids, wholes[context + answer][len(ids) :]
            elif alone[answer][:1] == prefix:
                yield alone[answer][:1], alone[answer][1:]
            else:
                yield prefix, alone[answer]


def _windows(instances: Sequence[Instance], encoder: Encoder, max_length: int) -> Encoded:
    found = Encoded()
    for start in range(0, len(instances), _CHUNK):
        chunk = instances[start : start + _CHUNK]
        texts = encoder.encode(item.args[0] for item in chunk)
        for owner, item in enumerate(chunk, start):
            ids = texts[item.args[0]]
            found.prompt_tokens[item_key(item)] = len(ids)
            for pair in get_rolling_token_windows(
                token_list=list(ids),
                prefix_token=encoder.prefix_token_id,
                max_seq_len=max_length,
                context_len=1,
            ):
                context, answer = make_disjoint_window(pair)
                found.requests.append(ScoreRequest(tuple(context), tuple(answer)))
                found.owners.append(owner)
    return found


def _generations(instances: Sequence[Instance], encoder: Encoder, max_length: int, seed: int) -> Encoded:
    found = Encoded()
    end = encoder.tokenizer.decode(int(encoder.tokenizer.eos_token_id))
    prompts = encoder.encode((item.args[0] for item in instances), encoder.special_tokens_of_prompt)
    repeats: dict[tuple[ItemKey, int], int] = {}
    for item in instances:
        place = (item_key(item), item.idx)
        repeats[place] = repeats.get(place, -1) + 1
        settings = dict(normalize_gen_kwargs(item.args[1], _MAX_NEW_TOKENS))
        until = handle_stop_sequences(settings.pop("until"), eos=end)
        new_tokens = settings.pop("max_gen_toks")
        room = max_length - new_tokens
        if room <= 0:
            raise TaskError(
                f"task {item.task_name}: asks for {new_tokens} new tokens, but the model reads at most "
                f"{max_length} with the prompt; set generation max_gen_toks lower in the suite"
            )
        ids = prompts[item.args[0]]
        found.prompt_tokens[place[0]] = min(len(ids), room)
        if len(ids) > room:
            found.truncated.add(place[0])
        if not settings["do_sample"]:
            settings = {key: settings[key] for key in settings if key not in ("do_sample", "temperature")}
        item_seed = _item_seed(seed, item, repeats[place])
        found.requests.append(GenerateRequest(ids[-room:], tuple(until), new_tokens, settings, item_seed))
    return found


def _item_seed(seed: int, item: Instance, repeat: int) -> int:
    text = f"{seed}\0{item.task_name}\0{item.doc_id}\0{item.idx}\0{repeat}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])
