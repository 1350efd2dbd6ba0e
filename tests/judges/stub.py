"""A judge on this machine that speaks OpenAI's chat completions, with a known bias and known faults.

It finds QUALITY=x marks in the prompt, the first in the answer shown first. It prefers the higher one, the
difference of both being moved by `bias` towards the first. One answer is rated by its mark.

    python -m tests.judges.stub 8771        # by hand
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

QUALITY = re.compile(r"QUALITY=(-?[0-9]+(?:\.[0-9]+)?)")
# `-once`: to the first of equal requests only.
FAULTS = (
    "429-once",
    "429-always",
    "500-once",
    "500-always",
    "400",
    "400-some",
    "401-after",
    "404",
    "redirect",
    "slow",
    "drop-once",
    "no-usage",
    "no-logprobs",
    "odd-tokens",
    "one-token",
    "garbage",
    "empty",
    "html-once",
    "null",
    "model-change",
    "repeat-key",
    "cut-off",
    "ignores-choice",
    "half-pair",
    "bad-gzip-once",
    "silent-on-question-3",
)


@dataclass
class StubJudge:
    """Serves on 127.0.0.1 at `url` while the context is open; counts what it is asked."""

    bias: float = 0.0
    delay: float = 0.0
    fault: str | None = None
    after: int = 0
    retry_after: str | None = None
    calls: int = 0
    answered: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> StubJudge:
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(started,), daemon=True)
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()

    def _serve(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._main(started))

    async def _main(self, started: threading.Event) -> None:
        self._stop = asyncio.Event()
        self._connections: set[asyncio.StreamWriter] = set()
        server = await asyncio.start_server(self._connection, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await self._stop.wait()
        server.close()
        for writer in list(self._connections):
            writer.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                headers = dict(
                    line.lower().split(": ", 1) if ": " in line else (line, "")
                    for line in head.split("\r\n")[1:-2]
                )
                raw = re.search(r"(?im)^authorization: (.*?)\r?$", head)
                self.keys.append(raw[1] if raw else "")
                body = json.loads(await reader.readexactly(int(headers["content-length"])))
                if not await self._reply(body, writer):
                    return
        except (asyncio.IncompleteReadError, ConnectionError, OSError):
            return
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _reply(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        assert self.fault is None or self.fault in FAULTS
        self.calls += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self.bodies.append(body)
        name = json.dumps(body, sort_keys=True)
        self.seen[name] += 1
        first = self.seen[name] == 1
        try:
            await asyncio.sleep(30 if self.fault == "slow" and first else self.delay)
            if self.fault == "drop-once" and first:
                return False
            status, content, extra = self._content(body, first)
        finally:
            self.in_flight -= 1
        text = content if isinstance(content, str) else json.dumps(content)
        data = text.encode()
        kind = "text/html" if text.startswith("<") else "application/json"
        lines = [f"HTTP/1.1 {status} X", f"content-type: {kind}", f"content-length: {len(data)}", *extra]
        writer.write("\r\n".join([*lines, "", ""]).encode() + data)
        await writer.drain()
        self.answered += status == 200
        return True

    def _content(self, body: dict[str, Any], first: bool) -> tuple[int, Any, list[str]]:
        fault = self.fault
        again = [f"retry-after: {self.retry_after}"] if self.retry_after is not None else []
        key = self.keys[-1]
        if fault == "429-always" or (fault == "429-once" and first):
            return 429, {"error": {"message": "rate limit"}}, again
        if fault == "500-always" or (fault == "500-once" and first):
            return 500, {"error": {"message": "our fault"}}, again
        if fault == "400" or (fault == "400-some" and self.answered >= self.after and first):
            return 400, {"error": {"message": "context too long"}}, []
        if fault == "401-after" and self.answered >= self.after:
            return 401, {"error": {"message": f"Incorrect API key provided: {key}"}}, []
        if fault == "404":
            return 404, {"error": {"message": "The model does not exist"}}, []
        if fault == "redirect":
            return 307, "", ["location: http://127.0.0.1:9/v1/chat/completions"]
        if fault == "html-once" and first:
            return 200, "<html>a proxy's page</html>", []
        if fault == "bad-gzip-once" and first:
            return 200, "not compressed", ["content-encoding: gzip"]
        if fault == "null":
            return 200, "null", []
        return 200, self._completion(body), []

    def _completion(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = "\n".join(message["content"] for message in body["messages"])
        marks = [float(mark) for mark in QUALITY.findall(body["messages"][-1]["content"])]
        single = (
            "Assistant B" not in prompt
            and "nswer B" not in prompt
            and "Response B" not in prompt
            and '"M"' not in prompt
        )
        model = f"{body['model']}-2" if self.fault == "model-change" and self.answered > 3 else body["model"]
        message: dict[str, Any] = {"role": "assistant", "content": None}
        choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": "stop"}
        if single:
            message["content"] = f"Fine. Rating: [[{min(10, max(1, round(marks[-1] if marks else 5)))}]]"
        else:
            self._compare(body, marks, prompt, choice)
        if self.fault == "garbage" or (self.fault == "silent-on-question-3" and "Question 3?" in prompt):
            message["content"], choice["logprobs"] = "I like both \ud83d\ude00 [[", None
            message.pop("tool_calls", None)
        if self.fault == "empty":
            message["content"] = ""
        if self.fault == "cut-off":
            message["content"], choice["finish_reason"] = "Let me think about", "length"
        if self.fault == "repeat-key":
            message["content"] = f"Your key is {self.keys[-1].removeprefix('Bearer ')}. [[A]]"
        tokens = len(prompt) // 4
        reply = {
            "id": "x", "object": "chat.completion", "created": 0, "model": model, "choices": [choice],
            "system_fingerprint": "fp_1",
            "usage": {"prompt_tokens": tokens, "completion_tokens": 12, "total_tokens": tokens + 12},
        }  # fmt: skip
        if self.fault == "no-usage":
            del reply["usage"]
        return reply

    def _compare(self, body: dict[str, Any], marks: list[float], prompt: str, choice: dict[str, Any]) -> None:
        advantage = (marks[-1] - marks[0] if len(marks) > 1 else 0.0) - self.bias
        place = 2 if abs(advantage) < 1e-9 else int(advantage > 0)
        message = choice["message"]
        if "tools" in body:
            function = body["tools"][0]["function"]
            if "verdict" in function["parameters"]["properties"]:
                labels = function["parameters"]["properties"]["verdict"]["enum"]
                verdict = {"explanation": "so", "verdict": labels[min(place, len(labels) - 1)]}
            else:  # alpaca_eval's
                names = ("m", "M") if '"M"' in prompt else ("model_1", "model_2")
                ranks = [{"model": names[side], "rank": 1 + (place != side)} for side in (0, 1)]
                verdict = {"ordered_models": ranks}
            call = {
                "id": "c",
                "type": "function",
                "function": {"name": function["name"], "arguments": json.dumps(verdict)},
            }
            message["tool_calls"] = [call]
            return
        constrained = body.get("structured_outputs", {}).get("choice")
        labels = constrained or (["m", "M"] if "m or M" in prompt else None)
        if constrained is None and "grammar" in body:
            labels = ["A", "B", "C"]
        if labels is None or self.fault == "ignores-choice":
            verdict = f"[[{'ABC'[place]}]]"
            if "[[A>>B]]" in prompt:
                verdict = f"[[{('A>B', 'B>A', 'A=B')[place]}]]"
            elif "[RESULT]" in prompt:
                verdict = f"[RESULT] {'ABA'[place]}"
            half = " \ud83d" if self.fault == "half-pair" else ""
            message["content"] = f"Both are fine, on the whole.{half} {verdict}"
            return
        message["content"] = labels[min(place, len(labels) - 1)]
        if body.get("logprobs") and self.fault != "no-logprobs":
            space = " " if self.fault == "odd-tokens" else ""
            second = 1 / (1 + math.exp(-advantage))
            top = [
                (space + labels[0], math.log(1 - second)),
                (space + labels[1], math.log(second)),
                ("The", -16.0),
            ]
            top = (
                [pair for pair in top if pair[0].strip() == message["content"]]
                if self.fault == "one-token"
                else top
            )
            entries = [
                {"token": token, "logprob": p, "bytes": None} for token, p in sorted(top, key=lambda x: -x[1])
            ]
            choice["logprobs"] = {"content": [entries[0] | {"top_logprobs": entries}]}


if __name__ == "__main__":
    with StubJudge(port=int(sys.argv[1]), delay=float(sys.argv[2]) if len(sys.argv) > 2 else 0.0) as judge:
        print(judge.url)
        threading.Event().wait()
