"""The people of the world: who they are, documents that tell it, and questions about it.

Every fact is stated in documents. Questions are asked in training about the facts of the train split only;
a held-out fact is one that was read but never asked about in any wording.
"""

from functools import cache
from random import Random

from .items import Item, Message, assistant, split_of, user
from .words import ANIMALS, COLOURS, FOODS, HOBBIES, JOBS, TOWNS

_PEOPLE = 280
_SEED = 20261124

VALUES: dict[str, tuple[str, ...]] = {
    "job": JOBS,
    "town": TOWNS,
    "pet": ANIMALS,
    "food": FOODS,
    "colour": COLOURS,
    "hobby": HOBBIES,
}
_STATEMENTS: dict[str, tuple[str, ...]] = {
    "job": ("{p} is a {v}.", "{p} works as a {v}.", "The job of {p} is {v}."),
    "town": ("{p} lives in {v}.", "The home of {p} is in {v}.", "The town of {p} is {v}."),
    "pet": ("{p} has a {v}.", "{p} keeps a {v} as a pet.", "The pet of {p} is a {v}."),
    "food": ("{p} likes to eat {v}.", "The favourite food of {p} is {v}.", "{p} eats {v} every day."),
    "colour": ("{p} likes the colour {v}.", "The favourite colour of {p} is {v}.", "{p} always wears {v}."),
    "hobby": ("{p} enjoys {v}.", "The hobby of {p} is {v}.", "{p} loves {v}."),
}
_QUESTIONS: dict[str, tuple[str, ...]] = {
    "job": ("What is the job of {p}?", "What work does {p} do?"),
    "town": ("Where does {p} live?", "What is the town of {p}?"),
    "pet": ("Which pet does {p} have?", "What is the pet of {p}?"),
    "food": ("What does {p} like to eat?", "What is the favourite food of {p}?"),
    "colour": ("Which colour does {p} like?", "What is the favourite colour of {p}?"),
    "hobby": ("What does {p} enjoy?", "What is the hobby of {p}?"),
}


@cache
def people() -> tuple[str, ...]:
    """The invented names of all people, none of them an English name."""
    rng = Random(_SEED)
    names: list[str] = []
    while len(names) < _PEOPLE:
        name = (
            rng.choice("BDFGKLMNPRSTVZ")
            + rng.choice("aeiou")
            + rng.choice(("l", "m", "n", "r", "v", "z", "lk", "nd"))
        )
        name += rng.choice(("a", "o", "ik", "en", "us", "ya", "ot", "im"))
        if name not in names:
            names.append(name)
    return tuple(names)


@cache
def world() -> dict[str, dict[str, str]]:
    """Each person's attributes: ``world()[person][attribute]``."""
    rng = Random(_SEED + 1)
    return {person: {name: rng.choice(values) for name, values in VALUES.items()} for person in people()}


def _key(person: str, attribute: str) -> str:
    return f"{person}.{attribute}"


def make_fact(rng: Random) -> Item:
    """A question about one fact, with four choices of the attribute's own kind."""
    person, attribute = rng.choice(people()), rng.choice(tuple(VALUES))
    answer = world()[person][attribute]
    others = rng.sample([value for value in VALUES[attribute] if value != answer], 3)
    choices = [answer, *others]
    rng.shuffle(choices)
    question = rng.choice(_QUESTIONS[attribute]).format(p=person)
    return Item("facts", "fact", _key(person, attribute), (user(question),), answer, tuple(choices))


def biography(rng: Random) -> str:
    """Two to six statements about one person, in any order and wording."""
    person = rng.choice(people())
    attributes = rng.sample(tuple(VALUES), rng.randint(2, 6))
    return " ".join(
        rng.choice(_STATEMENTS[name]).format(p=person, v=world()[person][name]) for name in attributes
    )


def biography_chat(rng: Random) -> list[Message]:
    """A chat that asks for a whole person and is answered with statements."""
    text = biography(rng)
    person = next(name for name in people() if name in text.split())
    return [user(rng.choice(("Tell me about {p}.", "Who is {p}?")).format(p=person)), assistant(text)]


def quiz_chat(rng: Random) -> list[Message]:
    """Up to three questions about a person, all of the train split; empty where the person has none."""
    person = rng.choice(people())
    names = [name for name in VALUES if split_of(f"fact|{_key(person, name)}") == "train"]
    rng.shuffle(names)
    turns: list[Message] = []
    for name in names[:3]:
        turns.append(user(rng.choice(_QUESTIONS[name]).format(p=person)))
        turns.append(assistant(world()[person][name]))
    return turns
