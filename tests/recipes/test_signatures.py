"""Sections are compared with the installed LoraConfig, BitsAndBytesConfig and SFTConfig."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from lora_eval.errors import RecordError
from lora_eval.recipes import load_recipe
from lora_eval.recipes.signatures import RESERVED, describe, fits, section_fields, section_problems


def test_a_misspelt_key_of_a_file(tmp_path: Any) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("schema: 1\nname: m\nlora: {lora_alfa: 16}\nlearning_rate: 1.0\n")
    with pytest.raises(RecordError) as caught:
        load_recipe(str(path))
    assert str(caught.value).splitlines() == [
        f"{path}: unknown key 'learning_rate'; did you mean 'training.learning_rate'?",
        f"{path}: unknown key 'lora.lora_alfa'; did you mean 'lora_alpha'?",
    ]


@pytest.mark.parametrize(
    ("section", "values", "problem"),
    [
        ("lora", {"r": "16"}, "lora.r: expected a whole number, got '16'"),
        ("lora", {"r": True}, "lora.r: expected a whole number, got True"),
        ("lora", {"r": 0}, "lora.r: expected a value at least 1, got 0"),
        ("lora", {"lora_dropout": 1}, "lora.lora_dropout: expected a value at least 0 and below 1, got 1"),
        ("lora", {"bias": "some"}, "lora.bias: expected 'none' or 'all' or 'lora_only', got 'some'"),
        ("lora", {"target_modules": 3}, "lora.target_modules: expected a list or text or null, got 3"),
        ("lora", {"target_modules": [1]}, "lora.target_modules: expected a list or text or null, got [1]"),
        (
            "lora",
            {"task_type": "CAUSAL_LM"},
            "'lora.task_type' cannot be set in a recipe: it is always CAUSAL_LM",
        ),
        (
            "quantization",
            {"load_in_4bits": True},
            "unknown key 'quantization.load_in_4bits'; did you mean 'load_in_4bit'?",
        ),
        (
            "quantization",
            {"bnb_4bit_quant_type": "nf5"},
            "quantization.bnb_4bit_quant_type: expected 'nf4' or 'fp4', got 'nf5'",
        ),
        (
            "quantization",
            {"bnb_4bit_compute_dtype": "bf16"},
            "expected 'float16' or 'bfloat16' or 'float32' or null, got 'bf16'",
        ),
        (
            "quantization",
            {"llm_int8_threshold": "6"},
            "quantization.llm_int8_threshold: expected a number, got '6'",
        ),
        (
            "training",
            {"lerning_rate": 1},
            "unknown key 'training.lerning_rate'; did you mean 'learning_rate'?",
        ),
        ("training", {"learning_rate": "1e-4"}, "training.learning_rate: expected a number, got '1e-4'"),
        ("training", {"learning_rate": -1.0}, "training.learning_rate: expected a value above 0, got -1.0"),
        ("training", {"bf16": "yes"}, "training.bf16: expected true or false or null, got 'yes'"),
        ("training", {"warmup_ratio": 0.1}, "unknown key 'training.warmup_ratio'"),
        (
            "training",
            {"output_dir": "x"},
            "'training.output_dir' cannot be set in a recipe: it is given with --out",
        ),
        ("model", {"torch_dtype": "auto"}, "unknown key 'model.torch_dtype'; did you mean 'dtype'?"),
    ],
)
def test_each_kind_of_fault(section: str, values: dict[str, Any], problem: str) -> None:
    (found,) = section_problems(section, values)
    assert problem in found


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("lora", {"r": 8, "lora_dropout": 0, "target_modules": ["q_proj"], "rank_pattern": {"q_proj": 4}}),
        ("lora", {"init_lora_weights": "pissa_niter_16", "layer_replication": [[0, 4], [2, 5]]}),
        ("lora", {"init_lora_weights": False, "modules_to_save": None, "exclude_modules": "lm_head"}),
        (
            "quantization",
            {"load_in_8bit": True, "llm_int8_skip_modules": ["lm_head"], "llm_int8_threshold": 6},
        ),
        ("training", {"learning_rate": 1, "optim": "sgd", "max_length": None, "report_to": ["none"]}),
        (
            "training",
            {"eval_strategy": "steps", "lr_scheduler_kwargs": {"num_cycles": 1}, "warmup_steps": 0.03},
        ),
        ("model", {"dtype": "auto", "attn_implementation": "eager", "revision": None}),
    ],
)
def test_what_the_libraries_take_passes(section: str, values: dict[str, Any]) -> None:
    assert section_problems(section, values) == []


def test_sections_have_the_libraries_own_fields_without_the_reserved_ones() -> None:
    from dataclasses import fields

    from peft import LoraConfig
    from trl import SFTConfig

    reserved = {name.split(".")[1] for name in RESERVED}
    assert set(section_fields("lora")) == {field.name for field in fields(LoraConfig)} - reserved
    assert set(section_fields("training")) == {field.name for field in fields(SFTConfig)} - reserved
    assert "bnb_4bit_quant_type" in section_fields("quantization")
    # A reserved name that a library no longer has would be a rule about nothing.
    known = {f"lora.{field.name}" for field in fields(LoraConfig)}
    known |= {f"training.{field.name}" for field in fields(SFTConfig)}
    assert set(RESERVED) <= known


@pytest.mark.parametrize(
    ("value", "annotation", "fitting"),
    [
        (1, float, True),
        (True, float, False),
        (1.5, int, False),
        (None, int | None, True),
        ({"a": 1}, dict[str, int] | None, True),
        ([1, 2], list[int], True),
        ([1, "2"], list[int], False),
        ([[1, 2]], list[tuple[int, int]], True),
        ([[1, 2, 3]], list[tuple[int, int]], False),
        ([1, 2, 3], tuple[int, ...], True),
        ("b", Literal["a", "b"], True),
        (1, Literal[True], False),
        ("anything", Any, True),
        (None, Any, True),
    ],
)
def test_what_fits_an_annotation(value: Any, annotation: Any, fitting: bool) -> None:
    assert fits(value, annotation) is fitting


def test_annotations_in_words() -> None:
    assert describe(list[str] | str | None) == "a list or text or null"
    assert describe(str | None | list[str]) == "a list or text or null"
    assert describe(dict[str, int] | bool) == "a mapping or true or false"
    assert describe(Literal["a", 1]) == "'a' or 1"
