"""What replies mean, and the client's URLs and retries: no model needed."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_eval.engines.http_client import Refused, ServerClient, check_url, is_loopback
from lora_eval.engines.http_requests import (
    ECHO,
    PROMPT_LOGPROBS,
    Unread,
    read_answer,
    read_rows,
    read_score,
    score_body,
)
from lora_eval.errors import InputError, ServerError
from lora_eval.protocols import ScoreRequest

VALUES = st.floats(-30, -1)


@st.composite
def scored(draw: st.DrawFn) -> tuple[tuple[int, ...], list[float], list[tuple[int, float]]]:
    """Token ids, the log-probability of each but the first, and the likeliest token there."""
    ids = tuple(draw(st.lists(st.integers(0, 9), min_size=2, max_size=8)))
    values = draw(st.lists(VALUES, min_size=len(ids) - 1, max_size=len(ids) - 1))
    tops = [
        (token, value) if draw(st.booleans()) else (draw(st.integers(10, 19)), value + 0.5)
        for token, value in zip(ids[1:], values, strict=True)
    ]
    return ids, values, tops


def _reply(ids: tuple[int, ...], values: list[float], tops: list[tuple[int, float]], mode: str) -> Any:
    if mode == ECHO:
        named = [
            {f"token_id:{t}": v, f"token_id:{i}": x}
            for (t, v), i, x in zip(tops, ids[1:], values, strict=True)
        ]
        logprobs = {"token_logprobs": [None, *values, -1.0], "top_logprobs": [None, *named, {}]}
        return {"choices": [{"text": "", "logprobs": logprobs}]}
    rows = [
        {str(t): {"logprob": v}, str(i): {"logprob": x}}
        for (t, v), i, x in zip(tops, ids[1:], values, strict=True)
    ]
    return {"choices": [{"text": "", "prompt_logprobs": [None, *rows]}]}


@pytest.mark.parametrize("mode", [PROMPT_LOGPROBS, ECHO])
@given(case=scored(), data=st.data())
def test_a_score_is_the_sum_of_its_tokens(mode: str, case: Any, data: st.DataObject) -> None:
    ids, values, tops = case
    split = data.draw(st.integers(1, len(ids) - 1))
    rows = read_rows(_reply(ids, values, tops, mode), ids, mode)
    score = read_score(rows, ScoreRequest(ids[:split], ids[split:]))
    assert score.log_likelihood == pytest.approx(sum(values[split - 1 :]), rel=1e-5, abs=1e-5)
    wanted = zip(ids[split:], tops[split - 1 :], strict=True)
    assert score.is_greedy is all(token == top for token, (top, _) in wanted)


@pytest.mark.parametrize("mode", [PROMPT_LOGPROBS, ECHO])
@given(reply=st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["choices", "logprobs", "prompt_logprobs", "token_logprobs", "top_logprobs", "text", "token_ids"]
    ), inner, max_size=3),
    max_leaves=8,
))  # fmt: skip
def test_a_reply_without_the_figures_is_told_as_such(mode: str, reply: Any) -> None:
    with pytest.raises(Unread):
        read_rows(reply, (1, 2, 3), mode)


def test_a_token_without_figure_is_told() -> None:
    with pytest.raises(Unread, match="no log-probability for token 5"):
        read_score([{3: -1.0}], ScoreRequest((1,), (5,)))


def test_of_equal_tokens_the_lower_is_the_greedy_one() -> None:
    assert read_score([{3: -1.0, 5: -1.0}], ScoreRequest((1,), (3,))).is_greedy
    assert not read_score([{3: -1.0, 5: -1.0}], ScoreRequest((1,), (5,))).is_greedy


def test_ids_come_from_the_field_or_from_the_tokens_names() -> None:
    told = {"tokens": ["token_id:7", "token_id:12"], "token_logprobs": [-1.0, -2.0],
            "top_logprobs": [{"a": -1.0, "b": -1.5}, {"a": -2.0}]}  # fmt: skip
    answer = read_answer({"choices": [{"text": "ab", "logprobs": told, "finish_reason": "length"}]})
    assert answer.token_ids == (7, 12)
    assert answer.leads == (0.5, float("inf"))
    plain = read_answer({"choices": [{"text": "ab", "logprobs": told | {"tokens": ["a", "b"]}}]})
    assert plain.token_ids is None
    assert read_answer({"choices": [{"text": "", "token_ids": []}]}).token_ids == ()


def test_what_is_asked_is_told_in_ids() -> None:
    body = score_body("m", (1, 2), PROMPT_LOGPROBS)
    assert body["prompt"] == [1, 2] and body["prompt_logprobs"] == 1 and "echo" not in body
    assert score_body("m", (1, 2), ECHO)["echo"] is True


@pytest.mark.parametrize(
    ("url", "local"),
    [("http://127.0.0.1:8000/v1", True), ("http://localhost/v1/", True), ("http://[::1]:1/v1", True),
     ("https://api.example.org/proxy/v1", False), ("http://192.0.2.1:8000/v1", False)],
)  # fmt: skip
def test_urls(url: str, local: bool) -> None:
    assert check_url(url) == url.rstrip("/")
    assert is_loopback(url) is local


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000/v1", "http:///v1", "http://h/v2", "http://h/v1?key=x", "file:///v1"]
)
def test_what_is_no_url_of_a_server(url: str) -> None:
    with pytest.raises(InputError):
        check_url(url)


@pytest.fixture
def scripted() -> Iterator[tuple[str, list[tuple[int, str]], list[str]]]:
    """A server that gives the statuses and texts of a list in turn, then 200; what it was asked."""
    script: list[tuple[int, str]] = []
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.rfile.read(int(self.headers["content-length"])).decode())
            status, text = script.pop(0) if script else (200, json.dumps({"said": asked[-1]}))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}/v1", script, asked
    httpd.shutdown()
    httpd.server_close()


def test_what_may_help_is_tried_again(scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    # That module's name only: other libraries' threads sleep too, and were in the list, without end.
    monkeypatch.setattr("lora_eval.engines.http_client.time", SimpleNamespace(sleep=waits.append))
    url, script, asked = scripted
    with ServerClient(url) as client:
        script += [(503, "busy"), (429, "slow down")]
        assert json.loads(client.post("/v1/completions", {"a": 1})["said"]) == {"a": 1}
        assert len(asked) == 3 and waits == [0.25, 0.5]
        script += [(400, json.dumps({"error": {"message": "no such field"}}))]
        with pytest.raises(Refused, match="400: no such field"):
            client.post("/v1/completions", {})
        script += [(500, "dead")] * 4
        with pytest.raises(Refused, match="500: dead"):
            client.post("/v1/completions", {})
        script += [(200, "<html>")]
        with pytest.raises(Refused, match="no JSON: <html>"):
            client.post("/v1/completions", {})
        script += [(500, "once")]
        with pytest.raises(Refused):
            client.tell("/v1/load", {})  # what changes a server is asked once
        assert not script


@pytest.mark.parametrize("width", [1, 3])
def test_all_replies_come_with_their_places(scripted: Any, width: int) -> None:
    url, _, _ = scripted
    heard: dict[int, Any] = {}
    with ServerClient(url) as client:
        client.ask_all("/v1/x", [{"n": n} for n in range(10)], width, heard.__setitem__)
    assert {place: json.loads(reply["said"])["n"] for place, reply in heard.items()} == {
        n: n for n in range(10)
    }


def test_a_server_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_eval.engines.http_client.time", SimpleNamespace(sleep=lambda seconds: None))
    with (
        ServerClient("http://127.0.0.1:9/v1") as client,
        pytest.raises(ServerError, match="is the server up"),
    ):
        client.get("/v1/models")
