"""Alignment: the sign and size of known offsets, strangers, what cannot be told, and the correlation by hand.

`benchmarks.alignment` has the players, and measures at length what is checked here on a few songs.
"""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import mido
import numpy as np
import pytest
import soxr

from benchmarks.alignment import (
    TESTING_SEED,
    Outcome,
    Piece,
    demo_song,
    draw_pair,
    play,
    play_strings,
    play_wavetable,
    try_pairs,
)
from featurize import align
from featurize.align import RATE_HZ, TRANSPOSITIONS, measure
from featurize.midi import Score, cut, parse_midi

N_SONGS = 6
N_PAIRS = 10
LENGTH_SECONDS = 10.0
START_SECONDS = 20.0


@pytest.fixture(scope="module")
def songs() -> list[Score]:
    return [demo_song(TESTING_SEED + index) for index in range(N_SONGS)]


@pytest.fixture(scope="module", params=[play_wavetable, play_strings], ids=["wavetable", "strings"])
def pieces(request: pytest.FixtureRequest, songs: list[Score]) -> list[Piece]:
    return play(songs, request.param)


@pytest.fixture(scope="module")
def piece(songs: list[Score]) -> Piece:
    return play(songs[:1], play_wavetable)[0]


def audio(piece: Piece, start_seconds: float, length_seconds: float = LENGTH_SECONDS) -> np.ndarray:
    first = round(start_seconds * RATE_HZ)
    return piece.samples[first : first + round(length_seconds * RATE_HZ)].astype(np.float32) / 32_767


def midi(piece: Piece, start_seconds: float = START_SECONDS, length_seconds: float = LENGTH_SECONDS) -> Score:
    return cut(piece.score, start_seconds, start_seconds + length_seconds)


def notes(*timed: tuple[float, int], seconds: float = 0.4, channel: int = 0) -> Score:
    """A score of (onset in seconds, pitch)."""
    events = [(onset, "note_on", pitch) for onset, pitch in timed]
    events += [(onset + seconds, "note_off", pitch) for onset, pitch in timed]
    file, track, now = mido.MidiFile(ticks_per_beat=500), mido.MidiTrack(), 0
    for at, kind, pitch in sorted(events):
        tick = round(1000 * at)
        track.append(mido.Message(kind, note=pitch, velocity=80, channel=channel, time=tick - now))
        now = tick
    file.tracks.append(track)
    buffer = BytesIO()
    file.save(file=buffer)
    return parse_midi(buffer.getvalue())


def share(outcomes: list[Outcome], verdict: bool | None) -> float:
    return float(np.mean([outcome.found.aligned is verdict for outcome in outcomes]))


# --- offsets ---


@pytest.mark.parametrize("offset_seconds", [-1.9, -0.35, 0.0, 0.013, 1.2, 2.0])
def test_the_offset_is_what_midi_must_be_moved_by(piece: Piece, offset_seconds: float) -> None:
    """Audio that starts earlier in the song has everything later."""
    found = measure(audio(piece, START_SECONDS - offset_seconds), RATE_HZ, midi(piece))
    assert found.aligned is True, found.reason
    assert found.offset_seconds == pytest.approx(offset_seconds, abs=0.01)
    assert 0.15 < found.score <= 1 and found.lead > 1.1 and found.second_best < 0.9


def test_silence_before_the_music_is_a_positive_offset(piece: Piece) -> None:
    late = np.concatenate([np.zeros(RATE_HZ, np.float32), audio(piece, START_SECONDS)])
    assert measure(late, RATE_HZ, midi(piece)).offset_seconds == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("snr_db", [20, 10, 5])
def test_offsets_of_songs_with_noise(pieces: list[Piece], snr_db: float) -> None:
    outcomes = try_pairs(pieces, "together", LENGTH_SECONDS, snr_db, N_PAIRS)
    assert np.mean([outcome.is_right for outcome in outcomes]) >= 0.9
    assert share(outcomes, True) >= 0.85
    assert all(outcome.is_right for outcome in outcomes if outcome.found.aligned)


def test_strangers_are_flagged(pieces: list[Piece]) -> None:
    outcomes = try_pairs(pieces, "apart", LENGTH_SECONDS, 20, 2 * N_PAIRS)
    assert share(outcomes, False) >= 0.85
    assert share(outcomes, True) <= 0.1


def test_any_sample_rate(piece: Piece) -> None:
    samples = audio(piece, START_SECONDS - 0.5)
    plain = measure(samples, RATE_HZ, midi(piece))
    resampled = measure(soxr.resample(samples, RATE_HZ, 48_000), 48_000, midi(piece))
    assert resampled.aligned is True
    assert resampled.offset_seconds == pytest.approx(plain.offset_seconds, abs=0.002)
    assert resampled.score == pytest.approx(plain.score, abs=0.02)


