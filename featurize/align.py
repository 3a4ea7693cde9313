"""Do an audio segment and a MIDI segment belong together, and by how much are they shifted?

Method
------
1. *Which pitches begin when.* The audio becomes one onset curve per semitone: how its compressed energy rises, less
   what its neighbours rise by (drums, noise). The MIDI becomes the same picture, from its notes and their
   harmonics. The offset is where the two correlate best; each lag is normalised by what overlaps at it.
2. *Against surrogates.* How high a correlation ought to be depends on the music, its length and the noise. So the same
   MIDI is also tried in the other eleven keys, and backwards in all twelve: 23 surrogates with as many notes, as dense
   and as rhythmic. To the audio of another piece the MIDI is one of 24 strangers, and the best of them about once in 24
   times; of its own piece it is ahead of them all. `lead` says by how much.
3. *To the millisecond.* Around that offset, the onsets of all notes, drums too, meet a curve of short windows, in which
   sharp attacks stand out. Step 1 alone takes notes with slow attacks for late ones.

Conventions
-----------
* `offset_seconds` is added to a time in the MIDI to get the time of the same event in the audio: positive where the
  MIDI must move later. Both count from the start of their own segment.
* One offset holds for the whole segment. A tempo that differs by 0.5% does no harm to 30 s, nor 1% to 20 s.
* Percussion sharpens the offset and has no say in whether the two belong together: a beat fits many pieces.
* Curves are float `(n_frames, n_bands)`; frame i is centred on sample i · hop.

Sources: spectral flux in bands, Bello et al., "A Tutorial on Onset Detection in Music Signals", 2005; onsets by pitch
to align scores with audio, Ewert, Müller and Grosche, "High Resolution Audio Synchronization Using Chroma Onset
Features", 2009; ranks among surrogates, Theiler et al., "Testing for Nonlinearity in Time Series", 1992.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.fft
import scipy.ndimage
import soxr
from numpy.lib.stride_tricks import sliding_window_view

from featurize.audio import RESAMPLE_QUALITY, Waveform
from featurize.midi import Score

Curves = npt.NDArray[np.floating]

RATE_HZ = 22_050  # leaves 11 kHz, where hats and attacks still are
BLOCK_FRAMES = 256  # transformed at once, so that long audio takes little more memory than short
LEAST_LEVEL = 1e-4  # RMS, -80 dB: audio below it is silence
ENERGY_FLOOR = 1e-9  # -90 dB of a full-scale sine, added to a band's mean: dither makes no onsets

# Step 1. Windows of 186 ms tell semitones apart from A3 (220 Hz) up; lower notes are told by their harmonics.
PITCH_WINDOW, PITCH_HOP = 4096, 441  # samples; a hop is 20 ms
LOWEST_PITCH, HIGHEST_PITCH = 36, 95  # 65 Hz to 2 kHz: few notes have their fundamental above
PITCH_RISE_FRAMES = 2  # 40 ms, within which most attacks are over
PITCH_COMPRESSION = 3.0  # log(1 + this · energy / mean energy): low, for what rises from next to nothing seems early
UNPITCHED_SEMITONES, UNPITCHED_PERCENTILE = 13, 75  # a drum makes most semitones around rise; a tone, one in six
RISE_EXPONENT = 0.5  # a strong onset outweighs a weak one, less than in proportion
HARMONICS = ((0, 1.0), (12, 0.6), (19, 0.4), (24, 0.3), (28, 0.2), (31, 0.15))  # semitones above the note; strength
SMOOTHING_FRAMES = 1.0  # standard deviation, 20 ms: what players and sequencers differ by

# Step 2.
TRANSPOSITIONS = (0, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6)  # semitones: each key once, as near as can be

# Step 3.
FINE_WINDOW, FINE_HOP = 512, 110  # samples: 23 ms and 5 ms
FINE_RISE_FRAMES = 2
FINE_COMPRESSION = 100.0  # high: where there is no pitch to go by, weak attacks are needed too
FINE_BAND_EDGES_HZ = np.geomspace(60.0, 10_000.0, 17)  # bands of about five semitones
FINE_REACH_SECONDS = 0.06  # slow attacks delay step 1 by less
FINE_MERGED_SECONDS = 0.001  # notes of a chord, which count by the root of their summed velocity

MAX_OFFSET_SECONDS = 2.0
EDGE_FRAMES = 3  # searched beyond the largest offset, so that it has neighbours too
LEAST_OVERLAP = 0.5  # of the shorter segment
CUT_SECONDS = 0.001  # notes that sound at the start of a segment begin here, wherever they really began
SAME_ONSET_SECONDS = 0.03  # notes closer than this are one onset

# The rule. The limits were set on demo songs played by `demo.synth` (2 to 20 s, clean to 5 dB, drums up to 16 times as
# loud): of 1,661 pairs that belong together 0.2% had a lead under `SURELY_APART`, and of 1,997 that do not 2% had one
# over `SURELY_TOGETHER`. With 7 to 12 onsets the first share was 0.5%, but 3% with the second player of
# `benchmarks.alignment`, and 10 to 16% where the MIDI was of real songs: so few must lose by more to be called apart.
SURELY_APART, SURELY_APART_OF_FEW, SURELY_TOGETHER = 1.05, 0.9, 1.1
MANY_ONSETS, LEAST_ONSETS_APART, LEAST_ONSETS_TOGETHER = 13, 7, 4
AMBIGUOUS = 0.9  # of the pairs that belong together, 99 in 100 had a second-best offset under 0.65


@dataclass(frozen=True)
class Alignment:
    """What `measure` found. The four numbers are NaN where there is nothing to compare.

    offset_seconds: MIDI time + offset = audio time; a guess where not `aligned`.
    score: correlation at that offset, at most 1. Audio made from the MIDI has 0.15 to 0.6; a recording of the song the
    MIDI is a version of, if it fits at all, 0.05 to 0.2; strangers have the less, the longer they are.
    lead: `score` over the best of the 23 surrogates'.
    second_best: the correlation at the next best offset over that at the best, 0 to 1; near 1 they are a toss-up.
    n_onsets: how many onsets of pitched notes the MIDI has within the audio, at that offset.
    aligned: do the two belong together, at this offset? `None` where it cannot be told.
    reason: of `aligned`, in words.
    """

    offset_seconds: float
    score: float
    lead: float
    second_best: float
    n_onsets: int
    aligned: bool | None
    reason: str


def measure(
    samples: Waveform, sample_rate_hz: int, score: Score, max_offset_seconds: float = MAX_OFFSET_SECONDS
) -> Alignment:
    """How well a MIDI segment fits an audio segment. samples: float32 `(n_samples,)`, mono, full scale ±1.

    Offsets are sought up to `max_offset_seconds` either way, and while the two overlap by half of the shorter.
    """
    if samples.ndim != 1:
        raise ValueError(f"samples have shape {samples.shape}; expected mono, (n_samples,)")
    if sample_rate_hz <= 0:
        raise ValueError(f"sample_rate_hz is {sample_rate_hz}; expected more than 0")
    if not 0 < max_offset_seconds < np.inf:
        raise ValueError(f"max_offset_seconds is {max_offset_seconds}; expected a finite number above 0")
    notes = score.select(score.onset_seconds > CUT_SECONDS)
    tones = notes.select(~notes.is_drum)
    if len(tones) == 0:
        return _not_measured("no pitched note begins in the MIDI")
    if len(samples) == 0 or np.sqrt(np.mean(np.square(samples, dtype=np.float64))) < LEAST_LEVEL:
        return _not_measured(f"the audio is silent (below {20 * np.log10(LEAST_LEVEL):.0f} dB)")
    if sample_rate_hz != RATE_HZ:
        samples = soxr.resample(samples, sample_rate_hz, RATE_HZ, quality=RESAMPLE_QUALITY)

    heard = _heard_onsets(samples)
    written = _written_onsets(tones, 1 + int(score.duration_seconds * RATE_HZ / PITCH_HOP))
    wanted = int(np.ceil(max_offset_seconds * RATE_HZ / PITCH_HOP)) + EDGE_FRAMES
    reach = min(wanted, int((1 - LEAST_OVERLAP) * min(len(heard), len(written))))
    original, *surrogates = _correlations(heard, written, reach)
    best = int(original.argmax())
    height = float(original[best])
    coarse_frames = best - reach + _vertex(original, best) - PITCH_RISE_FRAMES / 2
    offset_seconds = _refine(samples, notes, coarse_frames * PITCH_HOP / RATE_HZ)
    in_audio = np.abs((tones.onset_seconds + offset_seconds) * RATE_HZ - len(samples) / 2) <= len(samples) / 2
    n_onsets = _count_onsets(tones.onset_seconds[in_audio])
    lead = max(height, 0.0) / max(float(np.max(surrogates)), ENERGY_FLOOR)
    second = _second_peak(original, best) / max(height, ENERGY_FLOOR)
    aligned, reason = _decide(n_onsets, lead, second, best in (0, 2 * reach), reach * PITCH_HOP / RATE_HZ)
    return Alignment(offset_seconds, height, lead, min(second, 1.0), n_onsets, aligned, reason)


def _second_peak(curve: npt.NDArray[np.floating], best: int) -> float:
    """The highest of the local maxima beside the best one, and 0 where none is higher. curve: (n,)."""
    inner = curve[1:-1]
    peaks = 1 + np.flatnonzero((inner > curve[:-2]) & (inner > curve[2:]))
    return float(curve[peaks[peaks != best]].max(initial=0.0))


def _decide(
    n_onsets: int, lead: float, second_best: float, at_edge: bool, reach_seconds: float
) -> tuple[bool | None, str]:
    apart = SURELY_APART if n_onsets >= MANY_ONSETS else SURELY_APART_OF_FEW
    needed = LEAST_ONSETS_APART if lead < apart else LEAST_ONSETS_TOGETHER
    if n_onsets < needed:
        return None, f"too few onsets of pitched notes within the audio ({n_onsets}; at least {needed} are needed)"
    if lead < apart:
        return False, (
            f"within ±{reach_seconds:.1f} s the MIDI fits no better than transposed or reversed"
            f" (lead {lead:.2f}; expected {SURELY_TOGETHER} or more)"
        )
    if lead < SURELY_TOGETHER:
        return None, f"the MIDI fits about as well as transposed or reversed (lead {lead:.2f}), which may be chance"
    if at_edge:
        return None, f"the MIDI fits best at the end of the offsets that were tried, ±{reach_seconds:.1f} s"
    if second_best > AMBIGUOUS:
        return None, f"another offset fits nearly as well ({second_best:.0%}); the music may repeat"
    return True, f"the MIDI fits {lead:.2f} times as well as transposed or reversed"


def _not_measured(reason: str) -> Alignment:
    nan = float("nan")
    return Alignment(nan, nan, nan, nan, 0, None, reason)


def _count_onsets(ascending_seconds: np.ndarray) -> int:
    """Of notes closer together than `SAME_ONSET_SECONDS`, only the first counts."""
    return int((np.diff(ascending_seconds, prepend=-np.inf) > SAME_ONSET_SECONDS).sum())


def _heard_onsets(samples: Waveform) -> Curves:
    """How strongly each semitone begins to sound, at least 0: (n_frames, n_pitches)."""
    rise = _rise(samples, PITCH_WINDOW, PITCH_HOP, _semitone_weights(), PITCH_COMPRESSION, PITCH_RISE_FRAMES)
    around = scipy.ndimage.percentile_filter(rise, UNPITCHED_PERCENTILE, size=(1, UNPITCHED_SEMITONES), mode="nearest")
    strength: Curves = np.maximum(rise - around, 0) ** RISE_EXPONENT
    return strength


def _written_onsets(tones: Score, n_frames: int) -> Curves:
    """The same from notes, with as many more semitones above and below as transpositions need."""
    margin = max(TRANSPOSITIONS)
    n_bands = HIGHEST_PITCH - LOWEST_PITCH + 1 + 2 * margin
    onsets = np.zeros((n_frames + 1, n_bands))
    position = tones.onset_seconds * RATE_HZ / PITCH_HOP
    frame = position.astype(np.int64)
    to_next = position - frame
    for semitones, strength in HARMONICS:
        band = tones.pitch.astype(np.int64) + semitones - LOWEST_PITCH + margin
        weight = strength * tones.velocity / 127
        kept = (band >= 0) & (band < n_bands) & (frame < n_frames)
        np.add.at(onsets, (frame[kept], band[kept]), (weight * (1 - to_next))[kept])
        np.add.at(onsets, (frame[kept] + 1, band[kept]), (weight * to_next)[kept])
    return onsets[:n_frames]


def _correlations(heard: Curves, written: Curves, reach: int) -> Curves:
    """At lags of -reach to reach frames, of the MIDI itself and its surrogates: (24, 2 · reach + 1)."""
    heard, written = _centred(heard), _centred(written)
    n_bands, margin = heard.shape[1], max(TRANSPOSITIONS)
    n_padded = scipy.fft.next_fast_len(len(heard) + len(written), real=True)
    lags = np.arange(-reach, reach + 1)
    start, end = np.maximum(lags, 0), np.minimum(len(heard), len(written) + lags)  # in `heard`, of what overlaps
    heard_spectrum = scipy.fft.rfft(heard, n_padded, axis=0)
    heard_energy = _energy_between(heard, start, end)
    rows = []
    for direction in (1, -1):
        directed = written[::direction]
        spectrum = scipy.fft.rfft(directed, n_padded, axis=0).conj()
        for semitones in TRANSPOSITIONS:
            bands = slice(margin - semitones, margin - semitones + n_bands)
            product = np.einsum("fb,fb->f", heard_spectrum, spectrum[:, bands])
            covariance = scipy.fft.irfft(product, n_padded)[lags]
            energy = heard_energy * _energy_between(directed[:, bands], start - lags, end - lags)
            rows.append(covariance / np.sqrt(energy + ENERGY_FLOOR))
    return np.stack(rows)


def _refine(samples: Waveform, notes: Score, coarse_seconds: float) -> float:
    """The offset near `coarse_seconds` at which notes begin where the sound of whatever pitch rises most."""
    rise = _rise(samples, FINE_WINDOW, FINE_HOP, _band_weights(), FINE_COMPRESSION, FINE_RISE_FRAMES).mean(axis=1)
    rise -= rise.mean()
    rise_seconds = (np.arange(len(rise)) - FINE_RISE_FRAMES / 2) * FINE_HOP / RATE_HZ
    step, chord = np.unique(np.rint(notes.onset_seconds / FINE_MERGED_SECONDS), return_inverse=True)
    weight = np.sqrt(np.bincount(chord, notes.velocity))
    hop_seconds = FINE_HOP / RATE_HZ
    reach = round(FINE_REACH_SECONDS / hop_seconds)
    offsets = coarse_seconds + np.arange(-reach, reach + 1) * hop_seconds
    onset_seconds = step * FINE_MERGED_SECONDS
    fit = np.array([weight @ np.interp(onset_seconds + at, rise_seconds, rise, left=0, right=0) for at in offsets])
    best = int(fit.argmax())
    return float(offsets[best] + _vertex(fit, best) * hop_seconds)


def _rise(samples: Waveform, window: int, hop: int, weights: Curves, compression: float, over_frames: int) -> Curves:
    """How much more compressed energy each band has than `over_frames` before, at least 0: (n_frames, n_bands).

    The change itself lies half of `over_frames` earlier. It is 0 while the start of the audio, which is no onset, is in
    the middle half of the window.
    """
    n_frames = 1 + len(samples) // hop
    padded = np.pad(samples, (window // 2, window))
    frames = sliding_window_view(padded, window)[::hop][:n_frames]
    shape = np.hanning(window + 1)[:-1].astype(np.float32)
    shape *= 2 / shape.sum()  # a full-scale sine has energy 1 in its bin
    energy = np.empty((n_frames, weights.shape[1]))
    for first in range(0, n_frames, BLOCK_FRAMES):
        spectrum = scipy.fft.rfft(frames[first : first + BLOCK_FRAMES] * shape, axis=1)
        energy[first : first + BLOCK_FRAMES] = (spectrum.real**2 + spectrum.imag**2) @ weights
    level: Curves = np.log1p(compression * energy / (energy.mean(axis=0) + ENERGY_FLOOR))
    n_before = over_frames + window // 2 // hop // 2
    rise = np.zeros_like(level)
    rise[n_before:] = np.maximum(level[n_before:] - level[n_before - over_frames : -over_frames], 0)
    return rise


def _semitone_weights() -> Curves:
    """Triangles a semitone to either side, one bin at least: (n_bins, n_pitches)."""
    bin_hz = np.fft.rfftfreq(PITCH_WINDOW, 1 / RATE_HZ)[:, None]
    pitch_hz = 440 * 2 ** ((np.arange(LOWEST_PITCH, HIGHEST_PITCH + 1) - 69) / 12)
    width_hz = np.maximum(pitch_hz * (2 ** (1 / 12) - 1), RATE_HZ / PITCH_WINDOW)
    weights: Curves = np.maximum(0, 1 - np.abs(bin_hz - pitch_hz) / width_hz).astype(np.float32)
    return weights


def _band_weights() -> Curves:
    bin_hz = np.fft.rfftfreq(FINE_WINDOW, 1 / RATE_HZ)[:, None]
    weights = ((bin_hz >= FINE_BAND_EDGES_HZ[:-1]) & (bin_hz < FINE_BAND_EDGES_HZ[1:])).astype(np.float32)
    used: Curves = weights[:, weights.any(axis=0)]  # the lowest bands fall between two bins
    return used


def _centred(curves: Curves) -> Curves:
    smoothed = scipy.ndimage.gaussian_filter1d(curves, SMOOTHING_FRAMES, axis=0)
    centred: Curves = smoothed - smoothed.mean(axis=0)
    return centred


def _energy_between(curves: Curves, start: np.ndarray, end: np.ndarray) -> Curves:
    """Sum of squares over all bands and the frames of each [start, end)."""
    until = np.concatenate([[0.0], np.cumsum(np.einsum("tb,tb->t", curves, curves))])
    between: Curves = until[end] - until[start]
    return between


def _vertex(curve: Curves, peak: int) -> float:
    """How far from `peak`, in -0.5 to 0.5, the parabola through it and its neighbours has its top."""
    if not 0 < peak < len(curve) - 1:
        return 0.0
    before, at, after = curve[peak - 1 : peak + 2]
    bend = before - 2 * at + after
    return float((before - after) / (2 * bend)) if bend < 0 else 0.0
