"""Describe the MIDI of a segment by statistics of its notes: no weights, no download, no chance.

Conventions
-----------
* `prepare` returns float32 (D,), named by `feature_names`; every value is finite and fits float16.
* Histograms sum to 1, or are all 0 where there is nothing to count. Pitches are MIDI numbers, intervals semitones,
  velocities 0 to 127. Names that start with `log` hold log2(1 + x) of a count or rate, or log2 of seconds or tempo.
* Drums (channel 10) count in the velocity and drum features alone; their pitches are instruments, not tones.
* An onset within `ONSET_GROUP_SECONDS` of the one before belongs to its group: a hand-played chord is one event.
* The key is the best of 24 correlations between the duration-weighted pitch-class histogram and the Krumhansl-Kessler
  profiles. `tonic` histograms are rotated so that class 0 is its tonic: major looks like major in every key.

Sources: key profiles, C. L. Krumhansl and E. J. Kessler, "Tracing the dynamic changes in perceived tonal organization
in a spatial representation of musical keys", Psychological Review 89, 1982, 334-368; key finding by correlation,
C. L. Krumhansl, "Cognitive Foundations of Musical Pitch", 1990, chapter 4; instrument families and percussion keys,
General MIDI Level 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featurize.encoders.base import Batch, Encoded, MIDIEncoder, stack_vectors
from featurize.midi import READING, Score, parse_midi

ONSET_GROUP_SECONDS = 0.03  # about the spread of notes meant as one; a 32nd at 180 bpm lasts 0.042 s
MAX_INTERVAL = 12  # a leap beyond the octave counts as one of an octave
SECONDS_EDGES = (0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0)  # octaves of time; the outer bins are open
QUARTERS_EDGES = (
    0.18,
    0.29,
    0.41,
    0.59,
    0.84,
    1.19,
    2.5,
)  # around 16th, 8th triplet, 8th, 8th dotted … half; outer open
SECONDS_FLOOR = 1e-3  # keeps log2 finite for zero lengths
BPM_RANGE = (10.0, 1000.0)  # outside, the tempo is a sequencer's trick
VELOCITY_PERCENTILES = (10, 50, 90)

MAJOR_PROFILE = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
MINOR_PROFILE = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)

FAMILIES = (
    *("piano", "chromatic_percussion", "organ", "guitar", "bass", "strings", "ensemble", "brass"),
    *("reed", "pipe", "synth_lead", "synth_pad", "synth_effects", "ethnic", "percussive", "sound_effects"),
)
DRUM_GROUPS = {  # General MIDI percussion keys; whatever is not named is hand percussion
    "kick": (35, 36),
    "snare": (37, 38, 39, 40),
    "tom": (41, 43, 45, 47, 48, 50),
    "hi_hat": (42, 44, 46),
    "cymbal": (49, 51, 52, 53, 55, 57, 59),
}

Features = dict[str, float]


class MIDIStatsEncoder(MIDIEncoder):
    """Key, pitch, melody, harmony, rhythm, dynamics, tempo and instruments of a segment, as one vector."""

    name = "midi_stats"
    libraries = ("symusic", "mido", "numpy")

    def __init__(self) -> None:
        super().__init__()
        self.width = len(self.feature_names)
        self.settings = {
            "features": list(self.feature_names),
            "onset_group_seconds": ONSET_GROUP_SECONDS,
            "max_interval_semitones": MAX_INTERVAL,
            "histogram_edges_seconds": list(SECONDS_EDGES),
            "histogram_edges_quarters": list(QUARTERS_EDGES),
            "seconds_floor": SECONDS_FLOOR,
            "bpm_range": list(BPM_RANGE),
            "major_profile": list(MAJOR_PROFILE),
            "minor_profile": list(MINOR_PROFILE),
            "drum_groups": {group: list(keys) for group, keys in DRUM_GROUPS.items()},
            **READING,
        }

    @property
    def feature_names(self) -> tuple[str, ...]:
        """What the columns of a vector are, in order."""
        return FEATURE_NAMES

    def prepare_score(self, score: Score) -> np.ndarray:
        return np.fromiter(describe(score).values(), np.float32, count=self.width)

    def collate(self, items: Sequence[np.ndarray]) -> Batch:
        return stack_vectors(items)

    def forward(self, batch: Batch) -> Encoded:
        return Encoded(pooled=batch["vectors"])


def describe(score: Score) -> Features:
    """All features of `score` by name; the names and their order are the same for every score."""
    tones, drums = score.select(~score.is_drum), score.select(score.is_drum)
    group_starts = np.flatnonzero(np.diff(tones.onset_seconds, prepend=-np.inf) > ONSET_GROUP_SECONDS)
    return {
        **_key(tones),
        **_pitch(tones),
        **_melody_and_harmony(tones, group_starts),
        **_texture(tones, len(group_starts)),
        **_rhythm(tones, group_starts),
        **_velocity(score),
        **_tempo(score),
        **_time_signature(score),
        **_instruments(tones),
        **_drums(score, drums),
    }


def estimate_key(histogram: np.ndarray) -> tuple[int, np.ndarray]:
    """Tonic (pitch class) of the best key, and all correlations (2, 12): major and minor by tonic.

    histogram: (12,), C first. Without any difference between its classes, all correlations are 0, and so is the tonic.
    """
    rotations = np.stack([np.roll(histogram, -tonic) for tonic in range(12)])
    profiles = np.array([MAJOR_PROFILE, MINOR_PROFILE])
    rotations = rotations - rotations.mean()
    profiles = profiles - profiles.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(profiles, axis=1)[:, None] * np.linalg.norm(rotations, axis=1)[None]
    correlations = np.divide(profiles @ rotations.T, norms, out=np.zeros((2, 12)), where=norms > 1e-9)
    tonic = int(
        np.argmax(correlations.round(9).max(axis=0))
    )  # rounded: equal keys stay equal, and the lowest tonic wins
    return tonic, correlations


def _key(tones: Score) -> Features:
    classes = tones.pitch % 12
    counts = _share(np.bincount(classes, minlength=12))
    durations = np.bincount(classes, weights=tones.offset_seconds - tones.onset_seconds, minlength=12)
    durations = _share(durations) if durations.sum() > 0 else counts  # zero-length notes only
    tonic, correlations = estimate_key(durations)
    second, best = np.sort(correlations.max(axis=0))[-2:]
    return {
        **_named("pitch_class_duration", range(12), durations),
        **_named("pitch_class_count", range(12), counts),
        **_named("tonic_duration", range(12), np.roll(durations, -tonic)),
        **_named("tonic_count", range(12), np.roll(counts, -tonic)),
        "key_major_correlation": correlations[0].max(),
        "key_minor_correlation": correlations[1].max(),
        "key_major_minus_minor": correlations[0].max() - correlations[1].max(),
        "key_clarity": best - second,
    }


def _pitch(tones: Score) -> Features:
    pitch = tones.pitch.astype(float) if len(tones) else np.zeros(1)
    return {
        "pitch_min": pitch.min(),
        "pitch_max": pitch.max(),
        "pitch_range": pitch.max() - pitch.min(),
        "pitch_mean": pitch.mean(),
        "pitch_median": np.median(pitch),
        "pitch_std": pitch.std(),
    }


def _melody_and_harmony(tones: Score, group_starts: np.ndarray) -> Features:
    """The top line is each onset group's highest note; harmony is what is struck above the group's lowest note."""
    top = np.maximum.reduceat(tones.pitch, group_starts)
    bass = np.minimum.reduceat(tones.pitch, group_starts)
    steps = np.clip(np.diff(top), -MAX_INTERVAL, MAX_INTERVAL)
    intervals = _share(np.bincount(steps + MAX_INTERVAL, minlength=2 * MAX_INTERVAL + 1))
    above_bass = tones.pitch - np.repeat(bass, np.diff(group_starts, append=len(tones)))
    return {
        "top_line_mean": _mean(top),
        "top_line_std": _std(top),
        "bass_line_mean": _mean(bass),
        "bass_line_std": _std(bass),
        "top_line_mean_step": _mean(np.abs(steps)),
        **_named("top_line_interval", range(-MAX_INTERVAL, MAX_INTERVAL + 1), intervals),
        **_named("above_bass", range(12), _share(np.bincount(above_bass[above_bass > 0] % 12, minlength=12))),
    }


def _texture(tones: Score, n_groups: int) -> Features:
    """Polyphony is the number of sounding notes, over the time of the segment."""
    seconds = np.concatenate([[0.0], tones.onset_seconds, tones.offset_seconds, [tones.duration_seconds]])
    change = np.concatenate([[0], np.ones(len(tones)), -np.ones(len(tones)), [0]])
    order = np.argsort(seconds)
    weight = _share(np.diff(seconds[order]))
    lasts = weight > 0  # between changes at one moment the count means nothing
    weight, sounding = weight[lasts], np.cumsum(change[order])[:-1][lasts]
    mean = float(weight @ sounding)
    return {
        "log_polyphony_mean": np.log2(1 + mean),
        "log_polyphony_std": np.log2(1 + np.sqrt(weight @ (sounding - mean) ** 2)),
        "log_polyphony_max": np.log2(1 + sounding.max(initial=0)),
        "silence_share": float(weight[sounding < 0.5].sum()),
        "log_notes_per_second": _log_rate(len(tones), tones),
        "log_onsets_per_second": _log_rate(n_groups, tones),
        "log_notes_per_onset": np.log2(1 + len(tones) / max(n_groups, 1)),
    }


def _rhythm(tones: Score, group_starts: np.ndarray) -> Features:
    """Inter-onset intervals between successive onset groups, in seconds and in quarter notes; and note lengths."""
    onsets = tones.onset_seconds[group_starts]
    between, lengths = np.diff(onsets), tones.offset_seconds - tones.onset_seconds
    between_quarters = np.diff(tones.quarters_at(onsets))
    bins = range(len(SECONDS_EDGES) + 1)
    return {
        **_log_statistics("inter_onset", between),
        "inter_onset_variation": _std(between) / max(_mean(between), SECONDS_FLOOR),
        **_named("inter_onset_seconds", bins, _binned(between, SECONDS_EDGES)),
        **_named("inter_onset_quarters", bins, _binned(between_quarters, QUARTERS_EDGES)),
        **_log_statistics("length", lengths),
        **_named("length_seconds", bins, _binned(lengths, SECONDS_EDGES)),
    }


def _velocity(score: Score) -> Features:
    percentiles = np.percentile(score.velocity, VELOCITY_PERCENTILES) if len(score) else np.zeros(3)
    return {
        "velocity_mean": _mean(score.velocity),
        "velocity_std": _std(score.velocity),
        **_named("velocity_percentile", VELOCITY_PERCENTILES, percentiles),
    }


def _tempo(score: Score) -> Features:
    """Weighted by how long each tempo lasts within the segment."""
    bpm = np.clip(score.tempo_bpm, *BPM_RANGE)
    weight = _time_in_force(score.tempo_seconds, score.duration_seconds)
    mean = float(weight @ bpm)
    return {
        "tempo_mean": mean,
        "tempo_std": float(np.sqrt(weight @ (bpm - mean) ** 2)),
        "log_tempo": np.log2(mean),
        "log_tempo_changes": np.log2(1 + np.count_nonzero(score.tempo_seconds > 0)),
    }


def _time_signature(score: Score) -> Features:
    weight = _time_in_force(score.time_signature_seconds, score.duration_seconds)
    numerator, denominator = score.time_signatures.T.astype(float)
    duple, triple = (numerator == 2) | (numerator == 4), numerator == 3
    compound = (numerator == 6) | (numerator == 9) | (numerator == 12)
    return {
        "meter_duple": float(weight @ duple),
        "meter_triple": float(weight @ triple),
        "meter_compound": float(weight @ compound),
        "meter_other": float(weight @ ~(duple | triple | compound)),
        "log_bar_quarters": float(weight @ np.log2(4 * numerator / denominator)),
        "log_meter_changes": np.log2(1 + np.count_nonzero(score.time_signature_seconds > 0)),
    }


def _instruments(tones: Score) -> Features:
    return {
        **_named("family", FAMILIES, _share(np.bincount(tones.program // 8, minlength=16))),
        "log_programs": np.log2(1 + np.count_nonzero(np.bincount(tones.program))),
    }


def _drums(score: Score, drums: Score) -> Features:
    strokes = np.bincount(drums.pitch, minlength=128)
    hits = [strokes[list(keys)].sum() for keys in DRUM_GROUPS.values()]
    hits.append(len(drums) - sum(hits))
    return {
        "drum_share": len(drums) / max(len(score), 1),
        "log_drums_per_second": _log_rate(len(drums), score),
        **_named("drum", (*DRUM_GROUPS, "hand_percussion"), _share(np.array(hits))),
    }


def _time_in_force(seconds: np.ndarray, duration_seconds: float) -> np.ndarray:
    """Share of the segment for which each event holds, from its time to the next event's."""
    edges = np.clip(np.append(seconds, np.inf), 0, duration_seconds)
    spans = np.diff(edges)
    if spans.sum() > 0:
        return _share(spans)
    return _share(np.arange(len(seconds)) == np.searchsorted(seconds, 0, side="right") - 1)  # a segment of no length


