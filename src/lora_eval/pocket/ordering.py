"""Comparing two or three things, and the harder sorting of three or four."""

from random import Random

from .items import Item, user
from .words import common_words


def _words_with_own_initials(rng: Random, count: int) -> list[str]:
    while True:
        words = rng.sample(common_words(), count)
        if len({word[0] for word in words}) == count:
            return words


def _listed(things: list[str]) -> str:
    return ", ".join(things[:-1]) + " or " + things[-1]


def _two_numbers(rng: Random) -> Item:
    numbers = rng.sample(range(10, 100), 2)
    word, pick = rng.choice((("bigger", max), ("smaller", min)))
    question = f"Which number is {word}, {_listed([str(n) for n in numbers])}?"
    return Item("compare", "two_numbers", str(sorted(numbers)), (user(question),), str(pick(numbers)))


def _extreme(rng: Random) -> Item:
    numbers = rng.sample(range(10, 100), 3)
    word, pick = rng.choice((("biggest", max), ("smallest", min)))
    question = f"Which number is the {word}, {_listed([str(n) for n in numbers])}?"
    return Item("compare", "extreme", str(sorted(numbers)), (user(question),), str(pick(numbers)))


def _alphabet(rng: Random) -> Item:
    words = _words_with_own_initials(rng, 2)
    word, pick = rng.choice((("first", min), ("last", max)))
    question = f"Which word comes {word} in the alphabet, {_listed(words)}?"
    return Item("compare", "alphabet", str(sorted(words)), (user(question),), pick(words))


def _sort_numbers(rng: Random) -> Item:
    numbers = rng.sample(range(10, 100), rng.choice((3, 4)))
    answer = " ".join(str(number) for number in sorted(numbers))
    question = f"Sort these numbers: {' '.join(str(number) for number in numbers)}"
    return Item("sorting", "sort_numbers", str(sorted(numbers)), (user(question),), answer)


def _sort_words(rng: Random) -> Item:
    words = _words_with_own_initials(rng, 3)
    question = f"Sort these words by the alphabet: {' '.join(words)}"
    return Item("sorting", "sort_words", str(sorted(words)), (user(question),), " ".join(sorted(words)))


def make_compare(rng: Random) -> Item:
    """The bigger of two numbers, the extreme of three, or the first of two words in the alphabet."""
    return rng.choice((_two_numbers, _extreme, _alphabet))(rng)


def make_sorting(rng: Random) -> Item:
    """Three or four numbers, or three words, in order."""
    return rng.choice((_sort_numbers, _sort_words))(rng)
