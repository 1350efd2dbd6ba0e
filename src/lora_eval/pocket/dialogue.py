"""Yes or no questions, chats of two turns, and chats under a system instruction."""

from random import Random

from .items import Item, assistant, system, user
from .words import ANIMALS, COLOURS, FOODS, NAMES, OBJECTS, PLACES, common_words


def _membership(rng: Random) -> Item:
    name, things = rng.choice(NAMES), rng.sample(OBJECTS, 3)
    asked = rng.choice((things[0], rng.choice(things[:2]), things[2], things[2]))
    text = f"{name} has a {things[0]} and a {things[1]}. Does {name} have a {asked}?"
    return Item("logic", "membership", text, (user(text),), "no" if asked == things[2] else "yes")


def _inside(rng: Random) -> Item:
    thing, (near, far) = rng.choice(OBJECTS), rng.sample(PLACES, 2)
    holder = rng.choice(("box", "bag", "basket"))
    asked = rng.choice((near, far))
    text = f"The {thing} is in the {holder}. The {holder} is in the {near}. Is the {thing} in the {asked}?"
    return Item("logic", "inside", text, (user(text),), "yes" if asked == near else "no")


def _all_are(rng: Random) -> Item:
    animal, (colour, other), name = rng.choice(ANIMALS), rng.sample(COLOURS, 2), rng.choice(NAMES)
    asked = rng.choice((colour, other))
    text = f"Every {animal} is {colour}. {name} has a {animal}. Is the pet of {name} {asked}?"
    return Item("logic", "all_are", text, (user(text),), "yes" if asked == colour else "no")


def make_logic(rng: Random) -> Item:
    """A yes or no question about a passage, both answers equally likely."""
    return rng.choice((_membership, _inside, _all_are))(rng)


def _introduction(rng: Random) -> Item:
    name, food, colour = rng.choice(NAMES), rng.choice(FOODS), rng.choice(COLOURS)
    first = f"My name is {name}. I like {food} and the colour {colour}."
    question, answer = rng.choice(
        (("What is my name?", name), ("What do I like to eat?", food), ("Which colour do I like?", colour))
    )
    turns = (user(first), assistant(f"Hello {name}."), user(question))
    return Item("chat", "introduction", first, turns, answer)


def _add_word(rng: Random) -> Item:
    words = rng.sample(common_words(), 3)
    start = " ".join(words[:2])
    turns = (user(f"Repeat: {start}"), assistant(start), user(f"Now add {words[2]}."))
    return Item("chat", "add_word", " ".join(words), turns, " ".join(words))


def _again_reversed(rng: Random) -> Item:
    words = rng.sample(common_words(), 2)
    text = " ".join(words)
    turns = (user(f"Repeat: {text}"), assistant(text), user("Now in reverse order."))
    return Item("chat", "reverse", text, turns, " ".join(words[::-1]))


def make_chat(rng: Random) -> Item:
    """A second user turn that can only be answered from the first."""
    return rng.choice((_introduction, _add_word, _again_reversed))(rng)


def make_system(rng: Random) -> Item:
    """A user turn whose answer has the form that the system turn asked for.

    The kinds are those of ``formats.py``, so that one operation on the same words has one content key.
    """
    words = rng.sample(common_words(), 2)
    text = " ".join(words)
    last = rng.choice(("please", "thanks", "stop", "over"))
    kind, instruction, answer = rng.choice(
        (
            ("upper", "Answer in upper case.", text.upper()),
            ("end_word", f"End every answer with {last}.", f"{text} {last}"),
            ("reverse", "Answer in reverse order.", " ".join(words[::-1])),
            ("repeat", "Say everything twice.", f"{text} {text}"),
        )
    )
    return Item("system", kind, text, (system(instruction), user(f"Repeat: {text}")), answer)
