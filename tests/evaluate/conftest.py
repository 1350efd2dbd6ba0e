"""Tasks over local data, and a suite of two of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_eval.evaluate import open_suite
from lora_eval.suites.lm_eval import LmEvalSuite
from tests.suites.conftest import write_tasks


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="session")
def suite(tasks: Path) -> LmEvalSuite:
    found = open_suite(tasks=["t_last", "t_generate"], include_path=str(tasks))
    assert isinstance(found, LmEvalSuite)
    return found
