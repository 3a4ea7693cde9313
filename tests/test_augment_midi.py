"""MIDI augmentation: the seed alone decides, a score stays a score, and each name does what it says, in its range."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from featurize import augment_midi
from featurize.augment_midi import (
    AUGMENTATIONS,
    HIGHEST_PITCH,
    LEAST_STRENGTH,
    LOWEST_PITCH,
    MOST_JITTER_SECONDS,
    MOST_LOUDER,
    MOST_SEMITONES,
    MOST_VELOCITY_JITTER,
    STEPS_PER_QUARTER,
    MidiAugmentation,
)
from featurize.errors import UnknownName
from featurize.midi import Score, parse_midi

NAMES = list(AUGMENTATIONS)
SEEDS = range(60)  # of them, about half apply one augmentation

SILENCE = b"MThd\0\0\0\6\0\0\0\1\1\xe0MTrk\0\0\0\4\0\xff\x2f\0"  # a file of one track that ends at once

# onset and offset in seconds, pitch, velocity, program, is_drum
Note = tuple[float, float, int, int, int, bool]


def score_of(
    notes: list[Note],
    tempos: tuple[tuple[float, float], ...] = ((0.0, 120.0),),
    duration_seconds: float | None = None,
) -> Score:
    onset, offset, pitch, velocity, program, is_drum = np.array(notes, float).reshape(-1, 6).T
    tempo_seconds, tempo_bpm = np.array(tempos, float).T
    score = replace(
        parse_midi(SILENCE),
        onset_seconds=onset,
        offset_seconds=offset,
        pitch=pitch.astype(np.int16),
        velocity=velocity.astype(np.int16),
        program=program.astype(np.int16),
        is_drum=is_drum.astype(bool),
        tempo_seconds=tempo_seconds,
        tempo_bpm=tempo_bpm,
        time_signature_seconds=tempo_seconds[:1],
        duration_seconds=float(offset.max(initial=0)) if duration_seconds is None else duration_seconds,
    )
    return augment_midi._in_order(score)


def melody(*pitches: int, is_drum: bool = False, program: int = 0) -> list[Note]:
    return [(i * 0.5, i * 0.5 + 0.4, pitch, 64, program, is_drum) for i, pitch in enumerate(pitches)]


def applied(name: str, score: Score) -> list[Score]:
    """What the seeds that changed something made of it."""
    augment = MidiAugmentation([name])
    changed = [output for output in (augment(score, seed) for seed in SEEDS) if output is not score]
    assert len(SEEDS) / 4 < len(changed) < len(SEEDS) * 3 / 4
    return changed


def assert_same(one: Score, other: Score) -> None:
    for field in fields(Score):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name), err_msg=field.name)


@st.composite
def scores(draw: st.DrawFn) -> Score:
    duration = draw(st.floats(0.5, 30))
    times = st.one_of(st.floats(0, duration), st.just(duration), st.integers(0, 8).map(lambda i: i * duration / 8))
    notes = []
    for _ in range(draw(st.integers(0, 20))):
        onset, offset = sorted(draw(st.tuples(times, times)))
        pitch, velocity, program = draw(st.integers(0, 127)), draw(st.integers(0, 127)), draw(st.integers(0, 127))
        notes.append((onset, offset, pitch, velocity, program, draw(st.booleans())))
    changes = draw(st.lists(st.floats(-20, duration), min_size=1, max_size=4, unique_by=lambda at: round(at, 3)))
    changes[0] = -draw(st.floats(0, 20)) if min(changes) > 0 else changes[0]
    tempos = tuple((at, draw(st.floats(20, 400))) for at in sorted(changes))
    return score_of(notes, tempos, duration)


@settings(max_examples=100)
@given(scores(), st.lists(st.sampled_from(NAMES), unique=True), st.integers(-5, 2**40))
@example(score_of([]), NAMES, 0)
def test_a_score_stays_a_score(score: Score, names: list[str], seed: int) -> None:
    before = pickle.loads(pickle.dumps(score))
    for list_of_names in ([name] for name in NAMES), [names], [NAMES]:
        for chosen in list_of_names:
            output = MidiAugmentation(chosen)(score, seed)
            assert_same(score, before)
            assert len(output) == len(score)
            assert (output.onset_seconds >= 0).all() and (output.offset_seconds <= score.duration_seconds).all()
            assert (output.offset_seconds >= output.onset_seconds).all()
            for column, type_ in (
                ("pitch", np.int16),
                ("velocity", np.int16),
                ("program", np.int16),
                ("is_drum", bool),
            ):
                values = getattr(output, column)
                assert values.dtype == type_ and (values >= 0).all() and (values <= 127).all()
            assert output.onset_seconds.dtype == output.offset_seconds.dtype == np.float64
            assert_same(augment_midi._in_order(output), output)
            assert sorted(zip(output.program, output.is_drum, strict=True)) == sorted(
                zip(score.program, score.is_drum, strict=True)
            )
            for field in fields(Score):
                if "tempo" in field.name or "signature" in field.name or "duration" in field.name:
                    np.testing.assert_array_equal(getattr(output, field.name), getattr(score, field.name))


def test_transpose_moves_all_tones_by_one_interval_and_no_drum() -> None:
    score = score_of([*melody(60, 64, 67), *melody(48, program=32), *melody(36, 38, is_drum=True)])
    intervals = set()
    for output in applied("transpose", score):
        assert sorted(output.pitch[output.is_drum]) == [36, 38]
        moved = np.sort(output.pitch[~output.is_drum]) - [48, 60, 64, 67]
        assert len(set(moved)) == 1
        intervals.add(int(moved[0]))
    assert intervals <= {*range(-MOST_SEMITONES, MOST_SEMITONES + 1)} - {0}
    assert len(intervals) > 6 and min(intervals) < 0 < max(intervals)


@pytest.mark.parametrize(
    ("pitches", "possible"),
    [
        ((LOWEST_PITCH + 2, 60), {-2, -1, 1, 2, 3, 4, 5, 6}),
        ((60, HIGHEST_PITCH - 1), {-6, -5, -4, -3, -2, -1, 1}),
        ((5, 60), {1, 2, 3, 4, 5, 6}),  # below the range already: not further down
        ((60, 127), {-6, -5, -4, -3, -2, -1}),
    ],
)
def test_transpose_takes_no_tone_out_of_range(pitches: tuple[int, int], possible: set[int]) -> None:
    low = pitches[0]
    assert {int(output.pitch[0]) - low for output in applied("transpose", score_of(melody(*pitches)))} <= possible


def test_where_nothing_can_be_transposed_nothing_is() -> None:
    augment = MidiAugmentation(["transpose"])
    for notes in (melody(LOWEST_PITCH, HIGHEST_PITCH), melody(0, 127), melody(36, 38, is_drum=True)):
        score = score_of(notes)
        assert all(augment(score, seed) is score for seed in SEEDS)


def test_velocity_scales_all_and_each_a_little() -> None:
    score = score_of([(i * 0.1, i * 0.1, 60, 64, 0, i % 2 == 0) for i in range(200)])
    means = []
    for output in applied("velocity", score):
        change = output.velocity / 64
        means.append(change.mean())
        assert change.min() >= 1 / MOST_LOUDER - (MOST_VELOCITY_JITTER + 1) / 64
        assert change.max() <= MOST_LOUDER + (MOST_VELOCITY_JITTER + 1) / 64
        assert MOST_VELOCITY_JITTER <= np.ptp(output.velocity) <= 2 * MOST_VELOCITY_JITTER
    assert 1 / MOST_LOUDER - 0.05 < min(means) < 0.9 and 1.1 < max(means) < MOST_LOUDER + 0.05


def test_velocity_keeps_its_range() -> None:
    score = score_of([(0, 1, 60, velocity, 0, False) for velocity in (1, 2, 126, 127)])
    outputs = np.concatenate([output.velocity for output in applied("velocity", score)])
    assert outputs.min() == 1 and outputs.max() == 127


def test_time_jitter_is_a_few_milliseconds() -> None:
    notes = [(1 + i * 0.1, 1.05 + i * 0.1, 60, 64, 0, False) for i in range(100)]
    score = score_of(notes, duration_seconds=20.0)
    for output in applied("time_jitter", score):
        for field in ("onset_seconds", "offset_seconds"):
            moved = getattr(output, field) - getattr(score, field)
            assert np.abs(moved).max() <= MOST_JITTER_SECONDS
            assert moved.min() < -0.8 * MOST_JITTER_SECONDS and moved.max() > 0.8 * MOST_JITTER_SECONDS
            assert abs(moved.mean()) < 0.3 * MOST_JITTER_SECONDS


def test_time_jitter_keeps_what_came_first() -> None:
    score = score_of([(1 + i * 0.002, 2, 20 + i, 64, 0, False) for i in range(80)])  # far closer than the jitter
    for output in applied("time_jitter", score):
        assert output.pitch.tolist() == list(range(20, 100))
        assert np.abs(output.onset_seconds - score.onset_seconds).max() <= MOST_JITTER_SECONDS


def test_time_jitter_does_not_roll_chords() -> None:
    """Neither the low nor the high notes of a chord come first by rule."""
    score = score_of([(1.0, 2.0, pitch, 64, 0, False) for pitch in range(40, 80)])
    orders = [np.corrcoef(output.pitch, np.arange(40))[0, 1] for output in applied("time_jitter", score)]
    assert abs(np.mean(orders)) < 0.2 and np.ptp(orders) > 0.1


@pytest.mark.parametrize("tempos", [((0.0, 120.0),), ((-3.0, 90.0), (0.7, 60.0), (1.9, 200.0))])
def test_quantize_moves_towards_the_grid(tempos: tuple[tuple[float, float], ...]) -> None:
    rng = np.random.default_rng(0)
    onsets = rng.uniform(0.2, 7, 50)
    score = score_of(
        [(at, at + rng.uniform(0.2, 1), 20 + i, 64, 0, False) for i, at in enumerate(onsets)], tempos, 12.0
    )
    by_pitch = np.argsort(score.pitch)
    onset, offset = (score.quarters_at(at)[by_pitch] for at in (score.onset_seconds, score.offset_seconds))
    seen = set()
    for output in applied("quantize", score):
        by_pitch = np.argsort(output.pitch)
        new_onset = output.quarters_at(output.onset_seconds)[by_pitch]
        new_offset = output.quarters_at(output.offset_seconds)[by_pitch]
        fits = []
        for steps in STEPS_PER_QUARTER:
            to_grid = np.rint(onset * steps) / steps - onset
            strength = float(np.dot(new_onset - onset, to_grid) / np.dot(to_grid, to_grid))
            fits.append((np.abs(new_onset - onset - strength * to_grid).max(), steps, strength))
        error, steps, strength = min(fits)
        assert error < 1e-9 and LEAST_STRENGTH <= strength <= 1
        length = np.rint((offset - onset) * steps) / steps - (offset - onset)
        np.testing.assert_allclose((new_offset - new_onset) - (offset - onset), strength * length, atol=1e-9)
        seen.add(steps)
    assert seen == set(STEPS_PER_QUARTER)


def test_quantize_leaves_the_grid_alone() -> None:
    on_both_grids = [(i / 8, i / 8 + 0.125, 60, 64, 0, False) for i in range(16)]  # 16ths at 120
    score = score_of(on_both_grids)
    for output in applied("quantize", score):
        np.testing.assert_allclose(output.onset_seconds, score.onset_seconds, atol=1e-12)
        np.testing.assert_allclose(output.offset_seconds, score.offset_seconds, atol=1e-12)


def test_quantize_leaves_no_note_without_length() -> None:
    score = score_of([(i * 0.5, i * 0.5 + 0.001, 60, 64, 0, False) for i in range(8)], duration_seconds=10.0)
    for output in applied("quantize", score):
        quarters = output.quarters_at(output.offset_seconds) - output.quarters_at(output.onset_seconds)
        assert (quarters >= LEAST_STRENGTH / max(STEPS_PER_QUARTER)).all()


def test_the_seed_alone_decides() -> None:
    score, augment = score_of(melody(*range(50, 80))), MidiAugmentation(NAMES)
    first = [augment(score, seed) for seed in SEEDS]
    assert len({pickle.dumps(output) for output in first}) > len(SEEDS) * 3 / 4  # a sixteenth change nothing
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    drawn = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    for seed, output in reversed(list(zip(SEEDS, first, strict=True))):
        assert_same(pickle.loads(pickle.dumps(augment))(score, seed), output)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == drawn  # type: ignore[index]  # noqa: NPY002


def test_another_process_gives_the_same_notes() -> None:
    code = (
        "import hashlib; from tests.test_augment_midi import *\n"
        "score, augment = score_of(melody(*range(50, 80))), MidiAugmentation(NAMES)\n"
        "outputs = [augment(score, seed) for seed in range(12)]\n"
        "parts = [a.tobytes() for o in outputs for a in (o.onset_seconds, o.offset_seconds, o.pitch, o.velocity)]\n"
        "print(hashlib.sha256(b''.join(parts)).hexdigest())"
    )
    found = set()
    for salt in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": salt, "PYTHONPATH": os.pathsep.join(sys.path)}
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        found.add(run.stdout.strip())
    assert len(found) == 1 and len(found.pop()) == 64


def test_a_further_augmentation_changes_no_draw_of_the_others() -> None:
    score = score_of(melody(*range(50, 80)))
    for seed in SEEDS:
        alone, both = (
            MidiAugmentation(["transpose"])(score, seed),
            MidiAugmentation(["velocity", "transpose"])(score, seed),
        )
        assert alone.pitch.tolist() == both.pitch.tolist()


def test_the_order_of_the_names_does_not_matter() -> None:
    score = score_of(melody(*range(50, 80)))
    assert MidiAugmentation(NAMES[::-1]).names == MidiAugmentation([*NAMES, NAMES[0]]).names == tuple(NAMES)
    for seed in SEEDS:
        assert_same(MidiAugmentation(NAMES)(score, seed), MidiAugmentation(NAMES[::-1])(score, seed))


def test_no_names_change_nothing() -> None:
    score = score_of(melody(60))
    assert all(MidiAugmentation([])(score, seed) is score for seed in SEEDS)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UnknownName, match=r"no augmentation 'transpos'.*'transpose'.*velocity, quantize, time_jitter"):
        MidiAugmentation(["velocity", "transpos"])
