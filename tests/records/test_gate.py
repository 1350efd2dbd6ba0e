"""The gate's file: every fault at once with its place, and nothing but faults in words, whatever it holds."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_eval.errors import RecordError
from lora_eval.records import Gate, GateRule
from lora_eval.records.gate import CONDITIONS
from lora_eval.schema import dump_record, dump_yaml, parse_record, parse_yaml

names = st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), min_size=1, max_size=12)
shares = st.floats(0, 1)
conditions = st.one_of(
    st.floats(-10, 10).map(lambda x: {"min_gain": x}),
    st.floats(0, 10).map(lambda x: {"max_drop": x}),
    st.floats(0.01, 10).map(lambda x: {"max_perplexity_ratio": x}),
)
others = st.fixed_dictionaries(
    {"task": names},
    optional={"metric": names, "arm": names, "min_n": st.integers(1, 10**6), "max_invalid": shares},
)
rules = st.builds(lambda other, condition: other | condition, others, conditions)
gates = st.fixed_dictionaries(
    {"rules": st.lists(rules, min_size=1, max_size=4)},
    optional={"schema": st.just(1), "level": st.floats(0.51, 0.999)},
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
quiet = settings(deadline=None, max_examples=100, derandomize=True)


@quiet
@given(gates)
def test_a_good_file_comes_back_as_it_was(data):
    gate = parse_record(parse_yaml(dump_yaml(data), "gate.yaml"), Gate, "gate.yaml")
    assert parse_record(json.loads(dump_record(gate)), Gate, "stored") == gate
    for rule, given_rule in zip(gate.rules, data["rules"], strict=True):
        (name,) = set(given_rule) & set(CONDITIONS)
        assert (rule.condition, rule.limit) == (name, given_rule[name])


@quiet
@given(gates, st.data())
def test_each_fault_is_told_beside_the_others(data, draw):
    """Two rules broken in their own ways give the problems of both, each with its place."""
    extra = {"task": "x", "min_gain": 0.1, draw.draw(st.sampled_from(["min_gian", "max_dorp", "tsak"])): 1}
    none = {"task": "x", "min_n": 0}
    broken = data | {"rules": [*data["rules"], extra, none]}
    first = len(data["rules"])
    with pytest.raises(RecordError) as caught:
        parse_record(broken, Gate, "gate.yaml")
    places = [f"rules[{first}].", f"rules[{first + 1}].min_n", f"rules[{first + 1}]: exactly one of"]
    assert len(caught.value.problems) == 3
    for place in places:
        assert any(place in problem for problem in caught.value.problems)
    assert any("did you mean" in problem for problem in caught.value.problems)


@quiet
@given(anything)
def test_whatever_stands_in_it_is_a_gate_or_bad_input(data):
    try:
        parse_record(data, Gate, "gate.yaml")
    except RecordError as error:
        assert error.problems


@pytest.mark.parametrize("value", [math.nan, math.inf, "much"])
@pytest.mark.parametrize("name", CONDITIONS)
def test_a_threshold_is_a_number(name, value):
    with pytest.raises(RecordError, match=name):
        parse_record({"rules": [{"task": "x", name: value}]}, Gate, "gate.yaml")


def test_two_conditions_are_one_too_many_in_python_too():
    with pytest.raises(ValueError, match="Exactly one of"):
        GateRule(task="x", min_gain=0.1, max_drop=0.1)
