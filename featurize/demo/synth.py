"""Play a score: wavetable tones with envelopes, drums from sines and noise, a little room, a little hiss.

Output is mono float32 (n_samples,) in [-1, 1] at 22,050 Hz; sample 0 is tick 0 of the score. How hard a section is
played (`Section.intensity`) sets the brightness of its tones (harmonic k has amplitude k ** -slope), its loudness
and the level of its drums. Recording level, room, hiss and a lean to bright or dark belong to the song and say
nothing about mood.
"""

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from featurize.demo.compose import CLOSED_HAT, CRASH, KICK, SNARE, Song
from featurize.demo.score import DRUM_CHANNEL, Note

SAMPLE_RATE_HZ = 22_050
TAIL_SECONDS = 0.5
TABLE_SIZE = 2_048
MAX_HARMONICS = 16
PART_GAINS = {"melody": 0.26, "chords": 0.10, "bass": 0.26, "drums": 0.5}
ODD_HARMONICS_PROGRAMS = {71, 73, 80}
PLUCKED_PROGRAMS = {0, 4, 11, 24, 25, 32, 33}
PLUCK_DECAY_PER_SECOND = 2.5


@dataclass(frozen=True)
class Recording:
    """What the room, the desk and the mastering add to one song."""

    peak: float
    brightness: float
    drum_gain: float
    room_gain: float
    hiss: float


def draw_recording(rng: np.random.Generator) -> Recording:
    """How a song is recorded, at random: peak, brightness, drums, room, hiss."""
    return Recording(
        peak=float(10 ** (-rng.uniform(1, 8) / 20)),
        brightness=float(rng.normal(0, 0.12)),
        drum_gain=float(rng.uniform(0.7, 1.3)),
        room_gain=float(rng.uniform(0.05, 0.25)),
        hiss=float(10 ** rng.uniform(-4, -3)),
    )


def synthesize(song: Song, rng: np.random.Generator) -> np.ndarray:
    """The song as it sounds, float32 (T,) at `SAMPLE_RATE_HZ`, in [-1, 1]."""
    recording = draw_recording(rng)
    drum_kit = _make_drum_kit(rng)
    end_seconds = song.score.seconds(song.sections[-1].end_ticks)
    samples = np.zeros(round((end_seconds + TAIL_SECONDS) * SAMPLE_RATE_HZ), dtype=np.float32)
    starts = [section.start_ticks for section in song.sections]
    for part in song.score.parts:
        tables: dict[tuple[int, int], np.ndarray] = {}
        for note in part.notes:
            section_index = bisect_right(starts, note.start_ticks) - 1
            section = song.sections[section_index]
            if part.channel == DRUM_CHANNEL:
                sound = drum_kit[note.pitch] * (recording.drum_gain * (0.3 + section.intensity))
            else:
                key = (section_index, note.pitch)
                if key not in tables:
                    tables[key] = _wavetable(part.program, note.pitch, section.intensity + recording.brightness)
                sound = _tone(tables[key], note, part.program, song.score.seconds(note.length_ticks))
            gain = PART_GAINS[part.name] * (0.45 + 0.8 * section.intensity) * (note.velocity / 127)
            _add(samples, sound, gain, song.score.seconds(note.start_ticks))
    samples = _with_room(samples, recording.room_gain)
    samples *= recording.peak / max(float(np.abs(samples).max()), 1e-6)
    samples += np.float32(recording.hiss) * rng.standard_normal(len(samples), dtype=np.float32)
    return np.clip(samples, -1.0, 1.0)


