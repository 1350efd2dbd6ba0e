"""`lora-eval smoke` on the command line: status, JSON, and what cannot be asked."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.smoke.server import TinyServer


def test_a_server_that_serves_what_was_measured(run_cli, tiny_llama: Path, tiny_adapter: Path) -> None:
    with TinyServer(tiny_llama, {"org/tuned:1": tiny_adapter}) as server:
        done = run_cli(
            "smoke", server.url, "--base", tiny_llama, "--adapter", f"org/tuned:1={tiny_adapter}", "--json"
        )
    found = json.loads(done.stdout)
    assert done.status == 0
    assert found["passed"] is True
    assert all(set(check) == {"name", "arm", "passed", "detail"} for check in found["checks"])
    assert "serves what was measured" in done.stderr


def test_a_lie_ends_with_status_3_and_is_named(run_cli, tiny_llama: Path, tiny_adapter: Path) -> None:
    with TinyServer(tiny_llama, {"tuned": tiny_adapter}, "base") as server:
        done = run_cli(
            "smoke", server.url, "--base", f"base={tiny_llama}", "--adapter", f"tuned={tiny_adapter}", "-q"
        )
    assert done.status == 3
    assert done.stdout == ""
    assert "FAILED       not-the-base" in done.stderr
    assert "the answers are base's" in done.stderr
    assert "passed   " not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["http://127.0.0.1:9", "--base", "BASE", "--adapter", "a=ADAPTER"], "ends with /v1"),
        (["ftp://127.0.0.1/v1", "--base", "BASE", "--adapter", "a=ADAPTER"], "expected the URL of a server"),
        (["http://me:pw@127.0.0.1/v1", "--base", "BASE", "--adapter", "a=ADAPTER"], "without user"),
        (["http://127.0.0.1:9/v1", "--base", "BASE"], "nothing to ask for"),
        (["http://127.0.0.1:9/v1", "--adapter", "a=ADAPTER"], "give --base"),
        (["http://127.0.0.1:9/v1", "--base", "BASE", "--adapter", "ADAPTER"], "expected NAME=PATH"),
        (["http://127.0.0.1:9/v1", "--base", "BASE", "--adapter", "a=ADAPTER", "--adapter", "a=ADAPTER"],
         "twice"),
        (["http://127.0.0.1:9/v1", "--model", "a=BASE", "--load"], "about adapters"),
        (["http://192.0.2.1/v1", "--base", "BASE", "--adapter", "a=ADAPTER", "--load"], "this machine"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked(run_cli, tiny_llama, tiny_adapter, arguments: list[str], said: str) -> None:
    places = {"BASE": str(tiny_llama), "ADAPTER": str(tiny_adapter)}
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
    done = run_cli("smoke", *arguments)
    assert done.status == 2
    assert said in done.stderr
    assert "pw" not in done.stderr or "pw@" not in done.stderr


def test_a_server_that_is_not_there(run_cli, tiny_llama, tiny_adapter, monkeypatch) -> None:
    monkeypatch.setattr("lora_eval.engines.http_client.time", SimpleNamespace(sleep=lambda seconds: None))
    done = run_cli("smoke", "http://127.0.0.1:9/v1", "--base", tiny_llama, "--adapter", f"a={tiny_adapter}")
    assert done.status == 2
    assert "is the server up at http://127.0.0.1:9/v1?" in done.stderr


def test_which_model_is_the_base_is_asked_where_the_server_lists_two(
    run_cli, tiny_llama, tiny_adapter
) -> None:
    with TinyServer(tiny_llama, {"a": tiny_adapter}) as server:
        server._models = lambda: {"data": [{"id": "one"}, {"id": "two"}]}
        done = run_cli("smoke", server.url, "--base", tiny_llama, "--adapter", f"a={tiny_adapter}")
    assert done.status == 2
    assert "It lists one, two; give its name with --base NAME=PATH" in done.stderr


def test_a_whole_model_is_answered_for_in_the_dtype_asked_for(run_cli, tiny_llama: Path) -> None:
    with TinyServer(tiny_llama, base_name="shipped") as server:
        done = run_cli(
            "smoke", server.url, "--model", f"shipped={tiny_llama}", "--dtype", "bfloat16", "--json"
        )
    found = json.loads(done.stdout)
    assert done.status == 0, done.stderr
    assert found["dtype"] == {"shipped": "bfloat16"}
    assert found["tolerance"]["shipped"][0] >= 0.05
    assert "limits: rounding of each model's dtype" in done.stderr
