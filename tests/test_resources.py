"""Packaged folders and `package:path` names are found, or both places are named."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lora_eval import resources
from lora_eval.errors import InputError
from lora_eval.resources import package_folder, resolve_path, resource_folder


@pytest.mark.parametrize(("name", "inside"), [("templates", "chat"), ("evals", "quick/suite.yaml")])
def test_packaged_folders_are_found(name: str, inside: str) -> None:
    assert (resource_folder(name) / inside).exists()


def test_a_missing_folder_names_both_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "site" / "lora_eval")
    monkeypatch.setattr(resources, "_CHECKOUT", tmp_path)

    with pytest.raises(FileNotFoundError) as caught:
        resource_folder("evals")

    places = (tmp_path / "site" / "lora_eval" / "evals", tmp_path / "evals")
    assert all(str(place) in str(caught.value) for place in places)


def test_a_folder_beside_a_package_is_ours_only_in_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "site" / "lora_eval")
    monkeypatch.setattr(resources, "_CHECKOUT", tmp_path)
    (tmp_path / "evals").mkdir()

    with pytest.raises(FileNotFoundError):
        resource_folder("evals")
    (tmp_path / "pyproject.toml").touch()
    assert resource_folder("evals") == tmp_path / "evals"


def test_a_path_is_relative_to_the_file_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()

    assert resolve_path("rows.jsonl", tmp_path) == tmp_path / "rows.jsonl"
    assert resolve_path(str(tmp_path / "rows.jsonl"), Path("/elsewhere")) == tmp_path / "rows.jsonl"


def test_a_file_with_a_colon_in_its_name_is_no_package(tmp_path: Path) -> None:
    (tmp_path / "rows:1").touch()

    assert resolve_path("rows:1", tmp_path) == tmp_path / "rows:1"


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "rows.jsonl").touch()

    assert resolve_path("~/rows.jsonl", Path("/elsewhere")) == tmp_path / "rows.jsonl"


def test_a_file_in_a_package_is_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    data = tmp_path / "acme_broken" / "inner" / "rows.jsonl"
    data.parent.mkdir(parents=True)
    data.touch()
    (tmp_path / "acme_broken" / "__init__.py").write_text("raise RuntimeError('imported')")

    assert resolve_path("acme_broken:inner/rows.jsonl", Path("/elsewhere")) == data
    assert resolve_path("acme_broken.inner:rows.jsonl", Path("/elsewhere")) == data
    assert "acme_broken" not in sys.modules


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("rows.jsonl", r"no such file: /nowhere/rows\.jsonl \(named as 'rows\.jsonl'\)"),
        (
            "lora_eval:rows.jsonl",
            r"no such file: .*lora_eval/rows\.jsonl \(named as 'lora_eval:rows\.jsonl'\)",
        ),
        ("acme_gone:rows.jsonl", "package 'acme_gone' is not installed"),
        ("json:rows.jsonl", r"no such file: .*json/rows\.jsonl"),
        ("sys:rows.jsonl", "package 'sys' is not installed"),
    ],
)
def test_what_is_missing_is_named(name: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        resolve_path(name, Path("/nowhere"))


def test_a_module_is_no_folder() -> None:
    with pytest.raises(InputError, match="package 'this' is not installed"):
        package_folder("this")
