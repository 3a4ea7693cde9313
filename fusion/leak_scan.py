"""What a split lets through: twins across its parts, groups that it cuts, features and labels that know their group.

Stored vectors, input hashes, groups and labels are looked at, and nothing is written. Encoders that saw labels of
what is held out are `fusion.leaks`' affair; `fusion.leak_scores` tells what leaking would buy.

*Held-out* rows are those of val and test. Only present rows are compared; vectors that are all zero are left to
`stores.health`. The *twin* of a held-out row is one training row: the first with an equal input, else the first with an
equal vector, else the nearest, where it is near-equal.

*Near-equal* is judged by the angle after the standardization that fusions see: by the chord d between unit vectors,
whose cosine is 1 − d²/2. Train tells what is usual between groups: the distances from its distinct vectors to the
nearest of another group. A held-out row is near-equal to its nearest training row below both of

* `NEAR_RATIO` of their median, which decides in many dimensions;
* the distance at which chance alone would bring `CHANCE_FINDS` finds in all, which decides in few. Nearest-neighbour
  distances in an evenly filled space follow a Weibull distribution whose shape is the intrinsic dimension (Levina and
  Bickel 2005, "Maximum likelihood estimation of intrinsic dimension", section 2). The median and the 90% quantile fix
  it, so that nearly half of train may have twins of its own.

What `NEAR_RATIO` rests on, in shares of that median. `lsa`, `mel_stats` and `midi_stats` on 120 real clips and on the
demo songs: no row of val or test comes nearer to train than 0.34. `lsa` of the real lyrics: without its first line, a
lyric is 0.01 to 0.12 away from itself, without a tenth of its lines 0.04 to 0.29. `mel_stats` of the real clips: cut
half a second later 0.13 to 0.43, in Ogg Vorbis of the lowest quality 0.11 to 0.41, at half the level 0.33 to 0.83. So
lyrics that differ in a line are found, of clips encoded or cut anew a third, of clips at another level none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from featurize.config import TargetConfig
from featurize.errors import SplitError
from featurize.labels import MAX_CLASSES, strata
from featurize.splits import fold_names
from fusion.model import Standardize
from stores.feature import Feature
from stores.health import EQUAL_SHARE, MIN_ROWS
from stores.store import Part, Split, Store

NEAR_RATIO = 0.25
CHANCE_FINDS = 0.001
SAMPLE_ROWS = 2048  # training rows, evenly spread, that tell what is usual
QUERY_ROWS, CANDIDATE_ROWS = 1024, 4096  # of one matrix product: 16 MB
COLUMNS_AT_ONCE = 64
MIN_GROUPS = 10  # of several rows each; in fewer, a column of two values never varies by chance
EXAMPLES = 3
HELD_OUT = (Part.VAL, Part.TEST)
TWINS = {  # the surest first
    "equal inputs": "an equal input",
    "equal vectors": "an equal vector",
    "near-equal vectors": "a near-equal vector",
}

Severity = Literal["warning", "note"]


@dataclass(frozen=True)
class Finding:
    """about: a split, feature or label. count: of `of` groups, rows or columns. message: one line, with what to do.

    examples: pairs of ids. Of twins a held-out row and the one in train, of a cut group a row of either part.
    """

    kind: str
    severity: Severity
    about: str
    count: int
    of: int
    message: str
    examples: list[tuple[str, str]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def scan(
    store: Store, features: Sequence[str], splits: Sequence[Split], labels: Mapping[str, np.ndarray] | None = None
) -> list[Finding]:
    """What leaks on these splits, or would on one by segments: about the splits, each feature, each label.

    splits: one, or the folds of a set; what the folds let through is added up. labels: values (N,) or (N, K) by name;
    `scannable_labels` where `None`. Raises `StoreError` on an unknown feature, `DamagedStore` on bad bytes.
    """
    labels = scannable_labels(store) if labels is None else labels
    ids, groups = store.ids, _codes(store.groups)
    classes = {name: _codes(strata(values)) for name, values in labels.items()}
    found = [_cut_groups(split, ids, store.groups) for split in splits]
    cut = any(finding is not None for finding in found)
    for name in features:
        seen = _Seen(store.feature(name), groups)
        found += _twins_found(seen, splits, ids, classes, cut)
        found += _groups_known(seen, splits, cut)
    kept = np.any([split.parts != Part.LEFT_OUT for split in splits], axis=0)
    found += [_constant_label(name, _codes(values)[kept], groups[kept]) for name, values in labels.items()]
    return [finding for finding in found if finding is not None]


def opened_splits(store: Store, name: str) -> list[Split]:
    """The split of that name, or its folds, also where they cut groups or lack a part. Raises `SplitError`."""
    names = fold_names(name, store.splits())
    if not names:
        listed = ", ".join(store.splits()) or "none"
        raise SplitError(f"The store has no split {name!r}; it has {listed}. `cli split` makes one.")
    return [store.split(split) for split in names]


def scannable_labels(store: Store, targets: Sequence[TargetConfig] = ()) -> dict[str, np.ndarray]:
    """The targets' labels, (N,) or (N, K); without targets those of the store with 2 to `MAX_CLASSES` classes."""
    labels = {}
    for target in targets:
        columns = [store.label(column) for column in target.columns or [target.column or target.name]]
        labels[target.name] = np.stack(columns, axis=1) if len(columns) > 1 else columns[0]
    if not targets:
        labels = {name: store.label(name) for name in store.label_names()}
        labels = {name: values for name, values in labels.items() if 1 <= _codes(strata(values)).max() < MAX_CLASSES}
    return labels


