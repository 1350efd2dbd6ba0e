"""What is said of long work: a bar on a terminal, lines elsewhere, nothing where nobody wants it."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from lora_eval.cli import progress


def test_lines_where_stderr_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now))
    with progress.progress_bar() as report:
        for step in range(1, 5):
            now = step * 20.0
            report("training", step, 4)
    assert capsys.readouterr() == ("", "training: 2/4\ntraining: 4/4\n")


def test_nothing_where_it_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_SECONDS", 0.0)
    with progress.progress_bar(shown=False) as report:
        report("training", 1, 4)
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with progress.progress_bar() as report:
        report("training", 1, 4)
        print("a line", file=sys.stderr)
    out, err = capsys.readouterr()
    assert out == ""
    assert "a line" in err
    assert "1/4" in err
