"""What vLLM's processes find when they start, and that nothing of it stays."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_eval.engines.vllm_environment import environment, output_to, thread_binding

NAME = "VLLM_CPU_OMP_THREADS_BIND"


@given(st.lists(st.integers(0, 500), unique=True, max_size=40), st.integers(1, 4), st.integers(1, 4))
def test_every_process_gets_as_many_cpus_of_its_own(cpus: list[int], tensor: int, pipeline: int) -> None:
    settings = {"tensor_parallel_size": tensor, "pipeline_parallel_size": pipeline}
    found = thread_binding(settings, cpus)
    if tensor * pipeline == 1:
        assert found == {}
    elif len(cpus) < tensor * pipeline:
        assert found == {NAME: "nobind"}
    else:
        parts = [[int(cpu) for cpu in part.split(",")] for part in found[NAME].split("|")]
        assert [len(part) for part in parts] == [len(cpus) // (tensor * pipeline)] * (tensor * pipeline)
        assert [cpu for part in parts for cpu in part] == cpus[: sum(map(len, parts))]


def test_the_environment_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NAME, raising=False)
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "fork")
    before = dict(os.environ)
    with environment({"pipeline_parallel_size": 2}):
        assert os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
        assert NAME in os.environ
    assert dict(os.environ) == before


def test_a_binding_that_is_set_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, "4-7|0-3")
    with environment({"tensor_parallel_size": 2}):
        assert os.environ[NAME] == "4-7|0-3"


def test_what_is_written_meanwhile_lies_in_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.txt"
    with output_to(log):
        os.write(1, b"from a library\n")
        print("from a process", file=sys.__stderr__, flush=True)
    os.write(1, b"after\n")
    assert log.read_text() == "from a library\nfrom a process\n"
    assert capfd.readouterr() == ("after\n", "")
