"""How far is each fusion from the best possible? Vectors of a known distribution, and Bayes' rule beside every model.

    python -m benchmarks.bayes                                # all fusions, five seeds
    python -m benchmarks.bayes --quick                        # two seeds, fewer test segments
    python -m benchmarks.bayes --fusion late --kind additive  # and --set training.lr=3e-3 as in `cli fit`

11,605 segments of 83 songs, widths 768, 512 and 512; 841 lack text, 15% audio and 57% MIDI, at random. Songs are split
70 : 15 : 15; in place of the last part, every model is tested on fresh segments, shown in each of the 7 presence
patterns. No slot gives the label away alone:

- *additive*: four classes; each slot has three informative factors, whose means are the corners of a tetrahedron, one a
  class. Log-likelihoods of the slots add up.
- *interacting*: the label is whether a bit of the text and a bit of the audio differ. Each bit moves one factor of its
  slot; a factor of MIDI leans a little towards the label itself.

As in real embeddings, what informs is little, and neither the strongest nor the weakest of what varies. Informative
factors, uninformative ones with variances falling as a power law, and a floor of isotropic noise are turned by a random
rotation into the slot's width. Half of the uninformative variance is a song's, the same in all of its segments. It is
independent of the label, so that the posterior given the shown slots depends on the informative factors alone, and has
a closed form in the true parameters. No model can do better but by luck.

Beside the fusions stand logistic regression on the concatenation (`fusion.baselines`) and a plain late MLP: projections
of zero-imputed slots, concatenated, into a ReLU MLP, trained with Adam, no decay, no dropout, early stopping. Its
layers are 512 wide, as the vectors are; narrower ones lose less.
"""

from __future__ import annotations

import os
import sys
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import click
import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import machine
from fusion import baselines
from fusion.config import Config, FusionConfig, TrainingConfig, load_config
from fusion.data import SegmentData
from fusion.evaluate import patterns
from fusion.modules import FUSIONS
from fusion.modules.base import Fused, MultimodalFusion
from fusion.targets import Target
from fusion.train import train

N_SEGMENTS = 11_605
N_SONGS = 83
WIDTHS = {"text": 768, "audio": 512, "midi": 512}
MISSING = {"text": 841 / N_SEGMENTS, "audio": 0.15, "midi": 0.57}

# Variances are in units of an informative factor's variance within a class.
STRONGEST = 8.0  # variance of the first uninformative factor; the k-th has STRONGEST / k ** DECAY
DECAY = 1.5
FLOOR = 0.005  # variance of isotropic noise, on top
SONG_SHARE = 0.5  # of the uninformative variance

CORNERS = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / 3**0.5  # of a tetrahedron, one a class
ADDITIVE_RADIUS = {"text": 1.2, "audio": 1.1, "midi": 1.0}  # distance of the class means from their centre
BIT_DISTANCE = 2.0  # of a bit's two means from their centre
LEAN_DISTANCE = 0.3  # the same, of MIDI's factor
PLAIN_HIDDEN_DIM = 512

MONTE_CARLO_DRAWS = 1_000_000
OPTIMUM, LINEAR = "optimum", "logistic regression"

Pattern = tuple[str, ...]


class Evidence(ABC):
    """What a label does to the informative factors, and what these say of it."""

    n_classes: ClassVar[int]

    @abstractmethod
    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Labels int64 (n,), all classes equally likely, and informative factors (n, R_slot) by slot."""

    @abstractmethod
    def log_posterior(self, factors: Mapping[str, np.ndarray]) -> np.ndarray:
        """log P(label | factors of some slots) + constant, (n, C)."""

    def optimal(self, factors: Mapping[str, np.ndarray], pattern: Pattern) -> np.ndarray:
        """Bayes' choice (n,) where the slots of a pattern are shown."""
        chosen: np.ndarray = self.log_posterior({slot: factors[slot] for slot in pattern}).argmax(axis=1)
        return chosen


class Additive(Evidence):
    n_classes = 4

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        labels = rng.integers(0, 4, n)
        return labels, {
            slot: radius * CORNERS[labels] + rng.normal(size=(n, 3)) for slot, radius in ADDITIVE_RADIUS.items()
        }

    def log_posterior(self, factors: Mapping[str, np.ndarray]) -> np.ndarray:
        # the means have equal lengths, so that their squares cancel
        total = np.zeros((len(next(iter(factors.values()))), 4))
        for slot, values in factors.items():
            total += ADDITIVE_RADIUS[slot] * values @ CORNERS.T
        return total


