"""Against a hub on loopback: one commit or none, whatever fails, and a stranger can use the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_eval.errors import HubError
from lora_eval.publish import Options, check_folder, prepare, publish
from lora_eval.publish.hub import Repository
from tests.publish.conftest import GIVEN, TOKEN
from tests.publish.hub_server import Hub

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def silent(*_: object) -> None:
    pass


def prepared(folder: Path, variant: str = "adapter", **changes: Any) -> Any:
    options = {"repo_id": "me/tuned", "base_model": "org/base", "license": "apache-2.0"} | changes
    return prepare(folder / variant, folder / "runs" / "mine" / "comparison.json", Options(**options))


def test_one_commit_with_everything_and_nothing_the_second_time(measured: Path, hub: Hub) -> None:
    found = publish(prepared(measured), private=True, progress=silent)
    commits = hub.repos["me/tuned"]
    assert [commit.title for commit in commits[1:]] == [f"lora-eval: {len(found.uploaded)} files"]
    assert "me/tuned" in hub.private
    assert {"README.md", "adapter_model.safetensors", "lineage.json", "evaluation/comparison.json",
            "evaluation/report.html", "tokenizer.json",
            "chat_template.jinja"} <= set(commits[-1].files)  # fmt: skip
    assert not [path for path in commits[-1].files if "samples" in path or "parquet" in path]
    assert hub.calls["put"] == 1
    again = publish(prepared(measured), private=True, progress=silent)
    assert (again.uploaded, again.commit) == ((), found.commit)
    assert len(hub.repos["me/tuned"]) == 2
    assert hub.calls["commit"] == 1


def test_a_stranger_loads_it_and_every_number_follows(
    measured: Path, tiny_llama: Path, hub: Hub, tmp_path: Path, publish_cli: Any
) -> None:
    publish(prepared(measured), private=False, progress=silent)
    from huggingface_hub import ModelCard, snapshot_download
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(snapshot_download("me/tuned", cache_dir=tmp_path / "cache"))
    assert check_folder(folder) == []
    status, out, _ = publish_cli("--check", "me/tuned")
    assert status == 0
    assert "every number follows" in out
    card = ModelCard.load(folder / "README.md")
    assert (card.data.base_model, card.data.license) == ("org/base", "apache-2.0")
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    model = PeftModel.from_pretrained(base, folder)
    assert model.peft_config["default"].r == 4
    assert AutoTokenizer.from_pretrained(folder).chat_template


def test_no_record_names_a_path_of_this_machine(measured: Path, tiny_llama: Path) -> None:
    for variant in ("adapter", "merged"):
        for path, content in prepared(measured, variant).contents.items():
            if not path.endswith(".safetensors"):
                assert str(measured).encode() not in content.read(), path
                assert str(tiny_llama).encode() not in content.read(), path
    lineage = json.loads(prepared(measured).contents["lineage.json"].read())
    assert [each["path"] for each in lineage["variants"]] == ["org/base", "me/tuned"]


def test_a_merged_model_carries_its_verification_and_the_adapters_figures(measured: Path) -> None:
    contents = prepared(measured, "merged").contents
    record = json.loads(contents["evaluation/publication.json"].read())
    assert (record["arm"], record["verified_as"], record["base_model_relation"]) == ("adapter", True, "merge")
    card = contents["README.md"].read().decode()
    assert "These are the figures of `adapter`" in card
    assert "Verified against the adapter" in card


@pytest.mark.parametrize(
    ("step", "fault", "said"),
    [
        ("preupload", 403, "403"),
        ("put", 401, "401"),
        ("commit", 409, "409"),
        ("commit", 500, "500"),
        ("commit", 429, "429"),
        ("commit", "cut", "failed"),
        ("commit", 412, "412"),
        ("whoami", 401, "Invalid user token"),
        ("info", 503, "503"),
        ("create", 403, "403"),
        ("tree", 404, "404"),
    ],
)
def test_a_fault_publishes_nothing_and_the_next_run_everything(
    measured: Path, hub: Hub, step: str, fault: int | str, said: str
) -> None:
    hub.faults[step] = [fault]
    with pytest.raises(HubError, match=said) as caught:
        publish(prepared(measured), private=False, progress=silent)
    assert TOKEN not in str(caught.value)
    assert len(hub.repos.get("me/tuned", [])) <= 1
    hub.faults.clear()
    found = publish(prepared(measured), private=False, progress=silent)
    assert set(found.uploaded) <= set(hub.head("me/tuned").files)
    assert len(hub.repos["me/tuned"]) == 2


@pytest.mark.parametrize(
    ("step", "fault"), [("put", "cut"), ("put", 503), ("preupload", 429), ("batch", 502)]
)
def test_what_can_be_tried_again_is(measured: Path, hub: Hub, step: str, fault: int | str) -> None:
    hub.faults[step] = [fault]
    publish(prepared(measured), private=False, progress=silent)
    assert len(hub.repos["me/tuned"]) == 2


def test_a_transfer_that_was_cut_is_not_sent_again_when_it_arrived(measured: Path, hub: Hub) -> None:
    hub.faults["commit"] = [500]
    with pytest.raises(HubError, match="nothing was published"):
        publish(prepared(measured), private=False, progress=silent)
    assert hub.calls["put"] == 1
    publish(prepared(measured), private=False, progress=silent)
    assert hub.calls["put"] == 1


def test_a_lost_answer_is_found_again_not_committed_twice(measured: Path, hub: Hub) -> None:
    hub.faults["commit"] = ["lost"]
    found = publish(prepared(measured), private=False, progress=silent)
    assert found.commit == hub.head("me/tuned").sha
    assert hub.calls["commit"] == 1
    assert len(hub.repos["me/tuned"]) == 2


def test_somebody_elses_commit_in_between_is_told_and_kept(measured: Path, hub: Hub) -> None:
    hub.between = lambda: hub.push("me/tuned", {"NOTES.md": b"mine"}, "add notes", "ann")
    with pytest.raises(HubError, match=r"'add notes' by ann .*nothing was published"):
        publish(prepared(measured), private=False, progress=silent)
    assert "README.md" not in hub.head("me/tuned").files
    publish(prepared(measured), private=False, progress=silent)
    assert hub.head("me/tuned").files["NOTES.md"] == b"mine"
    assert "README.md" in hub.head("me/tuned").files


def test_files_of_an_earlier_publication_go_with_it(measured: Path, hub: Hub) -> None:
    publish(prepared(measured, samples=True), private=False, progress=silent)
    assert "evaluation/runs/base/samples.parquet" in hub.head("me/tuned").files
    found = publish(prepared(measured), private=False, progress=silent)
    assert "evaluation/runs/base/samples.parquet" in found.deleted
    assert "evaluation/runs/base/samples.parquet" not in hub.head("me/tuned").files
    assert len(hub.repos["me/tuned"]) == 3


@pytest.mark.parametrize("role", ["read", "fineGrained"])
def test_a_token_that_may_not_write_is_found_before_anything_is_sent(
    measured: Path, hub: Hub, role: str
) -> None:
    hub.role = role
    with pytest.raises(HubError, match=r"may only read|no right to write"):
        publish(prepared(measured), private=False, progress=silent)
    assert set(hub.calls) == {"whoami"}


def test_another_owners_repository_is_refused_before_anything_is_sent(measured: Path, hub: Hub) -> None:
    with pytest.raises(HubError, match="does not write for 'them'"):
        publish(prepared(measured, repo_id="them/tuned"), private=False, progress=silent)
    assert set(hub.calls) == {"whoami"}


def test_without_a_token_it_says_how_to_log_in(
    measured: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(HubError, match="hf auth login"):
        publish(prepared(measured), private=False, progress=silent)


def test_offline_is_said(measured: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        Repository("me/tuned").head()


def test_the_command_publishes_and_says_what(measured: Path, hub: Hub, publish_cli: Any) -> None:
    arguments = ("--variant", measured / "adapter", "--comparison", measured / "runs" / "mine", *GIVEN)
    status, out, _ = publish_cli(*arguments, "--adapter-only")
    assert status == 0
    assert "files in commit" in out
    assert TOKEN not in out
    assert hub.tokens == {TOKEN}
    status, out, _ = publish_cli(*arguments)
    assert "nothing differs" in out
