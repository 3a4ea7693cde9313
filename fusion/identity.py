"""Whether live encoders give what the store holds, told by the logits of the same head on both.

They cannot be equal: the store rounds (to 11 bits in float16), and an encoder that computes in bfloat16 rounds, too.
How much of that reaches a logit depends on the head; where a feature varies little around a large mean, it is a lot. So
it is measured: stored numbers are moved up or down by as much as they may have been rounded, at random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion.data import SegmentData
from fusion.end_to_end import EndToEnd, EndToEndData
from fusion.load_run import LoadedRun
from fusion.train import infer
from stores.errors import TriadError

DRAWS = 8  # of random signs; the largest change of many logits hardly differs between them
FACTOR = 2.0  # of the largest change that was drawn


def check_identity(
    run: LoadedRun, model: EndToEnd, data: EndToEndData, segments: SegmentData, rows: np.ndarray, tolerance: float
) -> dict[str, Any]:
    """What was found, of some rows (n,). Raises `TriadError` where logits differ by more than `tolerance` beyond
    rounding.

    model, data: of the run's head on live encoders. segments: the run's features in the store.
    """
    found = _largest_difference(run, model, data, segments, rows)
    precisions = {slot: encoder.precision for slot, encoder in model.live.items()}
    rounding = rounding_effect(run, segments, rows, precisions)
    if not found <= tolerance + rounding:  # NaN, too
        slot = max(model.live, key=lambda one: _largest_difference(run, model, data, segments, rows, one))
        raise TriadError(
            f"The encoders do not give what the store holds: logits differ by up to {found:.2g} on {len(rows):,} "
            f"validation segments (allowed {tolerance + rounding:.2g}), most by {run.features[slot]}. Media, "
            f"preprocessing or libraries have changed.\nFeaturize {run.features[slot]} again with --replace, and fit "
            "again; or accept it: --set finetuning.tolerance=NUMBER"
        )
    return {"rows": len(rows), "largest_difference": found, "rounding": rounding, "tolerance": tolerance}


def rounding_effect(
    run: LoadedRun, segments: SegmentData, rows: np.ndarray, precisions: Mapping[str, str], draws: int = DRAWS
) -> float:
    """How far rounding may have moved a logit of these rows (n,).

    precisions: `fp32` or `bf16`, of the encoders of some slots.
    """
    some = segments.take(rows)
    everyone = np.arange(len(rows))
    stored = run.logits(some, everyone)
    generator = torch.Generator().manual_seed(0)

    def moved(values: Tensor, precision: str) -> Tensor:
        unit = torch.finfo(values.dtype).eps / 2
        if precision == "bf16":
            unit = max(unit, torch.finfo(torch.bfloat16).eps / 2)
        signs = torch.randint(0, 2, values.shape, generator=generator) * 2 - 1
        return values.float() * (1 + unit * signs)

    largest = 0.0
    for _ in range(draws):
        shaken = replace(
            some,
            vectors={s: moved(v, precisions[s]) if s in precisions else v for s, v in some.vectors.items()},
            frames={s: moved(f, precisions[s]) if s in precisions else f for s, f in some.frames.items()},
        )
        largest = max(largest, _difference(run.logits(shaken, everyone), stored))
    return FACTOR * largest


def _largest_difference(
    run: LoadedRun,
    model: EndToEnd,
    data: EndToEndData,
    segments: SegmentData,
    rows: np.ndarray,
    only: str | None = None,
) -> float:
    """only: the slot that is shown, if not all are."""
    present = segments.present[rows].clone()
    if only is not None:
        present[:, [slot != only for slot in segments.slots]] = False
    return _difference(infer(model, data, rows, present)[0], run.logits(segments, rows, present))


def _difference(some: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(some, others, strict=True))
