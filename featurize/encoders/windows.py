"""Windows: a long input is read in several, and what they say becomes one vector, or one sequence of frames.

Conventions
-----------
* B items have W windows in all, those of one item side by side; `n_windows` (B,) says how many each has.
* Windows of one item are equally long and evenly spread, the first at the start, the last at the end, so that none is
  padded and nothing is left out.
"""

from __future__ import annotations

import torch
from torch import Tensor


def window_starts(n: int, window: int) -> list[int]:
    """Where windows of `window` steps start so that they cover n steps; one start, 0, where n is no more than one.

    Neighbours overlap by less than they would with one window more; all starts are whole steps.
    """
    count = max(1, -(-n // window))
    last = max(0, n - window)
    return [round(index * last / max(1, count - 1)) for index in range(count)]


def item_mean(vectors: Tensor, n_windows: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over each item's windows: (W, D) to (B, D). n_windows: int (B,); weights: (W,), equal where `None`.

    One matrix product: unlike scattered additions, it gives the same bits every time on a GPU.
    """
    owner = torch.repeat_interleave(n_windows, output_size=len(vectors))  # (W,) item numbers
    share = torch.zeros(len(n_windows), len(vectors), dtype=torch.float32, device=vectors.device)
    share[owner, torch.arange(len(owner), device=vectors.device)] = 1.0 if weights is None else weights.float()
    with torch.autocast(vectors.device.type, enabled=False):  # it would round a product to bfloat16
        return (share / share.sum(dim=1, keepdim=True)) @ vectors.float()


def item_frames(states: Tensor, mask: Tensor, n_windows: Tensor) -> tuple[Tensor, Tensor]:
    """Each item's windows end to end, their masked steps left out.

    states: (W, L, D); mask: bool (W, L); n_windows: int (B,). To frames (B, T, D), zeros where there is none, and their
    mask, bool (B, T).
    """
    owner = torch.repeat_interleave(n_windows, output_size=len(states))
    kept = states[mask]  # (all frames, D), in order
    n_frames = torch.zeros_like(n_windows).index_add_(0, owner, mask.sum(dim=1))
    frame_mask = torch.arange(int(n_frames.max()), device=states.device) < n_frames[:, None]
    frames = states.new_zeros(*frame_mask.shape, states.shape[2])
    return frames.masked_scatter(frame_mask[:, :, None], kept), frame_mask


def pool_frames(frames: Tensor, frame_mask: Tensor, n_bins: int) -> tuple[Tensor, Tensor]:
    """Mean over each of `n_bins` equal stretches of time, the same for any length.

    frames: (B, T, D); frame_mask: bool (B, T), true first. To (B, n_bins, D) and n_frames int (B,): an item with fewer
    frames than bins keeps them as they are, followed by zeros.
    """
    lengths = frame_mask.sum(dim=1)  # (B,)
    n_kept = lengths.clamp(max=n_bins)
    bins = torch.arange(n_bins, device=frames.device)
    # bin b of an item of n frames holds frames [floor(b n / k), ceil((b + 1) n / k)), as adaptive average pooling
    k = n_kept.clamp(min=1)[:, None]
    first = bins * lengths[:, None] // k
    stop = -(-(bins + 1) * lengths[:, None] // k)
    steps = torch.arange(frames.shape[1], device=frames.device)
    inside = (steps >= first[:, :, None]) & (steps < stop[:, :, None]) & (bins < n_kept[:, None])[:, :, None]
    share = inside.float() / inside.sum(dim=2, keepdim=True).clamp(min=1)
    clean = torch.where(frame_mask[:, :, None], frames, 0).float()
    with torch.autocast(frames.device.type, enabled=False):
        return share @ clean, n_kept
