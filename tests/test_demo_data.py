"""The demo data set: exact missingness, the same bytes from the same seed, and files that agree with one another."""

import csv
from itertools import pairwise
from pathlib import Path

import mido
import numpy as np
import pytest
import soundfile
from scipy.stats import chi2_contingency

from featurize.demo import COLUMNS, make_demo
from featurize.demo.plan import MOODS, draw_energy, draw_presence, plan_song

N_SONGS = 12
SEGMENTS_PER_SONG = 6
PATH_COLUMNS = ("text_path", "audio_path", "midi_path")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo")
    assert make_demo(root, n_songs=N_SONGS, segments_per_song=SEGMENTS_PER_SONG, seed=3) == root / "segments.csv"
    return root


@pytest.fixture(scope="module")
def rows(demo: Path) -> list[dict[str, str]]:
    with (demo / "segments.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == N_SONGS * SEGMENTS_PER_SONG
    return rows


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def note_starts_seconds(path: Path) -> np.ndarray:
    midi = mido.MidiFile(path)
    times = np.cumsum([message.time for message in midi])
    return np.array(
        [t for t, message in zip(times, midi, strict=True) if message.type == "note_on" and message.velocity]
    )


def rise(energy: np.ndarray, at: np.ndarray, window: int) -> np.ndarray:
    """Log ratio of the energy in the window after each sample index to that before; `energy` is cumulative."""
    ratio = (energy[at + window] - energy[at]) / (energy[at] - energy[at - window])
    return np.asarray(np.log(ratio))


def test_same_seed_gives_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        make_demo(tmp_path / name, n_songs=3, seed=seed)
    first, second, other = (contents(tmp_path / name) for name in "abc")
    assert first == second
    assert first["segments.csv"] != other["segments.csv"]
    shared_audio = [name for name in first if name.endswith(".flac") and name in other]
    assert shared_audio
    assert all(first[name] != other[name] for name in shared_audio)


def test_columns_ids_and_labels(rows: list[dict[str, str]]) -> None:
    assert tuple(rows[0]) == COLUMNS
    assert len({row["segment_id"] for row in rows}) == len(rows)
    assert len({row["group"] for row in rows}) == N_SONGS
    assert {row["mood"] for row in rows} == set(MOODS.values())
    energies = [float(row["energy"]) for row in rows if row["energy"]]
    assert len(energies) == len(rows) - round(0.02 * len(rows))
    assert all(0 <= energy <= 1 for energy in energies)


def test_missing_shares_are_exact(rows: list[dict[str, str]]) -> None:
    n_missing = {column: sum(row[column] == "" for row in rows) for column in PATH_COLUMNS}
    assert n_missing == {
        "text_path": round(0.07 * len(rows)),
        "audio_path": round(0.15 * len(rows)),
        "midi_path": round(0.57 * len(rows)),
    }


@pytest.mark.parametrize("n_segments", [1, 2, 7, 100, 1_000])
def test_every_segment_keeps_a_modality(n_segments: int) -> None:
    for seed in range(10):
        present = draw_presence(n_segments, np.random.default_rng(seed))
        assert np.any(list(present.values()), axis=0).all()


def test_files_are_what_the_table_says(demo: Path, rows: list[dict[str, str]]) -> None:
    listed = {row[column] for row in rows for column in PATH_COLUMNS if row[column]}
    assert set(contents(demo)) == listed | {"segments.csv"}
    for row in rows:
        assert float(row["start_seconds"]) < float(row["end_seconds"])
        if row["text_path"]:
            assert (demo / row["text_path"]).read_text(encoding="utf-8").strip()
        if row["audio_path"]:
            info = soundfile.info(demo / row["audio_path"])
            assert (info.samplerate, info.channels, info.subtype) == (22_050, 1, "PCM_16")
            assert float(row["end_seconds"]) <= info.duration
        if row["midi_path"]:
            midi = mido.MidiFile(demo / row["midi_path"])
            assert midi.type == 1
            assert [message.type for message in midi.tracks[0]].count("set_tempo") == 1
            starts = note_starts_seconds(demo / row["midi_path"])
            assert np.any((starts >= float(row["start_seconds"])) & (starts < float(row["end_seconds"])))


def test_segments_of_a_song_follow_one_another(rows: list[dict[str, str]]) -> None:
    for before, after in pairwise(rows):
        if before["group"] == after["group"]:
            assert before["end_seconds"] == after["start_seconds"]
        else:
            assert float(after["start_seconds"]) == 0


def test_chorus_repeats_its_lyric_and_songs_do_not_share_lyrics(demo: Path, rows: list[dict[str, str]]) -> None:
    lyrics = {
        row["segment_id"]: (demo / row["text_path"]).read_text(encoding="utf-8") for row in rows if row["text_path"]
    }
    choruses = [
        (lyrics[f"{group}_02"], lyrics[f"{group}_05"])
        for group in {row["group"] for row in rows}
        if f"{group}_02" in lyrics and f"{group}_05" in lyrics
    ]
    assert choruses
    assert all(first == second for first, second in choruses)
    songs_by_lyric: dict[str, set[str]] = {}
    for segment_id, lyric in lyrics.items():
        songs_by_lyric.setdefault(lyric, set()).add(segment_id[: len("song_000")])
    assert all(len(songs) == 1 for songs in songs_by_lyric.values())


def test_notes_begin_where_the_audio_gets_louder(demo: Path, rows: list[dict[str, str]]) -> None:
    songs = {(row["audio_path"], row["midi_path"]) for row in rows if row["audio_path"] and row["midi_path"]}
    assert songs
    for audio_path, midi_path in songs:
        samples, sample_rate_hz = soundfile.read(demo / audio_path, dtype="float32")
        window = round(0.03 * sample_rate_hz)
        # The first notes have silence before them, so skip what has no full window on both sides.
        onsets = np.unique(np.round(note_starts_seconds(demo / midi_path) * sample_rate_hz).astype(int))[1:]
        energy = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
        midway = (onsets[:-1] + onsets[1:]) // 2
        assert np.median(rise(energy, onsets, window)) > np.median(rise(energy, midway, window)) + 0.1


def test_missingness_says_nothing_about_the_labels() -> None:
    rng = np.random.default_rng(0)
    sections = [section for _ in range(400) for section in plan_song(SEGMENTS_PER_SONG, rng)]
    present = draw_presence(len(sections), rng)
    moods = np.array([section.mood for section in sections])
    for mask in present.values():
        table = [[np.sum((moods == mood) & (mask == value)) for mood in MOODS.values()] for value in (True, False)]
        assert chi2_contingency(table).pvalue > 0.01


def test_songs_have_a_mood_but_not_every_segment_shares_it() -> None:
    rng = np.random.default_rng(0)
    songs = [[section.mood for section in plan_song(SEGMENTS_PER_SONG, rng)] for _ in range(200)]
    majority_share = np.mean([max(moods.count(mood) for mood in moods) / len(moods) for moods in songs])
    assert 0.6 < majority_share < 0.9
    assert any(len(set(moods)) > 1 for moods in songs)


def test_energy_follows_arousal_and_has_gaps() -> None:
    arousal = np.linspace(0, 1, 200)
    energy = draw_energy(arousal, np.random.default_rng(0))
    rated = [(a, e) for a, e in zip(arousal, energy, strict=True) if e is not None]
    assert len(rated) == 196
    assert np.corrcoef(np.array(rated).T)[0, 1] > 0.9


@pytest.mark.parametrize("wrong", [{"n_songs": 0}, {"segments_per_song": 0}, {"segment_seconds": 0.0}])
def test_impossible_sizes_are_refused(tmp_path: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="at least one song"):
        make_demo(tmp_path, **wrong)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
