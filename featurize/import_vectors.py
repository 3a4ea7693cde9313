"""`import`: vectors that somebody else computed, from the user's files to features of a store, joined by id.

Everything is read and checked before anything is written. On the way the vectors wait in a temporary file in the order
of the store, so memory does not grow with them, and the order of the files does not matter.

A feature that is there from the same column of the same file counts as begun: chunks that stand as they would be
written are left, the others written. So an import that was killed goes on when the same command is given again.

A row of the store whose id a file does not have is absent, not pending: pending means that the same command would do
the rest, and this one has nothing more to give. It is counted apart.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from featurize.config import DataConfig, TargetConfig
from featurize.errors import ConfigError, SourceError
from featurize.ingestion import Ingest, check_source, describe_source, refuse_errors
from featurize.segments import DIGEST_BYTES
from featurize.sources.table import listed
from featurize.sources.vectors import SUFFIX, VectorFile, open_segments
from stores import open_store
from stores.backends import new_tree
from stores.errors import disk_told
from stores.feature import Feature, Status
from stores.record import IMPORTED_FROM
from stores.remote import Location
from stores.store import DEFAULT_CHUNK_ROWS, Store

NOT_IN_FILE = "not in the file"
SLOT_OF = {"lyric": "text", "lyrics": "text"}  # NAME_embedding fills slot NAME, but for these


@dataclass(frozen=True)
class Wanted:
    """A column on its way to a feature. made_by: what the user says of its encoder."""

    file: VectorFile
    column: str
    flag: str | None
    feature: str  # slot/name
    made_by: str | None = None


@dataclass(frozen=True)
class Imported:
    """A feature that was written. absent: rows of the store, by why. unknown: ids of the file that it does not have.

    unchanged: all of it stood in the store already.
    """

    wanted: Wanted
    feature: Feature
    n_present: int
    unchanged: bool
    absent: Mapping[str, int]
    unknown: list[str]


def choose_columns(
    files: Sequence[VectorFile],
    columns: Mapping[str, str] | None = None,
    flags: Mapping[str, str] | None = None,
    made_by: Mapping[str, str] | None = None,
) -> list[Wanted]:
    """Which columns become which features: as named, `column -> slot/name`; else every `NAME_embedding`.

    Raises `ConfigError` on a column that no file has, and where two would become one feature.
    """
    columns, flags, made_by = dict(columns or {}), dict(flags or {}), dict(made_by or {})
    wanted = []
    for file in files:
        names = file.names()
        chosen = [name for name in columns if name in names] if columns else file.vector_names()
        if not columns and not chosen:
            candidates = listed(file.candidates()) or "none"
            raise ConfigError(
                f"{file.path} has no column NAME{SUFFIX}; columns that could hold vectors: {candidates}.\n"
                "Say which becomes what: --column COLUMN=SLOT/NAME"
            )
        for column in chosen:
            file.check_vectors(column)
            flag = flags.get(column, _flag_beside(column))
            if column in flags and flag not in names:
                raise ConfigError(
                    f"{file.path} has no column {flag!r} for the flag of {column}; it has {listed(names)}."
                )
            feature = columns.get(column) or conventional_feature(column)
            wanted.append(Wanted(file, column, flag if flag in names else None, feature, made_by.get(column)))
    for option, mapping in (("--column", columns), ("--flag", flags), ("--made-by", made_by)):
        unknown = [name for name in mapping if name not in {w.column for w in wanted}]
        if unknown:
            known = listed([name for file in files for name in file.candidates()])
            raise ConfigError(
                f"{option}: no vectors of column {unknown[0]!r} are imported; columns of vectors: {known}."
            )
    for w in wanted:
        if w.feature.count("/") != 1 or not all(w.feature.split("/")):
            raise ConfigError(f"--column {w.column}={w.feature}: a feature is named SLOT/NAME, e.g. text/deberta.")
    twice = [name for name, count in Counter(w.feature for w in wanted).items() if count > 1]
    if twice:
        raise ConfigError(f"Two columns would become {twice[0]}. Name one otherwise: --column COLUMN=SLOT/NAME")
    return wanted


def conventional_feature(column: str) -> str:
    """`lyric_embedding` is `text/lyric_embedding`, `concept_embedding` is `concept/concept_embedding`."""
    name = column.rpartition("/")[2]
    stem = name.removesuffix(SUFFIX)
    return f"{SLOT_OF.get(stem, stem)}/{name}"


def check_new_store(wanted: Sequence[Wanted], config: DataConfig, targets: Sequence[TargetConfig]) -> Ingest:
    """The segments and labels of a store that the first file's table makes, and what is wrong with them."""
    file = wanted[0].file
    vectors = {name for w in wanted if w.file is file for name in (w.column, w.flag) if name}
    by_name = file.vector_names()
    left_out = {*vectors, *by_name, *map(_flag_beside, by_name)}
    return check_source(open_segments(file, left_out, config), config, targets, with_media=False)


