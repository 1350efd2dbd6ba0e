"""Answers by continuous batching: prompts enter through the token tree, rows leave at their own stop.

What all prompts of a group share is kept once. A draft (another arm's answer to the same prompt) rides along
with the prompt, and its tokens count as far as the model would have chosen them itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch

from lora_eval.engines import attention
from lora_eval.engines.cache import KeyValue
from lora_eval.engines.decoding import (
    Row,
    StopTexts,
    chooser,
    end_tokens,
    generation_settings,
)
from lora_eval.engines.groups import share_prefix
from lora_eval.engines.packs import PackRunner, layer_masks
from lora_eval.engines.slots import Slots
from lora_eval.engines.tree import Ints, Pack, Path, TokenTree, cut_path, nodes_of
from lora_eval.protocols import GenerateRequest, Generation
from lora_eval.sequences import TOKEN_BYTES, as_bytes

Finished = list[tuple[int, Generation]]
Draft = Callable[[GenerateRequest], Sequence[int]]
_PILOT = 4  # rows whose drafts are tried before the rest
_WORTH = 0.5  # share of right tokens from which a draft costs less than decoding (docs/engine.md)


@dataclass(slots=True)
class Limits:
    """How much is done at once: tokens of a pack, rows of a decoding step, bytes of their keys and values."""

    pack_tokens: int
    rows: int
    slot_bytes: int


class Generator:
    """Answers requests with one model; `count(name, number)` hears of the work as it is done."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        limits: Limits,
        *,
        fused: bool,
        count: Callable[[str, int], None],
        draft: Draft = lambda request: (),
    ) -> None:
        self.model, self.tokenizer, self.limits = model, tokenizer, limits
        self.fused = fused
        self.count = count
        self.draft = draft
        self._stops = lru_cache(maxsize=None)(lambda until: StopTexts(tokenizer, until))

    def run(self, requests: Sequence[GenerateRequest], *, plain: bool = False) -> Iterator[Finished]:
        """Yield answers as they are finished, as (number of the request, answer); `plain`: always the
        likeliest token, whatever the model's generation settings say.
        """
        kinds: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            kinds.setdefault(repr(sorted(request.sampling.items())), []).append(number)
        for members in kinds.values():
            settings = generation_settings(self.model, requests[members[0]].sampling)
            for group, alike in share_prefix([requests[number].input_ids for number in members]):
                shared = alike if self.fused else 0  # masks know nothing of a prefix outside the slots
                rows = []
                for number in (members[place] for place in group):
                    request = requests[number]
                    choose = None if plain else chooser(self.model, settings, request)
                    rows.append(Row(number, request, self._stops(request.until), choose))
                prefix = self._prefix(requests[rows[0].number].input_ids[:shared]) if shared else {}
                ends = frozenset() if plain else end_tokens(settings.eos_token_id)
                yield from _Session(self, rows, shared, prefix, ends).run()

    def _prefix(self, tokens: Sequence[int]) -> dict[int, KeyValue]:
        """Forward what the prompts of a group share; returns its keys and values."""
        tree = TokenTree([as_bytes(tokens)])
        runner = PackRunner(self.model, tree, fused=self.fused)
        for pack in tree.packs(self.limits.pack_tokens):
            runner.run(pack, np.empty(0, np.int64))
            self.count("forwarded_tokens", pack.stop - pack.start)
        return runner.read(((0, len(tree)),))


@dataclass(slots=True)
class _Wave:
    """Rows that enter together: the tree of their prompts and drafts, and after which nodes tokens of each
    row are chosen (its prompt's last one, and its draft's).
    """

    rows: Sequence[Row]
    drafts: Sequence[tuple[int, ...]]
    tree: TokenTree
    paths: Sequence[Path]
    asked: Sequence[Ints]


