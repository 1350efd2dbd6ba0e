"""What the compare command is told beside arms and tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_eval.cli.compare_options import open_store, parse_batch_tokens, parse_engine_option, parse_margin
from lora_eval.errors import InputError, OutputError


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
