"""Short stories with a need, a way and a fitting end: cloze items and running text."""

from random import Random

from .items import Item, user
from .words import ANIMALS, COLOURS, NAMES, OBJECTS, PLACES

#: need -> (how it is told, how it ends). The end follows from the need alone.
_NEEDS: dict[str, tuple[str, str]] = {
    "thirsty": ("was very thirsty", "drank a glass of cold water"),
    "hungry": ("was hungry after the long walk", "ate a big bowl of soup"),
    "cold": ("felt cold in the wind", "put on a warm coat"),
    "tired": ("was tired after work", "went to bed and slept well"),
    "wet": ("was wet from the rain", "dried off with a towel"),
    "dark": ("could not see in the dark", "lit a small candle"),
    "dirty": ("had dirty hands", "washed with soap"),
    "lost": ("was lost and alone", "looked at the map and found the way"),
    "late": ("was late for the train", "ran to the station very fast"),
    "bored": ("was bored at home", "read a funny book"),
    "ill": ("felt ill in the morning", "called the doctor for help"),
    "broken": ("had a broken shoe", "bought a new pair of shoes"),
    "locked": ("stood at a locked door", "opened the door with a key"),
    "sad": ("was sad about the news", "talked to a good friend"),
}
_PATHS = (
    "{n} walked slowly to the {p}.",
    "{n} was at the {p} with a {c} {o}.",
    "A {c} {o} lay near the {p}.",
    "The {a} looked at {n}.",
)
_CLOSINGS = ("Then {n} was happy.", "After that {n} felt better.", "It was a good day.")


def _parts(rng: Random) -> dict[str, str]:
    return {
        "n": rng.choice(NAMES),
        "p": rng.choice(PLACES),
        "c": rng.choice(COLOURS),
        "o": rng.choice(OBJECTS),
        "a": rng.choice(ANIMALS),
    }


def _opening(rng: Random, need: str, parts: dict[str, str]) -> str:
    middle = rng.choice(_PATHS).format(**parts)
    return f"{parts['n']} {_NEEDS[need][0]}. {middle}"


def make_cloze(rng: Random) -> Item:
    """A story without its end, and four ends of which one answers the need."""
    parts, need = _parts(rng), rng.choice(tuple(_NEEDS))
    wrong = rng.sample([name for name in _NEEDS if name != need], 3)
    choices = [f"{parts['n']} {_NEEDS[name][1]}." for name in (need, *wrong)]
    answer = choices[0]
    rng.shuffle(choices)
    opening = _opening(rng, need, parts)
    question = rng.choice(("Finish the story: {s}", "What happened next? {s}")).format(s=opening)
    return Item("cloze", "tale", f"{need}|{opening}", (user(question),), answer, tuple(choices))


def make_story(rng: Random) -> Item:
    """A whole story as running text (in ``answer``), for perplexity."""
    parts, need = _parts(rng), rng.choice(tuple(_NEEDS))
    opening = _opening(rng, need, parts)
    text = f"{opening} {parts['n']} {_NEEDS[need][1]}. {rng.choice(_CLOSINGS).format(**parts)}"
    return Item("story", "tale", f"{need}|{opening}", (), text)
