"""The environment of llm-compressor: found, refused with its reason, made whole or not at all."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from lora_eval.errors import InputError, MissingExtraError
from lora_eval.exporters import environment
from lora_eval.exporters.environment import PINS, PYTHON, announcement, default_folder, find_python


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, and no environment given."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(PYTHON, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def offline(monkeypatch):
    """pip finds nothing at all."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")


def silent(what: str, done: int, total: int) -> None:
    pass


def fake_python(folder: Path, text: str) -> Path:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_the_folder_is_named_after_the_pins_and_the_python(cache, monkeypatch, tmp_path):
    folder = default_folder()
    assert folder.parent == cache / "lora-eval"
    assert folder.name.endswith(f"-py{sys.version_info.major}{sys.version_info.minor}")
    other = tmp_path / "pins.txt"
    other.write_text("llmcompressor==9\n")
    monkeypatch.setattr(environment, "PINS", other)
    assert default_folder() != folder


def test_every_package_is_pinned_once():
    pins = [line for line in PINS.read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    names = [pin.partition("==")[0].lower() for pin in pins]
    assert len(names) == len(set(names))
    assert {"llmcompressor", "compressed-tensors", "torch", "transformers"} <= set(names)


def test_what_will_be_installed_is_said_before(cache, tmp_path):
    assert re.search(rf"once: {re.escape(str(default_folder()))} \(1\.5 GB", announcement(None) or "")
    assert announcement(tmp_path / "python") is None
    python = default_folder() / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert announcement(None) is None
    assert find_python(None, silent) == python  # kept: nothing is installed again


def test_the_python_given_comes_first_then_that_of_the_variable(cache, tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = (fake_python(tmp_path / name, "echo 0.14.0.1") for name in ("one", "two"))
    monkeypatch.setenv(PYTHON, str(two))
    assert find_python(one, silent) == one
    assert find_python(None, silent) == two
    assert not cache.exists()


def test_a_python_without_llm_compressor_is_refused(cache, tmp_path):
    with pytest.raises(MissingExtraError, match=r"has no llm-compressor; install it there with: .* -r "):
        find_python(fake_python(tmp_path, "exit 1"), silent)
    with pytest.raises(InputError, match=r"cannot be run .*expected a Python program"):
        find_python(tmp_path / "nowhere", silent)


@pytest.mark.slow
def test_nothing_is_left_where_pip_finds_no_package(cache, offline):
    with pytest.raises(MissingExtraError, match=r"cannot be installed: .*pip install"):
        find_python(None, silent)
    assert list((cache / "lora-eval").iterdir()) == []
