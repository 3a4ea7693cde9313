"""Short lyrics whose words lean towards one side of the valence axis.

A segment has three lines. Every line has two slots or more for a feeling, a quality or a deed, and each slot takes
a word of the wanted sign, sometimes a neutral one, sometimes one of the opposite sign. Things and places come from
the two themes of the song, so that songs differ in vocabulary whatever their mood. Nothing here knows the arousal.
"""

from dataclasses import dataclass

import numpy as np

LINES_PER_SEGMENT = 3
# Some songs say the opposite of what they feel. These lyrics can only be corrected by the mode of the music.
LYRIC_FOLLOWS_VALENCE = 0.97
# Shares of the slots that take a word of the lyric's sign, and of those that take a neutral one; the rest contradict.
AGREEING_SHARE = 0.84
NEUTRAL_SHARE = 0.09


FEELINGS = {
    "positive": "hope joy laughter wonder comfort delight grace love kindness trust warmth courage sunlight honey",
    "neutral": "silence weather music paper water traffic distance memory",
    "negative": "sorrow grief envy bitterness shame hatred poison ruin despair hunger misery malice fear betrayal",
}
QUALITIES = {
    "positive": "golden gentle lucky tender faithful shining generous blessed lovely precious honest radiant",
    "neutral": "wooden narrow distant ordinary painted folded northern borrowed",
    "negative": "broken bitter wasted hollow cruel rotten lonely wicked haunted cursed rusted worthless",
}
DEEDS = {
    "positive": "treasured mended welcomed embraced kissed rescued forgave praised cherished healed",
    "neutral": "carried counted followed watched named measured crossed remembered",
    "negative": "buried shattered burned betrayed abandoned mourned poisoned wrecked despised stole",
}
THEMES = {
    "sea": ("anchor sail lantern rope shell compass oar net", "harbour shore pier lighthouse bay island"),
    "city": (
        "window taxi ticket mirror doorway streetlamp balcony elevator",
        "avenue station market corner bridge square",
    ),
    "road": ("engine map suitcase radio wheel signpost jacket headlight", "highway motel border canyon crossing diner"),
    "home": (
        "kettle table blanket staircase candle photograph clock piano",
        "kitchen garden attic hallway porch cellar",
    ),
    "field": ("fence apple plough sparrow scarecrow basket ribbon horse", "meadow orchard valley river hillside barn"),
    "sky": (
        "star feather comet kite cloud telescope aeroplane satellite",
        "rooftop tower mountain horizon summit airfield",
    ),
    "winter": (
        "coat sleigh snowflake chimney scarf icicle glove firewood",
        "forest cabin lake village churchyard ridge",
    ),
    "stage": (
        "curtain guitar costume spotlight melody violin poster drum",
        "theatre ballroom alley festival arcade café",
    ),
}
TIMES = (
    "at dawn",
    "after midnight",
    "in November",
    "on a Sunday",
    "before the rain",
    "at closing time",
    "every summer",
    "all week long",
    "this evening",
    "since you called",
    "a year from now",
    "until the train comes",
)
TEMPLATES = (
    "There is {feeling} and {feeling2} in every {thing}",
    "We {deed} the {quality} {thing} by the {place}",
    "I found {feeling} and {feeling2} at the {place}",
    "You {deed} my {quality} {thing} {time}",
    "Nothing but {feeling} over the {quality} {place}",
    "Your {quality} {thing}, your {quality2} {feeling}",
    "Somebody {deed} the {thing}, somebody sang of {feeling}",
    "Take the {quality} {thing} and leave me the {feeling}",
    "Out by the {quality} {place} we spoke of {feeling}",
    "They {deed} us {time} and named it {feeling}",
    "What {quality} {feeling} comes to the {place}",
    "My {quality} {thing}, your {quality2} {place}",
    "This {thing} has known {feeling}, this {place} has known {feeling2}",
    "And {time} I sing to the {quality} {place} of {feeling}",
)


@dataclass(frozen=True)
class Vocabulary:
    """What is particular to one song, whatever its mood."""

    things: list[str]
    places: list[str]
    templates: list[str]


def song_vocabulary(rng: np.random.Generator) -> Vocabulary:
    """Words of two themes, and eight templates for lines."""
    themes = [THEMES[name] for name in rng.choice(sorted(THEMES), size=2, replace=False)]
    return Vocabulary(
        things=[word for things, _ in themes for word in things.split()],
        places=[word for _, places in themes for word in places.split()],
        templates=[str(template) for template in rng.choice(TEMPLATES, size=8, replace=False)],
    )


def write_lyric(vocabulary: Vocabulary, positive: bool, rng: np.random.Generator) -> str:
    """The lines of a segment; most, not all, say what its valence is."""
    follows = bool(rng.random() < LYRIC_FOLLOWS_VALENCE)
    templates = rng.choice(vocabulary.templates, size=LINES_PER_SEGMENT, replace=False)
    return "\n".join(_line(str(template), vocabulary, positive == follows, rng) for template in templates) + "\n"


def _line(template: str, vocabulary: Vocabulary, positive: bool, rng: np.random.Generator) -> str:
    feeling, feeling2 = _two_words(FEELINGS, positive, rng)
    quality, quality2 = _two_words(QUALITIES, positive, rng)
    deed, _ = _two_words(DEEDS, positive, rng)
    line = template.format(
        feeling=feeling,
        feeling2=feeling2,
        quality=quality,
        quality2=quality2,
        deed=deed,
        thing=rng.choice(vocabulary.things),
        place=rng.choice(vocabulary.places),
        time=rng.choice(TIMES),
    )
    return line[0].upper() + line[1:]


def _two_words(words: dict[str, str], positive: bool, rng: np.random.Generator) -> tuple[str, str]:
    first = _word(words, positive, rng)
    second = _word(words, positive, rng)
    while second == first:
        second = _word(words, positive, rng)
    return first, second


def _word(words: dict[str, str], positive: bool, rng: np.random.Generator) -> str:
    chance = rng.random()
    if chance < AGREEING_SHARE:
        sign = "positive" if positive else "negative"
    elif chance < AGREEING_SHARE + NEUTRAL_SHARE:
        sign = "neutral"
    else:
        sign = "negative" if positive else "positive"
    return str(rng.choice(words[sign].split()))
