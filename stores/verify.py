"""Read everything back: which chunks are gone or fail their checksum, which rows that costs, and what to do.

Chunks carry checksums. What describes them, `zarr.json`, has none: found is what cannot be read there, a record that
does not match its fingerprint, an array that is not as long as the store, a column that is listed and not there.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import unquote

import numpy as np

from stores.base import ArrayTree
from stores.errors import DamagedStore, StoreError
from stores.feature import Feature, Status, quoted
from stores.record import command_for, fingerprint, repair_command
from stores.store import Store

LISTED = ("segments", "labels")  # groups whose attributes list their columns
RECORD = "record"  # in the place of an array's name
NAMES = "names"  # likewise: which arrays and groups a group has
FEATURES = "features"


@dataclass(frozen=True)
class Damage:
    """One chunk that cannot be trusted, or a whole array (chunk `None`). rows: [start, stop)."""

    where: str  # a feature `slot/encoder`, or `segments/…`, `labels/…`, `splits/…`
    array: str
    chunk: int | None
    start: int
    stop: int
    reason: str

    def __str__(self) -> str:
        chunk = "all of it" if self.chunk is None else f"chunk {self.chunk}"
        return f"{self.where}: {self.array}, {chunk}, rows {self.start} to {self.stop - 1}: {self.reason}"


def verify(store: Store) -> Iterator[Damage]:
    """Every damaged chunk of the store, in reading order. Nothing is changed."""
    for group in ("segments", "labels", "splits", "alignment"):
        yield from _verify_columns(store, group)
    for slot in (yield from _children(store, "features", FEATURES)):
        for encoder in (yield from _children(store, f"features/{slot}", f"{FEATURES}/{unquote(slot)}")):
            yield from _verify_node(store, f"features/{slot}/{encoder}", f"{unquote(slot)}/{unquote(encoder)}")


def verify_feature(store: Store, feature: Feature) -> Iterator[Damage]:
    """Every damaged chunk of one feature."""
    tree, n = store.tree, store.n_segments
    if fingerprint(feature.record) != feature.fingerprint:
        yield Damage(feature.name, RECORD, None, 0, n, "does not match its fingerprint")
    needed: set[int] = set()
    for number, chunk in enumerate(feature.chunks()):
        try:
            if (feature.read_status(chunk) != Status.PENDING).any():
                needed.add(number)
        except StoreError:  # told below, when the status array's own turn comes
            needed.add(number)
    written: set[int] = set()  # chunks that hold something: their statuses were written before it
    for array in feature.array_names():
        path = feature.array_path(array)
        is_status = array == "status"
        yield from _verify_array(tree, path, feature.name, n, written if is_status else needed)
        if not is_status:
            with suppress(StoreError):  # told already
                written |= tree.stored_chunks(path)
    for array in (yield from _children(store, feature.array_path("state"), feature.name)):
        yield from _verify_array(tree, feature.array_path(f"state/{array}"), feature.name, None, needed=None)


def remedies(store: Store, damages: Iterable[Damage]) -> list[str]:
    """What to do about them, a line each, in order and without repeats."""
    return list(dict.fromkeys(_remedy(store, damage) for damage in damages))


def _remedy(store: Store, damage: Damage) -> str:
    group, _, name = damage.where.partition("/")
    if group == "splits":
        return f"cli split --name {unquote(name)} --replace deals the split {unquote(name)!r} anew."
    if group == FEATURES and damage.array == NAMES:
        of_slot = f" of {name}" if name else ""
        return f"cli ingest DATA --replace makes the store anew. What features{of_slot} it had can no longer be read."
    if group == "alignment":
        return "cli align measures the alignment again."
    if group in ("segments", "labels"):
        if damage.where in ("segments/id", "segments/group", "segments"):
            return "cli ingest DATA --replace makes the store anew. Its features are lost: they cannot be told apart."
        return "cli ingest DATA writes labels and columns anew; splits and features stay."
    try:
        feature = Feature(store.tree, damage.where)
    except StoreError:
        return f"cli featurize --encoder {name} --replace writes {damage.where} anew."
    if damage.chunk is None or damage.array not in feature.array_names():
        anew = command_for(feature.record)
        return f"{anew}{'' if anew.endswith('--replace') else ' --replace'} writes {damage.where} anew."
    return f"{repair_command(damage.where, feature.record)} writes the damaged rows of {damage.where} again."


def _children(store: Store, path: str, where: str) -> Generator[Damage, None, list[str]]:
    """The names below a group; none where they cannot be read, which is damage."""
    try:
        return store.tree.children(path)
    except StoreError as error:
        yield Damage(where, NAMES, None, 0, store.n_segments, _reason(error))
        return []


def _verify_columns(store: Store, group: str) -> Iterator[Damage]:
    tree, n = store.tree, store.n_segments
    try:
        listed = [quoted(name) for name in tree.attributes(group).get("columns", [])] if group in LISTED else []
        names = list(dict.fromkeys([*listed, *tree.children(group)]))
    except StoreError as error:
        yield Damage(group, "attributes", None, 0, n, _reason(error))
        return
    if group in LISTED and not listed and names:
        yield Damage(group, "attributes", None, 0, n, "do not list its columns")
    for name in names:
        where = f"{group}/{name}"
        try:
            unfinished = group not in LISTED and not tree.attributes(where if group == "splits" else group)
        except StoreError as error:
            yield Damage(where, "attributes", None, 0, n, _reason(error))
            continue
        if not unfinished:  # what makes a split, or an alignment, is written last
            yield from _verify_array(tree, where, where, n, needed=None)


def _verify_node(store: Store, path: str, name: str) -> Iterator[Damage]:
    try:
        facts = store.tree.attributes(path)
        if not facts:  # the record is written last: a creation that was interrupted
            return
        feature = Feature(store.tree, name)
    except StoreError as error:
        yield Damage(name, RECORD, None, 0, store.n_segments, _reason(error))
        return
    yield from verify_feature(store, feature)


def _verify_array(
    tree: ArrayTree, path: str, where: str, n_rows: int | None, needed: set[int] | None
) -> Iterator[Damage]:
    """`needed`: the chunks that must be there; `None` for all of them. n_rows: how many rows it must have."""
    array = path.rsplit("/", 1)[-1]
    try:
        shape, _, chunk_rows = tree.layout(path)
        stored = tree.stored_chunks(path)
    except StoreError as error:
        yield Damage(where, array, None, 0, n_rows or 0, _reason(error))
        return
    if n_rows is not None and shape[0] != n_rows:
        yield Damage(where, array, None, 0, n_rows, f"says it has {shape[0]} rows, not {n_rows}")
        return

    def wrong(number: int) -> str | None:
        if number not in stored:
            return "missing" if needed is None or number in needed else None
        try:
            values = tree.read(path, number * chunk_rows, min((number + 1) * chunk_rows, shape[0]))
        except DamagedStore as error:
            return _reason(error)
        is_finite = values.dtype.kind != "f" or not array.startswith(("vectors", "frames")) or np.isfinite(values).all()
        return None if is_finite else "holds NaN or infinity"

    numbers = range(-(-shape[0] // chunk_rows))
    with ThreadPoolExecutor(tree.parallel_reads) as readers:
        reasons = (map if tree.parallel_reads == 1 else readers.map)(wrong, numbers)
        for number, reason in zip(numbers, reasons, strict=True):
            if reason:
                yield Damage(
                    where, array, number, number * chunk_rows, min((number + 1) * chunk_rows, shape[0]), reason
                )


def _reason(error: BaseException) -> str:
    cause = str(error.__cause__ or error)
    return cause.splitlines()[0] if cause else type(error).__name__
