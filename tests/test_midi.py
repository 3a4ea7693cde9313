"""Reading MIDI: crafted files with notes known beforehand, both parsers side by side, and cuts."""

from __future__ import annotations

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

from featurize import midi, midi_chunks, midi_events
from featurize.midi import Score, cut, parse_midi, read_midi
from featurize.segments import RawMidi, UnreadableInput
from tests.conftest import MOOD_SAMPLE, needs_mood_sample

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


def raw_smf(*tracks: bytes, type: int = 1, division: int = TICKS_PER_QUARTER, count: int | None = None) -> bytes:
    chunks = [b"MTrk" + struct.pack(">I", len(track)) + track for track in tracks]
    header = struct.pack(">IHHH", 6, type, len(tracks) if count is None else count, division)
    return b"MThd" + header + b"".join(chunks)


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


def with_only(reader: str, data: bytes) -> Score:
    """The score by one of the parsers; reader: `symusic` or `mido`."""

    def refuse(tracks: list[bytes]) -> None:
        raise AssertionError("the other parser was asked")

    other = {"symusic": "read_with_mido", "mido": "read_with_symusic"}[reader]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(midi, other, refuse)
        return parse_midi(data)


def assert_parsers_agree(data: bytes) -> Score:
    score = with_only("symusic", data)
    assert_equal(score, with_only("mido", data))
    return score


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
    "without an end: until the track ends": (
        raw_smf(b"\x00\x90\x3c\x40\x05\x3e\x40\x04\x3e\x00\x0b" + END_OF_TRACK[1:], ONE_NOTE),
        [(0, 20, 60, 64, 0, False), (0, 40, 60, 64, 0, False), (5, 9, 62, 64, 0, False)],
    ),
    "without an end: until the key is struck again, and the next keeps its own": (
        smf([(0, on(60, 1)), (100, on(60, 2)), (110, off(60)), (200, on(60, 3)), (210, off(60))]),
        [(0, 100, 60, 1, 0, False), (100, 110, 60, 2, 0, False), (200, 210, 60, 3, 0, False)],
    ),
    "without an end: at most for one second": (
        smf([(0, on(60)), (5000, on(62)), (5009, off(62))]),
        [(0, 960, 60, 64, 0, False), (5000, 5009, 62, 64, 0, False)],
    ),
    "without an end: on one channel of two that play the same": (
        smf([(0, on(60, 1, 0)), (0, on(60, 2, 1)), (50, off(60, 0)), (80, on(60, 3, 0)), (99, off(60, 0))], type=0),
        [(0, 50, 60, 1, 0, False), (0, 99, 60, 2, 0, False), (80, 99, 60, 3, 0, False)],
    ),
    "without an end: doubled": (
        smf([(0, on(60, 1)), (0, on(60, 2)), (50, off(60)), (80, on(60, 3)), (99, off(60))]),
        [(0, 50, 60, 2, 0, False), (0, 80, 60, 1, 0, False), (80, 99, 60, 3, 0, False)],
    ),
    "without an end: across a change of program": (
        smf([(0, program(7)), (0, on(60)), (10, program(8)), (20, on(60)), (30, off(60))]),
        [(0, 20, 60, 64, 7, False), (20, 30, 60, 64, 8, False)],
    ),
    "without an end: beside lyrics, which symusic keeps in a track without notes": (
        raw_smf(b"\x00\xff\x05\x01a\x00\xe3\x00\x40\x00\x90\x3c\x40\x14" + END_OF_TRACK[1:]),
        [(0, 20, 60, 64, 0, False)],
    ),
    "off before on at one tick, where nothing sounds": (
        smf([(5, off(60)), (5, on(60)), (20, on(60)), (25, off(60)), (40, on(60)), (47, off(60))]),
        [(5, 20, 60, 64, 0, False), (20, 25, 60, 64, 0, False), (40, 47, 60, 64, 0, False)],
    ),
    "an end without a note": (smf([(0, off(60)), (5, on(60)), (9, off(60))]), [(5, 9, 60, 64, 0, False)]),
    "an end in another track is none": (
        smf([(0, on(60))], [(5, off(60)), (6, on(7)), (8, off(7))]),
        [(0, 0, 60, 64, 0, False), (6, 8, 7, 64, 0, False)],
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
    "running status goes on after a meta event": (
        raw_smf(b"\x00\x90\x3c\x40\x00\xff\x01\x01a\x28\x3c\x00" + END_OF_TRACK),
        [(0, 40, 60, 64, 0, False)],
    ),
    "delta times of one to four bytes": (
        raw_smf(b"\x80\x80\x80\x07\x90\x3c\x40\x87\x68\x3c\x00" + END_OF_TRACK),
        [(7, 1007, 60, 64, 0, False)],
    ),
    "system exclusive and controls between": (
        raw_smf(b"\x00\xf0\x05\x7e\x7f\x09\x01\xf7\x05\xb0\x07\x64\x00\xe0\x00\x40" + ONE_NOTE),
        [(5, 45, 60, 64, 0, False)],
    ),
    "no end of track": (raw_smf(ONE_NOTE[:-4]), [(0, 40, 60, 64, 0, False)]),
    "zeros after the end of the track": (raw_smf(ONE_NOTE + bytes(9)), [(0, 40, 60, 64, 0, False)]),
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
    assert_equal(parse_midi(data), with_only("mido", data))


@pytest.mark.parametrize("name", [name for name in NOTE_CASES if "after the end of the track" not in name])
def test_symusic_reads_all_but_the_odd(name: str) -> None:
    with_only("symusic", NOTE_CASES[name][0])


WHOLE = raw_smf(ONE_NOTE, ONE_NOTE)
RMID = b"LIST" + struct.pack("<I", 4) + b"INFO" + b"data" + struct.pack("<I", len(WHOLE)) + WHOLE
SECOND_TRACK = WHOLE.rindex(b"MTrk")

CONTAINER_CASES = {  # bytes of files that hold `ONE_NOTE` twice
    "as it should be": WHOLE,
    "type 0 with two tracks": raw_smf(ONE_NOTE, ONE_NOTE, type=0),
    "garbage before the header": b"\x00\x01garbage" * 9 + WHOLE,
    "RIFF": b"RIFF" + struct.pack("<I", 4 + len(RMID)) + b"RMID" + RMID,
    "RIFF with more after it": b"RIFF" + struct.pack("<I", 999) + b"RMID" + RMID + WHOLE[SECOND_TRACK:],
    "trailing garbage": WHOLE + b"\x1a\x1a\x1a and so on",
    "trailing zeros": WHOLE + bytes(100),
    "another file behind it": WHOLE + WHOLE,
    "unknown chunks": WHOLE[:14] + b"XFIH\0\0\0\2ab" + WHOLE[14:SECOND_TRACK] + b"XFKM\0\0\0\0" + WHOLE[SECOND_TRACK:],
    "a longer header": WHOLE[:7] + b"\x08" + WHOLE[8:14] + b"ab" + WHOLE[14:],
    "the header counts none": raw_smf(ONE_NOTE, ONE_NOTE, count=0),
    "the header counts one": raw_smf(ONE_NOTE, ONE_NOTE, count=1),
    "the header counts three": raw_smf(ONE_NOTE, ONE_NOTE, count=3),
}


@pytest.mark.parametrize("name", CONTAINER_CASES)
def test_tracks_are_found(name: str) -> None:
    score = assert_parsers_agree(CONTAINER_CASES[name])
    assert notes_in_ticks(score) == [(0, 40, 60, 64, 0, False)] * 2


@needs_mood_sample
def test_real_files_lose_no_note() -> None:
    paths = sorted((MOOD_SAMPLE / "midi").glob("*.mid"))
    assert len(paths) == 50
    unended = {}
    for path in paths:
        score = assert_parsers_agree(path.read_bytes())
        tracks = mido.MidiFile(path, clip=True).tracks
        assert len(score) == sum(m.type == "note_on" and m.velocity > 0 for track in tracks for m in track), path.name
        unended[path.name] = score.n_unended
    assert {name: n for name, n in unended.items() if n} == {"044.mid": 1}  # one note-off stands before its note-on


def test_tempo_of_the_first_track_holds_for_all() -> None:
    data = smf(
        [(0, tempo(500_000)), (480, tempo(1_000_000)), (960, tempo(250_000)), (960, meter(6, 8))],
        [(0, on(60)), (720, off(60)), (960, on(62)), (1440, off(62))],
    )
    for score in (with_only("symusic", data), with_only("mido", data)):
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
    for score in (with_only("symusic", data), with_only("mido", data)):
        assert score.tempo_bpm.tolist() == [60.0]
        assert score.onset_seconds.tolist() == [1.0]


def test_times_are_exact_far_into_a_file() -> None:
    ticks = 480 * 2 * 3000 + 1  # 50 minutes at 120 bpm, and one tick
    score = parse_midi(smf([(ticks, on(60)), (ticks + 1, off(60))]))
    assert score.onset_seconds[0] == pytest.approx(3000 + SECONDS_PER_TICK, abs=1e-9)


@pytest.mark.parametrize(
    ("frame_rate", "ticks_per_frame", "ticks_per_second"),
    [(24, 4, 96), (25, 40, 1000), (29, 1, 30_000 / 1001), (29, 100, 3_000_000 / 1001), (30, 80, 2400), (30, 255, 7650)],
)
def test_smpte_time_ignores_the_tempo(frame_rate: int, ticks_per_frame: int, ticks_per_second: float) -> None:
    track = b"\x00\xff\x51\x03\x01\x00\x00" + ONE_NOTE
    division = (256 - frame_rate) << 8 | ticks_per_frame
    score = assert_parsers_agree(raw_smf(track, division=division))
    assert (score.onset_seconds[0], score.offset_seconds[0]) == (0.0, pytest.approx(40 / ticks_per_second))


def test_tracks_of_type_2_follow_each_other() -> None:
    slow = [(0, tempo(1_000_000)), (0, meter(3, 4)), (480, on(60)), (960, off(60)), (1440, program(1))]  # three seconds
    plain = [(0, on(60)), (240, off(60)), (480, on(61)), (480, tempo(250_000)), (960, off(61))]
    score = assert_parsers_agree(smf(slow, [], plain, type=2))
    np.testing.assert_allclose(score.onset_seconds, [1.0, 3.0, 3.5])
    np.testing.assert_allclose(score.offset_seconds, [2.0, 3.25, 3.75])
    np.testing.assert_allclose(score.tempo_seconds, [0, 3, 3.5])
    np.testing.assert_allclose(score.tempo_bpm, [60, 120, 240])
    np.testing.assert_allclose(score.time_signature_seconds, [0, 3])
    assert score.time_signatures.tolist() == [[3, 4], [4, 4]]
    np.testing.assert_allclose(score.quarters_at(np.array([3.0, 3.75])), [3, 5])


def test_times_after_an_unknown_meta_event_are_right_or_refused() -> None:
    unknown = b"\x60\xff\x14\x02ab"
    assert notes_in_ticks(parse_midi(raw_smf(unknown + ONE_NOTE))) == [(96, 136, 60, 64, 0, False)]
    with pytest.raises(UnreadableInput, match="mido: a meta event of unknown type 0x14, whose delta time mido forgets"):
        parse_midi(raw_smf(unknown + b"\x00\x90\x3c\xc8" + END_OF_TRACK))


def test_mido_takes_what_symusic_refuses() -> None:
    data = raw_smf(b"\x00\x90\x3c\xc8\x28\x80\x3c\x00" + END_OF_TRACK)  # velocity 200
    assert notes_in_ticks(parse_midi(data)) == notes_in_ticks(with_only("mido", data)) == [(0, 40, 60, 127, 0, False)]


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
    assert sorted(notes_in_ticks(assert_parsers_agree(data))) == expected


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


@settings(max_examples=200, deadline=None)
@given(events, events, st.sampled_from([1, 2]), st.booleans())
def test_any_order_of_events_loses_no_note(first: list, second: list, type: int, is_in_one_track: bool) -> None:
    tracks = [sorted(first + second, key=lambda event: event[0])] if is_in_one_track else [first, second]
    score = assert_parsers_agree(smf(*tracks, type=type))
    strikes = [message.note for _, message in first + second if message.type == "note_on" and message.velocity > 0]
    assert sorted(score.pitch.tolist()) == sorted(strikes)
    n_ends = sum(message.type in ("note_on", "note_off") for _, message in first + second) - len(strikes)
    assert len(score) - n_ends <= score.n_unended <= len(score)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 9)), min_size=1, max_size=12), st.data())
