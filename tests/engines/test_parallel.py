"""Parts of the requests for several processes, and two real processes that answer as one does.

`python -m tests.engines.test_parallel JOB FOLDER` is what each of the processes runs.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import traceback
from array import array
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_eval.engines.parallel import ALONE, ParallelEngine, Processes, connected, plan_parts, split
from lora_eval.engines.store import ResultStore
from lora_eval.engines.stored import StoredEngine
from lora_eval.engines.transformers import TransformersEngine
from lora_eval.engines.tree import TokenTree
from lora_eval.errors import InputError, LoraEvalError
from lora_eval.models import Resident, open_resident
from lora_eval.protocols import Engine, GenerateRequest, ScoreRequest
from lora_eval.sequences import as_bytes
from tests.conftest import CHECKOUT, Result

TEXTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8).map(as_bytes), max_size=30)
ARMS = ("base", "tuned")


@given(texts=TEXTS, parts=st.integers(1, 6), seed=st.integers(0, 9), new=st.integers(0, 9))
def test_every_text_is_in_one_part_and_no_part_is_much_more_than_its_share(
    texts: list[bytes], parts: int, seed: int, new: int
) -> None:
    extra = [random.Random(f"{seed} {n}").randint(0, new) for n in range(len(texts))]
    found = split(texts, extra, parts)
    assert len(found) == parts
    assert sorted(place for part in found for place in part) == list(range(len(texts)))
    assert all(part == sorted(part) for part in found)
    filled = [sorted(texts[place] for place in part) for part in found if part]
    assert all(one[-1] <= other[0] for one, other in pairwise(filled))  # tree order
    if not texts:
        return
    share = (len(TokenTree(texts)) + sum(extra)) / parts
    longest = max(len(text) // 4 for text in texts)
    for part in found:
        tokens = len(TokenTree(texts[place] for place in part)) + sum(extra[place] for place in part)
        assert tokens <= share + longest + max(extra) + longest


@given(texts=TEXTS, parts=st.integers(1, 6))
def test_equal_texts_that_cost_nothing_more_stay_together(texts: list[bytes], parts: int) -> None:
    found = split(texts, [0] * len(texts), parts)
    owners = [{part for part, places in enumerate(found) for p in places if texts[p] == t} for t in texts]
    assert all(len(each) == 1 for each in owners)


def test_repeats_of_one_prompt_are_shared_out() -> None:
    requests = [GenerateRequest((1, 2, 3), ("x",), 8, {"do_sample": True}, seed) for seed in range(8)]
    parts, _ = plan_parts(requests, 2)
    assert parts == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_the_digest_sees_every_difference() -> None:
    ask = ScoreRequest((1, 2), (3, 4))
    other = [
        [ask, ask],
        [ScoreRequest((1,), (2, 3, 4))],
        [ScoreRequest((1, 2), (3, 5))],
        [ScoreRequest((1, 2, 3), (4,))],
        [GenerateRequest((1, 2, 3), ("a",), 4)],
        [GenerateRequest((1, 2, 3), ("b",), 4)],
        [GenerateRequest((1, 2, 3), ("a",), 5)],
        [GenerateRequest((1, 2, 3), ("a",), 4, {"do_sample": True})],
        [GenerateRequest((1, 2, 3), ("a",), 4, {}, 1)],
    ]
    digests = [plan_parts(requests, 2)[1] for requests in ([ask], *other)]
    assert len(set(digests)) == len(digests)
    assert plan_parts([ScoreRequest((1, 2), (3, 4))], 3)[1] == digests[0]


def test_one_process_needs_no_connection(resident: Resident) -> None:
    with connected({}) as processes:
        assert processes is ALONE
        assert processes.first("here", lambda: 5) == 5
        with pytest.raises(InputError, match="own words"):
            processes.together("here", _wrong)
    engine = TransformersEngine(resident)
    alone = ParallelEngine(engine, Processes())
    assert isinstance(alone, Engine)
    assert alone.resident is resident
    asked = scores()
    assert alone.score("base", asked, silent) == engine.score("base", asked, silent)
    assert alone.work["requests"] == len(asked)


def test_two_processes_answer_as_one(
    resident: Resident, tiny_llama: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    for result in pair("answer", tmp_path, str(tiny_llama), str(tiny_adapter)):
        assert result.status == 0, result.stderr
    found = [pickle.loads((tmp_path / f"{number}.pickle").read_bytes()) for number in range(2)]
    assert found[0]["answers"] == found[1]["answers"]
    assert found[0]["work"] == found[1]["work"]
    one = TransformersEngine(resident)
    for arm in ARMS:
        for got, wanted in zip(
            found[0]["answers"][arm, "scores"], one.score(arm, scores(), silent), strict=True
        ):
            assert got.log_likelihood == pytest.approx(wanted.log_likelihood, rel=1e-6)
            assert got.is_greedy == wanted.is_greedy
            assert array("f", got.token_log_probabilities) == pytest.approx(
                wanted.token_log_probabilities, rel=1e-4, abs=1e-5
            )
        assert found[0]["answers"][arm, "texts"] == one.generate(arm, prompts(), silent)
        assert len(found[0]["answers"][arm, "one"]) == 1
        assert found[0]["answers"][arm, "none"] == []
    # Each answer was told where it was computed, once; a second look found all in the one store of both.
    heard = [each["heard"] for each in found]
    assert all(heard)
    assert sorted(heard[0] + heard[1]) == sorted(2 * [*range(len(scores()))])
    assert found[0]["again"] == found[0]["answers"]
    assert found[0]["stored"] == found[0]["asked"]


# What the processes end with, and what which of them says. The first speaks for both, and the other must not
# end with an error before it has: a launcher would kill it.
FAILURES = {
    "wrong": ((2, 0), 0, "process 1: own words"),
    "wrong_alone": ((2, 0), 0, "process 1: own words"),
    "wrong_both": ((2, 0), 0, "own words"),
    "broken": ((1, 0), 0, "RuntimeError: a bug"),
    "other": ((1, 0), 0, "the processes do different things (work of 0; work of 1)"),
    "killed": ((2, -signal.SIGKILL), 0, "process 0 of 2 has lost the others"),
    "first_killed": ((-signal.SIGKILL, 2), 1, "process 1 of 2 has lost the others"),
    "none": ((0, 0), 0, ""),
}


@pytest.fixture(scope="module")
def failures(run_python: Callable[..., Result], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what became of every job of FAILURES."""
    folder = tmp_path_factory.mktemp("failures")
    done = run_python("-m", __name__, "failures", folder, cwd=CHECKOUT, timeout=200)
    assert done.status == 0, done.stderr
    return folder