class Interacting(Evidence):
    n_classes = 2

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        text, audio = rng.integers(0, 2, (2, n))
        labels = text ^ audio
        means = {
            "text": BIT_DISTANCE * (2 * text - 1),
            "audio": BIT_DISTANCE * (2 * audio - 1),
            "midi": LEAN_DISTANCE * (2 * labels - 1),
        }
        return labels, {slot: (mean + rng.normal(size=n))[:, None] for slot, mean in means.items()}

    def log_posterior(self, factors: Mapping[str, np.ndarray]) -> np.ndarray:
        log_odds = np.zeros(len(next(iter(factors.values()))))
        if "text" in factors and "audio" in factors:
            # E[(-1)^bit] = -tanh(log-odds / 2), and of the XOR of independent bits it is the product
            expected = np.tanh(BIT_DISTANCE * factors["text"][:, 0]) * np.tanh(BIT_DISTANCE * factors["audio"][:, 0])
            log_odds -= 2 * np.arctanh(np.clip(expected, -1 + 1e-15, 1 - 1e-15))
        if "midi" in factors:
            log_odds += 2 * LEAN_DISTANCE * factors["midi"][:, 0]
        return np.stack([np.zeros_like(log_odds), log_odds], axis=1)


KINDS: dict[str, Evidence] = {"additive": Additive(), "interacting": Interacting()}


@dataclass(frozen=True)
class Task:
    """One drawn data set. The first rows are the songs', the rest fresh segments to be tested on, with every slot."""

    data: SegmentData
    target: Target
    train_rows: np.ndarray
    val_rows: np.ndarray
    test_rows: np.ndarray
    optimal: Mapping[Pattern, np.ndarray]  # Bayes' choice on the test rows (n,)


def make_task(evidence: Evidence, n: int, n_test: int, seed: int) -> Task:
    rng = np.random.default_rng(seed)
    labels, factors = evidence.draw(n + n_test, rng)
    songs = np.concatenate([np.sort(rng.integers(0, N_SONGS, n)), N_SONGS + np.arange(n_test)])
    present = np.ones((n + n_test, len(WIDTHS)), bool)
    vectors = {}
    for index, slot in enumerate(WIDTHS):
        present[rng.permutation(n)[: round(MISSING[slot] * n)], index] = False
        embedded = embed(factors[slot], songs, WIDTHS[slot], rng)
        vectors[slot] = torch.from_numpy(np.where(present[:, index, None], embedded, 0).astype(np.float16))

    parts = np.split(rng.permutation(N_SONGS), [round(0.7 * N_SONGS), round(0.85 * N_SONGS)])
    train_rows, val_rows = (np.flatnonzero(np.isin(songs, part)) for part in parts[:2])
    test_rows = np.arange(n, n + n_test)
    names = [f"segment-{row}" for row in range(n + n_test)]
    data = SegmentData(
        {slot: f"{slot}/drawn" for slot in WIDTHS},
        vectors,
        torch.from_numpy(present),
        np.array(names, np.dtypes.StringDType()),
        songs.astype(np.dtypes.StringDType()),
    )
    classes = [str(label) for label in range(evidence.n_classes)]
    known = torch.ones(n + n_test, dtype=torch.bool)
    target = Target("label", "categorical", classes, torch.from_numpy(labels), known)
    tested = {slot: values[n:] for slot, values in factors.items()}
    optimal = {pattern: evidence.optimal(tested, pattern) for pattern in patterns(data.slots)}
    return Task(data, target, train_rows, val_rows, test_rows, optimal)


def embed(factors: np.ndarray, songs: np.ndarray, width: int, rng: np.random.Generator) -> np.ndarray:
    """Informative factors (n, R) among uninformative ones, in a random rotation: float32 (n, width)."""
    n_uninformative = width - factors.shape[1]
    scale = np.sqrt(STRONGEST / np.arange(1, n_uninformative + 1) ** DECAY + FLOOR)
    of_song = rng.normal(size=(songs.max() + 1, n_uninformative))
    of_segment = rng.normal(size=(len(songs), n_uninformative))
    uninformative = scale * (SONG_SHARE**0.5 * of_song[songs] + (1 - SONG_SHARE) ** 0.5 * of_segment)
    rotation, _ = np.linalg.qr(rng.normal(size=(width, width)))
    embedded: np.ndarray = np.concatenate([factors, uninformative], axis=1).astype(np.float32) @ rotation.astype(
        np.float32
    )
    return embedded