def make_store(
    found: Ingest, wanted: Sequence[Wanted], store_path: Location, dtype: str
) -> tuple[Store, list[Imported]]:
    """A new store with its features, which appears when all is written. Raises `SourceError` as `add_features`."""
    refuse_errors(found)
    with ExitStack() as exits:
        columns = [_Column(w, found.segments["id"], exits) for w in wanted]
        store_path.parent.mkdir(parents=True, exist_ok=True)
        with new_tree(store_path) as tree:
            facts = describe_source(found.source, store_path)
            store = Store.create(tree, found.segments, found.labels, facts, DEFAULT_CHUNK_ROWS)
            for column in columns:
                column.write(store, dtype)
        store = open_store(store_path)
        return store, [column.imported(store) for column in columns]


def add_features(store: Store, wanted: Sequence[Wanted], dtype: str, *, replace: bool = False) -> list[Imported]:
    """Features of a store that exists, once all columns are found whole.

    Raises `ConfigError` where a feature exists that is not of the same column, and `replace` is false, `SourceError`
    where a vector is not as the others, or none is there.
    """
    for w in wanted:
        if store.has_feature(w.feature) and not replace and not _is_from(store.feature(w.feature), w, dtype):
            raise ConfigError(
                f"{store.tree.location} holds {w.feature} already. Keep both with --column "
                f"{w.column}={w.feature.partition('/')[0]}/NAME, or pass --replace."
            )
    with ExitStack() as exits:
        for w in wanted:
            exits.enter_context(store.writing(w.feature))
        columns = [_Column(w, store.ids, exits) for w in wanted]
        for column in columns:
            column.write(store, dtype, replace=replace)
        return [column.imported(store) for column in columns]


def _is_from(feature: Feature, wanted: Wanted, dtype: str) -> bool:
    """Whether this feature was written, or begun, by the same import."""
    return feature.record == imported_record(wanted, feature.width) and feature.first_dtype == dtype


