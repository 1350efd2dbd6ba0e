"""Stored answers: the same numbers again, never another model's, and nothing lost to whatever ends a run."""

from __future__ import annotations

import json
import random
import shutil
import signal
import sqlite3
import struct
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_eval.engines.store import ResultStore
from lora_eval.engines.stored import (
    StorableEngine,
    StoredEngine,
    generate_question,
    pack_generation,
    pack_score,
    score_question,
    unpack_generation,
    unpack_score,
)
from lora_eval.engines.transformers import TransformersEngine
from lora_eval.errors import RecordError
from lora_eval.fingerprint import fingerprint_folder
from lora_eval.models import Resident, open_resident
from lora_eval.protocols import Engine, GenerateRequest, Generation, Score, ScoreRequest
from tests.conftest import CHECKOUT, Result, save_tiny_adapter

IDENTITIES = {"base": {"weights": "sha256:b"}, "tuned": {"weights": "sha256:b", "adapter": "sha256:a"}}
SAMPLED = {"do_sample": True, "temperature": 1.5}


class Asked(TransformersEngine):
    """The engine, with what it was asked."""

    numerics = "rows-1"
    generation_digest = "sha256:g"

    def __init__(self, resident: Resident, **options: Any) -> None:
        super().__init__(resident, **options)
        self.asked: list[Any] = []

    def score(self, arm: str, requests: Sequence[ScoreRequest], *rest: Any, **named: Any) -> list[Score]:
        self.asked += requests
        self.work["requests"] += len(requests)
        return super().score(arm, requests, *rest, **named)

    def generate(
        self, arm: str, requests: Sequence[GenerateRequest], *rest: Any, **named: Any
    ) -> list[Generation]:
        self.asked += requests
        self.work["requests"] += len(requests)
        return super().generate(arm, requests, *rest, **named)


def _silent(*_: Any) -> None:
    pass


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ResultStore]:
    with ResultStore(tmp_path / "deep" / "results.sqlite") as opened:
        yield opened


def _stored(
    resident: Resident, store: ResultStore, identities: Any = IDENTITIES
) -> tuple[StoredEngine, Asked]:
    inner = Asked(resident, batch_tokens=60)
    return StoredEngine(inner, store, identities), inner


def _scores(n: int = 12) -> list[ScoreRequest]:
    rng = random.Random(3)
    return [
        ScoreRequest(
            tuple(rng.randrange(256) for _ in range(rng.randint(1, 20))),
            tuple(rng.randrange(256) for _ in range(rng.randint(1, 6))),
        )
        for _ in range(n)
    ]


# Values and keys

_ids = st.lists(st.integers(0, 2**31 - 1), max_size=6).map(tuple)
_floats = st.floats(width=32, allow_nan=False)


@given(st.floats(), st.booleans(), st.lists(_floats, max_size=5))
def test_a_score_comes_back_bit_for_bit(value: float, greedy: bool, tokens: list[float]) -> None:
    score = Score(value, greedy, array("f", tokens))
    back = unpack_score(pack_score(score))
    assert struct.pack("d", back.log_likelihood) == struct.pack("d", value)
    assert back.is_greedy is greedy
    assert back.token_log_probabilities.tobytes() == score.token_log_probabilities.tobytes()
    assert back.token_log_probabilities.typecode == "f"
    assert len(pack_score(score)) == 9 + 4 * len(tokens)


@given(st.text() | st.text(st.characters(categories=["Cs"])), _ids, st.sampled_from(["stop", "length", ""]))
def test_a_generation_comes_back(text: str, ids: tuple[int, ...], reason: str) -> None:
    generation = Generation(text, ids, reason)
    assert unpack_generation(pack_generation(generation)) == generation


@given(_ids, _ids, _ids, _ids)
def test_requests_to_score_are_told_apart(a: Any, b: Any, c: Any, d: Any) -> None:
    one, other = ScoreRequest(a, b), ScoreRequest(c, d)
    assert (score_question(one) == score_question(other)) == (one == other)
    if b:  # the same tokens, split elsewhere
        assert score_question(one) != score_question(ScoreRequest((*a, b[0]), b[1:]))


