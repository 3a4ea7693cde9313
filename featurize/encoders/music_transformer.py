"""A transformer over the notes of a segment that knows where they stand in the bar, trained here on the task at hand.

Conventions
-----------
* One token per note (compound tokens of `featurize.midi_tokens`): the sum of a learned embedding for each column but
  the bar's. The position in the bar, in steps of 1/24 quarter, and the length of the bar are among them.
* What one note is to another is a pair of distances, each with a learned key that queries meet: in bars, no more than
  `max_bar_distance` either way; and between the positions in their bars, by sign and octave (`STEP_EDGES`). At distance
  0 in position and 1 in bars stands what sounds at the same place of the next bar.
* So nothing depends on the number of the bar, nor on the order of notes that sound together: the same music some bars
  later has the same vector. Where in the bar it stands, however, makes a difference.
* How a segment is cut in windows, and what becomes of them, is said in `featurize.encoders.transformer`.

Sources: C.-Z. A. Huang et al. 2018, "Music Transformer", and Shaw et al. 2018 (relative keys, clipped at a distance);
Y.-S. Huang and Y.-H. Yang 2020, "Pop Music Transformer" (REMI: bar and position say more than seconds); Zeng et al.
2021, "MusicBERT" (the columns); Raffel et al. 2020, "T5" (coarser kinds for larger distances).
"""

from __future__ import annotations

import torch
from torch import Tensor

from featurize.encoders.base import Batch
from featurize.encoders.transformer import TokenTransformer
from featurize.midi_tokens import COLUMNS, MidiTokenizer

READ_COLUMNS = tuple(column for column in COLUMNS if column != "Bar")
STEP_EDGES = (1, 3, 6, 12, 24, 48, 96)  # steps: from 3, a 32nd, to a half note; below 3 is strumming and looseness
N_STEP_KINDS = 2 * len(STEP_EDGES) + 1


class MusicTransformer(TokenTransformer):
    """hidden_dim: D. dropout: in training, of the embeddings, the attention and what each block adds.

    max_bar_distance: bars farther apart count as so far apart. max_events: notes in a window; a segment with more is
    read in several. vocab_size: only compared with the tokens' own.
    """

    name = "music_transformer"

    def __init__(
        self,
        *,
        hidden_dim: int = 128,
        n_layers: int = 3,
        n_heads: int = 4,
        dropout: float = 0.1,
        max_bar_distance: int = 8,
        max_events: int = 1024,
        vocab_size: int | None = None,
    ):
        if max_bar_distance < 1:
            raise ValueError(f"max_bar_distance is {max_bar_distance}; expected at least 1")
        super().__init__(
            MidiTokenizer("compound", max_events),
            READ_COLUMNS,
            hidden_dim=hidden_dim,
            n_layers=n_layers,
            n_heads=n_heads,
            dropout=dropout,
            vocab_size=vocab_size,
            relations=(2 * max_bar_distance + 1, N_STEP_KINDS),
        )
        self.settings = {**self.settings, "max_bar_distance": max_bar_distance, "step_edges": list(STEP_EDGES)}
        self._max_bar_distance = max_bar_distance

    def read(self, embedded: Tensor, windows: Batch) -> Tensor:
        kinds = self._bar_kinds(windows["bar"]) * N_STEP_KINDS + step_kinds(windows["position"])
        states = embedded
        for layer in self.layers:
            states = layer(states, windows["mask"], kinds)
        return states

    def _bar_kinds(self, bar: Tensor) -> Tensor:
        return distances(bar).clamp(-self._max_bar_distance, self._max_bar_distance) + self._max_bar_distance


def step_kinds(position: Tensor) -> Tensor:
    """int (W, L) to (W, L, L), 0 to `N_STEP_KINDS` - 1; the kind in the middle is no distance."""
    steps = distances(position)
    edges = torch.tensor(STEP_EDGES, device=position.device)
    return steps.sign() * torch.bucketize(steps.abs(), edges, right=True) + len(STEP_EDGES)


def distances(places: Tensor) -> Tensor:
    """(W, L) to (W, L, L): how far behind a token (second to last) another (last) stands."""
    return places[:, None, :] - places[:, :, None]
