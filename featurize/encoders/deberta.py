"""Encode lyrics by any Hugging Face text model that gives a state for each token: DeBERTa, BERT, RoBERTa, MiniLM, T5, …

Conventions
-----------
* The whole text is tokenized, and nothing is cut off: what is longer than `max_tokens` is read in the fewest windows
  that hold it, which do not overlap, differ in length by one token at most, and have the special tokens each.
* The vector is the mean over the states of all tokens of all windows, special tokens included, each token with equal
  weight. For one window that is the mean pooling of sentence-transformers.
* Frames are the states of the text's own tokens in order, without the special ones.

Sources: He et al. 2021, "DeBERTaV3"; Reimers and Gurevych 2019, "Sentence-BERT", section 3 (mean pooling).
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from featurize.encoders.base import Batch, Encoded, TextEncoder
from featurize.encoders.pretrained import load_companion, load_model, origin, recompute_activations
from featurize.encoders.windows import item_frames, item_mean
from featurize.segments import RawText, UnreadableInput
from featurize.text import clean_text

UNKNOWN_LIMIT_TOKENS = 512  # windows of models that name no limit: what most of them were trained on
LARGEST_LIMIT_TOKENS = 1_000_000  # above it, transformers' `model_max_length` means "not known"
EXPECTED = "expected a text model that gives a state for each token, such as DeBERTa, BERT or T5"

Windows = list[np.ndarray]  # int32 (n_inputs + 1, n_tokens) each: the model's inputs, and 1 where a token is the text's


class DebertaEncoder(TextEncoder):
    """pretrained_model: name or folder of a checkpoint; revision: its branch, tag or commit.

    max_tokens: the longest window, special tokens included; `None` is what model and tokenizer allow.
    """

    name = "deberta"
    libraries = ("transformers", "tokenizers", "torch")
    precisions: tuple[str, ...] = ("fp32", "bf16")
    has_frames = True
    at_once = 128
    batch_budget = 4096  # tokens; a CPU prefers fewer (its cache)
    gpu_batch_budget = 16_384  # with fewer, DeBERTa-base keeps a large GPU waiting for the next of its thousand steps
    sort_rows = 1024

    def __init__(
        self,
        pretrained_model: str = "microsoft/deberta-v3-base",
        revision: str | None = None,
        max_tokens: int | None = None,
    ):
        super().__init__()
        self.model = model = _load_text_model(pretrained_model, revision)
        self.loaded_from = origin(pretrained_model, revision, model)
        self.tokenizer = _load_tokenizer(pretrained_model, revision, model)
        takes = inspect.signature(model.forward).parameters
        # a tokenizer of BERT's kind may stand beside a model without token types, such as DistilBERT
        self._inputs = ["input_ids"]
        if "token_type_ids" in self.tokenizer.model_input_names and "token_type_ids" in takes:
            self._inputs.append("token_type_ids")
        self._fast = getattr(self.tokenizer, "backend_tokenizer", None)  # neither cuts nor pads: `_tokenizer_sha256`
        self._n_known_tokens = model.config.vocab_size
        pad_id = self.tokenizer.pad_token_id
        # it is masked: where there is no such token, or none that the model knows, any will do
        self._pad_id = pad_id if pad_id is not None and pad_id < self._n_known_tokens else 0
        self.width = _state_width(model, self._pad_id, pretrained_model)
        if model.config.model_type == "deberta":  # masks scores in bfloat16 with the least number of float32
            self.precisions = ("fp32",)
        self.max_tokens = _window_tokens(max_tokens, self.tokenizer, model)
        self.settings = {
            "max_tokens": self.max_tokens,
            "windows": "fewest, even, not overlapping",
            "pooling": "mean over tokens, special ones included",
            "text": "NFC, line breaks kept, blanks folded",
            "model_class": type(model).__name__,
            "model_config_sha256": _config_sha256(model.config),
            "tokenizer_class": type(self.tokenizer).__name__,
            "tokenizer_sha256": _tokenizer_sha256(self.tokenizer),
        }

    def prepare(self, raw: RawText) -> Windows | None:
        """Raises `UnreadableInput` where there is text that the tokenizer, or the model, knows nothing of."""
        text = clean_text(raw.text)
        if text is None:
            return None
        try:
            text.encode()  # says what is wrong with half a character; the tokenizer does not
            tokens = self._tokenize(text)
        except Exception as error:  # tokenizers raises nothing more precise
            raise UnreadableInput(f"the text cannot be tokenized: {error}") from error
        return self._windows(tokens)

    def prepare_many(self, raws: Sequence[RawText]) -> list[Windows | None]:
        """A fast tokenizer takes several texts in as many threads, and lets go of Python's lock meanwhile."""
        if self._fast is None:
            return super().prepare_many(raws)
        texts = [clean_text(raw.text) for raw in raws]
        found = iter(self._fast.encode_batch_fast([text for text in texts if text is not None]))
        return [None if text is None else self._windows(self._tokens(next(found))) for text in texts]

    def _windows(self, tokens: np.ndarray) -> Windows:
        """Of a text's tokens, as `_tokenize` gives them."""
        own = np.flatnonzero(tokens[-1])
        if not len(own):
            raise UnreadableInput("the tokenizer knows nothing of this text")
        if tokens[0].max() >= self._n_known_tokens:  # a special token spelt out, that was added without the model
            raise UnreadableInput("the text holds a token that the model does not know")
        if tokens.shape[1] <= self.max_tokens:
            return [tokens]
        before, body, after = np.split(tokens, [own[0], own[-1] + 1], axis=1)
        n_windows = -(-len(own) // (self.max_tokens - before.shape[1] - after.shape[1]))
        return [np.concatenate([before, part, after], axis=1) for part in np.array_split(body, n_windows, axis=1)]

    def cost(self, item: Windows) -> int:
        return sum(window.shape[1] for window in item)

    def collate(self, items: Sequence[Windows]) -> Batch:
        """The model's inputs, int (W, L); attention_mask and own_tokens, bool (W, L); n_windows, int (B,).

        own_tokens: true where a token is the text's own, neither special nor padding.
        """
        windows = [window for item in items for window in item]
        n_tokens = torch.tensor([window.shape[1] for window in windows])
        rows = [*self._inputs, "own_tokens"]
        shape = (len(windows), int(n_tokens.max()))
        padded = {name: np.full(shape, self._pad_id if name == "input_ids" else 0) for name in rows}
        for number, window in enumerate(windows):
            for name, row in zip(rows, window, strict=True):
                padded[name][number, : len(row)] = row
        tensors = {name: torch.from_numpy(array) for name, array in padded.items()}
        return {
            **tensors,
            "own_tokens": tensors["own_tokens"].bool(),
            "attention_mask": torch.arange(shape[1]) < n_tokens[:, None],
            "n_windows": torch.tensor([len(item) for item in items]),
        }

    def forward(self, batch: Batch) -> Encoded:
        mask, n_windows = batch["attention_mask"], batch["n_windows"]
        inputs = {name: batch[name] for name in self._inputs}
        states = self.model(**inputs, attention_mask=mask.long()).last_hidden_state
        with torch.autocast(states.device.type, enabled=False):  # means over hundreds of tokens need float32
            states = torch.where(mask[:, :, None], states.float(), 0)
            n_tokens = mask.sum(dim=1)
            pooled = item_mean(states.sum(dim=1) / n_tokens[:, None], n_windows, weights=n_tokens)
            if not self.with_frames:
                return Encoded(pooled)
            return Encoded(pooled, *item_frames(states, batch["own_tokens"], n_windows))

    def ordered_blocks(self) -> Sequence[nn.Module]:
        """The longest list of modules: whatever the family calls them, these are the layers."""
        lists = [module for module in self.model.modules() if isinstance(module, nn.ModuleList)]
        return list(max(lists, key=len, default=()))  # of equally long ones the outermost

    def recompute_activations(self) -> bool:
        return recompute_activations(self.model)

    def _tokenize(self, text: str) -> np.ndarray:
        """int32 (n_inputs + 1, n_tokens), as in `Windows`: the whole text, special tokens around it."""
        if self._fast is not None:  # what the tokenizer itself calls, without what it wraps around: half the time
            return self._tokens(self._fast.encode(text))
        encoded = self.tokenizer(
            text,
            truncation=False,  # a tokenizer.json may ask for both
            padding=False,
            return_token_type_ids="token_type_ids" in self._inputs,
            return_special_tokens_mask=True,
            verbose=False,  # it would say that the text is longer than a window
        )
        own = 1 - np.array(encoded["special_tokens_mask"])  # only of those put around the text, not of a "[SEP]" in it
        return np.stack([*(encoded[name] for name in self._inputs), own]).astype(np.int32)

    def _tokens(self, found: Any) -> np.ndarray:
        """int32 (n_inputs + 1, n_tokens) of what a fast tokenizer found."""
        own = 1 - np.array(found.special_tokens_mask, np.int32)
        columns = {"input_ids": found.ids, "token_type_ids": found.type_ids}
        return np.array([*(columns[name] for name in self._inputs), own], np.int32)


def _load_text_model(pretrained_model: str, revision: str | None) -> Any:
    """A model without its decoder and pooler. Raises `ValueError` where it is none that reads text."""
    from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING, AutoConfig, AutoModel, AutoModelForTextEncoding

    config = load_companion(AutoConfig, pretrained_model, revision)
    encoder_alone = type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING  # T5
    if config.is_encoder_decoder and not encoder_alone:
        raise ValueError(f"{pretrained_model} is of type {config.model_type}, which also decodes; {EXPECTED}")
    kind = AutoModelForTextEncoding if config.is_encoder_decoder else AutoModel
    model = load_model(kind, pretrained_model, revision)
    takes = inspect.signature(model.forward).parameters
    if not (hasattr(config, "vocab_size") and "input_ids" in takes and "attention_mask" in takes):
        raise ValueError(f"{pretrained_model} is a {type(model).__name__}; {EXPECTED}")
    if isinstance(getattr(model, "pooler", None), nn.Module):
        model.pooler = nn.Identity()  # nothing reads what it gives, and a checkpoint may lack its weights
    model.config.use_cache = False  # a decoder would keep its keys and values
    return model


def _state_width(model: Any, pad_id: int, pretrained_model: str) -> int:
    """D of the states of the tokens. Raises `ValueError` where padding changes them."""
    tokens = torch.tensor([[5, 6, 7, pad_id, pad_id]])
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    with torch.no_grad():
        alone = model(input_ids=tokens[:, :3], attention_mask=mask[:, :3]).last_hidden_state
        padded = model(input_ids=tokens, attention_mask=mask).last_hidden_state[:, :3]
    if (padded - alone).abs().max() > 1e-3 * alone.abs().max():  # MobileBERT reads each token's neighbours
        raise ValueError(
            f"{pretrained_model} is a {type(model).__name__}, which reads its padding: a text's vector would depend on"
            " the texts beside it"
        )
    width: int = alone.shape[2]
    return width


def _load_tokenizer(pretrained_model: str, revision: str | None, model: Any) -> Any:
    from tokenizers.normalizers import NFKC, Sequence
    from transformers import AutoTokenizer, DebertaV2Tokenizer

    tokenizer = load_companion(AutoTokenizer, pretrained_model, revision)
    ids = set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)
    if len(ids) <= 1:  # T5's keeps "▁"
        # transformers makes one of special tokens alone where it finds no vocabulary: each word would be unknown
        raise ValueError(f"{pretrained_model} has no tokenizer: {type(tokenizer).__name__} found no vocabulary there")
    n_known = model.config.vocab_size
    if max(ids) >= n_known:
        raise ValueError(
            f"{pretrained_model} has a tokenizer of {max(ids) + 1} tokens, but a {type(model).__name__} of {n_known}:"
            " they do not belong together"
        )
    if isinstance(tokenizer, DebertaV2Tokenizer):
        # its vocabulary was trained on NFKC, which transformers 5 no longer does: "…" and "ﬁ" would be unknown
        backend = tokenizer.backend_tokenizer
        backend.normalizer = Sequence([NFKC(), backend.normalizer])
    return tokenizer


