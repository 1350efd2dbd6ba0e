"""Prompts of one's own are asked too: what a server gets wrong on them only is seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_eval.errors import DataError
from lora_eval.models import load_tokenizer
from lora_eval.smoke import Asked, smoke
from lora_eval.smoke.prompts import MOST, read_prompts
from tests.smoke.server import TinyServer

ROWS = [
    {"messages": [{"role": "user", "content": "Where is order 17?"}, {"role": "assistant", "content": "X"}]},
    {"text": "The parcel left the warehouse on"},
    {"prompt": "x" * 3000},  # longer than the server reads: its first tokens
]


def _silent(*_: object) -> None:
    pass


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def _lying(server: TinyServer, ids: tuple[int, ...]) -> None:
    """Answer requests that hold these ids with the base."""
    arm = server._arm

    def answer(body: dict[str, Any]) -> str:
        prompt = body.get("prompt")
        hit = isinstance(prompt, list) and any(
            tuple(prompt[i : i + len(ids)]) == ids for i in range(len(prompt) - len(ids) + 1)
        )
        return server.base_name if hit else arm(body)

    server._arm = answer  # type: ignore[method-assign]


@pytest.mark.parametrize("text", ["Where is order 17?", "The parcel left the warehouse on"])
def test_what_is_wrong_on_the_given_prompts_only_is_seen(
    tiny_llama: Path, tiny_adapter: Path, tmp_path: Path, text: str
) -> None:
    adapters = {"tuned": tiny_adapter}
    file = _write(tmp_path / "prompts.jsonl", ROWS)
    with TinyServer(tiny_llama, adapters) as server:
        _lying(server, tuple(load_tokenizer(tiny_llama).encode(text, add_special_tokens=False)))
        without = smoke(server.url, Asked(tiny_llama, adapters=adapters), _silent)
        found = smoke(server.url, Asked(tiny_llama, adapters=adapters, prompts=file), _silent)
    assert without.passed
    failed = {(check.name, check.arm) for check in found.checks if check.passed is False}
    assert {("greedy-text", "tuned"), ("prompt-log-probabilities", "tuned")} <= failed
    assert {arm for _, arm in failed} == {"tuned"}


def test_a_true_server_passes_on_them(run_cli: Any, tiny_llama: Path, tmp_path: Path) -> None:
    file = _write(tmp_path / "prompts.jsonl", ROWS)
    with TinyServer(tiny_llama, base_name="shipped") as server:
        done = run_cli("smoke", server.url, "--model", f"shipped={tiny_llama}", "--prompts", file, "--json")
    assert done.status == 0, done.stderr
    checks = {check["name"]: check["detail"] for check in json.loads(done.stdout)["checks"]}
    assert "8 of 8 answers equal" in checks["greedy-text"]  # five of ours, three of the file


def test_a_long_file_is_thinned_out_evenly(tmp_path: Path) -> None:
    file = _write(tmp_path / "prompts.jsonl", [{"text": str(number)} for number in range(320)])
    assert read_prompts(file) == [str(10 * number) for number in range(MOST)]


def test_a_file_that_cannot_be_read_is_told_with_its_line(
    run_cli: Any, tiny_llama: Path, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"text": "a"}\n{"txt": "b"}\n')
    with pytest.raises(DataError, match="line 2"):
        read_prompts(file)
    with TinyServer(tiny_llama, base_name="shipped") as server:
        done = run_cli("smoke", server.url, "--model", f"shipped={tiny_llama}", "--prompts", file)
    assert done.status == 2
    assert "line 2" in done.stderr
