"""What an encoder costs on this machine, measured on a few segments before all are encoded.

Everything happens in memory. The first segment is encoded once without a clock: libraries compile and load then.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from featurize.encode import batches, encode
from featurize.encoders.base import Encoder
from featurize.segments import Raw
from featurize.workers import Failure, prepare_safely

SAMPLE_ROWS = 16
ROW_OVERHEAD_BYTES = 17  # status and input hash beside each vector


@dataclass(frozen=True)
class Cost:
    """Of one segment, in seconds. sample: segments that were measured. can_share: other processes can prepare."""

    sample: int
    prepare_seconds: float
    encode_seconds: float
    can_share: bool

    def seconds(self, n_inputs: int, workers: int = 0) -> float:
        """For so many different inputs; preparation is shared by the workers, the model is not."""
        sharing = max(1, workers) if self.can_share else 1
        return n_inputs * (self.prepare_seconds / sharing + self.encode_seconds)


def measure(encoder: Encoder, raws: Sequence[Raw], *, n_frames: int = 0, most: int | None = None) -> Cost | None:
    """Prepare and encode these in batches of at most `most`; `None` where none of them can be encoded.

    The encoder is ready: fitted, and where it computes (`featurize.encode.set_up`).
    """
    first = next((item for item in (prepare_safely(encoder, raw) for raw in raws) if _is_ready(item)), None)
    if first is None:
        return None
    encode(encoder, [first], n_frames)
    started = time.perf_counter()
    items = [prepare_safely(encoder, raw) for raw in raws]
    prepared = time.perf_counter()
    ready = [(number, item) for number, item in enumerate(items) if _is_ready(item)]
    for batch in batches(ready, encoder, most or len(ready)):
        encode(encoder, [item for _, item in batch], n_frames)
    encoded = time.perf_counter()
    return Cost(
        len(ready), (prepared - started) / len(raws), (encoded - prepared) / len(ready), encoder.heavy_preparation
    )


def feature_bytes(n_rows: int, width: int, item_bytes: int, n_frames: int = 0) -> int:
    """What a feature takes in the store, which does not compress."""
    of_frames = n_frames * width * item_bytes + 2 if n_frames else 0
    return n_rows * (width * item_bytes + ROW_OVERHEAD_BYTES + of_frames)


def _is_ready(item: object) -> bool:
    return item is not None and not isinstance(item, Failure)
