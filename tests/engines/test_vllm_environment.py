"""What vLLM's processes find when they start, and that nothing of it stays."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_eval.engines.vllm_environment import (
    environment,
    interruptible,
    output_to,
    thread_binding,
    visible_gpus,
)
from lora_eval.errors import InputError

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


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no CPU masks here")
def test_copies_share_the_cpus_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NAME, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4, 5, 6, 7})
    found = []
    for number in range(2):
        with environment({"tensor_parallel_size": 2}, (number, 2)):
            found.append(os.environ[NAME])
    assert found == ["0,1|2,3", "4,5|6,7"]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5})
    with environment({}, (1, 2)):
        assert os.environ[NAME] == "5"


@given(st.integers(1, 3), st.integers(1, 3), st.integers(2, 4), st.integers(0, 40))
def test_every_copy_gets_gpus_of_its_own(tensor: int, pipeline: int, copies: int, count: int) -> None:
    settings = {"tensor_parallel_size": tensor, "pipeline_parallel_size": pipeline}
    gpus = [f"GPU-{number}" for number in range(count)]
    each = tensor * pipeline
    assert visible_gpus(settings, gpus, (0, 1)) == {}
    if count == 0:
        assert visible_gpus(settings, gpus, (1, copies)) == {}
    elif count < each * copies:
        with pytest.raises(InputError, match=f"need {each * copies}, and there are {count}"):
            visible_gpus(settings, gpus, (0, copies))
    else:
        found = [visible_gpus(settings, gpus, (n, copies))["CUDA_VISIBLE_DEVICES"] for n in range(copies)]
        given = [gpu for text in found for gpu in text.split(",")]
        assert given == gpus[: each * copies]
        assert {text.count(",") + 1 for text in found} == {each}


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_is_heard_through_code_that_drops_it(number: int) -> None:
    def hear(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(number, hear)
    try:
        with pytest.raises(KeyboardInterrupt), interruptible(), contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(number)
        assert signal.getsignal(number) is hear
    finally:
        signal.signal(number, before)


def test_a_signal_that_nobody_hears_is_left_as_it_is() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with interruptible():
            signal.raise_signal(signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
