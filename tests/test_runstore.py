"""A run on disk comes back as it was, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lora_eval.errors import OutputError, RecordError
from lora_eval.records import Run, SampleRow, TaskResult, Variant
from lora_eval.runstore import has_run, read_run, write_run

RESULT = TaskResult(task="t", metric="acc", filter="none", higher_is_better=True, value=0.5, n=2)
RUN = Run(
    arm="base",
    variant=Variant(kind="base", path="/models/base", fingerprint="sha256:1"),
    suite="s",
    suite_fingerprint="sha256:2",
    engine="transformers",
    dtype="float32",
    quantization={"load_in_4bit": True},
    seeds={"fewshot": 1234},
    results=(RESULT,),
    notes=("a note",),
)
FULL = SampleRow(
    task="t",
    item_id=3,
    doc_hash="d",
    filter="none",
    repeat=0,
    prompt_sha256="p",
    prompt="Wer? \u2028 \x00 \N{GRINNING FACE}",
    target="ja",
    output="nein",
    metrics={"acc": 0.0, "f1": None},
    log_likelihoods=(-1.25, -0.1 - 0.2),
    prompt_tokens=7,
    finish_reason="stop",
    cluster="c",
    reason="f1: none",
    weights={"word_perplexity": 12.0},
)
BARE = SampleRow("t", 4, "e", "none", 0, "q", "", "", "", {})


def test_a_run_comes_back_as_it_was(tmp_path: Path) -> None:
    assert not has_run(tmp_path)
    write_run(tmp_path / "runs" / "base", RUN, [FULL, BARE])
    found = read_run(tmp_path / "runs" / "base")
    assert found.run == RUN
    assert found.rows == [FULL, BARE]
    assert has_run(tmp_path / "runs" / "base")
    write_run(tmp_path / "runs" / "base", RUN, [])
    assert read_run(tmp_path / "runs" / "base").rows == []


def test_what_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"run\.json: no such file"):
        read_run(tmp_path)
    write_run(tmp_path, RUN, [FULL])
    rows = tmp_path / "samples.parquet"
    rows.write_bytes(rows.read_bytes()[:-8])
    with pytest.raises(RecordError, match=r"samples\.parquet: is not a table of samples"):
        read_run(tmp_path)
    rows.unlink()
    with pytest.raises(RecordError, match=r"samples\.parquet: no such file"):
        read_run(tmp_path)


def test_a_full_disk_leaves_no_header(tmp_path: Path, full_disk: Callable[[int], None]) -> None:
    write_run(tmp_path, RUN, [BARE])
    full_disk(200)
    with pytest.raises(OutputError, match=r"samples\.parquet: cannot be written"):
        write_run(tmp_path, RUN, [FULL] * 50)
    assert not has_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["samples.parquet"]
