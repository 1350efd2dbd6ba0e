"""A real vLLM, started by us and asked by smoke and by a served arm (see tests/real_vllm.py)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lora_eval.engines.http import open_served
from lora_eval.engines.transformers import open_engine
from lora_eval.errors import ServerError
from lora_eval.models import open_resident
from lora_eval.protocols import GenerateRequest, ScoreRequest
from lora_eval.records import Smoke
from lora_eval.serve import LocalServer, Serving, find_vllm
from lora_eval.smoke import Asked, smoke
from tests.real_vllm import left_behind, needs_vllm
from tests.serve.running import serve_command

pytestmark = needs_vllm()
SMALL = ("--max-num-seqs", "16")


def _silent(*_: object) -> None:
    pass


@pytest.fixture(scope="module")
def server(tiny_llama: Path, two_adapters: dict[str, Path]) -> Iterator[LocalServer]:
    serving = Serving(tiny_llama, adapters=two_adapters, dtype="float32", allow_load=True, more=SMALL)
    with LocalServer(serving, _silent) as running:
        yield running


def _failed(found: Smoke) -> set[tuple[str, str | None]]:
    return {(check.name, check.arm) for check in found.checks if check.passed is False}


def test_base_and_adapters_are_served_as_measured(
    server: LocalServer, tiny_llama: Path, two_adapters: dict[str, Path]
) -> None:
    found = smoke(server.url, Asked(tiny_llama, adapters=two_adapters), _silent)
    assert [check for check in found.checks if check.passed is not True] == []
    assert found.server == find_vllm().version
    assert len(found.checks) == 3 + 1 + 3 * 8 + 4 + 3


def test_a_reload_from_the_same_path_is_stale(
    server: LocalServer, tiny_llama: Path, two_adapters: dict[str, Path]
) -> None:
    """vllm-project/vllm#42125: when this fails, vLLM is mended, and docs/smoke.md is to say so."""
    found = smoke(server.url, Asked(tiny_llama, adapters=two_adapters, allow_load=True), _silent)
    assert _failed(found) == {("reload-cache", "tuned")}
    assert {check.passed for check in found.checks if check.name in ("hot-load", "unload")} == {True}


def test_a_served_arm_has_the_numbers_of_the_same_weights_here(
    server: LocalServer, tiny_llama: Path, two_adapters: dict[str, Path]
) -> None:
    resident = open_engine(open_resident(tiny_llama, two_adapters))
    served = open_served(server.url, "other", tiny_llama, name="prod", progress=_silent)
    requests = [ScoreRequest(tuple(range(n, n + 40)), (7, 8, n)) for n in range(9)]
    own = resident.score("other", requests, _silent)
    for score, expected in zip(served.score("prod", requests, _silent), own, strict=True):
        assert score.log_likelihood == pytest.approx(expected.log_likelihood, rel=1e-5, abs=1e-4)
        assert score.is_greedy is expected.is_greedy
    prompts = [GenerateRequest(tuple(range(n, n + 20)), ("e",), 12) for n in range(9)]
    assert served.generate("prod", prompts, _silent) == resident.generate("other", prompts, _silent)
    assert not served.refused
    served.close()


def test_an_adapter_in_the_last_slot_is_in_base_answers_of_mixed_batches(
    tiny_llama: Path, two_adapters: dict[str, Path]
) -> None:
    """What `serve` avoids with one slot more than adapters, on vLLM's CPU build."""
    if not find_vllm().on_cpu:
        pytest.skip("a defect of the CPU build")
    serving = Serving(tiny_llama, adapters=two_adapters, dtype="float32", more=(*SMALL, "--max-loras", "2"))
    asked, failed = Asked(tiny_llama, adapters=two_adapters), set()
    with LocalServer(serving, _silent) as server:
        for _ in range(6):  # on a busy machine vLLM may not get the requests into one batch
            failed = failed or _failed(smoke(server.url, asked, _silent))
    assert failed == {("mixed-batches", "base")}


@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_however_the_command_ends_nothing_of_vllm_is_left(tiny_llama: Path, how: str) -> None:
    arguments = ("--model", f"shipped={tiny_llama}", "--dtype", "float32")
    with serve_command(*arguments, vllm=SMALL) as running:
        assert running.models == ["shipped"]
        started = psutil.Process(running.process.pid).children(recursive=True)
        assert len(started) >= 3  # the watchdog, vLLM's server and its engine at least
        made = left_behind(started)
        assert len(made) >= 3  # two queues, and the folder of the sockets
        getattr(running.process, how)()
        running.process.wait(300)
        assert not psutil.wait_procs(started, timeout=300)[1]
        assert not [place for place in made if place.exists()]
        if how == "terminate":
            assert running.process.returncode == 0
            running.said.seek(0)
            assert "no process of vLLM is left" in running.said.read()


def test_a_server_that_cannot_start_says_why(tiny_llama: Path) -> None:
    serving = Serving(tiny_llama, more=("--max-model-len", "999999"))
    with pytest.raises(ServerError, match=r"vLLM has ended: .*999999"), LocalServer(serving, _silent):
        pass
