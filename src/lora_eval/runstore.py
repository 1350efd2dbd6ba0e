"""A run on disk: `run.json` (header) beside `samples.parquet` (one row for each item and filter).

The header is written last, so a folder with `run.json` holds a whole run. Per-item values of perplexities are
their log-likelihood in `metrics` and the number of words or bytes in `weights` (see `SampleRow`).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from lora_eval.errors import RecordError
from lora_eval.records import LoadedRun, Run, SampleRow
from lora_eval.schema import read_record, write_bytes, write_record

HEADER = "run.json"
ROWS = "samples.parquet"


def write_run(folder: Path, run: Run, rows: Sequence[SampleRow]) -> None:
    """Store rows, then header, each whole or not at all.

    Raises:
        OutputError: the folder cannot be written or the disk is full.
    """
    import pyarrow
    from pyarrow import parquet

    (folder / HEADER).unlink(missing_ok=True)  # no header beside rows of another run, whatever happens
    records = [{field.name: getattr(row, field.name) for field in fields(SampleRow)} for row in rows]
    table = pyarrow.Table.from_pylist(
        [record | {"metrics": list(record["metrics"].items()), "weights": list(record["weights"].items())}
         for record in records],
        schema=_schema(),
    )  # fmt: skip
    buffer = io.BytesIO()
    parquet.write_table(table, buffer, compression="zstd")
    write_bytes(folder / ROWS, buffer.getvalue())
    write_record(folder / HEADER, run)


def read_run(folder: Path) -> LoadedRun:
    """Return header and rows, in the order in which they were written.

    Raises:
        RecordError: a file is missing, or is not what `write_run` writes.
    """
    import pyarrow
    from pyarrow import parquet

    run = read_record(folder / HEADER, Run)
    path = folder / ROWS
    if not path.is_file():
        raise RecordError(str(path), ["no such file"])
    try:
        table = parquet.read_table(path)
        rows = [_row(record) for record in table.to_pylist()]
    except (pyarrow.ArrowException, OSError, TypeError, KeyError) as error:
        raise RecordError(str(path), [f"is not a table of samples: {error}"]) from error
    return LoadedRun(run, rows)


def flat_rows(rows: Sequence[SampleRow]) -> bytes:
    """Return the rows as Parquet that every reader takes: metrics and their weights are columns of their own
    (`metric_acc`, `weight_word_perplexity`); `datasets` knows no maps.
    """
    import pyarrow
    from pyarrow import parquet

    plain = [field.name for field in fields(SampleRow) if field.name not in ("metrics", "weights")]
    columns: dict[str, list[Any]] = {name: [getattr(row, name) for row in rows] for name in plain}
    for prefix, values in (
        ("metric", [row.metrics for row in rows]),
        ("weight", [row.weights for row in rows]),
    ):
        for name in dict.fromkeys(name for own in values for name in own):
            columns[f"{prefix}_{name}"] = [own.get(name) for own in values]
    schema = _schema()
    known = {name: schema.field(name).type for name in plain}
    arrays = {name: pyarrow.array(own, known.get(name, pyarrow.float64())) for name, own in columns.items()}
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(arrays), buffer, compression="zstd")
    return buffer.getvalue()


def has_run(folder: Path) -> bool:
    """Whether the folder holds a whole run."""
    return (folder / HEADER).is_file() and (folder / ROWS).is_file()


def _row(record: dict[str, Any]) -> SampleRow:
    values = dict(record)
    values["metrics"] = dict(values["metrics"])
    values["weights"] = dict(values["weights"])
    values["log_likelihoods"] = tuple(values["log_likelihoods"])
    values["choices"] = tuple(values.get("choices") or ())  # runs of before 2026-11-26 have none
    return SampleRow(**values)


def _schema() -> Any:
    import pyarrow as pa

    numbers = pa.map_(pa.string(), pa.float64())
    types = {
        "item_id": pa.int64(),
        "repeat": pa.int32(),
        "metrics": numbers,
        "weights": numbers,
        "log_likelihoods": pa.list_(pa.float64()),
        "choices": pa.list_(pa.string()),
        "prompt_tokens": pa.int32(),
    }
    return pa.schema([(field.name, types.get(field.name, pa.string())) for field in fields(SampleRow)])
