"""A served arm has the numbers of the same weights here; what a server does not tell truly is refused."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora_eval.engines.http import HttpEngine, open_served
from lora_eval.engines.store import ResultStore
from lora_eval.engines.stored import StorableEngine, StoredEngine
from lora_eval.engines.transformers import open_engine
from lora_eval.errors import InputError, ServerError
from lora_eval.models import Resident
from lora_eval.protocols import GenerateRequest, ScoreRequest
from tests.conftest import save_tiny_adapter
from tests.smoke.server import TinyServer

STOPS = (("e",), ("<|im_end|>",), ("a", "zz"), ("\n",), ())


def _silent(*_: Any) -> None:
    pass


def _some(rng: random.Random, least: int, most: int) -> tuple[int, ...]:
    return tuple(rng.randrange(256) for _ in range(rng.randint(least, most)))


def _scores() -> list[ScoreRequest]:
    rng = random.Random(0)
    found = [ScoreRequest(_some(rng, 1, 60), _some(rng, 1, 9)) for _ in range(12)]
    found += [ScoreRequest(found[0].context_ids, (token,)) for token in range(3)]
    return [*found, ScoreRequest((1, 2), (3, 4)), ScoreRequest((1,), (2, 3, 4)), ScoreRequest((7,), (8,))]


def _generations() -> list[GenerateRequest]:
    rng = random.Random(1)
    return [GenerateRequest(_some(rng, 3, 30), until, 12) for until in STOPS for _ in range(3)]


@pytest.fixture(scope="module")
def server(tiny_llama: Path, tiny_adapter: Path) -> Iterator[TinyServer]:
    with TinyServer(tiny_llama, {"served": tiny_adapter}) as running:
        yield running


@pytest.fixture(scope="module")
def engine(server: TinyServer, tiny_llama: Path) -> Iterator[HttpEngine]:
    found = open_served(server.url, "served", tiny_llama, name="prod", progress=_silent)
    yield found
    found.close()


def _open(base: Path, adapter: Path, lie: str | None, **changes: Any) -> HttpEngine:
    """The engine of a server that has gone again: what the probe found stays."""
    with TinyServer(base, {"served": adapter}, lie, **changes) as server:
        engine = open_served(server.url, "served", base, name="prod", progress=_silent)
        engine.close()
        return engine


def test_scores_are_those_of_the_same_weights_here(engine: HttpEngine, resident: Resident) -> None:
    requests, heard = _scores(), []
    scores = engine.score("prod", requests, _silent, heard.extend)
    for score, own in zip(scores, open_engine(resident).score("tuned", requests, _silent), strict=True):
        assert score.log_likelihood == pytest.approx(own.log_likelihood, rel=1e-5, abs=1e-5)
        assert score.is_greedy is own.is_greedy
    assert sorted(index for index, _ in heard) == list(range(len(requests)))


def test_answers_are_those_of_the_same_weights_here(engine: HttpEngine, resident: Resident) -> None:
    requests, heard = _generations(), []
    answers = engine.generate("prod", requests, _silent, heard.extend)
    assert answers == open_engine(resident).generate("tuned", requests, _silent)
    assert {answer.finish_reason for answer in answers} == {"stop", "length"}
    assert sorted(index for index, _ in heard) == list(range(len(requests)))


def _conversations(tokenizer: Any) -> list[GenerateRequest]:
    """Questions as a suite with a chat template puts them, and one prompt without a template."""
    turns = ["Where is order 17?", "  Größe <b>4</b> & 🙂?\n", "Q: 1\nA: 2\n\nQ: 3\nA:", ""]
    rendered = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": turn}], tokenize=False, add_generation_prompt=True
        )
        for turn in turns
    ]
    ids = [tuple(tokenizer.encode(text, add_special_tokens=False)) for text in (*rendered, "Once upon")]
    return [GenerateRequest(each, ("e",), 10) for each in ids]


def test_conversations_are_generated_through_chat_completions(
    engine: HttpEngine, server: TinyServer, resident: Resident
) -> None:
    requests = _conversations(engine.tokenizer)
    before = server.calls.copy()
    answers = engine.generate("prod", requests, _silent)
    asked = server.calls - before
    assert (asked["/v1/chat/completions"], asked["/v1/completions"]) == (4, 1)
    assert answers == open_engine(resident).generate("tuned", requests, _silent)
    assert engine.numerics == "http-1-prompt_logprobs-chat"


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        ("other-template", "render a conversation otherwise than the measured template"),
        ("chats-base", "answer otherwise than completions"),
        ("ignores-fields", "do not say which token ids they read"),
    ],
)
def test_chat_completions_that_are_otherwise_are_told_and_not_used(
    lie: str, said: str, tiny_llama: Path, tiny_adapter: Path, resident: Resident
) -> None:
    with TinyServer(tiny_llama, {"served": tiny_adapter}, lie) as server:
        engine = open_served(server.url, "served", tiny_llama, name="prod", progress=_silent)
        before = server.calls["/v1/chat/completions"]
        requests = _conversations(engine.tokenizer)
        answers = engine.generate("prod", requests, _silent)
        assert server.calls["/v1/chat/completions"] == before
        engine.close()
    assert f"chat completions {said}" in " ".join(engine.notes)
    if lie != "ignores-fields":
        assert answers == open_engine(resident).generate("tuned", requests, _silent)


def test_a_conversation_that_is_rendered_otherwise_later_is_an_error(
    tiny_llama: Path, tiny_adapter: Path
) -> None:
    with TinyServer(tiny_llama, {"served": tiny_adapter}) as server:
        engine = open_served(server.url, "served", tiny_llama, name="prod", progress=_silent)
        server.lie = "other-template"
        with pytest.raises(ServerError, match="into other token ids than the measured template"):
            engine.generate("prod", _conversations(engine.tokenizer), _silent)
        engine.close()


def test_echo_is_used_where_there_is_nothing_else(
    server: TinyServer, tiny_llama: Path, resident: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = server.answer

    def without(method: str, place: str, body: dict[str, Any]) -> Any:
        return answer(method, place, {key: value for key, value in body.items() if key != "prompt_logprobs"})

    monkeypatch.setattr(server, "answer", without)
    engine = open_served(server.url, "served", tiny_llama, name="prod", progress=_silent)
    assert engine.numerics == "http-1-echo-chat"
    requests = _scores()
    for score, own in zip(
        engine.score("prod", requests, _silent),
        open_engine(resident).score("tuned", requests, _silent),
        strict=True,
    ):
        assert score.log_likelihood == pytest.approx(own.log_likelihood, rel=1e-5, abs=1e-5)
        assert score.is_greedy is own.is_greedy
    engine.close()


def test_a_server_with_adapters_is_scored_one_at_a_time(engine: HttpEngine, server: TinyServer) -> None:
    server.most_in_flight.clear()
    engine.score("prod", _scores(), _silent)
    engine.generate("prod", _generations(), _silent)
    assert server.most_in_flight["score"] == 1
    assert server.most_in_flight["generate"] > 1
    assert "one request at a time" in " ".join(engine.notes)


def test_a_server_that_ends_at_two_prompts_at_a_time_is_used(tiny_llama: Path, tiny_adapter: Path) -> None:
    with TinyServer(tiny_llama, {"served": tiny_adapter}, "dies") as server:
        engine = open_served(server.url, "served", tiny_llama, name="prod", progress=_silent)
        assert len(engine.score("prod", _scores(), _silent)) == len(_scores())
        engine.close()


def test_a_server_that_loads_adapters_is_scored_one_at_a_time_without_any(tiny_llama: Path) -> None:
    with TinyServer(tiny_llama, {}, "dies", allow_load=True) as server:
        engine = open_served(server.url, "base", tiny_llama, name="prod", progress=_silent)
        assert len(engine.score("prod", _scores(), _silent)) == len(_scores())
        assert server.most_in_flight["score"] == 1
        engine.close()


def test_a_server_without_adapters_is_scored_several_at_a_time(tiny_llama: Path) -> None:
    with TinyServer(tiny_llama, {}, allow_load=False) as server:
        engine = open_served(server.url, "base", tiny_llama, name="prod", progress=_silent)
        engine.score("prod", _scores(), _silent)
        assert server.most_in_flight["score"] > 1
        engine.close()


def test_prompts_scored_without_the_adapter_are_refused(tiny_llama: Path, tiny_adapter: Path) -> None:
    with TinyServer(tiny_llama, {"served": tiny_adapter}, "lm-head") as server:
        engine = open_served(server.url, "served", tiny_llama, name="prod", progress=_silent)
        with pytest.raises(InputError, match="are not those with which it generates the same tokens"):
            engine.score("prod", _scores(), _silent)
        assert len(engine.generate("prod", _generations()[:1], _silent)) == 1  # answers are right
        engine.close()


def test_a_server_without_prompt_log_probabilities_is_refused_for_scoring(
    tiny_llama: Path, tiny_adapter: Path
) -> None:
    engine = _open(tiny_llama, tiny_adapter, "ignores-fields")
    with pytest.raises(InputError, match="no token ids with log-probabilities"):
        engine.score("prod", _scores(), _silent)
    assert "names no token ids" in " ".join(engine.notes)


@pytest.mark.parametrize(
    ("lie", "said"), [("base", "exactly as its base"), ("any-model", "nobody knows whose")]
)
def test_another_models_answers_are_refused(
    tiny_llama: Path, tiny_adapter: Path, lie: str, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        _open(tiny_llama, tiny_adapter, lie)


def test_an_adapter_is_asked_as_sglang_names_it(
    tiny_llama: Path, tiny_adapter: Path, resident: Resident
) -> None:
    with TinyServer(tiny_llama, {"served": tiny_adapter}, joined_names=True) as server:
        with pytest.raises(InputError, match="nobody knows whose"):
            open_served(server.url, "served", tiny_llama, name="prod", progress=_silent)
        engine = open_served(server.url, "base:served", tiny_llama, name="prod", progress=_silent)
        answers = engine.generate("prod", _generations(), _silent)
        engine.close()
    assert answers == open_engine(resident).generate("tuned", _generations(), _silent)


def test_the_files_of_a_served_adapter_are_checked_before(
    tiny_llama: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    save_tiny_adapter(tiny_llama, tmp_path / "dora", use_dora=True)
    found = " ".join(_open(tiny_llama, tmp_path / "dora", None).notes)
    assert "served: vllm 0.32.0, dora (refused): use_dora is True" in found
    assert "dora" not in " ".join(_open(tiny_llama, tiny_adapter, None).notes)


def test_a_name_that_is_not_served_is_told_with_the_nearest(server: TinyServer, tiny_llama: Path) -> None:
    with pytest.raises(ServerError, match=r"no model 'serverd'.*served.*it has base, served"):
        open_served(server.url, "serverd", tiny_llama, name="prod", progress=_silent)


def test_a_server_that_reads_less_is_said(tiny_llama: Path, tiny_adapter: Path) -> None:
    engine = _open(tiny_llama, tiny_adapter, None, max_model_len=500)
    assert engine.max_length == 498
    assert "the server reads 500 tokens" in " ".join(engine.notes)


def test_a_busy_server_is_asked_again(
    tiny_llama: Path, tiny_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_eval.engines.http_client.time", SimpleNamespace(sleep=lambda seconds: None))
    with TinyServer(tiny_llama, {"served": tiny_adapter}) as server:
        engine = open_served(server.url, "served", tiny_llama, name="prod", progress=_silent)
        server.fail_first = 3
        assert engine.score("prod", _scores()[:1], _silent)
        server.fail_first = 100
        with pytest.raises(ServerError, match="503: warming up; what was answered is stored"):
            engine.score("prod", _scores()[:1], _silent)
        engine.close()


def test_an_interrupted_arm_goes_on_from_the_store(
    tiny_llama: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    requests = _scores()
    with (
        TinyServer(tiny_llama, {"served": tiny_adapter}) as server,
        ResultStore(tmp_path / "answers.sqlite") as store,
    ):

        @contextlib.contextmanager
        def opened() -> Iterator[StoredEngine]:
            engine = open_served(server.url, "served", tiny_llama, name="prod", progress=_silent)
            assert isinstance(engine, StorableEngine)
            yield StoredEngine(engine, store, {"prod": {"fingerprint": engine.variant.fingerprint}})
            engine.close()

        def stop(*_: Any) -> None:
            if len(heard) >= 5:
                raise KeyboardInterrupt

        heard: list[Any] = []
        with opened() as first, pytest.raises(KeyboardInterrupt):
            first.score("prod", requests, stop, heard.extend)
        with opened() as again:
            before = server.calls["/v1/completions"]
            scores = again.score("prod", requests, _silent)
            assert 0 < server.calls["/v1/completions"] - before <= len(requests) - 5
        with opened() as third:
            before = server.calls["/v1/completions"]
            assert third.score("prod", requests, _silent) == scores
            assert server.calls["/v1/completions"] == before


def test_other_weights_under_the_same_name_are_another_model(
    tiny_llama: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    save_tiny_adapter(tiny_llama, tmp_path / "other", seed=9)
    first, same, other = (
        _open(tiny_llama, adapter, None).variant
        for adapter in (tiny_adapter, tiny_adapter, tmp_path / "other")
    )
    assert first.kind == "served"
    assert first.path.endswith("/v1#served")
    assert first.fingerprint == same.fingerprint != other.fingerprint


def test_a_key_is_sent_and_never_shown(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_eval.engines.http_client import Refused, ServerClient

    monkeypatch.setenv("LORA_EVAL_SERVER_KEY", "sk-secret")
    with TinyServer(tiny_llama) as server:

        def told(method: str, place: str, body: dict[str, Any]) -> Any:
            from tests.smoke.server import Fault

            raise Fault(401, "the key sk-secret is wrong")

        server.answer = told  # type: ignore[method-assign]
        with ServerClient(server.url) as client, pytest.raises(Refused) as caught:
            client.get("/v1/models")
    assert "[key] is wrong" in str(caught.value) and "sk-secret" not in str(caught.value)
    with pytest.raises(InputError, match="plain http"):
        ServerClient("http://192.0.2.1/v1")


def test_compare_has_a_served_arm_with_the_adapters_scores(
    run_cli: Any, tiny_llama: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    arguments = [
        "compare", "--base", tiny_llama, "--adapter", f"adapter={tiny_adapter}", "--suite", "pocket",
        "--limit", 3,
        "--out", tmp_path / "out", "--json", "--pair", "adapter,prod",
    ]  # fmt: skip
    with TinyServer(tiny_llama, {"org/a:1": tiny_adapter}) as server:
        done = run_cli(*arguments, "--arm", f"prod=served:{server.url}#org/a:1")
        asked = server.calls["/v1/completions"]
        again = run_cli(*arguments, "--arm", f"prod=served:{server.url}#org/a:1")
        probed = server.calls["/v1/completions"] - asked
    assert done.status == 0, done.stderr
    found = json.loads(done.stdout)
    assert [(arm["name"], arm["kind"]) for arm in found["arms"]][-1] == ("prod", "served")
    for task in found["tasks"]:
        assert task["means"]["prod"] == pytest.approx(task["means"]["adapter"], rel=1e-4, abs=1e-4), task[
            "task"
        ]
    assert again.status == 0
    assert probed < asked / 2  # the run is kept; only the probe is asked again


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ("prod=served:http://127.0.0.1:1/v1", "expected NAME=served:URL#MODEL"),
        ("prod=served:http://127.0.0.1:1#m", "ends with /v1"),
        ("prod=serve:http://127.0.0.1:1/v1#m", "did you mean 'served'"),
    ],
)
def test_a_served_arm_that_cannot_be_read(run_cli: Any, tiny_llama: Path, arm: str, said: str) -> None:
    done = run_cli("compare", "--base", tiny_llama, "--arm", arm, "--suite", "pocket")
    assert done.status == 2
    assert said in done.stderr
