"""When a hole gives the label away: what modality dropout mends of it, and what it does not.

    python -m benchmarks.missingness

6,000 segments, two classes. The text tells them apart at 78% (one informative column of 64, a deviation of 0.77 from
the middle); audio and MIDI are noise. MIDI is there for 43%: once whatever the class, once for 73% of one class and 13%
of the other. `late` with its defaults but for the modality dropout; accuracy on 1,200 test segments, three seeds.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from benchmarks import machine
from fusion import baselines
from fusion.config import load_config
from fusion.data import SegmentData
from fusion.targets import Target
from fusion.train import train

N, WIDTH, SEEDS = 6_000, 64, 3
SEPARATION = 0.77  # of the informative column's two means from their middle, in standard deviations: 78% at best
SETTINGS = [("whatever the class", (0.43, 0.43), None)]
SETTINGS += [("for one class more", (0.73, 0.13), dropout) for dropout in (0.0, None, 0.8)]


def draw(midi_there: tuple[float, float], seed: int) -> tuple[SegmentData, Target, np.ndarray]:
    """Segments, their label, and its numbers (N,). midi_there: the share that has MIDI, by class."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, N)
    vectors = {slot: rng.normal(size=(N, WIDTH)) for slot in ("text", "audio", "midi")}
    vectors["text"][:, 0] += SEPARATION * (2 * label - 1)
    present = np.ones((N, 3), bool)
    present[:, 2] = rng.random(N) < np.array(midi_there)[label]
    tensors = {
        slot: torch.from_numpy(np.where(present[:, [column]], values, 0).astype(np.float16))
        for column, (slot, values) in enumerate(vectors.items())
    }
    ids = np.arange(N).astype(np.dtypes.StringDType())
    data = SegmentData({slot: f"{slot}/drawn" for slot in tensors}, tensors, torch.from_numpy(present), ids, ids)
    known = torch.ones(N, dtype=torch.bool)
    return data, Target("y", "categorical", ["0", "1"], torch.from_numpy(label), known), label


def measure(midi_there: tuple[float, float], dropout: float, seed: int) -> list[float]:
    """Accuracy: on test; of the mask alone; with MIDI hidden; where MIDI is, both classes counting the same."""
    data, target, label = draw(midi_there, seed)
    train_rows, val_rows, test_rows = np.split(np.arange(N), [int(0.6 * N), int(0.8 * N)])
    config = load_config(Path(os.devnull), [f"training.modality_dropout={dropout}"])
    trained = train(data, [target], train_rows, val_rows, config.model.fusion, config.training, seed)
    mask = baselines.linear(baselines.mask(data), target, train_rows, val_rows, test_rows)
    hidden = data.present[test_rows].clone()
    hidden[:, 2] = False
    truth, has_midi = label[test_rows], data.present[test_rows, 2].numpy()
    right = {
        name: trained.predict(data, test_rows, shown)[0][0].argmax(axis=1) == truth
        for name, shown in (("as it is", None), ("hidden", hidden))
    }
    balanced = np.mean([right["as it is"][has_midi & (truth == k)].mean() for k in (0, 1)])
    return [right["as it is"].mean(), (mask.argmax(axis=1) == truth).mean(), right["hidden"].mean(), float(balanced)]


def main() -> None:
    default = load_config(Path(os.devnull)).training.modality_dropout
    print(machine("torch", "scikit-learn"))
    print(
        "| MIDI is there | modality dropout | test | mask only | test, MIDI hidden from all |"
        " those with MIDI, classes balanced |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, midi_there, wanted in SETTINGS:
        dropout = default if wanted is None else wanted
        found = np.mean([measure(midi_there, dropout, seed) for seed in range(SEEDS)], axis=0)
        print(f"| {name} | {dropout:g} | " + " | ".join(f"{value:.2f}" for value in found) + " |", flush=True)


if __name__ == "__main__":
    main()
