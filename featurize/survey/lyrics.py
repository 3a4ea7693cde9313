"""Lyrics: which say nothing, how long they are, in which script, and which stand in several songs.

The script is that of most letters, by their Unicode names (LATIN, CYRILLIC, CJK, …). It needs no library and tells what
matters most: whether a tokenizer and a model of English can read them at all. It does not tell English from French.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from functools import lru_cache
from typing import Any

import numpy as np

from featurize.segments import RawText, UnreadableInput
from featurize.sources import Source
from featurize.survey.found import Survey
from featurize.text import clean_text

MOST_WORDS = 350  # about the 512 tokens that a text model takes at once
# UTF-8 read as Latin-1 or Windows-1252, and what was lost when decoding
WRONG_ENCODING = re.compile("Ã[\x80-\xbf]|â\x80|â€|�")


def survey_lyrics(survey: Survey, source: Source) -> np.ndarray:
    """Tables and problems of all lyrics. Returns bool (N,): who has one that says something."""
    there = np.zeros(len(source), bool)
    empty: list[str] = []
    garbled: list[str] = []
    long: list[str] = []
    n_words: list[int] = []
    scripts: dict[str, list[str]] = defaultdict(list)
    songs_of: dict[str, dict[str, str]] = defaultdict(dict)  # text -> group -> an id
    for row in range(len(source)):
        try:
            raw = source.raw(row, "text")
        except UnreadableInput:  # ingest's check names it
            continue
        name = repr(source.ids[row])
        if not isinstance(raw, RawText):
            if source.flags["text"][row]:
                empty.append(name)
            continue
        text = clean_text(raw.text)
        if text is None:
            empty.append(f"{name}: {raw.text.strip()[:30]!r}")
            continue
        there[row] = True
        n_words.append(len(text.split()))
        long += [f"{name}: {n_words[-1]:,} words"] if n_words[-1] > MOST_WORDS else []
        garbled += [name] if WRONG_ENCODING.search(text) else []
        scripts[script_of(text)].append(name)
        songs_of[text].setdefault(str(source.groups[row]), name)
    if not len(n_words) and not empty:
        return there
    _tables(survey, n_words, scripts)
    remedy = "They count as missing. Fill them, or leave the cell blank: then it is meant."
    survey.warn("lyric that is empty, or only says that there is none", empty, remedy, note=True)
    survey.warn("lyric with signs of a wrong encoding", garbled, "Save the file or table as UTF-8.")
    if scripts:
        usual = max(scripts, key=lambda script: len(scripts[script]))
        others = [f"{name} ({script})" for script, names in scripts.items() if script != usual for name in names]
        remedy = "deberta-v3-base knows English only; for others name a multilingual model in model.text_encoder."
        survey.warn(f"lyric that is not in {usual} script", others, remedy, note=True)
    remedy = f"Models read them in windows of about {MOST_WORDS} words, at that much more time. Are these whole songs?"
    survey.warn(f"lyric of more than {MOST_WORDS} words", long, remedy, note=True)
    shared = [" = ".join(by_group.values()) for by_group in songs_of.values() if len(by_group) > 1]
    remedy = (
        "A split by group puts twins into different parts. The same song twice? Give them one group; see cli leaks."
    )
    survey.warn("lyric that stands in several groups", shared, remedy)
    return there


def script_of(text: str) -> str:
    """Of most of its letters; `none` where it has no letter."""
    counts = Counter(_script_of_letter(letter) for letter in text if letter.isalpha())
    return counts.most_common(1)[0][0] if counts else "none"


@lru_cache(maxsize=4096)
def _script_of_letter(letter: str) -> str:
    word = unicodedata.name(letter, "UNKNOWN").split()[0].partition("-")[0]
    return "LATIN" if word in ("FEMININE", "MASCULINE", "FULLWIDTH") else word


def _tables(survey: Survey, n_words: list[int], scripts: dict[str, list[str]]) -> None:
    if not n_words:
        return
    rows: list[dict[str, Any]] = [
        {"script": script, "segments": len(names), "share": f"{len(names) / len(n_words):.1%}", "e.g.": names[0]}
        for script, names in sorted(scripts.items(), key=lambda item: -len(item[1]))
    ]
    low, middle, high, most = np.quantile(n_words, [0.05, 0.5, 0.95, 1]).round().astype(int).tolist()
    spread = f"5% below {low:,}, 5% above {high:,}, longest {most:,}"
    title = f"lyrics by script: {len(n_words):,}, of {middle:,} words in the middle ({spread})"
    survey.table("lyrics", title, rows)
