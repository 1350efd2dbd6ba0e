"""The lint against a real vLLM: what it calls refused is refused, what it lets through is loaded, and what
vLLM loads and serves wrong is caught (see tests/real_vllm.py).
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from lora_eval.serve import LocalServer, Serving
from tests.conftest import save_tiny_llama
from tests.real_vllm import needs_vllm
from tests.servers.conftest import QKV, ask
from tests.servers.test_features import KINDS

pytestmark = needs_vllm()


@pytest.fixture(scope="module")
def server(tiny_llama, make_adapter) -> Iterator[LocalServer]:
    wide = {"wide": make_adapter(r=32)}  # decides --max-lora-rank
    more = ("--max-num-seqs", "8", "--max-loras", "40")
    with LocalServer(
        Serving(tiny_llama, adapters=wide, dtype="float32", allow_load=True, more=more), lambda *_: None
    ) as running:
        yield running


def load(server: LocalServer, name: str, path: object) -> tuple[int, str]:
    """Ask it to load an adapter; returns the status and what it says."""
    body = json.dumps({"lora_name": name, "lora_path": str(path)}).encode()
    request = urllib.request.Request(
        f"{server.url}/load_lora_adapter", body, {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def blocking(base, adapter) -> list[str]:
    findings = ask("vllm", base, adapter, device="cpu")
    return [finding.severity for finding in findings if finding.severity in ("refused", "ignored")]


@pytest.mark.parametrize("place", range(len(KINDS)), ids=lambda n: f"{KINDS[n][0]}-{n}")
def test_vllm_refuses_what_the_lint_says(place, server, tiny_llama, make_adapter) -> None:
    _, config, _ = KINDS[place]
    adapter = make_adapter(**config)

    status, said = load(server, f"kind-{place}", adapter)

    assert status == (500 if blocking(tiny_llama, adapter) else 200), said


# What another base has that tiny_llama has not (2 layers, hidden 64), and vLLM 0.32's answer to its adapter.
# Where it says 200 it serves another model: only the lint is in the way.
@pytest.mark.parametrize(
    ("config", "status"),
    [
        ({"num_hidden_layers": 4}, 200),
        ({"num_hidden_layers": 1}, 200),
        ({"hidden_size": 32}, 200),
        ({"hidden_size": 128}, 500),
        ({"intermediate_size": 192}, 500),
    ],
)
def test_adapters_of_other_bases(config, status, server, tiny_llama, make_adapter, tmp_path) -> None:
    save_tiny_llama(tmp_path / "other", **config)
    adapter = make_adapter(base=tmp_path / "other", target_modules=[*QKV, "gate_proj", "down_proj"])
    name = "-".join(f"{key}-{value}" for key, value in config.items())

    assert load(server, name, adapter)[0] == status
    assert blocking(tiny_llama, adapter) == ["refused"]
