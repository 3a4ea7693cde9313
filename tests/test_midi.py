"""Reading MIDI: crafted files with notes known beforehand, both parsers side by side, cuts, and damage."""

from __future__ import annotations

import random
import struct
from dataclasses import fields
from io import BytesIO
from pathlib import Path

import mido
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mido import Message, MetaMessage

from featurize import midi
from featurize.midi import Score, cut, parse_midi, read_midi
from featurize.segments import RawMidi, UnreadableInput

TICKS_PER_QUARTER = 480
SECONDS_PER_TICK = 0.5 / TICKS_PER_QUARTER  # at 120 bpm, which holds where a file states no tempo
END_OF_TRACK = b"\x00\xff\x2f\x00"
ONE_NOTE = b"\x00\x90\x3c\x40\x28\x80\x3c\x00" + END_OF_TRACK  # middle C, 40 ticks


def smf(*tracks: list, type: int = 1, ticks_per_quarter: int = TICKS_PER_QUARTER) -> bytes:
    """A Standard MIDI File of tracks of (tick, message), in this order."""
    file = mido.MidiFile(type=type, ticks_per_beat=ticks_per_quarter)
    for events in tracks:
        track, now = mido.MidiTrack(), 0
        for tick, message in events:
            track.append(message.copy(time=tick - now))
            now = tick
        file.tracks.append(track)
    buffer = BytesIO()
    file.save(file=buffer)
    return buffer.getvalue()


def raw_smf(*tracks: bytes, type: int = 1, division: int = TICKS_PER_QUARTER) -> bytes:
    chunks = [b"MTrk" + struct.pack(">I", len(track)) + track for track in tracks]
    return b"MThd" + struct.pack(">IHHH", 6, type, len(tracks), division) + b"".join(chunks)


def on(pitch: int, velocity: int = 64, channel: int = 0) -> Message:
    return Message("note_on", note=pitch, velocity=velocity, channel=channel)


def off(pitch: int, channel: int = 0) -> Message:
    return Message("note_off", note=pitch, velocity=0, channel=channel)


def program(number: int, channel: int = 0) -> Message:
    return Message("program_change", program=number, channel=channel)


def tempo(microseconds_per_quarter: int) -> MetaMessage:
    return MetaMessage("set_tempo", tempo=microseconds_per_quarter)


def meter(numerator: int, denominator: int) -> MetaMessage:
    return MetaMessage("time_signature", numerator=numerator, denominator=denominator)


def notes_in_ticks(score: Score) -> list[tuple]:
    """(onset, offset, pitch, velocity, program, is_drum), times in ticks at 120 bpm."""
    onsets = np.rint(score.onset_seconds / SECONDS_PER_TICK).astype(int)
    offsets = np.rint(score.offset_seconds / SECONDS_PER_TICK).astype(int)
    columns = (onsets, offsets, score.pitch, score.velocity, score.program, score.is_drum)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def assert_equal(one: Score, other: Score) -> None:
    for field in fields(Score):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name), err_msg=field.name)


def with_mido(data: bytes) -> Score:
    return midi._to_score(midi._parse_with_mido(data))


