"""Loading and scoring for the pocket tasks; imports nothing heavy, works from any working directory."""

import json
from pathlib import Path
from typing import Any

from lora_eval.pocket.tickets import field_accuracy

_HERE = Path(__file__).resolve().parent


def load(file: str, **_: Any) -> dict[str, Any]:
    """The rows of ``file`` in this folder as the split ``test``, in memory: no download, cache or write."""
    from datasets import Dataset

    text = (_HERE / file).read_text(encoding="utf-8")
    return {"test": Dataset.from_list([json.loads(line) for line in text.splitlines()])}


def exact(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1.0 where the answer, without blanks around it, is the reference to the character."""
    return {"exact_match": float(results[0].strip() == doc["answer"])}


def ticket(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Exact match of the whole ticket, and the share of its fields that have the right value."""
    fields = field_accuracy(results[0].strip(), doc["answer"])
    return exact(doc, results) | {"field_accuracy": fields}
