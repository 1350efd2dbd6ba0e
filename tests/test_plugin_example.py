"""A third party's package: what it adds is found, loads, and is of use."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from lora_eval.protocols import ExportRequest
from lora_eval.registry import find_plugin, get
from tests.conftest import Result

pytestmark = pytest.mark.usefixtures("plugin_example")

ADDED = {
    "recipe": "acme-support",
    "template": "acme",
    "suite": "acme-arithmetic",
    "exporter": "acme-copy",
}


@pytest.mark.parametrize(("kind", "name"), ADDED.items())
def test_each_addition_is_listed_with_its_package(kind: str, name: str) -> None:
    plugin = find_plugin(kind, name)

    assert (plugin.package, plugin.version) == ("lora-eval-acme", "1.2")


def test_listing_imports_no_plugin(run_python: Callable[..., Result]) -> None:
    code = (
        "import sys; from lora_eval.cli.main import run; status = run(['plugins']);"
        "assert 'lora_eval_acme' not in sys.modules; sys.exit(status)"
    )
    result = run_python("-c", code)

    assert result.status == 0, result.stderr
    assert "acme-copy" in result.stdout


def test_check_loads_the_additions(run_cli: Callable[..., Result]) -> None:
    result = run_cli("plugins", "--check", "--json")

    rows = json.loads(result.stdout)["plugins"]
    added = {row["kind"]: row for row in rows if row["package"] == "lora-eval-acme"}
    assert {kind: row["name"] for kind, row in added.items()} == ADDED
    assert [row["problem"] for row in added.values()] == [None] * 4


def test_its_exporter_exports(tiny_llama, tmp_path) -> None:
    get("exporter", "acme-copy").export(ExportRequest(tiny_llama, None, tmp_path / "out"))

    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tiny_llama / "model.safetensors"
    ).read_bytes()


def test_its_recipe_is_shown_with_its_package(run_cli: Callable[..., Result]) -> None:
    result = run_cli("recipe", "show", "acme-support", "--resolved")

    assert result.status == 0, result.stderr
    assert "acme-support of lora-eval-acme 1.2" in result.stdout


def test_its_template_is_safe_to_train_with(run_cli: Callable[..., Result]) -> None:
    result = run_cli("template", "check", "acme", "--json")

    assert (result.status, json.loads(result.stdout)["passed"]) == (0, True)


def test_its_data_file_is_found() -> None:
    from lora_eval.data.messages import read_conversations
    from lora_eval.recipes import load_recipe

    (path,) = load_recipe("acme-support", check=False).data_files()

    assert len(read_conversations(path)) == 4


def test_its_suite_is_listed_though_it_has_no_summary(run_cli: Callable[..., Result]) -> None:
    lines = run_cli("suite", "list").stdout.splitlines()

    assert [line.split() for line in lines if line.startswith("acme")] == [["acme-arithmetic", "1", "tasks"]]