def _wave(rows: Sequence[Row], drafts: Sequence[tuple[int, ...]]) -> _Wave:
    # A draft's last token is only compared, never read.
    texts = [as_bytes((*row.request.input_ids, *draft[:-1])) for row, draft in zip(rows, drafts, strict=True)]
    tree = TokenTree(texts)
    paths = [tree.path(text) for text in texts]
    asked = [
        nodes_of(path, len(row.request.input_ids) - 1, len(text) // TOKEN_BYTES)
        for row, path, text in zip(rows, paths, texts, strict=True)
    ]
    return _Wave(rows, drafts, tree, paths, asked)


class _Session:
    """Rows from prompt to answer, as many at a time as there are slots. Their prompts begin with the same
    `shared` tokens, fewer than the shortest has, whose keys and values are `prefix`.
    """

    def __init__(
        self,
        generator: Generator,
        rows: Sequence[Row],
        shared: int,
        prefix: Mapping[int, KeyValue],
        ends: frozenset[int],
    ) -> None:
        self._of = generator
        self._rows, self._ends = rows, ends
        self._shared, self._prefix = shared, prefix
        self._ready: deque[tuple[Row, Callable[[], dict[int, KeyValue]]]] = deque()
        self._active: list[Row] = []
        self._slots: Slots | None = None
        self._drafted = self._accepted = 0

    def run(self) -> Iterator[Finished]:
        """Yield what each pack and each step of decoding finishes."""
        entering = self._enter()
        more = True
        while more or self._ready or self._active:
            while self._ready and self._is_free():
                row, read = self._ready.popleft()
                keys = read()
                if self._slots is None:
                    self._slots = self._open_slots(keys)
                self._slots.put(keys)
                self._active.append(row)
            if more and self._is_free():
                done = next(entering, None)
                more = done is not None
            else:
                done = self._step()
            if done:
                yield done
        self._of.count("drafted_tokens", self._drafted)
        self._of.count("accepted_tokens", self._accepted)

    def _is_free(self) -> bool:
        return self._slots is None or self._slots.used < self._slots.rows

    def _enter(self) -> Iterator[Finished]:
        """Bring every row in, a few with drafts first: the rest get theirs only if those were right."""
        drafts = [() if row.choose else tuple(self._of.draft(row.request)) for row in self._rows]
        drafted = [place for place, draft in enumerate(drafts) if len(draft) > 1]
        pilot = drafted[:: max(1, len(drafted) // _PILOT)][:_PILOT]
        rest = [place for place in range(len(drafts)) if place not in set(pilot)]
        if pilot:
            yield from self._enter_wave(_wave([self._rows[p] for p in pilot], [drafts[p] for p in pilot]))
        if rest:
            useful = self._accepted >= _WORTH * self._drafted
            yield from self._enter_wave(
                _wave([self._rows[p] for p in rest], [drafts[p] if useful else () for p in rest])
            )

    def _enter_wave(self, wave: _Wave) -> Iterator[Finished]:
        """Forward pack after pack of the prompts; their rows become ready, or finished by their draft."""
        runner = PackRunner(self._of.model, wave.tree, fused=self._of.fused)
        runner.begin(self._prefix)
        last = np.array([nodes[-1] for nodes in wave.asked])
        order = np.argsort(last, kind="stable")
        every = np.unique(np.concatenate(wave.asked))
        likeliest = np.full(len(wave.tree), -1)
        for pack in wave.tree.packs(self._of.limits.pack_tokens, first=self._shared):
            nodes = every[slice(*np.searchsorted(every, (pack.start, pack.stop)))]
            logits = runner.run(pack, nodes - pack.start)
            self._of.count("forwarded_tokens", pack.stop - pack.start)
            likeliest[nodes] = logits.argmax(dim=-1).cpu().numpy()
            done = []
            for place in order[slice(*np.searchsorted(last[order], (pack.start, pack.stop)))].tolist():
                row, chosen = wave.rows[place], likeliest[wave.asked[place]].tolist()
                if row.choose is not None:
                    where = int(np.searchsorted(nodes, wave.asked[place][-1]))
                    chosen = [row.choose(row.request.input_ids, logits[where])]
                reason = self._accept(row, wave.drafts[place], chosen)
                if reason is None:
                    self._ready.append((row, partial(self._keys, row, wave.paths[place], pack, runner)))
                else:
                    done.append((row.number, row.answer(self._of.tokenizer, reason)))
            yield done

    def _accept(self, row: Row, draft: tuple[int, ...], chosen: Sequence[int]) -> str | None:
        """Take the model's own tokens as far as the draft led it right, and the one after."""
        self._drafted += len(draft)
        for token in chosen:
            right = draft[len(row.tokens) : len(row.tokens) + 1] == (token,)
            self._accepted += right
            reason = row.add(token, self._ends)
            if reason is not None or not right:
                return reason
        return None

    def _keys(self, row: Row, path: Path, pack: Pack, runner: PackRunner) -> dict[int, KeyValue]:
        """The keys and values of prompt and accepted tokens behind the shared prefix."""
        length = len(row.request.input_ids) + len(row.tokens) - 1
        return runner.read(pack.places(cut_path(path, self._shared, length)))

    def _open_slots(self, keys: Mapping[int, KeyValue]) -> Slots:
        """As many slots as the limits allow; `keys` tells how large a token is."""
        longest = max(len(row.request.input_ids) + row.request.max_new_tokens for row in self._rows)
        length = longest - self._shared
        of_token = sum(
            part.shape[1] * part.shape[3] * part.element_size() for pair in keys.values() for part in pair
        )
        fit = max(1, self._of.limits.slot_bytes // (of_token * length))
        rows = min(self._of.limits.rows, len(self._rows), fit)
        return Slots(rows, length, self._prefix, joined=not self._of.fused)

    def _step(self) -> Finished:
        """Forward one token of every active row; returns the rows that this finishes."""
        slots, rows = self._slots, self._active
        assert slots is not None
        logits = self._forward(slots, [row.tokens[-1] for row in rows])
        self._of.count("forwarded_tokens", len(rows))
        likeliest = logits.argmax(dim=-1).tolist()
        done = []
        for slot in reversed(range(len(rows))):
            row = rows[slot]
            token = likeliest[slot]
            if row.choose is not None:
                token = row.choose((*row.request.input_ids, *row.tokens), logits[slot])
            reason = row.add(token, self._ends)
            if reason is not None:
                done.append((row.number, row.answer(self._of.tokenizer, reason)))
                slots.drop(slot)
                rows[slot] = rows[-1]
                rows.pop()
        return done

    def _forward(self, slots: Slots, tokens: Sequence[int]) -> torch.Tensor:
        """Return the logits (rows, V) after one more token of each row."""
        model = self._of.model
        slots.begin_step(model.device)
        positions = torch.tensor(slots.lengths, device=model.device)[:, None] + self._shared
        inputs: dict[str, Any] = {
            "input_ids": torch.tensor(tokens, device=model.device)[:, None],
            "position_ids": positions,
            "past_key_values": slots,
            "use_cache": True,
        }
        if self._of.fused:
            inputs["attention_mask"] = attention.no_mask(model.device)
            with attention.use(slots):
                logits = model(**inputs).logits
        else:
            seen, distance = slots.visible()
            logits = model(**inputs, attention_mask=layer_masks(model, seen, distance)).logits
        slots.end_step()
        return logits[:, -1]
