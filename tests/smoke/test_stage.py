"""Every lie of a server is caught by the check that names it, and a server that tells the truth passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_eval.records import Smoke
from lora_eval.smoke import Asked, smoke
from tests.smoke.server import LIES, TinyServer

# The checks that name a lie; a lie may break others too.
CAUGHT_BY = {
    "base": "not-the-base",
    "swap": "not-another-adapter",
    "any-model": "unknown-model",
    "no-stop": "stop-token",
    "finish-reason": "finish-reason",
    "stale-cache": "reload-cache",
    "other-template": "template",
    "mixed": "mixed-batches",
    "ignores-fields": "stop-token",
    "lm-head": "prompt-log-probabilities",
    "streams-base": "streaming",
    "chats-base": "chat",
    "no-load": "hot-load",
    "keeps-unloaded": "unload",
}
# These break one check only: the others do not cry for what is right.
ONLY = {"chats-base", "no-stop", "stale-cache", "mixed", "lm-head", "streams-base"}
ONLY |= {"finish-reason", "no-load"}


LOADING = {"stale-cache", "no-load", "keeps-unloaded"}  # these are told by loading only


def _silent(*_: object) -> None:
    pass


def _smoke(base: Path, adapters: dict[str, Path], lie: str | None = None, **changes: object) -> Smoke:
    asked = Asked(base, adapters=adapters, allow_load=lie is None or lie in LOADING)
    with TinyServer(base, adapters, lie, **changes) as server:
        return smoke(server.url, asked, _silent)


@pytest.fixture(scope="module")
def truth(tiny_llama: Path, two_adapters: dict[str, Path]) -> Smoke:
    return _smoke(tiny_llama, two_adapters)


def test_a_server_that_tells_the_truth_passes_every_check(truth: Smoke) -> None:
    assert [check for check in truth.checks if check.passed is not True] == []
    assert truth.passed
    assert {check.name for check in truth.checks} == {
        *CAUGHT_BY.values(),
        "listed",
        "greedy-text",
        "log-probabilities",
    }
    assert {check.arm for check in truth.checks} == {None, "base", "tuned", "other"}
    assert truth.server == "0.0-tiny"
    assert truth.tolerance["tuned"] == (1e-4, 2e-3)  # float32


@pytest.mark.parametrize("lie", CAUGHT_BY)
def test_a_lie_is_caught_by_the_check_that_names_it(
    lie: str, tiny_llama: Path, two_adapters: dict[str, Path]
) -> None:
    found = _smoke(tiny_llama, two_adapters, lie)
    failed = {check.name for check in found.checks if check.passed is False}
    assert not found.passed
    assert CAUGHT_BY[lie] in failed, [check for check in found.checks if not check.passed]
    if lie in ONLY:
        assert failed == {CAUGHT_BY[lie]}


def test_every_lie_is_tried() -> None:
    assert set(CAUGHT_BY) == set(LIES) - {"dies"}  # no check asks for two such prompts at a time


def test_what_cannot_be_asked_is_not_called_passed(tiny_llama: Path, two_adapters: dict[str, Path]) -> None:
    """A server that ignores all but OpenAI's fields names neither token ids nor the prompt's figures."""
    found = _smoke(tiny_llama, two_adapters, "ignores-fields", has_tokenize=False)
    unasked = {check.name: check.detail for check in found.checks if check.passed is None}
    assert set(unasked) == {"prompt-log-probabilities", "template"}
    assert "no log-probabilities of the prompt" in unasked["prompt-log-probabilities"]
    assert "prompt_token_ids" in unasked["template"]


def test_two_adapters_with_the_same_weights_cannot_be_told_apart(
    tiny_llama: Path, tiny_adapter: Path
) -> None:
    found = _smoke(tiny_llama, {"one": tiny_adapter, "two": tiny_adapter})
    told = [check for check in found.checks if check.name == "not-another-adapter"]
    assert [check.passed for check in told] == [None, None]
    assert "cannot be told" in told[0].detail
    assert found.passed


def test_an_adapter_that_is_not_served_is_named(
    tiny_llama: Path, tiny_adapter: Path, two_adapters: dict[str, Path]
) -> None:
    with TinyServer(tiny_llama, {"tuned": tiny_adapter}) as server:
        found = smoke(server.url, Asked(tiny_llama, adapters=two_adapters), _silent)
    (missing,) = [check for check in found.checks if check.passed is False]
    assert (missing.name, missing.arm) == ("listed", "other")
    assert "the server has base, tuned" in missing.detail
    assert not [check for check in found.checks if check.name == "greedy-text" and check.arm == "other"]


def test_a_whole_model_is_asked_under_its_name(tiny_llama: Path) -> None:
    with TinyServer(tiny_llama, base_name="org/shipped:1") as server:
        found = smoke(server.url, Asked(models={"org/shipped:1": tiny_llama}), _silent)
    assert found.passed
    assert "prompt-log-probabilities" in {check.name for check in found.checks}


def test_other_weights_under_a_whole_models_name_are_seen(tiny_llama: Path, tmp_path: Path) -> None:
    from tests.conftest import save_tiny_llama

    save_tiny_llama(tmp_path / "other", seed=5)
    with TinyServer(tiny_llama, base_name="shipped") as server:
        found = smoke(server.url, Asked(models={"shipped": tmp_path / "other"}), _silent)
    failed = {check.name for check in found.checks if check.passed is False}
    assert failed == {"greedy-text", "log-probabilities", "prompt-log-probabilities", "streaming"}


def test_loading_that_the_server_does_not_offer_fails_where_it_was_asked_for(
    tiny_llama: Path, tiny_adapter: Path
) -> None:
    found = _smoke(tiny_llama, {"tuned": tiny_adapter}, allow_load=False)
    (failed,) = [check for check in found.checks if check.passed is False]
    assert failed.name == "hot-load"
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1" in failed.detail


def test_nothing_of_ours_stays_loaded(tiny_llama: Path, two_adapters: dict[str, Path]) -> None:
    with TinyServer(tiny_llama, two_adapters) as server:
        smoke(server.url, Asked(tiny_llama, adapters=two_adapters, allow_load=True), _silent)
        assert list(server.paths) == ["tuned", "other"]


def test_adapters_are_asked_as_sglang_names_them(tiny_llama: Path, two_adapters: dict[str, Path]) -> None:
    """It lists `tuned`, answers requests for `tuned` with the base, and for `base:tuned` with the adapter."""
    joined = {f"base:{name}": path for name, path in two_adapters.items()}
    with TinyServer(tiny_llama, two_adapters, joined_names=True) as server:
        found = smoke(server.url, Asked(tiny_llama, adapters=joined, allow_load=True), _silent)
        assert list(server.paths) == ["tuned", "other"]
        plain = smoke(server.url, Asked(tiny_llama, adapters=two_adapters), _silent)
    assert [check for check in found.checks if check.passed is not True] == []
    assert {"hot-load", "reload-cache", "unload"} <= {check.name for check in found.checks}
    failed = {(check.name, check.arm) for check in plain.checks if check.passed is False}
    assert {("unknown-model", None), ("not-the-base", "tuned"), ("not-the-base", "other")} <= failed


def test_a_wrong_name_is_not_taken_for_a_server_of_texts(tiny_llama: Path, tiny_adapter: Path) -> None:
    with TinyServer(tiny_llama, {"tuned": tiny_adapter}, joined_names=True) as server:
        found = smoke(server.url, Asked(tiny_llama, adapters={"base:tunde": tiny_adapter}), _silent)
    (failed,) = [check for check in found.checks if check.passed is False and check.arm]
    assert (failed.name, failed.detail) == ("listed", "not listed; the server has base, tuned")
