"""Adapters that change the base's own weights are measured on a copy of their own: the base stays itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lora_eval.errors import InputError
from lora_eval.evaluate import Arms, FolderArm, evaluate_arms
from lora_eval.evaluate.scorers import Scorers
from lora_eval.models import load_base, open_adapter
from lora_eval.runstore import read_run
from lora_eval.suites.lm_eval import LmEvalSuite


def silent(*_: object) -> None:
    """No progress."""


@pytest.fixture(scope="module")
def changing(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A PiSSA and an OLoRA adapter that PEFT made and saved, and the models that they are, merged."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer

    folder, found = tmp_path_factory.mktemp("changing"), {}
    for initial in ("pissa", "olora"):
        config = LoraConfig(
            r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=initial
        )
        live = get_peft_model(load_base(tiny_llama), config)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, parameter in live.named_parameters():
                if "lora_" in name:
                    parameter += torch.randn(parameter.shape, generator=generator) * 0.05
        live.save_pretrained(found.setdefault(initial, folder / initial))
        merged = found.setdefault(f"{initial}-merged", folder / f"{initial}-merged")
        live.merge_and_unload().save_pretrained(merged)
        AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(merged)
    return found


def test_each_arm_is_the_model_that_was_trained(
    suite: LmEvalSuite, tiny_llama: Path, tiny_adapter: Path, changing: dict[str, Path], tmp_path: Path
) -> None:
    adapters = {"pissa": changing["pissa"], "plain": tiny_adapter, "olora": changing["olora"]}
    folders = [FolderArm(name, "merged", path) for name, path in changing.items() if "merged" in name]
    arms = Arms(tiny_llama, adapters, folders)
    assert (list(arms.shared), list(arms.apart)) == (["plain"], ["pissa", "olora"])
    found = evaluate_arms(arms, suite, tmp_path / "all", progress=silent)
    assert list(found.runs) == ["base", "plain", "pissa", "olora", "pissa-merged", "olora-merged"]
    runs = {name: read_run(folder) for name, folder in found.runs.items()}

    alone = evaluate_arms(
        Arms(tiny_llama, {"plain": tiny_adapter}), suite, tmp_path / "alone", progress=silent
    )
    for name in ("base", "plain"):  # not touched by what was loaded apart
        assert runs[name].rows == read_run(alone.runs[name]).rows
    for name in ("pissa", "olora"):
        assert runs[name].run.variant.kind == "adapter"
        assert runs[name].run.variant.parent == runs["base"].run.variant.fingerprint
        assert runs[name].rows != runs["base"].rows
        for one, other in zip(runs[name].rows, runs[f"{name}-merged"].rows, strict=True):
            assert one.output == other.output
            assert one.log_likelihoods == pytest.approx(other.log_likelihoods, abs=1e-4)
        assert f"init_lora_weights '{name}' changes the base's own weights" in runs[name].run.notes[0]
        assert any(f"arm {name}: its initialisation changes" in note for note in found.notes)


def test_one_copy_is_in_memory_at_a_time(
    suite: LmEvalSuite, tiny_llama: Path, changing: dict[str, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import weakref

    from lora_eval.evaluate import scorers

    opened: list[weakref.ref] = []

    def watched(*arguments: object, **options: object) -> object:
        assert all(reference() is None for reference in opened)
        resident = open_adapter(*arguments, **options)  # type: ignore[arg-type]
        opened.append(weakref.ref(resident.model))
        return resident

    monkeypatch.setattr(scorers, "open_adapter", watched)
    adapters = {"pissa": changing["pissa"], "olora": changing["olora"]}
    evaluate_arms(Arms(tiny_llama, adapters), suite, tmp_path / "out", progress=silent)
    assert len(opened) == 2


def test_finished_arms_are_kept(
    suite: LmEvalSuite, tiny_llama: Path, changing: dict[str, Path], tmp_path: Path
) -> None:
    arms = Arms(tiny_llama, {"pissa": changing["pissa"]})
    found = evaluate_arms(arms, suite, tmp_path, progress=silent)
    before = (found.runs["pissa"] / "run.json").read_bytes()
    steps: list[str] = []
    evaluate_arms(arms, suite, tmp_path, progress=lambda what, *_: steps.append(what))
    assert "pissa: kept from the run before" in steps
    assert (found.runs["pissa"] / "run.json").read_bytes() == before


def test_an_engine_that_opens_paths_refuses_them(tiny_llama: Path, changing: dict[str, Path]) -> None:
    arms = Arms(tiny_llama, {"pissa": changing["pissa"]})
    with pytest.raises(InputError, match="which --engine vllm cannot do"):
        Scorers("vllm", silent).shared(arms, None)


def test_compare_says_so_in_record_and_report(
    run_cli, tiny_llama: Path, changing: dict[str, Path], tasks: Path, tmp_path: Path
) -> None:
    adapter = shutil.copytree(changing["pissa"], tmp_path / "adapter")
    result = run_cli(
        "compare", "--base", tiny_llama, "--adapter", f"tuned={adapter}", "--tasks", "t_last",
        "--include-path", tasks, "--out", tmp_path / "out", "-q",
    )  # fmt: skip
    assert result.status == 0, result
    said = "arm tuned: its initialisation changes the base's own weights"
    assert said in result.stderr
    for name in ("report.md", "report.html"):
        text = (tmp_path / "out" / name).read_text("utf-8").replace("&#39;", "'")
        assert said in text
        assert "measured on a copy of its own" in text