NOTE_CASES = {  # bytes of the file, and its notes in ticks at 120 bpm
    "type 0": (
        smf([(0, on(60)), (10, on(64, channel=1)), (20, off(60)), (30, off(64, channel=1))], type=0),
        [(0, 20, 60, 64, 0, False), (10, 30, 64, 64, 0, False)],
    ),
    "type 1": (
        smf([(0, meter(3, 4))], [(5, on(60)), (20, off(60))], [(0, on(48)), (9, off(48))]),
        [(0, 9, 48, 64, 0, False), (5, 20, 60, 64, 0, False)],
    ),
    "struck again while sounding: first in, first out": (
        smf([(0, on(60, 10)), (100, on(60, 20)), (200, off(60)), (300, off(60))]),
        [(0, 200, 60, 10, 0, False), (100, 300, 60, 20, 0, False)],
    ),
    "velocity 0 ends": (smf([(0, on(60)), (40, on(60, 0))]), [(0, 40, 60, 64, 0, False)]),
    "zero length is kept": (smf([(7, on(60)), (7, off(60))]), [(7, 7, 60, 64, 0, False)]),
    "off then on at one tick": (
        smf([(0, on(60)), (10, off(60)), (10, on(60)), (20, off(60))]),
        [(0, 10, 60, 64, 0, False), (10, 20, 60, 64, 0, False)],
    ),
    "without an end: dropped": (smf([(0, on(60)), (5, on(62)), (9, off(62))]), [(5, 9, 62, 64, 0, False)]),
    "an end without a note": (smf([(0, off(60)), (5, on(60)), (9, off(60))]), [(5, 9, 60, 64, 0, False)]),
    "an end in another track is none": (
        smf([(0, on(60))], [(5, off(60)), (6, on(7)), (8, off(7))]),
        [(6, 8, 7, 64, 0, False)],
    ),
    "drums": (
        smf([(0, program(8, 9)), (0, on(36, channel=9)), (0, on(60)), (9, off(36, 9)), (9, off(60))]),
        [(0, 9, 36, 64, 8, True), (0, 9, 60, 64, 0, False)],
    ),
    "program at the onset counts": (
        smf([(0, program(5)), (0, on(60)), (5, program(6)), (9, off(60)), (9, on(61)), (12, off(61))]),
        [(0, 9, 60, 64, 5, False), (9, 12, 61, 64, 6, False)],
    ),
    "programs are each track's own": (
        smf([(0, program(5)), (0, on(40)), (9, off(40))], [(0, on(41)), (9, off(41))]),
        [(0, 9, 40, 64, 5, False), (0, 9, 41, 64, 0, False)],
    ),
    "running status": (
        raw_smf(b"\x00\x90\x3c\x40\x28\x3c\x00\x0a\x3d\x05\x0a\x3d\x00" + END_OF_TRACK, type=0),
        [(0, 40, 60, 64, 0, False), (50, 60, 61, 5, 0, False)],
    ),
    "nothing after the end of the track": (
        raw_smf(ONE_NOTE + b"\x00\x90\x3e\x40\x28\x80\x3e\x00"),
        [(0, 40, 60, 64, 0, False)],
    ),
}


@pytest.mark.parametrize("name", NOTE_CASES)
def test_notes_are_those_written(name: str) -> None:
    data, expected = NOTE_CASES[name]
    assert expected
    assert notes_in_ticks(parse_midi(data)) == expected
    assert_equal(parse_midi(data), with_mido(data))


def test_tempo_of_the_first_track_holds_for_all() -> None:
    data = smf(
        [(0, tempo(500_000)), (480, tempo(1_000_000)), (960, tempo(250_000)), (960, meter(6, 8))],
        [(0, on(60)), (720, off(60)), (960, on(62)), (1440, off(62))],
    )
    for score in (parse_midi(data), with_mido(data)):
        np.testing.assert_allclose(score.onset_seconds, [0, 1.5])
        np.testing.assert_allclose(score.offset_seconds, [1.0, 1.75])
        np.testing.assert_allclose(score.tempo_seconds, [0, 0.5, 1.5])
        np.testing.assert_allclose(score.tempo_bpm, [120, 60, 240])
        np.testing.assert_allclose(score.time_signature_seconds, [0, 1.5])
        assert score.time_signatures.tolist() == [[4, 4], [6, 8]]  # 4/4 holds until the file says otherwise
        assert score.duration_seconds == 1.75
        np.testing.assert_allclose(score.quarters_at(np.array([0.0, 0.25, 1.0, 1.75, 2.0])), [0, 0.5, 1.5, 3, 4])


