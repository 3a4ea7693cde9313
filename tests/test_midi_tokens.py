"""MIDI tokens: what goes in comes out within the stated bounds, both ways; hand-checkable sequences; cuts."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import pairwise
from typing import Any

import mido
import numpy as np
import pytest
import symusic
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from featurize import midi_tokens
from featurize.midi import Score, cut, parse_midi
from featurize.midi_tokens import MAX_BARS, PAD_ID, MidiTokenizer, Tokens
from tests.conftest import MOOD_SAMPLE, needs_mood_sample

DIVISION = 480  # ticks per quarter
STEP_TICKS = DIVISION // midi_tokens.STEPS_PER_QUARTER
END_TICK = 60_000  # of every song; its notes end before
UNCUT = 10**6
BOTH = ("separate", "compound")
DRUMS = -1

Note = tuple[int, int, int, int, int]  # onset and length in ticks, pitch, velocity, program or DRUMS


@dataclass(frozen=True)
class Song:
    """Events in ticks; tempo and signature changes as (tick, bpm) and (tick, numerator, denominator), ascending."""

    notes: tuple[Note, ...]
    tempos: tuple[tuple[int, int], ...] = ((0, 120),)
    signatures: tuple[tuple[int, int, int], ...] = ((0, 4, 4),)

    def score(self) -> Score:
        """Each note has a track of its own, so that the notes are those written, whatever overlaps."""
        meta: list[tuple[int, mido.MetaMessage]] = [
            *((tick, mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(bpm))) for tick, bpm in self.tempos),
            *(
                (tick, mido.MetaMessage("time_signature", numerator=numerator, denominator=denominator))
                for tick, numerator, denominator in self.signatures
            ),
            (END_TICK, mido.MetaMessage("end_of_track")),
        ]
        tracks = [_track(sorted(meta, key=lambda event: event[0]))]
        for onset, length, pitch, velocity, program in self.notes:
            channel = 9 if program == DRUMS else 0
            tracks.append(
                _track(
                    [
                        (onset, mido.Message("program_change", program=max(program, 0), channel=channel)),
                        (onset, mido.Message("note_on", note=pitch, velocity=velocity, channel=channel)),
                        (onset + length, mido.Message("note_off", note=pitch, channel=channel)),
                    ]
                )
            )
        file = mido.MidiFile(type=1, ticks_per_beat=DIVISION)
        file.tracks.extend(tracks)
        buffer = BytesIO()
        file.save(file=buffer)
        score = parse_midi(buffer.getvalue())
        assert len(score) == len(self.notes)
        return score

    def seconds(self, tick: int) -> float:
        total = 0.0
        for (start, bpm), (end, _) in pairwise([*self.tempos, (tick + 1, 0)]):
            total += max(min(end, tick) - start, 0) * mido.bpm2tempo(bpm) / 1e6 / DIVISION
        return total

    def bars(self) -> list[tuple[int, int]]:
        """Tick and nominal length of each bar up to the end: a plain walk through the file."""
        bars = []
        for (start, numerator, denominator), (stop, _, _) in pairwise([*self.signatures, (END_TICK + 1, 0, 0)]):
            length = 4 * DIVISION * numerator // denominator
            length //= -(-length // (midi_tokens.MAX_BAR_EIGHTHS * DIVISION // 2))
            bars += [(tick, length) for tick in range(start, stop, length)]
        return bars

    def segment(self, start_tick: int) -> Score:
        """From there to the end."""
        return cut(self.score(), self.seconds(start_tick), self.seconds(END_TICK))

    def notes_from(self, start_tick: int) -> list[Note]:
        """What of the notes is in `segment`: those that begin in it, and those that sound into it, clipped."""
        clipped = []
        for onset, length, *rest in self.notes:
            if onset >= start_tick or onset + length > start_tick:
                clipped.append((max(onset, start_tick), length - max(start_tick - onset, 0), *rest))
        return clipped

    def bpm_at(self, tick: int) -> int:
        return [bpm for start, bpm in self.tempos if start <= tick][-1]


def _track(events: list[tuple[int, Any]]) -> mido.MidiTrack:
    track, now = mido.MidiTrack(), 0
    for tick, message in events:
        track.append(message.copy(time=tick - now))
        now = tick
    return track


def words(tokenizer: MidiTokenizer, ids: np.ndarray) -> list[Any]:
    """Separate tokens as words; compound ones as a dict of column to value each."""
    vocabulary = midi_tokens._miditok(tokenizer.tokenization)
    if tokenizer.tokenization == "separate":
        return [vocabulary[token] for token in ids.tolist()]
    return [
        {column: vocabulary[i, token].split("_")[1] for i, (column, token) in enumerate(zip(names, row, strict=True))}
        for names, row in ((tokenizer.columns, row) for row in ids.tolist())
    ]


def score_rows(score: Score, *columns: np.ndarray) -> list[tuple[Any, ...]]:
    """(program or DRUMS, pitch, …)."""
    program = np.where(score.is_drum, DRUMS, score.program)
    return list(zip(program.tolist(), score.pitch.tolist(), *(column.tolist() for column in columns), strict=True))


def decoded_rows(music: Any) -> list[tuple[int, ...]]:
    """(program or DRUMS, pitch, onset, offset, velocity), times in steps."""
    return [
        (DRUMS if track.is_drum else track.program, note.pitch, note.start, note.end, note.velocity)
        for track in music.tracks
        for note in track.notes
    ]


def grouped(rows: list[tuple[Any, ...]]) -> dict[tuple[int, int], np.ndarray]:
    """Rows of (program or DRUMS, pitch, …) to arrays of the rest, each in ascending order."""
    groups = defaultdict(list)
    for program, pitch, *rest in rows:
        groups[program, pitch].append(rest)
    return {key: np.array(sorted(group), float) for key, group in groups.items()}


def within(found: np.ndarray, expected: Any, bound: Any) -> None:
    assert (np.abs(found - expected) <= np.asarray(bound) + 1e-6).all(), f"{found} against {expected}"


def duration_bound_steps(steps: np.ndarray) -> np.ndarray:
    quarters = steps / midi_tokens.STEPS_PER_QUARTER
    return np.select([quarters <= 4, quarters <= 8, quarters <= 16], [0.5, 1.0, 2.0], 6.0)


# Random songs: dense in pitch and time, so that equal pitches overlap and meet; 160 ticks are a triplet of an eighth.
TICKS = st.one_of(
    st.integers(0, 12).map(lambda i: i * 480),
    st.integers(0, 40).map(lambda i: i * 160),
    st.tuples(st.integers(1, 5), st.integers(1, 12)).map(lambda pair: pair[0] * 1920 - pair[1]),  # just before a bar
    st.integers(0, 9600),
)
LENGTHS = st.one_of(
    st.sampled_from([0, 1, 5, 80, 120, 160, 240, 480, 1920]), st.integers(0, 3000), st.integers(0, 40_000)
)
NOTES = st.tuples(
    TICKS,
    LENGTHS,
    st.one_of(st.sampled_from([60, 61]), st.integers(0, 127)),
    st.integers(1, 127),
    st.sampled_from([0, 0, 40, 127, DRUMS]),
)
TEMPOS = st.lists(st.tuples(st.integers(1, 9600), st.integers(20, 250)), max_size=4, unique_by=lambda change: change[0])
METERS = st.sampled_from(
    [(4, 4), (3, 4), (6, 8), (7, 8), (2, 2), (5, 4), (12, 8), (7, 16), (1, 8), (3, 32), (9, 4), (13, 8), (33, 16)]
)
SIGNATURES = st.lists(
    st.tuples(st.one_of(st.integers(1, 40).map(lambda i: i * 240), st.integers(1, 9600)), METERS),
    max_size=4,
    unique_by=lambda change: change[0],
)


@st.composite
def songs(draw: st.DrawFn) -> Song:
    notes = draw(st.lists(NOTES, min_size=1, max_size=25))
    tempos = [(0, draw(st.integers(20, 250))), *sorted(draw(TEMPOS))]
    signatures = [(0, draw(METERS)), *sorted(draw(SIGNATURES))]
    return Song(tuple(notes), tuple(tempos), tuple((tick, *meter) for tick, meter in signatures))


@settings(max_examples=120)
@given(songs(), st.integers(0, 9000))
def test_separate_round_trip(song: Song, start_tick: int) -> None:
    score = song.segment(start_tick)
    tokenizer = MidiTokenizer("separate", UNCUT)
    tokens = tokenizer.tokens(score)
    assert tokens.n_cut == 0 and tokens.bar is None and tokens.position is None
    assert (tokens.ids > PAD_ID).all() and (tokens.ids < tokenizer.vocabulary_sizes[0]).all()

    onset, offset = (at * midi_tokens.STEPS_PER_SECOND for at in (score.onset_seconds, score.offset_seconds))
    expected = grouped(score_rows(score, onset, offset, score.velocity))
    found = grouped(decoded_rows(tokenizer.decode(tokens.ids)))
    assert {key: len(rows) for key, rows in found.items()} == {key: len(rows) for key, rows in expected.items()}
    for (program, _), rows in found.items():
        onset, offset, velocity = rows.T
        true_onset, true_offset, true_velocity = expected[program, _].T
        within(onset, true_onset, 0.5)
        within(np.sort(velocity), np.sort(true_velocity), 2)
        if len(rows) == 1:
            within(velocity, true_velocity, 2)
        if program == DRUMS:
            within(offset - onset, 1, 0)
            continue
        late = np.sort(offset) - np.sort(true_offset)  # sorted: first in, first out
        assert (late > -0.5 - 1e-6).all()
        assert (late < 0.5 + 1e-6 + (true_offset - true_onset < 1).any()).all()  # shorter ones last a step


def test_notes_as_they_are_played() -> None:
    score = Song(((0, 480, 60, 64, 0), (960, 240, 36, 100, DRUMS), (960, 480, 67, 127, 40))).score()
    tokenizer = MidiTokenizer("separate")
    assert words(tokenizer, tokenizer.tokens(score).ids) == [
        *("Program_0", "NoteOn_60", "Velocity_63", "TimeShift_0.50.100", "NoteOff_60", "TimeShift_0.50.100"),
        *("Program_-1", "DrumOn_36", "Velocity_99", "Program_40", "NoteOn_67", "Velocity_127"),
        *("TimeShift_0.50.100", "NoteOff_67"),
    ]
    tokenizer = MidiTokenizer("compound")
    shared = {"Bar": "0", "Tempo": "120.82", "TimeSig": "8/8"}
    assert words(tokenizer, tokenizer.tokens(score).ids) == [
        {"Pitch": "60", "Position": "0", "Velocity": "63", "Duration": "2.0.12", "Program": "0", **shared},
        {"Pitch": "36", "Position": "48", "Velocity": "99", "Duration": "1.0.12", "Program": "-1", **shared},
        {"Pitch": "67", "Position": "48", "Velocity": "127", "Duration": "2.0.12", "Program": "40", **shared},
    ]


@settings(max_examples=60)
@given(songs(), st.integers(0, 9000))
@example(Song(((0, 480, 60, 64, 0), (480, 480, 60, 64, 0), (480, 480, 59, 64, 3))), 0)  # one ends where others begin
def test_separate_ids_are_miditoks(song: Song, start_tick: int) -> None:
    score = song.segment(start_tick)
    onset = np.rint(score.onset_seconds * midi_tokens.STEPS_PER_SECOND).astype(int)
    length = np.maximum(np.rint(score.offset_seconds * midi_tokens.STEPS_PER_SECOND).astype(int) - onset, 1)
    music = symusic_score(midi_tokens.STEPS_PER_SECOND, score_rows(score, onset, length, score.velocity))
    ids = midi_tokens._miditok("separate").encode(music).ids
    assert MidiTokenizer("separate", UNCUT).tokens(score).ids.tolist() == ids


@settings(max_examples=60)
@given(songs(), st.integers(0, 9000))
@example(Song(((0, 480, 60, 100, 0), (0, 960, 60, 50, 0))), 0)
def test_compound_ids_are_miditoks(song: Song, start_tick: int) -> None:
    """Of the same notes at the same bars and positions; the other tests show that these are right."""
    tokenizer = MidiTokenizer("compound", UNCUT)
    tokens = tokenizer.tokens(song.segment(start_tick))
    rows = words(tokenizer, tokens.ids)
    eighths = {int(row["Bar"]): int(row["TimeSig"].split("/")[0]) for row in rows}
    lines = np.cumsum([0] + [midi_tokens.STEPS_PER_EIGHTH * eighths.get(bar, 8) for bar in range(MAX_BARS)])
    notes, tempos, steps = [], {}, []
    for row in rows:
        step = int(lines[int(row["Bar"])]) + int(row["Position"])
        steps.append(step)
        tempos.setdefault(step, float(row["Tempo"]))
        note = (
            int(row["Program"]),
            int(row["Pitch"]),
            step,
            round(duration_steps(row["Duration"])),
            int(row["Velocity"]),
        )
        notes.append(note)
    music = symusic_score(midi_tokens.STEPS_PER_QUARTER, notes)
    music.tempos = [symusic.Tempo(step, bpm) for step, bpm in tempos.items()]
    music.time_signatures = [symusic.TimeSignature(int(lines[bar]), eighths.get(bar, 8), 8) for bar in range(MAX_BARS)]
    expected = np.array(midi_tokens._miditok("compound").encode(music).ids).reshape(-1, 8)
    is_first_of_step = np.diff(steps, prepend=-1) > 0  # miditok's tempos belong to steps, ours to notes
    tempo = tokenizer.columns.index("Tempo")
    expected[~is_first_of_step, tempo] = tokens.ids[~is_first_of_step, tempo]
    np.testing.assert_array_equal(tokens.ids, expected)


def symusic_score(ticks_per_quarter: int, rows: list[tuple[int, ...]]) -> Any:
    """Of (program or DRUMS, pitch, onset, duration, velocity): a track each, in the order of onset, pitch and so on."""
    music: Any = symusic.Score(ticks_per_quarter)
    for program in sorted({row[0] for row in rows}):
        track: Any = symusic.Track(program=max(program, 0), is_drum=program == DRUMS)
        for _, pitch, onset, duration, velocity in sorted(
            (row for row in rows if row[0] == program), key=lambda row: (row[2], row[1], row[3], row[4])
        ):
            track.notes.append(symusic.Note(onset, duration, pitch, velocity))
        music.tracks.append(track)
    return music


def duration_steps(word: str) -> float:
    eighths, part, parts = map(int, word.split("."))
    return (eighths + part / parts) * midi_tokens.STEPS_PER_EIGHTH


def test_ids_are_the_same_in_every_version() -> None:
    """A stored vector would be another's if miditok counted its vocabulary otherwise."""
    score = Song(((0, 480, 60, 64, 0), (960, 240, 36, 100, DRUMS))).score()
    assert MidiTokenizer("separate").tokens(score).ids.tolist() == [645, 61, 272, 338, 189, 338, 773, 425, 281]
    assert MidiTokenizer("compound").tokens(score).ids.tolist() == [
        [61, 1, 1, 16, 24, 1, 36, 8],
        [165, 49, 1, 25, 12, 129, 36, 8],
    ]
    assert MidiTokenizer("separate").vocabulary_sizes == (774,)
    assert MidiTokenizer("compound").vocabulary_sizes == (257, 193, 257, 33, 225, 130, 50, 17)


