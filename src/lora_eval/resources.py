"""Find packaged files: `templates/` and `evals/` in a wheel and in a checkout, and `package:path` names."""

from __future__ import annotations

from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from lora_eval.errors import InputError

_PACKAGE = Path(str(files("lora_eval")))
_CHECKOUT = _PACKAGE.parent.parent


def resource_folder(name: str) -> Path:
    """Return the folder `templates` or `evals`: inside the installed package, else in the checkout.

    Raises:
        FileNotFoundError: in neither place; the message names both.
    """
    packaged = _PACKAGE / name
    if packaged.is_dir():
        return packaged
    checkout = _CHECKOUT / name
    if (_CHECKOUT / "pyproject.toml").is_file() and checkout.is_dir():
        return checkout
    raise FileNotFoundError(f"folder '{name}' is neither at {packaged} nor at {checkout}")


def resolve_path(name: str, relative_to: Path) -> Path:
    """Return the file that a recipe or suite names: `package:path/in/package`, or a path relative to
    the file that names it.

    Raises:
        InputError: the package is not installed, or there is no such file.
    """
    package, colon, inside = name.partition(":")
    if colon and package.replace(".", "").isidentifier() and not (relative_to / name).exists():
        path = package_folder(package) / inside
    else:
        path = relative_to / Path(name).expanduser()
    if not path.exists():
        raise InputError(f"no such file: {path} (named as '{name}')")
    return path


def package_folder(package: str) -> Path:
    """Return the folder of an installed package (`a.b`: the folder b in it), without importing it.

    Raises:
        InputError: there is no such package.
    """
    top, *inside = package.split(".")
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"package '{package}' is not installed")
    return Path(next(iter(spec.submodule_search_locations))).joinpath(*inside)
