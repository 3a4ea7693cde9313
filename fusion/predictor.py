"""What a run's model says of segments: of a store, of raw segments, or of vectors.

    predictor = Predictor("gated")
    table = predictor.predict([{"text": RawText("…"), "audio": RawAudio(path=Path("clip.wav"))}])

Every way gives the same table, a row a segment, in order:

    segment_id             text
    <target>.predicted     class, or value in the label's own units
    <target>.p.<class>     float64: a probability or a share
    used.<slot>            bool: whether the slot was there and shown to the model
    weight.<slot>          how much it counted, where the fusion says so
    failed.<slot>          text: why a slot that is there could not be encoded; else null

Labels are not needed. What is missing is missing as in training; where nothing is present, the prediction is the one
that the model has for that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from featurize.alignment import Correction
from featurize.config import DataConfig
from featurize.errors import ConfigError, SourceError, UnknownName
from featurize.ingestion import check_table
from featurize.segments import Raw, RawAudio, RawMidi, RawText, UnreadableInput
from featurize.sources import Source, open_source
from fusion.load_run import LoadedRun, check_features, load_run, load_temperatures
from fusion.run_encoders import Progress, Read, RunEncoders
from fusion.slot_inputs import SlotInput, given_input, segment_data, stored_input
from fusion.train import infer
from stores import open_store
from stores.backends import HDF5_SUFFIXES, kind_at
from stores.base import STRING
from stores.feature import Status
from stores.remote import Location
from stores.store import Store

Segment = Mapping[str, Raw | str | None]  # slot -> raw input; and `segment_id`, where it has one
RAW_KINDS: dict[str, type] = {"text": RawText, "audio": RawAudio, "midi": RawMidi}
STORE_SUFFIXES = (".zarr", *HDF5_SUFFIXES)  # what is called so and is not there is a store that is missed
BLOCK_ROWS = 16_384  # read, encoded and predicted at once, fewer with frames: 60 MB of 1,792 columns


class Predictor:
    """A run's model, ready for segments.

    run: its folder, or a name in `runs/`. slots: what is shown to the model; all where `None`. calibrated: divide
    logits by the temperatures that `cli evaluate` found. The others are for raw segments alone: device, where encoders
    run (the model itself is small, and runs on the CPU); workers, processes that prepare; store, places and
    allow_other_versions, as `RunEncoders` takes them. Raises `TriadError`s where something does not fit.
    """

    def __init__(
        self,
        run: LoadedRun | Path | str,
        *,
        slots: Sequence[str] | None = None,
        calibrated: bool = False,
        device: str = "cpu",
        workers: int = 0,
        store: Location | None = None,
        places: Mapping[str, Path] | None = None,
        allow_other_versions: bool = False,
    ):
        self.run = run if isinstance(run, LoadedRun) else load_run(Path(run))
        for slot in [*(slots or ()), *(places or ())]:
            self._check_slot(slot)
        self.slots = tuple(slot for slot in self.run.slots if slots is None or slot in slots)
        self.temperatures = load_temperatures(self.run) if calibrated else {}
        self._encoder_options: dict[str, Any] = {
            "device": device,
            "workers": workers,
            "places": places,
            "allow_other_versions": allow_other_versions,
        }
        self._store_path = store

    @cached_property
    def encoders(self) -> RunEncoders:
        """Built when the first raw segment comes."""
        return RunEncoders(self.run, self.slots, self._store_path, **self._encoder_options)

    def notes(self, data: Store | Source) -> list[str]:
        """What about these data may not be as one thinks."""
        if isinstance(data, Store):
            check_features(self.run, data, self.slots)
            pending = {slot: data.feature(self.run.features[slot]).status == Status.PENDING for slot in self.slots}
            return [
                f"{self.run.features[slot]}: {int(rows.sum()):,} rows are not featurized yet, and count as missing."
                for slot, rows in pending.items()
                if rows.any()
            ]
        correction = Correction.of(self.encoders.store)
        if correction is None or not (correction.shift_seconds.any() or correction.excluded.any()):
            return []
        return ["cli align has shifted MIDI, or left some out, for training; here it is taken as these data state it."]

    def predict(self, data: Store | Source | Sequence[Segment]) -> pa.Table:
        """One table of a store, a source (`open_data` gives either), or a list of dicts with raw inputs by slot."""
        return pa.concat_tables(list(self.blocks(data)))

    def blocks(
        self,
        data: Store | Source | Sequence[Segment],
        rows: np.ndarray | None = None,
        progress: Progress | None = None,
    ) -> Iterator[pa.Table]:
        """The same in blocks of rows, so that memory stays flat. rows: ascending row numbers (n,); all where `None`.

        progress: called with what is counted, how many are done, and how many in all.
        """
        if isinstance(data, Store):
            return self._of_store(data, rows, progress)
        ids, read = self._of_source(data) if isinstance(data, Source) else self._of_list(data)
        return self._of_raw(ids, read, np.arange(len(ids)) if rows is None else np.asarray(rows), progress)

    def predict_vectors(
        self,
        vectors: Mapping[str, Any],
        *,
        frames: Mapping[str, tuple[Any, Any]] | None = None,
        ids: Sequence[str] | None = None,
    ) -> pa.Table:
        """Of vectors that the run's encoders gave: by slot, float (n, D).

        A slot that is left out is missing, and so is a row of NaN. frames: float (n, T, D) and how many of the T are
        real, int (n,), of slots whose frames the model reads. ids: n texts; row numbers where `None`. Raises
        `ConfigError` on what the model cannot read.
        """
        arrays = {slot: np.asarray(values) for slot, values in vectors.items()}
        sizes = {slot: len(array) for slot, array in arrays.items()} | ({} if ids is None else {"ids": len(ids)})
        if len(set(sizes.values())) != 1:
            raise ConfigError(f"Expected equally many rows of every slot, and at least one slot or ids; got {sizes}.")
        inputs = {}
        for slot, array in arrays.items():
            self._check_slot(slot)
            given = (frames or {}).get(slot)
            inputs[slot] = given_input(slot, array, self.run.widths[slot], given, slot in self.run.frame_slots)
        n = next(iter(sizes.values()))
        names = np.array([str(row) for row in range(n)] if ids is None else list(ids), dtype=STRING)
        return self._table(names, {slot: inputs[slot] for slot in self.slots if slot in inputs}, np.arange(n))

    def _of_store(self, store: Store, rows: np.ndarray | None, progress: Progress | None) -> Iterator[pa.Table]:
        check_features(self.run, store, self.slots)
        features = {slot: store.feature(self.run.features[slot]) for slot in self.slots}
        with_frames = {slot for slot in self.slots if slot in self.run.frame_slots}
        longest = max((features[slot].max_frames for slot in with_frames), default=0)
        for block in _ranges(store.n_segments, BLOCK_ROWS // (1 + longest)):
            inputs = {slot: stored_input(feature, block, slot in with_frames) for slot, feature in features.items()}
            yield self._table(store.segment_column("id", block), inputs, _rows_in(block, rows))
            if progress is not None:
                progress("segments", block.stop, store.n_segments)

    def _of_raw(self, ids: np.ndarray, read: Read, rows: np.ndarray, progress: Progress | None) -> Iterator[pa.Table]:
        for block in _ranges(len(rows), BLOCK_ROWS // (1 + self.encoders.max_frames)):
            of_block = rows[block.start : block.stop].tolist()
            encoded = self.encoders.encode(ids[of_block], _of_rows(read, of_block), _after(progress, block, len(rows)))
            yield from self._of_store(encoded, None, None)

    def _of_source(self, source: Source) -> tuple[np.ndarray, Read]:
        if errors := check_table(source).errors:
            raise SourceError(f"{source.table.path} cannot be read as it is: {errors[0]}")
        modality = {slot: self.encoders.modality(slot) for slot in self.slots}
        _check_paths(source, modality.values())
        return np.array(source.ids, dtype=STRING), lambda row, slot: source.raw(row, modality[slot])

    def _of_list(self, segments: Sequence[Segment]) -> tuple[np.ndarray, Read]:
        names = [str(segment.get("segment_id") or row) for row, segment in enumerate(segments)]
        for name, segment in zip(names, segments, strict=True):
            for slot in segment.keys() - {"segment_id"}:
                self._check_slot(slot)
                wanted = RAW_KINDS[self.encoders.modality(slot)] if slot in self.slots else object
                if not isinstance(segment[slot], wanted | None):
                    raise ConfigError(
                        f"Segment {name}: {slot} is a {type(segment[slot]).__name__}; expected a {wanted.__name__} of "
                        "featurize.segments, or None."
                    )
        return np.array(names, dtype=STRING), lambda row, slot: segments[row].get(slot)  # type: ignore[return-value]

    def _check_slot(self, slot: str) -> None:
        if slot not in self.run.slots:
            raise UnknownName(f"slot of run {self.run.name}", slot, self.run.slots)

    def _table(self, ids: np.ndarray, inputs: Mapping[str, SlotInput], rows: np.ndarray) -> pa.Table:
        run = self.run
        data = segment_data(run, ids, inputs)
        logits, weights = infer(run.model, data, rows)
        columns: dict[str, Any] = {"segment_id": pa.array(ids[rows].tolist(), pa.string())}
        for target, of_target in zip(run.targets, logits, strict=True):
            output = target.predict(of_target.double() / self.temperatures.get(target.name, 1.0))
            for name, values in target.columns(output).items():
                columns[name] = pa.array(values, pa.string() if values.dtype == object else pa.float64())
        shown = data.present[rows].numpy()
        columns |= {f"used.{slot}": shown[:, column] for column, slot in enumerate(run.slots)}
        if weights is not None:
            columns |= {f"weight.{slot}": weights[:, column].numpy() for column, slot in enumerate(run.slots)}
        for slot in run.slots:
            failures = inputs[slot].failures if slot in inputs else {}
            columns[f"failed.{slot}"] = pa.array([failures.get(row) for row in rows.tolist()], pa.string())
        return pa.table(columns)


def open_data(path: Location, config: DataConfig | None = None) -> Store | Source:
    """A store; or raw segments as `cli ingest` takes them, with groups or without. Raises `TriadError`."""
    if kind_at(path) is not None or path.suffix in STORE_SUFFIXES:
        return open_store(path)
    config = config or DataConfig()
    # groups play no part in a prediction, and new segments may have none
    columns = config.columns.model_copy(update={"group": config.columns.segment_id or "segment_id"})
    return open_source(path, config.model_copy(update={"columns": columns}))


def _check_paths(source: Source, modalities: Iterable[str]) -> None:
    """Raise `SourceError` where paths leave the data folder, as `cli ingest` does: that is a mistake, or meant."""
    outside = []
    for modality in modalities:
        for row, flag in enumerate(source.flags[modality]):
            try:
                if flag is not False:
                    source.file(row, modality)
            except UnreadableInput as error:
                outside.append(str(error))
    if outside:
        raise SourceError(
            f"{source.table.path}: {len(outside):,} paths cannot be used, e.g. {outside[0]}.\n"
            "If this is meant: --set data.allow_outside_root=true"
        )


def _ranges(n: int, size: int) -> Iterator[range]:
    """At least one, and be it empty."""
    size = max(size, 1)
    for start in range(0, max(n, 1), size):
        yield range(start, min(start + size, n))


def _rows_in(block: range, rows: np.ndarray | None) -> np.ndarray:
    """Which of the wanted rows are in a block, counted from its start."""
    if rows is None:
        return np.arange(len(block))
    rows = np.asarray(rows)
    return rows[(rows >= block.start) & (rows < block.stop)] - block.start


def _of_rows(read: Read, rows: Sequence[int]) -> Read:
    return lambda at, slot: read(rows[at], slot)


def _after(progress: Progress | None, block: range, total: int) -> Progress | None:
    return None if progress is None else lambda what, done, _: progress(what, block.start + done, total)
