"""What is written for each server: golden files, schemas, and what a shell and a server read from it.

After a wanted change: LORA_EVAL_WRITE_GOLDEN=1 pytest tests/servers/test_rendering.py, and look at the diff.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft7Validator, Draft202012Validator

from lora_eval.deploy import deploy
from lora_eval.protocols import DeployRequest
from lora_eval.registry import own_version
from lora_eval.servers.layout import mount_of
from tests.conftest import CHATML, CHECKOUT, save_tiny_tokenizer
from tests.servers.conftest import CASES, option, words_of

GOLDEN = CHECKOUT / "tests" / "golden" / "deploy"
DATA = Path(__file__).parent / "data"


def normalised(text: str, base: Path) -> str:
    text = text.replace(str(base), "/models/llama").replace(f"lora-eval {own_version()}", "lora-eval VERSION")
    return re.sub(r"(support|legal)-[0-9a-f]{12}\b", r"\1-DIGEST", text)


@pytest.mark.parametrize("case", CASES)
def test_files_are_the_golden_ones(case, rendered, base) -> None:
    out, _ = rendered(case)
    found = {
        path.relative_to(out).as_posix(): normalised(path.read_text("utf-8"), base)
        for path in sorted(out.rglob("*"))
        if path.is_file() and "adapters" not in path.parts and path.name != "deployment.json"
    }
    folder = GOLDEN / case
    if os.environ.get("LORA_EVAL_WRITE_GOLDEN"):
        for name, text in found.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, "utf-8")

    golden = {
        path.relative_to(folder).as_posix(): path.read_text("utf-8")
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    assert found == golden


@pytest.mark.parametrize("case", [case for case in CASES if case != "vllm-cpu"])
def test_compose_files_keep_the_schema(case, rendered) -> None:
    out, _ = rendered(case)
    schema = json.loads((DATA / "compose-spec.json").read_text("utf-8"))
    compose = yaml.safe_load((out / "compose.yaml").read_text("utf-8"))

    Draft7Validator.check_schema(schema)
    assert [error.message for error in Draft7Validator(schema).iter_errors(compose)] == []
    (service,) = compose["services"].values()
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert all(volume["read_only"] for volume in service["volumes"])


def test_the_compose_schema_refuses_unknown_keys(rendered) -> None:
    out, _ = rendered("vllm")
    schema = json.loads((DATA / "compose-spec.json").read_text("utf-8"))
    compose = yaml.safe_load((out / "compose.yaml").read_text("utf-8"))
    compose["services"]["vllm"]["comand"] = []

    assert not Draft7Validator(schema).is_valid(compose)


def validate_manifest(manifest) -> list[str]:
    schema = json.loads((DATA / "kubernetes-1.37.json").read_text("utf-8"))
    schema["$ref"] = f"#/$defs/{manifest['kind']}"
    return [error.message for error in Draft202012Validator(schema).iter_errors(manifest)]


@pytest.mark.parametrize("case", [case for case in CASES if case != "vllm-cpu"])
def test_manifests_keep_the_schema(case, rendered) -> None:
    out, _ = rendered(case)
    manifests = list(yaml.safe_load_all((out / "kubernetes.yaml").read_text("utf-8")))

    assert [manifest["kind"] for manifest in manifests] == ["PersistentVolumeClaim", "Deployment", "Service"]
    assert [validate_manifest(manifest) for manifest in manifests] == [[], [], []]
    claim, workload, service = manifests
    pod = workload["spec"]["template"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert workload["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"]
    (volume,) = [v for v in pod["spec"]["volumes"] if "persistentVolumeClaim" in v]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    mounted = {mount["name"] for mount in pod["spec"]["containers"][0]["volumeMounts"]}
    assert mounted == {each["name"] for each in pod["spec"]["volumes"]}


def test_the_kubernetes_schema_refuses_unknown_keys(rendered) -> None:
    out, _ = rendered("vllm")
    _, workload, _ = yaml.safe_load_all((out / "kubernetes.yaml").read_text("utf-8"))
    workload["spec"]["template"]["spec"]["containers"][0]["arg"] = ["--model"]

    assert any("'arg' was unexpected" in message for message in validate_manifest(workload))


@pytest.mark.parametrize("case", CASES)
def test_every_packaging_starts_the_same_server(case, rendered) -> None:
    """Command, compose file and manifest differ in paths and addresses only."""
    out, record = rendered(case)
    subprocess.run(["sh", "-n", out / "serve.sh"], check=True)
    command = words_of(out)
    for name in sorted({"compose.yaml", "kubernetes.yaml"} & set(record.files)):
        documents = list(yaml.safe_load_all((out / name).read_text("utf-8")))
        if name == "compose.yaml":
            (service,) = documents[0]["services"].values()
            words = [word.replace("$$", "$") for word in service["command"]]
        else:
            words = documents[1]["spec"]["template"]["spec"]["containers"][0]["args"]
        names = [word for word in words if word.startswith("--")]
        assert [word for word in command if word in names] == names
        paths = re.findall(r"/deploy/([\w./-]+)", " ".join(words))
        assert all((out / path).exists() for path in paths), paths
        assert len(paths) >= len(record.arms) - 1 or case == "lorax"


@pytest.mark.parametrize("case", CASES)
def test_every_file_is_in_the_record(case, rendered) -> None:
    out, record = rendered(case)

    on_disk = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert set(record.files) == on_disk
    assert json.loads((out / "deployment.json").read_text("utf-8"))["files"] == list(record.files)


def test_adapters_lie_under_names_of_their_contents(rendered, arms, base, make_adapter, tmp_path) -> None:
    out, record = rendered("vllm")
    folders = {arm.name: arm.folder for arm in record.arms if arm.kind == "adapter"}
    assert {(out / folder / "adapter_model.safetensors").is_file() for folder in folders.values()} == {True}

    other = {"support": make_adapter(base=base, r=4, seed=8)}
    again = deploy("vllm", DeployRequest(base, "llama", other, {}), tmp_path / "again")

    (folder,) = [arm.folder for arm in again.arms if arm.kind == "adapter"]
    assert folder != folders["support"]  # other weights, another path: no server's cache is stale


def test_the_rank_is_the_next_of_vllms_sizes(rendered) -> None:
    words = words_of(rendered("vllm")[0])

    assert option(words, "--max-lora-rank") == ["16"]
    assert option(words, "--max-loras") == ["2"]
    assert option(words_of(rendered("vllm-cpu")[0]), "--max-loras") == ["3"]  # one stays empty
    assert option(words_of(rendered("sglang")[0]), "--max-loras-per-batch") == ["3"]  # one for the base
    assert option(words_of(rendered("sglang")[0]), "--max-lora-rank") == ["12"]


def test_the_adapters_template_and_end_tokens_are_written(base, make_adapter, copied, tmp_path) -> None:
    adapter = copied(make_adapter(base=base))
    text = CHATML + "{# of the adapter #}"
    save_tiny_tokenizer(adapter, chat_template=text)
    (adapter / "generation_config.json").write_text(json.dumps({"eos_token_id": [257, 256]}))
    out = tmp_path / "out"

    deploy("vllm", DeployRequest(base, "llama", {"tuned": adapter}, {}), out)

    words = words_of(out)
    assert (out / option(words, "--chat-template")[0]).read_text("utf-8") == text
    settings = json.loads(
        (out / option(words, "--generation-config")[0] / "generation_config.json").read_text()
    )
    assert settings["eos_token_id"] == [257, 256]


def test_tgi_finds_the_template_where_it_looks(rendered) -> None:
    out, _ = rendered("tgi")

    assert json.loads((out / "tokenizer_config.json").read_text("utf-8"))["chat_template"] == CHATML


def test_names_that_yaml_and_shells_would_misread(base, make_adapter, copied, tmp_path) -> None:
    model = Path(copied(base)).rename(tmp_path / "a $HOME 'b\" {c}")
    out = tmp_path / "out"

    deploy("vllm", DeployRequest(model, "yes", {"on": make_adapter(base=base)}, {}), out)

    assert str(model) in words_of(out)
    (service,) = yaml.safe_load((out / "compose.yaml").read_text("utf-8"))["services"].values()
    assert service["volumes"][0]["source"].replace("$$", "$") == str(model)
    assert option(service["command"], "--served-model-name") == ["yes"]


def test_a_snapshot_of_the_hub_is_mounted_with_its_blobs(base, tmp_path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "abc"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "1").write_text("{}")
    (snapshot / "config.json").symlink_to(Path("../../blobs/1"))

    assert mount_of(snapshot) == mount_of(snapshot.parent / "abc")
    assert mount_of(snapshot).source == str(tmp_path / "models--a--b")
    assert mount_of(snapshot).inside == "/snapshots/abc"
    assert (mount_of(base).source, mount_of(base).inside) == (str(base), "")


def test_links_that_a_container_would_not_see(tmp_path) -> None:
    from lora_eval.errors import InputError

    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "elsewhere").write_text("{}")
    (folder / "config.json").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(InputError, match="a container does not see"):
        mount_of(folder)
