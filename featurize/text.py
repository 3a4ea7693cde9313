"""Lyric text before any encoder: normalization, and what counts as no text at all."""

from __future__ import annotations

import re
import unicodedata

# A lyric that only says that there is none, as lyric sites and subtitle files write it.
_INSTRUMENTAL = re.compile(r"[\s\W_]*(instrumental|no lyrics|n/a|none|null)?[\s\W_]*", re.IGNORECASE)


def clean_text(text: str) -> str | None:
    """NFC, line breaks kept, blanks folded; `None` where nothing is sung (empty, `[Instrumental]`, dots and dashes)."""
    text = unicodedata.normalize("NFC", text).replace("\0", "")
    lines = (" ".join(line.split()) for line in text.splitlines())
    cleaned = "\n".join(line for line in lines if line)
    return None if _INSTRUMENTAL.fullmatch(cleaned) else cleaned
