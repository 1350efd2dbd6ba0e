"""`lora-eval plugins` lists without importing; what is broken is said, and breaks nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_eval.registry import GROUPS, list_plugins
from tests.conftest import Result

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "{name}"
version = "0.3"
[project.entry-points."lora_eval.recipes"]
{recipe} = "{module}:RECIPE"
[project.entry-points."lora_eval.exporters"]
{exporter} = "{module}:Nothing"
"""


@pytest.fixture(scope="module")
def broken_site(
    install_package: Callable[[Path, Path], None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with two packages that pip has installed: one fails on import, one takes a name of ours."""
    folder = tmp_path_factory.mktemp("broken")
    for name, recipe, exporter in (("acme-broken", "broken", "broken"), ("acme-twice", "twice", "merge")):
        module = name.replace("-", "_")
        project = folder / name
        project.mkdir()
        values = {"name": name, "module": module, "recipe": recipe, "exporter": exporter}
        (project / "pyproject.toml").write_text(PROJECT.format(**values))
        (project / f"{module}.py").write_text("import acme_library_that_is_gone\n")
        install_package(project, folder / "site")
    return folder / "site"


@pytest.fixture
def broken(broken_site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(broken_site))


def rows(result: Result) -> list[dict[str, object]]:
    return json.loads(result.stdout)["plugins"]


def test_every_plugin_of_every_kind_is_listed(run_cli: Callable[..., Result]) -> None:
    found = rows(run_cli("plugins", "--json"))

    expected = [(plugin.kind, plugin.name) for kind in GROUPS for plugin in list_plugins(kind)]
    assert [(row["kind"], row["name"]) for row in found] == expected
    assert {row["kind"] for row in found} >= {"recipe", "template", "suite", "exporter", "engine"}
    assert all(row["version"] and row["source"] for row in found)
    assert {row["loads"] for row in found} == {None}


def test_the_table_has_a_line_for_each(run_cli: Callable[..., Result]) -> None:
    lines = run_cli("plugins", "--kind", "exporter").stdout.splitlines()

    merge = next(line for line in lines if " merge " in line)
    assert merge.split()[:3] == ["exporter", "merge", "lora-eval"]
    assert merge.endswith("lora_eval.exporters.merge:MergeExporter")
    assert lines[-1] == f"{len(lines) - 1} plugins"


def test_a_kind_with_none_is_an_empty_list(
    run_cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(GROUPS, "server", "lora_eval.nothing")
    assert run_cli("plugins", "--kind", "server") == Result(0, "0 plugins\n", "")


def test_all_that_is_ours_loads_without_noise(runner: Callable[..., Result]) -> None:
    result = runner("plugins", "--check", "--json")

    ours = [row for row in rows(result) if row["package"] == "lora-eval"]
    assert [row for row in ours if not row["loads"]] == []
    assert result.stderr == ""  # importing the model libraries logs nothing that a user can act on


@pytest.mark.usefixtures("broken")
def test_a_broken_plugin_is_listed_without_a_word(run_cli: Callable[..., Result]) -> None:
    result = run_cli("plugins", "--kind", "recipe")

    assert (result.status, result.stderr) == (0, "")
    assert "acme-broken 0.3" in result.stdout
    assert "BROKEN" not in result.stdout


@pytest.mark.usefixtures("broken")
def test_check_says_what_is_broken_and_why(run_cli: Callable[..., Result]) -> None:
    result = run_cli("plugins", "--check", "--kind", "exporter", "--kind", "recipe")

    assert result.status == 2
    assert (
        "    BROKEN: The exporter 'broken' ('acme_broken:Nothing' of acme-broken 0.3) could not be loaded: "
        "ModuleNotFoundError: No module named 'acme_library_that_is_gone'"
    ) in result.stdout.splitlines()
    rows_of_both = re.findall(r"^\w+ +(\w+) +acme-(?:broken|twice) ", result.stdout, re.MULTILINE)
    assert sorted(rows_of_both) == ["broken", "broken", "merge", "twice"]
    assert re.fullmatch(r"\d+ plugins, 5 broken", result.stdout.splitlines()[-1])  # merge counts twice


@pytest.mark.usefixtures("broken")
def test_a_name_of_two_packages_is_shown_with_both(run_cli: Callable[..., Result]) -> None:
    found = [row for row in rows(run_cli("plugins", "--json")) if row["name"] == "merge"]

    assert [row["package"] for row in found] == ["acme-twice", "lora-eval"]
    problem = "more than one package has an exporter of this name; uninstall or rename one"
    assert {row["problem"] for row in found} == {problem}


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["recipe", "list"],
        ["template", "list"],
        ["suite", "list"],
        ["recipe", "show", "qlora-base"],
    ],
)
def test_no_other_command_minds(run_cli: Callable[..., Result], arguments: list[str]) -> None:
    result = run_cli(*arguments)

    assert result.status == 0, result.stderr
    assert "acme_library_that_is_gone" not in result.stdout + result.stderr


@pytest.mark.usefixtures("broken")
def test_the_command_that_asks_for_it_is_told(run_cli: Callable[..., Result]) -> None:
    result = run_cli("recipe", "show", "broken")

    assert result.status == 2
    assert "of acme-broken 0.3) could not be loaded: ModuleNotFoundError" in result.stderr
