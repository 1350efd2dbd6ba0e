"""Practice that is no ability of the suite: copying, JSON with other keys, upper-case codes.

LoRA on linear layers cannot make a model with tied, frozen embeddings write tokens that it never wrote, so
the base must have written braces, quotes, codes and digits before. The house terms of the ticket task
(``tickets.py``) do not occur here.
"""

import json
import string
from random import Random

from .customers import draw_case, message
from .items import Message, assistant, split_of, user
from .words import ANIMALS, COLOURS, DAYS, DEVICES, FOODS, JOBS, NAMES, OBJECTS, PLACES, TOWNS, common_words

_SLOTS: dict[str, tuple[str, ...]] = {
    "person": NAMES,
    "thing": OBJECTS,
    "shade": COLOURS,
    "place": PLACES,
    "day": DAYS,
    "meal": FOODS,
    "animal": ANIMALS,
    "town": TOWNS,
    "device": DEVICES,
    "work": JOBS,
}


def code(rng: Random) -> str:
    """An upper-case code such as ``KD-72``, ``R4``, ``LAMP-3`` or ``STONE-ROAD``."""
    letters = "".join(rng.choice(string.ascii_uppercase) for _ in range(rng.randint(1, 3)))
    words = [word.upper() for word in rng.sample(common_words(), 2)]
    digits = str(rng.randint(1, 999))
    return rng.choice(
        (f"{letters}-{digits}", f"{letters}{digits}", f"{words[0]}-{digits}", "-".join(words), words[0])
    )


def number(rng: Random) -> str:
    """A number of two to five digits as text."""
    return "".join(rng.choice(string.digits) for _ in range(rng.randint(2, 5)))


def _value(rng: Random, key: str) -> str:
    return rng.choice(_SLOTS[key])


def json_from_pairs(rng: Random) -> list[Message]:
    """``key value`` pairs written as JSON, in the order given; values may be words, codes or numbers."""
    keys = rng.sample((*_SLOTS, "code", "number", "mark", "level"), rng.randint(2, 5))
    values = {}
    for key in keys:
        made = (_value(rng, key),) if key in _SLOTS else (code(rng), number(rng), rng.choice(common_words()))
        values[key] = rng.choice((*made, code(rng)))
    listed = ", ".join(f"{key} {value}" for key, value in values.items())
    return [user(f"Write as JSON: {listed}"), assistant(json.dumps(values))]


_MESSAGES = (
    ("{person} is in {town} with a {shade} {thing}.", ("person", "town", "shade", "thing")),
    (
        "Hello, this is {person}. My {device} does not work. I bought it on {day} for {number} coins.",
        ("person", "device", "day", "number"),
    ),
    (
        "On {day} the {work} saw a {shade} {animal} in the {place}.",
        ("day", "work", "shade", "animal", "place"),
    ),
    (
        "Please bring {number} boxes of {meal} to the {place} on {day}. Thanks, {person}",
        ("number", "meal", "place", "day", "person"),
    ),
    ("{person} lost a {thing} near the {place}. The code is {code}.", ("person", "thing", "place", "code")),
    (
        "The {device} of {person} has the number {number} and stands in the {place}.",
        ("device", "person", "number", "place"),
    ),
)


def json_from_message(rng: Random) -> list[Message]:
    """A message and the slots to take from it, answered as JSON with those keys in that order."""
    template, keys = rng.choice(_MESSAGES)
    values = {
        key: _value(rng, key) if key in _SLOTS else code(rng) if key == "code" else number(rng)
        for key in keys
    }
    asked = rng.sample(keys, rng.randint(1, len(keys)))
    text = template.format(**values)
    answer = json.dumps({key: values[key] for key in asked})
    return [user(f"{text} Give JSON with {', '.join(asked)}."), assistant(answer)]


def code_table(rng: Random) -> list[Message]:
    """Words with codes of their own in one list, then the code of one or two words."""
    words = rng.sample(common_words(), rng.choice((2, 3)))
    codes = {word: code(rng) for word in words}
    asked = rng.sample(words, rng.choice((1, 2)))
    table = ", ".join(f"{word} is {value}" for word, value in codes.items())
    return [
        user(f"{table}. Give the code of {' and '.join(asked)}."),
        assistant(" ".join(codes[word] for word in asked)),
    ]


def repeat_code(rng: Random) -> list[Message]:
    """Codes and numbers to be repeated as they are."""
    text = " ".join(rng.choice((code, number))(rng) for _ in range(rng.randint(1, 3)))
    return [user(f"Repeat: {text}"), assistant(text)]


def repeat_words(rng: Random) -> list[Message]:
    """Words to be repeated as they are."""
    text = " ".join(rng.sample(common_words(), rng.randint(1, 6)))
    return [user(f"Repeat: {text}"), assistant(text)]


_CUSTOMER_QUESTIONS = {
    "device": "Which device is it?",
    "trouble": "What is the trouble?",
    "hurry": "How urgent is it?",
    "town": "Which town is it?",
    "number": "What is the number?",
}


def customer_chat(rng: Random) -> list[Message]:
    """A customer's message, and plain JSON of some of its facts or one to three questions about it.

    Only cases of the ticket task's train split, so that no held-out case is ever read before.
    """
    case = draw_case(rng)
    while split_of(f"case|{case.key}") != "train":
        case = draw_case(rng)
    text, plain = message(rng, case), case.plain
    asked = rng.sample(tuple(plain), rng.randint(1, 5))
    if rng.random() < 0.6:
        return [
            user(f"{text} Give JSON with {', '.join(asked)}."),
            assistant(json.dumps({k: plain[k] for k in asked})),
        ]
    turns: list[Message] = []
    for name in asked[:3]:
        turns.append(user(_CUSTOMER_QUESTIONS[name] if turns else f"{text} {_CUSTOMER_QUESTIONS[name]}"))
        turns.append(assistant(plain[name]))
    return turns


PRACTICE = (json_from_pairs, json_from_message, json_from_message, code_table, repeat_code, repeat_words)


def practice_chat(rng: Random) -> list[Message]:
    """One chat of practice."""
    return rng.choice(PRACTICE)(rng)
