"""The texts of a published folder, made again from its records and compared number by number."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path

from lora_eval.errors import RecordError
from lora_eval.publish.card import main_figures, render_card, render_curve
from lora_eval.publish.contents import render_reports
from lora_eval.publish.finding import Finding, same
from lora_eval.publish.records import EVALUATION, Records
from lora_eval.publish.results_yaml import FOLDER, expected_entries, read_entries
from lora_eval.records import LoadedRun, Publication

_NUMBER = re.compile(r"[+\u2212-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")


def card_findings(folder: Path, records: Records, publication: Publication) -> Iterator[Finding]:
    """Yield each number and sentence of the card that does not follow from the records."""
    found = list(_lines(folder, "README.md", render_card(records, publication)))
    yield from found
    yield from _version(found, publication)


def text_findings(folder: Path, records: Records, publication: Publication) -> Iterator[Finding]:
    """Yield what the reports and the loss curve say that does not follow."""
    expected = {f"{EVALUATION}/training-curve.svg": render_curve(records.training)}
    expected |= render_reports(records, {name: LoadedRun(run) for name, run in records.headers.items()})
    if publication.samples:  # its page holds the rows then, which are compared by themselves
        del expected[f"{EVALUATION}/report.html"]
    for name, text in expected.items():
        if text is not None:
            yield from _lines(folder, name, text)


def index_findings(folder: Path, records: Records, publication: Publication) -> Iterator[Finding]:
    """Yield what the card's front matter says that does not follow, as huggingface_hub's loader reads it."""
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
        claim = stated.pop(task.task, None)
        if not same(claim, value):
            yield Finding(f"README.md, model-index, {task.task}", str(claim), str(value))
    for name, claim in stated.items():
        yield Finding(f"README.md, model-index, {name}", str(claim), "nothing")
    for key in ("license", "base_model", "base_model_relation"):
        if data.get(key) != getattr(publication, key):
            yield Finding(f"README.md, {key}", str(data.get(key)), str(getattr(publication, key)))


def entry_findings(folder: Path, records: Records, publication: Publication) -> Iterator[Finding]:
    """Yield what `.eval_results` says that does not follow, or that our own schema does not take."""
    expected = expected_entries(records.comparison, publication)
    found = []
    for path in sorted((folder / FOLDER).glob("*.y*ml")):
        try:
            found += read_entries(path, publication)
        except RecordError as error:
            yield Finding(f"{FOLDER}/{path.name}", str(error.problems[0]), "an entry that our schema takes")
    for entry in found:
        wanted = next((each for each in expected if each.dataset == entry.dataset), None)
        if wanted is None or not same(wanted.value, entry.value):
            follows = str(wanted.value) if wanted else "no entry"
            yield Finding(f"{FOLDER}, {entry.dataset.dataset_id}", str(entry.value), follows)
    missing = [each for each in expected if each.dataset not in [entry.dataset for entry in found]]
    yield from (Finding(FOLDER, f"nothing of {each.task}", str(each.value)) for each in missing)


def _lines(folder: Path, name: str, expected: str) -> Iterator[Finding]:
    path = folder / name
    if not path.is_file():
        yield Finding(name, "nothing", "this file")
        return
    one, other = path.read_text("utf-8", "replace").splitlines(), expected.splitlines()
    if one == other:
        return
    for tag, a, b, c, d in difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        for offset in range(max(b - a, d - c) if tag != "equal" else 0):
            yield from _line(
                f"{name}, line {a + offset + 1}",
                one[a + offset] if a + offset < b else "",
                other[c + offset] if c + offset < d else "",
            )


def _line(place: str, claimed: str, expected: str) -> Iterator[Finding]:
    one, other = _NUMBER.findall(claimed), _NUMBER.findall(expected)
    if _NUMBER.sub("#", claimed) == _NUMBER.sub("#", expected):
        subject = claimed.split("|")[1].strip() if claimed.startswith("|") else ""
        place = f"{place} ({subject})" if subject else place
        yield from (Finding(place, a, b) for a, b in zip(one, other, strict=True) if a != b)
    elif claimed != expected:
        yield Finding(place, *_shortened(claimed, expected))


def _shortened(claimed: str, expected: str) -> tuple[str, str]:
    """Both lines from shortly before where they part: a page of HTML has long ones."""
    start = next((n for n, (a, b) in enumerate(zip(claimed, expected, strict=False)) if a != b), 0)
    start = max(0, start - 40) if len(claimed) > 120 else 0
    return repr(claimed[start : start + 120]), repr(expected[start : start + 120])


def _version(found: list[Finding], publication: Publication) -> Iterator[Finding]:
    """Sentences change from version to version: a difference may come from that alone."""
    from lora_eval.registry import own_version

    if found and publication.version != own_version():
        yield Finding(
            "README.md",
            f"lora-eval {publication.version} made it",
            f"a text of lora-eval {own_version()} (sentences differ; {publication.version} compares words)",
        )
