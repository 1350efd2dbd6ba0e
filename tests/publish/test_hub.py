"""Files on their way to a hub on loopback: what is sent, how often, and what others have done there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lora_eval.errors import HubError, InputError
from lora_eval.publish import publish
from lora_eval.publish.content import Content
from lora_eval.publish.hub import Repository
from lora_eval.publish.stage import Prepared
from tests.publish.hub_server import Hub

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
MIB = 1 << 20


def silent(*_: object) -> None:
    pass


def large(folder: Path, **sizes: int) -> Prepared:
    """Weights of these sizes in MiB, and a small file."""
    contents = {"README.md": Content(b"---\nlicense: mit\n---\n")}
    for name, size in sizes.items():
        path = folder / f"{name}.safetensors"
        path.write_bytes(os.urandom(size * MIB))
        contents[path.name] = Content(path)
    return Prepared("me/tuned", contents)


def test_large_files_are_hashed_once_and_told_in_pieces(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import lfs

    def hashed(*_: object) -> None:
        raise AssertionError("huggingface_hub read the file once more, to hash it")

    monkeypatch.setattr(lfs, "sha_fileobj", hashed)
    told: list[tuple[str, int, int]] = []
    publish(large(tmp_path, a=6, b=3), private=False, progress=lambda *step: told.append(step))
    assert {total for _, _, total in told} == {9}
    assert [what.split()[1] for what, _, _ in told[:: len(told) - 1]] == ["a.safetensors", "b.safetensors"]
    done = [done for _, done, _ in told]
    assert done == sorted(done)
    assert set(done) == set(range(10))
    assert len(told) > 9 * MIB // (1 << 17)  # never more than 128 KiB in memory at once


def test_parts_are_put_together_and_one_that_was_cut_is_sent_again(hub: Hub, tmp_path: Path) -> None:
    hub.part_size = MIB
    hub.faults["part"] = [None, "cut", 503]
    prepared = large(tmp_path, a=3)
    publish(prepared, private=False, progress=silent)
    assert hub.head("me/tuned").files["a.safetensors"] == prepared.contents["a.safetensors"].read()
    assert hub.calls["part"] == 5


def test_what_arrived_before_a_transfer_failed_is_not_sent_again(hub: Hub, tmp_path: Path) -> None:
    prepared = large(tmp_path, first=3, second=2)
    hub.faults["put"] = [None, *["cut"] * 9]
    with pytest.raises(HubError, match=r"second\.safetensors"):
        publish(prepared, private=False, progress=silent)
    assert len(hub.repos["me/tuned"]) == 1
    assert len(hub.stored) == 1
    hub.faults.clear()
    sent = hub.calls["put"]
    publish(prepared, private=False, progress=silent)
    assert hub.calls["put"] == sent + 1
    assert len(hub.repos["me/tuned"]) == 2


def test_a_file_that_the_repository_ignores_stops_it_before_the_commit(hub: Hub, tmp_path: Path) -> None:
    hub.ignored = {"README.md"}
    with pytest.raises(HubError, match=r"\.gitignore leaves out README\.md; nothing was published"):
        publish(large(tmp_path, a=1), private=False, progress=silent)
    assert hub.calls["commit"] == 0


def test_private_is_not_promised_of_a_public_repository(hub: Hub, tmp_path: Path) -> None:
    publish(large(tmp_path, a=1), private=False, progress=silent)
    with pytest.raises(InputError, match="everybody can read it"):
        publish(large(tmp_path, a=1), private=True, progress=silent)
    assert len(hub.repos["me/tuned"]) == 2


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "config.json", "modeling_x.py"])
def test_weights_of_somebody_else_are_not_published_beside(hub: Hub, tmp_path: Path, name: str) -> None:
    Repository("me/tuned").create(private=False)
    hub.push("me/tuned", {name: b"theirs", "NOTES.md": b"x", "old/config.json": b"x"}, "mine", "ann")
    with pytest.raises(InputError, match=f"somebody else.*: {name}; delete"):
        publish(large(tmp_path, a=1), private=False, progress=silent)
    assert hub.calls["preupload"] == 0


def test_a_stale_parent_says_who_changed_which_files(hub: Hub, tmp_path: Path) -> None:
    Repository("me/tuned").create(private=False)
    hub.between = lambda: hub.push("me/tuned", {"NOTES.md": b"x", "b.txt": b"y"}, "add notes", "ann")
    with pytest.raises(
        HubError, match=r"'add notes' by ann \(\w+\), which changed NOTES\.md, b\.txt; nothing"
    ):
        publish(large(tmp_path, a=1), private=False, progress=silent)


def test_a_lost_answer_is_found_below_a_commit_of_somebody_else(hub: Hub, tmp_path: Path) -> None:
    hub.faults["commit"] = ["lost"]
    hub.after = lambda: hub.push("me/tuned", {"README.md": b"theirs"}, "better words", "ann")
    found = publish(large(tmp_path, a=1), private=False, progress=silent)
    assert [commit.author for commit in hub.repos["me/tuned"]] == ["me", "me", "ann"]
    assert found.commit == hub.repos["me/tuned"][1].sha


@pytest.mark.parametrize("step", ["info", "preupload", "commit"])
def test_an_answer_without_what_is_needed_is_told(hub: Hub, tmp_path: Path, step: str) -> None:
    Repository("me/tuned").create(private=False)
    hub.faults[step] = ["empty"]
    with pytest.raises(HubError, match="failed"):
        publish(large(tmp_path, a=1), private=False, progress=silent)


@pytest.mark.parametrize(("licence", "found"), [("mit", "mit"), (["mit"], "mit"), (["mit", "bsd"], None)])
def test_the_licence_of_a_base_on_the_hub(hub: Hub, licence: Any, found: str | None) -> None:
    hub.repos["org/base"] = []
    hub.push("org/base", {}, "x")
    hub.cards["org/base"] = {"license": licence}
    assert Repository("me/tuned").licence_of_base("org/base") == found
    assert Repository("me/tuned").licence_of_base("org/none") is None
