"""An edited number is found, wherever it was edited."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_eval.publish import Options, check_folder, prepare
from lora_eval.publish.contents import PUBLICATION, gather_records
from lora_eval.publish.records import read_published
from lora_eval.records import LoadedRun, Publication
from lora_eval.records.publication import Benchmark, PublishedFile
from lora_eval.schema import read_record, write_record


@pytest.fixture(params=[True, False], ids=["rows", "no rows"])
def published(measured: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The adapter's repository, as a folder, with and without its rows."""
    return unfold(measured, tmp_path / "repo", samples=request.param)


@pytest.fixture
def merged(measured: Path, tmp_path: Path) -> Path:
    """The merged model's repository, as a folder."""
    return unfold(measured, tmp_path / "repo", "merged")


def unfold(measured: Path, out: Path, variant: str = "adapter", samples: bool = False) -> Path:
    """What would be published, as a folder."""
    options = Options(
        repo_id="me/tuned", base_model="org/base", license="mit", samples=samples,
        benchmarks={"facts": Benchmark(dataset_id="org/facts", task_id="default")},
    )  # fmt: skip
    found = prepare(measured / variant, measured / "runs" / "mine" / "comparison.json", options)
    for path, content in found.contents.items():
        target = out / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.read())
    return out


def rewrite(folder: Path, change: Any) -> list[str]:
    """A forger with our own tools: changes the records, then makes card, reports and hashes anew from them;
    returns what the check still finds.
    """
    path = folder / "evaluation" / "comparison.json"
    record = json.loads(path.read_text("utf-8"))
    change(record)
    path.write_text(json.dumps(record), "utf-8")
    publication, records = read_record(folder / PUBLICATION, Publication), read_published(folder)
    runs = {name: LoadedRun(run) for name, run in records.headers.items()}
    written = gather_records(records, runs, publication)
    files = dict(publication.files)
    for name, content in written.items():
        (folder / name).write_bytes(content.read())
        files[name] = PublishedFile(size=content.size, sha256=content.sha256)
    write_record(folder / PUBLICATION, publication.model_copy(update={"files": files}))
    return [finding.text for finding in check_folder(folder)]


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")


def test_an_untouched_repository_follows_from_its_records(published: Path, publish_cli: Any) -> None:
    assert check_folder(published) == []
    status, out, _ = publish_cli("--check", published, "--json")
    assert (status, json.loads(out)) == (0, {"passed": True, "findings": []})


def test_an_edited_number_in_the_card_is_named_with_its_task(published: Path, publish_cli: Any) -> None:
    card = published / "README.md"
    line = next(line for line in card.read_text("utf-8").splitlines() if line.startswith("| tickets"))
    cells = line.split("|")
    edit(card, line, "|".join([*cells[:3], " +99 points ", *cells[4:]]))
    status, out, _ = publish_cli("--check", published)
    assert status == 3
    assert "(tickets (target)): says +99, but " in out
    assert "README.md: says sha256" in out


def test_a_removed_line_about_a_loss_is_found(published: Path) -> None:
    card = published / "README.md"
    line = next(line for line in card.read_text("utf-8").splitlines() if line.startswith("- reading:"))
    edit(card, line + "\n", "")
    assert any("reading" in finding.follows for finding in check_folder(published))


def test_an_edited_record_is_found_even_with_a_new_card(published: Path, publish_cli: Any) -> None:
    path = published / "evaluation" / "comparison.json"
    record = json.loads(path.read_text("utf-8"))
    task = next(task for task in record["tasks"] if task["task"] == "tickets")
    task["means"]["adapter"], task["pairs"][0]["difference"] = 0.99, 0.99
    path.write_text(json.dumps(record), "utf-8")
    status, out, _ = publish_cli("--check", published)
    assert status == 3
    assert "tickets exact_match, adapter against base: says difference 0.99" in out
    assert ("(from the published rows)" in out) is (
        published / "evaluation/runs/base/samples.parquet"
    ).exists()
    assert "mean of adapter: says 0.99, but " in out
    assert "model-index, tickets" in out


def test_changed_weights_are_found(published: Path) -> None:
    path = published / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    places = [finding.place for finding in check_folder(published)]
    assert "adapter_model.safetensors" in places
    assert "evaluation/publication.json, fingerprint" in places
    assert "lineage.json, last variant" in places
    assert "evaluation/comparison.json, arm adapter" in places


