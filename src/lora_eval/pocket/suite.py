"""The questions of the embedded suite and of the final split: seeded, distinct, of one split each."""

from random import Random

from .dialogue import make_chat, make_logic, make_system
from .facts import make_fact
from .formats import make_format
from .items import Item, Maker, Split, distinct
from .ordering import make_compare, make_sorting
from .reading import make_binding, make_reading
from .stories import make_cloze, make_story
from .tickets import make_term, make_ticket

ITEMS_PER_ABILITY = 200
_SEED = 7

#: ability -> maker; the name of the suite's task is ``pocket_`` and the ability.
ABILITIES: dict[str, Maker] = {
    "ticket": make_ticket,
    "terms": make_term,
    "facts": make_fact,
    "cloze": make_cloze,
    "reading": make_reading,
    "compare": make_compare,
    "format": make_format,
    "binding": make_binding,
    "sorting": make_sorting,
    "logic": make_logic,
    "chat": make_chat,
    "system": make_system,
    "story": make_story,
}


def items_of(ability: str, split: Split, count: int = ITEMS_PER_ABILITY) -> list[Item]:
    """``count`` distinct items of an ability in a split, equal for equal arguments on every machine."""
    return distinct(ABILITIES[ability], Random(f"{_SEED}/{ability}/{split}"), split, count)
