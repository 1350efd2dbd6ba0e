"""No test that needs a real vLLM is passed over."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT
from tests.real_vllm import needs_vllm


def test_where_there_is_none_they_are_skipped_but_not_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_EVAL_VLLM_PYTHON", "/nowhere/python")
    monkeypatch.delenv("CI", raising=False)
    skipped = needs_vllm()[2]
    assert skipped.args == (True,) and "/nowhere/python is no program" in skipped.kwargs["reason"]
    monkeypatch.setenv("CI", "true")
    assert needs_vllm()[2].args == (False,)


def test_tox_runs_every_file_that_has_some() -> None:
    settings = configparser.ConfigParser()
    settings.read(CHECKOUT / "tox.ini", "utf-8")
    run = settings["testenv:vllm"]["commands"].split()
    needing = [
        path.relative_to(CHECKOUT)
        for path in (CHECKOUT / "tests").rglob("test_*.py")
        if path != Path(__file__) and "needs_vllm(" in path.read_text("utf-8")
    ]
    assert len(needing) >= 6
    missed = [path for path in needing if not {str(path), *map(str, path.parents)} & set(run)]
    assert missed == []
