"""Sources of raw segments: which layout a path holds, and how to open it."""

from __future__ import annotations

from featurize.config import DataConfig
from featurize.errors import SourceError
from featurize.sources.base import Source
from featurize.sources.folder import open_folder
from featurize.sources.split_parquet import open_split_parquet
from stores.remote import Location

__all__ = ["Source", "open_source"]

TABLE_NAMES = ("segments.csv", "segments.parquet")


def open_source(path: Location, config: DataConfig) -> Source:
    """Open the dataset at `path`: a folder, its table, or a `*_metadata.parquet`. Raises `SourceError`."""
    if not path.exists():
        raise SourceError(
            f"There is nothing at {path}. Name a folder with segments.csv, a table, or *_metadata.parquet."
        )
    if path.is_file():
        metadata, tables = ([path], []) if path.name.endswith("_metadata.parquet") else ([], [path])
    else:
        metadata = sorted(path.glob("*_metadata.parquet"))
        tables = [path / name for name in TABLE_NAMES if (path / name).is_file()]
        if not tables and not metadata:
            tables = sorted(path.glob("*.csv"))
    layout = config.layout
    if layout == "auto":
        layout = "folder" if tables else "split_parquet"
    found = tables if layout == "folder" else metadata
    if not found:
        wanted = " or ".join(TABLE_NAMES) if layout == "folder" else "*_metadata.parquet"
        raise SourceError(
            f"{path} holds neither {wanted} nor another table. Name the table itself, or see data.layout."
        )
    if layout == "split_parquet":
        return open_split_parquet(found, config)
    if len(found) > 1:
        raise SourceError(f"{path} holds several tables: {', '.join(p.name for p in found)}. Name the one to read.")
    return open_folder(found[0], config)
