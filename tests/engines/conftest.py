"""One resident tiny model with an adapter, shared by the tests of the engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_eval.models import Resident, open_resident


@pytest.fixture(scope="session")
def resident(tiny_llama: Path, tiny_adapter: Path) -> Resident:
    return open_resident(tiny_llama, {"tuned": tiny_adapter}, identity_control=True)