def _codes(values: np.ndarray) -> np.ndarray:
    """int64 (N,): equal numbers for equal texts, numbers or rows, from 0 on without gaps; -1 for "" and NaN."""
    is_text = values.dtype.kind == "T"
    known = np.asarray(values != "") if is_text else ~np.isnan(values.reshape(len(values), -1)).any(axis=1)
    codes = np.full(len(values), -1, np.int64)
    codes[known] = np.unique(values[known], axis=None if is_text else 0, return_inverse=True)[1].ravel()
    return codes


def _cut_groups(split: Split, ids: np.ndarray, groups: np.ndarray) -> Finding | None:
    names, codes = np.unique(groups, return_inverse=True)
    in_part = {part: np.bincount(codes[split.rows(part)], minlength=len(names)) > 0 for part in (Part.TRAIN, *HELD_OUT)}
    n_parts = np.sum(list(in_part.values()), axis=0)
    cut = np.flatnonzero(n_parts > 1)
    if not len(cut):
        return None
    held_out = np.concatenate([split.rows(part) for part in HELD_OUT])
    exposed = int(in_part[Part.TRAIN][codes[held_out]].sum())
    examples = []
    for group in cut[:EXAMPLES].tolist():
        row_in = {split.parts[row]: str(ids[row]) for row in np.flatnonzero(codes == group)[::-1].tolist()}
        first, *_, last = [row_in[part] for part in in_part if part in row_in]
        examples.append((last, first))
    listed = ", ".join(repr(str(name)) for name in names[cut[:EXAMPLES]])
    message = (
        f"{len(cut):,} of {int((n_parts > 0).sum()):,} groups stand in several parts, e.g. {listed};"
        f" {exposed:,} of {len(held_out):,} val and test rows have their group in train. Make one by groups: cli split"
    )
    facts = {"groups": names[cut].tolist(), "held_out_rows": exposed}
    return Finding("cut groups", "warning", split.name, len(cut), int((n_parts > 0).sum()), message, examples, facts)


