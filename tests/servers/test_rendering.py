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


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("vllm-cpu", "vllm-two-machines")])
def test_compose_files_keep_the_schema(case, rendered) -> None:
    out, _ = rendered(case)
    schema = json.loads((DATA / "compose-spec.json").read_text("utf-8"))
    compose = yaml.safe_load((out / "compose.yaml").read_text("utf-8"))

    Draft7Validator.check_schema(schema)
    assert [error.message for error in Draft7Validator(schema).iter_errors(compose)] == []
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert all(volume["read_only"] for volume in service.get("volumes", ()))


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

    assert [validate_manifest(manifest) for manifest in manifests] == [[]] * len(manifests)
    claim, *others = manifests
    workloads = [manifest for manifest in others if manifest["kind"] == "Deployment"]
    labels = [each["spec"]["template"]["metadata"]["labels"] for each in workloads]
    assert (claim["kind"], len(workloads)) == (
        "PersistentVolumeClaim", {"vllm-two-machines": 2, "sglang-router": 3}.get(case, 1),
    )  # fmt: skip
    assert [each["spec"]["selector"]["matchLabels"] for each in workloads] == labels
    for service in (manifest for manifest in others if manifest["kind"] == "Service"):
        assert service["spec"]["selector"] in labels
    for pod in (each["spec"]["template"]["spec"] for each in workloads):
        volumes = pod.get("volumes", ())
        mounted = {mount["name"] for mount in pod["containers"][0].get("volumeMounts", ())}
        assert mounted == {each["name"] for each in volumes}
        claims = {v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v}
        assert claims <= {claim["metadata"]["name"]}


def services_of(manifests) -> dict[str, int]:
    """Port by name of each service of a cluster."""
    found = [manifest for manifest in manifests if manifest["kind"] == "Service"]
    return {each["metadata"]["name"]: each["spec"]["ports"][0]["port"] for each in found}


def test_several_machines_join_the_first_one(rendered) -> None:
    out, record = rendered("vllm-two-machines")
    assert "compose.yaml" not in record.files
    manifests = list(yaml.safe_load_all((out / "kubernetes.yaml").read_text("utf-8")))
    head, nodes = (m["spec"] for m in manifests if m["kind"] == "Deployment")
    (_, _, script, _) = head["template"]["spec"]["containers"][0]["command"]
    joined = nodes["template"]["spec"]["containers"][0]["command"]
    address, _, port = joined[joined.index("--address") + 1].partition(":")

    assert services_of(manifests)[address] == int(port)
    assert f"ray start --head --port {port} && exec python3 -m vllm" in script
    assert (head["replicas"], nodes["replicas"]) == (1, 1)
    assert "livenessProbe" not in nodes["template"]["spec"]["containers"][0]
    for name in ("serve.sh", "join.sh"):
        subprocess.run(["sh", "-n", out / name], check=True)
        assert f"{port}" in (out / name).read_text("utf-8")
    assert option(words_of(out), "--pipeline-parallel-size") == ["2"]
    assert record.settings["nodes"] == 2


def test_a_router_knows_every_copy(rendered) -> None:
    out, record = rendered("sglang-router")
    services = yaml.safe_load((out / "compose.yaml").read_text("utf-8"))["services"]
    router = services.pop("router")
    manifests = list(yaml.safe_load_all((out / "kubernetes.yaml").read_text("utf-8")))
    (inside,) = [
        m["spec"]["template"]["spec"]["containers"][0]
        for m in manifests
        if m["kind"] == "Deployment" and m["metadata"]["name"] == "lora-eval-sglang"
    ]

    assert option(router["command"], "--worker-urls") == [f"http://{name}:30000" for name in services]
    devices = [
        each["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] for each in services.values()
    ]
    assert devices == [["0"], ["1"]]
    ports = [each["ports"][0] for each in (router, *services.values())]
    assert ports == ["127.0.0.1:8000:30000", "127.0.0.1:8001:30000", "127.0.0.1:8002:30000"]
    known = services_of(manifests)
    for url in option(inside["args"], "--worker-urls"):
        name, _, port = url.removeprefix("http://").partition(":")
        assert known[name] == int(port)
    assert record.settings["replicas"] == 2
    assert "--adapter llama:support=adapters/" in (out / "README.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("server", "options", "said"),
    [
        ("vllm", {"nodes": 2, "targets": ("compose",)}, "--target compose is for one machine"),
        ("vllm", {"nodes": 2, "device": "cpu"}, "--nodes: of GPUs"),
        ("vllm", {"replicas": 2}, "has no option 'replicas'"),
        ("sglang", {"nodes": 2}, "has no option 'nodes'"),
    ],
)
def test_what_cannot_stand_on_several_machines(server, options, said, base, tmp_path) -> None:
    from lora_eval.errors import InputError

    with pytest.raises(InputError, match=said):
        deploy(server, DeployRequest(base, "llama", {}, options), tmp_path / "out")


def test_layers_are_shared_out_whole(base) -> None:
    from tests.servers.conftest import ask, of_rule

    (finding,) = of_rule(ask("vllm", base, nodes=3), "pipeline-parallel")
    assert (finding.severity, finding.reason) == (
        "refused", "its 2 layers cannot be shared out to --nodes 3",
    )  # fmt: skip


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
            service, *_ = documents[0]["services"].values()
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
