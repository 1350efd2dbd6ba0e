"""What must not go out is refused, all of it at once, before anything is sent."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from lora_eval.publish.licences import check_languages, check_licence, known_licences
from lora_eval.publish.refusals import check_file, header_paths, list_files, local_paths
from lora_eval.records import Comparison, Gate, Verification
from lora_eval.records.gate import GateRule
from lora_eval.schema import read_record, write_record
from lora_eval.stats.gate import gated
from tests.publish.conftest import GIVEN
from tests.publish.test_secrets import TOKEN


def test_pickles_are_known_by_name_and_by_content(tmp_path: Path) -> None:
    (tmp_path / "training_args.bin").write_bytes(b"x")
    (tmp_path / "innocent.data").write_bytes(pickle.dumps({"a": 1}))
    with zipfile.ZipFile(tmp_path / "weights.data", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    for protocol in (0, 1, 4):
        (tmp_path / f"old{protocol}.json").write_bytes(pickle.dumps({"a": print}, protocol=protocol))
    (tmp_path / "words.txt").write_text("cab\ncar\nRun.\n")
    (tmp_path / "config.yaml").write_text("could be\nanything .\n")
    found = {path.name: list(check_file(path)) for path in sorted(tmp_path.iterdir())}
    assert [name for name, problems in found.items() if problems] == [
        "innocent.data", "old0.json", "old1.json", "old4.json", "training_args.bin", "weights.data",
    ]  # fmt: skip


def test_weights_whose_header_has_a_length_like_a_pickle_are_none(tmp_path: Path) -> None:
    header = json.dumps({"__metadata__": {"note": "x"}}).encode().ljust(0x0480)
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert (tmp_path / "model.safetensors").read_bytes().startswith(b"\x80\x04")
    assert list(check_file(tmp_path / "model.safetensors")) == []


def _archives() -> dict[str, bytes]:
    packed, zipped = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("data.pkl"))
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("notes.txt", TOKEN * 9)
    return {"gzip": gzip.compress(TOKEN.encode()), "tar": packed.getvalue(), "zip": zipped.getvalue()}


@pytest.mark.parametrize("kind", _archives())
def test_what_cannot_be_looked_into_is_refused_whatever_its_name(tmp_path: Path, kind: str) -> None:
    (tmp_path / "notes.md").write_bytes(_archives()[kind])
    assert ["an archive" in problem for problem in check_file(tmp_path / "notes.md")] == [True]


def test_links_out_of_the_folder_and_to_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside.txt").write_text("x")
    (folder / "inside.txt").write_text("x")
    (folder / "good").symlink_to("inside.txt")
    (folder / "out").symlink_to(tmp_path / "outside.txt")
    (folder / "dead").symlink_to("gone.txt")
    (folder / "more").mkdir()
    (folder / "again").symlink_to("more")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("x")
    files, problems = list_files(folder)
    assert [path.name for path in files] == ["good", "inside.txt"]
    assert [problem.split(": ")[1][:13] for problem in problems] == [
        "a link to a f", "a link to not", "a link out of",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see /home/ann/model/x.json", 1),
        (r"C:\Users\ann\model", 1),
        ("https://host/data/x and org/data/x", 0),
        ("https://data/x/y file-data/x ./data/x ~/data/x", 0),
        ("/tmp/a/b, /root/b/c", 2),
        ("and/or 3/4 {{ '/' }}", 0),
        ("file:///home/ann/model", 1),
        ("file:///C:/Users/ann/model", 1),
        ("C:/Users/ann/model", 1),
        (r"\\server\share\model", 1),
        ("data:/data/a/b and --out=/home/ann/x", 2),
        ("(/nfs/ann/x) `/Volumes/ann/x`", 2),
        ("'Q:\\nyes\\nA:\\n' + {{ x }}", 0),
    ],
)
def test_paths_of_this_machine(text: str, found: int) -> None:
    assert len(list(local_paths("README.md", text))) == found
    assert len(list(local_paths("CONFIG.JSON", json.dumps({"a": [text]})))) == found
    assert list(local_paths("tokenizer.json", json.dumps({"model": {"vocab": {text: 0}}}))) == []


def test_paths_in_other_texts(tmp_path: Path) -> None:
    assert len(list(local_paths("a.yaml", r'a: "C:\\Users\\ann\\x"'))) == 1
    assert list(local_paths("a.html", r'{"prompt": "Q: x\nA:\nyes it is\nQ:"}')) == []
    assert len(list(local_paths("a.json", json.dumps({"out": "/unusual/place/of/mine"})))) == 1
    assert len(list(local_paths("a.json", f"broken {Path.home()}/x"))) == 1
    assert len(list(local_paths("README.md", f"in {Path.cwd()}/x"))) == 1


def test_the_metadata_of_weights_names_no_path(tmp_path: Path) -> None:
    import numpy
    from safetensors.numpy import save_file

    file = tmp_path / "model.safetensors"
    save_file({"a": numpy.zeros(2)}, file, metadata={"trained_from": "/home/ann/base"})
    assert len(list(header_paths("model.safetensors", file))) == 1
    save_file({"a": numpy.zeros(2)}, file, metadata={"format": "pt"})
    assert list(header_paths("model.safetensors", file)) == []


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
    (own / "adapter" / ".env").write_text(f"HF_TOKEN={TOKEN}")
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