def test_drums_and_tones_of_one_program_number_stay_apart() -> None:
    song = Song(((0, 480, 60, 64, 0), (0, 480, 60, 64, DRUMS), (0, 480, 60, 64, 5)))
    for tokenization in BOTH:
        tokenizer = MidiTokenizer(tokenization)
        found = decoded_rows(tokenizer.decode(tokenizer.tokens(song.score()).ids))
        assert sorted(row[0] for row in found) == [DRUMS, 0, 5]


def test_a_note_within_another_of_its_kind_ends_last() -> None:
    song = Song(((0, 2880, 60, 100, 0), (960, 960, 60, 50, 0)))  # 0 to 3 s, and 1 to 2 s
    separate, compound = (MidiTokenizer(tokenization) for tokenization in BOTH)
    swapped = decoded_rows(separate.decode(separate.tokens(song.score()).ids))
    assert sorted(swapped) == [(0, 60, 0, 200, 99), (0, 60, 100, 300, 51)]
    kept = decoded_rows(compound.decode(compound.tokens(song.score()).ids))
    assert sorted(kept) == [(0, 60, 0, 144, 99), (0, 60, 48, 96, 51)]


def test_equal_notes_are_as_many_as_before() -> None:
    song = Song(((0, 480, 60, 64, 0),) * 3)
    for tokenization in BOTH:
        tokenizer = MidiTokenizer(tokenization)
        assert len(decoded_rows(tokenizer.decode(tokenizer.tokens(song.score()).ids))) == 3