_generate = st.builds(
    GenerateRequest,
    _ids,
    st.lists(st.sampled_from(["a", "b", "a,b", ""]), max_size=3).map(tuple),
    st.integers(1, 3),
    st.sampled_from([{}, {"do_sample": False}, {"do_sample": True}, {"do_sample": True, "top_k": 1}]),
    st.integers(0, 2),
)


@given(_generate, _generate)
def test_requests_to_generate_are_told_apart(one: GenerateRequest, other: GenerateRequest) -> None:
    def decides(request: GenerateRequest) -> Any:
        seed = request.seed if request.sampling.get("do_sample") else None
        return request.input_ids, request.until, request.max_new_tokens, request.sampling, seed

    assert (generate_question(one) == generate_question(other)) == (decides(one) == decides(other))


# The engine


def test_it_is_an_engine(resident: Resident, store: ResultStore) -> None:
    engine, inner = _stored(resident, store)
    assert isinstance(inner, StorableEngine)
    assert isinstance(engine, Engine)
    assert (engine.name, engine.dtype, engine.max_length) == ("transformers", "float32", 1024)
    assert (engine.arms, engine.tokenizer) == (("base", "tuned"), resident.tokenizer)
    assert engine.resident is resident
    assert engine.work is inner.work
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = engine.nothing_of_the_kind


@pytest.mark.parametrize("arm", ["base", "tuned"])
def test_the_second_run_computes_nothing(resident: Resident, store: ResultStore, arm: str) -> None:
    requests = _scores()
    engine, inner = _stored(resident, store)
    first = engine.score(arm, requests, _silent)
    assert first == TransformersEngine(resident, batch_tokens=60).score(arm, requests, _silent)
    assert (inner.work["requests"], inner.work["stored_requests"]) == (len(requests), 0)

    engine, inner = _stored(resident, store)
    heard: list[tuple[int, Score]] = []
    steps = []
    again = engine.score(arm, requests, lambda what, *counts: steps.append(counts), heard.extend)
    assert again == first
    assert heard == list(enumerate(first))
    assert steps[-1] == (len(requests), len(requests))
    assert inner.asked == []
    assert (inner.work["requests"], inner.work["stored_requests"]) == (len(requests), len(requests))


def test_order_and_repetition_do_not_matter(resident: Resident, store: ResultStore) -> None:
    requests = _scores()
    expected = dict(zip(requests, TransformersEngine(resident).score("base", requests, _silent), strict=True))
    engine, inner = _stored(resident, store)
    engine.score("base", requests[::3], _silent)
    inner.asked.clear()
    shuffled = random.Random(0).sample(requests * 3, 3 * len(requests))
    heard: dict[int, Score] = {}
    scores = engine.score("base", shuffled, _silent, heard.update)
    assert sorted(inner.asked, key=str) == sorted(set(requests) - set(requests[::3]), key=str)
    assert [heard[place] for place in range(len(shuffled))] == scores
    for request, score in zip(shuffled, scores, strict=True):
        assert score.log_likelihood == pytest.approx(expected[request].log_likelihood, rel=1e-5)
    stored = 3 * len(requests[::3])
    assert engine.work["stored_requests"] == stored
    assert engine.work["requests"] == len(requests[::3]) + len(shuffled)
    assert engine.score("base", [], _silent) == []


def test_greedy_answers_have_no_seed_and_samples_do(resident: Resident, store: ResultStore) -> None:
    prompt = (72, 101, 108)
    greedy = [GenerateRequest(prompt, (), 6, seed=seed) for seed in range(3)]
    sampled = [GenerateRequest(prompt, (), 6, SAMPLED, seed) for seed in (0, 1, 2, 0)]
    plain = TransformersEngine(resident).generate("base", greedy[:1] + sampled, _silent)
    engine, inner = _stored(resident, store)
    answers = engine.generate("base", greedy + sampled, _silent)
    assert answers == [plain[0]] * 3 + plain[1:]
    assert len(set(answers)) > 2
    assert inner.asked == [greedy[0], *sampled[:3]]

    engine, inner = _stored(resident, store)
    later = [GenerateRequest(prompt, (), 6, seed=9), GenerateRequest(prompt, (), 6, SAMPLED, 9)]
    assert engine.generate("base", later, _silent)[0] == plain[0]
    assert inner.asked == later[1:]


