"""Comparisons of other kinds: judged by a model, and with arms that a server answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_eval.errors import InputError
from lora_eval.publish import gather_results
from tests.publish.test_problems import change, ready

URL = "http://gpu-17.cluster.internal:8000/v1#tuned"


def test_what_a_judge_said_is_published_and_checked(
    run_cli: Any, publish_cli: Any, tiny_llama: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps({"instruction": f"Q {i}?"}) + "\n" for i in range(8)), "utf-8")
    done = run_cli(
        "compare", "--base", tiny_llama, "--adapter", f"tuned={tiny_adapter}", "--suite", "pairwise",
        "--questions", questions, "--max-new-tokens", 6, "--judge", "vllm-choice", "--judge-model",
        f"local:{tiny_llama}", "--out", tmp_path / "out", "-q",
    )  # fmt: skip
    assert done.status == 0, done
    from lora_eval.publish import Options, prepare

    options = Options(repo_id="me/tuned", base_model="org/base", license="mit", samples=True)
    found = prepare(tiny_adapter, tmp_path / "out" / "comparison.json", options)
    for path, content in found.contents.items():
        (tmp_path / "repo" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "repo" / path).write_bytes(content.read())
    card = found.contents["README.md"].read().decode()
    (line,) = (line for line in card.splitlines() if line.startswith("| pairwise (target) | "))
    assert line.endswith(" | 8 | preference |")
    assert "Noted while measuring: judged by " in card
    status, out, _ = publish_cli("--check", tmp_path / "repo")
    assert (status, out) == (0, out)
    rows = gather_results(tmp_path / "out" / "comparison.json", "me/rows", "mit")
    assert "runs/tuned/samples.parquet" in rows.contents


def test_the_address_of_a_server_is_not_published(own: Path) -> None:
    def edit(record: Any) -> None:
        record["arms"].append(record["arms"][1] | {"name": "prod", "kind": "served", "path": URL})
        record["arms"][2]["fingerprint"] = "sha256:answers"

    change(own, edit)
    texts = ready(own)
    assert [path for path, text in texts.items() if "gpu-17" in text] == []
    assert json.loads(texts["evaluation/comparison.json"])["arms"][2]["path"] == "prod"


def test_weights_that_only_a_server_had_are_not_known_to_be_these(own: Path) -> None:
    def edit(record: Any) -> None:
        record["arms"][1].update(kind="served", path=URL, fingerprint="sha256:answers")

    change(own, edit)
    with pytest.raises(InputError, match="a server shows no weights: measure the folder itself"):
        ready(own)
