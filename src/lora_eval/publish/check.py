"""Does a published folder say what its records and files say? Every number that does not follow is named."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_eval.errors import ControlFailed, InputError, RecordError
from lora_eval.fingerprint import fingerprint_folder, sha256_file
from lora_eval.publish.card import main_figures, render_card
from lora_eval.publish.contents import PUBLICATION
from lora_eval.publish.records import EVALUATION, Records, read_published
from lora_eval.publish.results_yaml import FOLDER, expected_entries, read_entries
from lora_eval.records import Comparison, Gate, Pair, Publication, TaskComparison
from lora_eval.schema import read_record

_NUMBER = re.compile(r"[+\u2212-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")
_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that does not match: where, what stands there, and what follows from records and files."""

    place: str
    claimed: str
    follows: str

    @property
    def text(self) -> str:
        """One line."""
        return f"{self.place}: says {self.claimed}, but {self.follows} follows"


def check_folder(folder: Path, recomputed: Comparison | None = None) -> list[Finding]:
    """Return everything in a published folder that does not follow from its records and files.

    `recomputed` is the comparison made again from the published rows (None: rows were not published).

    Raises:
        InputError: the folder was not published by lora-eval.
        RecordError: a record is faulty.
    """
    path = folder / PUBLICATION
    if not path.is_file():
        raise InputError(f"{folder}: no {PUBLICATION}: not published by lora-eval")
    publication = read_record(path, Publication)
    records = read_published(folder)
    return [
        *_files(folder, publication),
        *_fingerprints(folder, records, publication),
        *_card(folder, records, publication),
        *_index(folder, records, publication),
        *_entries(folder, records, publication),
        *_figures(records.comparison),
        *_gate(records.comparison),
        *(_recomputed(records.comparison, recomputed) if recomputed else ()),
    ]


def _files(folder: Path, publication: Publication) -> Iterator[Finding]:
    for name, file in publication.files.items():
        path = folder / name
        if not path.is_file():
            yield Finding(name, f"sha256 {file.sha256} in {PUBLICATION}", "no such file")
        elif sha256_file(path) != file.sha256:
            yield Finding(name, f"sha256 {file.sha256} in {PUBLICATION}", sha256_file(path))


def _fingerprints(folder: Path, records: Records, publication: Publication) -> Iterator[Finding]:
    found = fingerprint_folder(folder)
    claims = {f"{PUBLICATION}, fingerprint": publication.fingerprint}
    if records.lineage is not None:
        claims["lineage.json, last variant"] = records.lineage.variants[-1].fingerprint or found
    if records.verification is not None:
        candidate = records.verification.candidate.fingerprint
        claims[f"{EVALUATION}/verification.json, candidate"] = candidate or "nothing"
    arm = next((arm for arm in records.comparison.arms if arm.name == publication.arm), None)
    if arm is not None and not publication.verified_as and not arm.runs:
        claims[f"{EVALUATION}/comparison.json, arm {arm.name}"] = arm.fingerprint or "nothing"
    for place, claim in claims.items():
        if claim != found:
            yield Finding(place, claim, f"{found} (the files)")


def _card(folder: Path, records: Records, publication: Publication) -> Iterator[Finding]:
    """Line by line, number by number where a line has the same words."""
    path = folder / "README.md"
    if not path.is_file():
        yield Finding("README.md", "nothing", "a card")
        return
    claimed, expected = path.read_text("utf-8").splitlines(), render_card(records, publication).splitlines()
    matcher = difflib.SequenceMatcher(None, claimed, expected, autojunk=False)
    for tag, a, b, c, d in matcher.get_opcodes():
        if tag == "equal":
            continue
        for offset in range(max(b - a, d - c)):
            one = claimed[a + offset] if a + offset < b else ""
            other = expected[c + offset] if c + offset < d else ""
            yield from _line(f"README.md, line {a + offset + 1}", one, other)


def _line(place: str, claimed: str, expected: str) -> Iterator[Finding]:
    one, other = _NUMBER.findall(claimed), _NUMBER.findall(expected)
    if _NUMBER.sub("#", claimed) == _NUMBER.sub("#", expected):
        subject = claimed.split("|")[1].strip() if claimed.startswith("|") else ""
        place = f"{place} ({subject})" if subject else place
        yield from (Finding(place, a, b) for a, b in zip(one, other, strict=True) if a != b)
    elif claimed != expected:
        yield Finding(place, repr(claimed[:120]), repr(expected[:120]))


