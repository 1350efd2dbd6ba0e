"""What replies say: every shape of them, and equal to alpaca_eval where it reads them too."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_eval.judges.profiles import load_profile, packaged_profiles
from lora_eval.judges.replies import read_reply
from tests.judges.conftest import real

PROFILES = {
    name: load_profile(name, model="m", base_url="http://127.0.0.1:1/v1") for name in packaged_profiles()
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "message",
                    "content",
                    "logprobs",
                    "top_logprobs",
                    "token",
                    "logprob",
                    "tool_calls",
                    "usage",
                    "function",
                    "arguments",
                    "model",
                    "finish_reason",
                    "prompt_tokens",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def reply(content=None, top=None, **message):
    logprobs = (
        None if top is None else {"content": [{"top_logprobs": [{"token": t, "logprob": p} for t, p in top]}]}
    )
    choice = {"message": {"content": content, **message}, "logprobs": logprobs, "finish_reason": "stop"}
    return {"choices": [choice], "model": "m-2", "usage": {"prompt_tokens": 5, "completion_tokens": 2}}


@pytest.mark.parametrize("name", PROFILES)
@given(
    body=st.one_of(
        JSON,
        JSON.map(lambda value: {"choices": [value]}),
        JSON.map(lambda value: {"choices": [{"message": {"content": value}, "logprobs": value}]}),
        JSON.map(lambda value: {"choices": [{"logprobs": {"content": [{"top_logprobs": value}]}}]}),
    )
)
def test_no_reply_raises(name, body):
    found = read_reply(PROFILES[name], body)
    assert (found.value is None) == (found.reason is not None)
    if found.value is not None and PROFILES[name].mode == "pair":
        assert 0.0 <= found.value <= 1.0


@pytest.mark.parametrize(
    ("name", "body", "value"),
    [
        ("openai-text", reply("so [[B]]"), 1.0),
        ("openai-text", reply("[[A]] it is not, [[C]]"), 0.5),
        ("mtbench-single", reply("Rating: [[7.5]]"), 7.5),
        ("arena-hard-5", reply("[[B>A]]"), 0.75),
        ("prometheus2", reply("Feedback: ... [RESULT] B"), 1.0),
        ("prometheus2", reply("[RESULT] (A)"), 0.0),
        ("llama.cpp", reply(" C\n"), 0.5),
        ("vllm-choice", reply("B"), 1.0),
        ("vllm-choice", reply("B", [("B", math.log(0.75)), ("A", math.log(0.25))]), 0.75),
        ("openai-tool", reply(tool_calls=[{"function": {"arguments": '{"verdict": "B"}'}}]), 1.0),
        ("openai-tool", reply(tool_calls=[{"function": {"arguments": '{"verdict": "D"}'}}]), None),
        ("openai-tool", reply(tool_calls=[{"function": {"arguments": "[1]"}}]), None),
        ("alpaca-logprob", reply("m", [("M", math.log(0.2)), ("m", math.log(0.6)), ("x", -9)]), 0.25),
        ("alpaca-logprob", reply("m", [(" m", math.log(0.6)), (" M", math.log(0.2))]), 0.25),
        ("alpaca-logprob", reply("m", [("m", -0.1), ("The", -3.0)]), 0.0),
        ("alpaca-logprob", reply("m", [("m", 0.0)]), None),
        ("alpaca-logprob", reply("I", [("I", -0.1), ("The", -3.0)]), None),
    ],
)
def test_verdicts(name, body, value):
    assert read_reply(PROFILES[name], body).value == (None if value is None else pytest.approx(value))


def test_what_is_kept_of_a_reply():
    found = read_reply(PROFILES["openai-text"], reply("[[A]]") | {"system_fingerprint": "fp"})
    assert (found.model, found.system_fingerprint, found.input_tokens, found.output_tokens) == (
        "m-2",
        "fp",
        5,
        2,
    )
    assert read_reply(PROFILES["openai-text"], {"usage": {"prompt_tokens": -1}}).input_tokens is None


@given(
    st.lists(
        st.tuples(st.sampled_from(["m", "M", "The", "x"]), st.floats(-20, -0.01)),
        min_size=2,
        max_size=6,
        unique_by=lambda pair: pair[0],
    )
)
def test_log_probabilities_are_read_as_alpaca_eval_reads_them(top):
    pytest.importorskip("sklearn")
    from lora_eval.judges import alpaca

    with alpaca._contained():
        from alpaca_eval.completion_parsers import logprob_parser
    body = reply("m", top)
    (expected,) = logprob_parser(body["choices"][0], "m", ["m", "M"], is_binarize=False)
    found = read_reply(PROFILES["alpaca-logprob"], body).value
    assert (found is None) == math.isnan(expected)
    if found is not None:
        assert 1.0 + found == pytest.approx(expected, abs=1e-12)


def test_stored_completions_give_the_stored_preferences():
    """805 real replies of GPT-4 turbo; a draw of equal answers was never asked."""
    import gzip

    path = real("nc/alpaca_eval/results/claude-2.1/weighted_alpaca_eval_gpt4_turbo/annotations.json.gz")
    rows = json.loads(gzip.decompress(path.read_bytes()))
    checked = 0
    for row in rows:
        if not row.get("raw_completion"):
            continue
        found = read_reply(PROFILES["alpaca-logprob"], {"choices": [row["raw_completion"]]}).value
        # The file does not say which answer was shown first.
        assert found is not None
        assert min(abs(1 + found - row["preference"]), abs(2 - found - row["preference"])) < 1e-9
        checked += 1
    assert checked > 700
