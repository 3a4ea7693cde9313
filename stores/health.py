"""Is a feature degenerate? Constant columns, zero vectors, equal vectors, and vectors far from all others.

Only present rows are looked at, in two passes, block by block: beyond some dozens of bytes a row, memory does not grow
with N. Medians come from at most `SAMPLE_ROWS` rows, evenly spread.

What the thresholds rest on, N from 100 to 10^5:

* Healthy: Gaussian, low-rank, grouped, unit-length, exponential and half-zero vectors of 64 to 768 columns, and
  `mel_stats`, `midi_stats` and `lsa` on 120 real clips and on the demo songs: no warning. Heavy-tailed vectors
  (Student's t with 4 degrees of freedom; log-normal lengths, sigma 0.5): fewer than one feature in 100 gets a warning,
  large ones now and then a note.
* 1% or 5% of the audio at a wrong scale (16-bit integers taken for floats, or divided by 32,768 once too often): the
  distance finds every row in `mel_stats`, the norm none. Of 10% it finds 9 in 10, of 20% next to none: so many odd rows
  pass for the normal spread.
* 5% of the vectors 20 times too short: the norm finds every row. The distance misses them unless the mean is large.
* Audio at half or double its sample rate is not found: to `mel_stats` it is music within the spread of other music.
  Coarser mistakes, 44,100 Hz taken for 8,000 or the reverse, are found in some data and missed in other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stores.feature import Feature

MIN_ROWS = 20  # with fewer, nothing can be told
SAMPLE_ROWS = 2048
BLOCK_BYTES = 16 << 20
EXAMPLES = 3

# An instrument that nobody plays is a constant column: a fifth of `midi_stats` on the demo songs.
CONSTANT_SHARE = 1 / 3
ALMOST_ALL = 0.9  # of the columns of an encoder without weights: most keys of a piano never sound
# Below these shares it is a note: a few silent or odd segments stand in every large data set.
ODD_SHARE = 0.001
EQUAL_SHARE = 0.01
# Sections of one song do repeat: 15% of the demo's MIDI segments equal another of their song, from another time.
EQUAL_WITHIN_GROUPS_SHARE = 0.5

# Distance: root mean square of a row's robust z-scores, over the median row's. Sigmas are those of its logarithm.
FAR_SIGMAS = 4.0
FAR_RATIO = 2.5
Z_LIMIT = 10.0  # a single odd number does not make an odd row
# Norm, over or under the median. By chance, vectors of rank 8 come 7.7 times too short, and single numbers 23 sigmas.
NORM_SIGMAS = 8.0
NORM_RATIO = 8.0
NORM_MIN_COLUMNS = 32
MAD_TO_SIGMA = 1.4826  # of a Gaussian

Severity = Literal["warning", "note"]
Measure = Callable[[np.ndarray], np.ndarray]  # float32 (n, D) -> (n,)


@dataclass(frozen=True)
class Finding:
    """count: of `of` columns or present rows. examples: ids, or column numbers. message: one line, with what to do."""

    kind: str
    severity: Severity
    count: int
    of: int
    examples: list[str]
    message: str


def findings(feature: Feature, ids: np.ndarray, groups: np.ndarray) -> list[Finding]:
    """What looks wrong with a feature's vectors, warnings first. ids, groups: text (N,). Raises `DamagedStore`."""
    seen = _Seen(feature)
    if len(seen.rows) < MIN_ROWS:
        return []
    odd, far = _outliers(feature, seen)
    found = [
        _constant_columns(seen),
        _about_rows(
            "zero vectors",
            seen.rows[seen.zero],
            "are all zero, which is not the same as absent; look at these inputs.",
            seen,
            ids,
            groups,
        ),
        _equal_vectors(seen, ids, groups),
        _about_rows(
            "far vectors",
            far,
            "lie far from all others; compare the level and the sample rate of these inputs with the others'.",
            seen,
            ids,
            groups,
        ),
        _about_rows(
            "odd norms",
            odd,
            f"are over {NORM_RATIO:g} times longer or shorter than the others; were some of them scaled or normalized?",
            seen,
            ids,
            groups,
        ),
    ]
    return sorted((finding for finding in found if finding), key=lambda finding: finding.severity == "note")


