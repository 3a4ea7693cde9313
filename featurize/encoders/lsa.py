"""Latent semantic analysis: TF-IDF over word and character n-grams, projected on the leading singular vectors.

Needs no download and no GPU; fitted, without labels, on the lyrics of the training split. Each n-gram block is
sublinear in term frequency, weighted by smoothed inverse document frequency, and scaled to unit length on its own, so
that the many character n-grams do not drown the words.
Sources: Deerwester et al. 1990, "Indexing by latent semantic analysis"; weighting as scikit-learn's `TfidfVectorizer`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import CountVectorizer
from torch import Tensor

from featurize.encoders.base import Batch, Encoded, TextEncoder
from featurize.segments import RawText, UnreadableInput
from featurize.text import clean_text

WORDS = r"(?u)\b\w+\b"  # unlike scikit-learn's default, keeps "I" and "a"
ANALYZERS: dict[str, dict[str, Any]] = {
    "word": {"ngram_range": (1, 2), "token_pattern": WORDS},
    "char_wb": {"ngram_range": (2, 4)},
}


class LSAEncoder(TextEncoder):
    """n_components: width D, less where the training split has fewer texts. max_terms: vocabulary of each block."""

    name = "lsa"
    libraries = ("scikit-learn", "numpy")
    must_fit = True

    components: Tensor  # (terms, D)

    def __init__(self, n_components: int = 128, max_terms: int = 20_000, min_documents: int = 2, seed: int = 0):
        super().__init__()
        self.width = n_components
        self.settings = {
            "n_components": n_components,
            "max_terms": max_terms,
            "min_documents": min_documents,
            "seed": seed,
            "ngrams": {analyzer: list(how["ngram_range"]) for analyzer, how in ANALYZERS.items()},
        }
        self._counters: dict[str, CountVectorizer] = {}
        self._offsets: dict[str, int] = {}
        self._vocabularies: dict[str, list[str]] = {}
        self.register_buffer("components", torch.zeros(0, n_components))
        self._idf = np.zeros(0, np.float32)  # (terms,); no buffer, for `prepare` reads it where no weights are

    def fit(self, raws: Iterable[RawText]) -> None:
        """Learn vocabulary, idf and singular vectors. Raises `UnreadableInput` where fewer than 3 texts have words."""
        texts = [cleaned for raw in raws if (cleaned := clean_text(raw.text)) is not None]
        if len(texts) < 3:
            raise UnreadableInput(f"lsa needs at least 3 texts in the training split, found {len(texts)}")
        # with few texts a term that stands in one of them is all there is
        min_documents = min(self.settings["min_documents"], max(1, len(texts) // 10))
        vocabularies = {}
        for analyzer, how in ANALYZERS.items():
            counter = CountVectorizer(
                analyzer=analyzer, max_features=self.settings["max_terms"], min_df=min_documents, **how
            )
            try:
                vocabularies[analyzer] = sorted(counter.fit(texts).vocabulary_)
            except ValueError:  # scikit-learn: "empty vocabulary"
                vocabularies[analyzer] = []
        self._set_vocabularies(vocabularies)
        counts = [self._count(text) for text in texts]
        n_terms = sum(len(vocabulary) for vocabulary in vocabularies.values())
        if n_terms < 3:
            raise UnreadableInput("lsa found no term that two texts of the training split share")
        documents = np.zeros(n_terms)
        for terms, _ in counts:
            documents[terms] += 1
        self._idf = (np.log((1 + len(texts)) / (1 + documents)) + 1).astype(np.float32)
        matrix = self._sparse_matrix([self._weigh(terms, count) for terms, count in counts], n_terms)
        self.width = min(self.settings["n_components"], len(texts) - 1, n_terms - 1)
        svd = TruncatedSVD(self.width, n_iter=7, random_state=self.settings["seed"]).fit(matrix)
        self.components = torch.from_numpy(np.ascontiguousarray(svd.components_.T)).float()

    def prepare(self, raw: RawText) -> tuple[np.ndarray, np.ndarray] | None:
        """Term numbers int64 (K,) and weights float32 (K,)."""
        text = clean_text(raw.text)
        return None if text is None else self._weigh(*self._count(text))

    def collate(self, items: Sequence[tuple[np.ndarray, np.ndarray]]) -> Batch:
        lengths = [len(terms) for terms, _ in items]
        return {
            "terms": torch.from_numpy(np.concatenate([terms for terms, _ in items])),
            "weights": torch.from_numpy(np.concatenate([weights for _, weights in items])),
            "offsets": torch.from_numpy(np.cumsum([0, *lengths[:-1]])),
        }

    def forward(self, batch: Batch) -> Encoded:
        """A weighted sum of term vectors, each row for itself: exact whatever else is in the batch."""
        pooled = torch.nn.functional.embedding_bag(
            batch["terms"], self.components, batch["offsets"], mode="sum", per_sample_weights=batch["weights"]
        )
        return Encoded(pooled)

    def state_arrays(self) -> dict[str, np.ndarray]:
        if not self._vocabularies:
            return {}
        vocabulary = json.dumps(self._vocabularies, ensure_ascii=False).encode()
        return {
            **super().state_arrays(),
            "idf": self._idf,
            "vocabulary_json": np.frombuffer(vocabulary, np.uint8),
        }

    def load_state_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        vocabularies: dict[str, list[str]] = json.loads(arrays["vocabulary_json"].tobytes())
        self._set_vocabularies(vocabularies)
        self.components = torch.from_numpy(arrays["components"].copy())
        self._idf = arrays["idf"].copy()
        self.width = self.components.shape[1]

    def _set_vocabularies(self, vocabularies: Mapping[str, list[str]]) -> None:
        self._vocabularies = dict(vocabularies)
        offset = 0
        for analyzer, terms in vocabularies.items():
            self._offsets[analyzer] = offset
            offset += len(terms)
            if terms:
                self._counters[analyzer] = CountVectorizer(analyzer=analyzer, vocabulary=terms, **ANALYZERS[analyzer])

    def _count(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Term numbers and counts, block after block."""
        terms, counts = [], []
        for analyzer, counter in self._counters.items():
            row = counter.transform([text])
            terms.append(row.indices.astype(np.int64) + self._offsets[analyzer])
            counts.append(row.data)
        return np.concatenate(terms), np.concatenate(counts)

    def _weigh(self, terms: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weights = (1 + np.log(counts)) * self._idf[terms]
        for analyzer, start in self._offsets.items():
            block = (terms >= start) & (terms < start + len(self._vocabularies[analyzer]))
            norm = np.linalg.norm(weights[block])
            weights[block] /= norm if norm else 1.0
        return terms, weights.astype(np.float32)

    @staticmethod
    def _sparse_matrix(rows: list[tuple[np.ndarray, np.ndarray]], n_terms: int) -> Any:
        from scipy.sparse import csr_matrix

        starts = np.cumsum([0, *(len(terms) for terms, _ in rows)])
        terms = np.concatenate([terms for terms, _ in rows])
        weights = np.concatenate([weights for _, weights in rows])
        return csr_matrix((weights.astype(np.float64), terms, starts), shape=(len(rows), n_terms))
