"""The split parquet: `*_metadata.parquet` with every column but the blobs, `*_media.parquet` with the blobs.

Only metadata is held in memory. Blobs are read forward in small batches, one column at a time, so that memory stays
flat however large a row group is; rows are found by id, in whatever order the media file has them.
Source: DESIGN §5, layout 2. Blobs: `audio_waveform` little-endian float32 mono samples with `audio_sample_rate` (Hz),
`midi_binary` a Standard MIDI File; each nullable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featurize.config import DataConfig
from featurize.errors import SourceError
from featurize.segments import UnreadableInput
from featurize.sources.base import Source
from featurize.sources.table import SegmentTable, for_pyarrow, read_table
from stores.remote import Location, RemotePath, listed

BATCH_ROWS = 32  # about 40 MB of 30 s waveforms at 11 kHz to 48 kHz
REMOTE_BUFFER_BYTES = 8 * 2**20  # of a column are read at a time: a request takes tens of milliseconds
BLOB_ROLES = ("audio_waveform", "audio_sample_rate", "midi_binary")


def open_split_parquet(metadata_paths: list[Location], config: DataConfig) -> Source:
    """The source of one or more metadata files and their media files, in name order. Raises `SourceError`."""
    roles = config.columns.mapping("split_parquet")
    blob_columns = tuple(roles[role] for role in BLOB_ROLES)
    tables = [read_table(path, drop=blob_columns) for path in metadata_paths]
    try:
        table = pa.concat_tables(tables)
    except pa.ArrowException as error:
        raise SourceError(f"The metadata files do not have the same columns: {str(error).splitlines()[0]}") from error
    segments = SegmentTable(table, metadata_paths[0], roles)
    media = [path.with_name(path.name.replace("_metadata.", "_media.")) for path in metadata_paths]
    blobs = MediaBlobs([path for path in media if path.is_file()], roles, segments.texts("segment_id"))
    return Source(
        segments,
        listed(metadata_paths[0].parent),
        "split_parquet",
        audio_is=config.audio_is or "segment",
        midi_is=config.midi_is or "song",
        blobs=blobs,
        allow_outside_root=config.allow_outside_root,
        timecode_rate=config.timecode_rate,
    )


class MediaBlobs:
    """Blobs of `*_media.parquet` by row of the metadata."""

    def __init__(self, paths: list[Location], roles: Mapping[str, str], ids: list[str | None]):
        self._columns = {role: roles[role] for role in BLOB_ROLES}
        self._paths = paths
        self._place: dict[int, tuple[int, int]] = {}  # metadata row -> media file, row in it
        self.unknown_ids: list[str] = []
        self._available: set[str] = set()
        row_of = {segment_id: row for row, segment_id in enumerate(ids) if segment_id is not None}
        for number, path in enumerate(paths):
            try:
                names = set(pq.read_schema(for_pyarrow(path)).names)
                if roles["segment_id"] not in names:
                    raise SourceError(f"{path} has no column {roles['segment_id']!r} to join it by.")
                media_ids = (
                    pq.read_table(for_pyarrow(path), columns=[roles["segment_id"]])
                    .column(0)
                    .cast(pa.string())
                    .to_pylist()
                )
            except (OSError, pa.ArrowException) as error:
                raise SourceError(f"Cannot read {path}: {str(error).splitlines()[0]}") from error
            self._available |= {role for role, column in self._columns.items() if column in names}
            for media_row, segment_id in enumerate(media_ids):
                if segment_id in row_of:
                    self._place.setdefault(row_of[segment_id], (number, media_row))
                else:
                    self.unknown_ids.append(str(segment_id))
        self._cursors: dict[tuple[int, str], _Cursor] = {}

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which opens the files anew."""
        return {**self.__dict__, "_cursors": {}}

    def has(self, modality: str) -> bool:
        """Whether the media files have a column of this modality."""
        return {"audio": "audio_waveform", "midi": "midi_binary"}.get(modality) in self._available

    def audio(self, row: int) -> tuple[bytes, int] | None:
        """float32 samples as bytes, and their rate in Hz. Raises `UnreadableInput` on samples without a rate."""
        samples = self._read(row, "audio_waveform")
        if samples is None:
            return None
        rate = self._read(row, "audio_sample_rate")
        if rate is None:
            raise UnreadableInput(f"{self._columns['audio_waveform']} has samples but no sample rate")
        if not isinstance(samples, bytes):  # a list<float> column, as pandas writes arrays
            samples = np.asarray(samples, "<f4").tobytes()
        return samples, int(rate)

    def midi(self, row: int) -> bytes | None:
        """A whole MIDI file; `None` where the row has none."""
        data = self._read(row, "midi_binary")
        return data if data is None or isinstance(data, bytes) else None

    def problems(self, flags: dict[str, list[bool | None]]) -> list[tuple[str, list[int]]]:
        """Rows that claim a blob but stand in no media file, per modality."""
        return [
            (modality, [row for row, flag in enumerate(flags[modality]) if flag and row not in self._place])
            for modality in ("audio", "midi")
        ]

    def _read(self, row: int, role: str) -> Any:
        if role not in self._available or row not in self._place:
            return None
        number, media_row = self._place[row]
        cursor = self._cursors.get((number, role))
        if cursor is None:
            cursor = self._cursors[number, role] = _Cursor(self._paths[number], self._columns[role])
        return cursor.value(media_row)


class _Cursor:
    """One column of one parquet file, read forward in batches; going back reopens the row group."""

    def __init__(self, path: Location, column: str):
        buffer_bytes = REMOTE_BUFFER_BYTES if isinstance(path, RemotePath) else 0
        self._file = pq.ParquetFile(for_pyarrow(path), memory_map=True, pre_buffer=False, buffer_size=buffer_bytes)
        self._column = column
        metadata = self._file.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        self._batches: Iterator[pa.RecordBatch] | None = None
        self._group = -1
        self._first = 0  # row of the file at which the batch in hand begins
        self._batch: pa.Array | None = None

    def value(self, row: int) -> Any:
        if self._column not in self._file.schema_arrow.names:
            return None
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        if self._batches is None or group != self._group or row < self._first:
            self._batches = self._file.iter_batches(BATCH_ROWS, row_groups=[group], columns=[self._column])
            self._group, self._first, self._batch = group, int(self._starts[group]), None
        while self._batch is None or row >= self._first + len(self._batch):
            if self._batch is not None:
                self._first += len(self._batch)
            self._batch = next(self._batches).column(0)
        return self._batch[row - self._first].as_py()