class PlainLate(MultimodalFusion):
    """What is usually written first: zeros for what is missing, linear projections side by side, a ReLU MLP."""

    name = "plain late MLP"

    def __init__(self, widths: Mapping[str, int], hidden_dim: int, dropout: float):
        super().__init__(widths, hidden_dim, dropout)
        self.projections = nn.ModuleList([nn.Linear(width, hidden_dim) for width in widths.values()])
        wide = len(widths) * hidden_dim
        self.mlp = nn.Sequential(nn.ReLU(), nn.Linear(wide, hidden_dim), nn.ReLU())

    def fuse(self, features: Mapping[str, Tensor], present: Tensor) -> Fused:
        projected = [
            projection(torch.where(present[:, [index]], features[slot], 0.0))
            for index, (slot, projection) in enumerate(zip(self.slots, self.projections, strict=True))
        ]
        return Fused(self.mlp(torch.cat(projected, dim=1)), torch.stack(projected, dim=1))


Predicted = Mapping[Pattern, np.ndarray]  # a model's choice on the test rows (n,), by what it is shown


def predict_fusion(task: Task, fusion: FusionConfig, training: TrainingConfig, seed: int) -> tuple[Predicted, float]:
    """And the seconds that training took."""
    started = time.perf_counter()
    trained = train(task.data, [task.target], task.train_rows, task.val_rows, fusion, training, seed)
    seconds = time.perf_counter() - started
    predicted = {}
    for pattern in task.optimal:
        shown = torch.tensor([slot in pattern for slot in WIDTHS]).expand(len(task.test_rows), -1)
        outputs, _ = trained.predict(task.data, task.test_rows, shown)
        predicted[pattern] = outputs[0].argmax(axis=1)
    return predicted, seconds


def predict_linear(task: Task) -> tuple[Predicted, float]:
    """Logistic regression, the best of several strengths on the validation part, and the seconds of all of them."""
    started = time.perf_counter()
    inputs = baselines.concatenation(task.data, task.train_rows)
    slot_of_column = np.array([*(slot for slot, width in WIDTHS.items() for _ in range(width)), *WIDTHS])  # mask last
    shown = [inputs[task.test_rows] * np.isin(slot_of_column, pattern) for pattern in task.optimal]
    rows = len(inputs) + np.arange(len(shown) * len(task.test_rows))
    outputs = baselines.linear(np.concatenate([inputs, *shown]), task.target, task.train_rows, task.val_rows, rows)
    predicted = np.split(outputs.argmax(axis=1), len(shown))
    return dict(zip(task.optimal, predicted, strict=True)), time.perf_counter() - started


@dataclass
class Scores:
    """One model on one kind of evidence; one entry a seed."""

    accuracy: dict[Pattern, list[float]] = field(default_factory=lambda: defaultdict(list))
    seconds: list[float] = field(default_factory=list)

    def add(self, task: Task, predicted: Predicted, seconds: float = 0.0) -> None:
        truth = task.target.truth[task.test_rows].numpy()
        for pattern, choice in predicted.items():
            self.accuracy[pattern].append(float((choice == truth).mean()))
        self.seconds.append(seconds)

    def distance(self, optimum: Scores, pattern: Pattern) -> tuple[float, float]:
        """Points below the optimum on the same segments: mean over seeds, and its standard error (NaN of one seed)."""
        points = 100 * (np.array(optimum.accuracy[pattern]) - self.accuracy[pattern])
        error = points.std(ddof=1) / len(points) ** 0.5 if len(points) > 1 else np.nan
        return float(points.mean()), float(error)

    def worst(self, optimum: Scores) -> float:
        """The largest distance of all patterns."""
        return max(self.distance(optimum, pattern)[0] for pattern in self.accuracy)

    def mixed(self, optimum: Scores) -> float:
        """The distance where patterns are as frequent as in the data."""
        frequency = {
            pattern: np.prod([1 - MISSING[slot] if slot in pattern else MISSING[slot] for slot in WIDTHS])
            for pattern in self.accuracy
        }
        points = [self.distance(optimum, pattern)[0] * share for pattern, share in frequency.items()]
        return float(sum(points) / sum(frequency.values()))


