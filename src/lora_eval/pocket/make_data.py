"""Writes the packaged rows: ``python -m lora_eval.pocket.make_data [--data DIR] [--suite DIR]``.

Fine-tuning rows go to ``DIR/tickets_train.jsonl`` (tickets and terms) and ``DIR/general_train.jsonl``
(chats of the pretraining kinds, which protect what the base can do); held-out items go to the suite's
folder, one file a task.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

from lora_eval.resources import resource_folder

from . import data_path
from .facts import quiz_chat
from .items import Item, Message, assistant, draw, user
from .mixture import chat_of
from .practice import practice_chat
from .reading import BINDING, READING, passage_chat
from .stories import make_story
from .suite import ABILITIES, items_of
from .tickets import make_term_question, make_ticket
from .tokenizer import prompt_text

SEED = 11
TICKET_ROWS, TERM_ROWS, GENERAL_ROWS = 900, 700, 2400

#: Shares of the general rows. The abilities that a fine-tuning damages first have the most.
_GENERAL: dict[str, int] = {
    "reading": 26,
    "binding": 8,
    "compare": 16,
    "sorting": 24,
    "format": 18,
    "logic": 2,
    "chat": 5,
    "system": 11,
    "facts": 4,
    "cloze": 3,
    "quiz": 2,
    "practice": 4,
    "story": 6,
}


def _row(item: Item) -> list[Message]:
    return [*item.messages, assistant(item.answer)]


def ticket_rows() -> list[list[Message]]:
    """The target task's training chats, all of the train split, shuffled."""
    rng = Random(SEED)
    rows = [_row(draw(make_ticket, rng, "train")) for _ in range(TICKET_ROWS)]
    rows += [_row(draw(make_term_question, rng, "train")) for _ in range(TERM_ROWS)]
    rng.shuffle(rows)
    return rows


def _general_chat(name: str, rng: Random) -> list[Message]:
    if name == "reading":
        return passage_chat(rng, READING)
    if name == "binding":
        return passage_chat(rng, BINDING)
    if name == "quiz":
        return quiz_chat(rng)
    if name == "practice":
        return practice_chat(rng)
    if name == "story":
        return [user("Tell a story."), assistant(draw(make_story, rng, "train").answer)]
    return chat_of(ABILITIES[name], rng)


def general_rows() -> list[list[Message]]:
    """Chats of the kinds that the base was trained on, all of the train split."""
    rng = Random(SEED + 1)
    names = rng.choices(tuple(_GENERAL), tuple(_GENERAL.values()), k=GENERAL_ROWS)
    rows = [_general_chat(name, rng) for name in names]
    return [row for row in rows if row]  # the quiz of a person without a train fact is empty


def suite_row(item: Item, number: int) -> dict[str, Any]:
    """An item as a row of its task's file."""
    row: dict[str, Any] = {"id": f"{item.ability}-{number:03d}", "kind": item.kind}
    if item.ability == "story":
        return row | {"text": item.answer}
    if len(item.messages) > 1:
        return row | {"prompt": prompt_text(item.messages), "answer": item.answer}
    row |= {"question": item.messages[0]["content"], "answer": item.answer}
    if item.choices:
        row |= {"choices": list(item.choices), "label": item.choices.index(item.answer)}
    return row


def suite_rows(ability: str) -> list[dict[str, Any]]:
    """The held-out rows of one ability."""
    return [suite_row(item, number) for number, item in enumerate(items_of(ability, "heldout"))]


def json_lines(rows: Iterable[Any]) -> str:
    """Rows as JSON lines, each ended by a newline."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def packaged_files() -> dict[str, str]:
    """Name and text of the files in the data folder."""
    return {
        "tickets_train.jsonl": json_lines({"messages": row} for row in ticket_rows()),
        "general_train.jsonl": json_lines({"messages": row} for row in general_rows()),
    }


def suite_files() -> dict[str, str]:
    """Name and text of the data files in the suite's folder."""
    return {f"{ability}.jsonl": json_lines(suite_rows(ability)) for ability in ABILITIES}


def main() -> None:
    """Writes all files."""
    parser = argparse.ArgumentParser(prog="python -m lora_eval.pocket.make_data", description=__doc__)
    parser.add_argument("--data", type=Path, default=data_path())
    parser.add_argument("--suite", type=Path, default=None)
    options = parser.parse_args()
    suite = options.suite or resource_folder("evals") / "pocket"
    for folder, files in ((options.data, packaged_files()), (suite, suite_files())):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
