"""Plugins are found by name without importing them; what is wrong with one is said with its package."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest

from lora_eval.errors import PluginError
from lora_eval.records import Recipe
from lora_eval.registry import GROUPS, find_plugin, get, list_plugins, load_plugin, looks_like_path

CODE = """
from lora_eval import Recipe
ONE = Recipe(name="one")
def two(): return Recipe(name="two")
class Three:
    def __new__(cls): return Recipe(name="three")
OTHER = Recipe(name="another")
def raises(): raise RuntimeError("no licence file")
def leaves(): raise SystemExit(7)
def needs(base): return base
print("noise on import")
"""
TARGETS = ("one:ONE", "two:two", "three:Three", "four:OTHER", "raises:raises", "leaves:leaves", "needs:needs")
WRONG = ("missing=acme_gone:X", "absent=acme_code:ABSENT", "text=acme_code:CODE_TEXT")


@pytest.fixture
def add_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """`add_package("acme", "1.2", recipes={"one": "module:object"})` makes an installed package."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "acme_code.py").write_text(CODE + 'CODE_TEXT = "text"\n')

    def call(name: str, version: str, **groups: dict[str, str]) -> None:
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = []
        for group, values in groups.items():
            lines += [f"[lora_eval.{group}]", *(f"{key} = {value}" for key, value in values.items())]
        (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")

    yield call
    sys.modules.pop("acme_code", None)


@pytest.fixture
def acme(add_package: Callable[..., None]) -> None:
    values = {name: f"acme_code:{target}" for name, target in (text.split(":") for text in TARGETS)}
    values |= dict(text.split("=") for text in WRONG)
    add_package("lora-eval-acme-code", "1.2", recipes=values)


@pytest.mark.usefixtures("acme")
def test_listing_names_package_version_and_source_without_importing() -> None:
    plugin = next(plugin for plugin in list_plugins("recipe") if plugin.name == "one")

    assert (plugin.package, plugin.version, plugin.source) == ("lora-eval-acme-code", "1.2", "acme_code:ONE")
    assert "acme_code" not in sys.modules


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize("name", ["one", "two", "three"])
def test_an_object_a_function_and_a_class_are_taken(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert get("recipe", name) == Recipe(name=name)
    assert capsys.readouterr().out == ""  # "noise on import" would spoil --json


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("missing", "could not be loaded: ModuleNotFoundError: No module named 'acme_gone'"),
        ("absent", "could not be loaded: AttributeError: module 'acme_code' has no attribute 'ABSENT'"),
        ("raises", "could not be loaded: RuntimeError: no licence file"),
        ("leaves", "could not be loaded: SystemExit: 7"),
        ("text", "is of type str, expected Recipe"),
        ("needs", "is of type function, expected Recipe"),
        ("four", "calls itself 'another'; both names must be equal"),
    ],
)
def test_a_broken_plugin_is_named_with_package_version_and_cause(name: str, end: str) -> None:
    source = find_plugin("recipe", name).source

    with pytest.raises(PluginError) as caught:
        get("recipe", name)

    assert str(caught.value) == f"The recipe '{name}' ('{source}' of lora-eval-acme-code 1.2) {end}"


@pytest.mark.usefixtures("acme")
def test_an_unknown_name_gets_the_nearest_and_all_known() -> None:
    with pytest.raises(PluginError) as caught:
        find_plugin("recipe", "thre")

    known = ", ".join(sorted(plugin.name for plugin in list_plugins("recipe")))
    assert str(caught.value) == f"No recipe named 'thre'. Did you mean 'three'? Known: {known}."


def test_an_unknown_name_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GROUPS, "server", "lora_eval.nothing")
    with pytest.raises(PluginError) as caught:
        find_plugin("server", "x")

    assert str(caught.value) == "No server named 'x'. Known: none."


def test_two_packages_with_one_name_are_both_named(add_package: Callable[..., None]) -> None:
    add_package("lora-eval-dup", "1.2", recipes={"acme-8b": "acme_code:ONE"})
    add_package("lora-eval-other", "0.3", recipes={"acme-8b": "acme_code:ONE"})

    with pytest.raises(PluginError) as caught:
        find_plugin("recipe", "acme-8b")

    assert str(caught.value) == (
        "The recipe 'acme-8b' is defined by lora-eval-dup 1.2 and lora-eval-other 0.3; "
        "uninstall or rename one."
    )


def test_a_name_of_ours_taken_by_another_package_is_an_error(add_package: Callable[..., None]) -> None:
    add_package("lora-eval-dup", "2", exporters={"merge": "acme_code:ONE"})

    with pytest.raises(PluginError, match=r"defined by lora-eval [\d.]+ and lora-eval-dup 2; uninstall"):
        get("exporter", "merge")


def test_a_packaged_file_is_not_code() -> None:
    plugin = next(plugin for plugin in list_plugins("suite") if plugin.path)

    with pytest.raises(PluginError, match=r"is the file .*suite\.yaml, not code"):
        load_plugin(plugin)
    assert plugin.package == "lora-eval"


def test_every_group_of_ours_is_known() -> None:
    groups = {point.group for point in distribution("lora-eval").entry_points}

    assert {group for group in groups if group.startswith("lora_eval.")} <= set(GROUPS.values())


@pytest.mark.parametrize(
    ("name", "is_path"),
    [
        ("./x", True),
        ("a/b", True),
        ("mine.yaml", True),
        ("mine.yml", True),
        ("x.jinja", True),
        ("qlora", False),
    ],
)
def test_a_path_is_told_from_a_name(name: str, is_path: bool) -> None:
    assert looks_like_path(name) is is_path
