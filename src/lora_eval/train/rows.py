"""Conversations become token ids and labels, and everything that is lost on the way is counted.

TRL could render and mask the conversations itself. It is done here because TRL drops rows without a trained
token silently, stops at the first row without an assistant turn, and says nothing of rows cut inside an
answer; and so that the mask that is tested is the one that trains.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_eval.chat import assistant_mask
from lora_eval.data import Conversation, read_conversations
from lora_eval.errors import DataError
from lora_eval.records import RowCounts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation as the model sees it; `labels` are its ids where they train and -100 elsewhere."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True, slots=True)
class Reading:
    """Conversations read, and how many rows had no assistant turn or were left out by `max_rows`."""

    conversations: list[Conversation]
    without_assistant: int
    left_out: int
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tokenization:
    """How conversations become rows.

    `template` is the name of the tokenizer's text, `assistant_only` False trains every token, `max_length`
    None cuts nothing, `stop_ids` are the tokens that end a turn.
    """

    tokenizer: PreTrainedTokenizerBase
    template: str = "training"
    assistant_only: bool = True
    max_length: int | None = None
    keep_end: bool = False
    stop_ids: frozenset[int] = frozenset()


def read_files(files: Sequence[Path], *, shuffle_seed: int | None, max_rows: int | None) -> Reading:
    """Return all conversations of the files: one after the other, then shuffled, then the first `max_rows`.

    Raises:
        DataError: no file is named, or one cannot be used (see `read_conversations`).
    """
    if not files:
        raise DataError("the recipe names no training data; set data.files to a list of JSON-lines files")
    conversations: list[Conversation] = []
    without_assistant = 0
    for path in files:
        found = read_conversations(path)
        conversations += found
        without_assistant += len(found.without_assistant)
    if shuffle_seed is not None:
        random.Random(shuffle_seed).shuffle(conversations)
    kept = conversations[:max_rows]
    return Reading(kept, without_assistant, len(conversations) - len(kept), tuple(map(str, files)))


def make_rows(
    reading: Reading, how: Tokenization, progress: Callable[[int], None] = lambda done: None
) -> tuple[list[Row], RowCounts]:
    """Return the rows that train, and what became of all of them.

    Raises:
        DataError: no row has a trained token within `max_length`.
        TemplateError: the template refuses a conversation, or has no marks.
    """
    rows: list[Row] = []
    cut = cut_in_answer = untrained = turns = without_end = 0
    for number, messages in enumerate(reading.conversations):
        ids, mask = assistant_mask(how.tokenizer, messages, how.template)
        mask = mask if how.assistant_only else [1] * len(ids)
        kept = _within(how)
        is_cut = how.max_length is not None and len(ids) > how.max_length
        cut += is_cut
        cut_in_answer += is_cut and sum(mask[kept]) < sum(mask)
        ids, mask = ids[kept], mask[kept]
        ends = [i for i in range(len(ids)) if mask[i] and not (i + 1 < len(ids) and mask[i + 1])]
        turns += len(ends)
        whole = ends[:-1] if is_cut and ends and ends[-1] == len(ids) - 1 else ends
        without_end += sum(ids[i] not in how.stop_ids for i in whole)
        if ends:
            labels = [token if trained else IGNORED for token, trained in zip(ids, mask, strict=True)]
            rows.append(Row(ids, labels))
        untrained += not ends
        progress(number + 1)
    if not rows:
        raise DataError(
            f"{', '.join(reading.files)}: none of {len(reading.conversations)} conversations has a trained "
            f"token within training.max_length={how.max_length}; raise it"
        )
    return rows, RowCounts(
        read=len(reading.conversations) + reading.without_assistant + reading.left_out,
        without_assistant=reading.without_assistant,
        left_out=reading.left_out,
        untrained=untrained,
        cut=cut,
        cut_in_answer=cut_in_answer,
        used=len(rows),
        tokens=sum(len(row.input_ids) for row in rows),
        trained_tokens=sum(label != IGNORED for row in rows for label in row.labels),
        turns=turns,
        turns_without_end=without_end,
    )


def describe(counts: RowCounts, max_length: int | None) -> list[str]:
    """Return the counts in words, a line for each thing that a person must know."""
    share = counts.trained_tokens / counts.tokens
    lines = [
        f"{counts.used} of {counts.read} rows train: {counts.tokens} tokens, "
        f"{counts.trained_tokens} of them trained ({share:.0%})"
    ]
    for number, text in (
        (counts.without_assistant, "without an assistant turn, left out"),
        (counts.left_out, "left out by data.max_rows"),
        (counts.untrained, f"without a trained token within max_length {max_length}, left out"),
        (counts.cut, f"cut at max_length {max_length}, {counts.cut_in_answer} of them inside an answer"),
    ):
        if number:
            lines.append(f"{number} rows {text}")
    if counts.turns_without_end:
        lines.append(
            f"warning: {counts.turns_without_end} of {counts.turns} assistant turns do not end in a trained "
            "stop token, so the model may not learn to stop; put the end of the turn inside the template's "
            "{% generation %} marks"
        )
    return lines


def _within(how: Tokenization) -> slice:
    if how.max_length is None:
        return slice(None)
    return slice(-how.max_length, None) if how.keep_end else slice(None, how.max_length)
