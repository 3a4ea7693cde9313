"""Read a dataset description once, say everything that is wrong with it, and make the store.

Nothing is written while a problem stands that would make the store wrong (`Severity.ERROR`). What only costs single
rows or labels is a warning; what the user may want to know is a note.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from featurize.config import DataConfig, TargetConfig
from featurize.errors import SourceError
from featurize.labels import Label, read_label
from featurize.segments import MODALITIES
from featurize.sources import Source, open_source
from featurize.sources.base import FLAGS, is_file, stays_inside
from featurize.sources.table import listed
from featurize.stated_times import compare_times
from stores import open_store
from stores.backends import is_there, new_tree
from stores.base import STRING
from stores.carry import carry_over
from stores.claim import all_claimed, claims_of
from stores.remote import Location
from stores.source_path import stated_path
from stores.store import DEFAULT_CHUNK_ROWS, Store

EXAMPLES = 3
EXAMPLE_CHARACTERS = 200
MAX_LABELS = 500  # taken without being named; a table with more holds data of another kind
TIMES = "Times are seconds (12.5), LRC stamps ([00:12.50]), or SMPTE timecodes with --set data.timecode_rate=25."


class Severity(StrEnum):
    """An error stops `ingest`; a warning may cost rows; a note is to be known."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Problem:
    """One kind of trouble: how many rows (or columns) have it, up to three examples, and what to do."""

    severity: Severity
    what: str
    count: int
    examples: list[str]
    remedy: str

    def __str__(self) -> str:
        more = f" … and {self.count - len(self.examples):,} more" if self.count > len(self.examples) else ""
        examples = "; ".join(map(_printable, self.examples))
        return f"{self.severity}: {self.count:,} x {self.what}: {examples}{more}\n  {self.remedy}"


@dataclass
class Ingest:
    """What `check` found: the labels and segment columns to write, the presence of each modality, the problems."""

    source: Source
    segments: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    presence: dict[str, np.ndarray]  # bool (N,) per modality: stated by the table, with its file found
    problems: list[Problem] = field(default_factory=list)

    @property
    def errors(self) -> list[Problem]:
        """The problems that keep a store from being written."""
        return [problem for problem in self.problems if problem.severity is Severity.ERROR]


def check(path: Location, config: DataConfig, targets: Iterable[TargetConfig] = (), workers: int = 1) -> Ingest:
    """Read the table at `path` and look at every row and into some media. Raises `SourceError` where it is unusable.

    workers: processes that read media, which a hostile file may kill; 0 for this one.
    """
    return check_source(open_source(path, config), config, targets, workers=workers)


def check_source(
    source: Source,
    config: DataConfig,
    targets: Iterable[TargetConfig] = (),
    *,
    with_media: bool = True,
    workers: int = 1,
) -> Ingest:
    """As `check`, of a source that is open. with_media: false where the segments have vectors in place of raw data."""
    found = check_table(source)
    if with_media:
        _check_media(found)
        if not found.errors:  # it reads media, where the table says they are
            _check_stated_times(found, workers)
    labels, skipped = _read_labels(source, config, list(targets))
    _check_labels(found, labels, skipped)
    texts = {"id": source.ids, "group": source.groups}
    if "track_id" in source.table.roles:
        texts["track_id"] = source.table.texts("track_id")
    found.segments = {name: np.array([v or "" for v in values], dtype=STRING) for name, values in texts.items()}
    found.segments |= {"start_seconds": source.start_seconds, "end_seconds": source.end_seconds}
    found.segments |= {FLAGS[modality]: there for modality, there in found.presence.items()}
    found.labels = {label.name: label.values for label in labels}
    found.problems.sort(key=lambda problem: list(Severity).index(problem.severity))
    return found


def check_table(source: Source) -> Ingest:
    """The problems that ids, groups and times have by themselves. Raises `SourceError` where there are no rows."""
    found = Ingest(source, {}, {}, {})
    _check_ids(found)
    _check_groups(found)
    _check_times(found)
    return found


