"""What the store says of the data a run was trained on: missing, failed, equal, odd; and what leaks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fusion.memory import feature_bytes, too_large
from fusion.report.material import Material
from stores.errors import TriadError
from stores.feature import Feature, Status
from stores.store import Store


@dataclass(frozen=True)
class FeatureHealth:
    """distinct: different inputs among the present rows; `None` where nobody kept their digests. reasons: of failures,
    the commonest first."""

    name: str
    counts: Mapping[str, int]
    distinct: int | None
    reasons: Mapping[str, int]


@dataclass(frozen=True)
class Remark:
    """severity: `warning` or `note`."""

    about: str
    severity: str
    message: str


@dataclass(frozen=True)
class Look:
    """said: what was looked at, or why nothing was; then remarks is `None`."""

    said: str
    remarks: list[Remark] | None = None


@dataclass(frozen=True)
class DataHealth:
    """What the store says of each feature, of all vectors, and of what is on both sides of the split."""

    features: list[FeatureHealth]
    vectors: Look
    leaks: Look


def data_health(material: Material, split_name: str) -> DataHealth | None:
    """What the store says of the features that the run read; `None` where it is not there or not wanted."""
    store = material.store
    if store is None or not material.parts.health:
        return None
    names = list(material.features.values())
    features = [_health(store.feature(name)) for name in names]
    if too_large(store, material.features):  # a fit that streams is not to read all of it again, and twice, in the end
        size = f"{feature_bytes(store, material.features) / 2**30:.1f} GiB"
        why = f"Nothing was looked at: {size} of features are more than 1/8 of the memory."
        return DataHealth(features, Look(f"{why} `cli inspect` reads them."), Look(f"{why} `cli leaks` reads them."))
    return DataHealth(features, _odd_vectors(store, names), _leaks(store, names, split_name))


def _health(feature: Feature) -> FeatureHealth:
    status = feature.status
    reasons, counts = np.unique(feature.failures[status == Status.FAILED], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:3]
    digests = feature.read_input_hashes()[status == Status.PRESENT]
    known = np.ascontiguousarray(digests[digests.any(axis=1)])
    return FeatureHealth(
        feature.name,
        {kind.name.lower(): int((status == kind).sum()) for kind in Status},
        _n_different(known) if len(known) else None,
        {str(reasons[number]): int(counts[number]) for number in order},
    )


def _n_different(digests: np.ndarray) -> int:
    """How many different rows there are. digests: uint8 (n, B), in one piece."""
    n, width = digests.shape
    rows = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), n, [None, pa.py_buffer(digests)])
    return int(pc.count_distinct(rows).as_py())  # `np.unique` of a million rows takes 7 s


def _odd_vectors(store: Store, names: list[str]) -> Look:
    from stores.health import findings

    ids, groups = store.ids, store.groups
    remarks = [
        Remark(name, found.severity, found.message)
        for name in names
        for found in findings(store.feature(name), ids, groups)
    ]
    return Look("Constant columns, zero and equal vectors, odd norms and rows far from all others.", remarks)


def _leaks(store: Store, names: list[str], split_name: str) -> Look:
    from fusion.leak_scan import opened_splits, scan, scannable_labels

    try:
        splits = opened_splits(store, split_name)
        found = scan(store, names, splits, scannable_labels(store))
    except TriadError as error:
        return Look(f"Nothing was looked at: {str(error).splitlines()[0]}")
    folds = f" ({len(splits)} folds added up)" if len(splits) > 1 else ""
    looked = f"Equal inputs, equal and near-equal vectors across the parts of split {split_name}{folds}"
    remarks = [Remark(finding.about, finding.severity, finding.message) for finding in found]
    return Look(f"{looked}, groups that it cuts, features and labels that know their group.", remarks)
