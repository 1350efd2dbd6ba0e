"""What must not go out is refused, all of it at once, before anything is sent."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_eval.publish.licences import check_languages, check_licence, known_licences
from lora_eval.publish.refusals import check_file, list_files, local_paths, secrets_in
from lora_eval.records import Comparison, Gate, Verification
from lora_eval.records.gate import GateRule
from lora_eval.schema import read_record, write_record
from lora_eval.stats.gate import gated
from tests.publish.conftest import GIVEN

SECRETS = {
    "a Hugging Face token": "hf_" + "aB3" * 12,
    "an OpenAI or Anthropic key": "sk-proj-" + "x1Y_" * 10,
    "a GitHub token": "ghp_" + "a1B2" * 9,
    "an AWS access key": "AKIA" + "ABCD1234" * 2,
    "a private key": "-----BEGIN OPENSSH PRIVATE KEY-----",
}


@pytest.mark.parametrize("what", SECRETS)
@pytest.mark.parametrize("before", [0, (1 << 22) - 10])
def test_a_secret_is_found_wherever_it_stands(tmp_path: Path, what: str, before: int) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("x " * (before // 2) + f'token = "{SECRETS[what]}"\n')
    assert list(secrets_in(path)) == [f"holds {what}; remove it, and revoke it"]


@given(st.binary(max_size=300))
def test_bytes_of_weights_are_no_secret(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("w") / "model.safetensors"
    header = json.dumps({"__metadata__": {"format": "pt"}}).encode()
    path.write_bytes(
        len(header).to_bytes(8, "little") + header + data + SECRETS["an AWS access key"].encode()
    )
    assert list(secrets_in(path)) == []
    evil = json.dumps({"__metadata__": {"note": SECRETS["a GitHub token"]}}).encode()
    path.write_bytes(len(evil).to_bytes(8, "little") + evil + data)
    assert len(list(secrets_in(path))) == 1


@pytest.mark.parametrize("name", [".env", ".env.local", "id_rsa", "id_ed25519.pub", "server.pem", ".netrc"])
def test_files_of_secrets_are_known_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("nothing")
    assert ["by its name it holds a secret" in problem for problem in check_file(tmp_path / name)] == [True]


def test_pickles_are_known_by_name_and_by_content(tmp_path: Path) -> None:
    (tmp_path / "training_args.bin").write_bytes(b"x")
    (tmp_path / "innocent.data").write_bytes(pickle.dumps({"a": 1}))
    with zipfile.ZipFile(tmp_path / "weights.data", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    (tmp_path / "notes.zip").write_bytes(b"PK\x03\x04broken")
    found = {path.name: list(check_file(path)) for path in sorted(tmp_path.iterdir())}
    assert [name for name, problems in found.items() if problems] == [
        "innocent.data", "training_args.bin", "weights.data",
    ]  # fmt: skip


def test_links_out_of_the_folder_and_to_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside.txt").write_text("x")
    (folder / "inside.txt").write_text("x")
    (folder / "good").symlink_to("inside.txt")
    (folder / "out").symlink_to(tmp_path / "outside.txt")
    (folder / "dead").symlink_to("gone.txt")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("x")
    files, problems = list_files(folder)
    assert [path.name for path in files] == ["good", "inside.txt"]
    assert sorted(problem.split(": ")[1][:10] for problem in problems) == ["a link out", "a link to "]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see /home/ann/model/x.json", 1),
        (r"C:\Users\ann\model", 1),
        ("https://host/data/x and org/data/x", 0),
        ("/tmp/a/b, /root/b/c", 2),
        ("and/or 3/4 {{ '/' }}", 0),
    ],
)
def test_paths_of_this_machine(text: str, found: int) -> None:
    assert len(list(local_paths("README.md", text))) == found
    assert len(list(local_paths("config.json", json.dumps({"a": [text]})))) == found
    assert list(local_paths("tokenizer.json", json.dumps([text]))) == []


@pytest.mark.parametrize(
    ("licence", "base", "problem"),
    [
        ("apache-2.0", "mit", None),
        ("mit", None, None),
        ("cc-by-nc-4.0", "cc-by-nc-4.0", None),
        ("apache-2.0", "cc-by-nc-4.0", "may only be under cc-by-nc-4.0"),
        ("apache-2.0", "gemma", "may only be under gemma"),
        ("cc-by-nd-4.0", "cc-by-nd-4.0", "forbids"),
        ("apache2", None, "did you mean 'apache-2.0'"),
        (None, "mit", "say yours"),
        ("other", None, "--license-name"),
        ("llama3.1", "llama3.1", "begins with 'Llama'"),
    ],
)
def test_licences(licence: str | None, base: str | None, problem: str | None) -> None:
    found = check_licence(licence, base, name=None, link=None, repo="my-model")
    assert (problem is None) == (not found)
    assert problem is None or problem in found[0]


def test_lists_of_the_hub() -> None:
    assert len(set(known_licences())) == len(known_licences()) > 60
    assert check_languages(("en", "de", "code")) == []
    assert "ISO 639-1" in check_languages(("english",))[0]


def _arguments(folder: Path, variant: str = "adapter") -> tuple[object, ...]:
    return ("--variant", folder / variant, "--comparison", folder / "runs" / "mine", *GIVEN, "--dry-run")


def test_every_reason_at_once_and_nothing_sent(own: Path, publish_cli: Any) -> None:
    (own / "adapter" / ".env").write_text(f"HF_TOKEN={SECRETS['a Hugging Face token']}")
    (own / "adapter" / "optimizer.pt").write_bytes(pickle.dumps(1))
    (own / "adapter" / "notes.json").write_text(json.dumps({"cache": "/home/ann/cache"}))
    (own / "adapter" / "link").symlink_to("/etc/hostname")
    status, _, said = publish_cli(*_arguments(own), "--language", "english", "--license", "apache2")
    assert status == 2
    for part in (
        ".env",
        "Hugging Face token",
        "optimizer.pt",
        "/home/ann/cache",
        "link out",
        "english",
        "apache2",
    ):
        assert part in said


def test_weights_that_were_not_measured(own: Path, publish_cli: Any) -> None:
    config = json.loads((own / "adapter" / "adapter_config.json").read_text())
    (own / "adapter" / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 99}))
    status, _, said = publish_cli(*_arguments(own))
    assert status == 2
    assert "measured other weights" in said
    assert "they changed since they were made" in said


@pytest.mark.parametrize("change", ["missing", "failed", "of others"])
def test_an_export_that_is_not_verified(own: Path, publish_cli: Any, change: str) -> None:
    path = own / "merged" / "verification.json"
    record = read_record(path, Verification)
    if change == "missing":
        path.unlink()
    elif change == "failed":
        write_record(path, record.model_copy(update={"passed": False, "failures": ("mean KL too large",)}))
    else:
        other = record.candidate.model_copy(update={"fingerprint": "sha256:other"})
        write_record(path, record.model_copy(update={"candidate": other}))
        status, _, said = publish_cli(*_arguments(own, "merged"), "--verification", path)
        assert (status, "they changed since" in said) == (3, True)
    status, _, said = publish_cli(*_arguments(own, "merged"))
    assert (status, "verif" in said) == (3 if change == "failed" else 2, True)


def test_a_failed_gate_is_refused_and_an_override_stands_in_the_card(own: Path, publish_cli: Any) -> None:
    path = own / "runs" / "mine" / "comparison.json"
    gate = Gate(rules=(GateRule(task="reading", max_drop=0.001),))
    write_record(path, gated(read_record(path, Comparison), gate, "gate.yaml"))
    status, _, said = publish_cli(*_arguments(own))
    assert (status, "the gate failed" in said) == (3, True)
    from lora_eval.publish import Options, prepare

    options = Options(repo_id="me/x", base_model="org/base", license="mit", override="only a demonstration")
    card = prepare(own / "adapter", path, options).contents["README.md"].read().decode()
    assert "Published in spite of a failed gate" in card
    assert "only a demonstration" in card


def test_a_base_without_a_name_on_the_hub(measured: Path, publish_cli: Any) -> None:
    arguments = [each for each in _arguments(measured) if each not in ("--base-model", "org/base@v1")]
    status, _, said = publish_cli(*arguments)
    assert (status, "--base-model" in said) == (2, True)
