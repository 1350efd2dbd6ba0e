"""An optional library is imported, or the pip command that installs it is named."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from lora_eval.errors import MissingExtraError
from lora_eval.extras import require
from tests.conftest import CHECKOUT


def test_what_is_installed_is_given() -> None:
    assert require("json", "judge") is json


def test_what_is_missing_names_the_command() -> None:
    with pytest.raises(MissingExtraError) as caught:
        require("acme_gone", "gptq")

    assert str(caught.value) == (
        "this needs acme_gone, which cannot be imported (No module named 'acme_gone'); "
        "install it with: pip install 'lora-eval[gptq]'"
    )
    assert caught.value.exit_status == 2


def test_a_library_that_fails_on_import_gives_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "acme_fails.py").write_text("import acme_gone_too")

    with pytest.raises(MissingExtraError, match=r"acme_fails, which cannot be imported .*acme_gone_too"):
        require("acme_fails", "judge")


def test_every_extra_that_code_names_exists() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))["project"]
    code = "\n".join(path.read_text("utf-8") for path in (CHECKOUT / "src").rglob("*.py"))
    named = set(re.findall(r"""\brequire\(\s*"[\w.]+",\s*"(\w+)",?\s*\)""", code))

    assert named <= set(project["optional-dependencies"])
