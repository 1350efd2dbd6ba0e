"""One comparison by several processes: each answers a part of the requests, and all of them get all answers.

Every process runs the same program on its own copy of the model and so meets the same requests. What they
tell one another goes over gloo as Python objects, on GPUs too: no weights or activations travel.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from lora_eval.engines.wrapped import WrappedEngine
from lora_eval.errors import CheckFailed, InputError, LoraEvalError
from lora_eval.models.processes import world_size
from lora_eval.protocols import Engine, Finished, GenerateRequest, Generation, Progress, Score, ScoreRequest
from lora_eval.sequences import as_bytes, common_length

# How long a process waits for the slowest one. One that has died is noticed at once: its connection closes.
_PATIENCE = timedelta(days=7)
_BY_STATUS = {2: InputError, 3: CheckFailed}
_PLANS = 4  # lists of requests that alternate while a suite runs
_Plan = tuple[Sequence[Any], list[list[int]], str]  # requests, the places in each part, digest of all

Value = TypeVar("Value")
Request = TypeVar("Request", ScoreRequest, GenerateRequest)
Answer = TypeVar("Answer", Score, Generation)


class Processes:
    """The processes of one launcher: this one is `number` of `count`; the first, 0, writes and speaks.

    They meet in `together` only, so a process that fails anywhere reaches all others wherever they wait.
    """

    def __init__(self, number: int = 0, count: int = 1, group: Any = None) -> None:
        self.number = number
        self.count = count
        self.all_know = False  # whether every process knows that the run has failed
        self._group = group
        self._over = count == 1  # nobody is there to be told anything

    @property
    def is_first(self) -> bool:
        """Whether this process writes and speaks."""
        return self.number == 0

    def together(self, what: str, work: Callable[[], Value]) -> list[Value]:
        """Return what `work` gives in each process, by number. Called by all of them, with the same `what`.

        Raises:
            InputError, CheckFailed, LoraEvalError: `work` failed in another process (with its exit status),
                that process is gone, or it is doing something else than this one. What `work` raises in
                this process comes out as it is.
        """
        try:
            value = work()
        except Exception as error:
            self.tell(error)
            raise
        return [value] if self.count == 1 else self._exchange(what, value)

    def first(self, what: str, work: Callable[[], Value]) -> Value:
        """Return in every process what `work` gives in the first; only there it is called."""
        found: list[Any] = self.together(what, work if self.is_first else lambda: None)
        value: Value = found[0]
        return value

    def tell(self, error: BaseException) -> None:
        """Let the other processes raise this error too, where they do not know of a failure already."""
        if self._over:
            return
        status = getattr(error, "exit_status", 1)
        told = str(error) if status in _BY_STATUS else "".join(traceback.format_exception(error))
        with contextlib.suppress(LoraEvalError):  # the others have ended; this one has its own error to raise
            self._exchange("", None, (status, told))

    def _exchange(self, what: str, value: Any, failure: tuple[int, str] | None = None) -> list[Any]:
        import torch.distributed

        found: list[Any] = [None] * self.count
        try:
            torch.distributed.all_gather_object(found, (what, value, failure), group=self._group)
        except RuntimeError as error:
            self._over = True
            raise InputError(
                f"process {self.number} of {self.count} has lost the others: one was ended from outside; if "
                "it was out of memory, start fewer (each holds its own copy of the model)"
            ) from error
        failures = {number: told for number, (_, _, told) in enumerate(found) if told is not None}
        asked = [name for name, _, _ in found]
        self.all_know = self._over = bool(failures) or len(set(asked)) > 1
        if failures and failure is None:
            number, (status, text) = next(iter(failures.items()))
            raise _BY_STATUS.get(status, LoraEvalError)(f"process {number}: {text}")
        if self.all_know and failure is None:
            raise LoraEvalError(
                f"the processes do different things ({'; '.join(asked)}): a suite must build the same "
                "requests in every process, and all must see the same files"
            )
        return [given for _, given, _ in found]


ALONE = Processes()


@contextlib.contextmanager
def connected(environment: Mapping[str, str] = os.environ) -> Iterator[Processes]:
    """Connect the processes that a launcher has started (`accelerate launch`, `torchrun`); all enter together
    and leave together. Each uses the GPU of its own number, where there are any. Without a launcher: one.

    Where the block fails and the first process knows of it, the others end here, with status 0: a launcher
    kills every process as soon as one ends with an error, and the first still has to say what happened.
    """
    if world_size(environment) == 1:
        yield ALONE
        return
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(environment.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    ours = not dist.is_initialized()
    if ours:
        dist.init_process_group("gloo")
    group = dist.new_group(backend="gloo", timeout=_PATIENCE)
    processes = Processes(dist.get_rank(), dist.get_world_size(), group)
    try:
        yield processes
        processes.together("the end", lambda: None)
    except Exception as error:
        processes.tell(error)
        if processes.is_first or not processes.all_know:
            raise
        raise SystemExit(0) from None
    finally:
        dist.destroy_process_group(None if ours else group)


class ParallelEngine(WrappedEngine):
    """Scores and generates with the engines of all processes, each for its part of the requests.

    Called in every process, with the same requests; every process gets all answers. `finished` and `progress`
    hear in each process of that process's own part. `work` is the same everywhere: sums over the processes,
    and for `seconds` the time of the slowest; what several parts begin with counts in each.

    Wrap whatever stores answers, not the other way round: a part is cut from the requests alone, while what
    is in a store changes between the looks of two processes. Other attributes are those of `engine`.
    """

    def __init__(self, engine: Engine, processes: Processes) -> None:
        super().__init__(engine)
        self.work = Counter()
        self._processes = processes
        self._plans: deque[_Plan] = deque(maxlen=_PLANS)

    def score(
        self, arm: str, requests: Sequence[ScoreRequest], progress: Progress, finished: Finished | None = None
    ) -> list[Score]:
        """Return the log-likelihood of each continuation.

        Raises:
            LoraEvalError: another process failed or has other requests (see `Processes.together`).
        """
        return self._answer(self._engine.score, "score", arm, requests, progress, finished)

    def generate(
        self,
        arm: str,
        requests: Sequence[GenerateRequest],
        progress: Progress,
        finished: Finished | None = None,
    ) -> list[Generation]:
        """Return each answer.

        Raises:
            LoraEvalError: another process failed or has other requests (see `Processes.together`).
        """
        return self._answer(self._engine.generate, "generate", arm, requests, progress, finished)

    def _answer(
        self,
        ask: Callable[[str, Sequence[Request], Progress, Finished | None], list[Answer]],
        verb: str,
        arm: str,
        requests: Sequence[Request],
        progress: Progress,
        finished: Finished | None,
    ) -> list[Answer]:
        _, parts, digest = self._plan(requests)
        own = parts[self._processes.number]

        def heard(pairs: Sequence[tuple[int, Answer]]) -> None:
            assert finished is not None
            finished([(own[index], answer) for index, answer in pairs])

        def work() -> tuple[list[Answer], dict[str, float]]:
            before = dict(self._engine.work)
            asked = [requests[place] for place in own]
            answers = ask(arm, asked, progress, heard if finished else None) if own else []
            after = dict(self._engine.work)
            return answers, {name: value - before.get(name, 0) for name, value in after.items()}

        what = f"{verb}, arm {arm}, {self.name} in {self.dtype}, {len(requests)} requests {digest[:12]}"
        found = self._processes.together(what, work)
        self._count([spent for _, spent in found])
        answers: dict[int, Answer] = {}
        for part, (given, _) in zip(parts, found, strict=True):
            answers.update(zip(part, given, strict=True))
        return [answers[place] for place in range(len(requests))]

    def _plan(self, requests: Sequence[Any]) -> _Plan:
        """The parts of these requests. All arms are asked the same, so drafts lie where they are needed."""
        for plan in self._plans:
            if plan[0] is requests or plan[0] == requests:
                return plan
        self._plans.append((requests, *plan_parts(requests, self._processes.count)))
        return self._plans[-1]

    def _count(self, spent: Sequence[Mapping[str, float]]) -> None:
        for name in dict.fromkeys(name for each in spent for name in each):
            values = [each.get(name, 0) for each in spent]
            self.work[name] += max(values) if name == "seconds" else sum(values)  # type: ignore[assignment]


def parallel(engine: Engine, processes: Processes) -> Engine:
    """Return the engine shared by all processes, or as it is where there is one."""
    return engine if processes.count == 1 else ParallelEngine(engine, processes)


def plan_parts(requests: Sequence[ScoreRequest | GenerateRequest], parts: int) -> tuple[list[list[int]], str]:
    """Return the places of the requests that each process answers, and a digest of all requests."""
    texts: list[bytes] = []
    extra: list[int] = []
    seen = hashlib.sha256()
    for request in requests:
        if isinstance(request, ScoreRequest):
            # The last token is only predicted. Choices that differ in it alone cost nothing more.
            texts.append(as_bytes((*request.context_ids, *request.continuation_ids[:-1])))
            extra.append(0)
            seen.update(struct.pack("qq", len(request.context_ids), len(request.continuation_ids)))
            seen.update(as_bytes(request.continuation_ids[-1:]))
        else:
            texts.append(as_bytes(request.input_ids))
            extra.append(request.max_new_tokens)
            seen.update(struct.pack("q", len(request.input_ids)))
            seen.update(repr((request.until, request.max_new_tokens, request.seed)).encode())
            seen.update(repr(sorted(request.sampling.items())).encode())
        seen.update(texts[-1])
    return split(texts, extra, parts), seen.hexdigest()


def split(texts: Sequence[bytes], extra: Sequence[int], parts: int) -> list[list[int]]:
    """Return the places of the texts (token ids as `as_bytes` gives them) that make up each part, ascending.

    Parts are stretches of the token tree's order, cut at equal numbers of tokens: distinct ones, and `extra`
    for each text. So none has more than its share, one more text, and the prefix at its beginning.
    """
    order = sorted(range(len(texts)), key=texts.__getitem__)
    sizes: list[int] = []
    before = b""
    for place in order:
        sizes.append(len(texts[place]) // 4 - common_length(before, texts[place]) + extra[place])
        before = texts[place]
    total, done, part = sum(sizes), 0, 0
    found: list[list[int]] = [[] for _ in range(parts)]
    for place, size in zip(order, sizes, strict=True):
        done += size
        if size:  # what adds nothing stays with the text before it
            part = (2 * done - size) * parts // (2 * total)  # where its middle lies
        found[part].append(place)
    return [sorted(each) for each in found]