def test_of_two_tempos_at_one_tick_the_last_holds_and_tempo_zero_is_ignored() -> None:
    data = smf([(0, tempo(400_000)), (0, tempo(1_000_000)), (0, tempo(0)), (480, on(60)), (960, off(60))])
    for score in (parse_midi(data), with_mido(data)):
        assert score.tempo_bpm.tolist() == [60.0]
        assert score.onset_seconds.tolist() == [1.0]


def test_times_are_exact_far_into_a_file() -> None:
    ticks = 480 * 2 * 3000 + 1  # 50 minutes at 120 bpm, and one tick
    score = parse_midi(smf([(ticks, on(60)), (ticks + 1, off(60))]))
    assert score.onset_seconds[0] == pytest.approx(3000 + SECONDS_PER_TICK, abs=1e-9)


def test_smpte_time_ignores_the_tempo() -> None:
    track = b"\x00\xff\x51\x03\x01\x00\x00" + ONE_NOTE  # 25 frames of 40 ticks: 1 ms per tick
    score = parse_midi(raw_smf(track, division=0xE728))
    assert (score.onset_seconds[0], score.offset_seconds[0]) == (0.0, pytest.approx(0.040))
    drop_frame = parse_midi(raw_smf(track, division=0xE301))  # 29.97 frames of one tick
    assert drop_frame.offset_seconds[0] == pytest.approx(40 * 1001 / 30_000)


def test_mido_takes_what_symusic_refuses() -> None:
    data = raw_smf(b"\x00\x90\x3c\xc8\x28\x80\x3c\x00" + END_OF_TRACK)  # velocity 200
    assert notes_in_ticks(parse_midi(data)) == [(0, 40, 60, 127, 0, False)]


written_notes = st.lists(
    st.tuples(
        st.integers(0, 2000),  # onset
        st.integers(0, 500),  # length
        st.integers(0, 127),  # pitch
        st.integers(1, 127),  # velocity
        st.integers(0, 15),  # channel
        st.integers(0, 2),  # track
    ),
    max_size=30,
    unique_by=lambda note: (note[2], note[4], note[5]),  # one note per key, so that no pairing is in question
)


@settings(max_examples=60, deadline=None)
@given(written_notes, st.lists(st.integers(0, 127), min_size=48, max_size=48))
def test_any_notes_come_back(notes: list[tuple[int, ...]], programs: list[int]) -> None:
    tracks: list[list] = [
        [(0, program(programs[16 * t + channel], channel)) for channel in range(16)] for t in range(3)
    ]
    for onset, length, pitch, velocity, channel, track in notes:
        tracks[track] += [(onset, on(pitch, velocity, channel)), (onset + length, off(pitch, channel))]
    data = smf(*(sorted(events, key=lambda event: event[0]) for events in tracks))
    expected = sorted(
        (onset, onset + length, pitch, velocity, programs[16 * track + channel], channel == 9)
        for onset, length, pitch, velocity, channel, track in notes
    )
    assert sorted(notes_in_ticks(parse_midi(data))) == expected
    assert_equal(parse_midi(data), with_mido(data))


events = st.lists(
    st.tuples(
        st.integers(0, 40),
        st.one_of(
            st.builds(on, st.integers(60, 62), st.integers(0, 127), st.integers(8, 9)),
            st.builds(off, st.integers(60, 62), st.integers(8, 9)),
            st.builds(program, st.integers(0, 3), st.integers(8, 9)),
            st.builds(tempo, st.integers(1, 2**24 - 1)),
            st.builds(meter, st.integers(1, 255), st.sampled_from([1, 2, 4, 8, 16, 128])),
        ),
    ),
    max_size=24,
).map(lambda drawn: sorted(drawn, key=lambda event: event[0]))


@settings(max_examples=150, deadline=None)
@given(events, events)
def test_both_parsers_agree_on_any_order_of_events(first: list, second: list) -> None:
    data = smf(first, second)
    assert_equal(parse_midi(data), with_mido(data))