class Written(StrEnum):
    """What became of the store."""

    NEW = "new"
    RENEWED = "renewed"  # the same segments: labels and columns are new, splits and features stay
    GROWN = "grown"  # more segments: splits and features of the known ones are carried over


def write_store(
    found: Ingest, store_path: Location, *, replace: bool = False, chunk_rows: int = DEFAULT_CHUNK_ROWS
) -> tuple[Store, Written]:
    """The store of a checked dataset. One that exists is kept as far as its segments are still there.

    Raises `SourceError` while errors stand, or where segments are gone or regrouped and `replace` is false, and
    `StoreError` where another process writes a feature of a store that must be made anew.
    """
    refuse_errors(found)
    facts = describe_source(found.source, store_path)
    exists = is_there(store_path)
    old = open_store(store_path) if exists and not replace else None
    if old is not None:
        _check_all_still_there(old, found, store_path)
        if np.array_equal(old.ids, found.segments["id"]):
            old.update(found.segments, found.labels, facts)
            return open_store(store_path), Written.RENEWED
        chunk_rows = old.chunk_rows
    store_path.parent.mkdir(parents=True, exist_ok=True)
    writers = all_claimed(claims_of(store_path), old.features() if old is not None else [])
    with writers, new_tree(store_path, replace=exists) as tree:
        store = Store.create(tree, found.segments, found.labels, facts, chunk_rows)
        if old is not None:
            carry_over(old, store)
    return open_store(store_path), Written.NEW if old is None else Written.GROWN


def refuse_errors(found: Ingest) -> None:
    """Raise `SourceError` while errors stand."""
    if found.errors:
        raise SourceError(
            f"Nothing was written: {len(found.errors)} kinds of errors stand in {found.source.table.path}."
        )


def _check_all_still_there(old: Store, found: Ingest, store_path: Location) -> None:
    groups = dict(zip(found.segments["id"].tolist(), found.segments["group"].tolist(), strict=True))
    known = list(zip(old.ids.tolist(), old.groups.tolist(), strict=True))
    gone = [segment_id for segment_id, _ in known if segment_id not in groups]
    regrouped = [segment_id for segment_id, group in known if groups.get(segment_id, group) != group]
    if gone or regrouped:
        what = f"{len(gone):,} segments of it are gone" if gone else f"{len(regrouped):,} segments changed their group"
        raise SourceError(
            f"{store_path} does not fit {found.source.table.path}: {what}, e.g. {(gone or regrouped)[0]!r}.\n"
            "Pass --replace to make it anew, features included, or name another with --store."
        )


def describe_source(source: Source, store_path: Location) -> dict[str, Any]:
    """Where the raw media is and how it was read: enough to open the source again from the store alone."""
    return {
        "layout": source.layout,
        "path": stated_path(source.table.path, store_path),
        "columns": dict(source.table.roles),
        "audio_is": source.scopes["audio"],
        "midi_is": source.scopes["midi"],
        "allow_outside_root": source.allow_outside_root,
        "timecode_rate": source.timecode_rate,
    }


def _problem(found: Ingest, severity: Severity, what: str, rows: list[int] | list[str], remedy: str) -> None:
    """Add a problem if there are any; rows are shown by id."""
    if rows:
        shown = [_show(found.source, row) if isinstance(row, int) else row for row in rows[:EXAMPLES]]
        found.problems.append(Problem(severity, what, len(rows), shown, remedy))


def _printable(example: str) -> str:
    """Of a cell that may hold anything: not too much, and nothing that a terminal would obey."""
    cut = example if len(example) <= EXAMPLE_CHARACTERS else f"{example[:EXAMPLE_CHARACTERS]}…"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in cut)  # line feeds, too: an example is one line


def _show(source: Source, row: int) -> str:
    return repr(source.ids[row]) if source.ids[row] else f"row {row + 1}"