def _index(folder: Path, records: Records, publication: Publication) -> Iterator[Finding]:
    """The card's front matter, as huggingface_hub's own loader reads it."""
    from huggingface_hub import ModelCard

    if not (folder / "README.md").is_file():
        return
    try:
        data = ModelCard.load(folder / "README.md").data
    except (ValueError, OSError) as error:
        yield Finding("README.md, front matter", repr(str(error)[:120]), "YAML that the Hub reads")
        return
    stated = {result.dataset_name: result.metric_value for result in data.eval_results or ()}
    for task, value in main_figures(records.comparison, publication.arm):
        if not _equal(stated.get(task.task), value):
            yield Finding(f"README.md, model-index, {task.task}", str(stated.get(task.task)), str(value))
    for key in ("license", "base_model", "base_model_relation"):
        if data.get(key) != getattr(publication, key):
            yield Finding(f"README.md, {key}", str(data.get(key)), str(getattr(publication, key)))


def _entries(folder: Path, records: Records, publication: Publication) -> Iterator[Finding]:
    expected = expected_entries(records.comparison, publication)
    found = []
    for path in sorted((folder / FOLDER).glob("*.yaml")):
        try:
            found += read_entries(path, publication)
        except RecordError as error:
            yield Finding(f"{FOLDER}/{path.name}", str(error.problems[0]), "an entry that our schema takes")
    for entry in found:
        wanted = next((each for each in expected if each.dataset == entry.dataset), None)
        if wanted is None or not _equal(wanted.value, entry.value):
            follows = str(wanted.value) if wanted else "no entry"
            yield Finding(f"{FOLDER}, {entry.dataset.dataset_id}", str(entry.value), follows)
    missing = [each for each in expected if each.dataset not in [entry.dataset for entry in found]]
    yield from (Finding(FOLDER, f"nothing of {each.task}", str(each.value)) for each in missing)


def _figures(comparison: Comparison) -> Iterator[Finding]:
    """A record's figures against each other: counts, difference and means say the same thing."""
    for task in comparison.tasks:
        for pair in task.pairs:
            yield from _pair_figures(task, pair)


def _pair_figures(task: TaskComparison, pair: Pair) -> Iterator[Finding]:
    place = f"{EVALUATION}/comparison.json, {task.task} {task.metric}, {pair.b} against {pair.a}"
    if pair.wins + pair.losses + pair.ties != pair.n:
        counted = f"{pair.wins} + {pair.losses} + {pair.ties}"
        yield Finding(place, f"n {pair.n}", f"{counted} items")
    if "McNemar" in pair.method and pair.n and pair.difference is not None:
        gain = (pair.wins - pair.losses) / pair.n * (1 if task.higher_is_better else -1)
        if not _equal(gain, pair.difference):
            yield Finding(place, f"difference {pair.difference}", str(gain))
    low, value, high = pair.ci_low, pair.difference, pair.ci_high
    if low is not None and value is not None and high is not None and not low <= value <= high:
        yield Finding(place, f"difference {value}", f"one within {low} to {high}")


def _gate(comparison: Comparison) -> Iterator[Finding]:
    from lora_eval.stats.gate import judge_gate

    stored = comparison.gate
    if stored is None:
        return
    try:
        again = judge_gate(comparison, Gate(level=stored.level, rules=stored.rules), stored.source or "gate")
    except ControlFailed as error:
        yield Finding(f"{EVALUATION}/comparison.json, gate", stored.verdict, f"none: {error}")
        return
    for one, other in zip(stored.checks, again.checks, strict=False):
        if one.verdict != other.verdict:
            place = f"{EVALUATION}/comparison.json, gate, rules[{one.rule}] on {one.task}, {one.b}"
            yield Finding(place, one.verdict, other.verdict)
    if stored.verdict != again.verdict:
        yield Finding(f"{EVALUATION}/comparison.json, gate", stored.verdict, again.verdict)


def _recomputed(stored: Comparison, again: Comparison) -> Iterator[Finding]:
    """Every figure of the tasks, against the same figure from the published rows."""
    one, other = ({"tasks": json.loads(c.model_dump_json())["tasks"]} for c in (stored, again))
    for place, claim, follows in _leaves(one, other, f"{EVALUATION}/comparison.json"):
        yield Finding(place, str(claim), f"{follows} (from the published rows)")


def _leaves(one: object, other: object, place: str) -> Iterator[tuple[str, object, object]]:
    if isinstance(one, dict) and isinstance(other, dict):
        name = next((f" {one[key]}" for key in ("task", "a") if isinstance(one.get(key), str)), "")
        for key in one:
            yield from _leaves(one[key], other.get(key), f"{place}{name}, {key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for a, b in zip(one, other, strict=True):
            yield from _leaves(a, b, place)
    elif not _equal(one, other):
        yield place, one, other


def _equal(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    return one == other