class _Seen:
    """One feature, read once. rows: the present ones. inputs, equal: codes (N,) of equal inputs and equal vectors."""

    def __init__(self, feature: Feature, groups: np.ndarray):
        self.name = feature.name
        self.groups = groups
        self.present = feature.present
        self.vectors = feature.vectors[:]
        self.inputs = self._codes_of(feature.read_input_hashes())
        digests = np.zeros((len(groups), 16), np.uint8)
        for row in np.flatnonzero(self.present & self.vectors.any(axis=1)).tolist():
            content = (self.vectors[row] + 0).tobytes()  # + 0: there is a negative zero
            digests[row] = np.frombuffer(hashlib.blake2b(content, digest_size=16).digest(), np.uint8)
        self.equal = self._codes_of(digests)

    def _codes_of(self, digests: np.ndarray) -> np.ndarray:
        """uint8 (N, 16) to codes; -1 where nothing is present or the digest is zero, which stands for none."""
        known = self.present & digests.any(axis=1)
        codes = np.full(len(digests), -1, np.int64)
        words = np.ascontiguousarray(digests[known]).view(np.uint64)
        codes[known] = np.unique(words, axis=0, return_inverse=True)[1].ravel()
        return codes

    def rows(self, split: Split, *parts: Part) -> np.ndarray:
        """The present rows of some parts, ascending."""
        return np.flatnonzero(self.present & np.isin(split.parts, parts))

    def unit_vectors(self, rows: np.ndarray, fitted_on: np.ndarray) -> np.ndarray:
        """float32 (n, D): standardized by the statistics of some rows, of unit length; zero where all are average."""
        standardize = Standardize(self.vectors.shape[1])
        standardize.fit(torch.from_numpy(self.vectors[fitted_on]))
        return _of_unit_length(standardize(torch.from_numpy(self.vectors[rows])).numpy())

    def twins(self, split: Split) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """For each kind of twin: held-out rows, and the training row of each."""
        train, held_out = self.rows(split, Part.TRAIN), self.rows(split, *HELD_OUT)
        for kind, codes in zip(TWINS, (self.inputs, self.equal), strict=False):
            twins = _first_equal(codes, held_out, train)
            yield kind, held_out[twins >= 0], twins[twins >= 0]
            held_out = held_out[twins < 0]
        held_out, train = held_out[self.equal[held_out] >= 0], train[self.equal[train] >= 0]
        twins = self._near_equal(held_out, train)
        yield [*TWINS][-1], held_out[twins >= 0], twins[twins >= 0]

    def _near_equal(self, held_out: np.ndarray, train: np.ndarray) -> np.ndarray:
        """The near-equal training row of each held-out row, -1 where there is none."""
        train = train[np.sort(np.unique(self.equal[train], return_index=True)[1])]
        none = np.full(len(held_out), -1, np.int64)
        if len(train) < MIN_ROWS or not len(held_out) or len(np.unique(self.groups[train])) < 2:
            return none
        known = self.unit_vectors(train, train)
        sample = np.linspace(0, len(train) - 1, min(len(train), SAMPLE_ROWS)).astype(int)
        of_group = self.groups[train]
        _, usual = nearest(known[sample], known, (of_group[sample], of_group))
        at, distance = nearest(self.unit_vectors(held_out, train), known)
        return np.where(distance < near_limit(usual, len(held_out)), train[at], none)


