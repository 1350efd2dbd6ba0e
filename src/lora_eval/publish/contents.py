"""Everything a repository will hold, gathered before anything is sent, with all that is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lora_eval.publish.card import render_card, render_curve
from lora_eval.publish.content import Content
from lora_eval.publish.records import EVALUATION, Records
from lora_eval.publish.refusals import check_file, header_paths, is_text, list_files, local_paths
from lora_eval.publish.results_yaml import eval_results_yaml
from lora_eval.records import LoadedRun, Publication
from lora_eval.records.publication import PublishedFile
from lora_eval.schema import dump_record

PUBLICATION = f"{EVALUATION}/publication.json"
# Written anew from records, whatever stands in the folder.
_OURS = ("README.md", "lineage.json", "training_log.json", "verification.json")
# Where libraries note a folder of this machine; no fingerprint counts these keys.
_BASE_KEYS = {"adapter_config.json": "base_model_name_or_path", "config.json": "_name_or_path"}


def gather_folder(folder: Path, publication: Publication) -> tuple[dict[str, Content], list[str]]:
    """Return the weights' folder as it will be uploaded, the base named as on the Hub; and what is wrong."""
    paths, problems = list_files(folder)
    contents = {}
    for path in paths:
        name = path.relative_to(folder).as_posix()
        if name in _OURS or name.startswith(f"{EVALUATION}/"):
            continue
        problems += check_file(path)
        changed = _named(name, path, publication)
        contents[name] = Content(path if changed is None else changed)
    return contents, problems


def gather_records(
    records: Records, runs: Mapping[str, LoadedRun], publication: Publication
) -> dict[str, Content]:
    """Return the records' files, report and card; `records` are portable already."""
    files: dict[str, str] = {f"{EVALUATION}/comparison.json": dump_record(records.comparison)}
    for path, record in (
        (f"{EVALUATION}/verification.json", records.verification),
        ("lineage.json", records.lineage),
        ("training_log.json", records.training),
    ):
        if record is not None:
            files[path] = dump_record(record)
    files |= _reports(records, runs, publication)
    curve = render_curve(records.training)
    if curve is not None:
        files[f"{EVALUATION}/training-curve.svg"] = curve
    entries = eval_results_yaml(records.comparison, publication)
    if entries is not None:
        files[".eval_results/lora-eval.yaml"] = entries
    files["README.md"] = render_card(records, publication)
    return {path: Content(text.encode()) for path, text in files.items()}


def with_publication(contents: Mapping[str, Content], publication: Publication) -> dict[str, Content]:
    """Return the contents with `publication.json`, which holds the hash of every other file."""
    files = {path: PublishedFile(size=each.size, sha256=each.sha256) for path, each in contents.items()}
    record = publication.model_copy(update={"files": files})
    return {**contents, PUBLICATION: Content(dump_record(record).encode())}


def text_problems(contents: Mapping[str, Content]) -> Iterator[str]:
    """Yield every path of this machine that a text among the contents, or the metadata of weights, would give
    away.
    """
    for path, content in contents.items():
        if path.endswith(".safetensors") and isinstance(content.source, Path):
            yield from header_paths(path, content.source)
        elif is_text(path, content.size):
            yield from local_paths(path, content.read().decode("utf-8", "replace"))


def _reports(records: Records, runs: Mapping[str, LoadedRun], publication: Publication) -> dict[str, str]:
    from lora_eval.reports.html import render_html
    from lora_eval.reports.markdown import render_markdown

    verifications = [record for record in (records.verification,) if record is not None]
    # The page's browser of items shows prompts and answers: samples, which are published only when asked.
    shown = dict(runs) if publication.samples else {name: LoadedRun(run.run) for name, run in runs.items()}
    return {
        f"{EVALUATION}/report.html": render_html(records.comparison, shown, verifications),
        f"{EVALUATION}/report.md": render_markdown(records.comparison, verifications),
    }


def _named(name: str, path: Path, publication: Publication) -> bytes | None:
    """The file with the base's name on the Hub, where it names another; None where it stays as it is."""
    key = _BASE_KEYS.get(name)
    if key is None:
        return None
    data: dict[str, Any] = json.loads(path.read_text("utf-8"))
    if data.get(key) in (None, publication.base_model):
        return None
    return (json.dumps(data | {key: publication.base_model}, indent=2, ensure_ascii=False) + "\n").encode()
