"""Segments as PyTorch datasets: for a training loop of one's own, and for the way from raw segments to a fusion.

A segment is a dict, and so is a batch of B of them:

    row             int; int64 (B,)               its number in the store
    segment_id      text; list of B
    <slot>          what stands for this slot, for each slot in order; see the two classes
    modality_mask   bool (M,); bool (B, M)        false where a slot is missing: absent, failed, or pending
    label           {target: tensor}              int64 () or float32 (K,); int64 (B,) or float32 (B, K)
    label_mask      {target: bool (); bool (B,)}  false where the label is unknown

An unknown label is -100 where it would be a class, which `cross_entropy` ignores, and zeros otherwise.

    loader = DataLoader(data, batch_size=256, shuffle=True, collate_fn=data.collate, num_workers=2)

`fusion.fitting` does not come this way: vectors that fit in memory are faster as whole tensors (`fusion.data`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from featurize.encode import run
from featurize.encoders.base import Encoded, Encoder, Item
from featurize.encoders.windows import pool_frames
from featurize.errors import ConfigError
from featurize.project import StoreRows
from featurize.segments import UnreadableInput
from featurize.sources import Source
from featurize.workers import Failure, prepare_safely
from fusion.data import is_present
from fusion.modules.base import Frames
from fusion.targets import Target
from stores.feature import Feature
from stores.store import Store

Segment = dict[str, Any]

RESERVED = ("row", "segment_id", "modality_mask", "label", "label_mask", "failures")
IGNORED_CLASS = -100  # `torch.nn.functional.cross_entropy` leaves it out by default
CHUNKS_KEPT = 4  # of a feature that is read lazily: 4 x 1,024 rows x 768 float16 are 6 MB


class Segments(Dataset[Segment], ABC):
    """Some rows of a store. `widths`: D of every slot, in slot order, as `build_fusion` takes them."""

    widths: dict[str, int]

    def __init__(self, store: Store, slots: Sequence[str], targets: Sequence[Target], rows: np.ndarray | None):
        """rows: row numbers, e.g. `store.split("default").rows(Part.TRAIN)`; all where `None`."""
        taken = [slot for slot in slots if slot in RESERVED]
        if taken:
            raise ConfigError(f"A slot cannot be called {taken[0]!r} here: a batch keeps something else by that name.")
        self.slots = tuple(slots)
        self.rows = np.arange(store.n_segments) if rows is None else np.asarray(rows, np.int64)
        self._ids = store.ids[self.rows]
        self._labels = {target.name: _labels(target)[self.rows] for target in targets}
        self._known = {target.name: target.known[self.rows] for target in targets}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Segment:
        return {
            "row": int(self.rows[index]),
            "segment_id": self._ids[index],
            **self._inputs(index),
            "label": {target: labels[index] for target, labels in self._labels.items()},
            "label_mask": {target: known[index] for target, known in self._known.items()},
        }

    def __getitems__(self, indices: Sequence[int]) -> list[Segment]:
        """A batch for `DataLoader`: read in the order of the store, so that a chunk is read once; returned as asked."""
        segments: dict[int, Segment] = {}
        for at in np.argsort(self.rows[list(indices)]).tolist():
            segments[at] = self[indices[at]]
        return [segments[at] for at in range(len(indices))]

    @abstractmethod
    def _inputs(self, index: int) -> Segment:
        """All slots, in order, and `modality_mask`."""

    @abstractmethod
    def collate(self, segments: Sequence[Segment]) -> Segment:
        """Segments to a batch."""


class StoredSegments(Segments):
    """Vectors from a store: `<slot>` is float32 (D,), or (B, D) in a batch; zeros where missing.

    features: slot to feature name, as `fusion.data.choose_features` gives them. lazy: whole chunks are read when asked
    for, and a few of them kept; a loader that draws single rows at random then reads a chunk for each. Raises
    `StoreError` where rows are pending and `allow_pending` is false, `DamagedStore` on bad bytes.
    """

    def __init__(
        self,
        store: Store,
        features: Mapping[str, str],
        targets: Sequence[Target] = (),
        rows: np.ndarray | None = None,
        *,
        lazy: bool = False,
        allow_pending: bool = False,
    ):
        super().__init__(store, tuple(features), targets, rows)
        found = {slot: store.feature(name) for slot, name in features.items()}
        self.widths = {slot: feature.width for slot, feature in found.items()}
        present = [is_present(feature, feature.status[self.rows], allow_pending) for feature in found.values()]
        self._present = torch.from_numpy(np.stack(present, axis=1))
        self._vectors: dict[str, Tensor | _LazyVectors] = {
            slot: _LazyVectors(feature, self.rows) if lazy else torch.from_numpy(feature.vectors[self.rows])
            for slot, feature in found.items()
        }

    def _inputs(self, index: int) -> Segment:
        present = self._present[index]
        vectors = {
            # not `vectors * mask`: a pending row still has the numbers that it had before, and 0 x NaN is NaN
            slot: self._vectors[slot][index].to(torch.float32, copy=True) if here else torch.zeros(self.widths[slot])
            for slot, here in zip(self.slots, present.tolist(), strict=True)
        }
        return {**vectors, "modality_mask": present}

    def collate(self, segments: Sequence[Segment]) -> Segment:
        batch: Segment = default_collate(list(segments))
        return batch


class RawSegments(Segments):
    """Raw inputs, read and prepared when asked for: `<slot>` is what its encoder prepared, `None` where missing.

    In a batch it is what the encoder's own `collate` makes of the rows that have it, in order, or `None` where none
    has; `modality_mask` says which rows these are, and `SlotEncoders` puts them where they belong. Beside it stands
    `failures`, {slot: reason}, for what is there but could not be read; a list of B in a batch.

    encoders: by slot, fitted or trained. Worker processes get them without weights. Random reads from a `_media`
    parquet want small row groups (docs/storage.md).
    """

    def __init__(
        self,
        store: Store,
        source: Source,
        encoders: Mapping[str, Encoder],
        targets: Sequence[Target] = (),
        rows: np.ndarray | None = None,
    ):
        super().__init__(store, tuple(encoders), targets, rows)
        self.widths = {slot: encoder.width for slot, encoder in encoders.items()}
        self._encoders = {slot: encoder.without_weights() for slot, encoder in encoders.items()}
        self._raws = {slot: StoreRows(store, source, encoder.modality) for slot, encoder in encoders.items()}

    def _inputs(self, index: int) -> Segment:
        outcomes = {slot: self._prepare(slot, int(self.rows[index])) for slot in self.slots}
        failures = {slot: outcome.reason for slot, outcome in outcomes.items() if isinstance(outcome, Failure)}
        items = {slot: None if slot in failures else outcome for slot, outcome in outcomes.items()}
        present = torch.tensor([item is not None for item in items.values()])
        return {**items, "modality_mask": present, "failures": failures}

    def _prepare(self, slot: str, row: int) -> Item | Failure | None:
        try:
            raw = self._raws[slot].raw(row)
        except UnreadableInput as error:
            return Failure(str(error))
        return None if raw is None else prepare_safely(self._encoders[slot], raw)

    def collate(self, segments: Sequence[Segment]) -> Segment:
        special = {*self.slots, "failures"}
        batch: Segment = default_collate(
            [{key: value for key, value in segment.items() if key not in special} for segment in segments]
        )
        for slot in self.slots:
            items = [segment[slot] for segment in segments if segment[slot] is not None]
            batch[slot] = self._encoders[slot].collate(items) if items else None
        batch["failures"] = [segment["failures"] for segment in segments]
        return batch


class SlotEncoders(nn.Module):
    """From a batch of `RawSegments` to what a fusion takes: each slot's encoder on the rows that have it.

        features, present = encoders(batch)
        vector = fusion(features, present)

    Gradients reach the encoders. Freeze them with `encoders.eval().requires_grad_(False)`: their vectors are then those
    that `cli featurize` stores, up to the store's precision.

    max_frames: slots whose frames the fusion reads, and to how many at most they are pooled, as `--frames` does.
    """

    def __init__(self, encoders: Mapping[str, Encoder], max_frames: Mapping[str, int] | None = None):
        super().__init__()
        self.slots = tuple(encoders)
        self.encoders = nn.ModuleList(encoders.values())
        self.max_frames = dict(max_frames or {})
        for slot, encoder in encoders.items():
            encoder.with_frames = slot in self.max_frames

    @property
    def widths(self) -> dict[str, int]:
        """Slot to D, numbers in a vector."""
        return {slot: encoder.width for slot, encoder in self._by_slot()}

    def forward(self, batch: Segment) -> tuple[dict[str, Tensor | Frames], Tensor]:
        """features[slot]: float32 (B, D_slot), zeros where missing, or `Frames`. present: bool (B, M). On the encoders'
        device.

        Raises `ValueError` where the batch has other slots, or has them in another order.
        """
        mask: Tensor = batch["modality_mask"]
        if tuple(key for key in batch if key in self.slots) != self.slots or mask.shape[1] != len(self.slots):
            found = ", ".join(key for key in batch if key not in RESERVED)
            raise ValueError(f"expected a batch with the slots {', '.join(self.slots)}, in this order; got {found}")
        device = next((tensor.device for tensor in [*self.parameters(), *self.buffers()]), torch.device("cpu"))
        present = mask.to(device, copy=True)
        features: dict[str, Tensor | Frames] = {}
        for index, (slot, encoder) in enumerate(self._by_slot()):
            vectors = torch.zeros(len(present), encoder.width, device=device)
            rows = present[:, index].nonzero()[:, 0]
            finite = torch.ones(len(rows), dtype=torch.bool, device=device)
            encoded: Encoded | None = None if batch[slot] is None else run(encoder, batch[slot])
            if encoded is not None:
                pooled = encoded.pooled.float().to(device)
                if not encoder.training:  # in the store such a row is failed; while learning, the loss is to show it
                    finite = pooled.isfinite().all(dim=1)
                    present[rows[~finite], index] = False
                vectors[rows[finite]] = pooled[finite]
            features[slot] = vectors
            if slot in self.max_frames:
                features[slot] = Frames(vectors, *self._frames(slot, encoded, rows, finite, vectors))
        return features, present

    def _frames(
        self, slot: str, encoded: Encoded | None, rows: Tensor, finite: Tensor, vectors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """float (B, T, D) and bool (B, T), of the rows that were encoded; nothing in the others."""
        most = self.max_frames[slot]
        values = vectors.new_zeros(len(vectors), most, vectors.shape[1])
        n_frames = torch.zeros(len(vectors), dtype=torch.int64, device=vectors.device)
        if encoded is not None:
            assert encoded.frames is not None and encoded.frame_mask is not None
            pooled, counts = pool_frames(encoded.frames, encoded.frame_mask, most)
            values[rows[finite]] = pooled[finite].to(values)
            n_frames[rows[finite]] = counts[finite].to(n_frames)
        return values, torch.arange(most, device=vectors.device) < n_frames[:, None]

    def _by_slot(self) -> list[tuple[str, Encoder]]:
        return [(slot, module) for slot, module in zip(self.slots, self.encoders, strict=True)]  # type: ignore[misc]


class _LazyVectors:
    """Vectors (D,) of some rows of a feature, by index into these rows; the chunks that were read last stay."""

    def __init__(self, feature: Feature, rows: np.ndarray):
        self._feature = feature
        self._rows = rows
        self._chunks: OrderedDict[int, Tensor] = OrderedDict()  # first row -> vectors, the latest last

    def __getitem__(self, index: int) -> Tensor:
        row, size = int(self._rows[index]), self._feature.chunk_rows
        start = row - row % size
        if start not in self._chunks:
            chunk = range(start, min(start + size, self._feature.n_segments))
            self._chunks[start] = torch.from_numpy(self._feature.read_vectors(chunk))
            if len(self._chunks) > CHUNKS_KEPT:
                self._chunks.popitem(last=False)
        self._chunks.move_to_end(start)
        return self._chunks[start][row - start]


def _labels(target: Target) -> Tensor:
    """int64 (N,) or float32 (N, K); -100 or zeros where unknown."""
    if target.kind == "categorical":
        return torch.where(target.known, target.truth, IGNORED_CLASS)
    return torch.where(target.known[:, None], target.truth, 0.0)
