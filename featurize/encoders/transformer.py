"""A transformer over the tokens of a segment, as `event` and `music_transformer` are; and its unlabelled training.

Conventions
-----------
* A segment is read in windows of at most `max_events` tokens; where it has more, it is halved between notes, at a bar
  line where bars are known, until every part fits. Each note lies in one window, with its end: nothing is left out.
  (One note alone that has more separate tokens, because it sounds for `max_events` seconds, ends with the last.)
* A window begins with its first note: silence before it, and the time between windows, are not read.
* A batch holds the windows of B items side by side, W in all, of L tokens in the longest: `ids` int64 (W, L, C), one id
  for each of C columns; `mask` bool (W, L), true where a token is real; `n_windows` int (B,); of compound tokens `bar`
  and `position` int64 (W, L), as in `Tokens`. What stands behind a window's end is never looked at.
* Frames are the tokens' last states, in order, all windows of an item end to end. The vector is a linear map of their
  mean, in which every token of the segment counts the same.

Sources: Vaswani et al. 2017, "Attention is all you need", with normalization before each block as in GPT-2, Radford et
al. 2019; learned keys for relations, Shaw et al. 2018, "Self-attention with relative position representations"; masked
tokens, Devlin et al. 2019, "BERT".
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import reduce

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from featurize.encoders.base import Batch, Encoded, MIDIEncoder
from featurize.encoders.windows import item_frames, item_mean
from featurize.midi import READING, Score
from featurize.midi_tokens import MidiTokenizer, Tokens

Item = dict[str, np.ndarray]  # arrays over the tokens of all windows end to end; `n_tokens` (w,) tells them apart

UNCUT = 2**31  # more tokens than any file's notes have
# Pairs of tokens that go through the layers together, for relative attention has several numbers for each pair and
# head: 32 MB an array. With four times as many, segments of 250 notes take twice as long on a CPU.
PAIRS_AT_ONCE = 2 * 1024**2
HIDDEN_SHARE = 0.15  # of the tokens, as in BERT


class TokenTransformer(MIDIEncoder):
    """Base of the encoders of this kind: a subclass says what its layers know of the tokens' places (`read`)."""

    libraries = ("miditok", "mido", "numpy", "symusic", "torch")
    must_train = True
    has_frames = True
    precisions = ("fp32", "bf16")
    batch_budget = 8 * 1024**2  # pairs of tokens, which time goes by where windows are long: 8 windows of 1024

    first_ids: Tensor  # of each column, in the one table that holds the embeddings of all

    def __init__(
        self,
        tokenizer: MidiTokenizer,
        columns: Sequence[str],
        *,
        hidden_dim: int,
        n_layers: int,
        n_heads: int,
        dropout: float,
        vocab_size: int | None,
        relations: Sequence[int] = (),
    ):
        """columns: of the tokens, which are read. relations: how many kinds there are of each (`Layer`).

        vocab_size: of all columns that are read. The tokens decide it; a number given is only compared with theirs.
        """
        super().__init__()
        sizes = {"hidden_dim": hidden_dim, "n_layers": n_layers, "n_heads": n_heads}
        for option, value in sizes.items():
            if value < 1:
                raise ValueError(f"{option} is {value}; expected at least 1")
        if hidden_dim % n_heads:
            raise ValueError(f"hidden_dim is {hidden_dim}; expected a multiple of n_heads, {n_heads}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}; expected 0 to below 1")
        self._columns = [tokenizer.columns.index(column) for column in columns]
        self.vocabulary_sizes = [tokenizer.vocabulary_sizes[column] for column in self._columns]
        if vocab_size not in (None, sum(self.vocabulary_sizes)):
            raise ValueError(
                f"vocab_size is {vocab_size}; {tokenizer.tokenization} tokens have {sum(self.vocabulary_sizes)}. "
                "Leave it null"
            )
        self.width = hidden_dim
        self.settings = {
            **READING,
            **tokenizer.settings,
            "columns": list(columns),
            "windows": "of whole notes from the first on; halved, at a bar line where known, down to max_events",
            **sizes,
            "dropout": dropout,
            "vocab_size": sum(self.vocabulary_sizes),
            "pooling": "mean over the tokens of all windows",
            "version": 1,  # raise it when the same weights would give other numbers
        }
        self._tokenizer = tokenizer
        first_ids = np.cumsum([0, *self.vocabulary_sizes[:-1]])
        self.register_buffer("first_ids", torch.from_numpy(first_ids), persistent=False)
        self.embedding = nn.Embedding(sum(self.vocabulary_sizes), hidden_dim)
        nn.init.normal_(self.embedding.weight, std=len(columns) ** -0.5)  # so that a token's sum has deviation 1
        self.layers = nn.ModuleList(Layer(hidden_dim, n_heads, dropout, relations) for _ in range(n_layers))
        self.norm = nn.LayerNorm(hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.to_vector = nn.Linear(hidden_dim, hidden_dim)

    @abstractmethod
    def read(self, embedded: Tensor, windows: Batch) -> Tensor:
        """What the layers make of w windows, cut to the longest: float (w, l, D) to the same. windows: their batch."""

    def prepare_score(self, score: Score) -> Item:
        windows = list(note_windows(score, self._tokenizer))
        arrays = {"ids": [window.ids.reshape(len(window), -1)[:, self._columns] for window in windows]}
        if self._tokenizer.tokenization == "compound":
            arrays |= {place: [getattr(window, place) for window in windows] for place in ("bar", "position")}
        n_tokens = np.array([len(window) for window in windows])
        return {"n_tokens": n_tokens, **{name: np.concatenate(parts) for name, parts in arrays.items()}}

    def cost(self, item: Item) -> int:
        return len(item["n_tokens"]) * int(item["n_tokens"].max()) ** 2

    def collate(self, items: Sequence[Item]) -> Batch:
        n_tokens = np.concatenate([item["n_tokens"] for item in items])
        mask = np.arange(n_tokens.max()) < n_tokens[:, None]
        n_windows = torch.tensor([len(item["n_tokens"]) for item in items])
        batch = {"mask": torch.from_numpy(mask), "n_windows": n_windows}
        for name in (name for name in items[0] if name != "n_tokens"):
            values = np.concatenate([item[name] for item in items])
            padded = np.zeros((*mask.shape, *values.shape[1:]), np.int64)
            padded[mask] = values
            batch[name] = torch.from_numpy(padded)
        return batch

    def forward(self, batch: Batch) -> Encoded:
        mask, n_windows = batch["mask"], batch["n_windows"]
        states = self.states(self.embed(batch["ids"]), batch) * mask[:, :, None]
        n_tokens = mask.sum(dim=1)
        window_means = states.sum(dim=1) / n_tokens[:, None]
        pooled = self.to_vector(item_mean(window_means, n_windows, weights=n_tokens)).float()
        return Encoded(pooled, *item_frames(states, mask, n_windows)) if self.with_frames else Encoded(pooled)

    def ordered_blocks(self) -> Sequence[nn.Module]:
        *others, last = self.layers
        return [*others, nn.ModuleList([last, self.norm, self.to_vector])]

    def recompute_activations(self) -> bool:
        for layer in self.layers:
            layer.recomputes = True  # type: ignore[assignment]
        return True

    def embed(self, ids: Tensor) -> Tensor:
        """The sum of the columns' embeddings: (W, L, C) to (W, L, D)."""
        embedded: Tensor = self.embedding(ids + self.first_ids).sum(dim=2)
        return embedded

    def states(self, embedded: Tensor, batch: Batch) -> Tensor:
        """The tokens' last states, float32 (W, L, D). Windows of like length go through the layers together."""
        n_tokens = batch["mask"].sum(dim=1)
        order = n_tokens.argsort(descending=True, stable=True)
        states: list[Tensor] = []
        start = 0
        while start < len(order):
            longest = int(n_tokens[order[start]])
            rows = order[start : start + max(1, PAIRS_AT_ONCE // longest**2)]
            windows = {name: tensor[rows, :longest] for name, tensor in batch.items() if name != "n_windows"}
            read = self.read(self.dropout(embedded[rows, :longest]), windows)
            states.append(pad(read, (0, 0, 0, embedded.shape[1] - longest)))
            start += len(rows)
        return self.norm(torch.cat(states)[order.argsort()]).float()  # type: ignore[no-any-return]


class Layer(nn.Module):
    """Attention and a feed-forward network, each added to what it reads, which is normalized before.

    relations: how many kinds there are of each relation of two tokens. A query meets the sum of the key of the token
    that it looks at and a learned key for each relation to it. recomputes: in training, keep nothing but what is read.
    """

    recomputes: bool = False

    def __init__(self, width: int, n_heads: int, dropout: float, relations: Sequence[int] = ()):
        super().__init__()
        self.n_heads = n_heads
        head_width = width // n_heads
        self.attention_norm = nn.LayerNorm(width)
        self.to_queries_keys_values = nn.Linear(width, 3 * width)
        self.relation_keys = nn.ParameterList(torch.randn(n, head_width) * head_width**-0.5 for n in relations)
        self.to_states = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.feed_forward = nn.Sequential(
            *(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU()),
            *(nn.Linear(4 * width, width), nn.Dropout(dropout)),
        )

    def forward(self, states: Tensor, mask: Tensor, kinds: Tensor | None = None) -> Tensor:
        """float (W, L, D) to the same. mask: bool (W, L). kinds: int (W, L, L), in which combination of kinds a token
        (second to last) stands to another (last): its number, where the last relation's kind counts fastest."""
        if self.recomputes and self.training:
            return checkpoint(self._forward, states, mask, kinds, use_reentrant=False)  # type: ignore[no-any-return]
        return self._forward(states, mask, kinds)

    def _forward(self, states: Tensor, mask: Tensor, kinds: Tensor | None) -> Tensor:
        states = states + self.dropout(self._attend(self.attention_norm(states), mask[:, None, None, :], kinds))
        return states + self.feed_forward(states)  # type: ignore[no-any-return]

    def _attend(self, states: Tensor, mask: Tensor, kinds: Tensor | None) -> Tensor:
        projected = self.to_queries_keys_values(states).unflatten(2, (3, self.n_heads, -1))
        queries, keys, values = projected.permute(2, 0, 3, 1, 4)  # each (W, H, L, d)
        bias = mask
        if kinds is not None:
            # One look-up in all combinations costs less than one for each relation: it is made for every pair.
            combined = reduce(lambda some, more: (some[:, None] + more).flatten(0, 1), self.relation_keys)
            scores = queries @ combined.mT * queries.shape[3] ** -0.5  # (W, H, L, combinations)
            of_pairs = scores.gather(3, kinds[:, None].expand(-1, self.n_heads, -1, -1))
            bias = of_pairs.masked_fill(~mask, -torch.inf)
        heads = scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
        return self.to_states(heads.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class MaskedEventModel(nn.Module):
    """An encoder that learns without labels: some tokens are hidden, and it predicts them from the others.

    The head and the vector that stands for a hidden token live here, so that the encoder is afterwards what it was. Of
    a hidden compound token all columns are predicted; its place, which the relations to others tell, stays known.
    """

    def __init__(self, encoder: TokenTransformer):
        super().__init__()
        self.encoder = encoder
        self.hidden_token = nn.Parameter(torch.zeros(encoder.width))
        self.head = nn.Linear(encoder.width, sum(encoder.vocabulary_sizes))

    def forward(self, batch: Batch, seed: int) -> Tensor:
        """Cross-entropy of each item's hidden tokens, float (B,): nats, the mean over columns and tokens.

        The seed says which tokens are hidden.
        """
        hidden = choose_hidden(batch["mask"], seed)
        return self.item_means(batch, hidden, self.predict(batch, hidden))

    @staticmethod
    def item_means(batch: Batch, hidden: Tensor, logits: Sequence[Tensor]) -> Tensor:
        """Of what was predicted for each column's hidden tokens, float (n, ids), the cross-entropy of each item."""
        columns = zip(logits, batch["ids"][hidden].unbind(dim=1), strict=True)
        of_tokens = torch.stack([cross_entropy(out, ids, reduction="none") for out, ids in columns]).mean(dim=0)
        n_items = len(batch["n_windows"])
        of_windows = torch.arange(n_items, device=of_tokens.device).repeat_interleave(batch["n_windows"])
        item = of_windows.repeat_interleave(hidden.sum(dim=1))
        sums = of_tokens.new_zeros(n_items).index_add(0, item, of_tokens)
        return sums / torch.bincount(item, minlength=n_items)

    def predict(self, batch: Batch, hidden: Tensor) -> tuple[Tensor, ...]:
        """For each column the logits, float (n, ids), of the n tokens where `hidden`, bool (W, L), is true."""
        embedded = torch.where(hidden[:, :, None], self.hidden_token, self.encoder.embed(batch["ids"]))
        logits: Tensor = self.head(self.encoder.states(embedded, batch)[hidden])
        return logits.float().split_with_sizes(self.encoder.vocabulary_sizes, dim=1)


def choose_hidden(mask: Tensor, seed: int) -> Tensor:
    """bool (W, L): `HIDDEN_SHARE` of each window's tokens, at least one. mask: bool (W, L), which are real."""
    chance = torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed)).to(mask.device)
    rank = chance.masked_fill(~mask, torch.inf).argsort(dim=1).argsort(dim=1)
    return rank < (HIDDEN_SHARE * mask.sum(dim=1, keepdim=True)).round().clamp(min=1)


def note_windows(score: Score, tokenizer: MidiTokenizer) -> Iterator[Tokens]:
    """The tokens of `score` in windows of at most `max_events`, in order; the module's text says how it is cut."""
    score = _from_first_note(score)
    tokens = replace(tokenizer, max_events=UNCUT).tokens(score)
    if tokens.n_cut == 0 and len(tokens) <= tokenizer.max_events:
        yield tokens
    elif len(score) == 1:
        yield tokenizer.tokens(score)
    else:
        middle = _middle(tokens, len(score))
        yield from note_windows(score.select(np.arange(middle)), tokenizer)
        yield from note_windows(score.select(np.arange(middle, len(score))), tokenizer)


def _from_first_note(score: Score) -> Score:
    times = ("onset", "offset", "tempo", "time_signature", "duration", "track_end")
    start = float(score.onset_seconds[0])
    return replace(score, **{f"{time}_seconds": getattr(score, f"{time}_seconds") - start for time in times})


def _middle(tokens: Tokens, n_notes: int) -> int:
    """How many notes stand before the bar line nearest the middle; half of them where no bar line is known."""
    half = n_notes // 2
    if tokens.bar is None or tokens.n_cut:  # what was cut lies beyond the last bar that has a number
        return half
    lines = np.flatnonzero(np.diff(tokens.bar)) + 1
    return int(lines[np.abs(lines - half).argmin()]) if len(lines) else half
