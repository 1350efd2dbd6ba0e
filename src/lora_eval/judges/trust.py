"""May a judge be believed? What its own verdicts say of it, and what a calibration has said."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

from lora_eval.errors import InputError
from lora_eval.judges.games import Game, items_of
from lora_eval.judges.own_rows import games, last_replies
from lora_eval.records import Calibration, JudgeVerdict
from lora_eval.schema import read_record, write_record

FEWEST = 10  # prompts decided by position or by answer, from which the two are told apart
_ALARM = 0.05


def position_bound(played: Sequence[Game]) -> list[str]:
    """Return, for each judge whose verdicts follow the position, what it did; empty where there is none.

    An item that was judged in both orders is decided by the answer where both name the same one, and by the
    position where both name the one shown first (or both the one shown second: whichever is more frequent). A
    judge is bound where more prompts are decided by the position than by the answer, by a one-sided sign test
    at 5 % over prompts. One that tosses coins decides twice as many by the answer: noise alone is no bias.
    """
    return [text for judge in dict.fromkeys(game.judge for game in played) if (text := _bound(judge, played))]


def _bound(judge: str, played: Sequence[Game]) -> str:
    first: dict[str, int] = {}  # by prompt: items won by the first position in both orders, less ...
    second: dict[str, int] = {}
    for prompt, with_a_first, with_b_first in _in_both_orders([g for g in played if g.judge == judge]):
        if 0.5 in (with_a_first, with_b_first):
            continue
        agrees = (with_a_first > 0.5) == (with_b_first > 0.5)  # both are scores of b
        for counts, wins in ((first, with_a_first < 0.5), (second, with_a_first > 0.5)):
            counts[prompt] = counts.get(prompt, 0) + (-1 if agrees else int(wins))
    place, counts = max((("first", first), ("second", second)), key=lambda each: sum(each[1].values()))
    position = sum(count > 0 for count in counts.values())
    answer = sum(count < 0 for count in counts.values())
    decided = position + answer
    if decided < FEWEST or sign_test(position, decided) > _ALARM:
        return ""
    return (
        f"{judge} follows the position: the answer shown {place} wins in both orders for {position} prompts, "
        f"the same answer for {answer}"
    )


def sign_test(hits: int, tries: int) -> float:
    """Return the chance of at least `hits` heads in `tries` tosses of a fair coin."""
    return float(sum(math.comb(tries, k) for k in range(hits, tries + 1)) / 2**tries)


def _in_both_orders(played: Sequence[Game]) -> list[tuple[str, float, float]]:
    """Prompt and b's mean scores (a shown first, b shown first) of every item judged in both orders."""
    return [
        (item.prompt, item.orders[0], item.orders[1])
        for item in items_of(played)
        if item.score is not None and len(item.orders) == 2
    ]


def doubts(verdicts: Sequence[JudgeVerdict]) -> list[str]:
    """Return why these verdicts are not to be reported; empty where nothing speaks against them."""
    return position_bound(games(last_replies(verdicts)))


def check_calibration(judge: str, path: Path) -> Calibration:
    """Return the calibration at `path`.

    Raises:
        InputError: the file is of another judge.
    """
    found = read_record(path, Calibration)
    if found.judge != judge:
        raise InputError(f"{path}: is of the judge {found.judge}, and this one is {judge}; calibrate it too")
    return found


def keep_calibration(folder: Path, found: Calibration) -> None:
    """Keep the calibration in `folder`, in place of an earlier one of the same judge."""
    write_record(folder / _name(found.judge), found)


def kept_calibration(folder: Path, judge: str) -> Calibration | None:
    """Return the judge's last calibration in `folder`, None where there is none."""
    path = folder / _name(judge)
    return read_record(path, Calibration) if path.is_file() else None


def _name(judge: str) -> str:
    return f"{hashlib.sha256(judge.encode()).hexdigest()[:32]}.json"
