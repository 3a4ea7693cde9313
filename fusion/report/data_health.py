"""What the store says of the data a run was trained on: missing, failed, equal, odd; and what leaks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

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
class DataHealth:
    """scanned: what was looked for leaks, in words; empty where nothing was."""

    features: list[FeatureHealth]
    vectors: list[Remark]
    leaks: list[Remark]
    scanned: str


def data_health(material: Material, split_name: str) -> DataHealth | None:
    """What the store says of the features that the run read; `None` where it is not there or not wanted."""
    store = material.store
    if store is None or not material.parts.health:
        return None
    names = list(material.features.values())
    leaks, scanned = _leaks(store, material.features, split_name)
    return DataHealth([_health(store.feature(name)) for name in names], _odd_vectors(store, names), leaks, scanned)


def _health(feature: Feature) -> FeatureHealth:
    status = feature.status
    reasons, counts = np.unique(feature.failures[status == Status.FAILED], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:3]
    digests = feature.read_input_hashes()[status == Status.PRESENT]
    known = digests[digests.any(axis=1)]
    return FeatureHealth(
        feature.name,
        {kind.name.lower(): int((status == kind).sum()) for kind in Status},
        len(np.unique(known, axis=0)) if len(known) else None,
        {str(reasons[number]): int(counts[number]) for number in order},
    )


def _odd_vectors(store: Store, names: list[str]) -> list[Remark]:
    from stores.health import findings

    ids, groups = store.ids, store.groups
    return [
        Remark(name, found.severity, found.message)
        for name in names
        for found in findings(store.feature(name), ids, groups)
    ]


def _leaks(store: Store, features: Mapping[str, str], split_name: str) -> tuple[list[Remark], str]:
    from fusion.leak_scan import opened_splits, scan, scannable_labels

    if too_large(store, features):  # a fit that streams is not to read all of it in the end
        size = f"{feature_bytes(store, features) / 2**30:.1f} GiB"
        return [], f"Nothing was looked at: {size} of features are more than 1/8 of the memory. `cli leaks` reads them."
    try:
        splits = opened_splits(store, split_name)
        found = scan(store, list(features.values()), splits, scannable_labels(store))
    except TriadError as error:
        return [], f"Nothing was looked at: {str(error).splitlines()[0]}"
    folds = f" ({len(splits)} folds added up)" if len(splits) > 1 else ""
    looked = f"Equal inputs, equal and near-equal vectors across the parts of split {split_name}{folds}"
    remarks = [Remark(finding.about, finding.severity, finding.message) for finding in found]
    return remarks, f"{looked}, groups that it cuts, features and labels that know their group."
