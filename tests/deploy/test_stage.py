"""The folder is written whole or not at all, and not where a finding forbids it."""

from __future__ import annotations

import json

import pytest

from lora_eval import deploy as stage
from lora_eval.deploy import deploy, lint
from lora_eval.errors import InputError, ModelError, OutputError, PluginError
from lora_eval.fingerprint import fingerprint_folder
from lora_eval.protocols import DeployRequest, Server
from lora_eval.records import Deployment
from lora_eval.registry import get
from lora_eval.schema import read_record
from tests.conftest import save_tiny_adapter


@pytest.fixture
def request_of(tiny_llama, tiny_adapter):
    return DeployRequest(tiny_llama, "base", {"tuned": tiny_adapter})


@pytest.mark.parametrize("name", ["vllm", "sglang", "tgi", "lorax"])
def test_each_server_is_one(name) -> None:
    assert isinstance(get("server", name), Server)


def test_the_record_is_what_was_returned(request_of, tiny_llama, tiny_adapter, tmp_path) -> None:
    done = deploy("vllm", request_of, tmp_path / "new" / "out")

    assert read_record(tmp_path / "new" / "out" / "deployment.json", Deployment) == done
    assert [(arm.name, arm.fingerprint) for arm in done.arms] == [
        ("base", fingerprint_folder(tiny_llama)),
        ("tuned", fingerprint_folder(tiny_adapter)),
    ]
    assert (done.server, done.version, done.blocking) == ("vllm", "0.32.0", ())
    assert done.settings["max_lora_rank"] == 8
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "out"]


def test_equal_inputs_give_equal_folders(request_of, tmp_path) -> None:
    for name in ("a", "b"):
        deploy("vllm", request_of, tmp_path / name)
    files = {
        p.relative_to(tmp_path / "a"): p.read_bytes() for p in (tmp_path / "a").rglob("*") if p.is_file()
    }

    assert {
        p.relative_to(tmp_path / "b"): p.read_bytes() for p in (tmp_path / "b").rglob("*") if p.is_file()
    } == (files)


def test_nothing_is_written_where_a_finding_forbids_it(tiny_llama, tmp_path) -> None:
    adapter = tmp_path / "dora"
    save_tiny_adapter(tiny_llama, adapter, use_dora=True)

    done = deploy("vllm", DeployRequest(tiny_llama, "base", {"tuned": adapter}), tmp_path / "out")

    assert [finding.rule for finding in done.blocking] == ["dora"]
    assert (done.files, (tmp_path / "out").exists()) == ((), False)


def test_a_failure_leaves_nothing(request_of, tmp_path, monkeypatch) -> None:
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stage, "write_record", fail)

    with pytest.raises(OutputError, match="No space left on device"):
        deploy("vllm", request_of, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(request_of, tmp_path, full_disk) -> None:
    full_disk(1000)

    with pytest.raises(OutputError):
        deploy("vllm", request_of, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_left_alone(request_of, tmp_path) -> None:
    (tmp_path / "mine").write_text("kept")

    with pytest.raises(OutputError, match="is not empty"):
        deploy("vllm", request_of, tmp_path)
    with pytest.raises(OutputError, match="is a file"):
        deploy("vllm", request_of, tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "kept"


def test_unknown_servers_and_options(request_of, tiny_llama) -> None:
    with pytest.raises(PluginError, match="Did you mean 'vllm'"):
        lint("vlm", request_of)
    with pytest.raises(InputError, match="deploy tgi: has no option 'max_loras'"):
        lint("tgi", DeployRequest(tiny_llama, "base", {}, {"max_loras": 2}))
    with pytest.raises(InputError, match="--device tpu: expected gpu or cpu"):
        lint("vllm", DeployRequest(tiny_llama, "base", {}, {"device": "tpu"}))


def test_images_are_not_promised_for_a_cpu(request_of, tiny_llama, tmp_path) -> None:
    asked = DeployRequest(tiny_llama, "base", {}, {"device": "cpu", "targets": ("compose",)})

    with pytest.raises(InputError, match="only 'command' is written"):
        deploy("vllm", asked, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_pickled_bases_are_told(tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 8}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")

    with pytest.raises(ModelError, match="save the model as safetensors"):
        lint("vllm", DeployRequest(tmp_path, "base"))


def test_only_the_targets_that_were_asked_for(tiny_llama, tmp_path) -> None:
    asked = DeployRequest(tiny_llama, "base", {}, {"targets": ("kubernetes",)})

    done = deploy("vllm", asked, tmp_path / "out")

    assert done.files == ("README.md", "deployment.json", "kubernetes.yaml", "server.env")