@pytest.mark.parametrize("job", FAILURES)
def test_a_failure_ends_all(job: str, failures: Path) -> None:
    statuses, speaker, said = FAILURES[job]
    found = json.loads((failures / f"{job}.json").read_text("utf-8"))
    assert tuple(found["statuses"]) == statuses
    assert said in found["stderr"][speaker]
    if statuses[1] == 0:
        assert found["stderr"][1] == ""


def pair(job: str, folder: Path, *more: str) -> list[Result]:
    """Run this module as two connected processes."""
    command = [sys.executable, "-W", "error::UserWarning", "-m", __name__, job, str(folder), *more]
    started = [
        subprocess.Popen(
            command, cwd=CHECKOUT, env=os.environ | of_rank(number, port), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for port in [free_port()]
        for number in range(2)
    ]  # fmt: skip
    try:
        told = [process.communicate(timeout=200) for process in started]
    finally:
        for process in started:
            process.kill()
    return [Result(process.returncode, *texts) for process, texts in zip(started, told, strict=True)]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def of_rank(number: int, port: int) -> dict[str, str]:
    """What a launcher tells its process."""
    return {"WORLD_SIZE": "2", "RANK": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def scores() -> list[ScoreRequest]:
    rng = random.Random(4)
    shots = tuple(rng.randrange(250) for _ in range(40))
    contexts = [shots + tuple(rng.randrange(250) for _ in range(rng.randint(1, 9))) for _ in range(12)]
    return [
        ScoreRequest(context, tuple(rng.randrange(250) for _ in range(rng.randint(1, 5))))
        for context in contexts
        for _ in range(3)
    ]


def prompts() -> list[GenerateRequest]:
    rng = random.Random(5)
    ids = [tuple(rng.randrange(250) for _ in range(rng.randint(2, 20))) for _ in range(9)]
    greedy = [GenerateRequest(each, ("e",), 12) for each in ids]
    sampled = {"do_sample": True, "temperature": 1.5}
    return [*greedy, *(GenerateRequest(each, ("e",), 12, sampled, n) for n, each in enumerate(ids[:3]))]


def silent(what: str, done: int, total: int) -> None:
    """Report nothing."""


def answer(processes: Processes, folder: Path, base: str, adapter: str) -> None:
    """Ask everything twice; keep what this process got."""
    inner = TransformersEngine(open_resident(Path(base), {"tuned": Path(adapter)}))
    store = ResultStore(folder / "results.sqlite")
    heard: list[int] = []

    def ask(engine: ParallelEngine) -> dict[tuple[str, str], Any]:
        found: dict[tuple[str, str], Any] = {}
        for arm in ARMS:
            found[arm, "scores"] = engine.score(
                arm, scores(), silent, lambda pairs: heard.extend(n for n, _ in pairs)
            )
            found[arm, "texts"] = engine.generate(arm, prompts(), silent)
            found[arm, "one"] = engine.score(arm, scores()[:1], silent)
            found[arm, "none"] = engine.generate(arm, [], silent)
        return found

    identities = {arm: {"weights": arm} for arm in ARMS}
    engine = ParallelEngine(StoredEngine(inner, store, identities), processes)
    kept = {"answers": ask(engine), "work": dict(engine.work), "heard": list(heard)}
    before = engine.work["stored_requests"]
    kept |= {"again": ask(engine), "stored": engine.work["stored_requests"] - before}
    kept["asked"] = len(ARMS) * (len(scores()) + len(prompts()) + 1)
    (folder / f"{processes.number}.pickle").write_bytes(pickle.dumps(kept))


def _wrong() -> None:
    raise InputError("own words")


def fail(job: str, processes: Processes) -> None:
    """Do one thing together, and fail in the next."""
    numbers = processes.together("numbers", lambda: processes.number)
    assert numbers == [0, 1], numbers
    assert processes.first("the first's", lambda: processes.number) == 0
    second = processes.number == 1

    def work() -> None:
        if second and job == "wrong":
            _wrong()
        if second and job == "broken":
            raise RuntimeError("a bug")
        if (second and job == "killed") or (not second and job == "first_killed"):
            os.kill(os.getpid(), signal.SIGKILL)

    if job == "wrong_both" or (second and job == "wrong_alone"):
        _wrong()
    processes.together(f"work of {processes.number}" if job == "other" else "work", work)


def run_failures(folder: Path) -> None:
    """Run all jobs of FAILURES in forks of this process: importing torch takes longer than all of them."""
    import torch.distributed  # noqa: F401

    for job in FAILURES:
        port = free_port()
        children = [fork(job, number, port, folder) for number in range(2)]
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        said = [(folder / f"{job}.{number}").read_text("utf-8") for number in range(2)]
        (folder / f"{job}.json").write_text(json.dumps({"statuses": statuses, "stderr": said}), "utf-8")


def fork(job: str, number: int, port: int, folder: Path) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        signal.alarm(60)  # a hang is a failure
        with (folder / f"{job}.{number}").open("wb") as said:
            os.dup2(said.fileno(), 2)
        os.environ |= of_rank(number, port)
        status = main([job, str(folder)])
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(status)


def main(arguments: Sequence[str]) -> int:
    job, folder, *more = arguments
    if job == "failures":
        run_failures(Path(folder))
        return 0
    try:
        with connected() as processes:
            if job == "answer":
                answer(processes, Path(folder), *more)
            else:
                fail(job, processes)
    except LoraEvalError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
