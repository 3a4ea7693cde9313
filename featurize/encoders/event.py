"""A transformer over the events of a segment, one after the other, trained here on the task at hand.

Conventions
-----------
* Tokens are those of `featurize.midi_tokens`; by default separate ones: NOTE_ON, velocity, NOTE_OFF, TIME_SHIFT and
  program. They count time in seconds, and tell nothing of bars; `music_transformer` is for these.
* A token's place is its number in the window, added to it as sines and cosines, so that there are no places that
  training has not seen and no weights for them.
* How a segment is cut in windows, and what becomes of them, is said in `featurize.encoders.transformer`.

Sources: Oore et al. 2018, "This time with feeling" (the events); Vaswani et al. 2017, "Attention is all you need",
section 3.5 (the places).
"""

from __future__ import annotations

import torch
from torch import Tensor

from featurize.encoders.base import Batch
from featurize.encoders.transformer import TokenTransformer
from featurize.midi_tokens import MidiTokenizer, Tokenization

LONGEST_WAVE = 10_000  # of the sines, in tokens over 2 π


class EventBasedEncoder(TokenTransformer):
    """hidden_dim: D. dropout: in training, of the embeddings, the attention and what each block adds.

    tokenization: "separate", or "compound" for one token per note, whose columns are added up. max_events: tokens in a
    window; a segment with more is read in several. vocab_size: only compared with the tokens' own.
    """

    name = "event"

    def __init__(
        self,
        *,
        hidden_dim: int = 128,
        n_layers: int = 3,
        n_heads: int = 4,
        dropout: float = 0.1,
        tokenization: Tokenization = "separate",
        max_events: int = 1024,
        vocab_size: int | None = None,
    ):
        tokenizer = MidiTokenizer(tokenization, max_events)
        super().__init__(
            tokenizer,
            tokenizer.columns,
            hidden_dim=hidden_dim,
            n_layers=n_layers,
            n_heads=n_heads,
            dropout=dropout,
            vocab_size=vocab_size,
        )
        self.settings = {**self.settings, "places": f"sines, as in Vaswani et al. 2017; base {LONGEST_WAVE}"}

    def read(self, embedded: Tensor, windows: Batch) -> Tensor:
        states = embedded + sinusoids(embedded.shape[1], self.width, embedded.device)
        for layer in self.layers:
            states = layer(states, windows["mask"])
        return states


def sinusoids(n: int, width: int, device: torch.device) -> Tensor:
    """float (n, width): sines, then cosines, from one token per radian to `LONGEST_WAVE`."""
    rates = LONGEST_WAVE ** -(torch.arange(0, width, 2, device=device) / width)
    angles = torch.arange(n, device=device)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width]
