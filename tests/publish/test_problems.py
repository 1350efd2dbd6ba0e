"""Weights, comparison and options that do not fit each other: refused, and the card says nothing untrue."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_eval.errors import InputError
from lora_eval.publish import Options, prepare
from lora_eval.records import Comparison, Gate
from lora_eval.records.gate import GateRule
from lora_eval.schema import read_record, write_record
from lora_eval.stats.gate import gated


def ready(folder: Path, variant: str = "adapter", **changes: Any) -> dict[str, str]:
    """The texts that would be published, by path."""
    options = {"repo_id": "me/tuned", "base_model": "org/base", "license": "apache-2.0"} | changes
    found = prepare(folder / variant, folder / "runs" / "mine" / "comparison.json", Options(**options))
    return {
        path: content.read().decode()
        for path, content in found.contents.items()
        if not path.endswith((".safetensors", ".parquet"))
    }


def change(folder: Path, edit: Callable[[Any], None], name: str = "runs/mine/comparison.json") -> None:
    record = json.loads((folder / name).read_text("utf-8"))
    edit(record)
    (folder / name).write_text(json.dumps(record), "utf-8")


def _no_pairs(record: Any) -> None:
    for task in record["tasks"]:
        task["pairs"] = []


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (_no_pairs, "no figures of adapter against base"),
        (lambda record: record["arms"][0].update(kind="merged"), "no base among its arms"),
        (lambda record: record["arms"][0].update(fingerprint="sha256:other"), "base is sha256:other"),
    ],
)  # fmt: skip
def test_a_comparison_that_says_nothing_about_the_training(own: Path, edit: Any, said: str) -> None:
    change(own, edit)
    with pytest.raises(InputError, match=said):
        ready(own)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"override": "it is fine"}, "--override-gate: the gate was not asked"),
        ({"data_license": "apache2"}, "did you mean 'apache-2.0'"),
        ({"base_model": "org/base", "base_model_revision": "v2"}, r"lineage\.json says revision v1"),
        ({"base_model": "org/other"}, "lineage.json says that the base was org/trained"),
    ],
)
def test_options_that_contradict_the_records(own: Path, options: Any, said: str) -> None:
    def edit(record: Any) -> None:
        record["variants"][0]["revision"] = "v1"
        record["base_model"] = "org/trained"

    change(own, edit, "adapter/lineage.json")
    with pytest.raises(InputError, match=said):
        ready(own, **options)


def test_an_override_of_a_gate_that_passed_is_refused(own: Path) -> None:
    path = own / "runs" / "mine" / "comparison.json"
    gate = Gate(rules=(GateRule(task="tickets", min_gain=0.1),))
    write_record(path, gated(read_record(path, Comparison), gate, "gate.yaml"))
    with pytest.raises(InputError, match="the gate did not fail"):
        ready(own, override="it is fine")


def test_a_recipe_with_paths_of_this_machine_is_published_without_them(own: Path) -> None:
    recipe = {
        "schema": 1, "name": "mine", "base": str(own / "base"), "lora": {"r": 4},
        "data": {"files": ["/home/ann/customers/train.jsonl"], "eval_files": ["C:/Users/ann/held_out.jsonl"]},
    }  # fmt: skip
    (own / "adapter" / "recipe.resolved.yaml").write_text(json.dumps(recipe))
    texts = ready(own, data_license="cc-by-4.0")
    assert "ann" not in texts["recipe.resolved.yaml"]
    assert "files:\n  - train.jsonl" in texts["recipe.resolved.yaml"]
    card = texts["README.md"]
    assert "- training files: `train.jsonl` (conversations as JSON lines)" in card
    assert "- evaluation files: `held_out.jsonl`" in card
    assert "- training rows: 988 used of 1,000 read, 90,000 tokens" in card
    assert "- licence: cc-by-4.0" in card
    assert "7 training rows are longer than max_length and were cut." in card


def test_tokenizer_settings_name_the_base_not_where_it_lay(own: Path) -> None:
    change(own, lambda data: data.update(name_or_path="/home/ann/base"), "adapter/tokenizer_config.json")
    assert json.loads(ready(own)["tokenizer_config.json"])["name_or_path"] == "org/base"


def test_the_card_of_a_model_speaks_of_its_own_arm(measured: Path, own: Path) -> None:
    """Another arm's headline must not stand on it."""

    def edit(record: Any) -> None:
        other = record["arms"][1] | {"name": "better", "fingerprint": "sha256:better"}
        record["arms"].append(other)
        for task in record["tasks"]:
            task["means"]["better"] = 1.0
            task["pairs"].append(task["pairs"][0] | {"b": "better", "verdict": "better"})

    change(own, edit)
    card = ready(own)["README.md"]
    assert "**adapter is better than base on both targets" in card
    assert "better is better" not in card
    assert card.split("## Measured")[1] != ready(measured)["README.md"].split("## Measured")[1]


