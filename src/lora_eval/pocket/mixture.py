"""What the base model is trained on, as a seeded stream of chats and documents."""

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from .dialogue import make_chat, make_logic, make_system
from .facts import biography, biography_chat, make_fact, quiz_chat
from .formats import make_format
from .items import Maker, Message, assistant, draw
from .ordering import make_compare, make_sorting
from .practice import customer_chat, practice_chat
from .reading import BINDING, READING, passage_chat
from .stories import make_cloze, make_story


class Sample(NamedTuple):
    """One training sample: a chat (``messages``) or running text (``text``), never both."""

    messages: list[Message] | None
    text: str


def chat_of(maker: Maker, rng: Random) -> list[Message]:
    """A train item as a chat with its answer."""
    item = draw(maker, rng, "train")
    return [*item.messages, assistant(item.answer)]


def _from_items(maker: Maker) -> Callable[[Random], Sample]:
    return lambda rng: Sample(chat_of(maker, rng), "")


def _from_chat(make: Callable[[Random], list[Message]]) -> Callable[[Random], Sample]:
    return lambda rng: Sample(make(rng), "")


#: Shares of samples, not of tokens.
SHARES: dict[str, tuple[float, Callable[[Random], Sample]]] = {
    "biography": (10, lambda rng: Sample(None, biography(rng))),
    "biography_chat": (3, _from_chat(biography_chat)),
    "fact": (4, _from_items(make_fact)),
    "quiz": (5, _from_chat(quiz_chat)),
    "cloze": (3, _from_items(make_cloze)),
    "story": (3, lambda rng: Sample(None, draw(make_story, rng, "train").answer)),
    "reading": (13, _from_chat(lambda rng: passage_chat(rng, READING))),
    "binding": (10, _from_chat(lambda rng: passage_chat(rng, BINDING))),
    "compare": (12, _from_items(make_compare)),
    "sorting": (7, _from_items(make_sorting)),
    "format": (13, _from_items(make_format)),
    "logic": (6, _from_items(make_logic)),
    "chat": (4, _from_items(make_chat)),
    "system": (5, _from_items(make_system)),
    "practice": (11, _from_chat(practice_chat)),
    "customer": (9, _from_chat(customer_chat)),
}
_NAMES = tuple(SHARES)
_WEIGHTS = tuple(weight for weight, _ in SHARES.values())


def sample(rng: Random) -> Sample:
    """One training sample of the mixture."""
    return SHARES[rng.choices(_NAMES, _WEIGHTS)[0]][1](rng)
