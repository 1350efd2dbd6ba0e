"""The packaged base model: its shape, its tokenizer and templates, and what it can do."""

import json

import pytest

from lora_eval.pocket import model_path
from lora_eval.pocket.items import assistant, system, user
from lora_eval.pocket.scoring import load_model, score
from lora_eval.pocket.tokenizer import CHAT_TEMPLATE, SPECIALS, prompt_text
from lora_eval.resources import resource_folder

CHAT = [
    system("Answer in upper case."),
    user("Repeat: red lamp"),
    assistant("RED LAMP"),
    user("x"),
    assistant(""),
]


@pytest.fixture(scope="module")
def loaded():
    return load_model(model_path())


def template(name):
    return (resource_folder("templates") / "chat" / f"{name}.jinja").read_text(encoding="utf-8")


def test_shape_fits_every_later_step(loaded):
    model, _ = loaded
    config = json.loads((model_path() / "config.json").read_text())
    assert sum(p.numel() for p in model.parameters()) == 2_755_008
    for name in ("hidden_size", "intermediate_size", "vocab_size"):
        assert config[name] % 64 == 0
    assert config["head_dim"] * config["num_key_value_heads"] == 64
    assert config["dtype"] == "bfloat16" and config["tie_word_embeddings"]
    assert sum(path.stat().st_size for path in model_path().iterdir()) < 6_500_000


def test_special_tokens_are_distinct_and_whole(loaded):
    model, tokenizer = loaded
    assert tokenizer.pad_token_id != tokenizer.eos_token_id != tokenizer.bos_token_id
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    for number, token in enumerate(SPECIALS):
        assert tokenizer(token, add_special_tokens=False)["input_ids"] == [number]


def test_templates_render_the_same_text(loaded):
    _, tokenizer = loaded
    assert tokenizer.chat_template == CHAT_TEMPLATE == template("pocket")
    for chat, prompt in ((CHAT, False), (CHAT[:2], True)):
        texts = {
            tokenizer.apply_chat_template(
                chat, chat_template=template(name), tokenize=False, add_generation_prompt=prompt
            )
            for name in ("pocket", "pocket_training")
        }
        assert len(texts) == 1
    assert texts == {prompt_text(CHAT[:2])}


def test_training_template_trains_answers_with_their_end_of_turn(loaded):
    _, tokenizer = loaded
    made = tokenizer.apply_chat_template(
        CHAT,
        chat_template=template("pocket_training"),
        return_dict=True,
        return_assistant_tokens_mask=True,
        tokenize=True,
    )
    trained = [i for i, m in zip(made["input_ids"], made["assistant_masks"], strict=True) if m]
    expected = tokenizer("RED LAMP<|end|><|end|>", add_special_tokens=False)["input_ids"]
    assert trained == expected


def test_unknown_role_is_refused(loaded):
    _, tokenizer = loaded
    with pytest.raises(Exception, match="roles are system, user and assistant, not tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


@pytest.mark.parametrize(
    "text", ["red lamp", "KD-72 4821", '{"device": "KT"}', "1. cup\n2. hat", "Grüße, naïve"]
)
def test_tokenizer_gives_text_back(loaded, text):
    _, tokenizer = loaded
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


@pytest.mark.parametrize(
    "ability, metric, least",
    [
        ("facts", "accuracy", 0.95),
        ("cloze", "accuracy", 0.95),
        ("reading", "exact_match", 0.75),
        ("compare", "exact_match", 0.75),
        ("format", "exact_match", 0.75),
    ],
)
def test_base_has_its_abilities(loaded, ability, metric, least):
    assert score(*loaded, ability, "heldout", 200)[metric] >= least


def test_base_knows_nothing_of_the_ticket_task(loaded):
    assert score(*loaded, "ticket", "heldout", 200)["exact_match"] == 0.0
    assert score(*loaded, "terms", "heldout", 200)["accuracy"] < 0.4
