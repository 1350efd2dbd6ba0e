"""Several adapters become one by PEFT's arithmetic, and the merge of them is the merge of that one."""

from __future__ import annotations

import json
import shutil
import warnings

import pytest

from lora_eval.errors import InputError, ModelError
from lora_eval.export import export
from lora_eval.exporters.combine import FOLDER, Combination, combine, read_combination
from lora_eval.exporters.lora import Adapter
from lora_eval.models import read_lineage
from lora_eval.models.quiet import without_gptqmodel
from tests.conftest import save_tiny_adapter, save_tiny_llama


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A float32 base `base` and adapters `a` and `b` with other weights, targets and factors."""
    folder = tmp_path_factory.mktemp("two")
    save_tiny_llama(folder / "base", num_hidden_layers=1)
    with without_gptqmodel():
        save_tiny_adapter(folder / "base", folder / "a", target_modules=["q_proj", "up_proj"], lora_alpha=16)
        save_tiny_adapter(folder / "base", folder / "b", seed=2, target_modules=["q_proj", "o_proj"])
    return folder


def weighted_by_peft(folder, combination):
    """Return what PEFT's `add_weighted_adapter` and merge make of `a` and `b`."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with without_gptqmodel(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(folder / "base")
        peft = PeftModel.from_pretrained(model, folder / "a", adapter_name="a")
        peft.load_adapter(folder / "b", "b")
        options = {} if combination.density is None else {"density": combination.density}
        peft.add_weighted_adapter(
            ["a", "b"], list(combination.weights), "both", combination_type=combination.method, **options
        )
        peft.set_adapter("both")
        with torch.no_grad():
            return peft.merge_and_unload().state_dict()


