"""Items of the task: every sum of two digits from 1 to 5."""

from typing import Any

from datasets import Dataset


def load(**_: Any) -> dict[str, Dataset]:
    """One split with 25 items; the right answer stands first or second in turn."""
    pairs = [(a, b) for a in range(1, 6) for b in range(1, 6)]
    return {"test": Dataset.from_list([_item(a, b) for a, b in pairs])}


def _item(a: int, b: int) -> dict[str, Any]:
    right, wrong = str(a + b), str(a + b + 1)
    label = (a + b) % 2
    choices = [wrong, right] if label else [right, wrong]
    return {"question": f"{a} + {b} =", "choices": choices, "label": label}
