"""Make two parquet files like those of someone who has encoded everything already: see docs/existing-embeddings.md.

    python examples/existing_embeddings.py --segments 11605 --songs 83

training_data_with_embeddings.parquet: ids, songs, times, lyric and concept embeddings with their flags, three soft
distributions, a confidence, and further columns. clap.parquet: audio embeddings, in another order, 15% of them missing.
The numbers are drawn; text and audio each know a part of the labels, so that there is something to learn.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

MOODS = ("happy", "sad", "calm", "angry")
INSTRUMENTAL, WITHOUT_AUDIO = 841 / 11605, 0.15
FURTHER_COLUMNS = 60


@click.command()
@click.option("--segments", default=11605, show_default=True, type=click.IntRange(20))
@click.option("--songs", default=83, show_default=True, type=click.IntRange(10))
@click.option("--folder", default=Path(), type=click.Path(path_type=Path), help="Where to write. [default: here]")
@click.option("--width", default=768, show_default=True, help="Of the lyric and concept embeddings.")
@click.option("--audio-width", default=512, show_default=True)
def main(segments: int, songs: int, folder: Path, width: int, audio_width: int) -> None:
    """Write training_data_with_embeddings.parquet and clap.parquet."""
    rng = np.random.default_rng(0)
    song = np.sort(rng.integers(songs, size=segments))
    theme = rng.normal(size=(songs, 6))[song] + 0.7 * rng.normal(size=(segments, 6))  # what labels and vectors share
    ids = [f"segment_{number:06d}" for number in range(segments)]
    has_lyric = rng.random(segments) >= INSTRUMENTAL
    has_audio = rng.random(segments) >= WITHOUT_AUDIO
    mood, colour, era = (_softmax(theme @ rng.normal(size=(6, n))) for n in (len(MOODS), 7, 3))
    start = np.arange(segments) * 7.5
    columns = {
        "segment_id": pa.array(ids),
        "song_id": pa.array([f"song_{number:02d}" for number in song]),
        "lyric_text": pa.array([f"la {number}" if there else None for number, there in enumerate(has_lyric)]),
        "start_seconds": pa.array(start),
        "end_seconds": pa.array(start + 7.5),
        "has_audio": pa.array(has_audio),
        "lyric_embedding": _lists(rng, theme[:, :4], width, np.float16, ~has_lyric),
        "has_lyric_embedding": pa.array(has_lyric),
        "concept_embedding": _lists(rng, theme[:, 1:3], width, np.float32, np.zeros(segments, bool)),
        **{f"mood_prob_{name}": pa.array(mood[:, number]) for number, name in enumerate(MOODS)},
        "rainbow_color_probs": pa.array(list(colour), pa.list_(pa.float32())),
        "era_probs": pa.array(list(era), pa.list_(pa.float32(), 3)),
        "confidence": pa.array(np.clip(mood.max(axis=1) + 0.05 * rng.normal(size=segments), 0, 1)),
        **{f"statistic_{number:02d}": pa.array(rng.normal(size=segments)) for number in range(FURTHER_COLUMNS)},
    }
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / "training_data_with_embeddings.parquet", row_group_size=2000)
    order = rng.permutation(segments)
    clap = {
        "segment_id": pa.array([ids[row] for row in order]),
        "audio_embedding": _lists(rng, theme[order, 3:], audio_width, np.float32, np.zeros(segments, bool)),
        "has_audio_embedding": pa.array(has_audio[order]),
    }
    pq.write_table(pa.table(clap), folder / "clap.parquet", row_group_size=2000)
    click.echo(f"Wrote {segments:,} segments of {songs} songs to {folder.resolve()}")


def _lists(rng: np.random.Generator, known: np.ndarray, width: int, kind: type, missing: np.ndarray) -> pa.Array:
    """Vectors in which `known` hides, as a list column; zeros in the rows that are missing, as encoders write them."""
    vectors = known @ rng.normal(size=(known.shape[1], width)) + 2 * rng.normal(size=(len(known), width))
    vectors[missing] = 0
    offsets = np.arange(0, vectors.size + 1, width, dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(vectors.astype(kind).ravel()))


def _softmax(scores: np.ndarray) -> np.ndarray:
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


if __name__ == "__main__":
    main()
