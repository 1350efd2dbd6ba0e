"""The load picture: loopback only, bounded, and silent about what was not measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_eval.errors import InputError
from lora_eval.smoke import Asked, smoke
from lora_eval.smoke import load as module
from tests.smoke.server import TinyServer


def _silent(*_: object) -> None:
    pass


def test_base_and_adapters_in_rotation(
    tiny_llama: Path, two_adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_REQUESTS", 12)
    asked = Asked(tiny_llama, adapters=two_adapters, load=True)
    with TinyServer(tiny_llama, two_adapters) as server:
        found = smoke(server.url, asked, _silent).load
    assert [each.adapters for each in found] == [0, 1, 4, 16]
    assert [each.requests for each in found] == [12, 12, 0, 0]
    for each in found[:2]:
        assert each.reason is None
        assert each.requests_per_second == pytest.approx(12 / each.seconds, rel=0.02)
        assert 0 < each.p50_ms <= each.p90_ms <= each.p99_ms <= 1000 * each.seconds
    assert "the server has 2 adapters; with --allow-load" in found[2].reason
    assert found[2].requests_per_second is None


def test_copies_are_loaded_for_the_time_where_that_is_allowed(
    tiny_llama: Path, two_adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_REQUESTS", 4)
    asked = Asked(tiny_llama, adapters=two_adapters, load=True, allow_load=True)
    with TinyServer(tiny_llama, two_adapters) as server:
        found = smoke(server.url, asked, _silent)
        assert list(server.paths) == ["tuned", "other"]
    assert [each.requests for each in found.load] == [4, 4, 4, 4]
    assert found.passed


def test_time_bounds_a_slow_server(
    tiny_llama: Path, two_adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SECONDS", 0.0)
    with TinyServer(tiny_llama, two_adapters) as server:
        asked = Asked(tiny_llama, adapters=two_adapters, load=True)
        with pytest.raises(InputError, match="only on one of this machine"):
            smoke("http://192.0.2.1:8000/v1", asked, _silent)
        found = smoke(server.url, asked, _silent).load
    assert found[0].requests == 0 and found[0].reason