def test_cut_keeps_sounding_notes_clips_them_and_counts_from_its_start() -> None:
    score = parse_midi(
        smf([(0, on(60)), (960, off(60)), (960, on(62)), (1920, off(62)), (1920, on(64)), (2880, off(64))])
    )  # three notes of one second
    inside = cut(score, 0.5, 2.0)
    assert inside.pitch.tolist() == [60, 62]  # 64 starts at the end, which is outside
    np.testing.assert_allclose(inside.onset_seconds, [0, 0.5])
    np.testing.assert_allclose(inside.offset_seconds, [0.5, 1.5])
    assert inside.duration_seconds == 1.5
    assert cut(score, 1.0 + 1e-9, 2.0).pitch.tolist() == [62]  # rounding neither loses 62 nor lets 60 in
    assert cut(score, 2.5).duration_seconds == 0.5
    assert cut(score, 0, 60).duration_seconds == 60
    assert len(cut(score, 3.0, 4.0)) == 0
    assert_equal(cut(score), score)
    assert_equal(cut(score, start_seconds=0.0), score)


def test_cut_remembers_tempo_and_meter_from_before_its_start() -> None:
    score = parse_midi(
        smf([(0, meter(3, 4)), (480, tempo(1_000_000)), (960, on(60)), (4800, off(60)), (4800, tempo(1))])
    )
    inside = cut(score, 1.0, 3.0)
    np.testing.assert_allclose(inside.tempo_seconds, [-1.0, -0.5])
    np.testing.assert_allclose(inside.quarters_at(np.array([0.0, 1.0])), score.quarters_at(np.array([1.0, 2.0])))
    assert inside.time_signatures.tolist() == [[3, 4]]


@settings(max_examples=60, deadline=None)
@given(written_notes, st.lists(st.integers(1, 2600), min_size=1, max_size=4, unique=True))
def test_neighbouring_cuts_lose_no_note(notes: list[tuple[int, ...]], edges: list[int]) -> None:
    events = [(o, on(p, v, c)) for o, n, p, v, c, _ in notes] + [(o + n, off(p, c)) for o, n, p, v, c, _ in notes]
    score = parse_midi(smf(sorted(events, key=lambda event: (event[0], event[1].type == "note_off"))))
    total = score.duration_seconds
    inner = [tick * SECONDS_PER_TICK for tick in sorted(edges) if tick * SECONDS_PER_TICK < total]
    cuts = [cut(score, start, end) for start, end in zip([None, *inner], [*inner, None], strict=True)]
    sounded = sum((part.offset_seconds - part.onset_seconds).sum() for part in cuts)
    assert sounded == pytest.approx((score.offset_seconds - score.onset_seconds).sum(), abs=1e-6)
    crossings = sum(
        np.count_nonzero((score.onset_seconds < e - 1e-6) & (score.offset_seconds > e + 1e-6)) for e in inner
    )
    assert sum(len(part) for part in cuts) == len(score) + crossings


def test_read_midi_reads_files_and_blobs(tmp_path: Path) -> None:
    data, expected = NOTE_CASES["type 1"]
    path = tmp_path / "song.mid"
    path.write_bytes(data)
    assert notes_in_ticks(read_midi(RawMidi(path=path))) == expected
    assert_equal(read_midi(RawMidi(data=data)), read_midi(RawMidi(path=path)))
    assert len(read_midi(RawMidi(data=data, start_seconds=10 * SECONDS_PER_TICK))) == 1


