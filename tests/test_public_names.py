"""The public names are sorted, resolve, and are all there is."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Callable

import pytest

import lora_eval
from lora_eval import records
from tests.conftest import CHECKOUT, Result

MODULES = sorted(module.name for module in pkgutil.walk_packages(lora_eval.__path__, "lora_eval."))


def test_the_list_is_sorted_and_resolves() -> None:
    assert lora_eval.__all__ == sorted(lora_eval.__all__) == dir(lora_eval)
    for name in lora_eval.__all__:
        assert getattr(lora_eval, name).__name__ == name


def test_nothing_public_is_defined_beside_the_list() -> None:
    tree = ast.parse((CHECKOUT / "src" / "lora_eval" / "__init__.py").read_text("utf-8"))
    defined = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    defined |= {target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets}

    assert all(name.startswith("_") for name in defined)
    assert sorted(lora_eval._HOMES) == lora_eval.__all__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'lora_eval' has no attribute 'Recepie'"):
        getattr(lora_eval, "Recepie")  # noqa: B009


def test_records_gives_every_record() -> None:
    folder = CHECKOUT / "src" / "lora_eval" / "records"
    trees = [ast.parse(path.read_text("utf-8")) for path in folder.glob("*.py")]
    classes = {node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}

    assert records.__all__ == sorted(records.__all__)
    assert classes <= set(records.__all__)
    assert all(hasattr(records, name) for name in records.__all__)


def test_importing_the_package_imports_no_other(run_python: Callable[..., Result]) -> None:
    code = (
        "import sys; before = set(sys.modules); import lora_eval;"
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before} - sys.stdlib_module_names))"
    )

    assert run_python("-c", code).stdout.split() == ["lora_eval"]


@pytest.mark.parametrize("name", MODULES)
def test_a_modules_list_of_names_is_true(name: str) -> None:
    path = CHECKOUT / "src" / name.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if "__all__" in path.read_text("utf-8"):
        module = importlib.import_module(name)
        assert all(hasattr(module, item) for item in module.__all__)
