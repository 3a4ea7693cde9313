"""Stated times: what the table, the files' lengths and SMPTE offsets say, compared when a dataset is ingested."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from featurize.config import DataConfig
from featurize.ingestion import check, describe_source
from featurize.midi import read_midi


def timed_folder(tmp_path, columns: str, rows: list[str]):
    """Two seconds of audio; MIDI with notes at 0, 1, …, 9 s; and a table."""
    write_wav(tmp_path / "a.wav", seconds=2.0)
    (tmp_path / "a.mid").write_bytes(notes_each_second(10))
    table = [f"segment_id,group,audio_path,midi_path,mood{columns}"]
    table += [f"s{n},g{n},a.wav,a.mid,{'happy' if n % 2 else 'sad'}{row}" for n, row in enumerate(rows)]
    (tmp_path / "segments.csv").write_text("\n".join(table) + "\n")
    return tmp_path


def write_wav(path, seconds: float) -> None:
    soundfile.write(path, np.sin(np.arange(int(8000 * seconds)) / 9).astype("float32") * 0.5, 8000)


def notes_each_second(n: int, smpte_offset: bytes | None = None) -> bytes:
    """480 ticks are a quarter note are half a second."""
    events = b"" if smpte_offset is None else b"\x00\xff\x54\x05" + smpte_offset
    for number in range(n):
        events += (b"\x00" if number == 0 else b"\x86\x60") + b"\x90\x3c\x40" + b"\x60\x80\x3c\x00"  # 864 + 96 ticks
    events += b"\x00\xff\x2f\x00"
    return b"MThd\x00\x00\x00\x06\x00\x00\x00\x01\x01\xe0MTrk" + len(events).to_bytes(4, "big") + events


SEGMENTS = DataConfig(audio_is="segment", midi_is="segment")


def said(found, what: str) -> list[str]:
    return [example for problem in found.problems if problem.what.startswith(what) for example in problem.examples]


def test_lengths_that_contradict_the_times_are_noticed(tmp_path):
    folder = timed_folder(tmp_path, ",start_seconds,end_seconds", [",10,12", ",10,14", ",10,20"])
    found = check(folder, SEGMENTS)
    assert said(found, "audio whose length") == ["'s1': 2.0 s, stated 4.0 s", "'s2': 2.0 s, stated 10.0 s"]
    assert said(found, "MIDI that goes on") == [
        "'s0': notes until 9.0 s, segment of 2.0 s",
        "'s1': notes until 9.0 s, segment of 4.0 s",
    ]
    assert "sample rate" in str(found.problems)


def test_a_whole_song_of_midi_beside_a_clip_is_noticed_without_any_times(tmp_path):
    found = check(timed_folder(tmp_path, "", [""]), DataConfig())
    assert said(found, "MIDI that goes on") == ["'s0': notes until 9.0 s, segment of 2.0 s"]


def test_stated_starts_shift_the_midi_and_are_shown(tmp_path):
    """Audio from 10 s on, MIDI from 11.5 s on: what is at 0 in the MIDI is at 1.5 s in the audio. In timecode, too."""
    columns = ",start_seconds,end_seconds,midi_start_seconds,audio_start_seconds"
    rows = [",10,20,11.5,", ",10,20,10,", ",10,20,,10", ",10,20,00:00:11:12,00:00:10:00", ",10,20,8.25,10"]
    folder = timed_folder(tmp_path, columns, rows)
    config = DataConfig(audio_is="segment", midi_is="segment", timecode_rate="25")
    found = check(folder, config)
    assert said(found, "MIDI that starts at another") == ["'s0': +1.500 s", "'s3': +1.480 s", "'s4': -1.750 s"]
    onsets = [read_midi(found.source.raw(row, "midi")).onset_seconds[0] for row in range(5)]
    assert onsets == pytest.approx([1.5, 0.0, 0.0, 1.48, 0.25], abs=1e-3)  # the last's first two notes come before
    assert set(found.labels) == {"mood"}


def test_songs_that_begin_later_on_the_clock_are_cut_there(tmp_path):
    """The MIDI file begins at 10:00 of the song's clock, the segment at 10:02."""
    columns = ",start_seconds,end_seconds,midi_start_seconds"
    found = check(timed_folder(tmp_path, columns, [",602,604.5,600"]), DataConfig(audio_is="segment"))
    assert read_midi(found.source.raw(0, "midi")).onset_seconds == pytest.approx([0.0, 1.0, 2.0], abs=1e-3)
    again = describe_source(found.source, tmp_path / "features.zarr")
    assert again["columns"]["midi_start_seconds"] == "midi_start_seconds"


def test_an_smpte_offset_that_the_table_does_not_know_is_shown(tmp_path):
    folder = timed_folder(tmp_path, ",start_seconds,end_seconds,midi_start_seconds", [",10,20,", ",10,20,3600"])
    (tmp_path / "a.mid").write_bytes(notes_each_second(10, smpte_offset=b"\x21\x00\x00\x00\x00"))  # 25 fps, 01:00:00:00
    found = check(folder, DataConfig(audio_is="segment"))
    assert said(found, "MIDI with an SMPTE offset") == ["'s0': 3600.000 s in the file, 0.000 s by the table"]
