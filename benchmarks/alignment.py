"""How far can `featurize.align` be trusted? Audio is played from MIDI, so that the true offset is known.

    python -m benchmarks.alignment                       # demo songs
    python -m benchmarks.alignment --midi folder/midi    # and the MIDI files of a folder

Two players. *Wavetable* is `featurize.demo.synth`, from soft to hard, with drums from quiet to drowning; with demo
songs it is what the rule of `align` was set on. *Strings* shares nothing with it: plucked strings (Karplus and Strong
1983), FM tones (Chowning 1973) that take 30 or 80 ms to speak, drums of noise alone, a hall.

A pair is some seconds of a song's audio, with noise (white or pink, at a ratio to the segment's own level), and as many
of MIDI. *Together*: the same song, shifted by up to 2 s either way, in segments under 4 s by less than their half.
*Apart*: another song, anywhere. *Elsewhere*: the same song at least 4 s away, where the music may well repeat.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import click
import numpy as np
import scipy.signal

from benchmarks import machine
from featurize.align import (
    LEAST_ONSETS_APART,
    LEAST_ONSETS_TOGETHER,
    MANY_ONSETS,
    MAX_OFFSET_SECONDS,
    RATE_HZ,
    SURELY_APART,
    SURELY_APART_OF_FEW,
    SURELY_TOGETHER,
    Alignment,
    measure,
)
from featurize.demo.compose import CLOSED_HAT, CRASH, KICK, SNARE, Section, Song, compose
from featurize.demo.plan import SectionPlan, plan_song
from featurize.demo.score import DRUM_CHANNEL, Note, Part, write_midi
from featurize.demo.score import Score as DemoScore
from featurize.demo.synth import synthesize
from featurize.midi import Score, cut, parse_midi

LENGTHS_SECONDS = (2, 3, 5, 10, 20, 30)
SNRS_DB = (None, 20, 10, 5)
RIGHT_SECONDS = 0.02
AWAY_SECONDS = 4.0
EXCERPT_SECONDS = 90.0
TUNING_SEED, TESTING_SEED = 1_000, 2_000  # demo songs `align` was set on, and others

Player = Callable[[Score, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Piece:
    score: Score
    samples: np.ndarray  # int16 at RATE_HZ: fifty songs fit in memory


@dataclass(frozen=True)
class Pair:
    samples: np.ndarray  # float32 at RATE_HZ
    score: Score
    offset_seconds: float  # NaN where they do not belong together


@dataclass(frozen=True)
class Outcome:
    length_seconds: float
    error_seconds: float  # NaN where they do not belong together, or nothing was measured
    is_together: bool
    found: Alignment
    cpu_seconds: float

    @property
    def is_right(self) -> bool:
        return abs(self.error_seconds) < RIGHT_SECONDS


# --- songs -----------------------------------------------------------------------------------------------------------


def demo_song(seed: int) -> Score:
    """A minute of music."""
    rng = np.random.default_rng(seed)
    song = compose(plan_song(8, rng), 8.0, rng)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "song.mid"
        write_midi(song.score, path)
        return parse_midi(path.read_bytes())


def excerpt(path: Path, rng: np.random.Generator) -> Score:
    score = parse_midi(path.read_bytes())
    start = rng.uniform(0, max(score.duration_seconds - EXCERPT_SECONDS, 1e-3))
    return cut(score, start, start + EXCERPT_SECONDS)


def play(scores: Sequence[Score], player: Player) -> list[Piece]:
    pieces = []
    for index, score in enumerate(scores):
        samples = player(score, np.random.default_rng(index))
        pieces.append(Piece(score, np.rint(samples * 32_767).astype(np.int16)))
    return pieces


# --- the first player ------------------------------------------------------------------------------------------------

TICKS_PER_SECOND = 100_000
MICROSECONDS_PER_BEAT = 4_800  # of 480 ticks
HIGHEST_WAVETABLE_PITCH = 120  # above, no harmonic is left below the Nyquist frequency


def play_wavetable(score: Score, rng: np.random.Generator) -> np.ndarray:
    drum_level = 2 ** rng.uniform(0, 4)
    parts: dict[int, Part] = {}
    onset_ticks = np.rint(score.onset_seconds * TICKS_PER_SECOND).astype(int).tolist()
    length_ticks = np.rint((score.offset_seconds - score.onset_seconds) * TICKS_PER_SECOND).astype(int).tolist()
    for index, (onset, length) in enumerate(zip(onset_ticks, length_ticks, strict=True)):
        pitch, velocity, program = (int(column[index]) for column in (score.pitch, score.velocity, score.program))
        if score.is_drum[index]:
            part = parts.setdefault(-1, Part("drums", DRUM_CHANNEL, 0))
            note = Note(onset, max(length, 1), drum(pitch), round(velocity * drum_level))
        else:
            part = parts.setdefault(program, Part(role(program), 0, program))
            note = Note(onset, max(length, 1), min(pitch, HIGHEST_WAVETABLE_PITCH), velocity)
        part.notes.append(note)
    end = round(score.duration_seconds * TICKS_PER_SECOND)
    section = Section(SectionPlan("verse", True, 0.5), 0, end, intensity=rng.uniform(0, 1.3))
    return synthesize(Song(DemoScore(MICROSECONDS_PER_BEAT, list(parts.values())), [section]), rng)


def role(program: int) -> str:
    """General MIDI, from 0: basses are 32 to 39, winds and leads 56 to 87."""
    return "bass" if 32 <= program < 40 else "melody" if 56 <= program < 88 else "chords"


def drum(pitch: int) -> int:
    """Of the four drums that the players have, the one most like this key of the General MIDI percussion map."""
    if pitch in (35, 36, 41, 43, 45):
        return KICK
    if pitch in (49, 52, 55, 57):
        return CRASH
    return CLOSED_HAT if pitch in (42, 44, 46, 51, 53, 54, 59, 69, 70, 82) else SNARE


# --- the second player -----------------------------------------------------------------------------------------------

PLUCKED_PROGRAMS = {*range(16), *range(24, 40), 45, 46, 47, *range(104, 112)}
SLOW_PROGRAMS = {*range(40, 45), *range(48, 56), *range(88, 104)}
SLOW_ATTACK_SECONDS, QUICK_ATTACK_SECONDS = 0.08, 0.03
STRING_DECAY_SECONDS = 4.0  # to a thousandth
LONGEST_TONE_SECONDS = 8.0
NOISE_DRUMS = {  # seconds, band in Hz
    KICK: (0.15, (40, 130)),
    SNARE: (0.12, (180, 5_000)),
    CLOSED_HAT: (0.05, (5_000, 10_500)),
    CRASH: (0.7, (3_000, 10_500)),
}


def play_strings(score: Score, rng: np.random.Generator) -> np.ndarray:
    dry = np.zeros(round((score.duration_seconds + 1) * RATE_HZ))

    @cache
    def tone(pitch: int, tenths: int, plucked: bool, slow: bool) -> np.ndarray:
        n_samples = round(tenths / 10 * RATE_HZ)
        n_release = min(n_samples, round((0.3 if slow else 0.15) * RATE_HZ))
        sound = pluck(pitch, n_samples, rng) if plucked else 0.35 * fm(pitch, n_samples, slow, rng)
        sound[n_samples - n_release :] *= np.linspace(1, 0, n_release) ** 2
        return sound

    @cache
    def hit(kind: int) -> np.ndarray:
        seconds, band_hz = NOISE_DRUMS[kind]
        n_samples = round(seconds * RATE_HZ)
        band = scipy.signal.butter(2, band_hz, "band", fs=RATE_HZ, output="sos")
        sound = scipy.signal.sosfilt(band, rng.standard_normal(n_samples))
        sound *= np.exp(-4 * np.arange(n_samples) / n_samples)
        return np.asarray(sound * (0.8 / np.sqrt(np.mean(sound**2))))

    for index in range(len(score)):
        pitch, program = int(score.pitch[index]), int(score.program[index])
        if score.is_drum[index]:
            sound = hit(drum(pitch))
        else:
            seconds = min(score.offset_seconds[index] - score.onset_seconds[index], LONGEST_TONE_SECONDS)
            sound = tone(pitch, round(10 * seconds) + 2, program in PLUCKED_PROGRAMS, program in SLOW_PROGRAMS)
        first = round(score.onset_seconds[index] * RATE_HZ)
        sound = sound[: len(dry) - first]
        dry[first : first + len(sound)] += 0.3 * (score.velocity[index] / 127) ** 1.5 * sound
    mixed = dry + rng.uniform(0.15, 0.4) * scipy.signal.fftconvolve(dry, hall(rng))[: len(dry)]
    return np.asarray(mixed * (0.7 / np.abs(mixed).max()))


def frequency_hz(pitch: int) -> float:
    return float(440.0 * 2.0 ** ((pitch - 69) / 12))


def pluck(pitch: int, n_samples: int, rng: np.random.Generator) -> np.ndarray:
    """A burst of noise that runs around a loop of one period and is dulled in each round."""
    period = RATE_HZ / frequency_hz(pitch) - 0.5  # the mean of two neighbours delays by half a sample
    whole = int(period)
    loss = 0.001 ** (1 / (frequency_hz(pitch) * STRING_DECAY_SECONDS))
    taps = loss * np.convolve([1 - period % 1, period % 1], [0.5, 0.5])
    excitation = np.zeros(n_samples)
    excitation[: whole + 1] = rng.uniform(-1, 1, min(whole + 1, n_samples))
    loop = np.concatenate([[1.0], np.zeros(whole - 1), -taps])
    return np.asarray(scipy.signal.lfilter([1.0], loop, excitation))


def fm(pitch: int, n_samples: int, slow: bool, rng: np.random.Generator) -> np.ndarray:
    seconds = np.arange(n_samples) / RATE_HZ
    angle = 2 * np.pi * frequency_hz(pitch) * seconds
    sound = np.sin(angle + (0.3 + 1.5 * np.exp(-seconds / 0.6)) * np.sin(angle * rng.integers(1, 3)))
    n_attack = min(n_samples, round((SLOW_ATTACK_SECONDS if slow else QUICK_ATTACK_SECONDS) * RATE_HZ))
    sound[:n_attack] *= np.sin(np.linspace(0, np.pi / 2, n_attack)) ** 2
    return sound


def hall(rng: np.random.Generator) -> np.ndarray:
    """Noise that dies away by 60 dB in half a second to a second, after 12 ms; its energy is 1."""
    seconds = np.arange(RATE_HZ) / RATE_HZ
    tail = rng.standard_normal(RATE_HZ) * 0.001 ** (seconds / rng.uniform(0.5, 1.2))
    return np.concatenate([np.zeros(round(0.012 * RATE_HZ)), tail / np.sqrt(np.sum(tail**2))])


# --- pairs -----------------------------------------------------------------------------------------------------------


def draw_pair(
    pieces: Sequence[Piece], kind: str, length_seconds: float, snr_db: float | None, rng: np.random.Generator
) -> Pair:
    """kind: together, apart or elsewhere."""
    index, stranger = rng.choice(len(pieces), 2, replace=False)
    piece = pieces[index]
    reach = min(MAX_OFFSET_SECONDS, 0.45 * length_seconds) if length_seconds < 4 else MAX_OFFSET_SECONDS
    start = rng.uniform(reach, piece.score.duration_seconds - length_seconds - reach)
    first = round((start - rng.uniform(-reach, reach)) * RATE_HZ)
    heard = piece.samples[first : first + round(length_seconds * RATE_HZ)] / np.float32(32_767)
    if snr_db is not None:
        heard = heard + noise(len(heard), rng) * np.sqrt(np.mean(heard**2) / 10 ** (snr_db / 10))
    if kind == "together":
        return Pair(heard.astype(np.float32), cut(piece.score, start, start + length_seconds), start - first / RATE_HZ)
    score = (pieces[stranger] if kind == "apart" else piece).score
    other = rng.uniform(0, score.duration_seconds - length_seconds)
    while kind == "elsewhere" and abs(other - start) < AWAY_SECONDS:
        other = rng.uniform(0, score.duration_seconds - length_seconds)
    return Pair(heard.astype(np.float32), cut(score, other, other + length_seconds), float("nan"))


def noise(n_samples: int, rng: np.random.Generator) -> np.ndarray:
    """White or pink, of power 1."""
    samples = rng.standard_normal(n_samples)
    if rng.random() < 0.5:
        hz = np.fft.rfftfreq(n_samples, 1 / RATE_HZ)
        samples = np.fft.irfft(np.fft.rfft(samples) / np.sqrt(np.maximum(hz, 20)), n_samples)
    return np.asarray(samples / np.sqrt(np.mean(samples**2)))


def try_pairs(
    pieces: Sequence[Piece], kind: str, length_seconds: float, snr_db: float | None, n_pairs: int
) -> list[Outcome]:
    rng = np.random.default_rng([round(length_seconds), round(snr_db or 99), len(kind)])
    outcomes = []
    for _ in range(n_pairs):
        pair = draw_pair(pieces, kind, length_seconds, snr_db, rng)
        started = time.process_time()
        found = measure(pair.samples, RATE_HZ, pair.score)
        cpu_seconds = time.process_time() - started
        error_seconds = found.offset_seconds - pair.offset_seconds
        outcomes.append(Outcome(length_seconds, error_seconds, kind == "together", found, cpu_seconds))
    return outcomes


# --- tables ----------------------------------------------------------------------------------------------------------


def verdicts(outcomes: Sequence[Outcome]) -> str:
    told = [outcome.found.aligned for outcome in outcomes]
    return " ".join(f"{told.count(verdict) / len(told):6.1%}" for verdict in (True, False, None))


def print_table(title: str, pieces: Sequence[Piece], lengths: Sequence[int], n_pairs: int) -> list[Outcome]:
    """One line for each length and noise; returns all outcomes of pairs together and apart."""
    print(f"\n{title}: {len(pieces)} songs, {n_pairs} pairs together and {n_pairs} apart in each line")
    print("            within 20 ms    worst   together: yes no can't tell    apart: yes no can't tell    time")
    print(" s  SNR dB  all    of yes    of yes")
    outcomes_of_all = []
    for length in lengths:
        for snr_db in SNRS_DB:
            together = try_pairs(pieces, "together", length, snr_db, n_pairs)
            apart = try_pairs(pieces, "apart", length, snr_db, n_pairs)
            outcomes_of_all += together + apart
            yes = [outcome for outcome in together if outcome.found.aligned]
            errors = [abs(outcome.error_seconds) for outcome in yes]
            milliseconds = 1e3 * float(np.mean([outcome.cpu_seconds for outcome in together + apart]))
            print(
                f"{length:2}  {snr_db or 'clean':>6}  {np.mean([o.is_right for o in together]):6.1%} "
                f"{np.mean([o.is_right for o in yes]) if yes else np.nan:6.1%} {max(errors, default=np.nan):6.3f} s   "
                f"{verdicts(together)}      {verdicts(apart)}   {milliseconds:4.0f} ms",
                flush=True,
            )
    return outcomes_of_all


def print_sums(outcomes: Sequence[Outcome], pieces: Sequence[Piece], n_pairs: int) -> None:
    """The figures that the promises are about: over all noise, by length."""
    for name, low, high in (("under 4 s", 0, 4), ("5 s", 4, 9), ("10 s and more", 9, np.inf)):
        these = [outcome for outcome in outcomes if low <= outcome.length_seconds < high]
        together = [outcome for outcome in these if outcome.is_together]
        apart = [outcome for outcome in these if not outcome.is_together]
        if not these:
            continue
        told_apart = [o for o in apart if o.found.aligned is not None]
        told = [o for o in together if o.found.aligned is not None]
        print(
            f"{name}, {len(these)} pairs: offset within 20 ms"
            f" {np.mean([o.is_right for o in together]):.1%};"
            f" of those told (together {len(told)}, apart {len(told_apart)}): strangers flagged"
            f" {np.mean([o.found.aligned is False for o in told_apart]):.1%}, false alarms"
            f" {np.mean([o.found.aligned is False for o in told]):.1%}; strangers passed as aligned, of all,"
            f" {np.mean([o.found.aligned is True for o in apart]):.1%}"
        )
    elsewhere = try_pairs(pieces, "elsewhere", 10, None, n_pairs)
    print(f"same song, elsewhere, 10 s, clean: yes no can't tell {verdicts(elsewhere)}")


def print_rule(outcomes: Sequence[Outcome]) -> None:
    """How leads lie about the limits, by the number of onsets: what the rule was set by."""
    print("\nshare of leads under each limit")
    limits = (0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2)
    print("onsets           pairs   " + "  ".join(f"{limit:5.2f}" for limit in limits))
    for low, high in ((1, 3), (4, 6), (7, 12), (13, 999), (LEAST_ONSETS_TOGETHER, 999), (LEAST_ONSETS_APART, 999)):
        for kind in ("together", "apart"):
            leads = np.array(
                [
                    outcome.found.lead
                    for outcome in outcomes
                    if low <= outcome.found.n_onsets <= high and outcome.is_together == (kind == "together")
                ]
            )
            shares = "  ".join(f"{np.mean(leads < limit):5.1%}" for limit in limits if len(leads))
            print(f"{low:2}-{high:<3} {kind:9} {len(leads):5}   {shares}")
    second = [outcome.found.second_best for outcome in outcomes if outcome.is_together and outcome.found.aligned]
    half, most = np.quantile(second, [0.5, 0.99])
    print(f"second-best offset of pairs together: under {half:.2f} in half of them, under {most:.2f} in 99%")
    print(
        f"in use: apart under {SURELY_APART_OF_FEW} from {LEAST_ONSETS_APART} onsets on and under {SURELY_APART} from"
        f" {MANY_ONSETS} on, together over {SURELY_TOGETHER} from {LEAST_ONSETS_TOGETHER} on"
    )


@click.command()
@click.option("--midi", "folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--songs", type=int, default=30, show_default=True, help="Demo songs, and at most so many files.")
@click.option("--pairs", type=int, default=100, show_default=True, help="Of each kind in each line.")
@click.option("--length", "lengths", type=int, multiple=True, default=LENGTHS_SECONDS, show_default=True)
def main(folder: Path | None, songs: int, pairs: int, lengths: tuple[int, ...]) -> None:
    print(machine("numpy", "scipy", "soxr"))
    settings: list[tuple[str, list[Score], Player]] = [
        (
            "Demo songs, wavetable (`align` was set on these)",
            [demo_song(TUNING_SEED + index) for index in range(songs)],
            play_wavetable,
        ),
        ("Other demo songs, strings", [demo_song(TESTING_SEED + index) for index in range(songs)], play_strings),
    ]
    if folder is not None:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".mid", ".midi"))[:songs]
        scores = [excerpt(path, np.random.default_rng(index)) for index, path in enumerate(paths)]
        settings += [("MIDI files, wavetable", scores, play_wavetable), ("MIDI files, strings", scores, play_strings)]
    for title, scores, player in settings:
        pieces = play(scores, player)
        outcomes = print_table(title, pieces, lengths, pairs)
        print_sums(outcomes, pieces, pairs)
        print_rule(outcomes)


if __name__ == "__main__":
    main()