@pytest.mark.parametrize(
    "entry",
    [
        {"dataset": {"id": "org/facts", "task_id": "default"}, "value": 0.123, "date": "2026-01-01"},
        {"dataset": {"id": "org/facts", "task_id": "default"}, "value": float("nan"), "date": "2026-01-01"},
        {"dataset": {"id": "no id", "task_id": "default"}, "value": 1.0, "date": "2026-01-01"},
        {"value": 1.0},
    ],
)
def test_entries_of_eval_results_are_checked_by_our_own_schema(
    published: Path, entry: dict[str, Any]
) -> None:
    path = published / ".eval_results" / "lora-eval.yaml"
    assert yaml.safe_load(path.read_text("utf-8"))[0]["dataset"]["id"] == "org/facts"
    path.write_text(yaml.safe_dump([entry]), "utf-8")
    assert any(finding.place.startswith(".eval_results") for finding in check_folder(published)[1:])


def test_a_folder_of_somebody_else(tmp_path: Path, publish_cli: Any) -> None:
    status, _, said = publish_cli("--check", tmp_path)
    assert (status, "not published by lora-eval" in said) == (2, True)
    status, _, said = publish_cli("--check", tmp_path / "nothing")
    assert (status, "no such folder" in said) == (2, True)


def _task(record: Any, name: str) -> Any:
    return next(task for task in record["tasks"] if task["task"] == name)


def _set(task: str, key: str, value: Any) -> Any:
    def change(record: Any) -> None:
        pair = _task(record, task)["pairs"][0]
        pair[key] = value(pair[key]) if callable(value) else value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("reading", "verdict", "inconclusive"), "says verdict inconclusive, but worse follows"),
        (_set("tickets", "ci_low", lambda low: low + 0.01), "says interval"),
        (_set("facts", "p_value", 1e-9), "says p 1e-09"),
        (_set("facts", "p_adjusted", 1e-9), "says p adjusted 1e-09"),
        (_set("story", "ci_high", lambda high: high / 2), "says interval"),
        (_set("reading", "margin", 0.9), ""),
        (lambda r: _task(r, "tickets")["means"].update(adapter=0.97), "says 0.97"),
    ],
)
def test_figures_that_contradict_each_other_are_found_though_everything_was_made_anew(
    measured: Path, tmp_path: Path, change: Any, said: str
) -> None:
    found = rewrite(unfold(measured, tmp_path / "repo"), change)
    assert any(said in text for text in found) if said else found == []


def test_an_untouched_merged_model_follows_too(merged: Path) -> None:
    assert check_folder(merged) == []


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("arm", "nobody", "an arm measured against the base"),
        ("arm", "base", "comparison.json, arm base: says"),
        ("verified_as", False, "comparison.json, arm adapter: says"),
        ("base_model_relation", "finetune", "but merge follows"),
        ("kind", "gptq", "but merged follows"),
        ("override", "because", "only where, the gate failed"),
        ("fingerprint", "sha256:other", "publication.json, fingerprint"),
    ],
)
def test_what_publication_json_claims_is_held_against_the_records(
    merged: Path, key: str, value: Any, said: str
) -> None:
    record = json.loads((merged / PUBLICATION).read_text("utf-8"))
    (merged / PUBLICATION).write_text(json.dumps(record | {key: value}), "utf-8")
    assert any(said in finding.text for finding in check_folder(merged))


def test_an_adapters_base_is_the_one_its_settings_name(published: Path) -> None:
    edit(published / "adapter_config.json", "org/base", "org/better-base")
    assert any("base_model: says org/base" in finding.text for finding in check_folder(published))


@pytest.mark.parametrize("name", ["evaluation/report.md", "evaluation/training-curve.svg"])
def test_reports_are_made_again_too(published: Path, name: str) -> None:
    text = (published / name).read_text("utf-8")
    number = next(part for part in ("200", "340") if part in text)
    edit(published / name, number, number + "9")
    places = [finding.place for finding in check_folder(published)]
    assert any(place.startswith(f"{name}, line ") for place in places)


def test_a_figure_added_to_the_model_index_is_found(published: Path) -> None:
    entry = (
        "  - task:\n      type: text-generation\n    dataset:\n      name: mmlu\n      type: mmlu\n"
        "    metrics:\n    - type: acc\n      value: 0.99\n      name: acc\n"
    )
    edit(published / "README.md", "  results:\n", "  results:\n" + entry)
    assert any("model-index, mmlu: says 0.99" in finding.text for finding in check_folder(published))


def test_weights_put_beside_the_published_ones_are_named(published: Path) -> None:
    (published / "model.safetensors").write_bytes((published / "adapter_model.safetensors").read_bytes())
    assert any("beside the published ones: model.safetensors" in f.text for f in check_folder(published))


def test_another_version_of_lora_eval_is_told(published: Path) -> None:
    record = json.loads((published / PUBLICATION).read_text("utf-8"))
    (published / PUBLICATION).write_text(json.dumps(record | {"version": "0.0.1"}), "utf-8")
    assert any("lora-eval 0.0.1 made it" in finding.text for finding in check_folder(published))