def _check_ids(found: Ingest) -> None:
    ids = found.source.ids
    column = found.source.table.roles["segment_id"]
    _problem(found, Severity.ERROR, "empty id", [i for i, v in enumerate(ids) if not v], f"Fill column {column}.")
    times = Counter(ids)
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, segment_id in enumerate(ids):
        if segment_id and times[segment_id] > 1:
            rows_of[segment_id].append(row)
    repeated = [
        f"{segment_id!r} in rows {', '.join(str(row + 1) for row in rows[:EXAMPLES])}"
        for segment_id, rows in rows_of.items()
    ]
    _problem(found, Severity.ERROR, "duplicate id", repeated, f"Column {column} must name each segment once.")
    if not len(ids):
        raise SourceError(f"{found.source.table.path} has no rows.")


def _check_groups(found: Ingest) -> None:
    empty = [row for row, group in enumerate(found.source.groups) if not group]
    column = found.source.table.roles["group"]
    remedy = f"Fill column {column} (the song), or name another: --set data.columns.group=NAME."
    _problem(found, Severity.ERROR, "segment without a group", empty, remedy)


def _check_times(found: Ingest) -> None:
    source = found.source
    unreadable = sorted({*source.unreadable_starts, *source.unreadable_ends, *source.unreadable_file_starts})
    _problem(found, Severity.ERROR, "time that is no number", unreadable, TIMES)
    backwards = source.end_seconds <= source.start_seconds
    negative = source.start_seconds < 0
    rows = np.flatnonzero(backwards | negative).tolist()
    _problem(found, Severity.ERROR, "segment that ends before it starts", rows, "start_seconds < end_seconds, from 0.")


def _check_media(found: Ingest) -> None:
    source = found.source
    for modality in MODALITIES:
        stated, outside, missing, contradicted, unfounded = _look_for_media(source, modality)
        found.presence[modality] = stated
        _problem(
            found,
            Severity.ERROR,
            f"{modality} path that leaves the data folder",
            [f"{_show(source, row)}: {source.paths[modality][row]}" for row in outside],
            f"Paths are relative to {source.root}. If this is meant: --set data.allow_outside_root=true",
        )
        _problem(
            found,
            Severity.WARNING,
            f"{modality} file that does not exist",
            [f"{_show(source, row)}: {source.paths[modality][row]}" for row in missing],
            "These rows will be marked failed. Put the files there, or empty the cells where there is none.",
        )
        remedy = "These rows will be marked failed unless a blob or file turns up."
        _problem(found, Severity.WARNING, f"{FLAGS[modality]} without any {modality}", unfounded, remedy)
        remedy = "The file is used. Empty the cell to leave it out."
        _problem(found, Severity.NOTE, f"{FLAGS[modality]} is false, but the file exists", contradicted, remedy)
    nothing = np.flatnonzero(~np.logical_or.reduce([found.presence[m] for m in MODALITIES])).tolist()
    remedy = "They stay in the store; a model can only give them its prior."
    _problem(found, Severity.WARNING, "segment without any modality", nothing, remedy)
    if source.blobs is not None:
        for modality, rows in source.blobs.problems(source.flags):
            rows = [row for row in rows if source.paths[modality][row] is None]
            remedy = "Is the *_media.parquet beside its *_metadata.parquet, and whole?"
            _problem(found, Severity.WARNING, f"{FLAGS[modality]}, but the id is in no media file", rows, remedy)


def _check_stated_times(found: Ingest, workers: int) -> None:
    source = found.source
    for finding in compare_times(source, found.presence, workers):
        rows = [f"{_show(source, row)}: {seen}" for row, seen in finding.rows.items()]
        _problem(found, Severity.NOTE if finding.is_harmless else Severity.WARNING, finding.what, rows, finding.remedy)


