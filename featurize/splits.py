"""Splits into train, val and test that no group crosses, stratified as far as the groups allow.

Segments are dealt to `n` nearly equal folds by scikit-learn's `StratifiedGroupKFold`, and folds are then joined to the
wanted shares. `random` deals single segments; it cuts through songs, leaks, and says so in every table.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from featurize.config import SplitConfig, TargetConfig
from featurize.errors import ConfigError, SplitError
from featurize.labels import resolve_targets, strata
from stores.store import Part, Split, Store

FINE_FOLDS = 20  # shares come in steps of 5% where there are as many groups


def make_splits(groups: np.ndarray, label: np.ndarray | None, config: SplitConfig) -> list[Split]:
    """One split, or one per fold named `name.0`, `name.1`, …: each fold is test once, the next one val.

    groups: text (N,). label: as the store keeps it, or `None`. Raises `SplitError` where there are too few groups.
    """
    units = groups if config.method == "grouped" else np.arange(len(groups)).astype(np.dtypes.StringDType())
    n_units = len(np.unique(units))
    kind = "groups" if config.method == "grouped" else "segments"
    wanted = config.folds or 3
    if n_units < wanted:
        raise SplitError(f"{n_units} {kind} cannot be dealt to {wanted} parts. Use fewer folds, or more data.")
    facts = {
        "method": config.method,
        "leaks": config.method == "random",
        "seed": config.seed,
        "stratified_by": config.stratify_by,
    }
    if config.folds:
        folds = _deal(units, label, config.folds, config.seed)
        return [_fold_split(config, folds, k, facts) for k in range(config.folds)]
    n_folds = min(FINE_FOLDS, n_units)
    folds = _deal(units, label, n_folds, config.seed)
    n_test = max(1, round(config.test * n_folds))
    n_val = max(1, round(config.val * n_folds))
    if n_test + n_val >= n_folds:
        raise SplitError(
            f"{n_units} {kind} are too few for val {config.val} and test {config.test}: none is left to train on."
        )
    parts = np.full(len(groups), Part.TRAIN, np.uint8)
    parts[folds < n_test + n_val] = Part.VAL
    parts[folds < n_test] = Part.TEST
    return [Split(config.name, parts, {**facts, "val": config.val, "test": config.test})]


def write_splits(
    store: Store, config: SplitConfig, targets: list[TargetConfig], *, replace: bool = False
) -> list[Split]:
    """Make the splits of `config` and freeze them in the store; stratified by the first target where nothing is named.

    Raises `SplitError` where one of that name, or a fold of it, exists and `replace` is false.
    """
    taken = [split for split in store.splits() if split == config.name or split in _folds(config.name, store.splits())]
    if taken and not replace:
        raise SplitError(f"Split {taken[0]} exists and is frozen. Use another --name, or --replace it.")
    if config.stratify_by is None:
        config = config.model_copy(update={"stratify_by": _first_target(store, targets)})
    label = store.label(config.stratify_by) if config.stratify_by else None
    splits = make_splits(store.groups, label, config)
    for split in splits:
        check_split(split, store.groups)
    for name in taken:  # all of them: a fold of an older, larger set must not join the new one
        store.delete_split(name)
    for split in splits:
        store.write_split(split)
    return splits


def first_split(store: Store, config: SplitConfig, targets: list[TargetConfig]) -> tuple[list[Split], str | None]:
    """The splits of `config` where the store has none yet; or why they cannot be made."""
    if store.splits():
        return [], None
    try:
        return write_splits(store, config, targets), None
    except SplitError as error:
        return [], str(error)


def large_groups(groups: np.ndarray, config: SplitConfig) -> list[str]:
    """A note where one group alone is larger than the smallest part was to be: it stays whole, and parts are uneven.

    groups: text (N,).
    """
    if config.method != "grouped":
        return []
    names, counts = np.unique(groups, return_counts=True)
    largest, count = names[np.argmax(counts)], int(counts.max())
    share = 1 / config.folds if config.folds else min(config.val, config.test)
    if count <= share * len(groups):
        return []
    return [
        f"note: group {str(largest)[:80]!r} has {count:,} of the {len(groups):,} segments, more than the "
        f"{share:.0%} of a part: parts cannot be of the wanted size."
    ]


def check_split(split: Split, groups: np.ndarray) -> None:
    """Raise `SplitError` where a group, of text (N,), stands in two parts of a split that says it does not leak."""
    if split.facts.get("leaks"):
        return
    kept = split.parts != Part.LEFT_OUT
    names, numbers = np.unique(groups[kept], return_inverse=True)
    parts = split.parts[kept].astype(np.int64)
    low, high = np.full(len(names), 255), np.zeros(len(names), np.int64)
    np.minimum.at(low, numbers, parts)
    np.maximum.at(high, numbers, parts)
    if (low != high).any():
        raise SplitError(f"Split {split.name} cuts through group {names[np.argmax(low != high)]!r}; it would leak.")


def fold_names(name: str, known: list[str]) -> list[str]:
    """The splits behind a name: itself, or the folds `name.0`, `name.1`, …; empty where there is neither."""
    return [name] if name in known else _folds(name, known)


def _folds(name: str, known: list[str]) -> list[str]:
    folds = [split for split in known if split.rpartition(".")[0] == name and split.rpartition(".")[2].isdigit()]
    return sorted(folds, key=lambda split: int(split.rpartition(".")[2]))


def _first_target(store: Store, targets: list[TargetConfig]) -> str | None:
    """The label of the first target; `None` where there is none, or no saying which."""
    labels = {name: store.label(name) for name in store.label_names()}
    try:
        return resolve_targets(targets, labels)[0].column
    except ConfigError:
        return None


def _fold_split(config: SplitConfig, folds: np.ndarray, k: int, facts: Mapping[str, Any]) -> Split:
    assert config.folds
    parts = np.full(len(folds), Part.TRAIN, np.uint8)
    parts[folds == k] = Part.TEST
    parts[folds == (k + 1) % config.folds] = Part.VAL
    return Split(f"{config.name}.{k}", parts, {**facts, "folds": config.folds, "fold": k})


def _deal(units: np.ndarray, label: np.ndarray | None, n_folds: int, seed: int) -> np.ndarray:
    """int (N,): the fold of each segment, sizes as equal and classes as even as the units allow."""
    from sklearn.model_selection import StratifiedGroupKFold

    _, unit_numbers = np.unique(units, return_inverse=True)
    classes = strata(label) if label is not None else np.zeros(len(units)).astype(str)
    _, class_numbers = np.unique(classes, return_inverse=True)
    if np.bincount(class_numbers).max() < n_folds:  # labels all but unique: nothing to stratify by
        class_numbers = np.zeros(len(units), np.int64)
    folds = np.empty(len(units), np.int64)
    splitter = StratifiedGroupKFold(n_splits=n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")  # rare classes go where they fit
        for fold, (_, held_out) in enumerate(splitter.split(np.zeros(len(units)), class_numbers, unit_numbers)):
            folds[held_out] = fold
    return folds
