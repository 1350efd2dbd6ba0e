"""Following a format: the same words given back in the form that was asked for."""

from random import Random

from .items import Item, user
from .words import common_words


def _words(rng: Random, low: int, high: int) -> list[str]:
    return rng.sample(common_words(), rng.randint(low, high))


def _item(kind: str, words: list[str], question: str, answer: str) -> Item:
    return Item("format", kind, " ".join(words), (user(question),), answer)


def _end_word(rng: Random) -> Item:
    words, last = _words(rng, 2, 4), rng.choice(("please", "thanks", "stop", "over"))
    question = f"Repeat the words and end with {last}: {' '.join(words)}"
    return _item("end_word", words, question, " ".join([*words, last]))


def _reverse(rng: Random) -> Item:
    words = _words(rng, 2, 3)
    return _item(
        "reverse", words, f"Say these words in reverse order: {' '.join(words)}", " ".join(words[::-1])
    )


def _repeat(rng: Random) -> Item:
    words = _words(rng, 1, 2)
    times, name = rng.choice(((2, "twice"), (3, "three times")))
    text = " ".join(words)
    return _item("repeat", words, f"Say this {name}: {text}", " ".join([text] * times))


def _upper(rng: Random) -> Item:
    words = _words(rng, 2, 2)
    return _item("upper", words, f"Write this in upper case: {' '.join(words)}", " ".join(words).upper())


def _list(rng: Random) -> Item:
    words = _words(rng, 2, 4)
    answer = "\n".join(f"{number}. {word}" for number, word in enumerate(words, 1))
    return _item("list", words, f"Make a list of {len(words)} items: {' '.join(words)}", answer)


def _commas(rng: Random) -> Item:
    words = _words(rng, 3, 4)
    return _item("commas", words, f"Put commas between the words: {' '.join(words)}", ", ".join(words))


_KINDS = (_end_word, _reverse, _repeat, _upper, _list, _commas)


def make_format(rng: Random) -> Item:
    """Words to give back reversed, repeated, in upper case, as a list, with commas or an end word."""
    return rng.choice(_KINDS)(rng)
