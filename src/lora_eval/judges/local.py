"""A judge on this machine, without a server: our own engine answers as an endpoint would.

Verdicts of kind `choice` and `logprob` are not sampled: the probabilities of the labels themselves are
computed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_eval.errors import InputError
from lora_eval.judges.calls import Plan
from lora_eval.judges.chatting import chat_ids
from lora_eval.judges.replies import read_reply
from lora_eval.judges.run import Outcome
from lora_eval.judges.store import VerdictStore
from lora_eval.judges.verdicts import EQUAL, is_known, key_of, stored, verdict_of
from lora_eval.protocols import Engine, GenerateRequest, Generation, Progress, ScoreRequest
from lora_eval.records import JudgeProfile, JudgeVerdict

_CHUNK = 64  # calls whose verdicts are stored together


def run_locally(plan: Plan, folder: Path, judge: LocalJudge, progress: Progress) -> Outcome:
    """Return every verdict of the plan, computing those that `folder` does not hold.

    Raises:
        InputError: the judge cannot judge this way, or another process is judging into `folder`.
    """
    with VerdictStore(folder) as store:
        left = [call for call in plan.calls if not is_known(plan, call, store.verdicts)]
        outcome = Outcome(known=len(plan.calls) - len(left))
        for start in range(0, len(left), _CHUNK):
            part = left[start : start + _CHUNK]
            ties = [call for call in part if call.messages is None]
            found = [verdict_of(plan, call, key_of(plan, call, 0), 0, EQUAL) for call in ties]
            asked = [call for call in part if call.messages is not None]
            replies = judge.replies(plan.profile, [plan.body(call) for call in asked], _silent)
            for call, reply in zip(asked, replies, strict=True):
                said = read_reply(plan.profile, reply)
                found.append(verdict_of(plan, call, key_of(plan, call, 0), 0, said, tries=1))
            asyncio.run(_store(store, found))
            outcome.asked += len(asked)
            progress("judging", start + len(part), len(left))
        outcome.verdicts = [verdict for call in plan.calls for verdict in stored(plan, call, store.verdicts)]
    return outcome


async def _store(store: VerdictStore, verdicts: Sequence[JudgeVerdict]) -> None:
    await asyncio.gather(*(store.add(verdict) for verdict in verdicts))


def _silent(what: str, done: int, total: int) -> None:
    """The bar counts calls, not tokens."""


class LocalJudge:
    """Answers the bodies of requests with the one arm of an engine."""

    def __init__(self, engine: Engine, model: str) -> None:
        self._engine = engine
        self._arm = engine.arms[0]
        self._model = model

    def replies(
        self, profile: JudgeProfile, bodies: Sequence[Mapping[str, Any]], progress: Progress
    ) -> list[dict[str, Any]]:
        """Return a chat completion for each body, in their order.

        Raises:
            InputError: the profile wants function calls or logits of a server, or the model has no chat
            template.
        """
        if profile.verdict == "tool":
            raise InputError(f"judge {profile.name} answers by function calls, which a local model does not")
        prompts = [self._ids(body) for body in bodies]
        if profile.verdict in ("choice", "logprob") and profile.labels is not None:
            return self._labelled(profile, prompts, progress)
        params = profile.params
        heat = params.temperature or 0.0
        sampling = {"do_sample": True, "temperature": heat} if heat > 0.0 else {}
        requests = [
            GenerateRequest(ids, (), self._room(ids, params.max_tokens), sampling, params.seed or 0)
            for ids in prompts
        ]
        answers = self._engine.generate(self._arm, requests, progress)
        return [self._reply(ids, answer, answer.text) for ids, answer in zip(prompts, answers, strict=True)]

    def _labelled(
        self, profile: JudgeProfile, prompts: Sequence[tuple[int, ...]], progress: Progress
    ) -> list[dict[str, Any]]:
        """The likeliest label, with the log-likelihood of each."""
        labels = profile.labels
        names = [name for name in (labels.first, labels.second, labels.tie) if name] if labels else []
        spelt = [tuple(self._engine.tokenizer.encode(name, add_special_tokens=False)) for name in names]
        requests = [ScoreRequest(ids, label) for ids in prompts for label in spelt]
        scores = self._engine.score(self._arm, requests, progress)
        found = []
        for number, ids in enumerate(prompts):
            mine = scores[number * len(names) : (number + 1) * len(names)]
            top = [
                {"token": name, "logprob": score.log_likelihood}
                for name, score in zip(names, mine, strict=True)
            ]
            best = max(top, key=lambda entry: float(str(entry["logprob"])))
            reply = self._reply(ids, Generation("", spelt[0], "stop"), str(best["token"]))
            reply["choices"][0]["logprobs"] = {"content": [{"top_logprobs": top}]}
            found.append(reply)
        return found

    def _ids(self, body: Mapping[str, Any]) -> tuple[int, ...]:
        messages = tuple((message["role"], message["content"]) for message in body["messages"])
        ids = chat_ids(self._engine.tokenizer, messages, self._model)
        if len(ids) >= self._engine.max_length:
            raise InputError(
                f"{self._model}: a judge prompt of {len(ids)} tokens does not fit its context of "
                f"{self._engine.max_length}; shorten the answers, or take a judge with a longer context"
            )
        return ids

    def _room(self, ids: tuple[int, ...], wanted: int) -> int:
        return min(wanted, self._engine.max_length - len(ids))

    def _reply(self, ids: tuple[int, ...], answer: Generation, text: str) -> dict[str, Any]:
        return {
            "model": self._model,
            "choices": [{"message": {"content": text}, "finish_reason": answer.finish_reason}],
            "usage": {"prompt_tokens": len(ids), "completion_tokens": len(answer.token_ids)},
        }