def _log_rate(count: int, score: Score) -> float:
    return float(np.log2(1 + count / max(score.duration_seconds, SECONDS_FLOOR)))


def _log_statistics(name: str, seconds: np.ndarray) -> Features:
    logs = np.log2(np.maximum(seconds, SECONDS_FLOOR))
    median = float(np.median(logs)) if len(logs) else 0.0
    return {f"log_{name}_mean": _mean(logs), f"log_{name}_std": _std(logs), f"log_{name}_median": median}


def _binned(values: np.ndarray, edges: Sequence[float]) -> np.ndarray:
    return _share(np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1))


def _share(amounts: np.ndarray) -> np.ndarray:
    return np.asarray(amounts / max(amounts.sum(), np.finfo(float).tiny))


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _std(values: np.ndarray) -> float:
    return float(values.std()) if len(values) else 0.0


def _named(prefix: str, labels: Sequence[object], values: np.ndarray) -> Features:
    return {f"{prefix}_{label}": float(value) for label, value in zip(labels, values, strict=True)}


_SILENT_FILE = b"MThd\0\0\0\6\0\0\0\1\1\xe0MTrk\0\0\0\4\0\xff\x2f\0"
FEATURE_NAMES = tuple(describe(parse_midi(_SILENT_FILE)))  # the describing code is the one list of names
