"""An adapter as plain LoRA: the same logits on the unchanged base, in a form that every server takes."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_eval.errors import InputError, ModelError
from lora_eval.export import export
from lora_eval.models import open_adapter, open_resident, read_lineage
from lora_eval.models.locate import read_adapter_config
from tests.conftest import save_tiny_adapter, save_tiny_llama
from tests.exporters.conftest import save_qlora

# Options of LoraConfig, and the rank of the plain LoRA.
KINDS = {
    "pissa": ({"init_lora_weights": "pissa"}, 8),
    "olora": ({"init_lora_weights": "olora"}, 8),
    "olora-rslora": ({"init_lora_weights": "olora", "use_rslora": True, "r": 3}, 6),
    "rslora": ({"use_rslora": True}, 4),
    "ranks": ({"rank_pattern": {"q_proj": 8, "down_proj": 2}}, 8),
    "alphas": ({"alpha_pattern": {"q_proj": 3, "up_proj": 32}}, 4),
    "both": (
        {"rank_pattern": {"v_proj": 6}, "alpha_pattern": {"k_proj": 7}, "use_rslora": True},
        6,
    ),
    "regex": ({"target_modules": r".*layers\.1\..*(q|up)_proj"}, 4),
    "plain": ({}, 4),
    "embedding": ({"target_modules": ["embed_tokens", "q_proj"], "alpha_pattern": {"q_proj": 3}}, 4),
}


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untied") / "base"
    save_tiny_llama(folder, tie_word_embeddings=False)
    return folder


def logits(base: Path, adapter: Path | None):
    """Of the base with its adapter (None: without)."""
    import torch

    from lora_eval.models import needs_own_base

    if adapter is None:
        resident = open_resident(base, {}, base_name="arm")
    elif needs_own_base(adapter, base):
        resident = open_adapter(base, adapter, name="arm")
    else:
        resident = open_resident(base, {"arm": adapter})
    with resident.activate("arm") as model, torch.inference_mode():
        return model(torch.arange(64).view(1, -1)).logits.double()


@pytest.mark.parametrize("kind", KINDS)
def test_the_plain_adapter_gives_the_same_logits(kind: str, untied: Path, tmp_path: Path) -> None:
    config, rank = KINDS[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own, on embeddings
        save_tiny_adapter(untied, tmp_path / "adapter", **config)

    export("lora", base=untied, adapter=tmp_path / "adapter", out=tmp_path / "plain")

    found = read_adapter_config(tmp_path / "plain")
    assert (found["r"], found["rank_pattern"], found["alpha_pattern"]) == (rank, {}, {})
    assert (found["use_rslora"], found["init_lora_weights"]) == (False, True)
    assert isinstance(found["target_modules"], list)
    own, plain = logits(untied, tmp_path / "adapter"), logits(untied, tmp_path / "plain")
    assert (own - plain).abs().max() < 2e-4  # float32 sums in another order; OLoRA's beginning is large
    assert (own - logits(untied, None)).abs().max() > 0.05


def test_an_adapter_that_is_plain_keeps_its_values(untied: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    save_tiny_adapter(untied, tmp_path / "adapter", r=4, lora_alpha=6)

    export("lora", base=untied, adapter=tmp_path / "adapter", out=tmp_path / "plain", options={"rank": 16})

    config = read_adapter_config(tmp_path / "plain")
    assert (config["r"], config["lora_alpha"]) == (16, 24)
    before = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    after = load_file(tmp_path / "plain" / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        kept = after[name][:4] if "lora_A" in name else after[name][:, :4]
        assert (kept == tensor).all()
        assert after[name].count_nonzero() == tensor.count_nonzero()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    r=st.integers(1, 6), alpha=st.integers(1, 40), rslora=st.booleans(),
    pattern=st.dictionaries(st.sampled_from(["q_proj", "up_proj", "down_proj"]), st.integers(1, 9)),
    alphas=st.dictionaries(st.sampled_from(["v_proj", "up_proj"]), st.integers(1, 50)),
)  # fmt: skip
def test_any_ranks_and_alphas_give_the_same_change(
    untied: Path, tmp_path_factory: pytest.TempPathFactory, r, alpha, rslora, pattern, alphas
) -> None:
    """Layer by layer: scaling times B @ A of the plain adapter is that of the given one."""
    from lora_eval.exporters.lora import Adapter

    folder = tmp_path_factory.mktemp("any")
    save_tiny_adapter(
        untied, folder / "adapter", r=r, lora_alpha=alpha, use_rslora=rslora,
        rank_pattern=pattern, alpha_pattern=alphas,
    )  # fmt: skip
    export("lora", base=untied, adapter=folder / "adapter", out=folder / "plain")
    before, after = Adapter(folder / "adapter"), Adapter(folder / "plain")
    assert len({edit.lora.rank for edit in after.edits.values()}) == 1
    assert len({edit.lora.scaling for edit in after.edits.values()}) == 1
    for module, edit in before.edits.items():
        changes = [
            lora.scaling * adapter.tensor(lora.b).double() @ adapter.tensor(lora.a).double()
            for adapter, lora in ((before, edit.lora), (after, after.edits[module].lora))
        ]
        assert (changes[0] - changes[1]).abs().max() <= 1e-6 * changes[0].abs().max()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"use_dora": True}, "is DoRA, which no plain LoRA stands for; lora-eval export merge"),
        ({"trainable_token_indices": [3, 5]}, "holds whole weights"),
        ({"init_lora_weights": "pissa_niter_4"}, "save the adapter as an ordinary LoRA"),
    ],
)
def test_what_is_more_than_lora_is_refused(config, said: str, untied: Path, tmp_path: Path) -> None:
    save_tiny_adapter(untied, tmp_path / "adapter", **config)

    with pytest.raises(ModelError, match=said):
        export("lora", base=untied, adapter=tmp_path / "adapter", out=tmp_path / "plain")

    assert not (tmp_path / "plain").exists()


def test_weights_saved_whole_are_refused_where_they_are_not_the_bases(untied: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_tiny_adapter(untied, tmp_path / "adapter", modules_to_save=["lm_head"])
    export("lora", base=untied, adapter=tmp_path / "adapter", out=tmp_path / "same")
    assert (logits(untied, tmp_path / "same") - logits(untied, tmp_path / "adapter")).abs().max() < 2e-5
    assert read_adapter_config(tmp_path / "same")["modules_to_save"] is None

    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({k: v * 2 if "lm_head" in k else v for k, v in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(ModelError, match=r"holds whole weights \(lm_head\), which are no LoRA"):
        export("lora", base=untied, adapter=tmp_path / "adapter", out=tmp_path / "plain")


def test_a_smaller_rank_is_another_model(untied: Path, tmp_path: Path) -> None:
    save_tiny_adapter(untied, tmp_path / "adapter")

    with pytest.raises(InputError, match=r"--rank 2: .* needs 4; a smaller rank would be another model"):
        export("lora", base=untied, adapter=tmp_path / "adapter", out=tmp_path / "plain", options={"rank": 2})


def test_a_beginning_on_a_quantized_base_is_refused(tmp_path: Path) -> None:
    folder = save_qlora(tmp_path)
    file = folder / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"init_lora_weights": "olora"}))

    with pytest.raises(ModelError, match="changed the base before it was quantized"):
        export("lora", base=folder / "base", adapter=folder / "adapter", out=tmp_path / "plain")


def test_the_lineage_names_both_adapters(tmp_path: Path) -> None:
    folder = save_qlora(tmp_path)

    export("lora", base=folder / "base", adapter=folder / "adapter", out=tmp_path / "plain")

    lineage = read_lineage(tmp_path / "plain")
    assert lineage is not None and lineage.quantization  # still an adapter for the 4-bit base
    assert [variant.kind for variant in lineage.variants] == ["base", "adapter", "adapter"]
    assert lineage.variants[2].parent == lineage.variants[1].fingerprint
    assert (lineage.steps[-1].tool, lineage.steps[-1].arguments["rank"]) == ("lora-eval export lora", 4)


def test_the_command_verifies_what_it_writes(run_cli, untied: Path, tmp_path: Path) -> None:
    save_tiny_adapter(untied, tmp_path / "pissa", init_lora_weights="pissa")

    done = run_cli(
        "export", "lora", "--base", untied, "--adapter", tmp_path / "pissa", "--out", tmp_path / "plain"
    )

    assert done.status == 0, done.stderr
    assert "verified: it is the model that was measured" in done.stderr
    assert "left a base that was rounded" in done.stderr
    lineage = json.loads((tmp_path / "plain" / "lineage.json").read_text("utf-8"))
    assert lineage["steps"][-1]["arguments"]["verified"] == "passed"
