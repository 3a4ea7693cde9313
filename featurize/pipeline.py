"""`featurize`: from an encoder's name to an up-to-date feature in the store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from featurize.audit import Audit, audit
from featurize.chunk_work import Extraction, RawSource
from featurize.encode import set_up
from featurize.encoders import build_encoder, encoder_class
from featurize.encoders.base import Encoder
from featurize.errors import ConfigError, SourceError
from featurize.extract import Progress, extract
from featurize.limits import DEFAULT_LIMITS, Limits
from featurize.project import StoreRows
from featurize.segments import UnreadableInput
from featurize.sources import Source
from featurize.trained import load_trained
from stores.card import Card
from stores.claim import one_by_one
from stores.errors import RecordMismatch
from stores.feature import Feature
from stores.repair import mark_damaged_pending
from stores.shard import Shard
from stores.store import Part, Split, Store


@dataclass(frozen=True, repr=False)
class Featurized:
    """What `featurize` has done, and the feature as it now stands."""

    feature: Feature
    extraction: Extraction
    fitted_on: str | None  # the split, where the encoder was fitted in this run
    new_rows: int  # segments of the source that the store does not know
    repaired: list[range]  # the rows of chunks that were damaged, with `repair`
    audit: Audit | None

    def card(self) -> Card:
        """What it shows of itself."""
        e = self.extraction
        facts = [
            ("segments", f"{e.present:,} present, {e.absent:,} absent, {e.failed:,} failed of {e.rows:,}"),
            ("this time", f"{e.encoded:,} encoded, {e.copied:,} copied from equal inputs, {e.unchanged:,} unchanged"),
            ("vectors", f"{self.feature.dtype} ({self.feature.n_segments:,}, {self.feature.width:,})"),
        ]
        return Card(f"Feature {self.feature.name}, written in {e.seconds:.1f} s", facts)

    def __repr__(self) -> str:
        return self.card().text()

    def _repr_html_(self) -> str:
        return self.card().html()


def featurize(
    store: Store,
    source: Source,
    encoder: Encoder,
    *,
    save_as: str | None = None,
    replace: bool = False,
    split_name: str = "default",
    workers: int = 0,
    batch_size: int | None = None,
    batch_budget: int | None = None,
    dtype: str = "float16",
    frames: int = 0,
    device: str = "auto",
    precision: str = "fp32",
    retry_failed: bool = False,
    repair: bool = False,
    audit_rows: int = 0,
    limits: Limits = DEFAULT_LIMITS,
    progress: Progress | None = None,
    shard: Shard | None = None,
    engine: Engine | None = None,
) -> Featurized:
    """Encode every segment that is not encoded yet, or whose input changed, into `<modality>/<save_as or encoder>`.

    frames: keep up to so many time-pooled frames a segment beside its vector. audit_rows: encode so many again.
    repair: look for damaged chunks of the feature first, and encode their rows again, too. shard: only its chunks;
    other processes may have theirs. engine: where chunks are encoded, if not in this process.
    Raises `RecordMismatch` where another encoder wrote the feature and `replace` is false, `SourceError` where the
    raw data is gone or an encoder cannot be fitted, `ConfigError` where it cannot do what is asked, `StoreError`
    where another process writes this feature.
    """
    configure(encoder, device if engine is None else "cpu", precision, batch_budget, frames)
    name = f"{encoder.modality}/{save_as or encoder.name}"
    if shard is not None and (replace or repair):
        raise ConfigError(
            f"A shard cannot {'replace' if replace else 'repair'} what other shards may be writing. "
            f"{'Give the feature another name with --as, or run' if replace else 'Run'} without --shard."
        )
    with store.writing(name, shard):
        rows = StoreRows(store, source, encoder.modality)
        if shard is None:
            store.tree.remove_leftovers()
        fitted_on = None
        if repair and (replace or not store.has_feature(name)):
            why = "--replace writes all of it anew" if replace else f"{store.tree.location} has no {name}"
            raise ConfigError(f"There is nothing to repair: {why}. Leave --repair away.")
        with one_by_one(store.tree.claims, name) if shard else nullcontext(True) as alone:
            if encoder.must_fit:
                fitted_on = make_ready(encoder, store, rows, name, split_name, replace)
            if replace:  # not before the new encoder is ready: a mistake must not cost the old feature
                store.delete_feature(name)
            feature = _open_feature(store, name, encoder, np.dtype(dtype), frames, shard, alone)
        if frames and feature.max_frames != frames:
            has = f"up to {feature.max_frames} frames a row" if feature.has_frames else "no frames"
            raise ConfigError(
                f"{name} was written with {has}, not {frames}. Keep both with --as NAME, or pass --replace."
            )
        repaired = mark_damaged_pending(store, feature) if repair else []
        run = partial(extract, shard=shard) if engine is None else engine.extract
        extraction = run(
            feature,
            encoder,
            rows,
            workers=workers,
            batch_size=batch_size,
            retry_failed=retry_failed,
            limits=limits,
            progress=progress,
        )
        found = audit(feature, encoder, rows, audit_rows) if audit_rows else None
        return Featurized(feature, extraction, fitted_on, rows.n_new, repaired, found)


class Engine(Protocol):
    """Where chunks are encoded, if not in this process."""

    def extract(
        self,
        feature: Feature,
        encoder: Encoder,
        source: RawSource,
        *,
        workers: int,
        batch_size: int | None,
        retry_failed: bool,
        limits: Limits,
        progress: Progress | None,
    ) -> Extraction:
        """As `featurize.extract.extract`."""


def _open_feature(
    store: Store, name: str, encoder: Encoder, dtype: np.dtype[Any], frames: int, shard: Shard | None, alone: bool
) -> Feature:
    creation: dict[str, Any] = {"dtype": dtype, "frames": frames}
    if encoder.must_fit:
        creation["state"] = encoder.state_arrays()
    if shard is None:
        return store.open_feature(name, encoder.record.to_dict(), **creation)
    try:
        return store.join_feature(name, encoder.record.to_dict(), shard, alone=alone, **creation)
    except RecordMismatch:
        if not encoder.must_fit or alone:
            raise
        _take_over_state(encoder, store.feature(name))  # another shard has fitted one at the same time, and was first
        return store.join_feature(name, encoder.record.to_dict(), shard, alone=alone)


def open_encoder(name: str, options: Mapping[str, Any] | None = None, *, trained: Path = Path("encoders")) -> Encoder:
    """The encoder `name`, ready but for fitting. One that must be trained is taken from `pretrained_model`, a folder,
    or from its folder in `trained`, where `cli train-encoder` leaves it."""
    options = dict(options or {})
    cls = encoder_class(name)
    if not cls.must_train:
        return build_encoder(name, options)
    return load_trained(Path(options.pop("pretrained_model", trained / cls.name)), name, options)


def ids_sha256(ids: np.ndarray) -> str:
    """SHA-256 over sorted ids, text (n,): which segments an encoder or a run has seen, without listing them."""
    digest = hashlib.sha256()
    for segment_id in sorted(ids.tolist()):
        digest.update(segment_id.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


def configure(encoder: Encoder, device: str, precision: str, batch_budget: int | None, frames: int) -> None:
    """`set_up`, and what else a user may ask of an encoder. Raises `ConfigError` where it cannot do that."""
    set_up(encoder, device, precision)
    if batch_budget is not None:
        encoder.batch_budget = batch_budget
    if frames and not encoder.has_frames:
        raise ConfigError(f"Encoder {encoder.name} has no frames; leave --frames away.")


def make_ready(
    encoder: Encoder, store: Store, rows: StoreRows, name: str, split_name: str, replace: bool
) -> str | None:
    """Fit an encoder that must be, and return on which split; or take over what it has learned for this feature."""
    if not replace and store.has_feature(name):
        _take_over_state(encoder, store.feature(name))
        return None
    split = store.split(split_name)
    _fit(encoder, store, rows, split)
    return split.name


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
