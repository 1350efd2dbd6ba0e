"""What a judge's text says: a rating of one answer, or which of two answers is better.

`fastchat` is FastChat's rule to the letter, `strict` takes the last verdict only and refuses what is out of
range: a text that quotes `[[A]]` before it says `[[B]]` is an A to FastChat.
"""

from __future__ import annotations

import re
from typing import Literal

Rule = Literal["fastchat", "strict"]
# FastChat's patterns (fastchat/llm_judge/common.py). ASCII digits: a verdict of other digits is none to
# float().
_TWO = re.compile(r"\[\[([0-9]+\.?[0-9]*)\]\]")
_ONE = re.compile(r"\[([0-9]+\.?[0-9]*)\]")
_LETTER = re.compile(r"\[\[([ABC])\]\]")
_FIVE = re.compile(r"\[\[(A>>B|A>B|A=B|B>A|B>>A)\]\]")

# The score of the answer shown second: 0 (the first is better), 1/2 (tie), 1.
_LETTER_SCORES = {"A": 0.0, "B": 1.0, "C": 0.5}
_FIVE_SCORES = {"A>>B": 0.0, "A>B": 0.25, "A=B": 0.5, "B>A": 0.75, "B>>A": 1.0}


def parse_rating(text: str, rule: Rule = "fastchat") -> float | None:
    """Return the rating, None where there is none.

    fastchat: the first `[[x]]`, else the first `[x]`, in no range. strict: the last `[[x]]`, from 1 to 10.
    """
    if rule == "fastchat":
        found = _TWO.search(text) or _ONE.search(text)
        return float(found[1]) if found else None
    every = _TWO.findall(text)
    rating = float(every[-1]) if every else None
    return rating if rating is not None and 1.0 <= rating <= 10.0 else None


def parse_pair(text: str, rule: Rule = "fastchat") -> float | None:
    """Return the score of the answer shown second (B): 0, 0.5 or 1; None where there is no verdict.

    fastchat: `[[A]]` anywhere, else `[[B]]` anywhere, else `[[C]]`. strict: the last of them.
    """
    every = _LETTER.findall(text)
    if not every:
        return None
    return _LETTER_SCORES[min(every) if rule == "fastchat" else every[-1]]


def parse_five(text: str) -> float | None:
    """Return the score of the answer shown second on Arena-Hard's five levels, from the last `[[..]]`
    verdict.

    Much better counts 1 and better 0.75. (Arena-Hard counts a much better answer as three wins instead.)
    """
    every = _FIVE.findall(text)
    return _FIVE_SCORES[every[-1]] if every else None