@settings(max_examples=120)
@given(songs(), st.integers(0, 9000))
@example(Song(((960, 960, 60, 64, 0),), signatures=((0, 4, 4), (1200, 3, 4))), 1000)  # cut within a bar
@example(Song(((4800, 99, 60, 64, 0),), signatures=((0, 7, 16), (500, 33, 16))), 40)
def test_compound_round_trip(song: Song, start_tick: int) -> None:
    bars = song.bars()
    lines = np.array([line for line, _ in bars])
    assume(not (lines - start_tick == STEP_TICKS / 2).any())  # halfway, rounding decides which bar is the first
    first_bar = int(np.searchsorted(lines, start_tick + STEP_TICKS / 2)) - 1
    notes = song.notes_from(start_tick)
    assume(all(note[0] < bars[min(first_bar + MAX_BARS, len(bars) - 1)][0] - STEP_TICKS for note in notes))

    tokenizer = MidiTokenizer("compound", UNCUT)
    tokens = tokenizer.tokens(song.segment(start_tick))
    rows = words(tokenizer, tokens.ids)
    assert tokens.n_cut == 0 and tokens.bar is not None and tokens.position is not None
    assert (tokens.ids > PAD_ID).all() and (tokens.ids < tokenizer.vocabulary_sizes).all()
    assert tokens.bar.tolist() == [int(row["Bar"]) for row in rows]
    assert tokens.position.tolist() == [int(row["Position"]) for row in rows]

    out = []
    for row in rows:
        line, length = bars[first_bar + int(row["Bar"])]
        position = int(row["Position"])
        assert 0 <= position < length / STEP_TICKS + 0.5
        assert row["TimeSig"] == f"{-(-2 * length // DIVISION)}/8"
        onset, duration = line / STEP_TICKS + position, duration_steps(row["Duration"])
        out.append((int(row["Program"]), int(row["Pitch"]), onset, duration, int(row["Velocity"]), float(row["Tempo"])))
    found = grouped(out)
    expected = grouped(
        [
            (program, pitch, onset / STEP_TICKS, length / STEP_TICKS, velocity)
            for onset, length, pitch, velocity, program in notes
        ]
    )
    assert {key: len(rows) for key, rows in found.items()} == {key: len(rows) for key, rows in expected.items()}
    for key, group in found.items():
        onset, duration, velocity, _ = group.T
        true_onset, true_duration, true_velocity = expected[key].T
        within(onset, true_onset, 0.5)
        within(np.sort(velocity), np.sort(true_velocity), 2)
        held = np.clip(np.sort(true_duration), 1, midi_tokens.DURATION_STEPS[-1])
        within(np.sort(duration), held, duration_bound_steps(held))
        if len(group) == 1:
            within(velocity, true_velocity, 2)
            within(duration, held, duration_bound_steps(held))
    for onset, *_, tempo in out_alone(out):
        (tick,) = (note[0] for note in notes if abs(note[0] / STEP_TICKS - onset) <= 0.5)
        assert abs(np.log(tempo / song.bpm_at(tick))) < np.log(1.03)


