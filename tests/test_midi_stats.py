"""MIDI statistics: small scores whose features can be worked out by hand, identities, and bounds."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import mido
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurize.encoders import build_encoder
from featurize.encoders.midi_stats import FEATURE_NAMES, MIDIStatsEncoder, describe, estimate_key
from featurize.midi import Score, parse_midi
from featurize.segments import RawMidi, UnreadableInput

QUARTER_SECONDS = 0.5  # at 120 bpm
C_MAJOR = (60, 62, 64, 65, 67, 69, 71, 72)
A_MINOR = (57, 59, 60, 62, 64, 65, 68, 69)  # harmonic: with G sharp

Note = tuple[float, float, int]  # onset and length in quarter notes, pitch


def smf(notes: list[Note], velocity: int = 64, channel: int = 0, program: int = 0, bpm: float = 120) -> bytes:
    file = mido.MidiFile(type=0, ticks_per_beat=480)
    events = [(round(onset * 480), 1, pitch, velocity) for onset, _, pitch in notes]
    events += [(round((onset + length) * 480), 0 if length else 2, pitch, 0) for onset, length, pitch in notes]
    track = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(bpm))])
    track.append(mido.Message("program_change", program=program, channel=channel))
    now = 0
    for tick, _, pitch, strength in sorted(events):
        track.append(mido.Message("note_on", note=pitch, velocity=strength, channel=channel, time=tick - now))
        now = tick
    file.tracks.append(track)
    buffer = BytesIO()
    file.save(file=buffer)
    return buffer.getvalue()


def line(*pitches: int) -> list[Note]:
    return [(float(i), 1.0, pitch) for i, pitch in enumerate(pitches)]


def features(notes: list[Note], **options: float) -> dict[str, float]:
    return describe(parse_midi(smf(notes, **options)))  # type: ignore[arg-type]


def group(described: dict[str, float], prefix: str) -> np.ndarray:
    found = [value for name, value in described.items() if name.startswith(prefix)]
    assert found
    return np.array(found)


def test_contract() -> None:
    encoder = build_encoder("midi_stats")
    assert isinstance(encoder, MIDIStatsEncoder)
    assert len(set(encoder.feature_names)) == encoder.width == encoder.record.width
    raws = [RawMidi(data=smf(line(*pitches))) for pitches in (C_MAJOR, A_MINOR, (60,))]
    items = [encoder.prepare(raw) for raw in raws]
    assert all(item.dtype == np.float32 and item.shape == (encoder.width,) for item in items)
    together = encoder(encoder.collate(items)).pooled.numpy()
    alone = np.concatenate([encoder(encoder.collate([encoder.prepare(raw)])).pooled.numpy() for raw in raws])
    np.testing.assert_array_equal(together, alone)
    assert encoder.record.weights == {}
    assert set(encoder.record.libraries) == {"symusic", "mido", "numpy"}


def test_no_notes_are_absent_and_damage_is_not() -> None:
    encoder = MIDIStatsEncoder()
    assert encoder.prepare(RawMidi(data=smf([]))) is None
    pause = smf([(0, 1, 60), (9, 1, 60)])
    assert encoder.prepare(RawMidi(data=pause, start_seconds=1.0, end_seconds=4.0)) is None
    assert encoder.prepare(RawMidi(data=pause, start_seconds=0.0, end_seconds=4.0)) is not None
    with pytest.raises(UnreadableInput, match=r"data\.midi_is: segment"):
        encoder.prepare(RawMidi(data=pause, start_seconds=50.0, end_seconds=60.0))


def test_c_major_scale() -> None:
    found = features(line(*C_MAJOR))
    np.testing.assert_allclose(group(found, "pitch_class_duration"), np.array([2, 0, 1, 0, 1, 1, 0, 1, 0, 1, 0, 1]) / 8)
    np.testing.assert_allclose(group(found, "pitch_class_count"), group(found, "tonic_count"))  # the tonic is C
    assert found["key_major_correlation"] > 0.8
    assert found["key_major_minus_minor"] > 0.05
    assert (found["pitch_min"], found["pitch_max"], found["pitch_range"]) == (60, 72, 12)
    assert found["pitch_mean"] == pytest.approx(66.25)
    steps = {name: value for name, value in found.items() if name.startswith("top_line_interval") and value}
    assert steps == {"top_line_interval_1": pytest.approx(2 / 7), "top_line_interval_2": pytest.approx(5 / 7)}
    assert found["log_polyphony_mean"] == found["log_polyphony_max"] == pytest.approx(1)  # log2(1 + one voice)
    assert found["log_notes_per_second"] == pytest.approx(np.log2(1 + 2))
    assert found["log_inter_onset_mean"] == found["log_length_median"] == pytest.approx(np.log2(QUARTER_SECONDS))
    assert (found["tempo_mean"], found["tempo_std"]) == (120, 0)
    assert (found["velocity_mean"], found["velocity_std"], found["velocity_percentile_90"]) == (64, 0, 64)
    assert (found["meter_duple"], found["log_bar_quarters"]) == (1, 2)
    assert (found["family_piano"], found["drum_share"], found["silence_share"]) == (1, 0, 0)


@pytest.mark.parametrize("semitones", range(-11, 12))
def test_in_every_key_the_same(semitones: int) -> None:
    for scale, reference_tonic in ((C_MAJOR, 0), (A_MINOR, 9)):
        found, moved = features(line(*scale)), features(line(*(pitch + semitones for pitch in scale)))
        histogram = group(moved, "pitch_class_duration")
        assert estimate_key(histogram)[0] == (reference_tonic + semitones) % 12
        for prefix in ("tonic", "key", "top_line_interval", "above_bass", "inter_onset"):
            np.testing.assert_allclose(group(moved, prefix), group(found, prefix), atol=1e-12, err_msg=prefix)
        assert moved["pitch_mean"] - found["pitch_mean"] == pytest.approx(semitones)


def test_minor_differs_from_major() -> None:
    major, minor = features(line(*C_MAJOR)), features(line(*A_MINOR))
    assert major["key_major_minus_minor"] > 0.05 > -0.05 > minor["key_major_minus_minor"]
    assert major["tonic_count_4"] > major["tonic_count_3"]  # major third over the tonic
    assert minor["tonic_count_3"] > minor["tonic_count_4"]


def test_all_pitch_classes_alike_have_no_key() -> None:
    found = features(line(*range(60, 72)))
    assert (found["key_major_correlation"], found["key_minor_correlation"], found["key_clarity"]) == (0, 0, 0)


def test_duration_weighs_and_count_counts() -> None:
    found = features([(0, 3, 60), (3, 1, 67)])
    assert (found["pitch_class_duration_0"], found["pitch_class_count_0"]) == (0.75, 0.5)


def test_chords_and_silence() -> None:
    found = features([(0, 1, 60), (0, 1, 64), (0.02, 0.98, 67), (3, 1, 60)])  # a triad, 10 ms apart; two quarters' rest
    assert (found["above_bass_4"], found["above_bass_7"]) == (0.5, 0.5)
    assert found["top_line_interval_-7"] == 1
    assert found["silence_share"] == pytest.approx(0.5)
    assert found["log_polyphony_max"] == 2  # log2(1 + three voices)
    assert found["log_notes_per_onset"] == pytest.approx(np.log2(1 + 2))


@pytest.mark.parametrize(
    ("quarters", "bin_seconds", "bin_quarters"),
    [(0.25, 2, 1), (1 / 3, 2, 2), (0.5, 3, 3), (0.75, 3, 4), (1.0, 4, 5), (2.0, 5, 6), (4.0, 6, 7)],
)
def test_rhythm_in_seconds_and_in_quarters(quarters: float, bin_seconds: int, bin_quarters: int) -> None:
    notes = [(i * quarters, quarters / 2, 60) for i in range(5)]
    found = features(notes)
    assert found[f"inter_onset_seconds_{bin_seconds}"] == found[f"inter_onset_quarters_{bin_quarters}"] == 1
    half_speed = features(notes, bpm=60)
    assert half_speed[f"inter_onset_seconds_{bin_seconds + 1}"] == 1
    assert half_speed[f"inter_onset_quarters_{bin_quarters}"] == 1
    assert found["log_tempo"] - half_speed["log_tempo"] == pytest.approx(1)


def test_drums_stand_apart() -> None:
    found = features([(0, 1, 36), (1, 1, 38), (2, 1, 42), (3, 1, 42)], channel=9)
    assert (found["drum_kick"], found["drum_snare"], found["drum_hi_hat"]) == (0.25, 0.25, 0.5)
    assert found["drum_share"] == 1
    assert found["velocity_mean"] == 64
    for prefix in ("pitch", "tonic", "key", "top_line", "above_bass", "family", "inter_onset", "length"):
        assert not group(found, prefix).any(), prefix


def test_instrument_families() -> None:
    assert features(line(60), program=24)["family_guitar"] == 1  # nylon guitar, the first of its family
    assert features(line(60), program=127)["family_sound_effects"] == 1


def test_tempo_and_meter_count_by_their_time() -> None:
    score = replace(
        parse_midi(smf([(0, 8, 60)])),  # four seconds
        tempo_seconds=np.array([-2.0, 3.0, 9.0]),
        tempo_bpm=np.array([100.0, 200.0, 60e6]),
        time_signature_seconds=np.array([-2.0, 1.0]),
        time_signatures=np.array([[6, 8], [3, 4]], np.int16),
    )
    found = describe(score)
    assert found["tempo_mean"] == pytest.approx(125)
    assert (found["meter_compound"], found["meter_triple"], found["meter_duple"]) == (0.25, 0.75, 0)
    assert found["log_bar_quarters"] == pytest.approx(np.log2(3))


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 20), st.floats(0, 8), st.integers(0, 127)), min_size=1, max_size=40),
    st.integers(1, 127),
    st.sampled_from([0, 9]),
    st.integers(0, 127),
    st.floats(4, 60e6),
)
def test_any_notes_give_finite_vectors(
    notes: list[Note], velocity: int, channel: int, program: int, bpm: float
) -> None:
    score: Score = parse_midi(smf(notes, velocity, channel, program, bpm))
    found = describe(score)
    assert tuple(found) == FEATURE_NAMES
    values = np.array(list(found.values()))
    assert np.isfinite(values.astype(np.float16)).all()
    for prefix in ("pitch_class_duration", "pitch_class_count", "tonic_duration", "tonic_count", "family"):
        expected = 1 if len(score) and channel == 0 else 0
        assert group(found, prefix).sum() == pytest.approx(expected), prefix


def test_extreme_files_fit_float16() -> None:
    encoder = MIDIStatsEncoder()
    cluster = [(0.0, 0.0, pitch) for pitch in range(128)] * 8  # a thousand notes without any length
    for data in (smf(cluster), smf(cluster, bpm=60e6), smf([(0, 0.01, 0), (2500, 2500, 127)], bpm=4)):
        vector = encoder.prepare(RawMidi(data=data))
        assert vector is not None
        assert np.isfinite(vector.astype(np.float16)).all()
