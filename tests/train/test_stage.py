"""A whole run: what it leaves behind, what it records, and what it leaves behind when it fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_eval.errors import InputError, ModelError, OutputError, RecordError, VerificationFailed
from tests.train.conftest import RECIPE


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_adapter_folder_is_complete(finished, tiny_llama: Path) -> None:
    kept = {name for name in files(finished.out) if not name.startswith("checkpoints/")}
    assert kept == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "additional_chat_templates/training.jinja",
        "chat_template.jinja",
        "generation_config.json",
        "lineage.json",
        "recipe.resolved.yaml",
        "tokenizer.json",
        "tokenizer_config.json",
        "trained_base.json",
        "training_log.json",
    }
    config = json.loads((finished.out / "adapter_config.json").read_text("utf-8"))
    assert config["base_model_name_or_path"] == str(tiny_llama)
    assert (config["r"], config["lora_alpha"]) == (4, 8)
    settings = json.loads((finished.out / "generation_config.json").read_text("utf-8"))
    assert settings["eos_token_id"] == 257


def test_every_file_is_as_readable_as_the_umask_says(finished) -> None:
    rights = {path.stat().st_mode & 0o777 for path in finished.out.glob("*") if path.is_file()}
    assert rights == {(finished.out / "lineage.json").stat().st_mode & 0o777}


def test_templates_travel_with_the_tokenizer(finished) -> None:
    from lora_eval.chat import named_text
    from lora_eval.models import load_tokenizer

    inside = json.loads((finished.out / "tokenizer_config.json").read_text("utf-8"))["chat_template"]
    assert {entry["name"] for entry in inside} == {"default", "training"}  # where older servers look
    tokenizer = load_tokenizer(finished.out)
    assert "{% generation %}" in named_text(tokenizer, "training")
    assert "generation %}" not in named_text(tokenizer, "default").replace("add_generation_prompt", "")


def test_the_lineage_rebuilds_the_base(finished, tiny_llama: Path) -> None:
    from lora_eval.fingerprint import fingerprint_folder
    from lora_eval.models import check_adapter, read_lineage

    lineage = read_lineage(finished.out)
    assert lineage == finished.lineage
    assert [variant.kind for variant in lineage.variants] == ["base", "adapter"]
    assert lineage.variants[0].fingerprint == fingerprint_folder(tiny_llama)
    assert lineage.variants[1].fingerprint == fingerprint_folder(finished.out)
    assert lineage.quantization["bnb_4bit_quant_type"] == "nf4"
    assert lineage.base_dtype == "bfloat16"
    assert lineage.packages["trl"]
    check_adapter(finished.out, tiny_llama)


def test_a_merge_finds_in_every_bit_the_base_that_was_trained_on(
    finished, tiny_llama: Path, tmp_path
) -> None:
    from lora_eval.export import export

    export("merge", base=tiny_llama, adapter=finished.out, out=tmp_path / "merged")
    audit = json.loads((tmp_path / "merged/audit.json").read_text())
    assert audit["as_trained"] == audit["quantized"] == 14


def test_the_resolved_recipe_stands_alone(finished, tiny_recipe: Path) -> None:
    from lora_eval.recipes import load_recipe

    again = load_recipe(str(finished.out / "recipe.resolved.yaml")).recipe
    assert again == load_recipe(str(tiny_recipe)).recipe


def test_the_log_tells_what_happened(finished) -> None:
    from lora_eval.records import TrainingLog
    from lora_eval.schema import read_record

    log = read_record(finished.out / "training_log.json", TrainingLog)
    assert log == finished.log
    assert (log.steps, log.processes, log.resumed_from_step) == (8, 1, None)
    assert (log.rows.used, log.eval_rows.used) == (24, 3)
    assert log.loss_end < log.loss_start
    assert [point.step for point in log.curve if point.eval_loss is not None] == [3, 6, 8]
    assert log.reload.equal
    assert log.reload.effect > 0.1
    assert 0.1 < log.peak_memory_gib < 20


@pytest.mark.parametrize(
    "overrides",
    [
        ("quantization={}", "model.dtype=float32"),
        ("training.bf16=true", "training.gradient_checkpointing=true"),
        ("training.packing=true", "training.max_length=128"),
        ("training.padding_free=true", "training.optim=paged_adamw_8bit"),
        ("lora.use_dora=true",),
        ("lora.modules_to_save=[lm_head]", "model.dtype=float32"),
    ],
    ids=lambda overrides: overrides[0],
)
def test_every_way_to_train_is_reloaded_bit_by_bit(
    run_training: Callable, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    steps = ("training.max_steps=2", "training.eval_strategy=no", "training.save_strategy=no")
    result = run_training(tmp_path / "out", *steps, *overrides)
    assert result.log.reload.equal
    assert result.log.reload.effect > 0


def test_an_adapter_that_is_not_the_live_one_is_not_put_in_place(
    run_training: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file, save_file

    import lora_eval.train.save as save

    def damage(plan, folder: Path) -> None:
        save_companions(plan, folder)
        weights = load_file(folder / "adapter_model.safetensors")
        name = next(name for name in sorted(weights) if "lora_B" in name)
        weights[name][0, 0] += 0.01
        save_file(weights, folder / "adapter_model.safetensors")

    save_companions = save.save_companions
    monkeypatch.setattr(save, "save_companions", damage)
    with pytest.raises(VerificationFailed, match="not the model that was trained"):
        run_training(tmp_path / "out", "training.max_steps=2", "training.save_strategy=no")
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_up(run_training: Callable, tmp_path: Path, full_disk: Callable) -> None:
    def fill(what: str, done: int, total: int) -> None:
        if what.startswith("training") and done == 2:
            full_disk(10_000)

    with pytest.raises(OutputError, match="no space left on the disk"):
        run_training(tmp_path / "out", progress=fill)
    assert not (tmp_path / "out").exists()


def test_an_unfinished_run_is_resumed_by_the_same_run_only(
    finished, run_training: Callable, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished.out / "checkpoints", out / "checkpoints")
    with pytest.raises(OutputError, match="unfinished run with another recipe"):
        run_training(out, "training.learning_rate=0.02")
    with pytest.raises(OutputError, match="another training data"):
        run_training(out, "data.eval_files=[]", "training.eval_strategy=no", "training.learning_rate=0.01")
    assert not (out / "adapter_config.json").exists()
    assert run_training(out).log.resumed_from_step == 8


def test_a_finished_run_is_not_overwritten(finished, run_training: Callable) -> None:
    with pytest.raises(OutputError, match="holds a finished adapter"):
        run_training(finished.out)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lora.init_lora_weights=pissa", "changes the base's own weights"),
        ("lora.bias=all", "trains the base's own biases"),
        ("lora.alora_invocation_tokens=[5]", "no export could merge such an adapter"),
        ("lora.target_parameters=[mlp.experts.up]", "no export could merge such an adapter"),
        ("lora.modules_to_save=[lm_head]", "set model.dtype=float32"),
        ("data.eval_files=[]", "nothing to evaluate on"),
        ("lora.target_modules=[no_such_layer]", "no_such_layer"),
        ("family.model_type=[qwen2]", "model_type 'llama'"),
        ("training.max_length=1", "none of 24 conversations"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(
    run_training: Callable, tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run_training(tmp_path / "out", override)
    assert not (tmp_path / "out").exists()


def test_the_base_may_be_named_by_the_recipe(tiny_llama: Path, tmp_path: Path) -> None:
    from lora_eval.recipes import load_recipe
    from lora_eval.train import resolve_base

    path = tmp_path / "named.yaml"
    path.write_text(RECIPE + "base: model\n", "utf-8")
    shutil.copytree(tiny_llama, tmp_path / "model")
    resolved = load_recipe(str(path), check=False)
    assert resolve_base(resolved)[0] == tmp_path / "model"
    assert resolve_base(resolved, str(tiny_llama)) == (tiny_llama, str(tiny_llama))
    with pytest.raises(ModelError, match="nowhere"):
        resolve_base(resolved, str(tmp_path / "nowhere"))
    path.write_text(RECIPE, "utf-8")
    with pytest.raises(InputError, match="--base"):
        resolve_base(load_recipe(str(path), check=False))


def test_a_quantized_base_is_refused(
    finished, run_training: Callable, tiny_llama: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    config = json.loads((base / "config.json").read_text("utf-8"))
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (base / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(ModelError, match="already quantized"):
        run_training(tmp_path / "out", base=base)


def test_every_problem_of_a_recipe_is_told_at_once(run_training: Callable, tmp_path: Path) -> None:
    with pytest.raises(RecordError) as error:
        run_training(tmp_path / "out", "lora.bias=all", "lora.init_lora_weights=olora")
    assert len(error.value.problems) == 2