def _window_tokens(max_tokens: int | None, tokenizer: Any, model: Any) -> int:
    """The longest window, checked against what the tokenizer and the model's positions allow."""
    limits = [tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None)]
    tables = [getattr(module, "position_embeddings", None) for module in model.modules()]
    for table in tables:
        if isinstance(table, nn.Embedding) and table.padding_idx is not None:
            limits.append(table.num_embeddings - table.padding_idx - 1)  # RoBERTa counts from behind its padding
    known = [limit for limit in limits if limit is not None and 0 < limit < LARGEST_LIMIT_TOKENS]
    if max_tokens is None:
        return min(known, default=UNKNOWN_LIMIT_TOKENS)
    fewest, most = tokenizer.num_special_tokens_to_add() + 1, min(known, default=LARGEST_LIMIT_TOKENS)
    if not isinstance(max_tokens, int) or not fewest <= max_tokens <= most:
        raise ValueError(f"max_tokens is {max_tokens}; expected {fewest} to {most}, or null for the most")
    return max_tokens


def _config_sha256(config: Any) -> str:
    """Of what shapes the model beside its weights (number of heads, layer norm epsilon, …), wherever it came from."""
    elsewhere = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")
    kept = {key: value for key, value in config.to_dict().items() if key not in elsewhere}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def _tokenizer_sha256(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # written in Python
        vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
        return hashlib.sha256(vocabulary.encode()).hexdigest()
    backend.no_truncation()  # nor are they used: see `_tokenize`
    backend.no_padding()
    return hashlib.sha256(backend.to_str().encode()).hexdigest()