def out_alone(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """(onset, …) of the notes that have no other within a step or so."""
    onsets = np.array([row[2] for row in rows])
    return [row[2:] for row in rows if np.count_nonzero(np.abs(onsets - row[2]) <= 1) == 1]


@settings(max_examples=60)
@given(
    st.lists(NOTES, min_size=1, max_size=25),
    st.integers(20, 250),
    st.sampled_from([(4, 4), (3, 4), (6, 8), (7, 8), (2, 2), (12, 8)]),
    st.integers(0, 4),
)
def test_compound_plays_in_time_where_bars_are_alike(
    notes: list[Note], bpm: int, meter: tuple[int, int], start_bar: int
) -> None:
    song = Song(tuple(notes), ((0, bpm),), ((0, *meter),))
    score = song.segment(start_bar * song.bars()[0][1])
    tokenizer = MidiTokenizer("compound", UNCUT)
    music = tokenizer.decode(tokenizer.tokens(score).ids)
    assert music.ticks_per_quarter == midi_tokens.STEPS_PER_QUARTER
    steps_per_second = score.tempo_bpm[0] / 60 * midi_tokens.STEPS_PER_QUARTER  # a file rounds tempo to microseconds
    expected = grouped(score_rows(score, score.onset_seconds * steps_per_second))
    found = grouped([row[:3] for row in decoded_rows(music)])
    assert found.keys() == expected.keys()
    for key, onsets in found.items():
        within(onsets, expected[key], 0.5)
    if len(score):
        assert abs(np.log(music.tempos[-1].qpm / bpm)) < np.log(1.03)


def test_a_bar_begins_with_its_signature() -> None:
    quarters = [(tick, 240, 60, 64, 0) for tick in range(0, 15 * 480, 480)]
    song = Song(tuple(quarters), signatures=((0, 4, 4), (6 * 480, 3, 4), (12 * 480, 6, 8)))
    tokens = MidiTokenizer("compound").tokens(song.score())
    assert tokens.bar is not None and tokens.position is not None
    assert tokens.bar.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert (tokens.position // 24).tolist() == [0, 1, 2, 3, 0, 1, 0, 1, 2, 0, 1, 2, 0, 1, 2]
    tokens = MidiTokenizer("compound").tokens(cut(song.score(), 2.5, 5.0))  # from the second quarter of the short bar
    assert tokens.bar is not None and tokens.position is not None
    assert tokens.bar.tolist() == [0, 1, 1, 1, 2]
    assert (tokens.position // 24).tolist() == [1, 0, 1, 2, 0]


def test_the_grid_is_the_same_in_every_meter() -> None:
    eighths = tuple((tick, 240, 60, 64, 0) for tick in range(0, 6 * 240, 240))
    for meter in ((3, 4), (6, 8), (12, 16)):
        tokens = MidiTokenizer("compound").tokens(Song(eighths, signatures=((0, *meter),)).score())
        assert tokens.position is not None and tokens.position.tolist() == [0, 12, 24, 36, 48, 60]


@settings(max_examples=60)
@given(songs(), st.integers(3, 60))
@example(Song(((0, 480, 60, 64, 0), (480 * 2000, 9, 60, 64, 0))), 12)  # a silence that is longer than the tokens
@example(Song(((0, 480 * 2000, 60, 64, 0), (9, 9, 61, 64, 0))), 12)
@example(Song(((0, 9, 60, 64, 0),) * 25), 10)
def test_a_cut_leaves_out_the_end_and_says_so(song: Song, max_events: int) -> None:
    score = song.score()
    for tokenization in BOTH:
        whole = MidiTokenizer(tokenization, UNCUT).tokens(score)
        tokenizer = MidiTokenizer(tokenization, max_events)
        tokens = tokenizer.tokens(score)
        np.testing.assert_array_equal(tokens.ids, whole.ids[: len(tokens)])
        assert len(tokens) <= max_events
        if tokenization == "separate":  # the last is whole, and what would have fit besides is not
            announcing = ("Program", "NoteOn", "DrumOn")
            assert not words(tokenizer, tokens.ids)[-1].startswith(announcing)
            assert all(word.startswith(announcing) for word in words(tokenizer, whole.ids[len(tokens) : max_events]))
        else:
            assert len(tokens) == min(max_events, len(whole))
        begun = decoded_rows(tokenizer.decode(tokens.ids))
        assert len(begun) == len(score) - tokens.n_cut
        assert tokens.n_cut == whole.n_cut or len(whole) > max_events


def test_what_sounds_at_the_cut_ends_there() -> None:
    song = Song(((0, 960, 60, 64, 0), (480, 960, 64, 64, 0), (1440, 480, 67, 64, 0)))
    tokenizer = MidiTokenizer("separate", 8)
    tokens = tokenizer.tokens(song.score())
    assert words(tokenizer, tokens.ids)[-2:] == ["TimeShift_0.50.100", "NoteOff_60"] and tokens.n_cut == 1
    assert sorted(decoded_rows(tokenizer.decode(tokens.ids))) == [(0, 60, 0, 100, 63), (0, 64, 50, 100, 63)]


def test_notes_beyond_the_last_bar_are_cut() -> None:
    bar = 4 * DIVISION
    score = Song(
        ((0, 480, 60, 64, 0), ((MAX_BARS - 1) * bar, 480, 61, 64, 0), (MAX_BARS * bar, 480, 62, 64, 0))
    ).score()
    tokens = MidiTokenizer("compound").tokens(score)
    assert tokens.bar is not None and tokens.bar.tolist() == [0, MAX_BARS - 1] and tokens.n_cut == 1
    late = Song((((MAX_BARS + 3) * bar, 480, 60, 64, 0),)).score()
    nothing = MidiTokenizer("compound").tokens(late)
    assert nothing.ids.shape == (0, 8) and nothing.n_cut == 1
    assert len(MidiTokenizer("compound").tokens(cut(late, Song(()).seconds(4 * bar)))) == 1


def test_very_long_notes_are_capped() -> None:
    tokenizer = MidiTokenizer("compound")
    for quarters, steps in ((32, 768), (100, 768)):
        (row,) = decoded_rows(tokenizer.decode(tokenizer.tokens(Song(((0, quarters * 480, 60, 64, 0),)).score()).ids))
        assert row[3] - row[2] == steps


@pytest.mark.parametrize("bpm", [60e6, 4.0])
def test_a_sequencers_tempo_is_bounded(bpm: float) -> None:
    score = replace(Song(((0, 480, 60, 64, 0), (960, 480, 62, 64, 0))).score(), tempo_bpm=np.array([bpm]))
    tokens = MidiTokenizer("compound").tokens(score)
    assert len(tokens) + tokens.n_cut == 2
    assert {row["Tempo"] for row in words(MidiTokenizer("compound"), tokens.ids)} == {"256.0" if bpm > 256 else "16.0"}


def test_no_notes_give_no_tokens() -> None:
    nothing = Song(()).score()
    for tokenization, shape in (("separate", (0,)), ("compound", (0, 8))):
        tokenizer = MidiTokenizer(tokenization)
        tokens = tokenizer.tokens(nothing)
        assert (tokens.ids.shape, tokens.ids.dtype, tokens.n_cut, len(tokens)) == (shape, np.int32, 0, 0)
        assert decoded_rows(tokenizer.decode(tokens.ids)) == []


def test_what_is_decoded_can_be_played(tmp_path: Any) -> None:
    song = Song(((480, 480, 60, 64, 0), (960, 240, 36, 100, DRUMS), (1440, 480, 62, 64, 0)), ((0, 60), (960, 180)))
    score = song.score()
    for tokenization in BOTH:
        tokenizer = MidiTokenizer(tokenization)
        tokenizer.decode(tokenizer.tokens(score).ids).dump_midi(tmp_path / "decoded.mid")
        heard = parse_midi((tmp_path / "decoded.mid").read_bytes())
        assert heard.pitch.tolist() == [60, 36, 62]
        np.testing.assert_allclose(heard.onset_seconds, [1, 2, 2 + 1 / 3], rtol=0.03)


def test_settings_tell_what_decides_the_ids() -> None:
    for tokenization in BOTH:
        tokenizer = MidiTokenizer(tokenization)
        assert json.loads(json.dumps(tokenizer.settings)) == tokenizer.settings
        assert tokenizer.settings != MidiTokenizer(tokenization, 512).settings
    assert MidiTokenizer("separate").settings["steps_per_second"] == 100
    assert MidiTokenizer("compound").settings["steps_per_quarter"] == 24
    assert MidiTokenizer("compound").columns == (
        *("Pitch", "Position", "Bar", "Velocity", "Duration", "Program", "Tempo", "TimeSig"),
    )


def test_it_travels_light() -> None:
    score = Song(((0, 480, 60, 64, 0),)).score()
    for tokenization in BOTH:
        tokenizer = MidiTokenizer(tokenization, 77)
        before = tokenizer.tokens(score).ids
        sent = pickle.dumps(tokenizer)
        assert len(sent) < 200 and pickle.loads(sent) == tokenizer
        np.testing.assert_array_equal(pickle.loads(sent).tokens(score).ids, before)


def test_workers_need_no_transformers() -> None:
    code = "import sys, featurize.midi_tokens as m; m.MidiTokenizer('separate'); print('transformers' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("words", 9), "tokenization is 'words'; expected 'separate' or 'compound'"),
        (("separate", 2), "max_events is 2; separate tokens need at least 3"),
        (("compound", 0), "max_events is 0; compound tokens need at least 1"),
    ],
)
def test_options_that_cannot_be(options: tuple[Any, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MidiTokenizer(*options)


@needs_mood_sample
def test_real_files() -> None:
    paths = sorted((MOOD_SAMPLE / "midi").iterdir())
    assert len(paths) == 50
    for path in paths:
        song = parse_midi(path.read_bytes())
        segment = cut(song, song.duration_seconds / 2, song.duration_seconds / 2 + 5)
        for tokenization in BOTH:
            tokenizer, uncut = MidiTokenizer(tokenization), MidiTokenizer(tokenization, UNCUT)
            tokens = tokenizer.tokens(song)
            assert isinstance(tokens, Tokens) and 0 < len(tokens) <= 1024 and 0 < tokens.n_cut < len(song)
            found = decoded_rows(uncut.decode(uncut.tokens(segment).ids))
            assert sorted(row[:2] for row in found) == sorted(score_rows(segment))
            if tokenization == "separate":
                onsets = np.sort([row[2] for row in found])
                within(onsets, np.sort(segment.onset_seconds) * midi_tokens.STEPS_PER_SECOND, 0.5)


def test_miditok_is_given_what_it_can_hold() -> None:
    """It warns and clips, and drops what it does not know; here nothing of it may happen."""
    notes = tuple((bar * 4 * DIVISION, 9, pitch, 1, 127) for bar, pitch in enumerate(range(128)))
    for tokenization in BOTH:
        tokenizer = MidiTokenizer(tokenization, UNCUT)
        music = tokenizer.decode(tokenizer.tokens(Song(notes).score()).ids)
        assert isinstance(music, symusic.core.ScoreTick)
        assert sorted(row[1] for row in decoded_rows(music)) == list(range(128))
