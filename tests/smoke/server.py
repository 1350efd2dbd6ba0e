"""An OpenAI-compatible server on this machine: vLLM's routes, answered by a real tiny model, with lies on
demand.

    python -m tests.smoke.server BASE NAME=ADAPTER...        # by hand
"""

from __future__ import annotations

import copy
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

# A lie's name, and what it does.
LIES = {
    "base": "answers every adapter's requests with the base",
    "swap": "answers an adapter's requests with the next adapter",
    "any-model": "answers for models that it does not have",
    "no-stop": "goes on after the end-of-sequence token",
    "finish-reason": "says 'stop' whatever happened",
    "stale-cache": "keeps the keys and values of a name's long prompts when other weights come",
    "other-template": "renders conversations with another template",
    "mixed": "applies an adapter to base requests that run beside an adapter's",
    "ignores-fields": "ignores every field that is not OpenAI's",
    "lm-head": "computes the prompt's log-probabilities without the adapter",
    "streams-base": "answers with the base where it streams",
    "chats-base": "answers chat completions with the base",
    "no-load": "says 200 to a load and gives the base",
    "keeps-unloaded": "says 200 to an unload and goes on answering",
    "dies": "ends at two prompts with log-probabilities at a time",
}
_BLOCK = 128  # tokens of a block of the prefix cache
_EXTRA = (
    "prompt_logprobs", "logit_bias", "return_token_ids", "return_tokens_as_token_ids", "echo", "ignore_eos",
    "stop_token_ids",
)  # fmt: skip
OTHER = "{%- for m in messages -%}{{ m['role'] + ': ' + m['content'] + '\n' }}{%- endfor -%}assistant:"


class Fault(Exception):
    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


