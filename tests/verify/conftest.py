"""The models of tests/exporters, and prompts to ask them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_eval.verify import ArmPath
from tests.exporters.conftest import qlora

__all__ = ["qlora"]


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 short conversations."""
    path = tmp_path_factory.mktemp("prompts") / "held-out.jsonl"
    rows = [
        [
            {"role": "user", "content": f"Where is item {n}?"},
            {"role": "assistant", "content": f"In room {n * 7}."},
        ]
        for n in range(24)
    ]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def adapter(qlora: Path) -> ArmPath:
    """The measured arm."""
    return ArmPath("mine", "adapter", qlora / "adapter", base=qlora / "base")
