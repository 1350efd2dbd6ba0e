"""The real router of SGLang (sglang-router 0.3.2) takes the commands that are written, and what it does to
requests: no server of SGLang's and no GPU is needed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_eval.engines.http_client import Refused, ServerClient
from lora_eval.errors import InputError, ServerError
from lora_eval.serve.process import free_port
from lora_eval.smoke import Asked, smoke
from tests.smoke.server import TinyServer


def parse(words: list[str]) -> Any:
    from sglang_router.router_args import RouterArgs

    parser = argparse.ArgumentParser(exit_on_error=False)
    RouterArgs.add_cli_args(parser)
    return RouterArgs.from_cli_args(parser.parse_args(words))


def script_words(out: Path, *urls: str) -> list[str]:
    text = (out / "router.sh").read_text("utf-8").replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if line.startswith("exec ")]
    words = shlex.split(line)
    assert words[-1] == "$@"
    return [*words[words.index("sglang_router.launch_router") + 1 : -1], *urls]


def test_the_router_takes_its_commands(rendered: Any) -> None:
    out, _ = rendered("sglang-router")
    compose = yaml.safe_load((out / "compose.yaml").read_text("utf-8"))["services"]["router"]["command"]
    script = parse(script_words(out, "http://one:8001", "http://two:8001"))

    found = parse(compose)

    assert found.worker_urls == ["http://sglang-0:30000", "http://sglang-1:30000"]
    assert (found.host, found.port, found.policy) == ("0.0.0.0", 30000, "cache_aware")
    assert (script.host, script.port) == ("127.0.0.1", 8000)
    assert script.worker_urls == ["http://one:8001", "http://two:8001"]
    with pytest.raises((argparse.ArgumentError, SystemExit)):
        parse([*compose, "--polcy", "random"])


@pytest.fixture
def routed(tiny_llama: Path, tiny_adapter: Path, rendered: Any) -> Iterator[tuple[str, list[TinyServer]]]:
    """A router, started with router.sh's words, before two stand-ins that name adapters as SGLang does."""
    adapters = {"support": tiny_adapter}
    with (
        TinyServer(tiny_llama, adapters, base_name="llama", joined_names=True) as one,
        TinyServer(tiny_llama, adapters, base_name="llama", joined_names=True) as two,
    ):
        for server in (one, two):
            _healthy(server)
        port, metrics = free_port("127.0.0.1", 0), free_port("127.0.0.1", 0)
        words = script_words(rendered("sglang-router")[0], *(s.url.removesuffix("/v1") for s in (one, two)))
        words[words.index("--port") + 1] = str(port)
        more = ["--prometheus-port", str(metrics), "--worker-startup-check-interval", "1"]
        router = subprocess.Popen(
            [sys.executable, "-m", "sglang_router.launch_router", *words, *more],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            _ready(port, router)
            yield f"http://127.0.0.1:{port}/v1", [one, two]
        finally:
            router.terminate()
            router.wait(60)


def _healthy(server: TinyServer) -> None:
    answer = server.answer
    server.answer = lambda *asked: {} if asked[1] == "/health" else answer(*asked)  # type: ignore[method-assign]


def _ready(port: int, router: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 120
    with ServerClient(f"http://127.0.0.1:{port}/v1", tries=1, timeout=5) as client:
        while time.monotonic() < until and router.poll() is None:
            try:
                if client.get("/readiness")["healthy_workers"] == 2:
                    return
            except (Refused, ServerError):
                pass
            time.sleep(0.5)
    raise AssertionError("the router is not ready")


@pytest.mark.slow
def test_the_router_hands_names_on_and_takes_no_token_ids(
    routed: tuple[str, list[TinyServer]], tiny_llama: Path, tiny_adapter: Path
) -> None:
    """What the README of a deployment says: each copy is asked, not the router."""
    url, servers = routed
    text: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 6, "temperature": 0.0}
    with ServerClient(url) as client, ServerClient(servers[0].url) as direct:
        told = {
            name: client.post("/v1/completions", text | {"model": name})["choices"][0]["text"]
            for name in ("llama", "llama:support")
        }
        assert told == {
            name: direct.post("/v1/completions", text | {"model": name})["choices"][0]["text"]
            for name in told
        }
        assert told["llama"] != told["llama:support"]
        with pytest.raises(Refused, match=r"^400: The model `nope`"):
            client.post("/v1/completions", text | {"model": "llama:nope"})
        with pytest.raises(Refused, match=r"^422"):
            client.post("/v1/completions", text | {"model": "llama", "prompt": [1, 2, 3]})
        assert "llama" not in json.dumps(client.get("/v1/models"))

    adapters = {"llama:support": tiny_adapter}
    with pytest.raises(InputError, match="takes texts only"):
        smoke(url, Asked(tiny_llama, base_name="llama", adapters=adapters), lambda *_: None)
    assert smoke(servers[1].url, Asked(tiny_llama, adapters=adapters), lambda *_: None).passed
