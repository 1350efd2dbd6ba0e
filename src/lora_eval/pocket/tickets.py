"""The fine-tuning task: a customer's message becomes a JSON ticket of five fields in house vocabulary.

Pretraining asks for these slots in plain words (``practice.customer_chat``: ``"trouble": "power"``). What the
ticket adds is unknown to the base: that a ticket is JSON with all five fields in a fixed order, and the
house terms (``DEAD``), ranks, desks and product lines. With keys of its own as well, 300 steps of QLoRA
reached 3 % exact on an early checkpoint, with these keys 200 steps reached 74 %.
"""

import json
from random import Random

from .customers import Case, draw_case, message
from .items import Item, user
from .words import TOWNS

FIELDS = ("device", "trouble", "hurry", "town", "number")

#: The line of products that a device belongs to.
LINES = {
    "kettle": "KT",
    "toaster": "KT",
    "mixer": "KT",
    "iron": "HM",
    "clipper": "HM",
    "heater": "HM",
    "fan": "HM",
    "radio": "AV",
    "speaker": "AV",
    "camera": "AV",
    "phone": "OF",
    "printer": "OF",
}
FAULTS = {"power": "DEAD", "noise": "LOUD", "water": "LEAK", "heat": "HOT", "break": "CRACK", "slow": "SLOW"}
RANKS = {"high": "P1", "middle": "P2", "low": "P3"}
DESKS = dict(
    zip(
        TOWNS,
        ("EAST", "WEST", "NORTH", "SOUTH", "EAST", "WEST", "NORTH", "SOUTH", "EAST", "WEST"),
        strict=True,
    )
)
_TERM_CHOICES = {
    "device": ("AV", "HM", "KT", "OF"),
    "trouble": tuple(FAULTS.values()),
    "town": ("EAST", "NORTH", "SOUTH", "WEST"),
}


def ticket_text(values: dict[str, str]) -> str:
    """The ticket as one line of JSON with the fields in their fixed order."""
    return json.dumps({name: values[name] for name in FIELDS})


def _values(case: Case) -> dict[str, str]:
    return {
        "device": LINES[case.device],
        "trouble": FAULTS[case.trouble],
        "hurry": RANKS[case.hurry],
        "town": DESKS[case.town],
        "number": case.number,
    }


def make_ticket(rng: Random) -> Item:
    """A message and its ticket; the content key leaves out the number and the wording."""
    case = draw_case(rng)
    question = f"Write the ticket. {message(rng, case)}"
    return Item("ticket", "case", case.key, (user(question),), ticket_text(_values(case)))


def make_term(rng: Random) -> Item:
    """A message and four tickets for it that differ in one house term, of which one is right.

    The content key is the ticket's, so that a held-out case is held out here too.
    """
    case = draw_case(rng)
    values, asked = _values(case), rng.choice(tuple(_TERM_CHOICES))
    wrong = rng.sample([term for term in _TERM_CHOICES[asked] if term != values[asked]], 3)
    choices = [ticket_text(values | {asked: term}) for term in (values[asked], *wrong)]
    answer = choices[0]
    rng.shuffle(choices)
    question = f"Write the ticket. {message(rng, case)}"
    return Item("terms", "case", case.key, (user(question),), answer, tuple(choices))


def make_term_question(rng: Random) -> Item:
    """A question for one house term by itself, with four to choose from: used in training rows only."""
    case = draw_case(rng)
    asked = rng.choice(tuple(_TERM_CHOICES))
    answer = _values(case)[asked]
    choices = [answer, *rng.sample([term for term in _TERM_CHOICES[asked] if term != answer], 3)]
    rng.shuffle(choices)
    text = f"Which {asked} term fits? A customer from {case.town} says: my {case.device} {case.trouble_text}."
    key = "|".join((asked, case.device, case.trouble_text, case.town))
    return Item("terms", "term", key, (user(text),), answer, tuple(choices))


def field_accuracy(answer: str, reference: str) -> float:
    """The share of the reference's fields that ``answer`` has with their value; 0.0 if no JSON object."""
    try:
        found = json.loads(answer)
    except json.JSONDecodeError:
        return 0.0
    wanted = json.loads(reference)
    if not isinstance(found, dict):
        return 0.0
    right = [bool(found.get(name) == value) for name, value in wanted.items()]
    return sum(right) / len(right)
