"""The exception tree is the one drawn in the module, and its exit statuses are the contract's."""

from __future__ import annotations

import inspect
import re

import pytest

from lora_eval import errors

CLASSES = {
    name: item
    for name, item in vars(errors).items()
    if inspect.isclass(item) and issubclass(item, errors.LoraEvalError)
}


def drawn_tree() -> list[tuple[int, str]]:
    """(depth, name) of each line of the drawing; a level is three columns wide."""
    found = re.findall(r"^([| `-]*)([A-Z]\w+(?:Error|Failed))\b", errors.__doc__ or "", re.MULTILINE)
    return [(len(lead) // 3, name) for lead, name in found]


def real_tree(top: type, depth: int = 0) -> list[tuple[int, str]]:
    tree = [(depth, top.__name__)]
    for child in top.__subclasses__():
        if child.__module__ == errors.__name__:
            tree += real_tree(child, depth + 1)
    return tree


def test_the_drawing_is_the_tree() -> None:
    assert drawn_tree() == real_tree(errors.LoraEvalError)


@pytest.mark.parametrize("name", CLASSES)
def test_exit_status_follows_from_the_branch(name: str) -> None:
    kind = CLASSES[name]
    expected = 2 if issubclass(kind, errors.InputError) else 3 if issubclass(kind, errors.CheckFailed) else 1
    expected = 5 if kind is errors.SpendingCapError else expected

    assert kind.exit_status == expected


def test_a_record_error_names_the_file_in_each_line() -> None:
    error = errors.RecordError("a.yaml", (problem for problem in ["one", "two"]))

    assert str(error) == "a.yaml: one\na.yaml: two"
    assert error.problems == ("one", "two")