class _Seen:
    """What the first pass over the present rows brings home."""

    def __init__(self, feature: Feature):
        self.rows = np.flatnonzero(feature.present)
        self.width = feature.width
        self.has_weights = bool(feature.record["weights"])
        n = len(self.rows)
        self.zero = np.zeros(n, bool)
        self.vector_keys = np.zeros(n, np.int64)  # equal vectors have equal keys
        self.input_keys = np.zeros(n, np.int64)
        sampled = np.zeros(n, bool)
        sampled[np.linspace(0, n - 1, min(n, SAMPLE_ROWS)).astype(int)] = True
        sample = [np.zeros((0, self.width), np.float32)]
        lowest = np.full(self.width, np.inf, np.float32)
        highest = -lowest
        for here, block, vectors in _blocks(feature, self.rows):
            self.zero[here] = ~vectors.any(axis=1)
            # 64 bits: at 10^6 rows two different vectors share a key with probability 3e-8
            self.vector_keys[here] = [hash(vector.tobytes()) for vector in vectors]
            hashes = feature.read_input_hashes(block)[self.rows[here] - block.start]
            self.input_keys[here] = np.ascontiguousarray(hashes[:, :8]).view(np.int64)[:, 0]
            alive = ~self.zero[here]
            sample.append(vectors[sampled[here] & alive])
            lowest = np.minimum(lowest, vectors[alive].min(axis=0, initial=np.inf))
            highest = np.maximum(highest, vectors[alive].max(axis=0, initial=-np.inf))
        self.constant = np.flatnonzero(lowest >= highest)  # where a zero vector hides nothing
        self.sample = np.concatenate(sample)  # float32 (at most SAMPLE_ROWS, D), none of them zero


