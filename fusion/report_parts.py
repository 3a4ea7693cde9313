"""What a report shows beside the run's numbers: the map, texts, audio, and how much of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Projection = Literal["pca", "tsne", "none"]
MAX_POINTS = 20_000
CLIPS = 24  # 2 to 3 s of work, up to 1 MB


@dataclass(frozen=True)
class ReportParts:
    """audio: `None` where media are files of their own; parquet blobs are read from the start, which can take minutes.

    clips: how many segments' audio is embedded, the worst mistakes first.
    """

    projection: Projection = "pca"
    texts: bool = True
    audio: bool | None = None
    health: bool = True
    max_points: int = MAX_POINTS
    clips: int = CLIPS


PLAIN = ReportParts(projection="none", texts=False, audio=False, health=False)
