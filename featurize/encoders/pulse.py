"""Tempo and pulse of an onset curve, by its autocorrelation.

Conventions: the onset curve is float `(n_frames,)`, `frames_per_second` apart. Strengths are autocorrelations over
lag 0, so 1 is a perfect repetition. Lags beyond half the curve are not read (too little overlaps), so a clip needs
three seconds for 40 BPM.

Source: Ellis, "Beat Tracking by Dynamic Programming", 2007 (autocorrelation, log-normal prior around 120 BPM).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]

LOWEST_BPM = 40.0
N_OCTAVES = 3  # 40 to 320 BPM
BANDS_PER_OCTAVE = 4
TEMPI_PER_BAND = 16  # 1.1% apart, finer than the lags of whole frames
PRIOR_BPM = 120.0
PRIOR_OCTAVES = 1.0  # standard deviation; of a pulse and its multiples the one people tap

LOWEST_VARIANCE = 1e-6  # dB squared: the onset curve of silence has 0

_STEPS = np.arange(N_OCTAVES * BANDS_PER_OCTAVE * TEMPI_PER_BAND)
TEMPI_BPM = LOWEST_BPM * 2.0 ** (_STEPS / (BANDS_PER_OCTAVE * TEMPI_PER_BAND))

PULSE_NAMES = (
    "tempo_log2_bpm",
    "pulse_clarity",
    *(f"pulse_strength[{bpm:.0f}_bpm]" for bpm in TEMPI_BPM[::TEMPI_PER_BAND]),
)


def pulse_features(onset: Floats, frames_per_second: float) -> Floats:
    """Tempo (log2 BPM; the prior's where nothing repeats), its strength, and the best strength in each tempo band."""
    strength = pulse_strength(onset, frames_per_second)
    prior = np.exp(-0.5 * (np.log2(TEMPI_BPM / PRIOR_BPM) / PRIOR_OCTAVES) ** 2)
    best = int(np.argmax(strength * prior))
    tempo_bpm = TEMPI_BPM[best] if strength[best] > 0 else PRIOR_BPM
    bands = strength.reshape(-1, TEMPI_PER_BAND).max(axis=1)
    return np.concatenate([[np.log2(tempo_bpm), strength[best]], bands])


def pulse_strength(onset: Floats, frames_per_second: float) -> Floats:
    """Autocorrelation of the onset curve at the lag of each of `TEMPI_BPM`, clipped to 0 or more."""
    n_lags = len(onset) // 2 + 1
    centred = onset.astype(np.float64) - onset.mean(dtype=np.float64)
    spectrum = np.fft.rfft(centred, 2 * len(onset))  # twice the length: no wrapping around
    overlap = len(onset) - np.arange(n_lags)  # by which a sum over fewer frames is made comparable
    autocorrelation = np.fft.irfft(np.abs(spectrum) ** 2)[:n_lags] / overlap
    strength = autocorrelation / (autocorrelation[0] + LOWEST_VARIANCE)
    lags = 60 * frames_per_second / TEMPI_BPM
    at_tempi: Floats = np.interp(lags, np.arange(n_lags), strength, right=0.0)
    return at_tempi.clip(0.0, 1.0)
