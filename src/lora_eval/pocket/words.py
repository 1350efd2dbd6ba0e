"""The vocabulary of the small world: short tuples of plain English words."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    "Anna Ben Carla David Ella Frank Greta Henry Iris Jack Kate Leo Mary Nick Olga Paul Rosa Sam Tina "
    "Victor Wendy Adam Beth Carl Dora Eric Fiona George Helen Ivan Jane Karl Laura Mark Nora Oscar Peter "
    "Ruth Simon Tom"
)
OBJECTS = _words(
    "cup hat book lamp key ball coin box rope bell pen bag drum kite map ring clock knife spoon brush "
    "candle mirror bottle basket blanket ladder hammer needle button ticket letter shoe glove scarf coat "
    "pillow chair table plate vase"
)
COLOURS = _words("red blue green yellow black white brown grey pink purple silver golden")
PLACES = _words(
    "kitchen garden school shop park station library harbour market museum church farm forest bridge "
    "tower office cellar stable bakery theatre"
)
FOODS = _words("bread cheese soup rice apples pears plums honey cake fish beans pasta")
ANIMALS = _words("cat dog horse goat sheep rabbit duck goose parrot turtle fox swan mouse pig")
JOBS = _words("baker farmer teacher doctor painter sailor tailor miller singer judge guard cook")
TOWNS = _words("Oldport Redhill Lakeside Stonebridge Greenford Westmoor Highfield Rivermouth Ashton Fairview")
HOBBIES = _words(
    "chess fishing dancing drawing hiking reading sewing singing swimming rowing gardening skating"
)
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
PLAIN_WORDS = _words(
    "stone river cloud window door tree leaf road hill wind rain snow star moon fire sand wave field wall "
    "roof glass paper metal wood wheel boat train truck cart motor beach valley meadow fence gate bird "
    "peach lemon bean pepper sugar salt"
)
DEVICES = _words("kettle toaster heater radio phone printer camera fan mixer iron clipper speaker")


def common_words() -> tuple[str, ...]:
    """All lower-case nouns that the word games use."""
    return tuple(sorted({*OBJECTS, *COLOURS, *PLACES, *ANIMALS, *PLAIN_WORDS, *DEVICES, *JOBS}))
