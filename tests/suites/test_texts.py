"""The texts of a suite's items, as its tasks put them."""

from __future__ import annotations

import json

import pytest

from lora_eval.errors import InputError
from lora_eval.suites.texts import item_texts
from tests.conftest import CHECKOUT


def test_the_pocket_suites_texts_are_its_questions_and_stories():
    texts = item_texts("pocket")
    lines = (CHECKOUT / "evals" / "pocket" / "ticket.jsonl").read_text("utf-8").splitlines()
    assert set(texts["pocket_ticket"]) <= {json.loads(line)["question"] for line in lines}
    assert sum(map(len, texts.values())) == 2800
    assert all(text.strip() for found in texts.values() for text in found)


def test_an_unknown_suite_is_refused():
    with pytest.raises(InputError, match="pocke"):
        item_texts("pocke")
