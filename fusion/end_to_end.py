"""A run's head on live encoders: what `cli finetune` trains, and the batches it is given.

A slot is *live* where its encoder runs, on raw segments; all other slots are read from the store. Who is there is what
the store says, for every slot: a live slot changes what a vector is, never whose it is.

A batch is, by slot: of a live slot what its encoder prepared, one item a row or `None` where it is missing; of any
other the stored vectors or `Frames`. The model collates and encodes no row that is not shown, so that a slot hidden by
modality dropout, or by a presence pattern, costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from featurize.encoders.base import Encoder
from featurize.errors import ConfigError
from fusion.data import SegmentData, shuffled
from fusion.dataset import SlotEncoders
from fusion.device import CPU
from fusion.model import FusionModel
from fusion.modules.base import Frames, MultimodalFusion
from fusion.raw_data import EVALUATION_BATCH, RawInputs


class EndToEnd(nn.Module):
    """A head with the encoders of its live slots. Called as the loop calls any model; logits come back on the CPU.

    encoders: by live slot, in slot order, in the precision of the store. max_frames: of slots whose frames the head
    reads. precision: of the encoders while they learn. Raises `ConfigError` where one has no such precision.
    """

    def __init__(
        self,
        head: FusionModel,
        encoders: Mapping[str, Encoder],
        max_frames: Mapping[str, int] | None = None,
        precision: str = "fp32",
    ):
        super().__init__()
        for slot, encoder in encoders.items():
            if precision not in encoder.precisions:
                raise ConfigError(
                    f"Slot {slot}: encoder {encoder.name} computes in {' and '.join(encoder.precisions)}, not in "
                    f"{precision}. Set finetuning.precision, or leave {slot} out of --unfreeze."
                )
        self.head = head
        self.encoders = SlotEncoders(encoders, max_frames)
        self.live = dict(encoders)
        self._stored_precision = {slot: encoder.precision for slot, encoder in encoders.items()}
        self._precision = precision

    @property
    def fusion(self) -> MultimodalFusion:
        """The fusion inside the head."""
        return self.head.fusion

    def train(self, mode: bool = True) -> EndToEnd:
        """In training, a module whose own weights are all frozen still does what it does in evaluation: statistics of
        batches would change what it gives."""
        super().train(mode)
        for slot, encoder in self.live.items():
            encoder.precision = self._precision if mode else self._stored_precision[slot]
        for module in self.encoders.modules():
            own = list(module.parameters(recurse=False))
            if own and not any(weight.requires_grad for weight in own):
                module.training = False
        return self

    def slot_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Slot to its own weights: of a live slot those of its encoder that learn, of any other its projection."""
        own = {slot: [w for w in encoder.parameters() if w.requires_grad] for slot, encoder in self.live.items()}
        return {**self.head.slot_parameters(), **own}

    def forward(self, inputs: Mapping[str, Any], present: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """As `FusionModel`, of a batch as above. present: bool (B, M), which slots are shown."""
        logits, weights, _ = self.with_embeddings(inputs, present)
        return logits, weights

    def with_embeddings(self, inputs: Mapping[str, Any], present: Tensor) -> tuple[list[Tensor], Tensor | None, Tensor]:
        """Logits (B, K) for each target, slot weights (B, M) or `None`, and the fused vector (B, H)."""
        columns = [self.head.slots.index(slot) for slot in self.live]
        batch: dict[str, Any] = {"modality_mask": present[:, columns]}
        for slot, shown in zip(self.live, batch["modality_mask"].T, strict=True):
            items = [inputs[slot][row] for row in shown.nonzero()[:, 0].tolist()]
            batch[slot] = self.live[slot].collate(items) if items else None
        features, encoded = self.encoders(batch)
        device = encoded.device
        present = present.to(device, copy=True)
        present[:, columns] = encoded
        stored = {slot: _moved(inputs[slot], device) for slot in self.head.slots if slot not in self.live}
        logits, weights, embeddings = self.head.with_embeddings({**stored, **features}, present)
        return [out.cpu() for out in logits], None if weights is None else weights.cpu(), embeddings.cpu()


class EndToEndData:
    """The batches of an `EndToEnd` model.

    segments: all slots, but what stands there for a live one is never read. inputs: of the live slots, by slot.
    """

    def __init__(
        self, segments: SegmentData, inputs: Mapping[str, RawInputs], evaluation_batch: int = EVALUATION_BATCH
    ):
        self.present = segments.present
        self.evaluation_batch = evaluation_batch
        self._inputs = dict(inputs)
        self._columns = {slot: segments.slots.index(slot) for slot in inputs}
        stored = [slot for slot in segments.slots if slot not in inputs]
        self._stored = segments.only(stored) if stored else None

    device = CPU  # of the batches; the encoders have their own
    epoch_order = staticmethod(shuffled)

    def batches(
        self, rows: Sequence[Tensor], augmentation_seed: int | None = None
    ) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """For each batch of row numbers (B,): these, and by slot what the module's text says."""
        masks = {slot: [self.present[batch, column] for batch in rows] for slot, column in self._columns.items()}
        prepared = {
            slot: inputs.items([batch[mask] for batch, mask in zip(rows, masks[slot], strict=True)], augmentation_seed)
            for slot, inputs in self._inputs.items()
        }
        for number, batch in enumerate(rows):
            found: dict[str, Any] = {}
            if self._stored is not None:
                ((_, found),) = self._stored.batches([batch])
            for slot, items in prepared.items():
                here = iter(next(items))
                found[slot] = [next(here) if is_there else None for is_there in masks[slot][number].tolist()]
            yield batch, found


def without_vectors(segments: SegmentData, slots: Sequence[str]) -> SegmentData:
    """The same segments, where what the store holds of some slots takes no memory, and is zero."""

    def nothing(values: Tensor) -> Tensor:
        return torch.zeros((), dtype=values.dtype).expand(values.shape)

    return replace(
        segments,
        vectors={slot: nothing(v) if slot in slots else v for slot, v in segments.vectors.items()},
        frames={slot: nothing(f) if slot in slots else f for slot, f in segments.frames.items()},
    )


def _moved(feature: Tensor | Frames, device: torch.device) -> Tensor | Frames:
    if isinstance(feature, Frames):
        return Frames(feature.pooled.to(device), feature.values.to(device), feature.mask.to(device))
    return feature.to(device)