def test_a_missing_note_off_costs_one_note_its_end(
    gaps_and_lengths: list[tuple[int, int]], data: st.DataObject
) -> None:
    onsets = np.cumsum([gap + length for gap, length in gaps_and_lengths]).tolist()
    notes = [(onset - length, onset) for onset, (_, length) in zip(onsets, gaps_and_lengths, strict=True)]
    lost = data.draw(st.integers(0, len(notes) - 1))
    messages = [(end, off(60)) for index, (_, end) in enumerate(notes) if index != lost]
    messages += [(onset, on(60)) for onset, _ in notes] + [(700, off(61))]
    score = assert_parsers_agree(smf(sorted(messages, key=lambda event: (event[0], event[1].type == "note_on"))))
    next_strike = [*(onset for onset, _ in notes), 700][lost + 1]
    expected = [*notes[:lost], (notes[lost][0], next_strike), *notes[lost + 1 :]]
    assert [(onset, offset) for onset, offset, *_ in notes_in_ticks(score)] == expected
    assert score.n_unended == 1


def test_drums_that_are_never_switched_off_are_all_there() -> None:
    strikes = 3000
    score = with_only("symusic", raw_smf(b"\x00\x99\x24\x40" + b"\x30\x24\x40" * (strikes - 1) + END_OF_TRACK))
    assert (len(score), score.n_unended) == (strikes, strikes)
    np.testing.assert_allclose(np.diff(score.onset_seconds), 0.05)
    np.testing.assert_allclose(score.offset_seconds[:-1], score.onset_seconds[1:])


