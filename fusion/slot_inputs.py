"""What one slot of some segments is to a model, wherever it comes from: a feature, or arrays that someone has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featurize.errors import ConfigError
from fusion.data import SegmentData
from fusion.load_run import LoadedRun
from stores.feature import Feature, Status


@dataclass(frozen=True)
class SlotInput:
    """vectors: float (n, D). present: bool (n,). frames: float (n, T, D), the first `n_frames`, int (n,), are real.

    failures: by row, why it could not be encoded.
    """

    vectors: Tensor
    present: Tensor
    frames: Tensor | None = None
    n_frames: Tensor | None = None
    failures: Mapping[int, str] = field(default_factory=dict)


def stored_input(feature: Feature, rows: range, with_frames: bool) -> SlotInput:
    """Of consecutive rows. What is not present is missing: absent, failed or pending. Raises `DamagedStore`."""
    whole = feature.whole_rows(rows, with_frames=with_frames)
    reasons = feature.read_failures(rows)
    return SlotInput(
        torch.from_numpy(whole.vectors),
        torch.from_numpy(whole.status == Status.PRESENT),
        torch.from_numpy(whole.frames) if whole.frames is not None else None,
        torch.from_numpy(whole.n_frames.astype(np.int64)) if whole.n_frames is not None else None,
        {row: str(reasons[row]) for row in np.flatnonzero(whole.status == Status.FAILED).tolist()},
    )


def given_input(
    slot: str, vectors: np.ndarray, width: int, frames: tuple[Any, Any] | None, reads_frames: bool
) -> SlotInput:
    """Of arrays (n, D), and frames (n, T, D); a row of NaN is missing.

    Raises `ConfigError` where they are not what the model reads.
    """
    if vectors.ndim != 2 or vectors.shape[1] != width or vectors.dtype.kind not in "fiu":
        raise ConfigError(f"Slot {slot}: vectors are {vectors.dtype} {vectors.shape}; expected numbers (n, {width}).")
    vectors = vectors.astype(np.float32)
    present = ~np.isnan(vectors).all(axis=1)
    _check_finite(slot, "vector", vectors, present)
    if not reads_frames:
        return SlotInput(torch.from_numpy(vectors), torch.from_numpy(present))
    if frames is None:
        raise ConfigError(f"Slot {slot}: this model reads frames, too; give frames={{{slot!r}: (values, n_frames)}}.")
    values, n_frames = np.asarray(frames[0], np.float32), np.asarray(frames[1])
    n = len(vectors)
    if values.ndim != 3 or values.shape[::2] != (n, width) or n_frames.shape != (n,) or n_frames.dtype.kind not in "iu":
        raise ConfigError(
            f"Slot {slot}: frames are {values.shape} and n_frames {n_frames.dtype} {n_frames.shape}; expected "
            f"({n}, T, {width}) and whole numbers ({n},)."
        )
    if (n_frames < 0).any() or (n_frames > values.shape[1]).any():
        raise ConfigError(f"Slot {slot}: n_frames must be from 0 to T, {values.shape[1]}.")
    real = present[:, None] & (np.arange(values.shape[1]) < n_frames[:, None])
    _check_finite(slot, "frame", values, real)
    n_frames = np.where(present, n_frames, 0).astype(np.int64)
    return SlotInput(
        torch.from_numpy(vectors), torch.from_numpy(present), torch.from_numpy(values), torch.from_numpy(n_frames)
    )


def segment_data(run: LoadedRun, ids: np.ndarray, inputs: Mapping[str, SlotInput]) -> SegmentData:
    """For the run's model; a slot that has no input is missing everywhere. ids: text (n,)."""
    n = len(ids)
    found = {slot: inputs[slot] if slot in inputs else _nothing(n, width) for slot, width in run.widths.items()}
    with_frames = {slot: found[slot] for slot in run.frame_slots}
    return SegmentData(
        run.features,
        {slot: one.vectors for slot, one in found.items()},
        torch.stack([one.present for one in found.values()], dim=1),
        ids,
        ids,  # groups play no part
        {slot: one.frames for slot, one in with_frames.items() if one.frames is not None},
        {slot: one.n_frames for slot, one in with_frames.items() if one.n_frames is not None},
    )


def _nothing(n: int, width: int) -> SlotInput:
    nobody, none = torch.zeros(n, dtype=torch.bool), torch.zeros(n, dtype=torch.int64)
    return SlotInput(torch.zeros(n, width), nobody, torch.zeros(n, 0, width), none)


def _check_finite(slot: str, what: str, values: np.ndarray, wanted: np.ndarray) -> None:
    bad = np.argwhere(wanted & ~np.isfinite(values).all(axis=-1))
    if len(bad):
        raise ConfigError(
            f"Slot {slot}: the {what} of row {bad[0][0]} has NaN or infinity. A row that is NaN throughout is missing."
        )
