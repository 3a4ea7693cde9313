"""From the store to tensors: the features of each slot, their presence, and who is who.

Everything is read once and stays in memory; a batch is an index into whole tensors. What does not fit in memory is read
chunk by chunk instead (`fusion.streaming`), behind the same `StoredSegments`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from featurize.errors import ConfigError
from featurize.segments import MODALITIES
from fusion.config import Config
from fusion.device import not_known_yet
from fusion.model import FusionModel
from fusion.modules.base import Frames, Inputs, Standardized
from stores.errors import StoreError
from stores.feature import Feature, Status
from stores.record import command_for
from stores.store import Store

EVALUATION_BATCH = 4096


class StoredSegments(Protocol):
    """Segments of a store, wherever their vectors are: what training, baselines and evaluation need of them."""

    @property
    def features(self) -> Mapping[str, str]:
        """Slot to feature name, in slot order."""

    @property
    def slots(self) -> tuple[str, ...]:
        """Slots in the order of the columns of `present`."""

    @property
    def widths(self) -> dict[str, int]:
        """Slot to D, numbers in a vector."""

    @property
    def max_frames(self) -> dict[str, int]:
        """Of slots that have frames: how many a row has at most."""

    @property
    def present(self) -> Tensor:
        """bool (N, M), as `slots`."""

    @property
    def ids(self) -> np.ndarray:
        """Segment ids, text (N,)."""

    @property
    def groups(self) -> np.ndarray:
        """The song of each segment, text (N,)."""

    @property
    def device(self) -> torch.device:
        """Where batches are; all else of these stays on the CPU."""

    @property
    def evaluation_batch(self) -> int:
        """Rows that fit in memory at once where nothing is learned."""

    def to(self, device: torch.device) -> StoredSegments:
        """The same segments, whose batches are there."""

    def epoch_order(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Row numbers (n,) in the order in which an epoch learns from them."""

    def batches(
        self, rows: Sequence[Tensor], augmentation_seed: int | None = None
    ) -> Iterator[tuple[Tensor, dict[str, Inputs]]]:
        """For each batch of row numbers (B,): these, and by slot vectors (B, D), frames (B, T, D) where there are."""

    def only(self, slots: Sequence[str]) -> StoredSegments:
        """The same segments with some of the slots, in this order."""

    def standardized(self, model: FusionModel, dtype: torch.dtype) -> StoredSegments:
        """The same segments for training this model, whose batches then need no arithmetic before the first product.

        With frames they are as they were: those would take up too much memory.
        """