def _look_for_media(source: Source, modality: str) -> tuple[np.ndarray, list[int], list[int], list[int], list[int]]:
    """Presence bool (N,); rows: path leaves the root, file missing, flag contradicted, flag unfounded."""
    present = np.zeros(len(source), bool)
    outside, missing, contradicted, unfounded = [], [], [], []
    has_blobs = source.has_blobs(modality)
    texts = source.texts if modality == "text" else [None] * len(source)
    cells = zip(source.flags[modality], source.paths[modality], texts, strict=True)
    for row, (flag, stated, text) in enumerate(cells):
        inline = bool(text and text.strip())
        if inline and flag is not False:
            present[row] = True
            continue
        if stated is not None and not (modality == "text" and flag is False):
            path = source.root / stated
            if not source.allow_outside_root and not stays_inside(path, source.root):
                outside.append(row)
            elif is_file(path):
                present[row] = True
                if flag is False:
                    contradicted.append(row)
            elif not (has_blobs or flag is False):
                missing.append(row)
        if not present[row] and has_blobs and flag is not False:
            present[row] = flag is True or _has_blob(source, row, modality)
        elif flag is True and stated is None and not present[row] and modality != "text":
            unfounded.append(row)
    return present, outside, missing, contradicted, unfounded


def _has_blob(source: Source, row: int, modality: str) -> bool:
    assert source.blobs is not None
    return (source.blobs.audio(row) if modality == "audio" else source.blobs.midi(row)) is not None


def _read_labels(source: Source, config: DataConfig, targets: list[TargetConfig]) -> tuple[list[Label], list[str]]:
    """The label columns, and the names of columns that cannot be labels."""
    columns = source.table.other_columns
    if config.labels is None and len(columns) > MAX_LABELS:
        raise SourceError(
            f"{source.table.path} has {len(columns):,} columns that could be labels; up to {MAX_LABELS} are taken "
            f"unasked.\nName those that are: --set 'data.labels=[{columns[0]}]'"
        )
    wanted = columns if config.labels is None else config.labels
    unknown = sorted(set(wanted) - set(columns), key=wanted.index)
    if unknown:
        raise SourceError(f"{source.table.path} has no label column {unknown[0]!r}; it has {listed(columns)}.")
    numeric = {t.column or t.name for t in targets if t.kind == "regression"}
    numeric |= {column for t in targets for column in t.columns or []}
    labels, skipped = [], []
    for name in wanted:
        label = read_label(name, source.table.column(name), as_number=name in numeric)
        if label is None:
            skipped.append(name)
        else:
            labels.append(label)
    return labels, skipped


def _check_labels(found: Ingest, labels: list[Label], skipped: list[str]) -> None:
    source = found.source
    for label in labels:
        cells = source.table.column(label.name)
        rows = [f"{_show(source, row)}: {cells[row].as_py()!r}" for row in label.unreadable]
        _problem(found, Severity.WARNING, f"unreadable {label.name}", rows, "They count as missing labels.")
        if label.values.dtype.kind == "T":
            rows = _contradicting_groups(source, label)
            remedy = "Right where labels belong to segments; a mistake where they belong to whole songs."
            _problem(found, Severity.NOTE, f"group with contradicting {label.name}", rows, remedy)
    remedy = "Dates, structures and binary values are left out."
    _problem(found, Severity.NOTE, "column that cannot be a label", skipped, remedy)
    if not labels:
        remedy = "A store without labels can be featurized and predicted, not trained on."
        found.problems.append(Problem(Severity.WARNING, "no label column", 1, [str(source.table.path)], remedy))


def _contradicting_groups(source: Source, label: Label) -> list[str]:
    values_of: dict[str, set[str]] = defaultdict(set)
    for group, value in zip(source.groups, label.values.tolist(), strict=True):
        if group and value:
            values_of[group].add(value)
    if len(set(label.values.tolist())) > len(label.values) // 2:
        return []  # a description, not a class: it is meant to differ
    return [f"{group!r}: {', '.join(sorted(values))}" for group, values in values_of.items() if len(values) > 1]
