"""A comparison as a data set: `datasets` reads it, and a stranger makes its figures again by scipy alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lora_eval.errors import InputError
from lora_eval.publish import gather_results, publish
from tests.publish.hub_server import Hub

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
KEY = ("task", "item_id", "doc_hash", "filter", "repeat")


@pytest.fixture
def rows(
    measured: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, dict[Any, dict[str, Any]]]:
    """Both arms' rows by their key, as `load_dataset` gives them from the Hub."""
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", constants.ENDPOINT)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    found = gather_results(measured / "runs" / "mine" / "comparison.json", "me/rows", "mit")
    publish(found, private=False, progress=lambda *_: None)
    loaded = {
        arm: datasets.load_dataset("me/rows", arm, split="train", cache_dir=str(tmp_path / "cache"))
        for arm in ("base", "adapter")
    }
    return {arm: {tuple(row[name] for name in KEY): row for row in own} for arm, own in loaded.items()}


def test_a_stranger_makes_figures_and_verdicts_again(
    rows: dict[str, dict[Any, dict[str, Any]]], hub: Hub
) -> None:
    from scipy.stats import binomtest

    record = json.loads(hub.head("datasets/me/rows").files["comparison.json"])
    p_values = {}
    for task in record["tasks"]:
        metric, (pair,) = f"metric_{task['metric']}", task["pairs"]
        keys = [
            key for key in rows["base"] if key[0] == task["task"] and rows["base"][key][metric] is not None
        ]
        one, other = ([rows[arm][key] for key in keys] for arm in ("base", "adapter"))
        assert [row["prompt_sha256"] for row in one] == [row["prompt_sha256"] for row in other]
        for arm, own in (("base", one), ("adapter", other)):
            assert _mean(own, metric) == pytest.approx(task["means"][arm])
        if not task["primary"] or not pair["method"].startswith("exact McNemar"):
            continue
        wins = sum(b[metric] > a[metric] for a, b in zip(one, other, strict=True))
        losses = sum(b[metric] < a[metric] for a, b in zip(one, other, strict=True))
        assert (wins, losses) == (pair["wins"], pair["losses"])
        p_values[task["task"]] = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
        assert pair["p_value"] == pytest.approx(p_values[task["task"]])
        changed = pair["p_adjusted"] < 0.05
        assert (pair["verdict"] in ("better", "worse")) is changed
        assert not changed or (pair["verdict"] == "better") is (wins > losses)
    assert len(p_values) == 6


def _mean(rows: list[dict[str, Any]], metric: str) -> float:
    """As lm-eval makes it: word perplexity from summed log-likelihoods and words."""
    total = math.fsum(row[metric] for row in rows)
    if metric != "metric_word_perplexity":
        return total / len(rows)
    return math.exp(-total / math.fsum(row["weight_word_perplexity"] for row in rows))


def test_rows_hold_prompts_answers_and_each_metric(
    rows: dict[str, dict[Any, dict[str, Any]]], hub: Hub
) -> None:
    assert len(rows["adapter"]) == 1600
    assert {"prompt", "output", "target", "log_likelihoods", "weight_word_perplexity"} <= set(
        next(iter(rows["base"].values()))
    )
    files = hub.head("datasets/me/rows").files
    assert {"README.md", "comparison.json", "runs/base/samples.parquet", "runs/adapter/run.json"} <= set(
        files
    )
    assert b"license: mit" in files["README.md"]


@pytest.mark.parametrize(("licence", "said"), [("apache2", "did you mean 'apache-2.0'")])
def test_an_unknown_licence_is_refused(measured: Path, licence: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        gather_results(measured / "runs" / "mine" / "comparison.json", "me/rows", licence)