def test_level_does_not_matter(piece: Piece) -> None:
    samples = audio(piece, START_SECONDS)
    loud, quiet = measure(samples, RATE_HZ, midi(piece)), measure(samples * np.float32(0.05), RATE_HZ, midi(piece))
    assert quiet.score == pytest.approx(loud.score, abs=0.02)
    assert quiet.offset_seconds == pytest.approx(loud.offset_seconds, abs=0.002)


def test_audio_and_midi_may_differ_in_length(piece: Piece) -> None:
    whole = measure(audio(piece, START_SECONDS - 0.7, 6.0), RATE_HZ, midi(piece, length_seconds=12.0))
    assert whole.aligned is True and whole.offset_seconds == pytest.approx(0.7, abs=0.01)
    whole = measure(audio(piece, START_SECONDS - 0.7, 12.0), RATE_HZ, midi(piece, length_seconds=6.0))
    assert whole.aligned is True and whole.offset_seconds == pytest.approx(0.7, abs=0.01)


def test_percussion_has_no_say_in_whether_they_belong_together(piece: Piece) -> None:
    score = midi(piece)
    assert score.is_drum.any()
    with_drums = measure(audio(piece, START_SECONDS), RATE_HZ, score)
    without = measure(audio(piece, START_SECONDS), RATE_HZ, score.select(~score.is_drum))
    assert (with_drums.score, with_drums.lead) == (without.score, without.lead)
    assert with_drums.offset_seconds == pytest.approx(without.offset_seconds, abs=0.02)


def test_another_key_is_another_piece(piece: Piece) -> None:
    score = midi(piece)
    transposed = replace(score, pitch=np.where(score.is_drum, score.pitch, score.pitch + 3).astype(np.int16))
    found = measure(audio(piece, START_SECONDS), RATE_HZ, transposed)
    assert found.aligned is False and found.lead < 1


# --- what cannot be told ---


@pytest.mark.parametrize("samples", [np.zeros(0), np.zeros(10 * RATE_HZ), np.full(10 * RATE_HZ, 1e-5)])
def test_silence(piece: Piece, samples: np.ndarray) -> None:
    found = measure(samples.astype(np.float32), RATE_HZ, midi(piece))
    assert found.aligned is None and "silent" in found.reason and np.isnan(found.offset_seconds)


def test_no_pitched_notes(piece: Piece) -> None:
    score = midi(piece)
    for none in (score.select(score.is_drum), score.select(score.pitch < 0)):
        found = measure(audio(piece, START_SECONDS), RATE_HZ, none)
        assert found.aligned is None and "no pitched note" in found.reason and found.n_onsets == 0


def test_few_onsets_are_measured_and_not_judged() -> None:
    score = notes((0.5, 60), (1.3, 67), (1.31, 71), (2.2, 64))
    heard = audio(play([score], play_wavetable)[0], 0.0, 4.0)
    found = measure(heard, RATE_HZ, score)
    assert found.n_onsets == 3
    assert found.aligned is None and "too few onsets" in found.reason
    assert found.offset_seconds == pytest.approx(0.0, abs=0.02)


def test_notes_held_over_the_cut_are_no_onsets() -> None:
    score = notes((0.0, 60), (0.1, 64), (2.0, 67), seconds=3.0)
    piece = play([score], play_wavetable)[0]
    held = midi(piece, 1.0, 4.0)
    assert len(held) == 3
    assert measure(audio(piece, 1.0, 4.0), RATE_HZ, held).n_onsets == 1


def test_music_that_repeats_fits_at_several_offsets() -> None:
    bar = [(0.0, 60), (0.25, 64), (0.5, 67), (0.75, 62)]
    score = notes(*[(bar_index + beat, pitch) for bar_index in range(14) for beat, pitch in bar], seconds=0.2)
    piece = play([score], play_wavetable)[0]
    found = measure(audio(piece, 2.0), RATE_HZ, midi(piece, 2.0))
    assert found.aligned is None and "another offset" in found.reason
    assert found.second_best > 0.9
    assert found.offset_seconds % 1 == pytest.approx(0.0, abs=0.01) or found.offset_seconds % 1 > 0.99


def test_an_offset_beyond_the_range_is_not_found(piece: Piece) -> None:
    samples = audio(piece, START_SECONDS - 1.5)
    assert measure(samples, RATE_HZ, midi(piece), max_offset_seconds=2.0).aligned is True
    assert not measure(samples, RATE_HZ, midi(piece), max_offset_seconds=0.5).aligned


@pytest.mark.parametrize("n_samples", [1, 100, 5_000, RATE_HZ])
def test_short_audio_is_no_crash(piece: Piece, n_samples: int) -> None:
    samples = audio(piece, START_SECONDS)[:n_samples] + np.float32(0.01)
    for score in (midi(piece), notes((0.002, 60), seconds=0.001)):
        found = measure(samples, RATE_HZ, score)
        assert abs(found.offset_seconds) <= 0.6
        assert found.aligned is None or n_samples == RATE_HZ


