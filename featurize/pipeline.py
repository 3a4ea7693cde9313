"""`featurize`: from an encoder's name to an up-to-date feature in the store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from featurize.encoders import build_encoder
from featurize.encoders.base import Encoder
from featurize.errors import SourceError
from featurize.extract import Extraction, Progress, extract
from featurize.project import StoreRows
from featurize.segments import UnreadableInput
from featurize.sources import Source
from stores.store import Feature, Part, Split, Store


@dataclass(frozen=True)
class Featurized:
    feature: Feature
    extraction: Extraction
    fitted_on: str | None  # the split, where the encoder was fitted in this run
    new_rows: int  # segments of the source that the store does not know


def featurize(
    store: Store,
    source: Source,
    encoder_name: str,
    options: Mapping[str, Any] | None = None,
    *,
    save_as: str | None = None,
    replace: bool = False,
    split_name: str = "default",
    workers: int = 0,
    batch_size: int = 32,
    dtype: str = "float16",
    retry_failed: bool = False,
    progress: Progress | None = None,
) -> Featurized:
    """Encode every segment that is not encoded yet, or whose input changed, into `<modality>/<save_as or encoder>`.

    Raises `RecordMismatch` where another encoder wrote the feature and `replace` is false, `SourceError` where the
    raw data is gone or an encoder cannot be fitted.
    """
    encoder = build_encoder(encoder_name, options)
    name = f"{encoder.modality}/{save_as or encoder_name}"
    rows = StoreRows(store, source, encoder.modality)
    store.tree.remove_leftovers()
    fitted_on = None
    if encoder.must_fit:
        if name in store.features() and not replace:
            _take_over_state(encoder, store.feature(name))
        else:
            split = store.split(split_name)
            _fit(encoder, store, rows, split)
            fitted_on = split.name
    if replace:  # not before the new encoder is ready: a mistake must not cost the old feature
        store.delete_feature(name)
    feature = store.open_feature(
        name,
        encoder.record.to_dict(),
        dtype=np.dtype(dtype),
        state=encoder.state_arrays() if encoder.must_fit else None,
    )
    extraction = extract(
        feature,
        encoder,
        rows,
        workers=workers,
        batch_size=batch_size,
        retry_failed=retry_failed,
        progress=progress,
    )
    return Featurized(feature, extraction, fitted_on, rows.n_new)


def ids_sha256(ids: np.ndarray) -> str:
    """SHA-256 over sorted ids: which segments an encoder or a run has seen, without listing them."""
    digest = hashlib.sha256()
    for segment_id in sorted(ids.tolist()):
        digest.update(segment_id.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


def _fit(encoder: Encoder, store: Store, rows: StoreRows, split: Split) -> None:
    train = split.rows(Part.TRAIN)
    try:
        encoder.fit(_readable(rows, train))
    except UnreadableInput as error:
        raise SourceError(f"{encoder.name} cannot be fitted on split {split.name}: {error}.") from error
    encoder.trained_on = {
        "split": split.name,
        "n_segments": len(train),
        "ids_sha256": ids_sha256(store.ids[train]),
        "labels": False,
    }


def _readable(rows: StoreRows, wanted: np.ndarray) -> Iterator[Any]:
    for row in wanted.tolist():
        try:
            raw = rows.raw(row)
        except UnreadableInput:  # counted and kept as a failed row when its turn comes
            continue
        if raw is not None:
            yield raw


def _take_over_state(encoder: Encoder, feature: Feature) -> None:
    """An encoder fitted for this feature before goes on with what it learned: one lyric that changed moves no other."""
    encoder.load_state_arrays(feature.state())
    encoder.trained_on = feature.record["trained_on"]
