"""Audio augmentation: small random changes of the waveform that leave its labels true. In training only.

Conventions
-----------
* Waveforms are float32, shape `(n_samples,)`, full scale ±1, in and out; the input is never written to.
* The seed alone decides: the same waveform with the same seed gives the same bits, in any process, after any other
  draws. Each augmentation draws from a stream of its own, so that one more in the list changes nothing of the others.
* audiomentations draws from the global states of `random` and `numpy.random`; they are as before when a call returns.
  So calls do not run side by side in threads; processes are fine.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from audiomentations import AddGaussianSNR, PitchShift, TimeStretch

from featurize.audio import Waveform
from featurize.errors import UnknownName

PROBABILITY = 0.5  # of each augmentation, for each waveform; with all three, an eighth stay as they were recorded

# Salamon and Bello (2017) stretched sounds by 0.81 to 1.23 and shifted them by up to 3.5 semitones, to good effect. The
# tempo and register of music carry its mood, so less than that here.
SLOWEST_RATE, FASTEST_RATE = 0.9, 1.1  # of time; above 1 is faster, and shorter
MOST_SEMITONES = 2.0  # up or down

# White noise against the whole clip's RMS, even in dB: from a bad reception to what music all but hides.
LOWEST_SNR_DB, HIGHEST_SNR_DB = 10.0, 40.0

# The stretcher (Signalsmith's) analyses blocks of this length; in less there is no time to stretch.
STRETCH_BLOCK_SECONDS = 0.12
LOWEST_SAMPLE_RATE_HZ = 1000  # at some tens of Hz its block has no samples, and the library ends the process

# In the order of application, whatever the order in a configuration: noise last, as it stands for the recording.
AUGMENTATIONS = {
    "time_stretch": TimeStretch(SLOWEST_RATE, FASTEST_RATE, leave_length_unchanged=False, p=PROBABILITY),
    "pitch_shift": PitchShift(-MOST_SEMITONES, MOST_SEMITONES, p=PROBABILITY),
    "noise": AddGaussianSNR(LOWEST_SNR_DB, HIGHEST_SNR_DB, p=PROBABILITY),
}
STRETCHERS = ("time_stretch", "pitch_shift")


class AudioAugmentation:
    """The augmentations in `names`, each with `PROBABILITY`. Raises `UnknownName`, which lists the known ones."""

    def __init__(self, names: Sequence[str], sample_rate_hz: int):
        for name in names:
            if name not in AUGMENTATIONS:
                raise UnknownName("augmentation", name, AUGMENTATIONS)
        if sample_rate_hz < LOWEST_SAMPLE_RATE_HZ:
            raise ValueError(f"sample_rate_hz is {sample_rate_hz}; expected at least {LOWEST_SAMPLE_RATE_HZ}")
        self.names = tuple(name for name in AUGMENTATIONS if name in names)
        self.sample_rate_hz = sample_rate_hz

    def __call__(self, samples: Waveform, seed: int) -> Waveform:
        """samples: (n,), n ≥ 1, finite. To float32 (m,), m ≥ 1, at most n / `SLOWEST_RATE` + 1; m = n without stretch.

        Peaks may rise above full scale. Audio shorter than a block is not stretched or shifted; silence stays silent.
        """
        samples = np.array(samples, dtype=np.float32)  # the stretcher refuses what may not be written to
        with _global_draws_kept():
            for name in self.names:
                if name in STRETCHERS and len(samples) < STRETCH_BLOCK_SECONDS * self.sample_rate_hz:
                    continue
                _seed_global_draws(f"{name} {seed}")
                samples = AUGMENTATIONS[name](samples, self.sample_rate_hz)
        return np.array(samples, dtype=np.float32)  # memory of numpy's own


def _seed_global_draws(seed: str) -> None:
    random.seed(seed)  # of a string, the same in every process: by SHA-512, not by `hash`
    np.random.seed(random.getrandbits(32))  # noqa: NPY002 audiomentations draws from here


@contextmanager
def _global_draws_kept() -> Iterator[None]:
    state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)  # noqa: NPY002