@dataclass
class TinyServer:
    """Serves on 127.0.0.1 at `url` while the context is open; `calls` counts places."""

    base: Path
    adapters: Mapping[str, Path] = field(default_factory=dict)
    lie: str | None = None
    base_name: str = "base"
    max_model_len: int = 1024
    allow_load: bool = True
    has_tokenize: bool = True
    # As SGLang: BASE:ADAPTER is an adapter, a name without a colon the base, and loads are not below /v1.
    joined_names: bool = False
    fail_first: int = 0  # so many requests are answered with 503
    calls: Counter[str] = field(default_factory=Counter)
    most_in_flight: Counter[str] = field(default_factory=Counter)

    def __enter__(self) -> TinyServer:
        from lora_eval.models import open_resident

        assert self.lie is None or self.lie in LIES, self.lie
        self.resident = open_resident(self.base, self.adapters, base_name=self.base_name)
        self.paths = {name: str(path) for name, path in self.adapters.items()}
        self.lock = threading.Lock()
        self.flights: Counter[str] = Counter()
        self.kept: dict[Any, Any] = {}
        self.dead = False
        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.httpd.daemon_threads = True
        threading.Thread(target=self.httpd.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.httpd.shutdown()
        self.httpd.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.httpd.server_address[1]}/v1"

    def answer(self, method: str, place: str, body: dict[str, Any]) -> Any:
        self.calls[place] += 1
        if self.fail_first > 0:
            self.fail_first -= 1
            raise Fault(503, "warming up")
        if self.dead:
            raise Fault(500, "EngineCore encountered an issue")
        routes: dict[str, Callable[[dict[str, Any]], Any]] = {
            "/version": lambda _: {"version": "0.0-tiny"},
            "/v1/models": lambda _: self._models(),
            "/v1/completions": self._completion,
            "/v1/chat/completions": self._chat,
        }
        if self.has_tokenize:
            routes["/tokenize"] = self._tokenize
        if self.allow_load:
            before = "" if self.joined_names else "/v1"
            routes |= {
                f"{before}/load_lora_adapter": self._load,
                f"{before}/unload_lora_adapter": self._unload,
            }
        if place not in routes:
            raise Fault(404, "Not Found")
        if method == "GET" and "load_lora" in place:
            raise Fault(405, "Method Not Allowed")
        return routes[place](body)

    def _models(self) -> dict[str, Any]:
        base = {
            "id": self.base_name,
            "root": str(self.base),
            "parent": None,
            "max_model_len": self.max_model_len,
        }
        adapters = [
            {"id": name, "root": path, "parent": self.base_name, "max_model_len": None}
            for name, path in self.paths.items()
        ]
        return {"object": "list", "data": [base, *adapters]}

    def _arm(self, body: Mapping[str, Any]) -> str:
        name = body["model"]
        if self.joined_names:
            name = name.partition(":")[2] or self.base_name
        if name != self.base_name and name not in self.paths:
            if self.lie != "any-model":
                raise Fault(400 if self.joined_names else 404, f"The model `{name}` does not exist.")
            return self.base_name
        names = list(self.paths)
        streams, chats = body.get("stream"), "messages" in body
        if self.lie == "base" or (self.lie, True) in (("streams-base", streams), ("chats-base", chats)):
            return self.base_name
        if self.lie == "swap" and name in names:
            return names[(names.index(name) + 1) % len(names)]
        return str(name)

    def _tokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        self._arm(body)
        ids = self._render(body["messages"])
        return {"count": len(ids), "max_model_len": self.max_model_len, "tokens": ids}

    def _render(self, messages: list[dict[str, str]]) -> list[int]:
        template = OTHER if self.lie == "other-template" else None
        text = self.resident.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, chat_template=template
        )
        return list(self.resident.tokenizer.encode(text, add_special_tokens=False))

    def _chat(self, body: dict[str, Any]) -> dict[str, Any]:
        ids = self._render(body["messages"])
        reply = self._completion(body | {"prompt": ids})
        choice = reply["choices"][0]
        choice["message"] = {"role": "assistant", "content": choice.pop("text")}
        if "prompt_token_ids" in choice:
            reply["prompt_token_ids"] = choice.pop("prompt_token_ids")
        return reply

    def _completion(self, body: dict[str, Any]) -> dict[str, Any]:
        arm, name = self._arm(body), body["model"]
        prompt = body["prompt"]
        ids = self.resident.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        if len(ids) + body.get("max_tokens", 16) > self.max_model_len:
            raise Fault(400, f"This model's maximum context length is {self.max_model_len} tokens.")
        scores = body.get("prompt_logprobs") is not None or bool(body.get("echo"))
        if self.lie == "ignores-fields":
            body = {key: value for key, value in body.items() if key not in _EXTRA}
        kind = "score" if scores else "generate"
        self.flights[name] += 1
        self.flights[kind] += 1
        self.most_in_flight[kind] = max(self.most_in_flight[kind], self.flights[kind])
        if self.lie in ("mixed", "dies"):
            time.sleep(0.02)  # so that the requests meet
        try:
            if self.lie == "dies" and self.flights["score"] > 1:
                self.dead = True
            with self.lock:
                beside = [other for other in self.paths if self.flights[other]]
                if self.lie == "mixed" and name == self.base_name and beside:
                    arm = beside[-1]
                if self.dead:
                    raise Fault(500, "EngineCore encountered an issue")
                return self._computed(arm, name, list(ids), body)
        finally:
            self.flights[name] -= 1
            self.flights[kind] -= 1

    def _computed(self, arm: str, name: str, ids: list[int], body: dict[str, Any]) -> dict[str, Any]:
        import torch

        with self.resident.activate(arm) as model, torch.inference_mode():
            new, rows, reason = self._continue(model, name, ids, body)
            prompt_rows = None
            if body.get("prompt_logprobs") is not None or body.get("echo"):
                with self.resident.activate(self.base_name if self.lie == "lm-head" else arm) as scorer:
                    prompt_rows = torch.log_softmax(scorer(torch.tensor([ids])).logits[0].float(), -1)[:-1]
        decode = self.resident.tokenizer.decode
        shown = new[:-1] if reason == "stop" and new and new[-1] in self._ends() else new
        text = decode(shown, skip_special_tokens=body.get("skip_special_tokens", True))
        stops = [text.find(stop) for stop in body.get("stop") or () if stop in text]
        text = text[: min(stops)] if stops else text
        choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": reason, "logprobs": None}
        if self.lie == "finish-reason":
            choice["finish_reason"] = "stop"
        named = (
            (lambda t: f"token_id:{t}") if body.get("return_tokens_as_token_ids") else (lambda t: decode([t]))
        )
        if body.get("logprobs") is not None:
            choice["logprobs"] = _logprobs(new, rows, max(1, body["logprobs"]), named)
            if body.get("echo"):
                echoed = _logprobs(ids[1:], list(prompt_rows), 1, named)
                for key, value in echoed.items():
                    choice["logprobs"][key] = [named(ids[0]) if key == "tokens" else None, *value,
                                               *choice["logprobs"][key]]  # fmt: skip
        if body.get("prompt_logprobs") is not None:
            choice["prompt_logprobs"] = [
                None,
                *(_row(row, t) for row, t in zip(prompt_rows, ids[1:], strict=True)),
            ]
        if body.get("return_token_ids"):
            choice |= {"token_ids": new, "prompt_token_ids": ids}
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(new)}
        return {"id": "x", "model": name, "choices": [choice], "usage": usage}

    def _ends(self) -> set[int]:
        value = self.resident.model.generation_config.eos_token_id
        return set(value) if isinstance(value, list) else {value}

    def _continue(
        self, model: Any, name: str, ids: list[int], body: dict[str, Any]
    ) -> tuple[list[int], list[Any], str]:
        import torch

        bias = {int(token): value for token, value in (body.get("logit_bias") or {}).items()}
        stops = self._ends() if not body.get("ignore_eos") else set()
        stops |= set(body.get("stop_token_ids") or ())
        generator = torch.Generator().manual_seed(body.get("seed") or 0)
        new: list[int] = []
        rows: list[Any] = []
        past, fresh = self._begin(model, name, ids)
        while len(new) < body.get("max_tokens", 16):
            done = model(torch.tensor([fresh]), past_key_values=past, use_cache=True)
            past, logits = done.past_key_values, done.logits[0, -1].float()
            rows.append(torch.log_softmax(logits, -1))
            for token, value in bias.items():
                logits[token] += value
            if temperature := body.get("temperature", 1.0):
                token = int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))
            else:
                token = int(logits.argmax())
            new.append(token)
            fresh = [token]
            text = self.resident.tokenizer.decode(new)
            ended = token in stops and self.lie != "no-stop"
            if ended or any(stop in text for stop in body.get("stop") or ()):
                return new, rows, "stop"
        return new, rows, "length"

    def _begin(self, model: Any, name: str, ids: list[int]) -> tuple[Any, list[int]]:
        """Return keys and values that are there, and the tokens that are not in them."""
        import torch

        if self.lie != "stale-cache" or len(ids) <= _BLOCK:
            return None, ids
        key = (name, tuple(ids[:_BLOCK]))
        if key not in self.kept:
            self.kept[key] = model(torch.tensor([ids[:_BLOCK]]), use_cache=True).past_key_values
        return copy.deepcopy(self.kept[key]), ids[_BLOCK:]

    def _load(self, body: dict[str, Any]) -> str:
        name, path = body["lora_name"], body["lora_path"]
        if name in self.paths or name == self.base_name:
            raise Fault(400, f"The lora adapter '{name}' has already been loaded.")
        if not (Path(path) / "adapter_config.json").is_file():
            raise Fault(404, f"No adapter found for '{path}'")
        with self.lock:
            self.resident = self.resident if self.resident._peft else self._first(path)
            inside = f"loaded{self.calls['/v1/load_lora_adapter']}"
            self.resident._peft.load_adapter(path, inside)
            self.resident._peft.eval()
            self.resident._arms[name] = None if self.lie == "no-load" else inside
            self.paths[name] = path
        return f"Success: LoRA adapter '{name}' added successfully."

    def _first(self, path: str) -> Any:
        from lora_eval.models import open_resident

        return open_resident(self.base, {"__first__": Path(path)}, base_name=self.base_name)

    def _unload(self, body: dict[str, Any]) -> str:
        name = body["lora_name"]
        if name not in self.paths:
            raise Fault(404, f"The lora adapter '{name}' cannot be found.")
        if self.lie != "keeps-unloaded":
            with self.lock:
                del self.paths[name], self.resident._arms[name]
        return f"Success: LoRA adapter '{name}' removed successfully."


