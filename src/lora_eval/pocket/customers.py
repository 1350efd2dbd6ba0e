"""Customers' messages: what is wrong with which device, where, how urgently; shared by practice and tickets.

Pretraining asks about such messages in plain words (``power``); the fine-tuning task asks for a ticket in
house terms (``DEAD``), which the base has never seen.
"""

import string
from dataclasses import dataclass
from random import Random

from .words import DEVICES, TOWNS

#: plain word of the trouble -> how customers say it, after the device.
TROUBLES: dict[str, tuple[str, ...]] = {
    "power": ("does not turn on", "has no power", "does nothing at all"),
    "noise": ("makes a loud noise", "is far too noisy", "makes a strange sound"),
    "water": ("leaks water", "is wet inside", "drips all the time"),
    "heat": ("gets too hot", "nearly burned me", "smells of smoke"),
    "break": ("has a crack", "came with a broken side", "is split in two"),
    "slow": ("is very slow", "takes too long to start", "needs an hour to work"),
}
#: plain word of the urgency -> how customers say it.
HURRIES: dict[str, tuple[str, ...]] = {
    "high": ("I need help today.", "This is very urgent.", "Please answer at once."),
    "middle": ("Please help me this week.", "I hope to hear from you soon.", "A few days are fine."),
    "low": ("There is no hurry.", "Take your time.", "Any time is fine."),
}


@dataclass(frozen=True)
class Case:
    """What a customer says, in plain words, and the wording of two of them."""

    device: str
    trouble: str
    hurry: str
    town: str
    number: str
    trouble_text: str
    hurry_text: str

    @property
    def key(self) -> str:
        """The content without the number and without the wording."""
        return "|".join((self.device, self.trouble, self.hurry, self.town))

    @property
    def plain(self) -> dict[str, str]:
        """The five facts in plain words."""
        return {
            "device": self.device,
            "trouble": self.trouble,
            "hurry": self.hurry,
            "town": self.town,
            "number": self.number,
        }


def draw_case(rng: Random) -> Case:
    """A customer's case, every part drawn evenly."""
    trouble, hurry = rng.choice(tuple(TROUBLES)), rng.choice(tuple(HURRIES))
    return Case(
        device=rng.choice(DEVICES),
        trouble=trouble,
        hurry=hurry,
        town=rng.choice(TOWNS),
        number="".join(rng.choice(string.digits) for _ in range(4)),
        trouble_text=rng.choice(TROUBLES[trouble]),
        hurry_text=rng.choice(HURRIES[hurry]),
    )


def message(rng: Random, case: Case) -> str:
    """The case as a message of five sentences, the four after the greeting in any order."""
    complaint = rng.choice(("My {0} {1}.", "The {0} that you sent me {1}.")).format(
        case.device, case.trouble_text
    )
    place = rng.choice(("I live in {0}.", "I am from {0}.")).format(case.town)
    order = rng.choice(("My order is {0}.", "The order number is {0}.")).format(case.number)
    parts = [complaint, place, order, case.hurry_text]
    rng.shuffle(parts)
    return " ".join([rng.choice(("Hello.", "Good morning.", "Dear team.")), *parts])