def test_losses_outside_the_verdicts_are_told_too(own: Path) -> None:
    def edit(record: Any) -> None:
        lost = next(task for task in record["tasks"] if task["task"] == "reading")
        record["tasks"].append(lost | {"task": "reading_part", "primary": False})

    change(own, edit)
    worse = ready(own)["README.md"].split("## What got worse")[1].split("\n## ")[0]
    assert "the interval lies on the losing side at:\n\n- reading_part: 8" in worse


def test_an_arm_of_several_trainings_says_which_one_this_is(own: Path) -> None:
    def edit(record: Any) -> None:
        arm = record["arms"][1]
        runs = [{"name": name, "fingerprint": f"sha256:{name}", "path": "x"} for name in ("seed0", "seed1")]
        runs.append({"name": "seed2", "fingerprint": arm["fingerprint"], "path": "y"})
        arm.update(fingerprint=None, runs=runs)

    change(own, edit)
    card = ready(own)["README.md"]
    assert "`adapter` stands for 3 training runs (seed0, seed1, seed2)" in card
    assert "these weights are the run `seed2`" in card
    assert "One training was measured" not in card


def test_an_overridden_gate_names_what_failed(own: Path) -> None:
    path = own / "runs" / "mine" / "comparison.json"
    gate = Gate(rules=(GateRule(task="reading", max_drop=0.001),))
    write_record(path, gated(read_record(path, Comparison), gate, "gate.yaml"))
    card = ready(own, override="a demonstration")["README.md"]
    assert "> **Published in spite of a failed gate.** The gate fails: 1 of 1 checks." in card
    line = next(line for line in card.splitlines() if line.startswith("> - "))
    assert "max_drop 0.001" in line
    assert " on reading, adapter against base: " in line


@pytest.mark.parametrize(
    ("licence", "repo", "notice"),
    [
        ("llama3", "me/Llama-3-tuned", "Built with Meta Llama 3."),
        ("llama3.1", "me/Llama-tuned", "Llama 3.1 is licensed under the Llama 3.1 Community License"),
        ("gemma", "me/tuned", "ai.google.dev/gemma/terms"),
        ("mit", "me/tuned", None),
    ],
)
def test_what_a_base_wants_shown_is_shown(
    measured: Path, licence: str, repo: str, notice: str | None
) -> None:
    card = ready(measured, license=licence, base_license=licence, repo_id=repo)["README.md"]
    assert (notice in card) if notice else ("Built with" not in card)


def test_the_licence_is_asked_by_the_name_that_training_recorded(own: Path) -> None:
    asked = []

    def ask(name: str) -> str:
        asked.append(name)
        return "cc-by-nc-4.0"

    change(own, lambda record: record.update(base_model="org/recorded"), "adapter/lineage.json")
    with pytest.raises(InputError, match=r"derived from cc-by-nc-4\.0 may only be under"):
        ready(own, base_model=None, ask_licence=ask)
    assert asked == ["org/recorded"]


def test_headers_of_runs_are_records_and_go_with_them(measured: Path) -> None:
    texts = ready(measured)
    header = json.loads(texts["evaluation/runs/adapter/run.json"])
    assert header["variant"]["path"] == "me/tuned"
    assert not [path for path in texts if "samples" in path]
    assert "- suite: simulated" in texts["README.md"]


def test_a_secret_in_a_record_is_not_published(own: Path) -> None:
    token = "hf_" + "aB3" * 12
    change(own, lambda record: record.update(notes=[f"downloaded with\n{token}"]))
    change(
        own, lambda record: record["steps"][0].update(arguments={"hub_token": token}), "adapter/lineage.json"
    )
    with pytest.raises(InputError) as caught:
        ready(own)
    for name in ("lineage.json", "evaluation/comparison.json", "README.md"):
        assert f"{name}: holds a Hugging Face token" in str(caught.value)
    assert token not in str(caught.value)
