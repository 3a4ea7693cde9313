"""Windows cover everything, pooling forgets nothing, and neither looks at a neighbour."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from featurize.encoders.windows import item_frames, item_mean, pool_frames, window_starts


@given(st.integers(1, 10_000), st.integers(1, 3_000))
def test_windows_cover_every_step_evenly(n, window):
    starts = window_starts(n, window)
    assert starts[0] == 0 and len(starts) == max(1, -(-n // window))
    if n > window:
        assert starts[-1] == n - window
        gaps = np.diff(starts)
        assert gaps.max() <= window and gaps.max() - gaps.min() <= 1  # nothing between two windows; evenly spread


def test_a_mean_over_windows_by_hand():
    vectors = torch.tensor([[1.0], [3.0], [10.0], [20.0]])
    np.testing.assert_allclose(item_mean(vectors, torch.tensor([2, 1, 1]))[:, 0], [2, 10, 20])
    weights = torch.tensor([3, 1, 5, 7])
    np.testing.assert_allclose(item_mean(vectors, torch.tensor([2, 2]), weights)[:, 0], [1.5, (50 + 140) / 12])


def test_frames_of_windows_stand_end_to_end():
    states = torch.arange(12.0).reshape(3, 4, 1)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1]], dtype=torch.bool)
    frames, frame_mask = item_frames(states, mask, torch.tensor([2, 1]))
    assert frame_mask.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    assert frames[0, :, 0].tolist() == [0, 1, 4, 5, 6] and frames[1, :, 0].tolist() == [9, 10, 11, 0, 0]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=5), st.integers(1, 12))
def test_pooled_frames_are_adaptive_averages_of_the_real_ones(lengths, n_bins):
    longest = max([*lengths, 1])
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(len(lengths), longest, 3, generator=generator)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    frames[~mask] = torch.nan  # what is padded is never looked at
    pooled, counts = pool_frames(frames, mask, n_bins)
    for row, length in enumerate(lengths):
        kept = min(length, n_bins)
        assert int(counts[row]) == kept and not pooled[row, kept:].any()
        if length:
            expected = torch.nn.functional.adaptive_avg_pool1d(frames[row, :length].T[None], kept)[0].T
            torch.testing.assert_close(pooled[row, :kept], expected)
