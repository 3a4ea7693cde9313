"""The input embeddings of a text model: a row of its table for each token, without anything that the model does next.

Goal: text as it is before any encoder, for a fusion that reads frames of several slots with one encoder of its own.

Conventions
-----------
* Any model that `deberta` reads will do, and a text has the tokens that it has there: all, however many they are, but
  not the special ones.
* A frame is one token: its row of the embedding table, float32 (D,), as the checkpoint has it. Positions, token types
  and normalization are not added: equal tokens have equal frames. The vector is the mean over the tokens.
* Of the model only this table stays in memory.

Source: Kim, Son and Kim 2021, "ViLT", section 3.1, where word embeddings stand beside flattened patches in one
transformer, and neither has an encoder of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from featurize.encoders.base import Batch, Encoded, TextEncoder
from featurize.encoders.deberta import DebertaEncoder
from featurize.segments import RawText


class TokenEmbeddingEncoder(TextEncoder):
    """pretrained_model: name or folder of a checkpoint; revision: its branch, tag or commit."""

    name = "token_embeddings"
    libraries = ("transformers", "tokenizers", "torch")
    has_frames = True
    batch_budget = 16_384  # tokens: 50 MB of frames of 768
    sort_rows = 1024

    def __init__(self, pretrained_model: str = "microsoft/deberta-v3-base", revision: str | None = None):
        super().__init__()
        whole = DebertaEncoder(pretrained_model, revision)
        table = whole.model.get_input_embeddings()
        if not isinstance(table, nn.Embedding):
            raise ValueError(
                f"{pretrained_model} is a {type(whole.model).__name__}, whose tokens have a {type(table).__name__}; "
                "expected a model with a plain table of embeddings"
            )
        # not `table` itself: some kinds of it scale what they look up
        self.embedding = nn.Embedding.from_pretrained(table.weight.detach(), freeze=False)
        self._windows_of = whole.without_weights().prepare  # no submodule: it stays where weights are left behind
        self.loaded_from = whole.loaded_from
        self.width = self.embedding.embedding_dim
        taken_over = ("text", "model_class", "tokenizer_class", "tokenizer_sha256")
        self.settings = {
            **{name: whole.settings[name] for name in taken_over},
            "tokens": "of the whole text, without special ones",
            "pooling": "mean over tokens",
            "version": 1,  # raise it when the same table would give other numbers
        }

    def prepare(self, raw: RawText) -> np.ndarray | None:
        """int32 (n_tokens,). Raises `UnreadableInput` as `deberta` does."""
        windows = self._windows_of(raw)
        if windows is None:
            return None
        return np.concatenate([window[0][window[-1] == 1] for window in windows])

    def cost(self, item: np.ndarray) -> int:
        return len(item)

    def collate(self, items: Sequence[np.ndarray]) -> Batch:
        """ids: int64 (B, longest), 0 behind the shorter; n_tokens: int (B,), how many are real."""
        n_tokens = [len(item) for item in items]
        ids = np.zeros((len(items), max(n_tokens)), np.int64)
        for row, item in zip(ids, items, strict=True):
            row[: len(item)] = item
        return {"ids": torch.from_numpy(ids), "n_tokens": torch.tensor(n_tokens)}

    def forward(self, batch: Batch) -> Encoded:
        ids, n_tokens = batch["ids"], batch["n_tokens"]
        mask = torch.arange(ids.shape[1], device=ids.device) < n_tokens[:, None]
        frames = torch.where(mask[:, :, None], self.embedding(ids), 0)
        pooled = frames.sum(dim=1) / n_tokens[:, None]
        return Encoded(pooled, frames, mask) if self.with_frames else Encoded(pooled)
