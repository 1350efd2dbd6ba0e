"""`transformers serve`, the real one, on a tiny model: started, asked, ended; and what it cannot serve."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from lora_eval.engines.http_client import Refused, ServerClient
from lora_eval.errors import InputError, ServerError
from lora_eval.serve import LocalServer, WholeModel
from lora_eval.smoke import Asked, smoke
from tests.conftest import save_tiny_llama

COMPLETIONS = "/v1/completions"


def _silent(*_: object) -> None:
    pass


@pytest.fixture(scope="module")
def server(tiny_llama: Path) -> Iterator[LocalServer]:
    with LocalServer(WholeModel(tiny_llama, "org/shipped", dtype="float32"), _silent) as running:
        yield running


@pytest.mark.slow
def test_it_answers_under_the_name_that_was_given(server: LocalServer, tiny_llama: Path) -> None:
    import torch

    from lora_eval.models import open_folder

    resident = open_folder(tiny_llama, name="arm", dtype="float32")
    text, settings = "Once upon a time", {"max_tokens": 6, "temperature": 0.0}
    with ServerClient(server.url) as client:
        told = client.post(COMPLETIONS, {"model": "org/shipped", "prompt": text, **settings})
        with pytest.raises(Refused, match="pinned to 'org/shipped'"):
            client.post(COMPLETIONS, {"model": "other", "prompt": text, **settings})
    ids = resident.tokenizer(text, return_tensors="pt")["input_ids"]
    with resident.activate("arm") as model, torch.inference_mode():
        own = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
    assert told["choices"][0]["text"] == resident.tokenizer.decode(own, skip_special_tokens=True)
    assert server.models == ("org/shipped",)


@pytest.mark.slow
def test_smoke_asks_it_for_texts_and_calls_nothing_else_passed(
    server: LocalServer, tiny_llama: Path, tmp_path: Path
) -> None:
    found = smoke(server.url, Asked(models={"org/shipped": tiny_llama}, model_dtype="float32"), _silent)
    assert [check for check in found.checks if check.passed is False] == []
    by_name = {check.name: check for check in found.checks}
    assert {name for name, check in by_name.items() if check.passed} >= {
        "unknown-model", "greedy-text", "finish-reason",
    }  # fmt: skip
    assert "4 of 4 texts equal" in by_name["greedy-text"].detail
    for name in ("listed", "log-probabilities", "prompt-log-probabilities", "stop-token", "template"):
        assert by_name[name].passed is None, by_name[name]

    save_tiny_llama(tmp_path / "other", seed=5)
    other = smoke(server.url, Asked(models={"org/shipped": tmp_path / "other"}), _silent)
    assert "greedy-text" in {check.name for check in other.checks if check.passed is False}


@pytest.mark.slow
def test_adapters_and_served_arms_are_refused_with_the_reason(
    server: LocalServer, tiny_llama: Path, tiny_adapter: Path, run_cli: Any, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="takes texts only, by which adapters cannot be told apart"):
        smoke(server.url, Asked(tiny_llama, adapters={"org/shipped": tiny_adapter}), _silent)
    done = run_cli(
        "compare", "--base", tiny_llama, "--arm", f"prod=served:{server.url}#org/shipped",
        "--suite", "pocket", "--limit", 1, "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.status == 2
    assert "refuses completions of token ids with log-probabilities (422:" in done.stderr
    assert "--arm NAME=merged:PATH" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_however_the_command_ends_no_process_is_left(tiny_llama: Path, number: int) -> None:
    command = subprocess.Popen(
        [sys.executable, "-m", "lora_eval", "serve", "--server", "transformers", "--model",
         f"shipped={tiny_llama}", "--port", "0", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert command.stdout is not None
    told: dict[str, Any] = json.loads(command.stdout.readline())
    assert told["models"] == ["shipped"]
    assert told["url"].startswith("http://127.0.0.1:")
    started = psutil.Process(command.pid).children(recursive=True)
    assert len(started) >= 2  # the watchdog and the server
    command.send_signal(number)
    _, said = command.communicate(timeout=60)
    assert not psutil.wait_procs(started, timeout=60)[1]
    if number == signal.SIGTERM:
        assert command.returncode == 0
        assert "no process of transformers serve is left" in said


@pytest.mark.slow
def test_a_server_that_cannot_start_says_why(tiny_llama: Path, tmp_path: Path) -> None:
    serving = WholeModel(tiny_llama, more=("--log-level", "loud"))
    with (
        pytest.raises(ServerError, match="transformers serve has ended: KeyError: 'loud'"),
        LocalServer(serving, _silent, log=tmp_path / "log"),
    ):
        pass


def test_an_adapter_is_refused_with_the_command_that_merges_it(
    run_cli: Any, tiny_llama: Path, tiny_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("serve", "--server", "transformers")
    done = run_cli(*words, "--base", tiny_llama, "--adapter", f"a={tiny_adapter}")
    folder = run_cli(*words, "--model", f"a={tiny_adapter}")

    for found in (done, folder):
        assert found.status == 2
        command = found.stderr[found.stderr.index("lora-eval export merge") :].strip()
        paths = f"--base {tiny_llama} --adapter {tiny_adapter}"
        assert command == f"lora-eval export merge {paths} --out a-merged"
    assert run_cli(*shlex.split(command)[1:], "--no-verify").status == 0
    assert (tmp_path / "a-merged" / "config.json").is_file()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"allow_load": True}, "--allow-load is about adapters"),
        ({"name": "a@b"}, "takes no such name"),
        ({"name": "../a"}, "takes no such name"),
        ({"name": "/a"}, "takes no such name"),
        ({"more": ("--port=1",)}, "--port=1: is set by lora-eval"),
    ],
)
def test_what_it_does_not_have(changes: dict[str, Any], said: str, tiny_llama: Path) -> None:
    with pytest.raises(InputError, match=said):
        WholeModel(tiny_llama, **changes).check()


def test_the_server_listens_on_this_machine_only(tiny_llama: Path, tmp_path: Path) -> None:
    start = WholeModel(tiny_llama, "org/m").start(8000, tmp_path)

    words = start.arguments[start.arguments.index("serve") :]
    assert words[:6] == ["serve", "org/m", "--dtype", "auto", "--host", "127.0.0.1"]
    assert (tmp_path / "org" / "m" / "config.json").is_file()
    assert start.folder == tmp_path
