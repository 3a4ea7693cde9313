"""The piano roll: no note is lost, a test counts; against drawing it cell by cell."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurize.midi import Score, cut
from featurize.piano_roll import DRUM_ONSET, N_STEPS, ONSET, STEP_SECONDS, SUSTAIN, piano_roll

Note = tuple[float, float, int, int, bool]  # onset and length in seconds, pitch, velocity, is drum


def score_of(notes: list[Note], duration_seconds: float | None = None) -> Score:
    onset, length, pitch, velocity, is_drum = (np.array(column) for column in zip(*notes, strict=True))
    end = float((onset + length).max()) if duration_seconds is None else duration_seconds
    return Score(
        onset_seconds=onset.astype(float),
        offset_seconds=(onset + length).astype(float),
        pitch=pitch.astype(np.int16),
        velocity=velocity.astype(np.int16),
        program=np.zeros(len(notes), np.int16),
        is_drum=is_drum.astype(bool),
        tempo_seconds=np.zeros(1),
        tempo_bpm=np.full(1, 120.0),
        time_signature_seconds=np.zeros(1),
        time_signatures=np.array([[4, 4]], np.int16),
        duration_seconds=end,
        track_end_seconds=end,
        n_unended=0,
    )


def drawn_by_hand(notes: list[tuple[int, int, int, int, bool]], n_steps: int) -> np.ndarray:
    """Cell by cell; onset and length in tenths of a step, so that nothing is left to rounding."""
    planes = np.zeros((3, 128, n_steps), np.uint8)
    for onset, length, pitch, velocity, is_drum in notes:
        first, last = onset // 10, max(onset // 10, (onset + length - 1) // 10)
        for step in range(first, min(last + 1, n_steps)):
            if not is_drum:
                planes[SUSTAIN, pitch, step] = max(velocity, planes[SUSTAIN, pitch, step])
            if step == first:
                plane = DRUM_ONSET if is_drum else ONSET
                planes[plane, pitch, step] = max(velocity, planes[plane, pitch, step])
    return planes


grid_notes = st.lists(
    st.tuples(
        st.integers(0, 260),  # onset, in tenths of a step; 20 steps
        st.integers(0, 80),
        st.sampled_from([0, 60, 61, 127]),  # few, so that notes meet
        st.integers(1, 127),
        st.booleans(),
    ),
    min_size=1,
    max_size=60,
)


@settings(max_examples=200)
@given(grid_notes, st.sampled_from([0.1, 0.05, 1 / 3]))
def test_no_note_is_lost(notes: list[tuple[int, int, int, int, bool]], step_seconds: float) -> None:
    tenth = step_seconds / 10
    score = score_of([(onset * tenth, length * tenth, *rest) for onset, length, *rest in notes])
    roll = piano_roll(score, step_seconds=step_seconds, n_steps=20)
    np.testing.assert_array_equal(roll.planes, drawn_by_hand(notes, 20))

    inside = [note for note in notes if note[0] < 200]
    cells: dict[tuple[int, int, int], list[int]] = {}
    for onset, _, pitch, velocity, is_drum in inside:
        cells.setdefault((DRUM_ONSET if is_drum else ONSET, pitch, onset // 10), []).append(velocity)
    found = {
        tuple(cell): int(roll.planes[tuple(cell)]) for cell in np.argwhere(roll.planes).tolist() if cell[0] != SUSTAIN
    }
    assert found == {cell: max(velocities) for cell, velocities in cells.items()}
    assert roll.n_shown == len(cells)
    assert roll.n_merged == sum(len(velocities) - 1 for velocities in cells.values())
    assert roll.n_beyond == len(notes) - len(inside)
    assert roll.n_shown + roll.n_merged + roll.n_beyond == len(score)
    assert roll.n_clipped == sum(not is_drum and onset + length > 200 for onset, length, _, _, is_drum in inside)


def test_a_repeated_note_is_not_a_long_one() -> None:
    long = piano_roll(score_of([(0.0, 1.0, 60, 80, False)])).planes
    repeated = piano_roll(score_of([(0.0, 0.5, 60, 80, False), (0.5, 0.5, 60, 80, False)])).planes
    np.testing.assert_array_equal(long[SUSTAIN], repeated[SUSTAIN])
    assert np.flatnonzero(long[ONSET, 60]).tolist() == [0]
    assert np.flatnonzero(repeated[ONSET, 60]).tolist() == [0, 5]


def test_drums_stand_apart_and_have_no_length() -> None:
    planes = piano_roll(score_of([(0.0, 2.0, 36, 100, True), (0.0, 2.0, 36, 50, False)])).planes
    assert planes[DRUM_ONSET, 36, :3].tolist() == [100, 0, 0]
    assert planes[ONSET, 36, :3].tolist() == [50, 0, 0]
    assert planes[SUSTAIN, 36, [0, 19, 20]].tolist() == [50, 50, 0]


EDGE_CASES = {  # one note's onset and length in seconds; steps it sounds in, n_beyond, n_clipped; 10 steps of 0.1 s
    "whole steps": (0.2, 0.3, [2, 3, 4], 0, 0),
    "shorter than a step": (0.23, 0.01, [2], 0, 0),
    "no length": (0.25, 0.0, [2], 0, 0),
    "no length, on an edge": (0.3, 0.0, [3], 0, 0),
    "over an edge": (0.28, 0.04, [2, 3], 0, 0),
    "rounded to below an edge": (0.3 - 1e-9, 0.1, [3], 0, 0),
    "rounded to above an edge": (0.2, 0.1 + 1e-9, [2], 0, 0),
    "until the end": (0.8, 0.2, [8, 9], 0, 0),
    "beyond the end": (0.8, 0.3, [8, 9], 0, 1),
    "in the last step": (0.999, 0.0, [9], 0, 0),
    "at the end": (1.0, 0.1, [], 1, 0),
    "rounded to below the end": (1.0 - 1e-9, 0.1, [], 1, 0),
    "hours later": (9e4, 1.0, [], 1, 0),
}


@pytest.mark.parametrize("name", EDGE_CASES)
def test_edges(name: str) -> None:
    onset, length, steps, n_beyond, n_clipped = EDGE_CASES[name]
    roll = piano_roll(score_of([(onset, length, 60, 64, False)]), n_steps=10)
    assert np.flatnonzero(roll.planes[SUSTAIN, 60]).tolist() == steps
    assert np.flatnonzero(roll.planes[ONSET, 60]).tolist() == steps[:1]
    assert (roll.n_beyond, roll.n_clipped, roll.n_merged) == (n_beyond, n_clipped, 0)


def test_float_is_velocity_over_127() -> None:
    score = score_of([(0.0, 0.5, 60, 127, False), (0.1, 0.5, 61, 1, True)])
    as_float, as_bytes = piano_roll(score, dtype=np.float32), piano_roll(score)
    assert (as_float.planes.dtype, as_bytes.planes.dtype) == (np.float32, np.uint8)
    assert as_float.planes.shape == as_bytes.planes.shape == (3, 128, N_STEPS)
    np.testing.assert_array_equal(as_float.planes, as_bytes.planes.astype(np.float32) / 127)
    assert as_float.planes.max() == 1


@given(grid_notes)
@settings(max_examples=60)
def test_windows_of_a_long_score_show_every_onset(notes: list[tuple[int, int, int, int, bool]]) -> None:
    score = score_of([(onset / 100, length / 100, *rest) for onset, length, *rest in notes], duration_seconds=4.0)
    windows = [cut(score, start, start + 1.0) for start in (0.0, 1.0, 2.0, 3.0)]
    rolls = [piano_roll(window, n_steps=10) for window in windows]
    assert all(roll.n_beyond == roll.n_clipped == 0 for roll in rolls)
    held_over = sum(onset < edge < onset + length for onset, length, *_ in notes for edge in (100, 200, 300))
    assert sum(roll.n_shown + roll.n_merged for roll in rolls) == len(score) + held_over


def test_many_long_notes_take_little_memory() -> None:
    """Cell for cell, they would fill 300 million."""
    onset = np.random.default_rng(0).uniform(0, 10, 20_000)
    score = score_of([(at, 1_640.0, note % 128, 1 + note % 127, False) for note, at in enumerate(onset.tolist())])
    tracemalloc.start()
    roll = piano_roll(score, n_steps=16_384)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert roll.planes[SUSTAIN, :, 200:16_000].all() and peak_bytes < 50e6


def test_no_notes_are_silence() -> None:
    score = score_of([(0.0, 0.5, 60, 64, False)])
    roll = piano_roll(score.select(np.zeros(1, bool)))
    assert not roll.planes.any()
    assert (roll.n_shown, roll.n_merged, roll.n_beyond, roll.n_clipped) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_seconds": 0.0}, r"step_seconds is 0\.0; expected"),
        ({"step_seconds": float("nan")}, "step_seconds is nan"),
        ({"step_seconds": float("inf")}, "step_seconds is inf"),
        ({"n_steps": 0}, "n_steps is 0; expected at least 1"),
        ({"dtype": np.int16}, "expected uint8 or float32"),
    ],
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        piano_roll(score_of([(0.0, STEP_SECONDS, 60, 64, False)]), **options)
