"""Property tests without a time limit for each example: the machine may be busy. Scripts of benchmarks/."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings

settings.register_profile("lora-eval", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("lora-eval")


@pytest.fixture(scope="session")
def benchmark_module() -> Iterator[Callable[[str], ModuleType]]:
    """Import a script of benchmarks/ by its name, as its siblings do."""
    place = str(Path(__file__).resolve().parents[2] / "benchmarks")
    sys.path.insert(0, place)
    yield importlib.import_module
    sys.path.remove(place)
