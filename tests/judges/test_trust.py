"""Which judge is refused: position-bound ones, those that failed a calibration; and which are not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from lora_eval.errors import InputError
from lora_eval.judges.calls import judge_name
from lora_eval.judges.games import Game
from lora_eval.judges.profiles import load_profile
from lora_eval.judges.trust import (
    FEWEST,
    check_calibration,
    keep_calibration,
    kept_calibration,
    position_bound,
    sign_test,
)
from lora_eval.records import Calibration
from lora_eval.schema import write_record
from tests.judges.conftest import json_lines, real
from tests.judges.test_games import games_of

FIRST, SECOND, B_WINS, A_WINS, TIED = (0, 1), (1, 0), (1, 1), (0, 0), (0.5, 0)


def calibration(judge="j", **changes):
    values = {
        "judge": judge, "n": 30, "n_invalid": 0, "agreement": 0.9, "ci_low": 0.8, "ci_high": 1.0,
        "level": 0.95, "order_agreement": 0.9, "position_rate": 0.5, "repeat_agreement": None, "repeats": 0,
        "passed": True, "reasons": (),
    }  # fmt: skip
    return Calibration(**(values | changes))


@pytest.mark.parametrize(
    ("verdicts", "says"),
    [
        ([FIRST] * 10, "the answer shown first wins in both orders for 10 prompts, the same answer for 0"),
        ([SECOND] * 12 + [B_WINS], "the answer shown second wins in both orders for 12 prompts"),
        ([(0.4, 0.6)] * 10, "the answer shown first"),  # probabilities
        ([FIRST] * 20 + [B_WINS] * 5 + [TIED] * 30, "in both orders for 20 prompts, the same answer for 5"),
    ],
)  # fmt: skip
def test_a_judge_that_follows_the_position_is_found(verdicts, says):
    (found,) = position_bound(games_of(verdicts))
    assert says in found


@pytest.mark.parametrize(
    "verdicts",
    [
        [FIRST] * (FEWEST - 1),  # too few to say
        [FIRST] * 10 + [B_WINS] * 6,  # chance does that
        [FIRST] * 10 + [SECOND] * 10 + [B_WINS] * 5 + [A_WINS] * 5,  # noise follows neither position
        [B_WINS] * 20 + [FIRST] * 15,
        [TIED] * 40,
        [(None, 1)] * 40,
        [],
    ],
)
def test_other_judges_are_not_refused(verdicts):
    assert position_bound(games_of(verdicts)) == []


def test_a_judge_that_tosses_coins_is_refused_in_one_of_a_hundred_runs_at_most():
    """Noise is no bias; 400 runs of 40 prompts."""
    generator = np.random.default_rng(0)
    drawn = generator.integers(0, 2, size=(400, 40, 2))
    found = [position_bound(games_of([tuple(map(float, pair)) for pair in run])) for run in drawn]
    assert sum(map(bool, found)) <= 4


def test_judges_are_looked_at_one_by_one():
    games = games_of([FIRST] * 10) + [
        Game("other", g.prompt, g.item, g.a, g.b, g.first, g.score) for g in games_of([B_WINS] * 50)
    ]
    (found,) = position_bound(games)
    assert found.startswith("judge follows")


def test_two_turns_of_a_prompt_count_once():
    """Nine conversations of two turns are no eighteen independent prompts."""
    once = games_of([FIRST] * 9)
    twice = once + [Game(g.judge, g.prompt, f"{g.item} turn 2", g.a, g.b, g.first, g.score) for g in once]
    assert position_bound(twice) == []


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_sign_test_is_scipys(hits, more):
    expected = binomtest(hits, hits + more, alternative="greater").pvalue if hits + more else 1.0
    assert sign_test(hits, hits + more) == pytest.approx(expected, rel=1e-9)


def test_gpt_4_on_real_answers_is_no_position_bound_judge():
    """The QLoRA paper's ratings: the first answer wins more often, the better one more often still."""
    folder = real("pairwise_qlora/relative-gpt-3.5")
    pairs: dict[tuple[str, str], dict[object, float]] = {}
    for path in sorted(folder.glob("*.gz")):
        name = path.name.replace("-vicuna-generations-topp0.9-temp0.7", "")
        first, second = name.removesuffix("-gpt4-reviewer.jsonl.gz").split("-vs-")
        pairs[first, second] = {
            row["question_id"]: (1 + np.sign(row["score"][1] - row["score"][0])) / 2
            for row in json_lines(path)
            if -1 not in row["score"]
        }  # fmt: skip
    both = [pair for pair in pairs if pair < pair[::-1] and pair[::-1] in pairs]
    assert len(both) >= 10
    for a, b in both:
        games = [Game("gpt-4", str(q), str(q), a, b, "a", score) for q, score in pairs[a, b].items()]
        games += [Game("gpt-4", str(q), str(q), a, b, "b", 1 - score) for q, score in pairs[b, a].items()]
        assert position_bound(games) == []


def test_a_calibration_is_kept_for_its_own_judge_and_replaced_by_the_next(tmp_path):
    assert kept_calibration(tmp_path / "none", "j") is None
    keep_calibration(tmp_path, calibration(passed=False, reasons=("bad",)))
    keep_calibration(tmp_path, calibration("k"))
    assert kept_calibration(tmp_path, "j").reasons == ("bad",)
    keep_calibration(tmp_path, calibration())
    assert kept_calibration(tmp_path, "j").passed
    assert kept_calibration(tmp_path, "l") is None


def test_a_calibration_of_another_judge_is_no_calibration_of_this_one(tmp_path):
    path = tmp_path / "calibration.json"
    write_record(path, calibration("one (openai-text 0123)"))
    assert check_calibration("one (openai-text 0123)", path).passed
    with pytest.raises(InputError, match="calibrate it too"):
        check_calibration("one (openai-text 4567)", path)


def test_a_judges_name_follows_profile_model_and_endpoint():
    def name(profile="openai-text", model="m", port=1):
        return judge_name(load_profile(profile, model=model, base_url=f"http://127.0.0.1:{port}/v1"))

    names = [name(), name(model="n"), name(port=2), name("arena-hard-5")]
    assert len(set(names)) == 4