def test_stored_answers_are_drafts_for_the_next_arm(resident: Resident, store: ResultStore) -> None:
    request = GenerateRequest((72, 101), (), 4)
    for computed in (1, 0):
        engine, inner = _stored(resident, store)
        inner.drafts = {}
        (answer,) = engine.generate("base", [request], _silent)
        assert list(inner.drafts.values()) == [answer.token_ids]
        assert len(inner.asked) == computed


class Quiet(Asked):
    """An engine that calls nobody back before its end."""

    def score(self, arm: str, requests: Sequence[ScoreRequest], *_: Any, **__: Any) -> list[Score]:
        return super().score(arm, requests, _silent)


def test_answers_of_an_engine_that_tells_them_at_its_end(resident: Resident, store: ResultStore) -> None:
    requests = _scores(4)
    heard: dict[int, Score] = {}
    first = StoredEngine(Quiet(resident), store, IDENTITIES).score("base", requests, _silent, heard.update)
    assert heard == dict(enumerate(first))
    engine, inner = _stored(resident, store)
    assert (engine.score("base", requests, _silent), inner.asked) == (first, [])


# Never another model's answer


def _asked_again(store: ResultStore, engine: Asked, identities: Any, arm: str = "base") -> int:
    """How many of one score and one generation the engine had to compute."""
    engine.asked.clear()
    stored = StoredEngine(engine, store, identities)
    scores = stored.score(arm, [ScoreRequest((1, 2), (3,))], _silent)
    answers = stored.generate(arm, [GenerateRequest((1, 2), (), 3)], _silent)
    assert scores == TransformersEngine(engine.resident).score(arm, [ScoreRequest((1, 2), (3,))], _silent)
    assert answers == TransformersEngine(engine.resident).generate(
        arm, [GenerateRequest((1, 2), (), 3)], _silent
    )
    return len(engine.asked)


def test_what_an_answer_depends_on(resident: Resident, store: ResultStore) -> None:
    engine = Asked(resident)
    assert _asked_again(store, engine, IDENTITIES) == 2
    assert _asked_again(store, engine, IDENTITIES) == 0
    other = {"base": IDENTITIES["base"] | {"quantization": {"load_in_4bit": True}}}
    assert _asked_again(store, engine, other) == 2
    assert _asked_again(store, engine, IDENTITIES, "tuned") == 2
    engine.generation_digest = "sha256:other"
    assert _asked_again(store, engine, IDENTITIES) == 1
    engine.numerics = "rows-2"
    assert _asked_again(store, engine, IDENTITIES) == 2


def test_an_arm_without_identity_is_never_stored(resident: Resident, store: ResultStore) -> None:
    engine = Asked(resident)
    for _ in range(2):
        assert _asked_again(store, engine, {"tuned": {}}) == 2
    assert engine.work["stored_requests"] == 0
    connection = sqlite3.connect(store.path)
    assert connection.execute("SELECT count(*) FROM answers").fetchone() == (0,)
    connection.close()


