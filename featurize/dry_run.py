"""`cli featurize --dry-run`: what there is to do, and what it would cost. Nothing on disk changes.

Every input is read and hashed, as `featurize` does; a sample of those that are to be encoded is encoded, and timed.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

import numpy as np

from featurize.encoders.base import Encoder
from featurize.extract import Progress
from featurize.measure import SAMPLE_ROWS, feature_bytes, measure
from featurize.pipeline import configure, make_ready
from featurize.project import StoreRows
from featurize.segments import Raw, UnreadableInput
from featurize.sources import Source
from stores.feature import Feature, Status
from stores.record import check_same
from stores.store import Store

SEED = 0


@dataclass(frozen=True)
class Plan:
    """Rows by what would become of them, and the cost. seconds: `None` where nothing can be measured.

    to_encode: different inputs that pass through the encoder. sample: of these, how many were encoded and timed.
    stored: rows by their status now. n_bytes: what the whole feature takes in the store.
    """

    feature: str
    width: int
    rows: int
    stored: dict[str, int]
    unchanged: int
    to_encode: int
    copied: int
    absent: int
    unreadable: int
    sample: int
    seconds: float | None
    n_bytes: int


def plan(
    store: Store,
    source: Source,
    encoder: Encoder,
    *,
    save_as: str | None = None,
    replace: bool = False,
    split_name: str = "default",
    workers: int = 0,
    batch_size: int | None = None,
    batch_budget: int | None = None,
    dtype: str = "float16",
    frames: int = 0,
    device: str = "auto",
    precision: str = "fp32",
    retry_failed: bool = False,
    progress: Progress | None = None,
) -> Plan:
    """What `featurize.pipeline.featurize` would do with the same arguments; raises what it would raise beforehand."""
    configure(encoder, device, precision, batch_budget, frames)
    name = f"{encoder.modality}/{save_as or encoder.name}"
    rows = StoreRows(store, source, encoder.modality)
    feature = store.feature(name) if store.has_feature(name) and not replace else None
    started = time.perf_counter()
    if encoder.must_fit:
        make_ready(encoder, store, rows, name, split_name, replace)
    fitting = time.perf_counter() - started
    if feature is not None:
        check_same(name, feature.record, encoder.record.to_dict())
    outcomes, wanted = _outcomes(store.n_segments, rows, feature, retry_failed, progress)
    sample = _sample(rows, wanted)
    cost = measure(encoder, sample, n_frames=frames, most=batch_size) if sample else None
    seconds = None if cost is None else cost.seconds(len(wanted), workers) + fitting
    status = feature.status if feature is not None else np.full(store.n_segments, Status.PENDING)
    return Plan(
        feature=name,
        width=encoder.width,
        rows=store.n_segments,
        stored={kind.name.lower(): int((status == kind).sum()) for kind in Status},
        unchanged=outcomes["unchanged"],
        to_encode=len(wanted),
        copied=outcomes["copied"],
        absent=outcomes["absent"],
        unreadable=outcomes["unreadable"],
        sample=cost.sample if cost else 0,
        seconds=0.0 if not wanted else seconds,
        n_bytes=feature_bytes(store.n_segments, encoder.width, np.dtype(dtype).itemsize, frames),
    )


def _outcomes(
    n_rows: int, rows: StoreRows, feature: Feature | None, retry_failed: bool, progress: Progress | None
) -> tuple[Counter[str], list[int]]:
    """How many rows would be what, and which must be encoded: one for each different input (as `featurize.extract`)."""
    status = feature.status if feature is not None else np.zeros(n_rows, np.uint8)
    hashes = [row.tobytes() for row in feature.read_input_hashes()] if feature is not None else [b""] * n_rows
    stands = {Status.PRESENT, Status.ABSENT} | (set() if retry_failed else {Status.FAILED})
    known = {hashes[row] for row in np.flatnonzero(status == Status.PRESENT)}
    outcomes: Counter[str] = Counter()
    wanted = []
    for row in range(n_rows):
        if progress is not None:
            progress(row + 1, n_rows)
        try:
            raw = rows.raw(row)
            digest = b"" if raw is None else raw.digest()
        except UnreadableInput:
            outcomes["unreadable"] += 1
            continue
        if raw is None:
            outcomes["absent"] += 1
        elif digest == hashes[row] and status[row] in stands:
            outcomes["unchanged"] += 1
        elif digest in known:
            outcomes["copied"] += 1
        else:
            known.add(digest)
            wanted.append(row)
    return outcomes, wanted


def _sample(rows: StoreRows, wanted: list[int]) -> list[Raw]:
    chosen = np.random.default_rng(SEED).permutation(len(wanted))[:SAMPLE_ROWS]
    raws = [rows.raw(wanted[number]) for number in sorted(chosen.tolist())]
    return [raw for raw in raws if raw is not None]
