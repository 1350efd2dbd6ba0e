"""Everything a repository will hold, gathered before anything is sent, with all that is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lora_eval.publish.card import render_card, render_curve
from lora_eval.publish.content import Content
from lora_eval.publish.records import EVALUATION, RECIPE, Records, portable_data
from lora_eval.publish.refusals import check_file, header_paths, is_text, list_files, local_paths
from lora_eval.publish.results_yaml import FOLDER, eval_results_yaml
from lora_eval.publish.secrets import secrets_in_bytes
from lora_eval.records import LoadedRun, Publication
from lora_eval.records.publication import PublishedFile
from lora_eval.runstore import HEADER
from lora_eval.schema import dump_record, dump_yaml, load_json, load_yaml

PUBLICATION = f"{EVALUATION}/publication.json"
# Written anew from records, whatever stands in the folder.
_OURS = ("README.md", "lineage.json", "training_log.json", "verification.json")
# Where libraries note a folder of this machine; no fingerprint counts these keys.
_BASE_KEYS = {
    "adapter_config.json": "base_model_name_or_path",
    "config.json": "_name_or_path",
    "tokenizer_config.json": "name_or_path",
}


def gather_folder(
    folder: Path, publication: Publication, names: Mapping[str, str]
) -> tuple[dict[str, Content], list[str]]:
    """Return the weights' folder as it will be uploaded, the base named as on the Hub and the recipe without
    paths (`names` as in `portable`); and what is wrong.
    """
    paths, problems = list_files(folder)
    contents = {}
    for path in paths:
        name = path.relative_to(folder).as_posix()
        if name in _OURS or name.startswith((f"{EVALUATION}/", f"{FOLDER}/")):
            continue
        problems += check_file(path)
        changed = _portable_recipe(path, names) if name == RECIPE else _named(name, path, publication)
        contents[name] = Content(path if changed is None else changed)
    return contents, problems


def _portable_recipe(path: Path, names: Mapping[str, str]) -> bytes | None:
    data = load_yaml(path)
    changed = portable_data(data, names)
    return None if changed == data else dump_yaml(changed).encode()


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
    files |= {f"{EVALUATION}/runs/{name}/{HEADER}": dump_record(run) for name, run in records.headers.items()}
    # The page's browser of items shows prompts and answers: samples, which are published only when asked.
    shown = runs if publication.samples else {name: LoadedRun(run) for name, run in records.headers.items()}
    files |= render_reports(records, shown)
    curve = render_curve(records.training)
    if curve is not None:
        files[f"{EVALUATION}/training-curve.svg"] = curve
    entries = eval_results_yaml(records.comparison, publication)
    if entries is not None:
        files[f"{FOLDER}/lora-eval.yaml"] = entries
    files["README.md"] = render_card(records, publication)
    return {path: Content(text.encode()) for path, text in files.items()}


def with_publication(contents: Mapping[str, Content], publication: Publication) -> dict[str, Content]:
    """Return the contents with `publication.json`, which holds the hash of every other file."""
    files = {path: PublishedFile(size=each.size, sha256=each.sha256) for path, each in contents.items()}
    record = publication.model_copy(update={"files": files})
    return {**contents, PUBLICATION: Content(dump_record(record).encode())}


def text_problems(contents: Mapping[str, Content]) -> Iterator[str]:
    """Yield every path of this machine that a text among the contents, or the metadata of weights, would give
    away; and every secret in what we write ourselves, such as a note in a record.
    """
    for path, content in contents.items():
        if path.endswith(".safetensors") and isinstance(content.source, Path):
            yield from header_paths(path, content.source)
        elif is_text(path, content.size):
            yield from local_paths(path, content.read().decode("utf-8", "replace"))
        if isinstance(content.source, bytes) and not path.endswith(".parquet"):
            yield from (f"{path}: {problem}" for problem in secrets_in_bytes(content.source))


def render_reports(records: Records, runs: Mapping[str, LoadedRun]) -> dict[str, str]:
    """Return the report of the whole comparison; its page shows the prompts and answers of `runs`."""
    from lora_eval.reports.html import render_html
    from lora_eval.reports.markdown import render_markdown

    verifications = [record for record in (records.verification,) if record is not None]
    return {
        f"{EVALUATION}/report.html": render_html(records.comparison, runs, verifications),
        f"{EVALUATION}/report.md": render_markdown(records.comparison, verifications),
    }


def _named(name: str, path: Path, publication: Publication) -> bytes | None:
    """The file with the base's name on the Hub, where it names another; None where it stays as it is."""
    key = _BASE_KEYS.get(name)
    if key is None:
        return None
    data = load_json(path)
    changed = _with_base(data, key, publication.base_model)
    if changed == data:
        return None
    return (json.dumps(changed, indent=2, ensure_ascii=False) + "\n").encode()


def _with_base(data: Any, key: str, base: str) -> Any:
    """A model of several parts names its base in each of them."""
    if not isinstance(data, dict):
        return data
    return {
        name: base if name == key and value is not None else _with_base(value, key, base)
        for name, value in data.items()
    }
