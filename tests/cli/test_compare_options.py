"""What the compare command is told beside arms and tasks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lora_eval.cli.compare_options import (
    open_store,
    parse_arms,
    parse_batch_tokens,
    parse_engine_option,
    parse_margin,
    parse_pairs,
    training_runs,
)
from lora_eval.errors import InputError, OutputError
from lora_eval.evaluate import Arms


def test_numbers_and_settings() -> None:
    assert (parse_batch_tokens("auto"), parse_batch_tokens("64")) == (None, 64)
    assert parse_engine_option("tensor_parallel_size=2") == ("tensor_parallel_size", 2)
    assert parse_engine_option("enforce_eager=true") == ("enforce_eager", True)
    assert parse_engine_option("kv_cache_dtype=fp8") == ("kv_cache_dtype", "fp8")
    assert parse_margin("gsm8k=0.02") == ("gsm8k", 0.02)


@pytest.mark.parametrize(
    "call", [lambda: parse_batch_tokens("0"), lambda: parse_engine_option("x"), lambda: parse_margin("t=-1")]
)
def test_what_is_refused(call) -> None:
    with pytest.raises(InputError, match="expected"):
        call()


@pytest.mark.parametrize("text", ["t=inf", "t=nan", "t=1e999", "t=", "t"])
def test_a_margin_that_nothing_can_miss_is_none(text: str) -> None:
    with pytest.raises(InputError, match="expected TASK=X"):
        parse_margin(text)


def test_which_store_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_store("none") as store:
        assert store is None
    with open_store(str(tmp_path / "mine.sqlite")) as store:
        assert store is not None
        assert store.path == tmp_path / "mine.sqlite"
    (tmp_path / "file").write_text("", "utf-8")
    monkeypatch.setenv("LORA_EVAL_STORE", str(tmp_path / "file" / "below"))
    with open_store(None) as store:  # the user's own cannot be opened: the evaluation goes on
        assert store is None
    assert "answers are not kept for later runs" in capsys.readouterr().err
    with pytest.raises(OutputError), open_store(str(tmp_path / "file" / "below")):
        pass


def arms(tiny_llama: Path, *adapters: str) -> Arms:
    return parse_arms(
        str(tiny_llama), adapters, (), {"dtype": "auto", "quantize": "auto", "add_original": False}
    )


def test_one_name_for_several_adapters_is_one_arm_with_training_runs(
    tiny_llama: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    second = shutil.copytree(tiny_adapter, tmp_path / "seed2")
    found = arms(tiny_llama, f"a={tiny_adapter}", f"b={tiny_adapter}", f"a={second}")
    assert list(found.adapters) == ["a#1", "a#2", "b"]
    assert found.adapters["a#2"] == second.resolve()
    assert training_runs(found.adapters) == {"a": ("a#1", "a#2")}
    assert training_runs(["base", "b"]) == {}
    with pytest.raises(InputError, match="given twice"):
        arms(tiny_llama, f"a={tiny_adapter}", f"a={tiny_adapter}")
    with pytest.raises(InputError, match="is taken"):
        arms(tiny_llama, str(tiny_adapter), str(tiny_adapter))


def test_pairs_are_checked_before_anything_runs(tiny_llama: Path, tiny_adapter: Path, tmp_path: Path) -> None:
    second = shutil.copytree(tiny_adapter, tmp_path / "seed2")
    found = arms(tiny_llama, f"a={tiny_adapter}", f"a={second}", f"b={tiny_adapter}")
    assert parse_pairs(["a,b", "b, base"], found) == [("a", "b"), ("b", "base")]
    with pytest.raises(InputError, match=r"no arm 'aa'; did you mean 'a'.*arms: base, a, b"):
        parse_pairs(["aa,b"], found)
    for text in ("a", "a,b,base", "a,a", ",b"):
        with pytest.raises(InputError, match="expected A,B"):
            parse_pairs([text], found)
