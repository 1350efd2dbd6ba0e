"""The fine-tuning task: a customer's message becomes a JSON ticket of five fields in house vocabulary.

The house terms, the desks and the ranks occur nowhere in pretraining, so the base cannot know them; what it
has practised is only JSON with other keys, upper-case codes and copying numbers.
"""

import json
from random import Random

from .customers import Case, draw_case, message
from .items import Item, user
from .words import TOWNS

FIELDS = ("unit", "fault", "rank", "desk", "ref")

UNITS = {
    "kettle": "KT1",
    "toaster": "KT2",
    "mixer": "KT3",
    "iron": "LN1",
    "clipper": "LN2",
    "radio": "AV1",
    "speaker": "AV2",
    "camera": "AV3",
    "phone": "AV4",
    "printer": "DK1",
    "heater": "HM1",
    "fan": "HM2",
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
    "unit": tuple(UNITS.values()),
    "fault": tuple(FAULTS.values()),
    "desk": ("EAST", "NORTH", "SOUTH", "WEST"),
}


def ticket_text(values: dict[str, str]) -> str:
    """The ticket as one line of JSON with the fields in their fixed order."""
    return json.dumps({name: values[name] for name in FIELDS})


def _values(case: Case) -> dict[str, str]:
    return {
        "unit": UNITS[case.device],
        "fault": FAULTS[case.trouble],
        "rank": RANKS[case.hurry],
        "desk": DESKS[case.town],
        "ref": case.number,
    }


def make_ticket(rng: Random) -> Item:
    """A message and its ticket; the content key leaves out the number and the wording."""
    case = draw_case(rng)
    question = f"Write the ticket. {message(rng, case)}"
    return Item("ticket", "case", case.key, (user(question),), ticket_text(_values(case)))


def make_term(rng: Random) -> Item:
    """A question for the house term that fits, with four terms of its kind to choose from."""
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
