"""`lora-eval verify`: status 0 for the measured model, 3 for another, 2 for what cannot be asked."""

from __future__ import annotations

import json

import pytest


@pytest.fixture(scope="module")
def merged(run_cli, tiny_llama, tiny_adapter, tmp_path_factory):
    out = tmp_path_factory.mktemp("merged") / "merged"
    done = run_cli("export", "merge", "--base", tiny_llama, "--adapter", tiny_adapter, "--out", out)
    assert done.status == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Item {n} is in room"}) + "\n" for n in range(6)))
    return path


def test_the_merged_model_is_the_measured_one(run_cli, tiny_llama, tiny_adapter, merged, prompts, tmp_path):
    out = tmp_path / "v.json"
    arms = ("--base", tiny_llama, "--reference", f"adapter:{tiny_adapter}", "--candidate", f"merged:{merged}")
    done = run_cli("verify", *arms, "--prompts", prompts, "--out", out, "--json")
    assert done.status == 0, done.stderr
    record = json.loads(done.stdout)
    assert record == json.loads(out.read_text())
    assert record["passed"] is True
    assert record["measured"]["mean_kl"] < 1e-9  # float32 throughout
    assert record["tolerance"]["kl_mean"] < 1e-9


def test_the_base_is_not(run_cli, tiny_llama, merged, prompts, tmp_path):
    arms = ("--reference", merged, "--candidate", f"base:{tiny_llama}")
    done = run_cli("verify", *arms, "--prompts", prompts, "--out", tmp_path / "v.json")
    assert done.status == 3
    assert "failed: kl_mean is" in done.stderr
    assert "cause: model.layers.0.mlp.down_proj, " in done.stderr
    assert json.loads((tmp_path / "v.json").read_text())["passed"] is False


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--margin", "0"), "--margin"),
        (("--suite", "./nowhere"), "nowhere: no such file"),
        (("--store", __file__), "is a file"),
        (("--tolerance", "kl_men=1"), "did you mean 'kl_mean'"),
        (("--reference", "adapter:./nowhere"), "give --base"),
        (("--candidate", "merged:./nowhere"), "no such folder"),
        (("--prompts", "./nowhere"), "does not exist"),
        (("--new-tokens", "5000"), "the model reads 1024 tokens"),
    ],
)
def test_what_cannot_be_asked_ends_with_2(run_cli, merged, prompts, tmp_path, options, said):
    arms = {"--reference": merged, "--candidate": merged, "--prompts": prompts} | {options[0]: options[1]}
    arguments = [part for pair in arms.items() for part in pair]
    done = run_cli("verify", *arguments, "--out", tmp_path / "v.json")
    assert done.status == 2
    assert said in done.stderr
    assert not (tmp_path / "v.json").exists()


def test_there_must_be_something_to_ask(run_cli, merged, tmp_path):
    done = run_cli("verify", "--reference", merged, "--candidate", merged, "--out", tmp_path / "v.json")
    assert done.status == 2
    assert "give --prompts FILE, --suite NAME, or both" in done.stderr


def test_reference_logits_are_kept_unless_told_otherwise(run_cli, merged, prompts, tmp_path):
    arms = ("--reference", merged, "--candidate", merged, "--prompts", prompts, "--out", tmp_path / "v.json")

    def logits(*options):
        done = run_cli("verify", *arms, "--json", *options)
        assert done.status == 0, done.stderr
        return json.loads(done.stdout)["reference_logits"]

    store = ("--store", tmp_path / "store")
    assert [logits(*store), logits(*store), logits("--no-store")] == ["computed", "stored", "computed"]
    done = run_cli("verify", *arms, *store, "--no-store")
    assert done.status == 2
    assert "exclude each other" in done.stderr


def test_the_items_of_a_suite(run_cli, tiny_llama, merged, plugin_example, tmp_path):
    arms = ("--reference", merged, "--candidate", f"base:{tiny_llama}", "--suite", "acme-arithmetic")
    done = run_cli("verify", *arms, "--limit", 5, "--samples", 5, "--out", tmp_path / "v.json", "--json")
    assert done.status == 3
    record = json.loads(done.stdout)
    assert record["suite"]["name"] == "acme-arithmetic"
    assert record["suite"]["items"] == record["measured"]["items"] == 5
    assert "suite acme-arithmetic: " in done.stderr
