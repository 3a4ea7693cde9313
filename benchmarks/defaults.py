"""How good are the defaults of the training loop? Two kinds of evidence with a known optimum, and the demo songs.

    python -m benchmarks.defaults                                   # the defaults, and logistic regression
    python -m benchmarks.defaults --set training.adam_epsilon=1e-8  # one thing changed

*Additive*: four classes; each slot's vector is the class mean plus noise, so that log-likelihoods add up.
*Interacting*: the label is the XOR of a bit in the text and a bit in audio and MIDI, so that no slot tells anything
alone. Widths 768, 512, 512; 93%, 85% and 43% present. The optimum is Bayes' rule with the true parameters, on the same
test segments.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks import machine
from fusion import baselines
from fusion.config import load_config
from fusion.data import SegmentData
from fusion.targets import Target
from fusion.train import infer, train

WIDTHS = {"text": 768, "audio": 512, "midi": 512}
PRESENT = {"text": 0.93, "audio": 0.85, "midi": 0.43}
ADDITIVE_DISTANCE = 1.3  # length of each class mean
BIT_DISTANCE = 2.0  # distance of a bit's vector from the origin


def additive(
    n: int, rng: np.random.Generator, present: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Vectors by slot, labels (n,), and Bayes' choice (n,)."""
    labels = rng.integers(0, 4, n)
    vectors, log_likelihood = {}, np.zeros((n, 4))
    for index, (slot, width) in enumerate(WIDTHS.items()):
        means = rng.normal(size=(4, width))
        means *= ADDITIVE_DISTANCE / np.linalg.norm(means, axis=1, keepdims=True)
        vectors[slot] = means[labels] + rng.normal(size=(n, width))
        likelihood = vectors[slot] @ means.T - 0.5 * (means**2).sum(axis=1)
        log_likelihood += np.where(present[:, index : index + 1], likelihood, 0)
    return vectors, labels, log_likelihood.argmax(axis=1)


def interacting(
    n: int, rng: np.random.Generator, present: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """The same for the XOR of two bits; MIDI repeats the bit of the audio."""
    bits = rng.integers(0, 2, (n, 2))
    vectors, log_odds = {}, np.zeros((n, 2))
    for index, (slot, width) in enumerate(WIDTHS.items()):
        direction = rng.normal(size=width)
        direction /= np.linalg.norm(direction)
        bit = 0 if slot == "text" else 1
        vectors[slot] = rng.normal(size=(n, width)) + np.outer(2 * bits[:, bit] - 1, BIT_DISTANCE * direction)
        log_odds[:, bit] += np.where(present[:, index], 2 * BIT_DISTANCE * (vectors[slot] @ direction), 0)
    chance = 1 / (1 + np.exp(-log_odds))
    differ = chance[:, 0] * (1 - chance[:, 1]) + chance[:, 1] * (1 - chance[:, 0])
    return vectors, bits[:, 0] ^ bits[:, 1], (differ > 0.5).astype(int)


def measure(kind: str, n: int, seed: int, config: Any) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    present = np.stack([rng.random(n) < share for share in PRESENT.values()], axis=1)
    vectors, labels, optimum = {"additive": additive, "interacting": interacting}[kind](n, rng, present)
    stored = {
        slot: torch.from_numpy(np.where(present[:, [index]], values, 0).astype(np.float16))
        for index, (slot, values) in enumerate(vectors.items())
    }
    ids = np.arange(n).astype(np.dtypes.StringDType())
    data = SegmentData({slot: slot for slot in WIDTHS}, stored, torch.from_numpy(present), ids, ids)
    classes = [str(c) for c in range(labels.max() + 1)]
    target = Target("y", "categorical", classes, torch.from_numpy(labels), torch.ones(n, dtype=torch.bool))
    train_rows, val_rows, test_rows = np.split(np.arange(n), [int(0.7 * n), int(0.85 * n)])
    started = time.perf_counter()
    trained = train(data, [target], train_rows, val_rows, config.model.fusion, config.training, seed)
    seconds = time.perf_counter() - started
    predicted = infer(trained.model, data, test_rows)[0][0].argmax(dim=1).numpy()
    inputs = baselines.concatenation(data, train_rows)
    linear = baselines.linear(inputs, target, train_rows, val_rows, test_rows).argmax(axis=1)
    truth = labels[test_rows]
    return {
        "optimum": (optimum[test_rows] == truth).mean(),
        "fusion": (predicted == truth).mean(),
        "linear": (linear == truth).mean(),
        "best_epoch": trained.best_epoch,
        "seconds": seconds,
    }


@click.command()
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE")
@click.option("--segments", type=int, default=11_605, show_default=True)
@click.option("--seeds", type=int, default=1, show_default=True)
def main(overrides: tuple[str, ...], segments: int, seeds: int) -> None:
    config = load_config(Path("/dev/null"), overrides)
    print(f"{machine('torch', 'scikit-learn')}, {torch.get_num_threads()} threads, {segments:,} segments")
    print(f"{config.model.fusion.strategy}; {' '.join(overrides) or 'defaults'}")
    for kind in ("additive", "interacting"):
        for seed in range(seeds):
            found = measure(kind, segments, seed, config)
            print(
                f"{kind:<12} seed {seed}: optimum {found['optimum']:.3f}, fusion {found['fusion']:.3f}, logistic"
                f" regression {found['linear']:.3f} (best epoch {found['best_epoch']:.0f}, {found['seconds']:.0f} s)"
            )


if __name__ == "__main__":
    main()