def test_a_marker_that_looks_like_ours_is_read_by_mido() -> None:
    own = midi_events._TRACK_END_MARKER
    data = raw_smf(b"\x00" + own + b"\x60" + own + ONE_NOTE)
    assert notes_in_ticks(parse_midi(data)) == [(96, 136, 60, 64, 0, False)]
    with pytest.raises(UnreadableInput, match="symusic: a track's events do not end where the track does"):
        with_only("symusic", data)


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


def test_silence_after_the_last_note_has_no_notes_and_is_no_failure() -> None:
    data = smf([(0, on(60)), (960, off(60))], [(4800, program(1))])  # a second of sound, five of file
    score = assert_parsers_agree(data)
    assert (score.duration_seconds, score.track_end_seconds) == (1.0, 5.0)
    for start, end in ((2.0, 3.0), (4.5, 60.0), (5.0, 6.0)):
        silence = cut(score, start, end)
        assert (len(silence), silence.duration_seconds) == (0, end - start)
    assert (len(cut(score, 3.0)), cut(score, 3.0).duration_seconds) == (0, 0.0)
    with pytest.raises(UnreadableInput, match=r"starts at 5\.1 s, but the MIDI file's tracks end at 5 s"):
        cut(score, 5.1, 6.0)


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
    "not MIDI": (
        b"hello world, this is text",
        {},
        r"^not a MIDI file: there is no MThd in it \(it begins with b'hello wo'",
    ),
    "damaged": (raw_smf(b"\x00\x3c\x40" + ONE_NOTE), {}, r"symusic: .+; mido: \w"),
    "cut off": (raw_smf(ONE_NOTE)[:-6], {}, "cut short, .* the header counts 1, 0 are whole"),
    "cut off in the second track's head": (WHOLE[: SECOND_TRACK + 6], {}, "the header counts 2, 1 are whole"),
    "a track that claims to be longer": (WHOLE[:20] + b"\xff" + WHOLE[21:], {}, "the header counts 2, 0 are whole"),
    "header only": (raw_smf(), {}, "the header counts 0, 0 are whole"),
    "half a header": (raw_smf()[:11], {}, "header states 6 bytes; expected 6, and tracks after it"),
    "a short header": (b"MThd\0\0\0\4" + WHOLE[8:], {}, "header states 4 bytes"),
    "unknown type": (raw_smf(ONE_NOTE, type=3), {}, "format is 3; expected 0, 1 or 2"),
    "no time division": (raw_smf(ONE_NOTE, division=0), {}, "time division 0x0000 is neither metrical nor SMPTE"),
    "strange frame rate": (raw_smf(ONE_NOTE, division=0xF001), {}, "time division 0xf001"),
    "lasts for days": (smf([(0, on(60)), (2**28 - 1, off(60))], ticks_per_quarter=1), {}, "37,282.7 h; at most 24 h"),
    "beyond the end": (
        raw_smf(ONE_NOTE),
        {"start_seconds": 60.0},
        r"starts at 60 s.*tracks end at 0.04.* data\.midi_is: segment",
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


@pytest.mark.parametrize("n_far", [4, 8, 16, 17])
def test_event_times_beyond_30_bits_are_refused_by_both(n_far: int) -> None:
    far = b"\xff\xff\xff\x7f\xb0\x07\x64"  # the longest delta time, 2^28 - 1 ticks; 16 of them come round 32 bits
    data = raw_smf(far * n_far + b"\x04\x90\x3c\x40\x01\x3c\x00" + END_OF_TRACK)
    with pytest.raises(UnreadableInput, match="symusic: .* exceed 1,073,741,823|symusic: not tried, .* 32 bits"):
        parse_midi(data)
    with pytest.raises(UnreadableInput, match="mido: event times exceed 1,073,741,823 ticks"):
        parse_midi(data)


def test_hostile_sizes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(limits: object, name: str, limit: int, data: bytes, message: str) -> None:
        parse_midi(data)
        with monkeypatch.context() as patch, pytest.raises(UnreadableInput, match=message):
            patch.setattr(limits, name, limit)
            parse_midi(data)

    clipped = raw_smf(b"\x00\x90\x3c\xc8" + ONE_NOTE)
    two_unended = raw_smf(b"\x00\x90\x3c\x40" + ONE_NOTE, b"\x00\x90\x3c\x40" + ONE_NOTE)
    refused(midi_events, "MAX_NOTES", 1, WHOLE, "has 2 notes; at most 1 are read")
    refused(midi, "MAX_NOTES", 3, two_unended, "has 4 notes; at most 3 are read")
    refused(midi_events, "MAX_BYTES_MIDO", 10, clipped, "mido: not tried, the tracks have 16 bytes")
    refused(midi_events, "MAX_HIGH_RUN_MIDO", 0, clipped, "mido: not tried, more than 0 bytes in a row are above 127")
    refused(midi_chunks, "MAX_TRACKS", 1, WHOLE, "more than 1 tracks")
    refused(midi_chunks, "MAX_MIDI_BYTES", 10, WHOLE, "bytes; at most 10 are read")


def test_a_file_without_notes_is_no_error() -> None:
    score = parse_midi(smf([(0, tempo(500_000))]))
    assert (len(score), score.duration_seconds) == (0, 0.0)
    assert len(cut(score, 5.0, 6.0)) == 0
