"""One identity for a set of weights: changed by what decides the answers, and by nothing else."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_eval import fingerprint
from lora_eval.fingerprint import fingerprint_data, fingerprint_folder, sha256_file, sha256_text

FILES = {
    "config.json": '{"hidden_size": 64, "transformers_version": "5.23.0", "_name_or_path": "/tmp/a"}',
    "model.safetensors": "weights",
    "tokenizer.json": '{"model": {}}',
    "tokenizer_config.json": '{"eos_token": "<|im_end|>", "name_or_path": "/tmp/a"}',
    "chat_template.jinja": "{{ messages }}",
    "generation_config.json": '{"eos_token_id": 2}',
    "adapter_config.json": '{"r": 8, "base_model_name_or_path": "/tmp/base", "peft_version": "0.21.2"}',
    "quantize_config.json": '{"bits": 4, "meta": {"offload_to_disk_path": "/tmp/x"}}',
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_identity_is_known_for_good(folder: Path) -> None:
    """Stored records hold fingerprints: a change of this value makes every one of them stale."""
    assert fingerprint_folder(folder) == (
        "sha256:3002ced3876705010663d2813f1279a9f3b11374e4c9021f7c6900bed39df8bf"
    )


def test_a_copy_elsewhere_is_the_same(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    copy = shutil.copytree(folder, tmp_path_factory.mktemp("other") / "copy")

    assert fingerprint_folder(copy) == fingerprint_folder(folder)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 3 * 4096 + 5])
def test_a_file_is_hashed_in_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(fingerprint, "_WINDOW", 4096)
    data = bytes(number % 251 for number in range(size))
    (tmp_path / "x.bin").write_bytes(data)

    assert sha256_file(tmp_path / "x.bin") == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("name", sorted(FILES))
def test_each_file_that_decides_the_answers_counts(folder: Path, name: str) -> None:
    before = fingerprint_folder(folder)
    text = FILES[name].replace(":", ': 1, "more":', 1) if name.endswith(".json") else FILES[name] + "x"
    (folder / name).write_text(text)

    assert fingerprint_folder(folder) != before


@pytest.mark.parametrize("name", ["model-2.safetensors", "pytorch_model.bin", "modeling_mine.py"])
def test_more_weights_or_code_count(folder: Path, name: str) -> None:
    before = fingerprint_folder(folder)
    (folder / name).write_text("more")

    assert fingerprint_folder(folder) != before


@pytest.mark.parametrize("name", ["README.md", "lineage.json", "training_args.bin", "optimizer.bin"])
def test_what_does_not_decide_the_answers_does_not_count(folder: Path, name: str) -> None:
    before = fingerprint_folder(folder)
    (folder / name).write_text("more")

    assert fingerprint_folder(folder) == before


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("config.json", "transformers_version", "6.0"),
        ("config.json", "_name_or_path", "/home/me"),
        ("tokenizer_config.json", "name_or_path", "/home/me"),
        ("adapter_config.json", "base_model_name_or_path", "/home/me/base"),
        ("adapter_config.json", "peft_version", "0.22"),
        ("quantize_config.json", "meta", {"offload_to_disk_path": "/tmp/other"}),
    ],
)
def test_where_and_with_which_version_it_was_written_does_not_count(
    folder: Path, name: str, key: str, value: object
) -> None:
    before = fingerprint_folder(folder)
    (folder / name).write_text(json.dumps(json.loads(FILES[name]) | {key: value}))

    assert fingerprint_folder(folder) == before


def test_order_of_an_adapter_s_target_modules_does_not_count(folder: Path) -> None:
    """PEFT keeps them as a set and writes them in another order in every process."""

    def identity(target_modules: object) -> str:
        config = {"r": 8, "target_modules": target_modules}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        return fingerprint_folder(folder)

    assert identity(["q_proj", "v_proj"]) == identity(["v_proj", "q_proj"])
    assert identity(["q_proj", "v_proj"]) != identity(["q_proj"])
    assert identity("all-linear") != identity(["all-linear"])


def test_layout_of_a_settings_file_does_not_count(folder: Path) -> None:
    before = fingerprint_folder(folder)
    data = json.loads(FILES["config.json"])
    (folder / "config.json").write_text(json.dumps(dict(reversed(data.items())), indent=4))

    assert fingerprint_folder(folder) == before


def test_a_settings_file_that_is_no_json_still_counts(folder: Path) -> None:
    (folder / "config.json").write_text("{broken")
    before = fingerprint_folder(folder)
    (folder / "config.json").write_text("{broken too")

    assert fingerprint_folder(folder) != before


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=5))
def test_key_order_does_not_count(data: dict[str, object]) -> None:
    assert fingerprint_data(dict(reversed(data.items()))) == fingerprint_data(data)


@given(JSON, JSON)
def test_different_data_differ(one: object, other: object) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)

    assert (fingerprint_data(one) == fingerprint_data(other)) is same


def test_a_file_changed_in_place_is_hashed_again(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("one")
    first = sha256_file(path)
    path.write_text("other")

    assert first == sha256_text("one")
    assert sha256_file(path) == sha256_text("other")
