"""Standardize, fuse, predict: the whole of what is trained on stored vectors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fusion.device import in_float64
from fusion.modules.base import Frames, Inputs, MultimodalFusion, Standardized, module_name, pooled
from fusion.modules.dropout import ByteDropout
from fusion.targets import Target

PIECE_NUMBERS = 2**18  # at a time: what is made of them on the way stays in a core's cache


class FusionModel(nn.Module):
    """A fusion with a linear head for each target. Standardization travels with the weights.

    frame_slots: those that have frames. A fusion that reads none is given their vectors.
    """

    def __init__(
        self,
        fusion: MultimodalFusion,
        widths: Mapping[str, int],
        targets: Sequence[Target],
        dropout: float,
        frame_slots: Sequence[str] = (),
    ):
        super().__init__()
        self.fusion = fusion
        self.slots = tuple(widths)
        self.frame_slots = tuple(slot for slot in widths if slot in frame_slots and fusion.reads_frames)
        self.standardize = nn.ModuleDict({f"slot_{i}": Standardize(width) for i, width in enumerate(widths.values())})
        self.standardize_frames = nn.ModuleDict(  # their own: frames vary more than the vectors that are their means
            {f"slot_{i}": Standardize(widths[slot]) for i, slot in enumerate(widths) if slot in self.frame_slots}
        )
        self.dropout = ByteDropout(dropout)
        self.heads = nn.ModuleList([nn.Linear(fusion.hidden_dim, target.n_outputs) for target in targets])

    def fit_standardization(self, slot: str, batches: Iterable[Inputs]) -> None:
        """Of all present training rows: a slot's vectors (n, D), or `Frames`, batch after batch."""
        key = f"slot_{self.slots.index(slot)}"
        of_vectors, of_frames = Moments(), Moments()
        for batch in batches:
            of_vectors.add(pooled(batch))
            if isinstance(batch, Frames) and slot in self.frame_slots:
                of_frames.add(batch.values[batch.mask])
        for modules, moments in ((self.standardize, of_vectors), (self.standardize_frames, of_frames)):
            if moments.n:
                standardize = modules[key]
                assert isinstance(standardize, Standardize)
                standardize.take(moments)

    @torch.no_grad()
    def standardize_slot(self, slot: str, vectors: Tensor, dtype: torch.dtype) -> Tensor:
        """(n, D) to (n, D): what `Standardized` holds."""
        standardize, found = self.standardize[f"slot_{self.slots.index(slot)}"], torch.empty_like(vectors, dtype=dtype)
        for some, to in zip(pieces(vectors), pieces(found), strict=True):
            to.copy_(standardize(some))
        return found

    def slot_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Slot to the weights that only it uses: those of modules that bear its name."""
        found: dict[str, list[nn.Parameter]] = {slot: [] for slot in self.slots}
        slot_of = {module_name(slot): slot for slot in self.slots}
        for name, parameter in self.fusion.named_parameters():
            for part in name.split("."):
                if part in slot_of:
                    found[slot_of[part]].append(parameter)
        return found

    def forward(self, features: Mapping[str, Inputs], present: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Logits (B, K) for each target, in target order; and the slot weights (B, M) where the fusion has them.

        Raises `ValueError` where a slot had frames in training and has none now.
        """
        logits, weights, _ = self.with_embeddings(features, present)
        return logits, weights

    def with_embeddings(
        self, features: Mapping[str, Inputs], present: Tensor
    ) -> tuple[list[Tensor], Tensor | None, Tensor]:
        """As `forward`, and each slot's own embedding (B, M, H)."""
        values = [feature.values for feature in features.values() if isinstance(feature, Standardized)]
        half = any(value.dtype == torch.bfloat16 for value in values)
        with torch.autocast(present.device.type, torch.bfloat16) if half else nullcontext():
            fused = self.fusion.fuse(self.standardized(features), present)
            hidden = self.dropout(fused.vector)
            return [head(hidden) for head in self.heads], fused.weights, fused.embeddings

    def standardized(self, features: Mapping[str, Inputs]) -> dict[str, Any]:
        """What the fusion takes: for each slot its vectors, or `Frames` for one of `frame_slots`."""
        found: dict[str, Any] = {}
        for index, slot in enumerate(self.slots):
            feature, key = features[slot], f"slot_{index}"
            if isinstance(feature, Standardized):
                found[slot] = feature.values
                continue
            found[slot] = self.standardize[key](pooled(feature))
            if slot in self.frame_slots:
                if not isinstance(feature, Frames):
                    raise ValueError(f"slot {slot} had frames in training; these data were loaded without them")
                frames = self.standardize_frames[key](feature.values)
                found[slot] = Frames(found[slot], frames, feature.mask)
        return found


def pieces(rows: Tensor) -> Sequence[Tensor]:
    """Rows (n, D) in pieces (m, D); on a GPU in one, which does not wait for the CPU in between."""
    found: Sequence[Tensor] = rows.split(max(1, PIECE_NUMBERS // rows.shape[1]))
    return found if rows.device.type == "cpu" else [rows]


class Moments:
    """Mean and deviation of columns, of rows that come piece by piece. In float64, so that no order matters much.

    Source: Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance", section 3.
    """

    def __init__(self) -> None:
        self.n = 0
        self._mean: Tensor | float = 0.0  # (D,)
        self._squares: Tensor | float = 0.0  # (D,), of deviations from the mean

    def add(self, rows: Tensor) -> None:
        """rows: (n, D)."""
        for piece in pieces(rows):
            if len(piece) == 0:
                continue
            piece = in_float64(piece)
            mean = piece.mean(dim=0)
            variance = (piece - mean).square_().mean(dim=0)  # a fourth of the time of `var_mean`
            before, self.n = self.n, self.n + len(piece)
            difference, share = mean - self._mean, len(piece) / self.n
            self._mean = self._mean + difference * share
            self._squares = self._squares + variance * len(piece) + difference.square() * (before * share)

    @property
    def mean(self) -> Tensor:
        """Of each column, float64 (D,)."""
        assert isinstance(self._mean, Tensor)
        return self._mean

    @property
    def deviation(self) -> Tensor:
        """Of each column, float64 (D,), dividing by how many rows there were."""
        assert isinstance(self._squares, Tensor)
        return (self._squares / self.n).sqrt()


class Standardize(nn.Module):
    """(x − mean) / scale with the training split's statistics; columns that never vary there stay zero."""

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def fit(self, vectors: Tensor) -> None:
        """vectors: (n, D), present training rows only."""
        moments = Moments()
        moments.add(vectors)
        if moments.n:
            self.take(moments)

    def take(self, moments: Moments) -> None:
        """Of at least one row."""
        self.mean.copy_(moments.mean)
        deviation = moments.deviation
        # a column that is constant up to float16 rounding would otherwise be blown up to unit variance
        floor = 1e-3 * moments.mean.abs() + 1e-6
        self.scale.copy_(torch.where(deviation > floor, deviation, torch.inf))

    def forward(self, vectors: Tensor) -> Tensor:
        """Vectors (B, D) as float32, in standard deviations from the training mean, cut off at ±8."""
        # eight standard deviations: beyond that a value says "strange", not "how strange"
        return (vectors.float() - self.mean).div_(self.scale).clamp_(-8.0, 8.0)
