"""What both arms are asked: prompts of a file or of a stored run, with the reference's greedy answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lora_eval.errors import InputError
from lora_eval.exporters.calibration import calibration_files
from lora_eval.exporters.rows import Row, read_rows, row_ids
from lora_eval.fingerprint import fingerprint_data
from lora_eval.protocols import Engine, GenerateRequest, Progress
from lora_eval.runstore import has_run, read_run

Source = Literal["prompts", "suite"]
_TEXTS: tuple[Row, ...] = (
    "The train to the coast leaves at a quarter past nine, and the next one only at noon.",
    "To make bread you need flour, water, salt and a little patience.",
    "In the morning the square was empty. By ten o'clock the market had filled it with people.",
    "She wrote three letters: one to her sister, one to the bank, and one that she never sent.",
    "Water boils at 100 degrees Celsius at sea level and at about 93 degrees in Denver.",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 3))",
    "Question: What is the capital of France?\nAnswer: Paris.",
    "The committee met twice in March. It decided nothing, and it will meet again in May.",
    "1, 1, 2, 3, 5, 8, 13, 21, 34, 55",
    "Dear Ms Weber, thank you for your message. Your order has left our warehouse today.",
    "A triangle has three sides. A square has four, and all of them are equally long.",
    "Der Zug nach Hamburg ist heute wieder zu spaet, aber das stoert hier niemanden mehr.",
    "Once there was a fox who lived at the edge of a wood and was afraid of nothing but geese.",
    '{"name": "Ada", "year": 1815, "languages": ["English", "French"]}',
    "If it rains tomorrow we will stay at home; otherwise we will walk to the old mill.",
    "The results were clear: of 240 plants that were watered, 228 were still alive in August.",
)


@dataclass(frozen=True, slots=True)
class Asked:
    """Token ids of a prompt and of an answer that begins at `start`. The answer is the reference's own greedy
    one; with `is_text` it is the held-out one, and only its perplexity and its places count. `has_text`: such
    a sequence stands beside this one, so the prompt's own text is no held-out text.
    """

    ids: tuple[int, ...]
    start: int
    source: Source = "prompts"
    is_text: bool = False
    has_text: bool = False

    @property
    def counted(self) -> slice:
        """The places (after a token) whose distributions count; of a text those that predict its answer."""
        return slice(self.start - 1 if self.is_text else 0, len(self.ids))

    @property
    def predicted(self) -> slice:
        """The places that predict the answer's tokens; without an answer the place after the prompt."""
        return slice(self.start - 1, max(len(self.ids) - 1, self.start))

    @property
    def text(self) -> slice:
        """The places whose following token is held-out text."""
        if self.is_text:
            return slice(self.start - 1, len(self.ids) - 1)
        return slice(0, 0 if self.has_text else self.start - 1)


def read_prompts(path: Path, limit: int, option: str = "--prompts") -> list[Row]:
    """Return at most `limit` prompts, evenly spaced: rows of a JSON-lines file, or the distinct prompts of a
    run folder as `compare` stores it.

    Raises:
        InputError: neither a file nor a run.
        DataError: the file cannot be read, or holds no row.
    """
    if path.is_dir():
        if not has_run(path):
            raise InputError(f"{option} {path}: the folder holds no run (run.json, samples.parquet)")
        rows: list[Row] = list(dict.fromkeys(row.prompt for row in read_run(path).rows if row.prompt))
        if not rows:
            raise InputError(f"{option} {path}: the run holds no item with a prompt")
    else:
        rows = read_rows(path)
    return spaced(rows, limit)


def small_set(model: Path, limit: int) -> list[Row]:
    """Return at most `limit` prompts for a model that nobody gave any for: rows of the data that it was
    trained on where they are on this machine, else texts of our own.
    """
    try:
        files = calibration_files(model, None)
        rows = [row for file in files for row in spaced(read_rows(file), limit)]
    except InputError:
        rows = list(_TEXTS)
    return spaced(rows, limit)


def spaced(rows: Sequence[Any], limit: int) -> list[Any]:
    """Return at most `limit` of the rows, evenly spaced."""
    if len(rows) <= limit:
        return list(rows)
    return [rows[index * len(rows) // limit] for index in range(limit)]


def prompt_ids(tokenizer: Any, rows: Sequence[Row], length: int) -> list[tuple[int, ...]]:
    """Return the token ids of each prompt, cut to its first `length`."""
    return [tuple(row_ids(tokenizer, row, prompt_only=True)[:length]) for row in rows]


def held_out(
    tokenizer: Any, rows: Sequence[Row], prompts: Sequence[tuple[int, ...]], length: int
) -> dict[int, Asked]:
    """Return, by the row's number, the conversations that end with an answer, where the rendered whole goes
    on from the rendered prompt.
    """
    found = {}
    for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        if isinstance(row, str) or row[-1]["role"] != "assistant" or len(row) < 2:
            continue
        whole = tuple(row_ids(tokenizer, row)[:length])
        if len(whole) > len(prompt) and whole[: len(prompt)] == prompt:
            found[number] = Asked(whole, len(prompt), is_text=True)
    return found


def answer(
    engine: Engine, arm: str, prompts: Sequence[tuple[int, ...]], new_tokens: int, progress: Progress
) -> list[tuple[int, ...]]:
    """Return the reference's greedy answer, of at most `new_tokens`, to each prompt."""
    requests = [GenerateRequest(ids, (), new_tokens) for ids in prompts]
    return [found.token_ids for found in engine.generate(arm, requests, progress)]


def sequences_fingerprint(prompts: Sequence[tuple[int, ...]]) -> str:
    """Return the sha256 of the prompts' token ids."""
    return fingerprint_data([list(ids) for ids in prompts])
