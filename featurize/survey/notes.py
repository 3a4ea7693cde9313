"""MIDI: how many notes a segment has, by reading a sample; in another process, for a file may be anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from featurize.limits import Limits
from featurize.segments import RawMidi, UnreadableInput
from featurize.sources import Source
from featurize.survey.audio import SEED
from featurize.survey.found import Survey
from featurize.workers import Failure, Preparer

TIMEOUT_SECONDS = 30.0


def survey_notes(survey: Survey, source: Source, present: np.ndarray, sample: int) -> None:
    """present: bool (N,). sample: so many segments are read."""
    rows = np.flatnonzero(present)
    if not len(rows):
        return
    if source.has_blobs("midi"):
        chosen = rows[:sample]
        how = f"the first {len(chosen):,}"
    else:
        chosen = np.sort(np.random.default_rng(SEED).choice(rows, size=min(sample, len(rows)), replace=False))
        how = f"{len(chosen):,} drawn with seed {SEED}"
    counts: list[int] = []
    n_drums = 0
    empty: list[str] = []
    broken: list[str] = []

    def raws() -> Iterator[tuple[int, Any]]:
        for row in chosen.tolist():
            try:
                raw = source.raw(row, "midi")
            except UnreadableInput:  # the file is not there: ingest's check says so
                continue
            if isinstance(raw, RawMidi):
                yield row, raw

    with Preparer(_CountNotes(), workers=1, limits=Limits(row_seconds=TIMEOUT_SECONDS), light=True) as preparer:
        for row, found in preparer.run(raws()):
            name = repr(source.ids[row])
            if isinstance(found, Failure):
                broken.append(f"{name}: {found.reason}")
            elif not found[0]:
                empty.append(name)
            else:
                counts.append(found[0])
                n_drums += found[1]
    if counts:
        low, middle, high = np.quantile(counts, [0.05, 0.5, 0.95]).round().astype(int).tolist()
        facts = {"read": len(counts), "5%": low, "median": middle, "95%": high, "most": max(counts)}
        survey.table("notes", f"notes of a segment, of a sample ({how})", [{**facts, "with drums": n_drums}])
    of_sample = f"(of {len(chosen):,} read)"
    remedy = "They count as absent. Do start_seconds and end_seconds fit the MIDI file (data.midi_is)?"
    survey.warn(f"MIDI without a note in its segment {of_sample}", empty, remedy, note=True)
    survey.warn(f"MIDI that cannot be read {of_sample}", broken, "These rows will be marked failed.")


@dataclass(frozen=True)
class _CountNotes:
    def prepare(self, raw: RawMidi) -> tuple[int, bool]:
        from featurize.midi import read_midi

        score = read_midi(raw)
        return len(score), bool(score.is_drum.any())