class _Column:
    """A column that was read and found whole. Its vectors wait in a temporary file: float32 (N, width)."""

    def __init__(self, wanted: Wanted, ids: np.ndarray, exits: ExitStack):
        """ids: text (N,), of the store."""
        file = wanted.file
        row_of = {segment_id: row for row, segment_id in enumerate(ids.tolist())}
        row = np.array([row_of.get(segment_id, -1) for segment_id in file.ids], np.int64)
        if not (row >= 0).any():
            raise SourceError(
                f"{file.path}: none of its {len(file.ids):,} ids ({file.id_name}: {file.ids[0]!r}, …) is in the store "
                f"({ids[0]!r}, …). Is --ids the right column?"
            )
        self._wanted = wanted
        self._present = np.zeros(len(ids), bool)
        self._absent: Counter[str] = Counter()
        self._unknown = [segment_id for segment_id, known in zip(file.ids, row >= 0, strict=True) if not known]
        self._unchanged = True
        self._spool = tempfile.TemporaryFile()  # noqa: SIM115 (it is closed with `exits`)
        exits.callback(_close_unasked, self._spool)
        self._width = 0
        for part in file.vectors(wanted.column, wanted.flag):
            known = row[part.rows] >= 0
            self._put(row[part.rows[known]], part.vectors[known])
            for why, rows in part.absent.items():
                self._absent[why] += int((row[rows] >= 0).sum())
        if not self._present.any():
            raise SourceError(f"{file.path}: {wanted.column} has not one vector for the segments of the store.")
        self._absent[NOT_IN_FILE] = len(ids) - int((row >= 0).sum())

    def write(self, store: Store, dtype: str, *, replace: bool = False) -> None:
        """What the store does not have yet of the feature; with `replace` all of it, in place of one of its name."""
        if replace:
            store.delete_feature(self._wanted.feature)
        record = imported_record(self._wanted, self._width)
        feature = store.open_feature(self._wanted.feature, record, dtype=np.dtype(dtype))
        for chunk in feature.chunks():
            vectors = self._get(chunk)
            present = self._present[chunk.start : chunk.stop]
            hashes = np.zeros((len(chunk), DIGEST_BYTES), np.uint8)
            for at in np.flatnonzero(present):
                hashes[at] = np.frombuffer(hashlib.blake2b(vectors[at], digest_size=DIGEST_BYTES).digest(), np.uint8)
            status = np.where(present, Status.PRESENT, Status.ABSENT).astype(np.uint8)
            if (feature.read_status(chunk) == status).all() and (feature.read_input_hashes(chunk) == hashes).all():
                continue
            self._unchanged = False
            feature.write_chunk(chunk, np.array(chunk), vectors, status, hashes, [""] * len(chunk))

    def imported(self, store: Store) -> Imported:
        absent = {why: count for why, count in self._absent.items() if count}
        feature = store.feature(self._wanted.feature)
        return Imported(self._wanted, feature, int(self._present.sum()), self._unchanged, absent, self._unknown)

    def _put(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Consecutive rows in one go: files mostly have the store's order."""
        self._present[rows] = True
        self._width = vectors.shape[1] if len(rows) else self._width
        with disk_told(tempfile.gettempdir()):
            for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1):
                if len(run):
                    self._spool.seek(int(rows[run[0]]) * 4 * self._width)
                    self._spool.write(np.ascontiguousarray(vectors[run]).tobytes())
            self._spool.flush()

    def _get(self, rows: range) -> np.ndarray:
        """float32 (n, width), zeros where nothing is present."""
        self._spool.seek(rows.start * 4 * self._width)
        content = np.frombuffer(self._spool.read(len(rows) * 4 * self._width), np.float32)
        vectors = np.zeros(len(rows) * self._width, np.float32)
        vectors[: len(content)] = content  # the file ends with the last row that is there
        return vectors.reshape(len(rows), self._width)


def _close_unasked(file: IO[bytes]) -> None:
    """What it still wanted to write is no longer needed, and why it could not has been said."""
    with suppress(OSError):
        file.close()


def imported_record(wanted: Wanted, width: int) -> dict[str, Any]:
    """What the store keeps in place of an `EncoderRecord`: what is known, and where it is from (`stores.record`)."""
    where = f"{wanted.file.path.name}:{wanted.column}"
    return {
        "encoder": "import",
        "class_name": "",
        "modality": wanted.feature.partition("/")[0],
        "width": width,
        "weights": {"source": wanted.made_by} if wanted.made_by else {"source": where, "sha256": wanted.file.sha256},
        "parameters": {},
        "precision": "unknown",
        "libraries": {},
        "trained_on": None,
        IMPORTED_FROM: {
            "file": wanted.file.path.name,
            "sha256": wanted.file.sha256,
            "column": wanted.column,
            "flag": wanted.flag,
            "made_by": wanted.made_by,
        },
    }


def _flag_beside(column: str) -> str:
    """`has_x` for `x`, in the same group."""
    group, slash, name = column.rpartition("/")
    return f"{group}{slash}has_{name}"
