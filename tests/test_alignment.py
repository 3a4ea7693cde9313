"""`cli align` on songs of which one has its MIDI late and one the MIDI of another song."""

from __future__ import annotations

import csv
import json
import shutil

import mido
import numpy as np
import pytest

from featurize.alignment import Correction
from featurize.demo import make_demo
from featurize.midi import read_midi
from featurize.segments import RawMidi
from stores import open_store
from stores.feature import Status

LATE_SECONDS = 0.4


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six songs with three segments of 8 s; song b's MIDI is late, song c's is song d's."""
    root = tmp_path_factory.mktemp("misaligned")
    make_demo(root, n_songs=6, segments_per_song=3, segment_seconds=8.0, seed=3)
    with (root / "segments.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    songs = sorted({row["group"] for row in rows if row["midi_path"] and row["audio_path"]})
    late, swapped, other = songs[1], songs[2], songs[3]
    path_of = {row["group"]: row["midi_path"] for row in rows if row["midi_path"]}
    shutil.copy(root / path_of[other], root / "midi" / "swapped.mid")
    original = mido.MidiFile(root / path_of[late])
    shifted = mido.MidiFile(type=original.type, ticks_per_beat=original.ticks_per_beat)
    tempo = next(m.tempo for track in original.tracks for m in track if m.type == "set_tempo")
    delay = round(mido.second2tick(LATE_SECONDS, original.ticks_per_beat, tempo))
    for track in original.tracks:
        notes = [message.copy() for message in track]
        first = next((i for i, message in enumerate(notes) if message.type == "note_on"), None)
        if first is not None:
            notes[first].time += delay
        shifted.tracks.append(mido.MidiTrack(notes))
    shifted.save(root / "midi" / "late.mid")
    for row in rows:
        if row["group"] == swapped and row["midi_path"]:
            row["midi_path"] = "midi/swapped.mid"
        if row["group"] == late and row["midi_path"]:
            row["midi_path"] = "midi/late.mid"
    with (root / "segments.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    both = {g: [r["segment_id"] for r in rows if r["group"] == g and r["midi_path"] and r["audio_path"]] for g in songs}
    return root, both, late, swapped


def test_what_is_late_is_shifted_and_what_is_strange_left_out(project, data, run_cli, monkeypatch):
    root, both, late, swapped = data
    output = run_cli("ingest", root).output  # it measures a few, here all
    assert "MIDI that does not fit its audio" in output and "MIDI that is early or late" in output
    run_cli("featurize", "--encoder", "midi_stats")
    before = open_store("features.zarr")["midi/midi_stats"].vectors[:]

    found = {row["segment_id"]: row for row in json.loads(run_cli("align", "--json", "--workers", 0).stdout)}
    for group, ids in both.items():
        verdicts = [found[segment_id]["verdict"] for segment_id in ids]
        assert ("together" in verdicts) == (group != swapped), (group, verdicts)
    offsets = {s: row["offset_seconds"] for s, row in found.items() if row["verdict"] == "together"}
    assert offsets
    for segment_id, offset in offsets.items():
        expected = -LATE_SECONDS if segment_id in both[late] else 0.0
        assert abs(offset - expected) < 0.02, segment_id
    assert "0 encoded" in run_cli("featurize", "--encoder", "midi_stats").output  # nothing is changed unasked

    monkeypatch.setattr("featurize.align.measure", lambda *_: pytest.fail("measured again"))
    output = run_cli("align", "--correct", "--exclude", "--workers", 0).output
    assert "their MIDI is shifted when it is read" in output and "their MIDI counts as absent" in output
    run_cli("featurize", "--encoder", "midi_stats")
    store = open_store("features.zarr")
    feature = store["midi/midi_stats"]
    row_of = {segment_id: row for row, segment_id in enumerate(store.ids.tolist())}
    changed = {s for s, row in row_of.items() if (feature.vectors[row] != before[row]).any()}
    apart = {s for s, row in found.items() if row["verdict"] == "apart"}
    moved = {s for s in offsets if s in both[late]}
    assert moved and apart and changed == moved | apart
    assert all(feature.status[row_of[s]] == Status.ABSENT for s in apart)


def test_a_shift_moves_the_cut_and_a_start_before_the_file_is_silence(data):
    root = data[0]
    path = root / "midi" / "late.mid"
    plain = read_midi(RawMidi(path=path, start_seconds=2.0, end_seconds=8.0))
    moved = read_midi(RawMidi(path=path, start_seconds=1.5, end_seconds=7.5, shift_seconds=-0.5))
    np.testing.assert_allclose(moved.onset_seconds, plain.onset_seconds)
    early = read_midi(RawMidi(path=path, start_seconds=0.0, end_seconds=4.0, shift_seconds=1.0))
    start = read_midi(RawMidi(path=path, start_seconds=0.0, end_seconds=3.0))
    np.testing.assert_allclose(early.onset_seconds, start.onset_seconds + 1.0)
    assert RawMidi(path=path, shift_seconds=0.5).digest() != RawMidi(path=path).digest()


def test_the_measurement_travels_with_a_store_that_grows(data, tmp_path):
    from stores.carry import carry_over
    from stores.memory_store import MemoryTree
    from tests.stores_contract import make_store

    old, new = make_store(MemoryTree(), 4), make_store(MemoryTree(), 6)
    text = np.dtypes.StringDType()
    columns = {
        "verdict": np.array(["together", "apart", "", "together"], text),
        "offset_seconds": np.array([0.5, np.nan, np.nan, 0.001]),
        "lead": np.zeros(4),
        "score": np.zeros(4),
        "reason": np.zeros(4, text),
        "input_hash": np.zeros((4, 16), np.uint8),
    }
    old.write_alignment(columns, {"version": 1, "correct": True, "exclude": True})
    carry_over(old, new)
    correction = Correction.of(new)
    assert correction is not None
    assert correction.shift_seconds.tolist() == [0.5, 0, 0, 0, 0, 0]  # a millisecond is below what is measured
    assert correction.excluded.tolist() == [False, True, False, False, False, False]