def _first_equal(codes: np.ndarray, rows: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """For each row the first of the candidates with its code, -1 where none has it, or the row has no code."""
    first = np.full(codes.max(initial=-1) + 2, -1, np.int64)  # the last place is that of -1
    first[codes[candidates[::-1]]] = candidates[::-1]
    first[-1] = -1
    twins: np.ndarray = first[codes[rows]]
    return twins


def nearest(
    queries: np.ndarray, candidates: np.ndarray, apart: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """For each unit vector (n, D) the nearest of (m, D): numbers (n,), the first of equals; and chords, float64 (n,).

    apart: codes (n,) and (m,); what has the same is not compared. Where nothing is left: -1 and infinity.
    """
    best = np.full(len(queries), -np.inf, np.float32)
    at = np.full(len(queries), -1, np.int64)
    distance = np.full(len(queries), np.inf)
    for start in range(0, len(queries), QUERY_ROWS):
        here = slice(start, start + QUERY_ROWS)
        for first in range(0, len(candidates), CANDIDATE_ROWS):
            there = slice(first, first + CANDIDATE_ROWS)
            cosines = queries[here] @ candidates[there].T
            if apart is not None:
                cosines[apart[0][here, None] == apart[1][None, there]] = -np.inf
            column = cosines.argmax(axis=1)
            highest = np.take_along_axis(cosines, column[:, None], axis=1)[:, 0]
            better = highest > best[here]
            at[here][better], best[here][better] = first + column[better], highest[better]
        difference = queries[here].astype(np.float64) - candidates[at[here]]  # a cosine near 1 has lost the digits
        distance[here] = np.where(at[here] >= 0, np.linalg.norm(difference, axis=1), np.inf)
    return at, distance


def _of_unit_length(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units: np.ndarray = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return units


def near_limit(usual: np.ndarray, n_compared: int) -> float:
    """The distance below which a row is near-equal. usual: distances between groups (n,). n_compared: held-out rows."""
    middle, high = np.quantile(usual, [0.5, 0.9])
    if middle == 0:
        return 0.0
    inverse_shape = np.log(high / middle) / np.log(np.log(10) / np.log(2))
    by_chance = (CHANCE_FINDS / n_compared / np.log(2)) ** inverse_shape
    return float(middle * min(NEAR_RATIO, by_chance))


def _twins_found(
    seen: _Seen, splits: Sequence[Split], ids: np.ndarray, classes: Mapping[str, np.ndarray], cut: bool
) -> Iterator[Finding]:
    remedy = "Make a split by groups: cli split" if cut else "Are they one song under two names? Give them one group."
    n_compared = sum(len(seen.rows(split, *HELD_OUT)) for split in splits)
    by_split = [list(seen.twins(split)) for split in splits]
    for found in zip(*by_split, strict=True):
        kind = found[0][0]
        rows, twins = (np.concatenate([each[at] for each in found]) for at in (1, 2))
        parts = np.concatenate([split.parts[each[1]] for split, each in zip(splits, found, strict=True)])
        if not len(rows):
            continue
        n_in = {part.name.lower(): int((parts == part).sum()) for part in HELD_OUT}
        examples = [(str(ids[row]), str(ids[twin])) for row, twin in zip(rows[:EXAMPLES], twins, strict=False)]
        same = {}
        for name, codes in classes.items():
            known = (codes[rows] >= 0) & (codes[twins] >= 0)
            same[name] = [int((codes[rows] == codes[twins])[known].sum()), int(known.sum())]
        copied = "".join(f"; {name} is the same in {hits:,} of {of:,}" for name, (hits, of) in same.items() if of)
        message = (
            f"{len(rows):,} of {n_compared:,} val and test rows ({n_in['val']:,} val, {n_in['test']:,} test) have"
            f" {TWINS[kind]} in train, e.g. {examples[0][0]!r} and {examples[0][1]!r}{copied}. {remedy}"
        )
        severity: Severity = "note" if len(rows) < EQUAL_SHARE * n_compared else "warning"
        facts = {**n_in, "same_label": same}
        yield Finding(kind, severity, seen.name, len(rows), n_compared, message, examples, facts)


def _groups_known(seen: _Seen, splits: Sequence[Split], cut: bool) -> Iterator[Finding]:
    """How well a feature tells the groups of train apart. Rows of one group with the same input count once."""
    in_train = np.any([split.parts == Part.TRAIN for split in splits], axis=0)
    rows = np.flatnonzero(in_train & (seen.equal >= 0))
    inputs = np.where(seen.inputs[rows] >= 0, seen.inputs[rows], -1 - rows)  # unknown inputs are not the same
    rows = rows[np.unique(np.stack([seen.groups[rows], inputs]), axis=1, return_index=True)[1]]  # group after group
    sizes = np.unique(seen.groups[rows], return_counts=True)[1]
    several = sizes > 1
    if len(sizes) < 2 or not several.any():
        return
    hits = recognized(seen.unit_vectors(rows, rows), sizes)[np.repeat(several, sizes)]
    share = variance_between(seen.vectors[rows], sizes)
    median = float(np.median(share)) if len(share) else 0.0
    message = (
        f"knows its group: the nearest centroid is the own group's for {int(hits.sum()):,} of {len(hits):,} training"
        f" rows ({hits.mean():.0%}; by chance {1 / len(sizes):.1%}). Of the median column {median:.0%} of the variance"
        " is between groups."
    )
    facts = {"groups": len(sizes), "by_chance": 1 / len(sizes), "variance_between_groups": median}
    yield Finding("group recognition", "note", seen.name, int(hits.sum()), len(hits), message, facts=facts)
    if several.sum() >= MIN_GROUPS:
        yield from _constant_columns(seen, rows[np.repeat(several, sizes)], sizes[several], cut)


def recognized(units: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Whether each row's nearest centroid, by angle, is that of its group without itself: bool (n,).

    units: float32 (n, D), of unit length, group after group. sizes: rows of each group; one alone is never recognized.
    """
    starts = np.cumsum(sizes) - sizes
    sums = np.add.reduceat(units, starts, axis=0)
    centroids = _of_unit_length(sums)
    own = np.repeat(np.arange(len(sizes)), sizes)
    found = np.zeros(len(units), bool)
    for start in range(0, len(units), QUERY_ROWS):
        here = slice(start, start + QUERY_ROWS)
        cosines = units[here] @ centroids.T
        np.put_along_axis(cosines, own[here, None], -np.inf, axis=1)
        to_own = np.einsum("ij,ij->i", units[here], _of_unit_length(sums[own[here]] - units[here]))
        found[here] = (to_own > cosines.max(axis=1)) & (sizes[own[here]] > 1)
    return found


def variance_between(vectors: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The share of each varying column's variance that is between groups, in [0, 1]; around 0 where groups say nothing.

    The intraclass correlation of one-way random effects by analysis of variance, for groups of unequal sizes. Source:
    Donner 1986, "A review of inference procedures for the intraclass correlation coefficient in the one-way random
    effects model". vectors: (n, D), group after group. sizes: rows of each; two groups or more, one of several rows.
    """
    n, n_groups = len(vectors), len(sizes)
    starts = np.cumsum(sizes) - sizes
    shares = []
    for first in range(0, vectors.shape[1], COLUMNS_AT_ONCE):
        values = vectors[:, first : first + COLUMNS_AT_ONCE].astype(np.float64)
        values = values[:, values.min(axis=0) < values.max(axis=0)]
        means = np.add.reduceat(values, starts, axis=0) / sizes[:, None]
        within = ((values - np.repeat(means, sizes, axis=0)) ** 2).sum(axis=0) / (n - n_groups)
        between = (sizes[:, None] * (means - values.mean(axis=0)) ** 2).sum(axis=0) / (n_groups - 1)
        usual_size = (n - (sizes**2).sum() / n) / (n_groups - 1)
        shares.append((between - within) / (between + (usual_size - 1) * within))
    joined: np.ndarray = np.clip(np.concatenate(shares), 0, 1)
    return joined


def _constant_columns(seen: _Seen, rows: np.ndarray, sizes: np.ndarray, cut: bool) -> Iterator[Finding]:
    """Columns that never vary within a group, and between groups do: no value has more than half of them.

    rows: group after group, in groups of several rows. sizes: rows of each group.
    """
    vectors, starts = seen.vectors[rows], np.cumsum(sizes) - sizes
    of_group = np.maximum.reduceat(vectors, starts, axis=0)
    steady = np.flatnonzero((of_group == np.minimum.reduceat(vectors, starts, axis=0)).all(axis=0))
    commonest = [np.unique(of_group[:, column], return_counts=True)[1].max() for column in steady.tolist()]
    telling = steady[np.array(commonest, np.int64) <= len(sizes) / 2]
    if not len(telling):
        return
    n_told_apart = len(np.unique(of_group[:, telling], axis=0))
    message = (
        f"{len(telling):,} of {vectors.shape[1]:,} columns never vary within a group; by them alone {n_told_apart:,} of"
        f" {len(sizes):,} groups can be told apart. "
        + ("They name the group to a model: make a split by groups, cli split" if cut else "Split by groups only.")
    )
    facts = {"columns": telling.tolist(), "groups": len(sizes), "groups_told_apart": n_told_apart}
    severity: Severity = "warning" if cut else "note"
    yield Finding("constant within groups", severity, seen.name, len(telling), vectors.shape[1], message, facts=facts)


def _constant_label(name: str, labels: np.ndarray, groups: np.ndarray) -> Finding | None:
    """labels, groups: codes (n,)."""
    labels, groups = labels[labels >= 0], groups[labels >= 0]
    pairs = np.unique(np.stack([groups, labels]), axis=1)
    n_groups = len(np.unique(groups))
    if len(np.unique(labels)) < 2 or pairs.shape[1] > n_groups or n_groups == len(groups):
        return None
    message = (
        f"never varies within a group: {len(labels):,} labelled rows say about as much as {n_groups:,}. Intervals know"
        " it, for they resample groups; do not count the rows as independent yourself."
    )
    return Finding("constant label", "note", name, n_groups, len(labels), message)
