"""Finding what an arm names, and saying what is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lora_eval.errors import ModelError
from lora_eval.models import parse_arm, resolve_adapter, resolve_model


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("./a", (None, "./a", None)),
        ("mine=./a", ("mine", "./a", None)),
        ("org/model@v1.0", (None, "org/model", "v1.0")),
        ("mine=org/model@refs/pr/1", ("mine", "org/model", "refs/pr/1")),
        ("./runs/lr=1e-4/adapter", (None, "./runs/lr=1e-4/adapter", None)),
    ],
)
def test_parse_arm(text: str, expected: tuple) -> None:
    assert parse_arm(text) == expected


def test_parse_arm_takes_an_existing_path_whole(tmp_path: Path) -> None:
    odd = tmp_path / "a=b@c"
    odd.mkdir()
    assert parse_arm(str(odd)) == (None, str(odd), None)
    assert parse_arm(f"x={odd}") == ("x", str(odd), None)


@pytest.mark.parametrize("text", ["", "x=", "a b=./c", "=./c", "@main"])
def test_parse_arm_refuses(text: str) -> None:
    with pytest.raises(ModelError):
        parse_arm(text)


def test_a_whole_model_is_found(tiny_llama: Path) -> None:
    assert resolve_model(str(tiny_llama)) == tiny_llama.resolve()


def test_a_model_in_a_package_has_the_name_that_recipes_give_it() -> None:
    import lora_eval

    packaged = Path(lora_eval.__file__).parent / "pocket" / "model"
    assert resolve_model("lora_eval:pocket/model") == packaged
    for name in ("lora_eval:pocket/nothing", "no_such_package:model"):
        with pytest.raises(ModelError, match=f"{name}: no such folder: .*(no such file|not installed)"):
            resolve_model(name)


def test_missing_folder_and_uncached_repository(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        resolve_model(str(tmp_path / "none"))
    with pytest.raises(ModelError, match="neither a folder here nor in the local Hub cache"):
        resolve_model("nobody/nothing-at-all", "main")


def test_what_is_missing_in_a_folder_is_said(tiny_llama: Path, tiny_adapter: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(ModelError, match=r"empty; expected config\.json"):
        resolve_model(str(folder))
    (folder / "tokenizer.json").write_text("{}", "utf-8")
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve_model(str(folder))
    shutil.copy(tiny_llama / "config.json", folder)
    with pytest.raises(ModelError, match="no weights"):
        resolve_model(str(folder))
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    with pytest.raises(ModelError, match="model-00001-of-00002"):
        resolve_model(str(folder))
    (folder / "config.json").write_text("{", "utf-8")
    with pytest.raises(ModelError, match="not valid JSON"):
        resolve_model(str(folder))
    with pytest.raises(ModelError, match="give it as --adapter"):
        resolve_model(str(tiny_adapter))


def test_an_adapter_without_weights_or_configuration(
    tiny_llama: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    assert resolve_adapter(str(tiny_adapter)) == tiny_adapter.resolve()
    hollow = shutil.copytree(tiny_adapter, tmp_path / "hollow")
    (hollow / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors"):
        resolve_adapter(str(hollow))
    with pytest.raises(ModelError, match="this is a whole model"):
        resolve_adapter(str(tiny_llama))


def test_a_revision_belongs_to_a_repository(tiny_llama: Path) -> None:
    with pytest.raises(ModelError, match="has no revision"):
        resolve_model(str(tiny_llama), "main")


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": ["a"]}])
def test_an_index_that_names_nothing_is_named(
    tiny_llama: Path, tmp_path: Path, index: dict[str, object]
) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    with pytest.raises(ModelError, match=r"model.safetensors.index.json: has no weight_map"):
        resolve_model(str(folder))
