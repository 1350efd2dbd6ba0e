"""What `compare` is told on the command line: the folder for its results, the store, arms, numbers."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_eval.errors import InputError, OutputError

if TYPE_CHECKING:
    from lora_eval.engines.store import ResultStore
    from lora_eval.evaluate import Arms, FolderArm
    from lora_eval.evaluate.arms import ServedArm
    from lora_eval.evaluate.selection import AnySuite
    from lora_eval.records import Gate

_RUN = "#"  # between an arm and the number of its training run: no arm may have it in its name
_KINDS = ("merged", "gptq", "awq")
_OURS = {"comparison.json", "report.md", "report.html", "runs", "answers", "judged"}
_ROOM = 16 * 2**20  # bytes that must be free: runs and report of a small suite


def check_out(out: Path) -> None:
    """Raise OutputError where `out` holds something else than a comparison, or its disk is full."""
    import shutil

    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is a file; --out names a folder")
    other = sorted(path.name for path in out.iterdir() if path.name not in _OURS) if out.is_dir() else []
    if other:
        raise OutputError(
            f"{out}: not empty, and no comparison (it holds {', '.join(other[:3])}); give a new --out"
        )
    place = out.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < _ROOM:
        raise OutputError(
            f"{out}: no space: {free // 1024:,} KiB are free there, at least {_ROOM // 1024:,} KiB are needed"
        )


@contextlib.contextmanager
def open_store(place: str | None, *, spoken: bool = True) -> Iterator[ResultStore | None]:
    """Yield the store at a path, the user's own (None), or nothing (`none`).

    Raises:
        OutputError, RecordError: the file that was asked for cannot be used. Where the user's own cannot be
            opened, the evaluation goes on without it, and says so.
    """
    from lora_eval.engines.store import ResultStore

    if place == "none":
        yield None
        return
    try:
        store = ResultStore(Path(place) if place else None)
    except OutputError as error:
        if place:
            raise
        if spoken:
            click.echo(f"answers are not kept for later runs: {error}", err=True)
        yield None
        return
    with store:
        yield store


def check_asked(options: Mapping[str, Any]) -> None:
    """Raise InputError where nothing is asked, or task files without tasks."""
    if not _task_names(options) and not options["suites"]:
        raise InputError("nothing to run: give --suite NAME (see `lora-eval suite list`) or --tasks A,B")
    if options["include_path"] and not _task_names(options):
        raise InputError(
            "--include-path is for --tasks: name the tasks, or give the folder's suite to --suite"
        )


def read_suite(options: Mapping[str, Any]) -> AnySuite:
    """Return what is asked, loaded."""
    from lora_eval.evaluate import open_suite

    return open_suite(
        options["suites"],
        tasks=_task_names(options),
        include_path=options["include_path"],
        limit=options["limit"],
        num_fewshot=options["num_fewshot"],
        seed=options["seed"],
        fixed_fewshot=options["fixed_fewshot"],
    )


def _task_names(options: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(name.strip() for name in (options["tasks"] or "").split(",") if name.strip())


def parse_arms(
    base: str,
    adapters: tuple[str, ...],
    others: tuple[str, ...],
    options: dict[str, Any],
    *,
    served: bool = False,
) -> Arms:
    """Return who is compared, found on disk; names that were not given are chosen.

    A name given several times is one arm with several training runs: they are `NAME#1`, `NAME#2` and so on
    (`training_runs`). `served` allows models of running servers.

    Raises:
        InputError: two adapters without a name lie in folders of one name, or a run is named twice.
    """
    from lora_eval.evaluate import Arms, FolderArm
    from lora_eval.evaluate.arms import ServedArm
    from lora_eval.models import parse_arm, resolve_adapter, resolve_model

    alone = [_other(text, (*_KINDS, "served") if served else _KINDS) for text in others]
    base_name, base_path, base_revision = parse_arm(base)
    folder = resolve_model(base_path, base_revision)
    found: dict[str, list[tuple[Path, str | None]]] = {}
    for text in adapters:
        given, path, revision = parse_arm(text)
        place = resolve_adapter(path, revision)
        name = given or ("adapter" if len(adapters) == 1 else place.name)
        own = found.setdefault(name, [])
        if own and given is None:
            raise InputError(f"--adapter {text}: the name '{name}' is taken; give it one with NAME={path}")
        if (place, revision) in own:
            raise InputError(f"--adapter {text}: is given twice; another training run has another folder")
        own.append((place, revision))
    single = {
        name if len(own) == 1 else f"{name}{_RUN}{number}": run
        for name, own in found.items()
        for number, run in enumerate(own, start=1)
    }
    return Arms(
        base=folder,
        adapters={name: place for name, (place, _) in single.items()},
        others=tuple(arm for arm in alone if isinstance(arm, FolderArm)),
        served=tuple(arm for arm in alone if isinstance(arm, ServedArm)),
        base_name=base_name or "base",
        base_revision=base_revision,
        revisions={name: revision for name, (_, revision) in single.items()},
        dtype=options["dtype"],
        quantize=options["quantize"],
        add_original=options["add_original"],
    )


def check_method(method: str, suite: AnySuite, members: Mapping[str, Sequence[str]]) -> None:
    """Raise InputError where a resampling method would have too few items, or an arm several trainings."""
    from lora_eval.evaluate.selection import leaves_of
    from lora_eval.stats.resampling import check_units, raise_refused

    if method == "auto":
        return
    for arm in members:
        raise InputError(f"--method {method}: {arm} has several training runs, which need --method auto")
    sizes = {task: sum(len(suite.items[leaf]) for leaf in own) for task, own in leaves_of(suite).items()}
    refused = {task: check_units(size, method) for task, size in sizes.items()}
    raise_refused({task: reason for task, reason in refused.items() if reason})


def training_runs(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the arms that have several training runs, each with the names of its runs."""
    found: dict[str, list[str]] = {}
    for name in names:
        arm, mark, _ = name.rpartition(_RUN)
        if mark:
            found.setdefault(arm, []).append(name)
    return {arm: tuple(own) for arm, own in found.items()}