ERROR_CASES = {
    "empty": (b"", {}, r"empty \(0 bytes\)"),
    "not MIDI": (b"hello world, this is text", {}, r"^not a readable MIDI file \(symusic: .*MThd.*; mido: .*MThd"),
    "cut off": (raw_smf(ONE_NOTE)[:-6], {}, r"symusic: .+; mido: \w"),
    "header only": (raw_smf(), {}, "ends before its first track"),
    "no time division": (raw_smf(ONE_NOTE, division=0), {}, "time division 0x0000 is neither metrical nor SMPTE"),
    "strange frame rate": (raw_smf(ONE_NOTE, division=0xF001), {}, "time division 0xf001"),
    "lasts for days": (smf([(0, on(60)), (2**28 - 1, off(60))], ticks_per_quarter=1), {}, "37,282.7 h; at most 24 h"),
    "beyond the end": (
        raw_smf(ONE_NOTE),
        {"start_seconds": 60.0},
        r"starts at 60 s.*ends at 0.04.* data\.midi_is: segment",
    ),
    "no span": (raw_smf(ONE_NOTE), {"start_seconds": 2.0, "end_seconds": 1.0}, "from 2 s to 1 s is no span of time"),
    "negative start": (raw_smf(ONE_NOTE), {"start_seconds": -2.0}, "expected 0 <= start < end"),
    "start not a number": (raw_smf(ONE_NOTE), {"start_seconds": float("nan")}, "expected 0 <= start < end"),
}


@pytest.mark.parametrize("name", ERROR_CASES)
def test_errors_say_why_in_one_line(name: str) -> None:
    data, span, message = ERROR_CASES[name]
    with pytest.raises(UnreadableInput, match=message) as caught:
        read_midi(RawMidi(data=data, **span))
    assert "\n" not in str(caught.value)


def test_event_times_beyond_32_bits_are_refused_by_both() -> None:
    far = b"\xff\xff\xff\x7f"  # the longest delta time, 2^28 - 1 ticks
    data = raw_smf(far + b"\x90\x3c\x40" + (far + b"\x3c\x00" + far + b"\x3c\x40") * 5 + END_OF_TRACK)
    with pytest.raises(UnreadableInput, match="exceed 2,147,483,647 ticks"):
        parse_midi(data)
    with pytest.raises(OverflowError, match="exceed 2,147,483,647 ticks"):
        with_mido(data)


def test_hostile_sizes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(midi, "MAX_NOTES", 1)
    with pytest.raises(UnreadableInput, match="has 2 notes; at most 1 are read"):
        parse_midi(NOTE_CASES["type 1"][0])
    monkeypatch.setattr(midi, "MAX_FILE_BYTES_MIDO", 10)
    with pytest.raises(UnreadableInput, match="mido: not tried"):
        parse_midi(raw_smf(ONE_NOTE, division=0xE728))
    monkeypatch.setattr(midi, "MAX_FILE_BYTES", 10)
    with pytest.raises(UnreadableInput, match="bytes; at most 10 are read"):
        parse_midi(raw_smf(ONE_NOTE))


def test_a_file_without_notes_is_no_error() -> None:
    score = parse_midi(smf([(0, tempo(500_000))]))
    assert (len(score), score.duration_seconds) == (0, 0.0)
    assert len(cut(score, 5.0, 6.0)) == 0


def test_damaged_files_are_read_or_refused() -> None:
    chance = random.Random(0)
    notes = [(tick, on(60 + tick % 12, channel=tick % 16)) for tick in range(0, 900, 9)]
    ends = [(tick + 30, off(60 + tick % 12, channel=tick % 16)) for tick in range(0, 900, 9)]
    song = sorted(notes + ends, key=lambda event: event[0])
    whole = smf([(0, tempo(400_000)), (0, meter(6, 8)), (300, tempo(900_000))], [(0, program(40)), *song], song)
    n_read = 0
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(chance.choice([1, 2, 20])):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        if chance.random() < 0.2:
            del damaged[chance.randrange(len(damaged)) :]
        try:
            score = read_midi(RawMidi(data=bytes(damaged)))
        except UnreadableInput:
            continue
        n_read += 1
        assert np.isfinite(score.offset_seconds).all()
        assert (score.offset_seconds >= score.onset_seconds).all()
        assert (np.diff(score.tempo_seconds) > 0).all()
        assert (score.tempo_bpm > 0).all()
    assert 20 < n_read < 180  # both outcomes were tried
