"""The compare command: what it writes, says and refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lora_eval.cli import compare_options
from lora_eval.records import Comparison
from lora_eval.schema import read_record
from tests.suites.conftest import write_tasks


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def options(tiny_llama: Path, tiny_adapter: Path, tasks: Path) -> list[object]:
    arms = ["--base", tiny_llama, "--adapter", tiny_adapter]
    return [*arms, "--tasks", "t_last, t_generate", "--include-path", tasks]


@pytest.fixture(scope="module")
def compared(
    run_cli: Callable, options: list[object], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A finished comparison: its folder, and what the command printed with --json."""
    out = tmp_path_factory.mktemp("compared") / "out"
    result = run_cli("compare", *options, "--margin", "t_generate=0.1", "--out", out, "--json")
    assert result.status == 0, result
    assert f"wrote {out / 'comparison.json'}" in result.stderr
    return out, result.stdout


def test_it_writes_comparison_reports_and_runs(compared: tuple[Path, str]) -> None:
    out, printed = compared
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert files == [
        "comparison.json",
        "report.html",
        "report.md",
        "runs/adapter/run.json",
        "runs/adapter/samples.parquet",
        "runs/base/run.json",
        "runs/base/samples.parquet",
    ]
    comparison = read_record(out / "comparison.json", Comparison)
    assert Comparison.model_validate_json(printed) == comparison
    assert [(arm.name, arm.kind) for arm in comparison.arms] == [("base", "base"), ("adapter", "adapter")]
    assert comparison.title == "adapter against base on tasks"
    assert comparison.controls["identity"] == {"tasks": 2, "items": 16, "differences": 0, "passed": True}
    main = {task.task: task for task in comparison.tasks if task.primary}
    assert main["t_last"].n == main["t_generate"].n == 14
    assert main["t_generate"].pairs[0].margin == 0.1
    assert comparison.timing["wall_seconds"] > 0


def test_the_same_command_resumes(
    run_cli: Callable, options: list[object], compared: tuple[Path, str]
) -> None:
    out, _ = compared
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*")}
    (out / "comparison.json").unlink()
    result = run_cli("compare", *options, "--out", out, "--quiet")
    assert result.status == 0, result
    assert result.stdout.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*")} == before
    assert (out / "comparison.json").is_file()


def test_a_screen_of_text(run_cli: Callable, options: list[object], tmp_path: Path) -> None:
    result = run_cli("compare", *options, "--limit", 3, "--out", tmp_path / "out")
    assert result.status == 0, result
    assert "t_generate" in result.stdout
    assert "Figures of every arm" in result.stdout
    assert json.loads((tmp_path / "out" / "runs" / "base" / "run.json").read_text("utf-8"))["limit"] == 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--tasks", ""], "nothing to run"),
        (["--batch-tokens", "many"], "--batch-tokens many"),
        (["--margin", "t_last"], "--margin t_last"),
        (["--margin", "t_last=-1"], "--margin t_last=-1"),
        (["--arm", "merged"], "expected NAME=KIND:PATH"),
        (["--arm", "m=megred:x"], "did you mean 'merged'"),
        (["--arm", "m=merged:/nowhere"], "/nowhere: no such folder"),
        (["--limit", "0"], "--limit"),
        (["--suite", "pokcet"], "Did you mean 'pocket'"),
        (["--dtype", "int3"], "--dtype"),
    ],
)
def test_bad_options(
    run_cli: Callable, options: list[object], tmp_path: Path, change: list[str], says: str
) -> None:
    result = run_cli("compare", *options, *change, "--out", tmp_path / "out")
    assert result.status == 2
    assert says in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_base_alone_or_two_arms_of_one_name(
    run_cli: Callable, options: list[object], tiny_adapter: Path, tasks: Path, tmp_path: Path
) -> None:
    alone = run_cli("compare", *options[:2], *options[4:], "--out", tmp_path / "out")
    assert (alone.status, "nothing to compare the base with" in alone.stderr) == (2, True)
    twice = run_cli("compare", *options, "--adapter", tiny_adapter, "--out", tmp_path / "out")
    assert (twice.status, "is taken" in twice.stderr) == (2, True)
    lost = run_cli(
        "compare", *options[:4], "--suite", "pocket", "--include-path", tasks, "--out", tmp_path / "out"
    )
    assert (lost.status, "--include-path is for --tasks" in lost.stderr) == (2, True)


def test_a_failed_control_ends_with_status_3(
    run_cli: Callable, options: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lora_eval.evaluate.controls
    from lora_eval.models import IDENTITY

    assert lora_eval.evaluate.controls.IDENTITY == IDENTITY
    # The adapter in the control's place: it changes answers, as a leaky control would.
    monkeypatch.setattr(lora_eval.evaluate.controls, "IDENTITY", "adapter")
    result = run_cli("compare", *options, "--out", tmp_path / "out")
    assert result.status == 3
    assert "control 'identity'" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_nearly_full_disk_is_said_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_eval.errors import OutputError

    compare_options.check_out(tmp_path / "a" / "b")
    monkeypatch.setattr(compare_options, "_ROOM", 1 << 60)
    with pytest.raises(OutputError, match="no space"):
        compare_options.check_out(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(OutputError, match="is a file"):
        compare_options.check_out(tmp_path / "file")


def test_two_training_runs_are_one_arm(
    run_cli: Callable, options: list[object], tiny_adapter: Path, tmp_path: Path
) -> None:
    second = shutil.copytree(tiny_adapter, tmp_path / "seed2")
    weights = load_file(second / "adapter_model.safetensors")
    save_file({name: 1.5 * tensor for name, tensor in weights.items()}, second / "adapter_model.safetensors")
    arms = [*options[:2], "--adapter", f"a={tiny_adapter}", "--adapter", f"a={second}"]
    out = tmp_path / "out"
    result = run_cli("compare", *arms, *options[4:], "--pair", "a,base", "--out", out)
    assert result.status == 0, result
    assert sorted(path.name for path in (out / "runs").iterdir()) == ["a#1", "a#2", "base"]
    comparison = read_record(out / "comparison.json", Comparison)
    assert [arm.name for arm in comparison.arms] == ["base", "a"]
    assert [run.name for run in comparison.arms[1].runs] == ["a#1", "a#2"]
    assert comparison.title == "a against base on tasks"
    task = comparison.tasks[0]
    assert [(pair.a, pair.b) for pair in task.pairs] == [("base", "a"), ("a", "base")]
    assert len(task.pairs[0].run_differences) == 2
    again = run_cli("report", out)  # from the records alone
    assert again.status == 0, again
    refused = run_cli("compare", *arms, *options[4:], "--method", "bootstrap", "--out", out)
    assert (refused.status, "training runs" in refused.stderr) == (2, True)


def test_resampling_few_items_is_refused(
    run_cli: Callable, options: list[object], compared: tuple[Path, str]
) -> None:
    result = run_cli("compare", *options, "--method", "permutation", "--out", compared[0].parent / "new")
    assert not (compared[0].parent / "new").exists()  # said before anything was computed
    assert result.status == 2
    assert "task t_last: 14 independent items" in result.stderr
    assert "task t_generate: 14 independent items" in result.stderr
