"""How fast are MIDI files read? Ours beside pretty_midi, mido and bare symusic, on the same files in turn.

    python -m benchmarks.midi_reading                      # songs that the demo composes, three minutes each
    python -m benchmarks.midi_reading songs/midi           # every .mid below a folder

From the bytes of a file to its notes in seconds: ours ends with a `Score`, pretty_midi with a `PrettyMIDI`. mido only
tells its messages apart, and symusic leaves ticks and drops notes without an end; they show what is in the parser and
what is around it. Each repetition reads all files with each, one after the other; a ratio is taken within a repetition.
Times are of the processor (all of them use one thread), so that a shared machine does not show.
"""

from __future__ import annotations

import gc
import tempfile
import time
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import click
import mido
import numpy as np
import pretty_midi
import symusic

from benchmarks import machine
from featurize.demo.compose import compose
from featurize.demo.plan import plan_song
from featurize.demo.score import write_midi
from featurize.midi import parse_midi

PASSES = 10  # over all files, of the two that take a millisecond a file: one pass would mostly measure a cold start

READERS: dict[str, Callable[[bytes], object]] = {
    "ours": parse_midi,
    "symusic": symusic.Score.from_midi,
    "mido": lambda data: mido.MidiFile(file=BytesIO(data), clip=True),
    "pretty_midi": lambda data: pretty_midi.PrettyMIDI(BytesIO(data)),
}


def demo_songs(n_songs: int, seed: int = 0) -> list[bytes]:
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{index}.mid" for index in range(n_songs)]
        for path in paths:
            write_midi(compose(plan_song(8, rng), 22.5, rng).score, path)
        return [path.read_bytes() for path in paths]


def seconds_for(name: str, files: list[bytes]) -> float:
    passes = PASSES if name in ("ours", "symusic") else 1
    gc.collect()  # nobody pays for what another left behind
    started = time.process_time()
    for data in files * passes:
        READERS[name](data)
    return (time.process_time() - started) / passes


def readable(files: list[bytes]) -> list[bytes]:
    """What all of them read, so that none is faster for giving up."""
    kept = []
    for data in files:
        try:
            for reader in READERS.values():
                reader(data)
        except Exception:  # each library raises its own kinds
            continue
        kept.append(data)
    return kept


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path), required=False)
@click.option("--repetitions", type=click.IntRange(5), default=7, show_default=True)
@click.option(
    "--songs", type=click.IntRange(1), default=20, show_default=True, help="Demo songs, where no FOLDER is given."
)
def main(folder: Path | None, repetitions: int, songs: int) -> None:
    warnings.simplefilter("ignore")  # pretty_midi warns of tempo changes outside the first track
    found = [path.read_bytes() for path in sorted(folder.rglob("*.mid"))] if folder else demo_songs(songs)
    files = readable(found)
    if not files:
        raise click.ClickException(f"Of {len(found)} files none is read by all. Name a folder that holds .mid files.")
    sizes = [len(parse_midi(data)) for data in files]
    print(machine("symusic", "mido", "pretty_midi", "numpy"))
    print(
        f"{len(files)} of {len(found)} files, {sum(map(len, files)) / 2**20:.1f} MiB, {sum(sizes):,} notes; "
        f"{repetitions} repetitions"
    )
    taken = np.array([[seconds_for(name, files) for name in READERS] for _ in range(repetitions)])
    for index, name in enumerate(READERS):
        each_ms = 1e3 * taken[:, index] / len(files)
        ratios = taken[:, index] / taken[:, 0]
        print(
            f"{name:<12} {np.median(each_ms):8.2f} ms a file ({each_ms.min():.2f} to {each_ms.max():.2f}), "
            f"{np.median(ratios):6.1f} times ours ({ratios.min():.1f} to {ratios.max():.1f})"
        )


if __name__ == "__main__":
    main()
