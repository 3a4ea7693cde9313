"""A small trimodal data set that makes itself: songs with lyrics, audio and MIDI, and a mood that needs more than one
of them.

`make_demo` writes the folder layout that `cli ingest` reads:

    segments.csv                one row per segment; a blank path is a missing modality
    lyrics/<segment_id>.txt     UTF-8, one line of the lyric per line
    audio/<group>.flac          one file per song, 22,050 Hz, mono, 16 bit
    midi/<group>.mid            one type-1 file per song, with the same times as the audio

Times are seconds from the start of the song. `mood` is one of the four quadrants of the circumplex (Russell 1980),
`energy` is the arousal of the segment with some noise, in [0, 1], blank where nobody rated it. One seeded generator
draws everything: the same arguments give the same bytes.

The noise was set so that fusing beats every single modality. A good score here shows that the pipeline works, and says
nothing about real music.
"""

import csv
from pathlib import Path

import numpy as np
import soundfile

from featurize.demo.compose import compose
from featurize.demo.lyrics import song_vocabulary, write_lyric
from featurize.demo.plan import SectionPlan, draw_energy, draw_presence, plan_song
from featurize.demo.score import write_midi
from featurize.demo.synth import SAMPLE_RATE_HZ, synthesize

COLUMNS = (
    "segment_id",
    "group",
    "text_path",
    "audio_path",
    "midi_path",
    "start_seconds",
    "end_seconds",
    "mood",
    "energy",
)


def make_demo(
    root: Path, *, n_songs: int = 120, segments_per_song: int = 6, segment_seconds: float = 4.0, seed: int = 0
) -> Path:
    """Write the data set under `root` and return the path of its `segments.csv`, which is written last.

    Segments are whole bars, so their lengths scatter around `segment_seconds`.
    """
    if n_songs < 1 or segments_per_song < 1 or segment_seconds <= 0:
        raise ValueError(
            f"A demo needs at least one song, one segment per song and a positive length; got n_songs={n_songs}, "
            f"segments_per_song={segments_per_song}, segment_seconds={segment_seconds}."
        )
    rng = np.random.default_rng(seed)
    plans = [plan_song(segments_per_song, rng) for _ in range(n_songs)]
    energies = draw_energy(np.array([section.arousal for plan in plans for section in plan]), rng)
    present = draw_presence(n_songs * segments_per_song, rng)
    for folder in ("lyrics", "audio", "midi"):
        (root / folder).mkdir(parents=True, exist_ok=True)

    rows: list[dict[str, object]] = []
    for song_index, plan in enumerate(plans):
        of_song = slice(song_index * segments_per_song, (song_index + 1) * segments_per_song)
        song_present = {modality: mask[of_song] for modality, mask in present.items()}
        rows += _write_song(root, f"song_{song_index:03d}", plan, song_present, energies[of_song], segment_seconds, rng)

    csv_path = root / "segments.csv"
    with csv_path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return csv_path


def _write_song(
    root: Path,
    group: str,
    plan: list[SectionPlan],
    present: dict[str, np.ndarray],
    energies: list[float | None],
    segment_seconds: float,
    rng: np.random.Generator,
) -> list[dict[str, object]]:
    """Write the files of one song, as far as some segment refers to them, and return its rows."""
    song = compose(plan, segment_seconds, rng)
    vocabulary = song_vocabulary(rng)
    lyrics = {section: write_lyric(vocabulary, section.positive, rng) for section in dict.fromkeys(plan)}
    samples = synthesize(song, rng)  # also where no segment has audio, so that masks leave the other songs as they are
    audio_path, midi_path = f"audio/{group}.flac", f"midi/{group}.mid"
    if present["audio"].any():
        soundfile.write(root / audio_path, samples, SAMPLE_RATE_HZ, subtype="PCM_16")
    if present["midi"].any():
        write_midi(song.score, root / midi_path)

    rows: list[dict[str, object]] = []
    for index, section in enumerate(song.sections):
        segment_id = f"{group}_{index:02d}"
        text_path = f"lyrics/{segment_id}.txt"
        if present["text"][index]:
            (root / text_path).write_text(lyrics[section.plan], encoding="utf-8", newline="\n")
        start_seconds, end_seconds = song.bounds_seconds(section)
        rows.append(
            {
                "segment_id": segment_id,
                "group": group,
                "text_path": text_path if present["text"][index] else "",
                "audio_path": audio_path if present["audio"][index] else "",
                "midi_path": midi_path if present["midi"][index] else "",
                # Bounds lie on beats, and a beat is a whole number of microseconds: six decimals are exact.
                "start_seconds": f"{start_seconds:.6f}",
                "end_seconds": f"{end_seconds:.6f}",
                "mood": section.plan.mood,
                "energy": energies[index],
            }
        )
    return rows
