"""A recipe that names its server is refused before the training where that server would not serve it."""

from __future__ import annotations

import pytest

from lora_eval.errors import PluginError, RecordError
from lora_eval.recipes import load_recipe
from lora_eval.servers.inputs import Adapter
from lora_eval.train.target import _save_empty, check_target


@pytest.fixture
def recipe(tiny_recipe):
    """`recipe("lora.use_dora=true")` is the tiny recipe with overrides."""
    return lambda *overrides: load_recipe(str(tiny_recipe), overrides).recipe


def test_what_the_server_serves_may_be_trained(recipe, tiny_llama) -> None:
    for server in ("vllm", "sglang", "tgi", "lorax"):
        check_target(recipe(f"target_server={server}"), tiny_llama)


@pytest.mark.parametrize(
    ("server", "options", "rules"),
    [
        ("vllm", ["lora.use_dora=true"], ["dora"]),
        ("vllm", ["lora.r=600", "lora.use_dora=true"], ["dora", "rank"]),
        ("vllm", ["lora.modules_to_save=[lm_head]", "model.dtype=float32"], ["modules-to-save"]),
        ("sglang", ["lora.use_rslora=true"], ["rslora"]),
        ("tgi", ["lora.rank_pattern={q_proj: 8}"], ["patterns"]),
        ("tgi", ["lora.target_modules=[embed_tokens, q_proj]"], ["target-modules"]),
        ("lorax", ["lora.layers_to_transform=[1]", "lora.target_modules=[q_proj]"], ["partial-layers"]),
    ],
)
def test_what_it_does_not_serve_is_not_trained(server, options, rules, recipe, tiny_llama) -> None:
    with pytest.raises(RecordError) as caught:
        check_target(recipe(f"target_server={server}", *options), tiny_llama)

    *problems, last = caught.value.problems
    assert [problem.split(": ")[2] for problem in problems] == rules
    assert all(problem.startswith(f"target_server: {server} ") for problem in problems)
    assert last.startswith("target_server: change the options above")


def test_nothing_is_asked_where_no_server_is_named(recipe, tiny_llama) -> None:
    check_target(recipe("lora.use_dora=true"), tiny_llama)


def test_an_unknown_server(recipe, tiny_llama) -> None:
    with pytest.raises(PluginError, match="Did you mean 'vllm'"):
        check_target(recipe("target_server=vlm"), tiny_llama)


def test_the_planned_adapter_is_the_trained_one(recipe, tiny_llama, finished, tmp_path) -> None:
    _save_empty(recipe(), tiny_llama, tmp_path / "planned")

    planned, trained = Adapter("planned", tmp_path / "planned"), Adapter("trained", finished.out)
    assert {name: tensor.shape for name, tensor in planned.tensors.items()} == {
        name: tensor.shape for name, tensor in trained.tensors.items()
    }


def test_targets_that_the_base_has_not(recipe, tiny_llama) -> None:
    with pytest.raises(RecordError, match=r"lora: Target modules .*c_attn"):
        check_target(recipe("target_server=vllm", "lora.target_modules=[c_attn]"), tiny_llama)


def test_training_stops_before_it_starts(run_training, tmp_path) -> None:
    with pytest.raises(RecordError, match="vLLM does not load DoRA"):
        run_training(tmp_path / "out", "target_server=vllm", "lora.use_dora=true")
    assert not (tmp_path / "out").exists()
