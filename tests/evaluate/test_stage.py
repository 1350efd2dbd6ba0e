"""Arms of one comparison: same items, one resident base, controls first, runs that resume."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from lora_eval.errors import ControlFailed, InputError, ModelError, TaskError
from lora_eval.evaluate import ORIGINAL, Arms, FolderArm, evaluate_arms, open_suite
from lora_eval.evaluate.arms import choose_dtype, choose_quantization
from lora_eval.fingerprint import fingerprint_folder
from lora_eval.models import NF4, write_lineage
from lora_eval.records import Lineage, Step, Variant
from lora_eval.runstore import read_run
from lora_eval.suites.lm_eval import LmEvalSuite


class Steps(list[str]):
    """Keeps what progress said."""

    def __call__(self, what: str, done: int, total: int) -> None:
        self.append(what)


def _trained(adapter: Path, folder: Path, quantization: dict | None, dtype: str | None = None) -> Path:
    """A copy of the adapter with a lineage that says how it was trained."""
    shutil.copytree(adapter, folder)
    variants = (Variant(kind="base", path="b"), Variant(kind="adapter", path="a"))
    steps = (Step(tool="lora-eval train", version="1"),)
    write_lineage(
        folder, Lineage(variants=variants, steps=steps, quantization=quantization, base_dtype=dtype)
    )
    return folder


@pytest.fixture(scope="module")
def merged(tiny_llama: Path, tiny_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("merged")
    live = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), tiny_adapter)
    live.merge_and_unload().save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(folder)
    return folder


def test_all_arms_answer_the_same_items(
    suite: LmEvalSuite, tiny_llama: Path, tiny_adapter: Path, merged: Path, tmp_path: Path
) -> None:
    arms = Arms(tiny_llama, {"tuned": tiny_adapter}, [FolderArm("shipped", "merged", merged)])
    found = evaluate_arms(arms, suite, tmp_path, progress=Steps())
    assert list(found.runs) == ["base", "tuned", "shipped"]
    runs = {name: read_run(folder) for name, folder in found.runs.items()}
    assert {name: run.run.variant.kind for name, run in runs.items()} == {
        "base": "base",
        "tuned": "adapter",
        "shipped": "merged",
    }
    assert runs["tuned"].run.variant.parent == runs["base"].run.variant.fingerprint
    assert runs["tuned"].run.variant.fingerprint == fingerprint_folder(tiny_adapter)
    base, tuned, shipped = (runs[name].rows for name in found.runs)
    assert [(r.item_id, r.prompt_sha256) for r in base] == [(r.item_id, r.prompt_sha256) for r in tuned]
    assert base != tuned
    for one, other in zip(tuned, shipped, strict=True):  # a merge in float32 is the adapter
        assert one.output == other.output
        assert one.log_likelihoods == pytest.approx(other.log_likelihoods, abs=1e-4)
    items = len({(r.task, r.item_id) for r in base if r.task == "t_last"})
    assert items == 14
    assert found.controls["identity"] == {"tasks": 2, "items": 16, "differences": 0, "passed": True}
    assert found.controls["determinism"]["passed"]
    assert found.timing["wall_seconds"] >= found.timing["control_seconds"] > 0


def test_finished_arms_are_kept(
    suite: LmEvalSuite, tiny_llama: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    arms = Arms(tiny_llama, {"tuned": tiny_adapter})
    found = evaluate_arms(arms, suite, tmp_path, progress=Steps())
    before = {name: (folder / "run.json").read_bytes() for name, folder in found.runs.items()}
    (found.runs["tuned"] / "run.json").unlink()  # as if interrupted while the second arm was scored
    steps = Steps()
    evaluate_arms(arms, suite, tmp_path, progress=steps)
    assert "base: kept from the run before" in steps
    assert "tuned: kept from the run before" not in steps
    assert (found.runs["base"] / "run.json").read_bytes() == before["base"]
    again = read_run(found.runs["tuned"])
    assert again.run.results == read_run(found.runs["tuned"]).run.results


def test_a_control_that_is_not_zero_stops_everything(
    suite: LmEvalSuite, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from lora_eval.models import resident

    real = resident._attach_identity

    def leaky(model: Any) -> Any:
        peft = real(model)
        with torch.no_grad():
            next(p for n, p in peft.named_parameters() if "lora_B" in n)[0, 0] = 0.01
        return peft

    monkeypatch.setattr(resident, "_attach_identity", leaky)
    with pytest.raises(ControlFailed, match=r"control 'identity'.* task t_last, item 0: log-likelihoods"):
        evaluate_arms(Arms(tiny_llama), suite, tmp_path / "out", progress=Steps())
    assert not (tmp_path / "out").exists()


def test_a_qlora_adapter_meets_the_base_it_was_trained_on(
    suite: LmEvalSuite, tiny_llama: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    adapter = _trained(tiny_adapter, tmp_path / "qlora", NF4, "float32")
    arms = Arms(tiny_llama, {"qlora": adapter}, add_original=True)
    found = evaluate_arms(arms, suite, tmp_path / "out", progress=Steps())
    runs = {name: read_run(folder).run for name, folder in found.runs.items()}
    assert list(runs) == ["base", "qlora", ORIGINAL]
    assert runs["base"].quantization == runs["qlora"].quantization == NF4
    assert runs[ORIGINAL].quantization is None
    assert runs[ORIGINAL].variant.fingerprint == runs["base"].variant.fingerprint
    assert runs["qlora"].variant.made_by == "lora-eval train"
    assert read_run(found.runs["base"]).rows != read_run(found.runs[ORIGINAL]).rows
    assert found.controls["identity"]["passed"]


def test_which_base_is_opened(tiny_llama: Path, tiny_adapter: Path, tmp_path: Path) -> None:
    other = NF4 | {"bnb_4bit_use_double_quant": False}
    plain = _trained(tiny_adapter, tmp_path / "plain", None, "bfloat16")
    nf4 = _trained(tiny_adapter, tmp_path / "nf4", other, "bfloat16")

    def arms(quantize: str = "auto", **adapters: Path) -> Arms:
        return Arms(tiny_llama, adapters, quantize=quantize)

    assert choose_quantization(arms(a=nf4)) == (other, ())
    assert choose_quantization(arms(a=plain, b=tiny_adapter)) == (None, ())
    assert choose_quantization(arms("nf4", a=nf4))[0] == other
    assert choose_quantization(arms("nf4"))[0] == NF4
    chosen, notes = choose_quantization(arms("none", a=nf4))
    assert chosen is None
    assert notes == (
        "arm a: trained on a base with 4-bit nf4 weights, measured on a base with weights as stored",
    )
    with pytest.raises(InputError, match=r"a: 4-bit nf4 weights, b: weights as stored.*--quantize"):
        choose_quantization(arms(a=nf4, b=plain))
    with pytest.raises(InputError, match="--add-original"):
        choose_quantization(Arms(tiny_llama, {"a": plain}, add_original=True))
    assert choose_dtype(arms(a=nf4, b=plain)) == "bfloat16"
    assert choose_dtype(arms(a=nf4, b=tiny_adapter)) == "auto"
    assert choose_dtype(Arms(tiny_llama, {"a": nf4}, dtype="float32")) == "float32"


def test_arms_are_checked_before_anything_is_opened(
    tiny_llama: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="arm 'base' is named twice"):
        Arms(tiny_llama, {"base": tiny_adapter}).check()
    with pytest.raises(InputError, match=f"arm '{ORIGINAL}' is named twice"):
        Arms(tiny_llama, {ORIGINAL: tiny_adapter}, add_original=True).check()
    with pytest.raises(ModelError, match="no adapter_config"):
        Arms(tiny_llama, {"a": tiny_llama}).check()
    with pytest.raises(ModelError, match="no such folder"):
        Arms(tiny_llama, {}, [FolderArm("m", "merged", tmp_path / "none")]).check()


def test_open_suite(tasks: Path) -> None:
    both = open_suite(["pocket"], tasks=["t_last"], include_path=str(tasks), seed=7, num_fewshot=0)
    assert both.name == "pocket+tasks"
    assert both.record.seed == 7
    assert {entry.num_fewshot for entry in both.record.entries()} == {0}
    assert "pocket_ticket" in [entry.task for entry in both.record.entries()]
    with pytest.raises(InputError, match="nothing to run"):
        open_suite()
    with pytest.raises(TaskError, match="t_lost"):
        open_suite(tasks=["t_lost"], include_path=str(tasks))
