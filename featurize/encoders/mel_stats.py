"""Encode audio by statistics over its frames: what it sounds like, without any weights.

Goal: an embedded default that needs no download and no GPU, and an honest baseline for the encoders that do.

Conventions
-----------
* Tables are float32, shape `(n_frames, n_columns)`, one row per analysis frame; frames lie wholly inside the audio
  (shorter audio is padded with zeros to one), `hop_length` samples apart.
* Magnitudes are scaled so that a full-scale sine reads 1 in its bin, 0 dB; RMS is in dB of the waveform itself.
* Floors are absolute, never relative to the clip's loudest frame: level stays in the vector, a vector depends on
  nothing else, and silence has one value.
* dB, octaves (log2 Hz) and shares keep every number far inside float16.

Sources: log-mel and MFCC, Davis and Mermelstein 1980; chroma and pulse prior, Ellis 2007; spectral contrast, Jiang et
al. 2002; key profiles, Krumhansl and Kessler 1982; spectral shape and onset strength after Peeters 2004.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import librosa
import numpy as np
import scipy.fft
from numpy.lib.stride_tricks import sliding_window_view

from featurize.audio import RESAMPLER, Waveform
from featurize.encoders.base import AudioEncoder, Batch, Encoded, stack_vectors
from featurize.encoders.pulse import PULSE_NAMES, pulse_features

Table = Waveform  # float32 too, but (n_frames, n_columns)

BLOCK_FRAMES = 256  # analysed at once: 2 MB per array stays in cache, and an hour of audio in memory

# Added to each bin's magnitude. Below 16-bit noise, above the rounding of a float32 FFT; silence reads as white noise.
MAGNITUDE_FLOOR = 1e-6
POWER_FLOOR = 1e-10  # -100 dB: 16-bit noise, so that a silence reads the same from a float and a 16-bit file

ROLLOFF_SHARE = 0.85  # of the magnitude lies below the roll-off frequency
CONTRAST_FIRST_EDGE_HZ = 200.0  # then octaves, as Jiang et al.
CONTRAST_OCTAVES = 6
CONTRAST_SHARE = 0.02  # of a band's bins make its peak, and its valley
DELTA_REACH_FRAMES = 4  # regression over 9 frames, the width of librosa's `feature.delta`
LOWEST_HZ = 1.0  # for log2, where all energy is at 0 Hz

# Correlated with all rotations of the mean chroma: how clear is the best major and the best minor key?
KEY_PROFILES = {
    "major": (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88),
    "minor": (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17),
}

SCALAR_STATISTICS = ("mean", "std", "p10", "p50", "p90")
STATISTICS: dict[str, tuple[str, ...]] = {
    "log_mel_db": ("mean", "std"),
    "mfcc": ("mean", "std"),
    "mfcc_delta": ("std",),  # its mean is the difference of the two ends
    "chroma": ("mean", "std"),
    "contrast_db": ("mean", "std"),
    "centroid_log2_hz": SCALAR_STATISTICS,
    "bandwidth_log2_hz": SCALAR_STATISTICS,
    "rolloff_log2_hz": SCALAR_STATISTICS,
    "flatness_db": SCALAR_STATISTICS,
    "rms_db": SCALAR_STATISTICS,
    "zero_crossing_rate": SCALAR_STATISTICS,
    "onset_db": SCALAR_STATISTICS,
}


class MelStatsEncoder(AudioEncoder):
    """Statistics of log-mel, MFCC, chroma, contrast, spectral shape, level and onsets, and the pulse.

    `feature_names` says what each of the D columns is. The whole segment is one window: statistics over frames do not
    depend on its length.
    """

    name = "mel_stats"
    libraries = ("librosa", "numpy", "scipy", "soundfile", "soxr")

    def __init__(
        self,
        *,
        sample_rate_hz: int = 22050,
        n_fft: int = 2048,
        hop_length: int = 512,
        n_mels: int = 64,
        n_mfcc: int = 20,
        duration_seconds: float | None = None,
    ):
        super().__init__()
        if n_mfcc > n_mels:
            raise ValueError(f"n_mfcc is {n_mfcc}; expected at most n_mels, {n_mels}")
        self.sample_rate_hz, self.duration_seconds = sample_rate_hz, duration_seconds
        self.n_fft, self.hop_length, self.n_mfcc = n_fft, hop_length, n_mfcc
        self.settings = {
            "sample_rate_hz": sample_rate_hz,
            "duration_seconds": duration_seconds,
            "n_fft_samples": n_fft,
            "hop_length_samples": hop_length,
            "n_mels": n_mels,
            "n_mfcc": n_mfcc,
            "resampler": RESAMPLER,
            "power_floor_db": 10 * np.log10(POWER_FLOOR).item(),
            "magnitude_floor_db": 20 * np.log10(MAGNITUDE_FLOOR).item(),
            "statistics_version": 1,  # raise it when a formula below or in `pulse` changes a number
        }
        # Plain arrays rather than buffers: they follow from the parameters, and are no weights.
        self._window = np.hanning(n_fft + 1)[:-1].astype(np.float32)
        self._window *= 2 / self._window.sum()
        self._bin_hz = np.fft.rfftfreq(n_fft, 1 / sample_rate_hz).astype(np.float32)
        self._mel_weights = librosa.filters.mel(sr=sample_rate_hz, n_fft=n_fft, n_mels=n_mels, norm=None).T
        self._chroma_weights = librosa.filters.chroma(sr=sample_rate_hz, n_fft=n_fft, tuning=0.0).T
        octaves = CONTRAST_FIRST_EDGE_HZ * 2.0 ** np.arange(CONTRAST_OCTAVES)
        # From bin 1: bin 0 is DC, which is no music, and as a band's valley it swung by 40 dB between file formats.
        edges = [1, *np.searchsorted(self._bin_hz, octaves[octaves < sample_rate_hz / 2]).tolist(), len(self._bin_hz)]
        self._contrast_bins = [slice(low, high) for low, high in pairwise(edges) if high > low]
        self.width = len(self.feature_names)

    @classmethod
    def options_of(cls, parameters: Mapping[str, Any]) -> dict[str, Any]:
        sizes = {option: parameters[f"{option}_samples"] for option in ("n_fft", "hop_length")}
        return super().options_of({**parameters, **sizes})

    @cached_property
    def feature_names(self) -> list[str]:
        """What each of the D columns holds, e.g. `chroma[9].mean` (pitch class A; 0 is C) or `rms_db.p90`."""
        table = self._frame_table(np.zeros(self.n_fft, dtype=np.float32))
        names = []
        for column, statistics in STATISTICS.items():
            n_columns = table[column].shape[1]
            labels = [column] if n_columns == 1 else [f"{column}[{index}]" for index in range(n_columns)]
            names += [f"{label}.{statistic}" for statistic in statistics for label in labels]
        return names + [f"key_clarity.{mode}" for mode in KEY_PROFILES] + list(PULSE_NAMES)

    def prepare_waveform(self, samples: Waveform) -> Waveform:
        """The vector: float32, shape `(D,)`, finite for any audio that `load_mono` returns."""
        n_missing = max(0, self.n_fft - len(samples))
        samples = np.pad(samples, (n_missing // 2, n_missing - n_missing // 2))  # centred, where the window is open
        table = self._frame_table(samples)
        parts = [_statistic(statistic, table[name]) for name, wanted in STATISTICS.items() for statistic in wanted]
        parts.append(_key_clarity(_statistic("mean", table["chroma"])))
        parts.append(pulse_features(table["onset_db"][:, 0], self.sample_rate_hz / self.hop_length))
        return np.concatenate(parts).astype(np.float32)

    def collate(self, items: Sequence[Waveform]) -> Batch:
        return stack_vectors(items)

    def forward(self, batch: Batch) -> Encoded:
        return Encoded(pooled=batch["vectors"])

    def _frame_table(self, samples: Waveform) -> dict[str, Table]:
        frames = sliding_window_view(samples, self.n_fft)[:: self.hop_length]
        blocks = [
            self._block_columns(frames[first : first + BLOCK_FRAMES]) for first in range(0, len(frames), BLOCK_FRAMES)
        ]
        table = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
        table["mfcc_delta"] = _delta(table["mfcc"])
        rise_db = np.maximum(np.diff(table["log_mel_db"], axis=0, prepend=table["log_mel_db"][:1]), 0)
        table["onset_db"] = rise_db.mean(axis=1, keepdims=True)
        return table

    def _block_columns(self, frames: Table) -> dict[str, Table]:
        """Everything that needs one frame at a time. frames: (n_frames, n_fft)."""
        spectrum = scipy.fft.rfft(frames * self._window, axis=1)
        power = spectrum.real**2 + spectrum.imag**2
        log_mel_db = _decibels(power @ self._mel_weights)
        chroma = power @ self._chroma_weights
        magnitude = np.sqrt(power) + np.float32(MAGNITUDE_FLOOR)
        share = magnitude / magnitude.sum(axis=1, keepdims=True)
        centroid_hz = share @ self._bin_hz
        mean_square_hz = share @ self._bin_hz**2
        bandwidth_hz = np.sqrt(np.maximum(mean_square_hz - centroid_hz**2, 0))
        rolloff_hz = self._bin_hz[(share.cumsum(axis=1) < ROLLOFF_SHARE).sum(axis=1).clip(max=len(self._bin_hz) - 1)]
        log_magnitude_db = 20 * np.log10(magnitude)
        flatness_db = log_magnitude_db.mean(axis=1) - 10 * np.log10((magnitude**2).mean(axis=1))
        crossings = np.diff(frames < 0, axis=1).mean(axis=1, dtype=np.float32)
        columns = {
            "log_mel_db": log_mel_db,
            "mfcc": scipy.fft.dct(log_mel_db, axis=1, norm="ortho")[:, : self.n_mfcc],
            "chroma": chroma / (chroma.sum(axis=1, keepdims=True) + POWER_FLOOR),
            "contrast_db": np.stack([_contrast_db(magnitude[:, bins]) for bins in self._contrast_bins], axis=1),
            "centroid_log2_hz": np.log2(np.maximum(centroid_hz, LOWEST_HZ)),
            "bandwidth_log2_hz": np.log2(np.maximum(bandwidth_hz, LOWEST_HZ)),
            "rolloff_log2_hz": np.log2(np.maximum(rolloff_hz, LOWEST_HZ)),
            "flatness_db": flatness_db,
            "rms_db": _decibels(np.einsum("ij,ij->i", frames, frames) / self.n_fft),
            "zero_crossing_rate": crossings,
        }
        return {name: column.reshape(len(frames), -1) for name, column in columns.items()}


def _decibels(power: Table) -> Table:
    decibels: Table = 10 * np.log10(power + POWER_FLOOR)
    return decibels


def _contrast_db(band: Table) -> Table:
    """Peak over valley, each the mean of the outermost share of bins. band: magnitude, `(n_frames, n_bins)`."""
    n_outermost = max(1, round(CONTRAST_SHARE * band.shape[1]))
    ordered = np.sort(band, axis=1)
    valley, peak = ordered[:, :n_outermost].mean(axis=1), ordered[:, -n_outermost:].mean(axis=1)
    contrast: Table = 20 * np.log10(peak / valley)
    return contrast


def _delta(table: Table) -> Table:
    """Slope per frame by linear regression; the edge frames are repeated, so that any number of frames will do."""
    reach = DELTA_REACH_FRAMES
    padded = np.pad(table, ((reach, reach), (0, 0)), mode="edge")
    offsets = np.arange(-reach, reach + 1, dtype=np.float32)
    weights = offsets / (offsets**2).sum()
    slope: Table = np.sum([weight * padded[i : i + len(table)] for i, weight in enumerate(weights)], axis=0)
    return slope


def _statistic(statistic: str, columns: Table) -> Table:
    """One number per column, summed in float64: in float32 an hour of frames drifts by 0.001 dB."""
    if statistic == "mean":
        found: Table = columns.mean(axis=0, dtype=np.float64)
    elif statistic == "std":
        found = columns.std(axis=0, dtype=np.float64)
    else:
        found = np.percentile(columns, int(statistic.removeprefix("p")), axis=0)
    return found


def _key_clarity(mean_chroma: Table) -> Table:
    """Best correlation of the mean chroma with the key profile of each mode over the 12 tonics, in -1 to 1."""
    centred = mean_chroma - mean_chroma.mean()
    norm = np.linalg.norm(centred) + 1e-6  # chroma are shares of 1: no tonality gives 0, not 0/0
    clarity = []
    for profile in KEY_PROFILES.values():
        key = np.array(profile) - np.mean(profile)
        keys = np.stack([np.roll(key, tonic) for tonic in range(12)])
        clarity.append((keys @ centred).max() / (norm * np.linalg.norm(key)))
    return np.array(clarity, dtype=np.float32)