@dataclass(frozen=True)
class SegmentData:
    """vectors[slot]: float16 or float32 (N, D_slot), zeros where not present. present: bool (N, M), as `slots`.

    frames[slot]: float16 or float32 (N, T_slot, D_slot), of which a row has the first `n_frames[slot]`, int (N,); only
    for slots that have frames, and only where they were asked for.
    """

    features: Mapping[str, str]  # slot -> feature name
    vectors: Mapping[str, Tensor]
    present: Tensor
    ids: np.ndarray  # text (N,)
    groups: np.ndarray  # text (N,)
    frames: Mapping[str, Tensor] = field(default_factory=dict)
    n_frames: Mapping[str, Tensor] = field(default_factory=dict)
    is_standardized: bool = False  # by the model that is to take them, see `standardized`

    @property
    def slots(self) -> tuple[str, ...]:
        """Slots in the order of the columns of `present`."""
        return tuple(self.vectors)

    @property
    def widths(self) -> dict[str, int]:
        """Slot to D, numbers in a vector."""
        return {slot: vectors.shape[1] for slot, vectors in self.vectors.items()}

    @property
    def max_frames(self) -> dict[str, int]:
        """Slot to T, the most frames a row may have; only slots with frames."""
        return {slot: frames.shape[1] for slot, frames in self.frames.items()}

    @property
    def device(self) -> torch.device:
        """Where vectors, frames and so batches are."""
        return next(iter(self.vectors.values())).device

    def to(self, device: torch.device) -> SegmentData:
        """The same segments, with vectors and frames there. Raises `ConfigError` where they are too large for it."""
        try:
            return replace(
                self,
                vectors={slot: vectors.to(device) for slot, vectors in self.vectors.items()},
                frames={slot: frames.to(device) for slot, frames in self.frames.items()},
                n_frames={slot: n_frames.to(device) for slot, n_frames in self.n_frames.items()},
            )
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"The features in use are too large for the memory of {device}. Send them there batch by batch, "
                "cli fit --stream, or train on the CPU, --device cpu."
            ) from error

    @property
    def evaluation_batch(self) -> int:
        """With frames, fewer rows: a row is as large as its slots' vectors and frames together."""
        return rows_at_once(self.max_frames)

    def epoch_order(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Row numbers (n,) in random order, each once."""
        return shuffled(rows, generator)

    def batches(
        self, rows: Sequence[Tensor], augmentation_seed: int | None = None
    ) -> Iterator[tuple[Tensor, dict[str, Inputs]]]:
        """For each batch of row numbers: these, and by slot the vectors (B, D_slot), or `Frames` where there are any.

        rows: on the device of the vectors. Nothing is augmented: it would have to be before the encoder.
        """
        for batch in rows:
            yield batch, {slot: self._batch(slot, batch) for slot in self.vectors}

    def without_frames(self) -> SegmentData:
        """The same segments with vectors alone, for a fusion that reads no frames."""
        return replace(self, frames={}, n_frames={})

    def take(self, rows: np.ndarray) -> SegmentData:
        """Some of the segments, by row numbers (n,), in this order."""
        return replace(
            self,
            vectors={slot: vectors[rows] for slot, vectors in self.vectors.items()},
            present=self.present[rows],
            ids=self.ids[rows],
            groups=self.groups[rows],
            frames={slot: frames[rows] for slot, frames in self.frames.items()},
            n_frames={slot: n_frames[rows] for slot, n_frames in self.n_frames.items()},
        )

    def only(self, slots: Sequence[str]) -> SegmentData:
        """The same segments with some of the slots."""
        columns = [self.slots.index(slot) for slot in slots]
        return replace(
            self,
            features={slot: self.features[slot] for slot in slots},
            vectors={slot: self.vectors[slot] for slot in slots},
            present=self.present[:, columns],
            frames={slot: self.frames[slot] for slot in slots if slot in self.frames},
            n_frames={slot: self.n_frames[slot] for slot in slots if slot in self.n_frames},
        )

    def standardized(self, model: FusionModel, dtype: torch.dtype) -> SegmentData:
        """With vectors (N, D) as the model would standardize them in every batch; as it is where slots have frames."""
        if self.frames:
            return self
        vectors = {}
        for index, (slot, values) in enumerate(self.vectors.items()):
            ready = torch.zeros(values.shape, dtype=dtype, device=values.device)
            for rows in torch.nonzero(self.present[:, index])[:, 0].to(values.device).split(EVALUATION_BATCH):
                ready[rows] = model.standardize_slot(slot, values[rows], dtype)
            vectors[slot] = ready
        return replace(self, vectors=vectors, is_standardized=True)

    def _batch(self, slot: str, rows: Tensor) -> Inputs:
        vectors = self.vectors[slot].index_select(0, rows)
        if self.is_standardized:
            return Standardized(vectors)
        if slot not in self.frames:
            return vectors
        n_frames = self.n_frames[slot][rows]
        longest = self.max_frames[slot]
        if not not_known_yet(n_frames):
            longest = int(n_frames.max()) if len(rows) else 0
        return Frames(vectors, self.frames[slot][rows, :longest], first_frames(n_frames, longest))


def choose_features(store: Store, config: Config) -> dict[str, str]:
    """Slot to feature name, in slot order: as configured, else the slot's encoder, else the only feature there is.

    Raises `ConfigError` where nothing is stored, a named feature is not, or the choice is not clear.
    """
    stored: dict[str, list[str]] = {}
    for name in store.features():
        slot, _, encoder = name.partition("/")
        stored.setdefault(slot, []).append(encoder)
    if not stored:
        raise ConfigError(f"{store.tree.location} has no features yet. Make some: cli featurize --encoder mel_stats")
    fusion = config.model.fusion
    wanted = fusion.slots if fusion.slots is not None else _slot_order({*stored, *fusion.features})
    chosen = {}
    for slot in wanted:
        found = stored.get(slot, [])
        section = config.model.encoder_for(slot)
        named = fusion.features.get(slot)
        if named is None and section is not None and section.type in found:
            named = section.type
        if named is None and len(found) == 1:
            named = found[0]
        if named is None and len(found) > 1:
            raise ConfigError(
                f"Slot {slot} has several features: {', '.join(found)}.\nName one: --feature {slot}/{found[0]}"
            )
        if named not in found:
            listed = ", ".join(store.features())
            raise ConfigError(f"Slot {slot}: the store has no feature {slot}/{named or '…'}; it has {listed}.")
        chosen[slot] = f"{slot}/{named}"
    if not chosen:
        raise ConfigError("model.fusion.slots is empty; name at least one slot.")
    return chosen


def load_segments(
    store: Store, features: Mapping[str, str], *, with_frames: bool = False, allow_pending: bool = False
) -> SegmentData:
    """Read whole features into memory; with frames, where a feature has them, if asked to.

    Raises `StoreError` where rows are pending, `DamagedStore` on bad bytes.
    """
    vectors, present, frames, n_frames = {}, [], {}, {}
    for slot, name in features.items():
        feature = store.feature(name)
        whole = feature.whole_rows(with_frames=with_frames and feature.has_frames)
        vectors[slot] = torch.from_numpy(whole.vectors)
        present.append(torch.from_numpy(is_present(feature, whole.status, allow_pending)))
        if whole.frames is not None and whole.n_frames is not None:
            frames[slot] = torch.from_numpy(whole.frames)
            n_frames[slot] = torch.from_numpy(whole.n_frames.astype(np.int64))
    return SegmentData(dict(features), vectors, torch.stack(present, dim=1), store.ids, store.groups, frames, n_frames)


def is_present(feature: Feature, status: np.ndarray, allow_pending: bool) -> np.ndarray:
    """bool (N,) of uint8 (N,). Raises `StoreError` where rows are pending, and that is not allowed."""
    pending = int((status == Status.PENDING).sum())
    if pending and not allow_pending:
        raise StoreError(
            f"{feature.name} is unfinished: {pending:,} of {len(status):,} rows are pending.\n"
            f"Finish it with {command_for(feature.record)}, or count them as missing with "
            "--allow-pending (from Python, allow_pending=True)."
        )
    return np.asarray(status == Status.PRESENT)


def shuffled(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Rows (n,): any order is as likely as any other."""
    return rows[torch.randperm(len(rows), generator=generator)]


def rows_at_once(max_frames: Mapping[str, int]) -> int:
    """Rows whose vectors, and frames of some slots, fit in memory at once where nothing is learned."""
    return max(1, EVALUATION_BATCH // (1 + max(max_frames.values(), default=0)))


def first_frames(n_frames: Tensor, longest: int) -> Tensor:
    """How many frames rows have, int (B,), as a mask: bool (B, longest)."""
    return torch.arange(longest, device=n_frames.device) < n_frames[:, None]


def _slot_order(slots: set[str]) -> list[str]:
    """text, audio, midi, then the user's own by name."""
    return [slot for slot in MODALITIES if slot in slots] + sorted(slots - set(MODALITIES))
