"""The store a run was trained on, and its raw data: what the report shows of segments, where they are at hand.

The numbers of a report come from the run folder alone. Of the store only features are shown whose fingerprint is the
one the run was trained on; what is not at hand is said on the page, and how to get it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from featurize.config import DataConfig, FeaturizeConfig
from featurize.errors import SourceError
from featurize.project import StoreRows, open_source_of
from featurize.segments import RawText, UnreadableInput
from featurize.sources import Source
from fusion.report.folder import RunFolder
from fusion.report_parts import ReportParts
from stores import open_store
from stores.errors import TriadError
from stores.remote import Location, location
from stores.store import Store

STORE = "features.zarr"


@dataclass(frozen=True)
class Material:
    """store: with the segments of the run; `None` where it is not at hand. why_not: what is missing, by `store`,
    `texts` or `audio`, in a sentence each."""

    parts: ReportParts
    store: Store | None = None
    features: Mapping[str, str] = field(default_factory=dict)  # slot -> feature, of those that are the run's
    source: Source | None = None
    why_not: Mapping[str, str] = field(default_factory=dict)

    def texts(self, rows: Iterable[int]) -> list[str]:
        """By row of the store; empty where there is none, or it cannot be read."""
        assert self.store is not None and self.source is not None
        reader = StoreRows(self.store, self.source, "text")
        return [_text(reader, row) for row in rows]

    @property
    def shows_texts(self) -> bool:
        """Whether lyrics are at hand and wanted."""
        return self.source is not None and "texts" not in self.why_not

    @property
    def plays_audio(self) -> bool:
        """Whether audio is at hand and wanted."""
        return self.source is not None and "audio" not in self.why_not


def material_of(
    run: RunFolder,
    parts: ReportParts,
    store: Store | None = None,
    config: FeaturizeConfig | None = None,
    data_path: Location | None = None,
) -> Material:
    """What can be shown of `run`. store: that it was trained on; else it is looked for, see `find_store`.

    The raw data is where `data_path` says, else `config`, else the store.
    """
    if parts.projection == "none" and not parts.texts and parts.audio is False and not parts.health:
        return Material(parts)
    if store is None:
        try:
            store = find_store(run)
        except TriadError as error:
            return Material(parts, why_not={"store": str(error).replace("\n", " ")})
    features = own_features(run, store)
    if not features:
        said = f"{store.tree.location} does not have the features that this run was trained on."
        return Material(parts, why_not={"store": f"{said} Name another with cli report RUN --store."})
    if data_path is None and config is not None and config.data.path is not None and config.data.path.exists():
        data_path = config.data.path
    source, why_not = _open_source(store, parts, data_path)
    return Material(parts, store, features, source, why_not)


def find_store(run: RunFolder, named: Location | None = None) -> Store:
    """The store that a run names, here, beside the run's project, or as `named`. Raises `TriadError`."""
    said = location(str(run.environment.get("store", STORE)))
    candidates: list[Location] = (
        [named] if named else [said, Path(STORE), run.folder.resolve().parent.parent / said.name]
    )
    for path in dict.fromkeys(candidates):
        if path.exists() and (named or own_features(run, found := open_store(path))):
            return open_store(path) if named else found
    raise TriadError(f"The store {said} is not here. Say where it is: cli report RUN --store PATH")


def own_features(run: RunFolder, store: Store) -> dict[str, str]:
    """Slot to feature, of those features of the run that the store has as they were."""
    known: Mapping[str, str] = run.environment.get("features", {})
    stored = set(store.features())
    names = {slot: f"{slot}/{encoder}" for slot, encoder in run.metrics["slots"].items()}
    return {
        slot: name
        for slot, name in names.items()
        if name in stored and store.feature(name).fingerprint == known.get(name)
    }


def _open_source(store: Store, parts: ReportParts, data_path: Location | None) -> tuple[Source | None, dict[str, str]]:
    why_not = {} if parts.texts else {"texts": "Texts were left out (--no-text)."}
    if parts.audio is False:
        why_not["audio"] = "Audio was left out (--no-audio)."
    if len(why_not) == 2:
        return None, why_not
    if "path" not in store.source:  # a store that a program made
        said = f"{store.tree.location} does not say where its raw data is."
        return None, {"texts": said, "audio": said}
    try:
        source = open_source_of(store, location(store.tree.location), FeaturizeConfig(data=DataConfig(path=data_path)))
        StoreRows(store, source, "text")  # whether it still has the store's segments
    except (SourceError, OSError) as error:
        said = str(error).replace("\n", " ")
        return None, {"texts": said, "audio": said}
    if parts.audio is None and source.has_blobs("audio"):
        said = "The audio lies in parquet files, which are read from their start"
        why_not["audio"] = f"{said}; that can take minutes. With it: cli report RUN --audio"
    return source, why_not


def _text(reader: StoreRows, row: int) -> str:
    try:
        raw = reader.raw(row)
    except UnreadableInput:
        return ""
    return raw.text.strip() if isinstance(raw, RawText) else ""


def rows_of(store: Store, ids: Iterable[str]) -> np.ndarray:
    """int (n,): the row of each segment, -1 where the store has none of that id."""
    ids = list(ids)
    row_of = dict.fromkeys(ids, -1)
    row_of.update((segment_id, row) for row, segment_id in enumerate(store.ids) if segment_id in row_of)
    return np.array([row_of[segment_id] for segment_id in ids], dtype=np.int64)