def test_another_adapter_in_the_same_folder(
    tiny_llama: Path, tiny_adapter: Path, store: ResultStore, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    other = tmp_path / "other"
    save_tiny_adapter(tiny_llama, other, seed=7)
    found = []
    for source, computed in ((tiny_adapter, 2), (tiny_adapter, 0), (other, 2)):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        engine = Asked(open_resident(tiny_llama, {"tuned": folder}))
        identity = {"weights": fingerprint_folder(tiny_llama), "adapter": fingerprint_folder(folder)}
        assert _asked_again(store, engine, {"tuned": identity}, "tuned") == computed
        found.append(StoredEngine(engine, store, {"tuned": identity}).score("tuned", _scores(), _silent))
    assert found[0] == found[1] != found[2]


def test_the_name_of_an_arm_does_not_matter(tiny_llama: Path, store: ResultStore) -> None:
    engine = Asked(open_resident(tiny_llama, {}, base_name="original"))
    assert _asked_again(store, engine, {"original": IDENTITIES["base"]}, "original") == 2
    engine = Asked(open_resident(tiny_llama, {}))
    assert _asked_again(store, engine, {"base": IDENTITIES["base"]}) == 0


def test_another_dtype(tiny_llama: Path, store: ResultStore) -> None:
    for dtype in ("float32", "bfloat16"):
        engine = Asked(open_resident(tiny_llama, {}, dtype=dtype))
        assert _asked_again(store, engine, {"base": {"weights": "the same"}}) == 2


# Runs that end early, and files that break

_RUN = """
import json, os, random, signal, sys
from pathlib import Path
from lora_eval.engines.store import ResultStore
from lora_eval.engines.stored import StoredEngine
from lora_eval.models import open_resident
from tests.engines.test_stored import Asked, IDENTITIES, _scores, _silent
base, path, kill_after = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
heard = 0
def finished(pairs):
    global heard
    heard += len(pairs)
    if heard >= kill_after:
        print(heard, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
inner = Asked(open_resident(base, {}), batch_tokens=60)
with ResultStore(path) as store:
    scores = StoredEngine(inner, store, IDENTITIES).score("base", _scores(40), _silent, finished)
print(json.dumps([len(inner.asked), inner.work["stored_requests"], [s.log_likelihood for s in scores]]))
"""


def test_a_killed_run_goes_on_where_it_was(
    tiny_llama: Path, resident: Resident, run_python: Callable[..., Result], tmp_path: Path
) -> None:
    path = tmp_path / "results.sqlite"
    place: dict[str, Any] = {"cwd": CHECKOUT, "env": {"TMPDIR": str(tmp_path)}}
    killed = run_python("-c", _RUN, tiny_llama, path, 15, **place)
    assert killed.status == -signal.SIGKILL, killed.stderr
    done = int(killed.stdout)
    assert 15 <= done < 40

    whole = run_python("-c", _RUN, tiny_llama, path, 1000, **place)
    assert whole.status == 0, whole.stderr
    asked, stored, values = json.loads(whole.stdout)
    assert (asked, stored) == (40 - done, done)
    plain = TransformersEngine(resident).score("base", _scores(40), _silent)
    assert values == pytest.approx([score.log_likelihood for score in plain], rel=1e-5)


def test_a_full_disk_does_not_end_the_evaluation(
    resident: Resident, store: ResultStore, full_disk: Callable[[int], None], caplog: Any
) -> None:
    requests = _scores(60)
    engine, inner = _stored(resident, store)
    first = engine.score("base", requests[:20], _silent)
    full_disk(Path(f"{store.path}-wal").stat().st_size + 5000)
    scores = engine.score("base", requests, _silent)
    assert scores[:20] == first
    assert len(scores) == len(inner.asked) == 60
    assert not store.writable
    (note,) = store.notes
    assert f"{store.path}: cannot be written" in note
    assert [record.message for record in caplog.records] == [note]
    assert engine.score("base", requests[:20], _silent) == first  # still answers
    assert len(inner.asked) == 60


def test_a_damaged_file(resident: Resident, tmp_path: Path) -> None:
    path = tmp_path / "results.sqlite"
    with ResultStore(path) as store:
        _stored(resident, store)[0].score("base", _scores(300), _silent)
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    with ResultStore(path) as store, pytest.raises(RecordError, match="damaged"):
        _stored(resident, store)[0].score("base", _scores(300), _silent)


def test_a_damaged_answer(resident: Resident, store: ResultStore) -> None:
    engine, _ = _stored(resident, store)
    engine.score("base", _scores(1), _silent)
    connection = sqlite3.connect(store.path)
    with connection:
        connection.execute("UPDATE answers SET value = x'0001'")
    connection.close()
    with pytest.raises(RecordError, match="damaged answer"):
        engine.score("base", _scores(1), _silent)