def test_only_onsets_within_the_audio_count(piece: Piece) -> None:
    score = midi(piece)
    assert measure(audio(piece, START_SECONDS), RATE_HZ, score).n_onsets > 20
    assert measure(audio(piece, START_SECONDS, 1.0), RATE_HZ, score).n_onsets < 8


def test_the_same_input_gives_the_same_result(piece: Piece) -> None:
    first, second = (measure(audio(piece, START_SECONDS), RATE_HZ, midi(piece)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("n_onsets", "lead", "second_best", "at_edge", "aligned", "reason"),
    [
        (30, 2.0, 0.3, False, True, "2.00 times as well"),
        (30, 0.9, 0.3, False, False, "no better than transposed or reversed"),
        (30, 1.07, 0.3, False, None, "may be chance"),
        (30, 2.0, 0.95, False, None, "another offset"),
        (30, 2.0, 0.3, True, None, "at the end of the offsets"),
        (12, 0.95, 0.3, False, None, "may be chance"),
        (12, 0.85, 0.3, False, False, "no better than transposed or reversed"),
        (5, 2.0, 0.3, False, True, "2.00 times as well"),
        (5, 0.85, 0.3, False, None, "too few onsets"),
        (3, 2.0, 0.3, False, None, "too few onsets"),
    ],
)
def test_the_rule(
    n_onsets: int, lead: float, second_best: float, at_edge: bool, aligned: bool | None, reason: str
) -> None:
    found, why = align._decide(n_onsets, lead, second_best, at_edge, reach_seconds=2.0)
    assert found is aligned and reason in why


@pytest.mark.parametrize(
    ("shape", "rate_hz", "max_offset_seconds", "message"),
    [
        ((100, 2), RATE_HZ, 2.0, r"shape \(100, 2\); expected mono"),
        ((100,), 0, 2.0, "sample_rate_hz is 0; expected more than 0"),
        ((100,), RATE_HZ, 0.0, "max_offset_seconds is 0.0; expected a finite number above 0"),
        ((100,), RATE_HZ, float("nan"), "max_offset_seconds is nan"),
    ],
)
def test_refused(shape: tuple, rate_hz: int, max_offset_seconds: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(np.zeros(shape, np.float32), rate_hz, notes((0.5, 60)), max_offset_seconds)


# --- the correlation, by hand ---


def test_a_picture_correlates_with_itself_moved_and_transposed() -> None:
    """Moved by 7 frames and up by 3 semitones, it is the surrogate of 3 semitones that fits, at a lag of 7."""
    margin = max(TRANSPOSITIONS)
    picture = np.random.default_rng(0).random((400, 40 + 2 * margin)) ** 8
    heard = np.roll(picture, (7, 3), axis=(0, 1))[:, margin:-margin]
    curves = align._correlations(heard, picture, reach=20)
    assert curves.shape == (24, 41)
    row, lag = np.unravel_index(curves.argmax(), curves.shape)
    assert (TRANSPOSITIONS[row], lag - 20) == (3, 7)
    assert 0.97 < curves.max() <= 1
    assert np.delete(curves, row, axis=0).max() < 0.2


def test_the_second_half_of_the_surrogates_runs_backwards() -> None:
    margin = max(TRANSPOSITIONS)
    picture = np.random.default_rng(1).random((300, 40 + 2 * margin)) ** 8
    curves = align._correlations(picture[::-1, margin:-margin], picture, reach=10)
    row, lag = np.unravel_index(curves.argmax(), curves.shape)
    assert (row, lag) == (len(TRANSPOSITIONS), 10)
    assert curves.max() == pytest.approx(1.0)


def test_lags_are_normalised_by_what_overlaps() -> None:
    """A picture that lasts on either side of the shorter one fits as well at any lag within."""
    margin = max(TRANSPOSITIONS)
    picture = np.tile(np.random.default_rng(2).random((1, 40 + 2 * margin)), (300, 1))
    picture[::10] *= 3
    curve = align._correlations(picture[:, margin:-margin], picture, reach=100)[0]
    assert curve[::10] == pytest.approx(1.0, abs=0.02)


def test_a_drawn_pair_is_what_it_says(piece: Piece) -> None:
    """The benchmark's own truth: the click of a note is where the offset puts it."""
    score = notes(*[(2.5 + 1.7 * index, 60 + index) for index in range(20)], seconds=0.1)
    clicks = np.zeros(40 * RATE_HZ, np.int16)
    clicks[np.rint(score.onset_seconds * RATE_HZ).astype(int)] = 20_000
    for seed in range(5):
        pair = draw_pair([Piece(score, clicks)] * 2, "together", 8.0, None, np.random.default_rng(seed))
        heard_seconds = np.flatnonzero(pair.samples) / RATE_HZ
        moved_seconds = pair.score.onset_seconds[pair.score.onset_seconds > 1e-3] + pair.offset_seconds
        inside = moved_seconds[(moved_seconds > 0) & (moved_seconds < 8)]
        assert len(inside) >= 3
        assert np.abs(heard_seconds[:, None] - inside).min(axis=0) == pytest.approx(0, abs=1e-4)
