"""Real judgments where `../shared/data` has them, and how to write small files of verdicts."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import settings

from tests.conftest import CHECKOUT

# As in tests/stats: no time limit for each example, for the machine may be busy.
settings.register_profile("lora-eval", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("lora-eval")

SHARED = CHECKOUT.parent / "shared" / "data"


def real(path: str) -> Path:
    """A path under the real data; the test is skipped where that is absent."""
    found = SHARED / path
    if not found.exists():
        pytest.skip(f"no real data at {found}")
    return found


def json_lines(path: Path) -> list[dict]:
    """Rows of a JSON lines file, plain or gzip, by line feed only."""
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
    return [json.loads(line) for line in content.decode("utf-8").split("\n") if line]


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """`write_rows(rows, name)`: JSON lines, a JSON list where the name ends in .json, gzip where in .gz."""

    def write(rows: Iterable[dict], name: str = "rows.jsonl") -> Path:
        rows = list(rows)
        listed = ".json" in Path(name).suffixes
        text = (
            json.dumps(rows)
            if listed
            else "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        )
        content = text.encode("utf-8")
        path = tmp_path / name
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return path

    return write