def parse_pairs(texts: Sequence[str], arms: Arms) -> list[tuple[str, str]]:
    """Return the pairs (a, b) of `A,B`, b against a.

    Raises:
        InputError: not two names, or a name that is no arm.
    """
    from lora_eval.evaluate.arms import ORIGINAL
    from lora_eval.schema import suggest

    known = [arms.base_name, *dict.fromkeys(name.partition(_RUN)[0] for name in arms.adapters)]
    known += [*([ORIGINAL] if arms.add_original else []), *arms.alone]
    pairs = []
    for text in texts:
        names = tuple(name.strip() for name in text.split(","))
        if len(names) != 2 or not all(names) or names[0] == names[1]:
            raise InputError(f"--pair {text}: expected A,B with the names of two arms, for B against A")
        for name in names:
            if name not in known:
                raise InputError(
                    f"--pair {text}: no arm '{name}'{suggest(name, known)}; arms: {', '.join(known)}"
                )
        pairs.append((names[0], names[1]))
    return pairs


def _other(text: str, kinds: Sequence[str]) -> FolderArm | ServedArm:
    from lora_eval.evaluate import FolderArm
    from lora_eval.models import parse_arm, resolve_model
    from lora_eval.schema import suggest

    name, equals, rest = text.partition("=")
    kind, colon, path = rest.partition(":")
    if not equals or not colon:
        raise InputError(f"--arm {text}: expected NAME=KIND:PATH, for example shipped=merged:./merged")
    if kind not in kinds:
        known = ", ".join(kinds)
        raise InputError(f"--arm {text}: unknown kind '{kind}'{suggest(kind, kinds)}; known: {known}")
    if kind == "served":
        parse_arm(f"{name}=server")
        return _served(text, name, path)
    _, place, revision = parse_arm(path)
    parse_arm(f"{name}={place}")
    return FolderArm(name, kind, resolve_model(place, revision), revision)  # type: ignore[arg-type]


def _served(text: str, name: str, place: str) -> ServedArm:
    from lora_eval.engines.http_client import check_url
    from lora_eval.evaluate.arms import ServedArm

    url, _, model = place.partition("#")
    if not model:
        raise InputError(
            f"--arm {text}: expected NAME=served:URL#MODEL, such as "
            "prod=served:http://127.0.0.1:8000/v1#adapter-name"
        )
    return ServedArm(name, check_url(url), model)


def parse_batch_tokens(text: str) -> int | None:
    """Return the number, None for `auto`."""
    if text == "auto":
        return None
    if not text.isdigit() or int(text) < 1:
        raise InputError(f"--batch-tokens {text}: expected auto or a number above 0")
    return int(text)


def parse_engine_option(text: str) -> tuple[str, Any]:
    """Return name and value of NAME=VALUE; the value is JSON where it can be read so, else text."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InputError(f"--engine-option {text}: expected NAME=VALUE")
    with contextlib.suppress(json.JSONDecodeError):
        return name, json.loads(value)
    return name, value


def parse_margin(text: str) -> tuple[str, float]:
    """Return task and margin of TASK=X."""
    task, equals, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not equals or not 0 < number < math.inf:
        raise InputError(f"--margin {text}: expected TASK=X with a finite X above 0, in the metric's units")
    return task, number


def read_gate(path: Path | None, *, strict: bool) -> Gate | None:
    """Return the rules of `--gate`; None where none is given."""
    from lora_eval.records import Gate
    from lora_eval.schema import read_record

    if path is None:
        if strict:
            raise InputError("--strict: is for a gate; give its rules with --gate FILE")
        return None
    return read_record(path, Gate)


def check_gate(gate: Gate, path: Path, arms: Arms, suite: AnySuite) -> None:
    """Raise RecordError where a rule names a task or arm that this comparison will not have."""
    from lora_eval.evaluate import ORIGINAL
    from lora_eval.stats.gate_rules import check_names

    tasks = dict.fromkeys((*(entry.task for entry in suite.record.entries()), *suite.groups, *suite.items))
    names = [*dict.fromkeys(name.partition(_RUN)[0] for name in arms.adapters)]
    names += [*([ORIGINAL] if arms.add_original else []), *arms.alone]
    check_names(gate, list(tasks), names, arms.base_name, str(path))
