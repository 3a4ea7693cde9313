"""Timecodes and stamps: golden cases of the specifications, round trips, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from io import BytesIO

import mido
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurize.segments import UnreadableInput
from featurize.timecode import (
    RATES,
    LyricLine,
    lrc_to_seconds,
    midi_start_seconds,
    parse_lrc,
    seconds_to_lrc,
    seconds_to_smpte,
    smpte_event_to_seconds,
    smpte_to_seconds,
)

NTSC_FRAME = Fraction(1001, 30_000)

GOLDEN_SMPTE = [
    ("24", "00:00:01:00", 1),
    ("24", "00:00:00:01", Fraction(1, 24)),
    ("25", "01:00:00:00", 3600),
    ("25", "00:00:00:12.50", Fraction(1, 2)),
    ("30", "23:59:59:29", 86_400 - Fraction(1, 30)),
    ("23.976", "01:00:00:00", Fraction("3603.6")),
    ("29.97", "01:00:00:00", Fraction("3603.6")),  # non-drop labels fall 3.6 s an hour behind
    ("29.97 drop", "00:00:59;29", 1799 * NTSC_FRAME),
    ("29.97 drop", "00:01:00;02", 1800 * NTSC_FRAME),  # ;00 and ;01 of minute 1 do not exist
    ("29.97 drop", "00:09:59;29", 17_981 * NTSC_FRAME),
    ("29.97 drop", "00:10:00;00", 17_982 * NTSC_FRAME),  # of minute 10 they do
    ("29.97 drop", "01:00:00;00", Fraction("3599.9964")),
    ("29.97 drop", "23:59:59;29", 2_589_407 * NTSC_FRAME),
]


def result_or_refusal(call: Callable, argument: object) -> tuple:
    try:
        return call(argument), ""
    except ValueError as error:
        return None, str(error)


@pytest.mark.parametrize(("rate", "timecode", "seconds"), GOLDEN_SMPTE)
def test_smpte_golden(rate: str, timecode: str, seconds: Fraction) -> None:
    assert smpte_to_seconds(timecode, rate) == float(seconds)
    assert seconds_to_smpte(seconds, rate, 100 if "." in timecode else None) == timecode


def test_drop_frame_counts_as_the_standard_does() -> None:
    """Label by label over twenty-one minutes, leaving out the first two of each minute but each tenth."""
    number = 0
    for minute in range(21):
        for second in range(60):
            for frame in range(2 if second == 0 and minute % 10 else 0, 30):
                label = f"00:{minute:02}:{second:02};{frame:02}"
                assert seconds_to_smpte(number * NTSC_FRAME, "29.97 drop") == label
                assert smpte_to_seconds(label, "29.97 drop") == float(number * NTSC_FRAME)
                number += 1
    assert number == 21 * 1800 - 2 * 18


@pytest.mark.parametrize(
    ("rate", "frames_per_day"),
    [("24", 2_073_600), ("25", 2_160_000), ("29.97", 2_592_000), ("29.97 drop", 2_589_408), ("30", 2_592_000)],
)
def test_frames_per_day(rate: str, frames_per_day: int) -> None:
    assert RATES[rate].frames_per_day == frames_per_day


@given(data=st.data(), rate=st.sampled_from(list(RATES)), subframes_per_frame=st.sampled_from([None, 80, 100]))
def test_smpte_there_and_back(data: st.DataObject, rate: str, subframes_per_frame: int | None) -> None:
    per_frame = subframes_per_frame or 1
    unit = data.draw(st.integers(0, RATES[rate].frames_per_day * per_frame - 1))
    seconds = float(Fraction(unit, per_frame) / RATES[rate].frames_per_second)
    timecode = seconds_to_smpte(seconds, rate, subframes_per_frame)
    assert smpte_to_seconds(timecode, rate, subframes_per_frame or 100) == seconds


@given(seconds=st.floats(0, 86_399), rate=st.sampled_from(list(RATES)))
def test_the_nearest_frame_is_taken(seconds: float, rate: str) -> None:
    back = smpte_to_seconds(seconds_to_smpte(seconds, rate), rate)
    assert abs(back - seconds) <= 0.5 / RATES[rate].frames_per_second + 1e-9


def test_of_two_as_near_the_later() -> None:
    assert seconds_to_smpte(Fraction(1, 50), "25") == "00:00:00:01"
    assert seconds_to_smpte(np.float32(0.04), "25") == "00:00:00:01"


@pytest.mark.parametrize(
    ("timecode", "rate", "message"),
    [
        ("00:00:00:30", "25", r"'00:00:00:30' has frame 30; expected 0 to 24"),
        ("00:00:00:24", "24", "frame 24; expected 0 to 23"),
        ("00:01:00;00", "29.97 drop", "'00:01:00;00' has frame 0; .* minute 1 begins with frame 2"),
        ("00:59:00;01.50", "29.97 drop", "minute 59 begins with frame 2"),
        ("00:60:00:00", "25", "minute 60; expected 0 to 59"),
        ("00:00:60:00", "25", "second 60; expected 0 to 59"),
        ("24:00:00:00", "25", "hour 24; expected 0 to 23"),
        ("-1:00:00:00", "25", "'-1:00:00:00'; expected HH:MM:SS:FF"),
        ("00:00:01", "25", "expected HH:MM:SS:FF"),
        ("00:00:01:00.5", "25", "expected HH:MM:SS:FF"),
        ("٠٠:00:00:00", "25", "expected HH:MM:SS:FF"),
        ("00:00:01:00", "29.97 drop", "expected HH:MM:SS;FF"),
        ("00:00:01;00", "29.97", "expected HH:MM:SS:FF"),
        ("00:00:01:00", "60", "rate is '60'; expected one of 23.976, 24"),
    ],
)
def test_smpte_refuses(timecode: str, rate: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        smpte_to_seconds(timecode, rate)
    assert "\n" not in str(caught.value)


def test_subframes_follow_their_own_count() -> None:
    assert smpte_to_seconds("00:00:00:00.40", "25", 80) == 0.02
    with pytest.raises(ValueError, match="subframe 80; expected 0 to 79"):
        smpte_to_seconds("00:00:00:00.80", "25", 80)
    with pytest.raises(ValueError, match="subframes_per_frame is 10; expected 80 or 100"):
        smpte_to_seconds("00:00:00:00.00", "25", 10)


@pytest.mark.parametrize("seconds", [-0.001, float("nan"), float("inf")])
def test_what_is_no_time_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="expected a finite number of at least 0"):
        seconds_to_smpte(seconds, "25")
    with pytest.raises(ValueError, match="expected a finite number of at least 0"):
        seconds_to_lrc(seconds)


def test_a_day_ends() -> None:
    assert seconds_to_smpte(86_399.97, "25") == "23:59:59:24"
    with pytest.raises(ValueError, match=r"seconds is 86399\.99; .* ends after 86400"):
        seconds_to_smpte(86_399.99, "25")


# --- the SMPTE offset of a MIDI file ---


@pytest.mark.parametrize(
    ("event", "seconds"),
    [
        ("00 00 00 00 00", 0),  # 24 per second
        ("20 00 00 0c 32", Fraction(1, 2)),  # 25: frame 12.50
        ("41 00 00 00 00", Fraction("3599.9964")),  # 29.97 drop-frame
        ("61 00 00 00 00", 3600),  # 30
        ("77 3b 3b 1d 63", 86_400 - Fraction(1, 3000)),  # the last one there is
    ],
)
def test_smpte_event_golden(event: str, seconds: Fraction) -> None:
    assert smpte_event_to_seconds(bytes.fromhex(event)) == float(seconds)


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ("00 00 00 00", "expected five bytes"),
        ("80 00 00 00 00", "the first at most 7f"),
        ("18 00 00 00 00", "hour 24"),
        ("00 3c 00 00 00", "minute 60"),
        ("00 00 00 18 00", "frame 24; expected 0 to 23"),
        ("00 00 00 00 64", "subframe 100; expected 0 to 99"),
        ("40 01 00 00 00", "minute 1 begins with frame 2"),
    ],
)
def test_smpte_event_refuses(event: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        smpte_event_to_seconds(bytes.fromhex(event))


def midi_file(*tracks: list[mido.Message | mido.MetaMessage]) -> bytes:
    file = mido.MidiFile(type=1)
    file.tracks.extend(mido.MidiTrack(track) for track in tracks)
    buffer = BytesIO()
    file.save(file=buffer)
    return buffer.getvalue()


def smpte_offset(rate: float = 25, delta: int = 0) -> mido.MetaMessage:
    return mido.MetaMessage(
        "smpte_offset", frame_rate=rate, hours=1, minutes=2, seconds=3, frames=4, sub_frames=50, time=delta
    )


@pytest.mark.parametrize(
    ("mido_rate", "rate", "mark"), [(24, "24", ":"), (25, "25", ":"), (29.97, "29.97 drop", ";"), (30, "30", ":")]
)
def test_the_offset_of_a_file(mido_rate: float, rate: str, mark: str) -> None:
    before = [
        mido.MetaMessage("track_name", name="x" * 200),  # its length takes two bytes
        mido.Message("sysex", data=[1, 2, 3]),
        mido.Message("program_change", program=5),
        mido.Message("control_change", control=7, value=100),
        mido.Message("control_change", control=10, value=64),  # in running status
        mido.Message("note_on", note=60),
    ]
    data = midi_file([*before, smpte_offset(mido_rate)], [])
    assert midi_start_seconds(data) == smpte_to_seconds(f"01:02:03{mark}04.50", rate)


def test_running_status_is_followed() -> None:
    track = bytes.fromhex("00b00764 000a40 00c005 0006 00ff5405 2000000c32 00ff2f00")
    data = b"MThd" + bytes.fromhex("00000006 0000 0001 01e0") + b"MTrk" + len(track).to_bytes(4, "big") + track
    assert midi_start_seconds(data) == 0.5


def test_an_offset_elsewhere_has_no_meaning() -> None:
    assert midi_start_seconds(midi_file([])) is None
    assert midi_start_seconds(midi_file([], [smpte_offset()])) is None
    assert midi_start_seconds(midi_file([smpte_offset(delta=1)])) is None


@given(start=st.sampled_from(["", "00", "00ff", "00ff54", "00ff5405", "00f0", "00b007"]), tail=st.binary(max_size=20))
def test_a_damaged_track_is_no_crash(start: str, tail: bytes) -> None:
    track = bytes.fromhex(start) + tail
    data = b"MThd" + bytes.fromhex("00000006 0000 0001 01e0") + b"MTrk" + len(track).to_bytes(4, "big") + track
    found, refusal = result_or_refusal(midi_start_seconds, data)
    assert found is None or (0 <= found < 86_400 and not refusal)
    assert "\n" not in refusal


def test_no_midi_file() -> None:
    with pytest.raises(UnreadableInput):
        midi_start_seconds(b"RIFF")


# --- LRC ---


@pytest.mark.parametrize(
    ("stamp", "seconds"),
    [("[00:12.00]", 12.0), ("[01:02.345]", 62.345), ("[03:07]", 187.0), ("<00:00.50>", 0.5), ("[120:00.01]", 7200.01)],
)
def test_lrc_golden(stamp: str, seconds: float) -> None:
    assert lrc_to_seconds(stamp) == seconds


@given(units=st.integers(0, 10**8), decimals=st.sampled_from([0, 2, 3]))
def test_lrc_there_and_back(units: int, decimals: int) -> None:
    seconds = float(Fraction(units, 10**decimals))
    stamp = seconds_to_lrc(seconds, decimals)
    assert lrc_to_seconds(stamp) == seconds
    assert len(stamp.partition(".")[2]) == (decimals + 1 if decimals else 0)


def test_lrc_rounds_over_the_minute() -> None:
    assert seconds_to_lrc(59.996) == "[01:00.00]"
    assert seconds_to_lrc(59.996, 3) == "[00:59.996]"


@pytest.mark.parametrize("stamp", ["[00:60.00]", "[1:2]", "[00:10:16]", "[-1:00]", "[00:01.00>", "00:01", "[00:01.]"])
def test_lrc_refuses(stamp: str) -> None:
    with pytest.raises(ValueError, match=r"expected \[mm:ss\]") as caught:
        lrc_to_seconds(stamp)
    assert repr(stamp) in str(caught.value)


def test_parse_lrc() -> None:
    text = (
        "\ufeff[ti:A song]\r\n[ar:Nobody]\r\n[length: 2:23]\r\n\r\n"
        "[00:21.10][00:45.10] Again and again\r\n"
        "[00:12.00]First line\r\n"
        "[00:17.20]\r\n"
        "no stamp\r\n"
        "[2x] no stamp either\r\n"
    )
    assert parse_lrc(text) == [
        LyricLine(12.0, "First line"),
        LyricLine(17.2, ""),
        LyricLine(21.1, "Again and again"),
        LyricLine(45.1, "Again and again"),
    ]


@pytest.mark.parametrize(
    ("tag", "seconds"),
    [
        ("[offset:+500]", 9.5),
        ("[offset:500]", 9.5),
        ("[offset: -500 ]", 10.5),
        ("[OFFSET:0]", 10.0),
        ("[offset:]", 10.0),
    ],
)
def test_a_positive_offset_shows_lyrics_sooner(tag: str, seconds: float) -> None:
    assert parse_lrc(f"{tag}\n[00:10.00]x") == parse_lrc(f"[00:10.00]x\n{tag}") == [LyricLine(seconds, "x")]


def test_nothing_is_sung_before_the_song() -> None:
    assert parse_lrc("[offset:2000]\n[00:01.00]x") == [LyricLine(0.0, "x")]


def test_words_have_times() -> None:
    (line,) = parse_lrc("[offset:100]\n[00:12.00] Oh <00:12.40>hap<00:12.90>py <00:13.50>day <00:14.00>")
    assert line.text == "Oh happy day"
    assert line.words == ((11.9, "Oh"), (12.3, "hap"), (12.8, "py"), (13.4, "day"))


def test_words_return_with_their_line() -> None:
    first, second = parse_lrc("[00:10.00][01:10.00]<00:10.00>la <00:10.50>la")
    assert first.words == ((10.0, "la"), (10.5, "la"))
    assert second.words == ((70.0, "la"), (70.5, "la"))


def test_angle_brackets_that_are_no_stamps_are_text() -> None:
    assert parse_lrc("[00:01.00]I <3 you <sigh>") == [LyricLine(1.0, "I <3 you <sigh>")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[00:01.00]a\n[00:99.00]b", r"LRC line 2: stamp is '\[00:99\.00\]'"),
        ("[00:01.00]a <00:61.00>b", "LRC line 1: stamp is '<00:61.00>'"),
        ("[offset:soon]", "LRC line 1: offset is 'soon'; expected whole milliseconds"),
    ],
)
def test_a_wrong_line_is_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_lrc(text)


@given(st.text(alphabet=st.one_of(st.sampled_from("[]<>:.0159\n"), st.characters())))
def test_any_text_is_parsed_or_refused_in_one_line(text: str) -> None:
    lines, refusal = result_or_refusal(parse_lrc, text)
    assert "\n" not in refusal
    assert refusal or all(line.seconds >= 0 for line in lines)
