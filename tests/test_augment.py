"""Augmentation: the seed alone decides, and each name does what it says, within its range."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurize.augment import (
    AUGMENTATIONS,
    FASTEST_RATE,
    HIGHEST_SNR_DB,
    LOWEST_SNR_DB,
    MOST_SEMITONES,
    SLOWEST_RATE,
    AudioAugmentation,
)
from featurize.errors import UnknownName

RATE_HZ = 22050
NAMES = list(AUGMENTATIONS)
SEEDS = range(40)  # of them, about half apply one augmentation


def sine(frequency_hz: float = 440.0, seconds: float = 1.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * frequency_hz * np.arange(int(seconds * RATE_HZ)) / RATE_HZ)).astype(np.float32)


def frequency_hz(samples: np.ndarray) -> float:
    """Of the strongest partial, its middle three quarters under a Hann window, to a fraction of a bin."""
    edge = len(samples) // 8
    middle = samples[edge:-edge]
    spectrum = np.log(np.abs(np.fft.rfft(middle * np.hanning(len(middle)))) + 1e-12)
    peak = int(spectrum.argmax())
    left, top, right = spectrum[peak - 1 : peak + 2]
    return (peak + 0.5 * (left - right) / (left - 2 * top + right)) * RATE_HZ / len(middle)


def applied(name: str, samples: np.ndarray) -> list[np.ndarray]:
    """What the seeds that changed something made of it."""
    augment = AudioAugmentation([name], RATE_HZ)
    outputs = [augment(samples, seed) for seed in SEEDS]
    changed = [output for output in outputs if not np.array_equal(output, samples)]
    assert len(SEEDS) / 4 < len(changed) < len(SEEDS) * 3 / 4
    return changed


def test_pitch_shift_moves_the_frequency_and_keeps_the_duration() -> None:
    shifted = applied("pitch_shift", sine(440))
    semitones = np.array([12 * np.log2(frequency_hz(output) / 440) for output in shifted])
    assert all(len(output) == RATE_HZ for output in shifted)
    assert np.abs(semitones).max() <= MOST_SEMITONES + 0.05
    assert semitones.min() < -1 and semitones.max() > 1 and np.ptp(semitones) > 2


def test_time_stretch_changes_the_duration_and_keeps_the_pitch() -> None:
    stretched = applied("time_stretch", sine(440))
    rates = np.array([RATE_HZ / len(output) for output in stretched])
    assert SLOWEST_RATE - 1e-3 <= rates.min() < 0.95 and 1.05 < rates.max() <= FASTEST_RATE + 1e-3
    np.testing.assert_allclose([frequency_hz(output) for output in stretched], 440, rtol=2e-3)


def test_time_stretch_moves_events_where_they_belong() -> None:
    clicks = np.zeros(3 * RATE_HZ, dtype=np.float32)
    clicks[[RATE_HZ, 2 * RATE_HZ]] = 1
    for output in applied("time_stretch", clicks):
        rate = len(clicks) / len(output)
        half = len(output) // 2
        found = np.array([np.abs(output[:half]).argmax(), half + np.abs(output[half:]).argmax()]) / RATE_HZ
        np.testing.assert_allclose(found, np.array([1, 2]) / rate, atol=0.01)


def test_noise_has_its_level() -> None:
    samples = sine()
    snr_db = [10 * np.log10(np.mean(samples**2) / np.mean((out - samples) ** 2)) for out in applied("noise", samples)]
    assert LOWEST_SNR_DB - 0.2 <= min(snr_db) < 18 and 32 < max(snr_db) <= HIGHEST_SNR_DB + 0.2


def test_noise_is_white_and_other_for_each_seed() -> None:
    samples = sine()
    noises = [output - samples for output in applied("noise", samples)]
    for one, other in pairwise(noises):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.05
        assert abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < 0.05


def test_the_seed_alone_decides() -> None:
    samples, augment = sine(), AudioAugmentation(NAMES, RATE_HZ)
    first = [augment(samples, seed) for seed in SEEDS]
    assert len({output.tobytes() for output in first}) > len(SEEDS) * 2 / 3  # an eighth change nothing
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    for seed, output in reversed(list(zip(SEEDS, first, strict=True))):
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(augment))(samples, seed), output)


def test_another_process_gives_the_same_bits() -> None:
    code = (
        "import hashlib, numpy as np; from featurize.augment import *\n"
        f"x = np.sin(np.arange(9000) / 9).astype(np.float32); augment = AudioAugmentation({NAMES}, {RATE_HZ})\n"
        "print(hashlib.sha256(b''.join(augment(x, seed).tobytes() for seed in range(12))).hexdigest())"
    )
    found = set()
    for salt in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": salt}
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        found.add(run.stdout.strip())
    assert len(found) == 1 and len(found.pop()) == 64


@pytest.mark.parametrize("alone", NAMES)
def test_a_further_augmentation_changes_no_draw_of_the_others(alone: str) -> None:
    """Where the others of a list happen to do nothing, the result is that of the one alone."""
    samples = sine()
    whole = AudioAugmentation(NAMES, RATE_HZ)
    only = {name: AudioAugmentation([name], RATE_HZ) for name in NAMES}
    changed = {seed: {n for n in NAMES if not np.array_equal(only[n](samples, seed), samples)} for seed in SEEDS}
    seeds = [seed for seed, names in changed.items() if names == {alone}]
    assert seeds
    for seed in seeds:
        np.testing.assert_array_equal(whole(samples, seed), only[alone](samples, seed))


def test_the_order_of_names_does_not_matter() -> None:
    samples = sine()
    forward, backward = AudioAugmentation(NAMES, RATE_HZ), AudioAugmentation([*NAMES[::-1], NAMES[0]], RATE_HZ)
    for seed in SEEDS:
        np.testing.assert_array_equal(forward(samples, seed), backward(samples, seed))


def test_global_draws_are_as_if_nothing_had_happened() -> None:
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    expected = (random.random(), np.random.normal())  # noqa: NPY002
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    AudioAugmentation(NAMES, RATE_HZ)(sine(), seed=3)
    assert (random.random(), np.random.normal()) == expected  # noqa: NPY002


def test_the_input_is_left_alone() -> None:
    samples = sine()
    samples.flags.writeable = False
    augment = AudioAugmentation(NAMES, RATE_HZ)
    for seed in SEEDS:
        output = augment(samples, seed)
        assert not np.shares_memory(output, samples) and output.flags.writeable
    np.testing.assert_array_equal(samples, sine())


@settings(max_examples=80, deadline=None)
@given(
    names=st.lists(st.sampled_from(NAMES), max_size=3),
    n_samples=st.one_of(st.integers(1, 40), st.integers(1, 12_000)),
    rate_hz=st.sampled_from([1_000, 8_000, 16_000, 22_050, 48_000]),
    amplitude=st.sampled_from([0.0, 1e-30, 0.1, 1.0, 2.0**31]),
    seed=st.integers(-(2**70), 2**70),
)
def test_any_audio_comes_out_as_audio(
    names: list[str], n_samples: int, rate_hz: int, amplitude: float, seed: int
) -> None:
    samples = (amplitude * np.random.default_rng(0).uniform(-1, 1, n_samples)).astype(np.float32)
    augment = AudioAugmentation(names, rate_hz)
    output = augment(samples, seed)
    assert output.dtype == np.float32 and output.ndim == 1 and np.isfinite(output).all()
    assert 1 <= len(output) <= n_samples / SLOWEST_RATE + 1
    assert len(output) >= n_samples / FASTEST_RATE - 1
    if "time_stretch" not in names:
        assert len(output) == n_samples
    if amplitude == 0:
        assert not output.any()
    np.testing.assert_array_equal(augment(samples, seed), output)


@pytest.mark.parametrize("n_samples", [1, 2, 100, 2_645])
def test_less_than_a_block_is_not_stretched(n_samples: int) -> None:
    """2,646 samples at 22,050 Hz are the 0.12 s that the stretcher looks at in one."""
    samples, augment = sine()[:n_samples], AudioAugmentation(["time_stretch", "pitch_shift"], RATE_HZ)
    for seed in SEEDS:
        np.testing.assert_array_equal(augment(samples, seed), samples)
    assert any(len(augment(sine()[:2_646], seed)) != 2_646 for seed in SEEDS)


def test_no_names_change_nothing() -> None:
    np.testing.assert_array_equal(AudioAugmentation([], RATE_HZ)(sine(), seed=0), sine())


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(
        UnknownName,
        match=r"no augmentation 'noize'. Did you mean 'noise'\? Known: time_stretch, pitch_shift, noise",
    ):
        AudioAugmentation(["pitch_shift", "noize"], RATE_HZ)


def test_a_sample_rate_that_the_stretcher_cannot_take_is_refused() -> None:
    with pytest.raises(ValueError, match="sample_rate_hz is 50; expected at least 1000"):
        AudioAugmentation(["noise"], 50)
