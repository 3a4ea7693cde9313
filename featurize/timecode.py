"""Written times to seconds and back: SMPTE timecode, the SMPTE offset of a MIDI file, and the stamps of LRC lyrics.

Conventions
-----------
* Seconds are counted from 00:00:00:00, or from the start of the song. They are worked out in fractions and given as the
  nearest float, so that a time goes there and back unchanged. Going back, the nearest frame, subframe or decimal is
  taken; of two as near, the later.
* Rates are named as in `RATES`. At 29.97 and 23.976 a frame lasts 1001/30000 and 1001/24000 s: labels fall behind the
  clock. Drop-frame makes up for it, to 86 ms a day: it has no labels ;00 and ;01 in each minute but each tenth.
* What no clock shows (frame 30 at 25 per second, second 60) raises `ValueError`, in one line.

Sources: SMPTE ST 12-1:2014 (rates, drop-frame); MIDI Manufacturers Association, "Standard MIDI Files 1.0", RP-001, 1996
(FF 54), whose hour is that of "MIDI Time Code", 1987; Wikipedia, "LRC (file format)" (tags, offset, enhanced format).
There, a positive offset makes lyrics appear sooner; some players have it the other way round.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from featurize.midi_chunks import split_chunks


@dataclass(frozen=True)
class FrameRate:
    """labels_per_second: what the frame part of a timecode counts to.

    drops: whether labels are skipped to keep time.
    """

    labels_per_second: int
    frames_per_second: Fraction
    drops: bool = False

    @property
    def frames_per_day(self) -> int:
        """Where a timecode begins again."""
        return self.frame_number(24, 0, 0, 0)

    def frame_number(self, hours: int, minutes: int, seconds: int, frames: int) -> int:
        """How many frames come before the one with this label."""
        minutes += 60 * hours
        n_dropped = DROPPED_LABELS * (minutes - minutes // 10) if self.drops else 0
        return self.labels_per_second * (60 * minutes + seconds) + frames - n_dropped

    def label(self, frame_number: int) -> tuple[int, int, int, int]:
        """Hours, minutes, seconds and frames of a frame; the inverse of `frame_number`."""
        if self.drops:
            per_minute = 60 * self.labels_per_second - DROPPED_LABELS
            tens, in_ten = divmod(frame_number, 10 * per_minute + DROPPED_LABELS)
            full_minutes = max(0, in_ten - DROPPED_LABELS) // per_minute  # the first minute of ten is the longer one
            frame_number += DROPPED_LABELS * (9 * tens + full_minutes)
        total_seconds, frames = divmod(frame_number, self.labels_per_second)
        total_minutes, seconds = divmod(total_seconds, 60)
        return *divmod(total_minutes, 60), seconds, frames


DROPPED_LABELS = 2

RATES = {
    "23.976": FrameRate(24, Fraction(24_000, 1_001)),
    "24": FrameRate(24, Fraction(24)),
    "25": FrameRate(25, Fraction(25)),
    "29.97": FrameRate(30, Fraction(30_000, 1_001)),
    "29.97 drop": FrameRate(30, Fraction(30_000, 1_001), drops=True),
    "30": FrameRate(30, Fraction(30)),
}
SUBFRAMES_PER_FRAME = (80, 100)  # as sequencers count them

MIDI_RATES = ("24", "25", "29.97 drop", "30")  # by bits 5 and 6 of the hour
MIDI_SUBFRAMES_PER_FRAME = 100
SMPTE_OFFSET, SMPTE_OFFSET_BYTES = 0x54, 5

_SMPTE = re.compile(r"(\d\d):(\d\d):(\d\d)([:;])(\d\d)(?:\.(\d\d))?", re.ASCII)
_LRC_STAMP = re.compile(r"([\[<])(\d+):([0-5]\d(?:\.\d{1,3})?)([\]>])", re.ASCII)
_LRC_LINE_STAMP = re.compile(r"\s*(\[\d+:[^\]]*\])", re.ASCII)  # and what was meant as one
_LRC_WORD_STAMP = re.compile(r"(<\d+:[\d:.]*>)", re.ASCII)  # likewise
_LRC_OFFSET = re.compile(r"\s*\[offset:\s*(.*?)\s*\]\s*", re.IGNORECASE)
_LRC_MILLISECONDS = re.compile(r"[+-]?\d+", re.ASCII)
_LINE_END = re.compile(r"\r\n|\r|\n")


def smpte_to_seconds(timecode: str, rate: str, subframes_per_frame: int = 100) -> float:
    """Seconds of `HH:MM:SS:FF`, or `HH:MM:SS;FF` in drop-frame, with subframes behind a point: `HH:MM:SS:FF.ss`."""
    frame_rate = _frame_rate(rate)
    _check_subframes(subframes_per_frame)
    match = _SMPTE.fullmatch(timecode)
    mark = ";" if frame_rate.drops else ":"
    if match is None or match[4] != mark:
        raise ValueError(f"timecode is {timecode!r}; expected HH:MM:SS{mark}FF or HH:MM:SS{mark}FF.ss at rate {rate!r}")
    hours, minutes, seconds, frames, subframes = (int(part or 0) for part in match.group(1, 2, 3, 5, 6))
    _check_label(timecode, rate, (hours, minutes, seconds, frames), subframes, subframes_per_frame)
    position = frame_rate.frame_number(hours, minutes, seconds, frames) + Fraction(subframes, subframes_per_frame)
    return float(position / frame_rate.frames_per_second)


def seconds_to_smpte(seconds: float | Fraction, rate: str, subframes_per_frame: int | None = None) -> str:
    """The label of the frame nearest to `seconds`; with `subframes_per_frame`, of the nearest subframe."""
    frame_rate = _frame_rate(rate)
    if subframes_per_frame is not None:
        _check_subframes(subframes_per_frame)
    units_per_frame = subframes_per_frame or 1
    units = _nearest(_exact(seconds) * frame_rate.frames_per_second * units_per_frame)
    frame_number, subframes = divmod(units, units_per_frame)
    if frame_number >= frame_rate.frames_per_day:
        day_seconds = float(frame_rate.frames_per_day / frame_rate.frames_per_second)
        raise ValueError(f"seconds is {seconds}; timecode at rate {rate!r} ends after {day_seconds:.10g}")
    hours, minutes, whole_seconds, frames = frame_rate.label(frame_number)
    mark = ";" if frame_rate.drops else ":"
    label = f"{hours:02}:{minutes:02}:{whole_seconds:02}{mark}{frames:02}"
    return label if subframes_per_frame is None else f"{label}.{subframes:02}"


def smpte_event_to_seconds(event: bytes) -> float:
    """Seconds of the five bytes of the meta event FF 54: hour with the rate in bits 5 and 6, mn, se, fr, hundredths."""
    if len(event) != SMPTE_OFFSET_BYTES or event[0] > 0x7F:
        raise ValueError(f"SMPTE offset is {event.hex(' ')!r}; expected five bytes, the first at most 7f")
    rate = MIDI_RATES[event[0] >> 5]
    label = (event[0] & 0x1F, event[1], event[2], event[3])
    _check_label(event.hex(" "), rate, label, event[4], MIDI_SUBFRAMES_PER_FRAME)
    position = RATES[rate].frame_number(*label) + Fraction(event[4], MIDI_SUBFRAMES_PER_FRAME)
    return float(position / RATES[rate].frames_per_second)


def midi_start_seconds(data: bytes) -> float | None:
    """When a MIDI file is to start by its SMPTE offset; `None` where it states none at tick 0 of its first track.

    Raises `UnreadableInput` on what is no MIDI file, `ValueError` on an offset that is no time.
    """
    event = _smpte_event(split_chunks(data).tracks[0])
    return None if event is None else smpte_event_to_seconds(event)


def lrc_to_seconds(stamp: str) -> float:
    """Seconds of `[mm:ss]`, `[mm:ss.xx]`, `[mm:ss.xxx]`, or the same in angle brackets. Minutes may go on past 99."""
    return float(_lrc_exact(stamp))


def seconds_to_lrc(seconds: float | Fraction, decimals: int = 2) -> str:
    """`[mm:ss.xx]`, with 0, 2 or 3 decimals."""
    if decimals not in (0, 2, 3):
        raise ValueError(f"decimals is {decimals}; expected 0, 2 or 3")
    whole_seconds, part = divmod(_nearest(_exact(seconds) * 10**decimals), 10**decimals)
    minutes, second = divmod(whole_seconds, 60)
    return f"[{minutes:02}:{second:02}.{part:0{decimals}}]" if decimals else f"[{minutes:02}:{second:02}]"


@dataclass(frozen=True)
class LyricLine:
    """words: (seconds, word) where there are stamps within the line, else empty."""

    seconds: float
    text: str
    words: tuple[tuple[float, str], ...] = ()


def parse_lrc(text: str) -> list[LyricLine]:
    """The timed lines of an LRC file by time, its offset applied; a line with several stamps comes as often.

    Lines without a stamp are left out. What the offset moves before the start of the song is at 0.
    """
    offset_seconds = Fraction()
    timed: list[tuple[list[Fraction], str, list[tuple[Fraction, str]]]] = []
    for number, line in enumerate(_LINE_END.split(text.removeprefix("\ufeff")), start=1):
        try:
            if match := _LRC_OFFSET.fullmatch(line):
                offset_seconds = _lrc_offset(match[1])
            else:
                timed.append(_lyric_line(line))
        except ValueError as error:
            raise ValueError(f"LRC line {number}: {error}") from None

    def at(seconds: Fraction) -> float:
        return max(0.0, float(seconds - offset_seconds))

    # Stamps within a line belong to its first stamp; where the line returns, they return at the same distance.
    lines = [
        LyricLine(at(start), sung, tuple((at(seconds + start - starts[0]), word) for seconds, word in words))
        for starts, sung, words in timed
        for start in starts
    ]
    return sorted(lines, key=lambda line: line.seconds)


def _lyric_line(line: str) -> tuple[list[Fraction], str, list[tuple[Fraction, str]]]:
    """Its stamps, its text without any, and its timed words."""
    starts = []
    while match := _LRC_LINE_STAMP.match(line):
        starts.append(_lrc_exact(match[1]))
        line = line[match.end() :]
    if not starts:
        return [], line, []
    first, *rest = _LRC_WORD_STAMP.split(line)
    words = [(_lrc_exact(stamp), word.strip()) for stamp, word in zip(rest[::2], rest[1::2], strict=True)]
    if words:
        words.insert(0, (starts[0], first.strip()))
    text = " ".join("".join([first, *rest[1::2]]).split())
    return starts, text, [(seconds, word) for seconds, word in words if word]


def _lrc_exact(stamp: str) -> Fraction:
    match = _LRC_STAMP.fullmatch(stamp)
    if match is None or match[1] + match[4] not in ("[]", "<>"):
        raise ValueError(f"stamp is {stamp!r}; expected [mm:ss], [mm:ss.xx] or [mm:ss.xxx] with seconds below 60")
    return 60 * int(match[2]) + Fraction(match[3])


def _lrc_offset(milliseconds: str) -> Fraction:
    """By how many seconds lines come sooner; templates leave the tag blank."""
    if milliseconds and not _LRC_MILLISECONDS.fullmatch(milliseconds):
        raise ValueError(f"offset is {milliseconds!r}; expected whole milliseconds, such as +250 or -250")
    return Fraction(int(milliseconds or 0), 1000)


def _smpte_event(track: bytes) -> bytes | None:
    """What the first SMPTE offset before any nonzero delta time holds."""
    position, status = 0, 0
    while position + 2 < len(track) and track[position] == 0:
        position += 1
        if track[position] & 0x80:  # else the last status goes on
            status = track[position]
            position += 1
        if status == 0xFF:
            kind = track[position]
            size, position = _variable_length(track, position + 1)
            if kind == SMPTE_OFFSET:
                return track[position : position + size]
            position += size
        elif status in (0xF0, 0xF7):
            size, position = _variable_length(track, position)
            position += size
        else:
            position += 1 if status & 0xE0 == 0xC0 else 2  # program change and channel pressure carry one byte
    return None


def _variable_length(track: bytes, position: int) -> tuple[int, int]:
    """A number, seven bits to the byte, and where it ends; 0 where the track ends first."""
    number = 0
    for end in range(position, len(track)):
        number = number << 7 | track[end] & 0x7F
        if track[end] < 0x80:
            return number, end + 1
    return 0, len(track)


def _frame_rate(rate: str) -> FrameRate:
    if rate not in RATES:
        raise ValueError(f"rate is {rate!r}; expected one of {', '.join(RATES)}")
    return RATES[rate]


def _check_subframes(subframes_per_frame: int) -> None:
    if subframes_per_frame not in SUBFRAMES_PER_FRAME:
        raise ValueError(f"subframes_per_frame is {subframes_per_frame}; expected 80 or 100")


def _check_label(
    written: str, rate: str, label: tuple[int, int, int, int], subframes: int, subframes_per_frame: int
) -> None:
    hours, minutes, seconds, frames = label
    units = (
        ("hour", hours, 24),
        ("minute", minutes, 60),
        ("second", seconds, 60),
        ("frame", frames, RATES[rate].labels_per_second),
        ("subframe", subframes, subframes_per_frame),
    )
    for unit, value, count in units:
        if value >= count:
            raise ValueError(f"timecode {written!r} has {unit} {value}; expected 0 to {count - 1} at rate {rate!r}")
    if RATES[rate].drops and seconds == 0 and frames < DROPPED_LABELS and minutes % 10:
        raise ValueError(
            f"timecode {written!r} has frame {frames}; at rate {rate!r} minute {minutes} begins with frame"
            f" {DROPPED_LABELS}"
        )


def _exact(seconds: float | Fraction) -> Fraction:
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"seconds is {seconds}; expected a finite number of at least 0")
    return seconds if isinstance(seconds, Fraction) else Fraction(float(seconds))


def _nearest(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))
