"""The world's generators: equal by seed, splits disjoint by content, packaged rows equal what they make."""

import hashlib
import json
from collections import Counter
from random import Random

import pytest

from lora_eval.pocket import data_path, facts, make_data, mixture
from lora_eval.pocket.items import draw, split_of
from lora_eval.pocket.practice import customer_chat
from lora_eval.pocket.suite import ABILITIES, items_of
from lora_eval.resources import resource_folder

#: Changes when any generator, word or share changes: then the packaged model is no longer the script's.
STREAM_SHA256 = "72b799bb9e8781945329de0f9dff4cbae46b5aed2a03afb48979e8b8979401da"


def test_training_stream_is_the_one_the_packaged_model_saw():
    rng, digest = Random(5), hashlib.sha256()
    for _ in range(20_000):
        digest.update(repr(tuple(mixture.sample(rng))).encode())
    assert digest.hexdigest() == STREAM_SHA256


@pytest.mark.parametrize("ability", ABILITIES)
def test_splits_are_disjoint_by_content(ability):
    heldout = {item.content for item in items_of(ability, "heldout")}
    final = {item.content for item in items_of(ability, "final")}
    rng = Random(3)
    train = {draw(ABILITIES[ability], rng, "train").content for _ in range(2000)}
    assert len(heldout) == len(final) == 200
    assert not heldout & final
    assert not train & (heldout | final)


@pytest.mark.parametrize("ability", ABILITIES)
def test_items_are_equal_by_seed(ability):
    assert items_of(ability, "heldout", 50) == items_of(ability, "heldout", 50)


def user_texts(messages):
    return {turn["content"] for turn in messages or () if turn["role"] == "user"}


def test_no_heldout_question_occurs_in_the_training_stream():
    asked = {
        name: {i.messages[-1]["content"] for i in items_of(name, s)}
        for name in ABILITIES
        for s in ("heldout", "final")
        if name != "story"
    }
    forbidden = set().union(*(asked[name] for name in asked if name not in ("system", "chat")))
    rng = Random(17)
    for _ in range(60_000):
        made = mixture.sample(rng)
        assert not user_texts(made.messages) & forbidden


def test_no_heldout_question_occurs_in_the_packaged_rows():
    forbidden = {
        i.messages[-1]["content"]
        for s in ("heldout", "final")
        for name in ("ticket", "terms", "facts")
        for i in items_of(name, s)
    }
    for row in (*make_data.ticket_rows(), *make_data.general_rows()):
        assert not user_texts(row) & forbidden


def test_every_fact_is_stated_and_untrained_facts_are_never_asked():
    rng = Random(1)
    asked = {turn["content"] for _ in range(3000) for turn in facts.quiz_chat(rng) if turn["role"] == "user"}
    untrained = [item for split in ("heldout", "final") for item in items_of("facts", split)]
    assert untrained and not asked & {item.messages[0]["content"] for item in untrained}


def test_practice_uses_no_heldout_case_and_no_house_term():
    from lora_eval.pocket.tickets import DESKS, FAULTS, LINES

    rng = Random(2)
    terms = {*LINES.values(), *FAULTS.values(), *DESKS.values()}
    for _ in range(2000):
        text = " ".join(turn["content"] for turn in customer_chat(rng))
        assert not terms & set(text.replace('"', " ").replace(",", " ").split())


def test_split_shares():
    counts = Counter(split_of(str(number)) for number in range(20_000))
    for split, share in (("train", 0.70), ("heldout", 0.15), ("final", 0.15)):
        assert counts[split] / 20_000 == pytest.approx(share, abs=0.01)


def test_choices_hold_the_answer_once():
    for ability in ("facts", "cloze", "terms"):
        for item in items_of(ability, "heldout"):
            assert len(set(item.choices)) == 4
            assert item.choices.count(item.answer) == 1


@pytest.mark.parametrize(
    "folder, files", [("data", make_data.packaged_files), ("suite", make_data.suite_files)]
)
def test_packaged_rows_are_what_the_generator_makes(folder, files):
    path = data_path() if folder == "data" else resource_folder("evals") / "pocket"
    for name, text in files().items():
        assert (path / name).read_text(encoding="utf-8") == text, (
            f"run python -m lora_eval.pocket.make_data: {name}"
        )


def test_packaged_rows_are_small_chats():
    total = 0
    for name in ("tickets_train.jsonl", "general_train.jsonl"):
        path = data_path() / name
        total += path.stat().st_size
        for line in path.read_text(encoding="utf-8").splitlines():
            messages = json.loads(line)["messages"]
            assert messages[-1]["role"] == "assistant" and messages[-1]["content"]
    assert total < 1_000_000
