"""Short passages and questions whose answers stand in them."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from .items import Item, Message, assistant, split_of, user
from .words import COLOURS, DAYS, DEVICES, NAMES, OBJECTS, PLACES


@dataclass(frozen=True)
class Passage:
    """A text and all the questions that can be asked about it, with their answers.

    ``key`` holds what the text says, without its wording.
    """

    kind: str
    key: str
    text: str
    questions: tuple[tuple[str, str], ...]


def _key(*parts: object) -> str:
    return "|".join(str(part) for part in parts)


def chain(rng: Random) -> Passage:
    """A thing handed on by two or three people: who had it first, who has it now, what it is."""
    people, thing = rng.sample(NAMES, rng.choice((3, 3, 4))), rng.choice(OBJECTS)
    handed = rng.choice(("gave", "handed", "passed"))
    steps = [f"{a} {handed} the {thing} to {b}." for a, b in pairwise(people)]
    questions = (
        (f"Who has the {thing} now?", people[-1]),
        (f"Who had the {thing} first?", people[0]),
        ("What was given away?", thing),
    )
    return Passage("chain", _key(people, thing), " ".join(steps), questions)


def complaint(rng: Random) -> Passage:
    """A customer's message: name, device, day and place of purchase."""
    name, device, day, place = rng.choice(NAMES), rng.choice(DEVICES), rng.choice(DAYS), rng.choice(PLACES)
    fault = rng.choice(("is broken", "does not work", "makes a loud noise"))
    parts = [f"my {device} {fault}.", f"I bought it on {day}.", f"I use it at the {place}."]
    text = f"Hello, I am {name} and {parts[0]} {parts[1]} {parts[2]}"
    questions = (
        ("What is the name of the customer?", name),
        ("Which device is it?", device),
        ("On which day was it bought?", day),
        ("Where is it used?", place),
    )
    return Passage("complaint", _key(name, device, day, place), text, questions)


def two_people(rng: Random) -> Passage:
    """Two people, each with a coloured thing, the things different in kind."""
    (a, b), (x, y), (c, d) = rng.sample(NAMES, 2), rng.sample(OBJECTS, 2), rng.sample(COLOURS, 2)
    verb = rng.choice(("has", "bought", "found"))
    questions = (
        (f"Which colour is the {x}?", c),
        (f"Which colour is the {y}?", d),
        (f"Who {verb} the {x}?", a),
        (f"Who {verb} the {y}?", b),
    )
    return Passage(
        "two_people", _key(a, c, x, b, d, y), f"{a} {verb} a {c} {x}. {b} {verb} a {d} {y}.", questions
    )


def last_place(rng: Random) -> Passage:
    """One person who goes from place to place."""
    name, places = rng.choice(NAMES), rng.sample(PLACES, rng.choice((2, 3)))
    steps = [f"{name} went to the {places[0]}."] + [
        f"Then {name} went to the {place}." for place in places[1:]
    ]
    questions = ((f"Where is {name} now?", places[-1]), (f"Where did {name} go first?", places[0]))
    return Passage("last_place", _key(name, places), " ".join(steps), questions)


def bind_places(rng: Random) -> Passage:
    """Two to four people, each in a place of their own: the name decides which place is asked for."""
    count = rng.choice((2, 3, 3, 4))
    people, places = rng.sample(NAMES, count), rng.sample(PLACES, count)
    said = [f"{name} is at the {place}." for name, place in zip(people, places, strict=True)]
    questions = [(f"Where is {name}?", sentence) for name, sentence in zip(people, said, strict=True)]
    return Passage("bind_places", _key(people, places), " ".join(said), tuple(questions))


def bind_things(rng: Random) -> Passage:
    """Two to four things, each of its own colour: the thing decides which colour is asked for."""
    count = rng.choice((2, 3, 3, 4))
    things, colours = rng.sample(OBJECTS, count), rng.sample(COLOURS, count)
    said = [f"The {thing} is {colour}." for thing, colour in zip(things, colours, strict=True)]
    questions = [
        (f"Which colour is the {thing}?", sentence) for thing, sentence in zip(things, said, strict=True)
    ]
    return Passage("bind_things", _key(things, colours), " ".join(said), tuple(questions))


def bind_reverse(rng: Random) -> Passage:
    """Two or three people in places: the place decides which person is asked for."""
    count = rng.choice((2, 3))
    people, places = rng.sample(NAMES, count), rng.sample(PLACES, count)
    text = " ".join(f"{name} is at the {place}." for name, place in zip(people, places, strict=True))
    questions = [(f"Who is at the {place}?", name) for name, place in zip(people, places, strict=True)]
    return Passage("bind_reverse", _key(people, places), text, tuple(questions))


READING: tuple[Callable[[Random], Passage], ...] = (chain, complaint, two_people, last_place)
BINDING: tuple[Callable[[Random], Passage], ...] = (bind_places, bind_things, bind_reverse)


def _item(ability: str, passage: Passage, rng: Random) -> Item:
    question, answer = rng.choice(passage.questions)
    return Item(ability, passage.kind, passage.key, (user(f"{passage.text} {question}"),), answer)


def make_reading(rng: Random) -> Item:
    """One question about a passage of a kind that needs no choice between like things."""
    return _item("reading", rng.choice(READING)(rng), rng)


def make_binding(rng: Random) -> Item:
    """One question about a passage that says the same of two to four things."""
    return _item("binding", rng.choice(BINDING)(rng), rng)


def passage_chat(rng: Random, makers: tuple[Callable[[Random], Passage], ...]) -> list[Message]:
    """A training chat: a passage of the train split with its questions, up to four, one after another.

    Several questions to one passage are what made reading appear at all in the feasibility runs.
    """
    passage = rng.choice(makers)(rng)
    while split_of(f"{passage.kind}|{passage.key}") != "train":
        passage = rng.choice(makers)(rng)
    asked = rng.sample(passage.questions, min(len(passage.questions), rng.choice((1, 2, 3, 4))))
    turns: list[Message] = []
    for index, (question, answer) in enumerate(asked):
        turns.append(user(f"{passage.text} {question}" if index == 0 else question))
        turns.append(assistant(answer))
    return turns
