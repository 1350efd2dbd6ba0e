"""A recipe is its file, what it extends, and the command line; each value knows where it is from."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_eval.errors import InputError, PluginError, RecordError
from lora_eval.recipes import ResolvedRecipe, load_recipe
from lora_eval.recipes.resolve import Layer, find_layers, merge_layers
from lora_eval.schema import parse_yaml

BASE = """
schema: 1
name: base
summary: The base.
lora: {r: 8, lora_alpha: 16}
training: {learning_rate: 1e-4}
"""


def _load(folder: Path, text: str, *overrides: str, **files: str) -> ResolvedRecipe:
    for name, content in {"main": text, **files}.items():
        (folder / f"{name}.yaml").write_text(content)
    return load_recipe(str(folder / "main.yaml"), overrides, check=False)


def test_values_merge_key_by_key_and_the_nearest_wins(tmp_path: Path) -> None:
    middle = "schema: 1\nname: middle\nextends: ./base.yaml\nlora: {r: 16}\nhardware: {device: H200}\n"
    main = "schema: 1\nname: main\nextends: middle.yaml\nlora: {lora_alpha: 32}\n"
    found = _load(
        tmp_path, main, "training.learning_rate=2e-4", "lora.lora_dropout=0.1", base=BASE, middle=middle
    )

    assert found.recipe.name == "main"
    assert found.recipe.lora == {"r": 16, "lora_alpha": 32, "lora_dropout": 0.1}
    assert found.recipe.training == {"learning_rate": 2e-4}
    assert found.origins["lora.r"].endswith("middle.yaml")
    assert found.origins["lora.lora_alpha"].endswith("main.yaml")
    assert found.origins["lora.lora_dropout"] == "command line 'lora.lora_dropout=0.1'"
    assert found.origins["training.learning_rate"] == "command line 'training.learning_rate=2e-4'"
    # What says something about one recipe only is not inherited.
    assert found.recipe.summary == ""
    assert found.recipe.hardware.device is None


def test_a_packaged_recipe_is_extended_by_name(tmp_path: Path) -> None:
    found = _load(tmp_path, "schema: 1\nname: main\nextends: qlora-base\nlora: {r: 8}\n")
    assert found.recipe.lora["r"] == 8
    assert found.recipe.lora["target_modules"] == "all-linear"
    assert found.origins["lora.target_modules"].endswith("qlora-base.yaml")


def test_null_drops_an_inherited_section(tmp_path: Path) -> None:
    found = _load(tmp_path, "schema: 1\nname: main\nextends: qlora-base\nquantization: null\n")
    assert found.recipe.quantization == {}
    assert found.origins["quantization"].endswith("main.yaml")
    found = load_recipe("qlora-base", ["lora=null", "lora.r=4"], check=False)
    assert found.recipe.lora == {"r": 4}
    assert [key for key in found.origins if key.startswith("lora")] == ["lora", "lora.r"]


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("training.learning_rate=1e-4", 1e-4),
        ("training.learning_rate=1E5", 1e5),
        ("training.bf16=true", True),
        ("training.optim=sgd", "sgd"),
        ("training.max_length=null", None),
        ("training.report_to=[none]", ["none"]),
        ("training.run_name='1e-4'", "1e-4"),
        ("training.lr_scheduler_kwargs={num_cycles: 2}", {"num_cycles": 2}),
        ("training.lr_scheduler_kwargs.num_cycles=2", {"num_cycles": 2}),
        ("training.run_name=a=b", "a=b"),
        ("training.run_name=", None),
    ],
)
def test_override_values_are_read_as_yaml(override: str, value: object) -> None:
    key = override.partition("=")[0].split(".")[1]
    found = load_recipe("qlora-base", [override], check=False)
    assert found.recipe.training[key] == value
    assert type(found.recipe.training[key]) is type(value)


def test_overrides_are_applied_in_order() -> None:
    assert load_recipe("qlora-base", ["lora.r=4", "lora.r=2"], check=False).recipe.lora["r"] == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lora.r", "command line: 'lora.r': expected section.key=value"),
        ("=3", "command line: '=3': expected section.key=value"),
        ("lora.=3", "command line: 'lora.=3': expected section.key=value"),
        ("lora.r=[1", "command line 'lora.r=[1': is not valid YAML"),
        ("trainin.seed=1", "command line 'trainin.seed=1': unknown key 'trainin'; did you mean 'training'?"),
        ("data.file=[a]", "command line 'data.file=[a]': unknown key 'data.file'; did you mean 'files'?"),
        ("training=5", "command line 'training=5': training: expected a mapping with keys, got 5"),
        ("data.max_rows=0", "data.max_rows: input should be greater than or equal to 1, got 0"),
        ("extends=qlora-base", "command line: 'extends=qlora-base': 'extends' can be set in a file only"),
    ],
)
def test_a_wrong_override_is_said_as_it_was_written(override: str, message: str) -> None:
    with pytest.raises(RecordError) as caught:
        load_recipe("qlora-base", [override], check=False)
    assert message in str(caught.value)


def test_all_faults_of_all_files_at_once(tmp_path: Path) -> None:
    base = "schema: 1\nlora: 3\ndata: {shuffle: 1}\n"
    main = "schema: 1\nname: main\nextends: base.yaml\ntraning: {}\nbase: [1]\n"
    with pytest.raises(RecordError) as caught:
        _load(tmp_path, main, "sute=quick", base=base)
    lines = str(caught.value).splitlines()
    assert lines == [
        f"{tmp_path}/base.yaml: missing key 'name'",
        f"{tmp_path}/base.yaml: lora: expected a mapping with keys, got 3",
        f"{tmp_path}/base.yaml: unknown key 'data.shuffle'; did you mean 'shuffle_seed'?",
        f"{tmp_path}/main.yaml: base: expected text, got [1]",
        f"{tmp_path}/main.yaml: unknown key 'traning'; did you mean 'training'?",
        "command line 'sute=quick': unknown key 'sute'; did you mean 'suite'?",
    ]


def test_a_circle_is_named(tmp_path: Path) -> None:
    one = "schema: 1\nname: one\nextends: two.yaml\n"
    two = "schema: 1\nname: two\nextends: main.yaml\n"
    with pytest.raises(
        RecordError, match=r"extends: goes round in a circle: .*main.yaml -> .*two.yaml -> .*main"
    ):
        _load(tmp_path, one, two=two)


def test_what_cannot_be_found_is_said_with_who_asked(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"No recipe named 'qlora-bas'\. Did you mean 'qlora-base'\?"):
        load_recipe("qlora-bas", check=False)
    with pytest.raises(RecordError, match=r"none\.yaml: no such file"):
        load_recipe(str(tmp_path / "none.yaml"), check=False)
    with pytest.raises(RecordError, match=r"main\.yaml: extends: No recipe named 'qlora-bas'"):
        _load(tmp_path, "schema: 1\nname: m\nextends: qlora-bas\n")
    with pytest.raises(RecordError, match=r"main\.yaml: extends: .*gone\.yaml: no such file"):
        _load(tmp_path, "schema: 1\nname: m\nextends: gone.yaml\n")
    with pytest.raises(RecordError, match=r"main\.yaml: extends: expected a name or a path, got 3"):
        _load(tmp_path, "schema: 1\nname: m\nextends: 3\n")


def test_data_files_are_found_from_the_file_that_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        (folder / "rows.jsonl").touch()
    (there / "base.yaml").write_text(BASE + "data: {files: [rows.jsonl], eval_files: [none.jsonl]}\n")
    found = _load(here, "schema: 1\nname: m\nextends: ../there/base.yaml\n")
    assert found.data_files() == [there / "rows.jsonl"]
    with pytest.raises(InputError, match=r"no such file: .*there/none\.jsonl"):
        found.eval_files()

    found = _load(here, "schema: 1\nname: m\ndata: {files: [rows.jsonl, 'lora_eval:py.typed']}\n")
    assert found.data_files()[0] == here / "rows.jsonl"
    assert found.data_files()[1].name == "py.typed"

    monkeypatch.chdir(there)
    found = load_recipe(str(here / "main.yaml"), ["data.files=[rows.jsonl]"], check=False)
    assert found.data_files() == [there / "rows.jsonl"]


def test_the_resolved_file_stands_alone(tmp_path: Path) -> None:
    found = load_recipe("qlora-llama3-8b", ["training.run_name='1e-4'", "model.revision=null"], check=False)
    path = tmp_path / "resolved.yaml"
    path.write_text(found.to_yaml())
    again = load_recipe(str(path), check=False)
    assert again.recipe == found.recipe.model_copy(update={"extends": None})
    assert len(find_layers(str(path))) == 1


def test_recipes_of_plugins_are_extended_and_wrong_ones_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "acme_recipes.py").write_text(
        "from lora_eval import Recipe\n"
        "RECIPE = Recipe(name='acme', extends='qlora-base', lora={'r': 24})\nOTHER = 3\n"
    )
    info = tmp_path / "acme-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(
        "[lora_eval.recipes]\nacme = acme_recipes:RECIPE\nacme-other = acme_recipes:OTHER\n"
    )
    try:
        found = load_recipe("acme", ["training.seed=1"], check=False)
        assert (found.recipe.lora["r"], found.recipe.lora["bias"]) == (24, "none")
        assert found.origins["lora.r"] == "acme of acme 1.2"
        assert [layer.origin for layer in find_layers("acme")][-1] == "acme of acme 1.2"
        with pytest.raises(
            PluginError, match=r"'acme-other' .* of acme 1\.2\) is of type int, expected Recipe"
        ):
            load_recipe("acme-other", check=False)
    finally:
        sys.modules.pop("acme_recipes", None)


KEYS = st.sampled_from(["r", "lora_alpha", "bias", "x"])
VALUES = (
    st.none() | st.integers() | st.lists(st.integers(), max_size=2) | st.dictionaries(KEYS, st.integers())
)


@given(layers=st.lists(st.dictionaries(KEYS, VALUES, max_size=3), min_size=1, max_size=4))
def test_every_value_of_a_merge_has_the_origin_it_came_from(layers: list[dict[str, object]]) -> None:
    made = [Layer(f"file {i}", Path("/"), {"name": "n", "lora": values}) for i, values in enumerate(layers)]
    values, origins = merge_layers(made)

    for key, value in values.get("lora", {}).items():
        last = max(i for i, layer in enumerate(layers) if key in layer)
        if not isinstance(value, dict):
            assert value == layers[last][key]
            assert origins[f"lora.{key}"] == f"file {last}"
        for inner in value if isinstance(value, dict) else ():
            giver = int(origins[f"lora.{key}.{inner}"].removeprefix("file "))
            assert layers[giver][key][inner] == value[inner]


def test_numbers_in_files_are_numbers(tmp_path: Path) -> None:
    found = _load(
        tmp_path, "schema: 1\nname: m\ntraining: {learning_rate: 1e-4, a: 2.5E+3, b: '1e-4', c: 1e}\n"
    )
    assert found.recipe.training == {"learning_rate": 1e-4, "a": 2500.0, "b": "1e-4", "c": "1e"}
    assert parse_yaml(found.to_yaml(), "x")["training"] == found.recipe.training
