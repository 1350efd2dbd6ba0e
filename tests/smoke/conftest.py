"""One base with two adapters, shared by the tests of smoke and of served arms."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import save_tiny_adapter


@pytest.fixture(scope="session")
def two_adapters(
    tiny_llama: Path, tiny_adapter: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    other = tmp_path_factory.mktemp("adapters") / "other"
    save_tiny_adapter(tiny_llama, other, seed=2)
    return {"tuned": tiny_adapter, "other": other}
