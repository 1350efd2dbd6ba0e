"""The one home of alpaca_eval: imported when asked for, its faults contained, its exceptions mapped.

alpaca_eval 0.6.6 imports `pkg_resources`, which setuptools has dropped; sets the root logger to INFO,
scikit-learn's metadata routing for the whole process, and pandas options; and fetches its tables from the
Hub. All of it is undone here, and the table is the file that was given.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.util
import logging
import math
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lora_eval.errors import InputError
from lora_eval.extras import require

# Of `df_gamed.csv` in the data set tatsu-lab/alpaca_eval at 2edc6fad8be6b14ea7230aabfd08188da6b8b814.
OFFICIAL_SHA256 = "97aeec3f1c7de6dee6fd31fe66f1702623f4614c3efe1c6fc5f4927cd5fd674d"
INSTRUCTIONS = 805
_COLUMNS = {"index", "model", "std_delta_len", "instruction_difficulty", "preference", "not_gamed_baseline"}


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """alpaca_eval's figures in percent, and what must be said of them (empty: nothing)."""

    win_rate: float
    standard_error: float | None
    note: str


def length_controlled(annotations: Sequence[dict[str, Any]], df_gamed: Path) -> LengthControlled:
    """Return alpaca_eval's length-controlled win rate of one model's rows, in the order of its instructions.

    Raises:
        InputError: there are more than 805 rows, or the fit fails on them.
        MissingExtraError: alpaca_eval is not installed.
    """
    if len(annotations) > INSTRUCTIONS:
        raise InputError(
            f"--df-gamed: {len(annotations)} rows, and the length-controlled win rate is defined for the "
            f"{INSTRUCTIONS} instructions of AlpacaEval; leave --df-gamed away"
        )
    with _contained():
        glm: Any = require("alpaca_eval.metrics.glm_winrate", "judge")
        fetch = glm.hf_hub_download
        glm.hf_hub_download = lambda **_: str(df_gamed)
        try:
            found = glm.get_length_controlled_winrate(
                list(annotations), save_weights_dir=None, is_warn_extreme_changes=False
            )
        except (ValueError, KeyError, AttributeError, AssertionError, TypeError) as error:
            raise InputError(f"alpaca_eval could not fit its length-controlled model: {error!r}") from error
        finally:
            glm.hf_hub_download = fetch
    note = ""
    if len(annotations) < INSTRUCTIONS:
        note = (
            f"{len(annotations)} of {INSTRUCTIONS} rows: alpaca_eval takes an instruction's difficulty by "
            "its row's number, so rows after a missing one have another's in length_controlled_winrate"
        )
    spread = float(found["lc_standard_error"])
    return LengthControlled(
        float(found["length_controlled_winrate"]), None if math.isnan(spread) else spread, note
    )


@cache
def completion_parser(function: str) -> Callable[..., list[Any]]:
    """Return one of alpaca_eval's parsers of completions.

    Raises:
        MissingExtraError: alpaca_eval is not installed.
    """
    with _contained():
        parsers = require("alpaca_eval.completion_parsers", "judge")
    found: Callable[..., list[Any]] = getattr(parsers, function)
    return found


def read_preference(function: str, arguments: Mapping[Any, Any], completion: Any) -> float | None:
    """Return what alpaca_eval's parser reads: 1 (the first is better) to 2; None where it reads nothing."""
    parser = completion_parser(function)
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # it logs every completion that it cannot read
    try:
        (found,) = parser(completion, **copy.deepcopy(dict(arguments)))
    except Exception:  # whatever a parser makes of a hostile text, it is no verdict
        return None
    finally:
        logging.disable(disabled)
    if isinstance(found, bool) or not isinstance(found, int | float) or not (found == 0 or 1 <= found <= 2):
        return None
    return 1.5 if found == 0 else float(found)


def check_table(path: Path) -> str:
    """Return what must be said of the table (empty: it is the official one).

    Raises:
        InputError: it cannot be read, or is not alpaca_eval's df_gamed.csv.
    """
    import gzip

    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    except (OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    header = content.split(b"\n", 1)[0].decode("utf-8", "replace").strip().split(",")
    if lacking := sorted(_COLUMNS - set(header)):
        raise InputError(f"{path}: is not alpaca_eval's df_gamed.csv: no column {', '.join(lacking)}")
    if hashlib.sha256(content).hexdigest() == OFFICIAL_SHA256:
        return ""
    return f"{path.name} is not the pinned official df_gamed.csv, so this is no official figure"


@contextlib.contextmanager
def _contained() -> Iterator[None]:
    """Stand in for what is missing, and put back what alpaca_eval changes in the process."""
    stand_in = importlib.util.find_spec("pkg_resources") is None and "pkg_resources" not in sys.modules
    if stand_in:
        sys.modules["pkg_resources"] = _package_versions()
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn's words to alpaca_eval's authors
            with _same_settings():
                yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers
        if stand_in:
            sys.modules.pop("pkg_resources", None)


@contextlib.contextmanager
def _same_settings() -> Iterator[None]:
    sklearn = require("sklearn", "judge")
    before = sklearn.get_config()
    try:
        yield
    finally:
        sklearn.set_config(**before)


def _package_versions() -> types.ModuleType:
    """The two names of pkg_resources that alpaca_eval uses."""
    from importlib.metadata import distribution

    from packaging.version import parse

    module = types.ModuleType("pkg_resources")
    module.get_distribution = distribution  # type: ignore[attr-defined]
    module.parse_version = parse  # type: ignore[attr-defined]
    return module