@pytest.mark.parametrize(
    ("method", "density"), [("linear", None), ("cat", None), ("ties", 0.5), ("magnitude_prune", 0.25)]
)
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, -0.3)])
def test_the_merge_is_that_of_pefts_weighted_adapter(two, tmp_path, method, density, weights):
    import torch
    from transformers import AutoModelForCausalLM

    options = {"others": [two / "b"], "weights": list(weights), "combine": method, "density": density}
    export("merge", base=two / "base", adapter=two / "a", out=tmp_path / "out", options=options)
    expected = weighted_by_peft(two, Combination(method, weights, density))
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert not [name for name in expected if not torch.equal(found[name], expected[name])]
    # The combined adapter is an adapter like any other: it can be measured, and merged, on its own.
    export("merge", base=two / "base", adapter=tmp_path / "out" / FOLDER, out=tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again").state_dict()
    assert not [name for name in expected if not torch.equal(again[name], expected[name])]


def test_dare_draws_by_its_seed_and_keeps_the_expected_change(two, tmp_path):
    import torch
    from peft.utils.merge_utils import dare_linear

    def layer(seed, density=0.5):
        folder = tmp_path / f"{seed}-{density}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        found = combine(
            [Adapter(two / "a"), Adapter(two / "b")],
            Combination("dare_linear", (1.0, 1.0), density, seed),
            folder,
        )
        return found.tensor("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight")

    assert torch.equal(layer(0), layer(0))
    assert not torch.equal(layer(0), layer(1))
    given = [
        adapter.tensor("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight")
        for adapter in (Adapter(two / "a"), Adapter(two / "b"))
    ]
    factors = torch.tensor([(16 / 4) ** 0.5, (8 / 4) ** 0.5])
    draws = torch.stack([layer(seed) for seed in range(200)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = dare_linear(given, factors, 1.0)
    # Each value is kept with probability 1/2 and doubled; the mean of 200 draws is within 5 standard errors.
    spread = (draws.std(dim=0) / 200**0.5).clamp(min=1e-6)
    assert ((draws.mean(dim=0) - whole).abs() / spread).max() < 5


def test_the_lineage_names_every_adapter(two, tmp_path):
    options = {"others": [two / "b"], "weights": [0.5, 0.5]}
    lineage = export("merge", base=two / "base", adapter=two / "a", out=tmp_path / "out", options=options)
    assert [variant.kind for variant in lineage.variants] == [
        "base",
        "adapter",
        "adapter",
        "adapter",
        "merged",
    ]
    assert lineage.variants[-1].parent == lineage.variants[-2].fingerprint
    assert lineage.steps[-2].arguments["combine"]["weights"] == [0.5, 0.5]
    assert read_lineage(tmp_path / "out" / FOLDER).variants[-1].path == FOLDER


def test_rslora_is_not_scaled_twice(two, tmp_path):
    with without_gptqmodel():
        save_tiny_adapter(two / "base", tmp_path / "rs", use_rslora=True, target_modules=["q_proj"])
    found = combine(
        [Adapter(tmp_path / "rs"), Adapter(tmp_path / "rs")],
        Combination("cat", (0.5, 0.5)),
        _new(tmp_path / "x"),
    )
    import torch

    one = Adapter(tmp_path / "rs")
    name = "model.layers.0.self_attn.q_proj"
    deltas = [
        adapter.edits[name].lora.scaling
        * (adapter.tensor(adapter.edits[name].lora.b) @ adapter.tensor(adapter.edits[name].lora.a))
        for adapter in (one, found)
    ]
    assert torch.allclose(*deltas, atol=1e-6)


def _new(folder):
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("options", "count", "said"),
    [
        ({"combine": "svd"}, 2, "use cat"),
        ({"combine": "average"}, 2, "expected one of linear"),
        ({"weights": [1.0]}, 2, "1 times --weight for 2 adapters"),
        ({"weights": [1.0]}, 1, "for several adapters"),
        ({"combine": "ties"}, 2, "needs --density"),
        ({"combine": "linear", "density": 0.5}, 2, "leave out --density"),
        ({"combine": "ties", "density": 0.0}, 2, "above 0"),
        ({"weights": [1.0, float("nan")]}, 2, "1.0 nan: expected finite numbers"),
    ],
)
def test_options_that_do_not_fit_together(options, count, said):
    with pytest.raises(InputError, match=said):
        read_combination(options, count)


@pytest.mark.parametrize(
    ("options", "method", "said"),
    [
        ({"use_dora": True}, "linear", "is DoRA"),
        ({"modules_to_save": ["lm_head"]}, "cat", "whole weights"),
        ({"r": 8}, "linear", "has ranks 4, 8 .*--combine cat"),
        ({"init_lora_weights": "olora"}, "cat", "changed its own base"),
        ({"lora_bias": True}, "cat", "has biases"),
    ],
)
def test_adapters_that_have_no_sum(two, tmp_path, options, method, said):
    with without_gptqmodel(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_tiny_adapter(two / "base", tmp_path / "other", target_modules=["q_proj"], **options)
    with pytest.raises(ModelError, match=said):
        export("merge", base=two / "base", adapter=two / "a", out=tmp_path / "out",
               options={"others": [tmp_path / "other"], "combine": method})  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_adapters_of_different_trainings_are_refused(qlora, tmp_path):
    from lora_eval.models import write_lineage

    shutil.copytree(qlora / "adapter", tmp_path / "other")
    lineage = read_lineage(tmp_path / "other")
    write_lineage(tmp_path / "other", lineage.model_copy(update={"quantization": None}))
    with pytest.raises(ModelError, match="different quantization"):
        export("merge", base=qlora / "base", adapter=qlora / "adapter", out=tmp_path / "out",
               options={"others": [tmp_path / "other"]})  # fmt: skip


@pytest.mark.parametrize("first", ["known", "unknown"])
def test_an_adapter_of_unknown_training_beside_a_quantized_one(qlora, tmp_path, first):
    """Taken for one trained on 16 bits it would merge both into the original base, without a word."""
    unknown = tmp_path / "unknown"
    shutil.copytree(qlora / "adapter", unknown, ignore=shutil.ignore_patterns("lineage.json"))
    one, other = (qlora / "adapter", unknown) if first == "known" else (unknown, qlora / "adapter")

    def merged(**options):
        out = tmp_path / "-".join(["out", *options.values()])
        export("merge", base=qlora / "base", adapter=one, out=out, options={"others": [other], **options})
        return json.loads((out / "audit.json").read_text())["onto"]

    with pytest.raises(ModelError, match=rf"{unknown}: no lineage.json .* say with --quantize"):
        merged()
    assert merged(quantize="nf4") == "trained"
    assert merged(onto="original") == "original"


@pytest.mark.parametrize(
    ("method", "density"), [("linear", None), ("cat", None), ("ties", 0.5), ("magnitude_prune", 0.25)]
)
def test_embeddings_are_combined_too(two, tmp_path, method, density):
    import torch
    from transformers import AutoModelForCausalLM

    save_tiny_llama(tmp_path / "base", num_hidden_layers=1, tie_word_embeddings=False)
    with without_gptqmodel(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed, name in enumerate("ab"):
            targets = ["embed_tokens", "q_proj"]
            save_tiny_adapter(tmp_path / "base", tmp_path / name, seed=seed, target_modules=targets)
    options = {"others": [tmp_path / "b"], "weights": [0.7, 0.2], "combine": method, "density": density}
    export("merge", base=tmp_path / "base", adapter=tmp_path / "a", out=tmp_path / "out", options=options)
    expected = weighted_by_peft(tmp_path, Combination(method, (0.7, 0.2), density))
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert not [name for name in expected if not torch.equal(found[name], expected[name])]


def test_dare_draws_anew_for_each_layer(two, tmp_path):
    found = combine(
        [Adapter(two / "a")] * 2, Combination("dare_linear", (1.0, 1.0), 0.5), _new(tmp_path / "out")
    )
    one, other = (
        found.tensor(f"base_model.model.model.layers.0.{name}.lora_A.weight") == 0
        for name in ("self_attn.q_proj", "mlp.up_proj")
    )
    assert one.shape == other.shape
    assert (one != other).any()


def test_the_combined_adapter_has_the_tokenizer_and_settings_of_the_first(two, tmp_path):
    from transformers import GenerationConfig

    from tests.conftest import save_tiny_tokenizer

    first = shutil.copytree(two / "a", tmp_path / "a")
    save_tiny_tokenizer(first)
    GenerationConfig(eos_token_id=[257, 10]).save_pretrained(first)
    options = {"others": [two / "b"], "onto": "original"}
    export("merge", base=two / "base", adapter=first, out=tmp_path / "out", options=options)
    for folder in (tmp_path / "out" / FOLDER, tmp_path / "out"):
        assert GenerationConfig.from_pretrained(folder).eos_token_id == [257, 10]
        assert (folder / "tokenizer.json").is_file()


def test_parameters_and_bases_of_their_own_have_no_sum(qlora, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    from lora_eval.models import write_lineage

    other = shutil.copytree(qlora / "adapter", tmp_path / "other")
    path = other / "adapter_model.safetensors"
    save_file(load_file(path) | {"base_model.model.model.some.bias": torch.zeros(3)}, path)
    lineage = read_lineage(other)
    base, *rest = lineage.variants
    base = base.model_copy(update={"fingerprint": "sha256:" + "0" * 64})
    write_lineage(other, lineage.model_copy(update={"variants": (base, *rest)}))
    with pytest.raises(ModelError) as caught:
        export("merge", base=qlora / "base", adapter=qlora / "adapter", out=tmp_path / "out",
               options={"others": [other]})  # fmt: skip
    assert "holds whole weights (model.some.bias), which have no sum" in str(caught.value)
    assert "were trained on 2 different bases" in str(caught.value)