def _logprobs(
    tokens: list[int], rows: list[Any], k: int, named: Callable[[int], str]
) -> dict[str, list[Any]]:
    tops = [row.topk(k) for row in rows]
    return {
        "tokens": [named(token) for token in tokens],
        "token_logprobs": [float(row[token]) for row, token in zip(rows, tokens, strict=True)],
        "top_logprobs": [
            {named(int(i)): float(v) for v, i in zip(top.values, top.indices, strict=True)}
            | {named(token): float(row[token])}
            for top, row, token in zip(tops, rows, tokens, strict=True)
        ],
    }


def _row(row: Any, token: int) -> dict[str, Any]:
    tokens = {int(row.argmax()), token}
    return {str(t): {"logprob": float(row[t]), "rank": int((row > row[t]).sum()) + 1} for t in tokens}


def _handler(server: TinyServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self._reply("GET", {})

        def do_POST(self) -> None:
            self._reply("POST", json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def _reply(self, method: str, body: dict[str, Any]) -> None:
            try:
                found, status = server.answer(method, self.path, body), 200
            except Fault as fault:
                found = {"error": {"message": str(fault), "type": "X", "param": None, "code": fault.status}}
                status = fault.status
            kind, text = "application/json", found if isinstance(found, str) else json.dumps(found)
            if body.get("stream") and status == 200:
                kind, text = "text/event-stream", f"data: {text}\n\ndata: [DONE]\n\n"
            data = text.encode()
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


if __name__ == "__main__":
    arms = {name: Path(path) for name, path in (text.split("=", 1) for text in sys.argv[2:])}
    with TinyServer(Path(sys.argv[1]), arms) as running:
        print(running.url, flush=True)
        threading.Event().wait()
