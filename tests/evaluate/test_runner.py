"""A run that is there is kept; one that answers another question is made anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_eval import runner
from lora_eval.protocols import SuiteResult
from lora_eval.records import SampleRow, TaskResult, Variant
from lora_eval.runstore import read_run

ROW = SampleRow("t", 0, "d", "none", 0, "p", "", "", "", {"acc": 1.0}, prompt_tokens=5)
RESULT = TaskResult(task="t", metric="acc", filter="none", higher_is_better=True, value=1.0, n=1)
VARIANT = Variant(kind="base", path="b", fingerprint="sha256:1")


class Counted:
    """A suite without models that counts how often it is run."""

    name, fingerprint = "counted", "sha256:s"

    def __init__(self) -> None:
        self.times = 0

    def run(self, engine: Any, arm: str, progress: Any) -> SuiteResult:
        self.times += 1
        return SuiteResult([ROW], [RESULT], {"t": "1"}, {"t": 2}, notes=("cut",))


class Engine:
    name, dtype, max_length = "fake", "float32", 10


def _run(suite: Counted, folder: Path, **changes: Any) -> Any:
    values = {"variant": VARIANT, "progress": lambda *_: None, "seeds": {"fewshot": 1}} | changes
    return runner.run_suite(suite, Engine(), "base", folder, **values)  # type: ignore[arg-type]


def test_a_finished_run_is_kept(tmp_path: Path) -> None:
    suite = Counted()
    first = _run(suite, tmp_path, notes=("opened so",))
    assert (first.prompt_tokens, first.results, first.notes) == (5, (RESULT,), ("opened so", "cut"))
    assert first.wall_seconds is not None
    assert (first.dropped_items, first.task_versions) == ({"t": 2}, {"t": "1"})
    assert read_run(tmp_path).rows == [ROW]
    assert _run(suite, tmp_path) == first
    assert suite.times == 1


@pytest.mark.parametrize(
    "change",
    [
        {"variant": VARIANT.model_copy(update={"fingerprint": "sha256:9"})},
        {"variant": VARIANT.model_copy(update={"parent": "sha256:9"})},
        {"limit": 3},
        {"seeds": {"fewshot": 2}},
        {"quantization": {"load_in_4bit": True}},
    ],
)
def test_another_question_is_answered_anew(tmp_path: Path, change: dict) -> None:
    suite = Counted()
    _run(suite, tmp_path)
    changed = _run(suite, tmp_path, **change)
    assert suite.times == 2
    assert read_run(tmp_path).run == changed


def test_another_suite_or_package_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = Counted()
    _run(suite, tmp_path)
    suite.fingerprint = "sha256:t"  # type: ignore[misc]
    _run(suite, tmp_path)
    monkeypatch.setattr(runner, "package_versions", lambda: {"torch": "0.1"})
    _run(suite, tmp_path)
    assert suite.times == 3