def _wavetable(program: int, pitch: int, intensity: float) -> np.ndarray:
    """One period (TABLE_SIZE,) of unit RMS, band-limited to the Nyquist frequency."""
    harmonics = np.arange(1, MAX_HARMONICS + 1)
    amplitudes = harmonics ** -float(np.clip(2.6 - 1.7 * intensity, 0.5, 3.0))
    amplitudes[harmonics * _frequency_hz(pitch) >= SAMPLE_RATE_HZ / 2] = 0
    if program in ODD_HARMONICS_PROGRAMS:
        amplitudes[1::2] *= 0.15
    spectrum = np.zeros(TABLE_SIZE // 2 + 1, dtype=complex)
    spectrum[1 : MAX_HARMONICS + 1] = -1j * amplitudes
    table = np.fft.irfft(spectrum, TABLE_SIZE)
    unit: np.ndarray = (table / np.sqrt(np.mean(table**2))).astype(np.float32)
    return unit


def _frequency_hz(pitch: int) -> float:
    return 440.0 * 2 ** ((pitch - 69) / 12)


def _tone(table: np.ndarray, note: Note, program: int, seconds: float) -> np.ndarray:
    n_samples = max(2, round(seconds * SAMPLE_RATE_HZ))
    step = _frequency_hz(note.pitch) * TABLE_SIZE / SAMPLE_RATE_HZ
    tone: np.ndarray = table[(np.arange(n_samples) * step).astype(np.int64) & (TABLE_SIZE - 1)]
    tone *= _envelope(n_samples, program in PLUCKED_PROGRAMS)
    return tone


@lru_cache(maxsize=256)  # a song has a handful of note lengths
def _envelope(n_samples: int, plucked: bool) -> np.ndarray:
    envelope = np.ones(n_samples, dtype=np.float32)
    if plucked:
        envelope *= np.exp(np.arange(n_samples) * (-PLUCK_DECAY_PER_SECOND / SAMPLE_RATE_HZ))
    n_attack = min(n_samples // 2, round((0.004 if plucked else 0.015) * SAMPLE_RATE_HZ))
    n_release = min(n_samples // 2, round(0.05 * SAMPLE_RATE_HZ))
    envelope[:n_attack] *= np.linspace(0, 1, n_attack)
    envelope[n_samples - n_release :] *= np.linspace(1, 0, n_release)
    return envelope


def _make_drum_kit(rng: np.random.Generator) -> dict[int, np.ndarray]:
    def seconds(length: float) -> np.ndarray:
        return np.arange(round(length * SAMPLE_RATE_HZ), dtype=np.float32) / SAMPLE_RATE_HZ

    def hiss(times: np.ndarray) -> np.ndarray:
        # The difference of white noise falls off towards low frequencies, as metal and wires do.
        return np.diff(rng.standard_normal(len(times) + 1, dtype=np.float32)) * np.float32(0.5)

    kick, snare, hat, crash = seconds(0.25), seconds(0.18), seconds(0.06), seconds(0.9)
    kick_phase = 2 * np.pi * (48 * kick + 90 * 0.03 * (1 - np.exp(-kick / 0.03)))
    return {
        KICK: 1.4 * np.sin(kick_phase) * np.exp(-kick / 0.08),
        SNARE: (hiss(snare) + 0.5 * np.sin(2 * np.pi * 190 * snare)) * np.exp(-snare / 0.05),
        CLOSED_HAT: 0.5 * hiss(hat) * np.exp(-hat / 0.02),
        CRASH: 0.5 * hiss(crash) * np.exp(-crash / 0.3),
    }


def _add(samples: np.ndarray, sound: np.ndarray, gain: float, start_seconds: float) -> None:
    start = round(start_seconds * SAMPLE_RATE_HZ)
    room = samples[start : start + len(sound)]
    room += sound[: len(room)] * np.float32(gain)


def _with_room(samples: np.ndarray, gain: float) -> np.ndarray:
    """A few early reflections at times that share no common divisor, so that no pitch is favoured."""
    wet = samples.copy()
    for index, delay_seconds in enumerate((0.0297, 0.0411, 0.0677, 0.1013)):
        delay = round(delay_seconds * SAMPLE_RATE_HZ)
        wet[delay:] += np.float32(gain * 0.7**index) * samples[:-delay]
    return wet
