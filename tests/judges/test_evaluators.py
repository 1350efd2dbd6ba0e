"""alpaca_eval's own evaluator configurations as judges."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_eval.errors import InputError
from lora_eval.judges import alpaca
from lora_eval.judges.evaluators import evaluator_folder, evaluator_profile
from lora_eval.judges.profiles import load_profile
from lora_eval.judges.prompts import load_template
from lora_eval.judges.replies import read_reply
from lora_eval.judges.requests import request_body

pytest.importorskip("sklearn")
CHAT = [
    name
    for name in sorted(path.parent.name for path in evaluator_folder().glob("*/configs.yaml"))
    if name
    not in {
        "gpt35_turbo_instruct",
        "test",
        "text_davinci_003",
        "alpaca_farm",
        "alpaca_farm_greedy_gpt4",
        "cohere",
    }
    and not name.startswith(("bedrock", "claude", "guanaco", "oasst", "Self"))
]


def reply(text=None, arguments=None, **choice):
    calls = [{"function": {"arguments": arguments}}] if arguments is not None else None
    return {"choices": [{"message": {"content": text, "tool_calls": calls}, **choice}]}


def test_every_chat_evaluator_can_be_asked():
    assert len(CHAT) == 29
    with alpaca._contained():
        from alpaca_eval.utils import prompt_to_chatml
    for name in CHAT:
        profile = load_profile(f"alpaca_eval:{name}", model="m", base_url="http://127.0.0.1:1/v1")
        template = load_template(profile.template)
        text = (evaluator_folder() / profile.template.removeprefix("alpaca_eval:")).read_text("utf-8")
        assert template.turns == tuple((turn["role"], turn["content"]) for turn in prompt_to_chatml(text))
        body = request_body(profile, template.turns)
        assert body["model"] == "m"
        assert "price_per_token" not in body
        if profile.upstream.function == "logprob_parser":
            assert body["logprobs"] is True


@pytest.mark.parametrize(
    ("name", "body", "score"),
    [
        ("chatgpt", reply("Output (b) is better"), 1.0),
        ("chatgpt", reply("neither"), None),
        (
            "alpaca_eval_gpt4",
            reply("[{'model': 'model_1', 'rank': 2}, {'model': 'model_2', 'rank': 1}]"),
            1.0,
        ),
        ("alpaca_eval_gpt4", reply("[{'model': 'model_1', 'rank': 7}]"), None),
        ("lmsys_gpt4", reply("7 7\nBoth"), 0.5),
        ("lmsys_gpt4", reply("9 7\nBoth"), 0.0),
        (
            "alpaca_eval_gpt4_turbo_fn",
            reply(arguments='{"ordered_models": [{"model": "m", "rank": 1}]}'),
            0.0,
        ),
        ("alpaca_eval_gpt4_turbo_fn", reply(arguments="{"), None),
        ("alpaca_eval_gpt4_turbo_fn", reply("no call"), None),
    ],
)
def test_verdicts_are_read_by_alpaca_evals_parsers(name, body, score):
    found = read_reply(evaluator_profile(name), body)
    assert found.value == score
    assert (found.reason is None) == (score is not None)


@pytest.mark.parametrize("name", ["chatgpt", "alpaca_eval_gpt4", "lmsys_gpt4", "alpaca_eval_gpt4_turbo_fn"])
@given(text=st.text(alphabet="()ab[]{}'\":,12 m\nOutputrankmodel_", max_size=60))
def test_hostile_texts_raise_nothing(name, text):
    for body in (reply(text), reply(arguments=text)):
        found = read_reply(evaluator_profile(name), body)
        assert found.value is None or 0.0 <= found.value <= 1.0


def test_the_thought_before_the_verdict_is_passed_over():
    """The chain-of-thought evaluator reads the last token."""
    tokens = [
        {"top_logprobs": [{"token": "M", "logprob": -0.1}, {"token": "m", "logprob": -3.0}]},
        {
            "top_logprobs": [
                {"token": "m", "logprob": math.log(0.8)},
                {"token": "M", "logprob": math.log(0.2)},
            ]
        },
    ]
    found = read_reply(
        evaluator_profile("weighted_alpaca_eval_cot_gpt4_turbo"),
        reply("M so m", logprobs={"content": tokens}),
    )
    assert found.value == pytest.approx(0.2)


def test_what_is_no_chat_evaluator_is_refused():
    with pytest.raises(InputError, match="did you mean 'alpaca_eval_gpt4'"):
        evaluator_profile("alpaca_eval_gtp4")
    with pytest.raises(InputError, match="one pair at a time"):
        evaluator_profile("claude")
    with pytest.raises(InputError, match="for 5 pairs at once"):
        evaluator_profile("alpaca_farm_greedy_gpt4")


def test_identity_names_the_evaluator():
    first, second = (evaluator_profile(name) for name in ("chatgpt", "alpaca_eval_gpt4"))
    assert json.dumps(first.model_dump(mode="json")) != json.dumps(second.model_dump(mode="json"))
