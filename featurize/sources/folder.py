"""The folder layout: a CSV or parquet of segments, media as files beside it. Source: DESIGN §5, layout 1."""

from __future__ import annotations

from featurize.config import DataConfig
from featurize.sources.base import Source
from featurize.sources.table import SegmentTable, read_table
from stores.remote import Location, listed


def open_folder(table_path: Location, config: DataConfig) -> Source:
    """The source described by one table; paths are relative to its folder. Raises `SourceError`."""
    table = SegmentTable(read_table(table_path), table_path, config.columns.mapping("folder"))
    return Source(
        table,
        listed(table_path.parent),
        "folder",
        audio_is=config.audio_is or "song",
        midi_is=config.midi_is or "song",
        allow_outside_root=config.allow_outside_root,
        timecode_rate=config.timecode_rate,
    )
