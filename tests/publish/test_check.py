"""An edited number is found, wherever it was edited."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_eval.publish import Options, check_folder, prepare
from lora_eval.records.publication import Benchmark


@pytest.fixture
def published(measured: Path, tmp_path: Path) -> Path:
    """The adapter's repository, as a folder."""
    options = Options(
        repo_id="me/tuned", base_model="org/base", license="mit", samples=True,
        benchmarks={"facts": Benchmark(dataset_id="org/facts", task_id="default")},
    )  # fmt: skip
    found = prepare(measured / "adapter", measured / "runs" / "mine" / "comparison.json", options)
    for path, content in found.contents.items():
        target = tmp_path / "repo" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.read())
    return tmp_path / "repo"


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
    edit(card, line, "|".join([*cells[:6], " +99 points ", *cells[7:]]))
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
    assert "(from the published rows)" in out
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
