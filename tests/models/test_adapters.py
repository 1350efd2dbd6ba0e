"""An adapter is checked against its base before anything is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lora_eval.errors import ModelError
from lora_eval.fingerprint import fingerprint_folder
from lora_eval.models import check_adapter, needs_own_base, read_lineage, write_lineage
from lora_eval.records import Lineage, Variant
from tests.conftest import save_tiny_adapter, save_tiny_llama


def _with_config(adapter: Path, folder: Path, **changes: object) -> Path:
    shutil.copytree(adapter, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")
    return folder


def test_its_own_base_fits(tiny_llama: Path, tiny_adapter: Path) -> None:
    check_adapter(tiny_adapter, tiny_llama)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")  # peft, while saving
@pytest.mark.parametrize(
    "config",
    [
        {"modules_to_save": ["lm_head"], "ensure_weight_tying": True},
        {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True},
        {"use_dora": True},
        {"target_modules": ["embed_tokens"], "use_dora": True, "ensure_weight_tying": True},
        {"trainable_token_indices": [3, 5]},
    ],
)
def test_every_part_of_an_adapter_fits_its_base_and_no_other(
    tiny_llama: Path, tmp_path: Path, config: dict
) -> None:
    save_tiny_adapter(tiny_llama, tmp_path / "adapter", **config)
    check_adapter(tmp_path / "adapter", tiny_llama)
    save_tiny_llama(tmp_path / "wide", hidden_size=128, vocab_size=384)
    with pytest.raises(ModelError, match="made for another base") as caught:
        check_adapter(tmp_path / "adapter", tmp_path / "wide")
    assert "64" in str(caught.value)
    assert "128" in str(caught.value)


def test_an_adapter_with_another_vocabulary_needs_a_base_of_its_own(tiny_llama: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    grown = AutoModelForCausalLM.from_pretrained(tiny_llama)
    grown.resize_token_embeddings(330, mean_resizing=False)
    grown.save_pretrained(tmp_path / "grown")
    save_tiny_adapter(tmp_path / "grown", tmp_path / "adapter", trainable_token_indices=[325])
    options = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    save_tiny_adapter(tmp_path / "grown", tmp_path / "whole", **options)
    check_adapter(tmp_path / "adapter", tmp_path / "grown")
    check_adapter(tmp_path / "whole", tiny_llama)
    assert needs_own_base(tmp_path / "whole", tiny_llama)
    assert not needs_own_base(tmp_path / "whole", tmp_path / "grown")
    save_tiny_llama(tmp_path / "wide", hidden_size=128, vocab_size=384)
    with pytest.raises(
        ModelError, match=r"embed_tokens.weight: has shape \[330, 64\], the base's .* \[384, 128\]"
    ):
        check_adapter(tmp_path / "whole", tmp_path / "wide")


def test_a_target_that_the_base_lacks(tiny_adapter: Path, tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "shallow", num_hidden_layers=1)
    with pytest.raises(ModelError, match=r"the base has no module model\.layers\.1") as caught:
        check_adapter(tiny_adapter, tmp_path / "shallow")
    assert "and 9 more" in str(caught.value)  # 14 tensors of the second layer, five shown


@pytest.mark.parametrize(
    ("initial", "why"),
    [
        ("pissa_niter_4", "loaded again it is another one"),
        ("corda", "without the data"),
        ("loftq", "quantizes the base anew"),
        ("lora_ga", "onto the unchanged base"),
    ],
)
def test_adapters_whose_change_of_the_base_is_lost_are_refused(
    initial: str, why: str, tiny_llama: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    adapter = _with_config(tiny_adapter, tmp_path / "a", init_lora_weights=initial)
    assert not needs_own_base(adapter, tiny_llama)
    with pytest.raises(ModelError, match="changes the base's own weights") as caught:
        check_adapter(adapter, tiny_llama)
    assert why in str(caught.value)


@pytest.mark.parametrize("initial", ["pissa", "PiSSA", "olora"])
def test_adapters_whose_change_is_repeated_need_a_base_of_their_own(
    initial: str, tiny_llama: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    adapter = _with_config(tiny_adapter, tmp_path / "a", init_lora_weights=initial)
    check_adapter(adapter, tiny_llama)
    assert needs_own_base(adapter, tiny_llama)
    assert not needs_own_base(tiny_adapter, tiny_llama)


@pytest.mark.parametrize("initial", [True, "gaussian", "eva", "orthogonal"])
def test_other_initialisations_are_taken(
    initial: object, tiny_llama: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    check_adapter(_with_config(tiny_adapter, tmp_path / "a", init_lora_weights=initial), tiny_llama)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
    ],
)
def test_other_kinds_are_refused(
    changes: dict, says: str, tiny_llama: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=says):
        check_adapter(_with_config(tiny_adapter, tmp_path / "a", **changes), tiny_llama)


def test_a_cut_off_weights_file(tiny_llama: Path, tiny_adapter: Path, tmp_path: Path) -> None:
    adapter = shutil.copytree(tiny_adapter, tmp_path / "a")
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        check_adapter(adapter, tiny_llama)


def test_equal_shapes_with_another_name_pass_and_another_fingerprint_does_not(
    tiny_llama: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    twin = tmp_path / "twin"
    save_tiny_llama(twin, seed=7)
    check_adapter(tiny_adapter, twin)  # nothing says that it was another base

    adapter = shutil.copytree(tiny_adapter, tmp_path / "a")
    base = Variant(kind="base", path=str(tiny_llama), fingerprint=fingerprint_folder(tiny_llama))
    lineage = Lineage(variants=(base, Variant(kind="adapter", path="a")), base_model="tiny-one")
    write_lineage(adapter, lineage)
    assert read_lineage(adapter) == lineage
    check_adapter(adapter, tiny_llama)
    with pytest.raises(ModelError, match="was trained on 'tiny-one'"):
        check_adapter(adapter, twin)


def test_no_lineage_is_none(tiny_adapter: Path) -> None:
    assert read_lineage(tiny_adapter) is None