def _blocks(feature: Feature, present: np.ndarray) -> Iterator[tuple[slice, range, np.ndarray]]:
    """Which of the `present` rows, the consecutive rows they stand in, and their vectors, float32 (n, D)."""
    chunks = feature.chunks()
    step = max(1, BLOCK_BYTES // (4 * feature.width * feature.chunk_rows))
    for first in range(0, len(chunks), step):
        block = range(chunks[first].start, chunks[min(first + step, len(chunks)) - 1].stop)
        start, stop = np.searchsorted(present, [block.start, block.stop]).tolist()
        if start < stop:
            vectors = feature.read_vectors(block)[present[start:stop] - block.start]
            yield slice(start, stop), block, vectors.astype(np.float32)


def _constant_columns(seen: _Seen) -> Finding | None:
    count, share = len(seen.constant), len(seen.constant) / seen.width
    if not count:
        return None
    severity: Severity = "warning" if share > (CONSTANT_SHARE if seen.has_weights else ALMOST_ALL) else "note"
    examples = [str(column) for column in seen.constant[:EXAMPLES]]
    remedy = {"warning": "check the encoder's options and weights", "note": "fine where they count what never occurs"}
    message = f"{count:,} of {seen.width:,} columns never vary, e.g. {', '.join(examples)}; {remedy[severity]}."
    return Finding("constant columns", severity, count, seen.width, examples, message)


def _equal_vectors(seen: _Seen, ids: np.ndarray, groups: np.ndarray) -> Finding | None:
    """Rows that share a vector, but not the input, with a row of another group; or of their own group, if most do."""
    judged = ~seen.zero & (seen.input_keys != 0)  # where the key is 0 nobody knows the input
    rows = seen.rows[judged]
    of_group = np.unique(groups[rows], return_inverse=True)[1]
    of_vector, counts = np.unique(seen.vector_keys[judged], return_inverse=True, return_counts=True)[1:]
    repeats = _n_different(seen.input_keys[judged], of_vector) > 1
    across = repeats & (_n_different(of_group, of_vector) > 1)
    most_repeat = repeats[of_vector].sum() > EQUAL_WITHIN_GROUPS_SHARE * len(seen.rows)
    suspects = repeats if most_repeat else across
    if not suspects.any():
        return None
    equal = np.flatnonzero(suspects[of_vector])
    most_frequent_first = equal[np.argsort(-counts[of_vector[equal]], kind="stable")]
    what = (
        f"equal another vector though their inputs differ, {counts[suspects].max():,} of them one and the same;"
        " are these inputs empty or silent? If not, the encoder does not read them."
    )
    return _about_rows("equal vectors", rows[most_frequent_first], what, seen, ids, groups, note_below=EQUAL_SHARE)


def _n_different(values: np.ndarray, of_class: np.ndarray) -> np.ndarray:
    """How many different values each class has. of_class: (n,) of 0, 1, …, none left out."""
    order = np.lexsort((values, of_class))
    values, of_class = values[order], of_class[order]
    is_new = np.ones(len(order), bool)
    is_new[1:] = (of_class[1:] != of_class[:-1]) | (values[1:] != values[:-1])
    return np.bincount(of_class[is_new])


def _outliers(feature: Feature, seen: _Seen) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are much longer or shorter than the others, and rows that are far for another reason. None is zero."""
    if len(seen.sample) < MIN_ROWS:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    distance = _distance_from(seen.sample)
    median_distance, sigma_distance = _middle(distance(seen.sample))
    median_norm, sigma_norm = _middle(_norm(seen.sample))
    far, odd = [], []
    for here, _, vectors in _blocks(feature, seen.rows):
        rows = seen.rows[here]
        alive = ~seen.zero[here]
        beyond = _log(distance(vectors)) - median_distance
        is_far = alive & (beyond > max(FAR_SIGMAS * sigma_distance, np.log(FAR_RATIO)))
        beyond = np.abs(_log(_norm(vectors)) - median_norm)
        is_odd = alive & (beyond > max(NORM_SIGMAS * sigma_norm, np.log(NORM_RATIO)))
        is_odd &= feature.width >= NORM_MIN_COLUMNS
        far.append(rows[is_far & ~is_odd])
        odd.append(rows[is_odd])
    return np.concatenate(odd), np.concatenate(far)


def _distance_from(sample: np.ndarray) -> Measure:
    """Root mean square of z-scores about the sample's medians. Columns that do not vary in the sample are left out."""
    centre, deviation = np.median(sample, axis=0), sample.std(axis=0, dtype=np.float64)
    sigma = MAD_TO_SIGMA * np.median(np.abs(sample - centre), axis=0)
    sigma = np.where(sigma > 0, sigma, deviation).astype(np.float32)  # 0: more than half of the column is one value
    varies = deviation > 0

    def distance(vectors: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # what overflows is clipped, too
            z = np.clip((vectors[:, varies] - centre[varies]) / sigma[varies], -Z_LIMIT, Z_LIMIT)
        root: np.ndarray = np.sqrt(np.einsum("ij,ij->i", z, z) / max(1, varies.sum()))
        return root

    return distance


def _norm(vectors: np.ndarray) -> np.ndarray:
    norm: np.ndarray = np.linalg.norm(vectors.astype(np.float64), axis=1)
    return norm


def _middle(values: np.ndarray) -> tuple[float, float]:
    """Median and robust sigma of the logarithms; an infinite sigma where the typical value is zero."""
    if np.median(values) == 0:
        return 0.0, np.inf
    logs = _log(values)
    median = float(np.median(logs))
    return median, MAD_TO_SIGMA * float(np.median(np.abs(logs - median)))


def _log(values: np.ndarray) -> np.ndarray:
    logs: np.ndarray = np.log(np.maximum(values, np.finfo(np.float64).tiny))
    return logs


def _about_rows(
    kind: str,
    rows: np.ndarray,
    what: str,
    seen: _Seen,
    ids: np.ndarray,
    groups: np.ndarray,
    note_below: float = ODD_SHARE,
) -> Finding | None:
    if not len(rows):
        return None
    examples = [str(segment_id) for segment_id in ids[rows[:EXAMPLES]]]
    n_groups = len(np.unique(groups[rows]))
    message = (
        f"{len(rows):,} of {len(seen.rows):,} vectors ({n_groups:,} {'group' if n_groups == 1 else 'groups'},"
        f" e.g. {', '.join(map(repr, examples))}) {what}"
    )
    severity: Severity = "note" if len(rows) < note_below * len(seen.rows) else "warning"
    return Finding(kind, severity, len(rows), len(seen.rows), examples, message)
