"""What leaking would have bought: one fusion on a split by groups, and on its segments dealt one by one.

The split by segments has parts of the same sizes and, with a categorical target, of the same class shares: segments
change places within their class. Of folds all change places alike, so that each is tested once on either side. It stays
in memory. Both sides are trained with the same seeds; a value is the mean over them, folds pooled.

Groups are resampled once for both sides, and the difference is taken in every resample. With folds both test the same
segments; with a single split each group counts where it is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from featurize.errors import SplitError
from fusion import baselines
from fusion.config import Config
from fusion.data import SegmentData, choose_features, load_segments
from fusion.evaluate import Predictions
from fusion.fitting import PARTS, open_splits
from fusion.leaks import check_encoders
from fusion.metrics import GroupBootstrap, Metric, headline_metric, interval, json_number, score
from fusion.modules import fusion_class
from fusion.targets import Target, load_targets
from fusion.train import train
from stores.store import Part, Split, Store

Progress = Callable[[int, int], None]  # trainings done, trainings in all


def compare_splits(
    store: Store, config: Config, *, split_name: str | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Scores on test by groups and by segments, of `config.model.fusion`, and their difference; as `--json` has them.

    split_name: a split, or a set of folds. Raises `SplitError` where it is not by groups.
    """
    split_name = split_name or config.split.name
    splits = open_splits(store, split_name)
    if any(split.facts.get("leaks") for split in splits):
        raise SplitError(
            f"Split {split_name} is by segments already, so there is nothing to hold it against.\n"
            "Name one by groups: --split default"
        )
    strategy = config.model.fusion.strategy
    with_frames = fusion_class(strategy).reads_frames
    data = load_segments(store, choose_features(store, config), with_frames=with_frames)
    targets = load_targets(store, list(config.model.targets))
    by_segments = deal_segments(splits, targets, seed=config.split.seed)

    done, to_do = 0, 2 * len(splits) * len(config.training.seeds)

    def test(splits: Sequence[Split]) -> Predictions:
        nonlocal done
        predictions = Predictions()
        for number, split in enumerate(splits):
            rows = {part: split.rows(code) for part, code in PARTS.items()}
            for seed in config.training.seeds:
                trained = train(data, targets, rows["train"], rows["val"], config.model.fusion, config.training, seed)
                predictions.add(seed, number, rows["test"], trained.predict(data, rows["test"])[0])
                done += 1
                if progress is not None:
                    progress(done, to_do)
        return predictions

    grouped, random = test(splits), test(by_segments)
    majority = Predictions()
    for number, split in enumerate(splits):
        train_rows, rows = split.rows(Part.TRAIN), split.rows(Part.TEST)
        majority.add(0, number, rows, [baselines.majority(target, train_rows, rows) for target in targets])
    sides = {"grouped": grouped, "random": random, "majority": majority}
    return {
        "split": split_name,
        "folds": len(splits),
        "fusion": strategy,
        "slots": {slot: feature.partition("/")[2] for slot, feature in data.features.items()},
        "seeds": config.training.seeds,
        "targets": {
            target.name: _scores(data, index, target, sides, config.training.bootstrap)
            for index, target in enumerate(targets)
        },
        "notes": {
            "grouped": check_encoders(store, data.features, splits, allow=True),
            "random": check_encoders(store, data.features, by_segments, allow=True),
        },
    }


def deal_segments(splits: Sequence[Split], targets: Sequence[Target], seed: int) -> list[Split]:
    """The same splits with segments for groups: those that no split leaves out change places, within their class.

    The classes are those of the first categorical target; segments without a label are a class of their own.
    """
    kept = np.flatnonzero(np.all([split.parts != Part.LEFT_OUT for split in splits], axis=0))
    classes = np.zeros(len(splits[0].parts), np.int64)
    for target in reversed(targets):
        if target.kind == "categorical":
            classes = np.where(target.known.numpy(), target.truth.numpy(), -1)
    generator = np.random.default_rng(seed)
    place = np.arange(len(classes))
    for code in np.unique(classes[kept]).tolist():
        rows = kept[classes[kept] == code]
        place[rows] = generator.permutation(rows)
    return [
        replace(split, parts=split.parts[place], facts={**split.facts, "method": "random", "leaks": True})
        for split in splits
    ]


@dataclass(frozen=True)
class _Side:
    """What was predicted of the test rows that have the label. outputs: by seed, (n, K)."""

    rows: np.ndarray
    truth: np.ndarray
    outputs: list[np.ndarray]

    def value(self, metric: Metric) -> float:
        return float(np.mean([score(metric, self.truth, output) for output in self.outputs]))


def _scores(
    data: SegmentData, index: int, target: Target, predictions: dict[str, Predictions], resamples: int
) -> dict[str, Any]:
    metric = headline_metric(target.kind, target.metric)
    sides = {name: _side(found, index, target) for name, found in predictions.items()}
    groups = {name: data.groups[side.rows] for name, side in sides.items()}
    facts = {
        name: {"value": None, "ci95": None, "n": len(side.rows), "n_groups": len(np.unique(groups[name]))}
        for name, side in sides.items()
    }
    found: dict[str, Any] = {"metric": metric.name, "higher_is_better": metric.higher_is_better, **facts}
    for name, side in sides.items():
        if len(side.rows):
            alone = GroupBootstrap(groups[name], resamples).values(metric, side.truth, side.outputs)
            found[name] |= {"value": json_number(side.value(metric)), "ci95": interval(alone)}
    grouped, random = sides["grouped"], sides["random"]
    if not len(grouped.rows) or not len(random.rows):
        return {**found, "difference": {"difference": None, "ci95": None, "better": None}}
    both = GroupBootstrap(np.concatenate([groups["grouped"], groups["random"]]), resamples)
    resampled = _resampled(both, metric, random, before=len(grouped.rows)) - _resampled(
        both, metric, grouped, after=len(random.rows)
    )
    ci95 = interval(resampled)
    difference = json_number(random.value(metric) - grouped.value(metric))
    return {**found, "difference": {"difference": difference, "ci95": ci95, "better": metric.is_better(ci95)}}


def _side(predictions: Predictions, index: int, target: Target) -> _Side:
    rows = predictions.pooled_rows()
    known = target.known.numpy()[rows]
    outputs = [output[known] for output in predictions.pooled(index)]
    return _Side(rows[known], target.truth.numpy()[rows[known]], outputs)


def _resampled(both: GroupBootstrap, metric: Metric, side: _Side, before: int = 0, after: int = 0) -> np.ndarray:
    """(R,): one side in the resamples of both. before, after: rows of the other side, which add nothing to this one."""
    if both.n_groups < 2:
        return np.array([np.nan])
    by_seed = []
    for output in side.outputs:
        statistics = np.pad(metric.statistics(side.truth, output), ((before, after), (0, 0)))
        by_seed.append(metric.value(both.sums(statistics)))
    return np.asarray(np.mean(by_seed, axis=0))