def measure(
    evidence: Evidence, config: Config, strategies: Sequence[str], seeds: int, n: int, n_test: int
) -> dict[str, Scores]:
    """By model: the optimum, the two comparisons, and the strategies."""
    scores: dict[str, Scores] = defaultdict(Scores)
    plain = TrainingConfig(
        lr=1e-3, weight_decay=0.0, slot_weight_decay=0.0, adam_epsilon=1e-8, weight_averaging=0.0, modality_dropout=0.0
    )
    for seed in range(seeds):
        task = make_task(evidence, n, n_test, seed)
        scores[OPTIMUM].add(task, task.optimal)
        scores[LINEAR].add(task, *predict_linear(task))
        for strategy in (PlainLate.name, *strategies):
            fusion = config.model.fusion.model_copy(update={"strategy": strategy})
            training = config.training
            if strategy == PlainLate.name:
                fusion, training = fusion.model_copy(update={"hidden_dim": PLAIN_HIDDEN_DIM, "dropout": 0.0}), plain
            scores[strategy].add(task, *predict_fusion(task, fusion, training, seed))
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return scores


def table(evidence: Evidence, scores: Mapping[str, Scores]) -> Iterator[str]:
    """Markdown: accuracy of the optimum by pattern, and every model's points below it."""
    optimum = scores[OPTIMUM]
    labels, factors = evidence.draw(MONTE_CARLO_DRAWS, np.random.default_rng(0))
    exact = [100 * (evidence.optimal(factors, pattern) == labels).mean() for pattern in optimum.accuracy]
    yield "| | " + " | ".join(" + ".join(pattern) for pattern in optimum.accuracy) + " | as in the data | seconds |"
    yield "| --- " * (len(optimum.accuracy) + 3) + "|"
    yield f"| optimum, {MONTE_CARLO_DRAWS:,} draws | " + " | ".join(f"{value:.1f}" for value in exact) + " | | |"
    yield (
        "| optimum, test segments | "
        + " | ".join(f"{100 * np.mean(values):.1f}" for values in optimum.accuracy.values())
        + " | | |"
    )
    for model, found in scores.items():
        if model == OPTIMUM:
            continue
        cells = ["{:.2f} ± {:.2f}".format(*found.distance(optimum, pattern)) for pattern in optimum.accuracy]
        yield f"| {model} | " + " | ".join(cells) + f" | {found.mixed(optimum):.2f} | {np.mean(found.seconds):.0f} |"


@click.command()
@click.option("--fusion", "strategies", multiple=True, help="A strategy; repeatable. [default: all]")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(list(KINDS)), help="Of evidence. [default: both]")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As in `cli fit`; not heard by plain late."
)
@click.option("--segments", type=int, default=N_SEGMENTS, show_default=True)
@click.option("--test-segments", type=int, default=20_000, show_default=True)
@click.option("--seeds", type=int, default=5, show_default=True)
@click.option("--quick", is_flag=True, help="Two seeds, 5,000 test segments.")
def main(
    strategies: tuple[str, ...],
    kinds: tuple[str, ...],
    overrides: tuple[str, ...],
    segments: int,
    test_segments: int,
    seeds: int,
    quick: bool,
) -> None:
    if quick:
        seeds, test_segments = 2, 5_000
    config = load_config(Path(os.devnull), overrides)
    strategies = strategies or tuple(FUSIONS)
    FUSIONS[PlainLate.name] = PlainLate
    print(f"{machine('torch', 'scikit-learn')}, {torch.get_num_threads()} threads")
    print(f"{segments:,} segments, {test_segments:,} test segments, {seeds} seeds; {' '.join(overrides) or 'defaults'}")
    worst: dict[str, float] = defaultdict(float)  # points, of all kinds
    for kind in kinds or tuple(KINDS):
        scores = measure(KINDS[kind], config, strategies, seeds, segments, test_segments)
        print(f"\n{kind}: accuracy of the optimum (%), and points below it ± standard error over seeds\n")
        print("\n".join(table(KINDS[kind], scores)))
        for strategy in strategies:
            worst[strategy] = max(worst[strategy], scores[strategy].worst(scores[OPTIMUM]))
    best = min(worst, key=lambda strategy: worst[strategy])
    print(f"\nBest fusion: {best}, at most {worst[best]:.2f} points below the optimum in every pattern.")


if __name__ == "__main__":
    main()
