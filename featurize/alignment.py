"""How audio and MIDI of each segment fit in time: measured once, kept in the store, applied where MIDI is read.

Columns of the store's `alignment` table, a row a segment:

    verdict          "together", "apart", "unclear", "failed", or "" where a segment lacks one of the two
    offset_seconds   what must be added to the MIDI's times to meet the audio's; NaN where nothing was measured
    lead, score      how much better the MIDI fits than its surrogates, and its correlation (`featurize.align`)
    reason           of the verdict, in words
    input_hash       digest of both inputs: what has not changed is not measured again

The facts say what is done about it: `correct` shifts the MIDI of segments that belong together, `exclude` treats that
of segments that do not as absent. What that changes is encoded anew by the next `cli featurize`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from featurize.segments import DIGEST_BYTES, RawAudio, RawMidi, UnreadableInput
from featurize.workers import Failure, Preparer
from stores.base import STRING
from stores.store import Store

VERDICTS = {True: "together", False: "apart", None: "unclear"}
LEAST_SHIFT_SECONDS = 0.02  # the measurement is no finer: less is left as it is
VERSION = 1  # of the measurement; raise it when `featurize.align` gives other numbers

Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Correction:
    """shift_seconds: float64 (N,), 0 for none. excluded: bool (N,)."""

    shift_seconds: np.ndarray
    excluded: np.ndarray

    @classmethod
    def of(cls, store: Store) -> Correction | None:
        """What the store's alignment asks for; `None` where nothing was measured."""
        measured = store.alignment()
        if measured is None:
            return None
        columns, facts = measured
        verdict, offset = columns["verdict"], columns["offset_seconds"]
        shifts = facts["correct"] & (verdict == "together") & (np.abs(np.nan_to_num(offset)) >= LEAST_SHIFT_SECONDS)
        return cls(np.where(shifts, np.nan_to_num(offset), 0.0), np.asarray(facts["exclude"] & (verdict == "apart")))

    def apply(self, row: int, raw: RawMidi) -> RawMidi | None:
        """The row's MIDI, shifted as was measured; `None` where it is left out."""
        if self.excluded[row]:
            return None
        return replace(raw, shift_seconds=raw.shift_seconds + float(self.shift_seconds[row]))


def align(
    store: Store,
    audio: Any,
    midi: Any,
    *,
    correct: bool = False,
    exclude: bool = False,
    max_offset_seconds: float = 2.0,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Columns:
    """Measure every segment that has both, and keep the result and what to do about it in the store.

    audio, midi: raw inputs by row of the store (`StoreRows`), MIDI as stated. Returns the columns.
    """
    facts = {"version": VERSION, "max_offset_seconds": max_offset_seconds}
    columns = _columns(store, facts)
    digests: dict[int, bytes] = {}

    def jobs() -> Iterator[tuple[int, tuple[RawAudio, RawMidi]]]:
        for row in range(store.n_segments):
            if progress is not None:
                progress(row + 1, store.n_segments)
            try:
                pair = audio.raw(row), midi.raw(row)
                digest = b"" if None in pair else _combined(pair[0].digest(), pair[1].digest())
            except UnreadableInput as error:
                _put(columns, row, "failed", reason=str(error))
                continue
            if not digest:
                _put(columns, row, "")
            elif columns["input_hash"][row].tobytes() != digest:
                digests[row] = digest
                yield row, pair

    with Preparer(Measure(max_offset_seconds), workers) as preparer:
        for row, found in preparer.run(jobs()):
            if isinstance(found, Failure):
                _put(columns, row, "failed", reason=found.reason)
            else:
                verdict, offset, lead, score, reason = found
                _put(columns, row, verdict, offset, lead, score, reason)
                columns["input_hash"][row] = np.frombuffer(digests[row], np.uint8)
    store.write_alignment(columns, {**facts, "correct": correct, "exclude": exclude})
    return columns


@dataclass(frozen=True)
class Measure:
    """In a worker: decode both, compare. Gives verdict, offset, lead, score and reason, as in the columns."""

    max_offset_seconds: float

    def prepare(self, pair: tuple[RawAudio, RawMidi]) -> tuple[str, float, float, float, str]:
        """Verdict, offset in seconds, lead, score, and the reason where there is no offset."""
        from featurize.align import RATE_HZ, measure
        from featurize.audio import load_mono
        from featurize.midi import read_midi

        raw_audio, raw_midi = pair
        found = measure(load_mono(raw_audio, RATE_HZ), RATE_HZ, read_midi(raw_midi), self.max_offset_seconds)
        return VERDICTS[found.aligned], found.offset_seconds, found.lead, found.score, found.reason


def _columns(store: Store, facts: dict[str, Any]) -> Columns:
    """What was measured before in the same way, or empty columns."""
    n = store.n_segments
    measured = store.alignment()
    if measured is not None and all(measured[1].get(key) == value for key, value in facts.items()):
        return measured[0]
    return {
        "verdict": np.zeros(n, STRING),
        "offset_seconds": np.full(n, np.nan),
        "lead": np.full(n, np.nan),
        "score": np.full(n, np.nan),
        "reason": np.zeros(n, STRING),
        "input_hash": np.zeros((n, DIGEST_BYTES), np.uint8),
    }


def _put(
    columns: Columns,
    row: int,
    verdict: str,
    offset: float = np.nan,
    lead: float = np.nan,
    score: float = np.nan,
    reason: str = "",
) -> None:
    values = {"verdict": verdict, "offset_seconds": offset, "lead": lead, "score": score, "reason": reason}
    for name, value in values.items():
        columns[name][row] = value
    columns["input_hash"][row] = 0


def _combined(first: bytes, second: bytes) -> bytes:
    from hashlib import blake2b

    return blake2b(first + second, digest_size=DIGEST_BYTES).digest()
