"""`evaluate`: a finished run's model on the segments of a store: presence patterns, calibration, deployment.

Intervals resample groups, with the resamples of `metrics.json`; differences are paired.

Deployment: of the segments that have all the slots in question, what the model scores where these are there at given
rates, independently, and where they are there as in training. Slots can be hidden but not made up, so nothing is said
of the segments that lack them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from featurize.errors import ConfigError, SplitError, UnknownName
from featurize.splits import check_split
from fusion.calibration import (
    TEMPERATURES,
    describe,
    ece,
    equal_mass,
    fit_temperature,
    statements,
)
from fusion.data import StoredSegments
from fusion.evaluate import patterns
from fusion.fitting import PARTS
from fusion.leaks import LeakError, check_encoders
from fusion.load_run import LoadedRun, load_labels, open_features, own_store
from fusion.streaming import StreamedSegments
from fusion.targets import Target
from fusion.views import Chances, Rates, Scorer, Scores, View, Viewer, independent
from stores.errors import TriadError
from stores.store import Part, Split, Store

EVALUATION_FORMAT = 1
ALL = "all"  # the part that is every segment


def evaluate_run(
    run: LoadedRun,
    store: Store,
    *,
    split_name: str | None = None,
    part: str | None = None,
    deployments: Sequence[Rates] = (),
    allow_pending: bool = False,
    allow_leak: bool = False,
) -> dict[str, Any]:
    """What `evaluation.json` holds (`docs/metrics.md`).

    Scored is the test part of the run's split, or every segment of a store that does not have it, unless `split_name`
    or `part` say otherwise. deployments: by default each slot always there, and all of them. Raises `TriadError`s where
    something does not fit, and where segments are not unseen unless `allow_leak`.
    """
    for rates in deployments:
        _check_rates(rates, run.slots)
    data = open_features(run, store, allow_pending=allow_pending)
    targets, label_notes = load_labels(run, store)
    own = own_store(run, store)
    scored = _choose(run, store, own, split_name, part, allow_leak)
    learned = _Learned.of(run, store, own, data, targets, allow_pending)

    rows = scored.rows
    if isinstance(data, StreamedSegments):
        data.keep_at_hand(rows)
    viewer = Viewer(run, data)
    whole = viewer.show(rows, data.present[rows])
    shown = {"+".join(pattern): viewer.pattern(rows, pattern) for pattern in patterns(run.slots)}
    deployed = [
        (rates, viewer.deployment(rows, rates, learned.chances(list(rates), data.slots)))
        for rates in deployments or _usual_deployments(run.slots)
    ]
    found = {}
    for index, target in enumerate(targets):
        scorer = Scorer(index, target, data.groups, run.config.training.bootstrap)
        found[target.name] = {
            "kind": target.kind,
            "metric": scorer.headline.name,
            "higher_is_better": scorer.headline.higher_is_better,
            "classes": target.classes,
            "score": scorer.scores(whole).facts(),
            "presence_patterns": {name: _pattern_facts(scorer, *views) for name, views in shown.items()},
            "calibration": _calibration(run, scorer, data, whole, learned),
            "deployments": [
                {
                    "presence": dict(rates),
                    "training_presence": {slot: learned.presence[slot] for slot in rates},
                    **_pair_facts(scorer, {"deployed": views[0], "as_in_training": views[1]}),
                }
                for rates, views in deployed
            ],
        }
    return {
        "format": EVALUATION_FORMAT,
        "run": run.name,
        "fusion": run.metrics["fusion"],
        "slots": dict(run.metrics["slots"]),
        "model": dict(run.metrics["model"]),
        "store": store.tree.location,
        "split": scored.split,
        "part": scored.part,
        "n_segments": len(rows),
        "n_groups": len(np.unique(data.groups[rows])),
        "presence": {"training": learned.presence, "scored": _presence(data, rows)},
        "notes": scored.notes + label_notes + learned.notes,
        "targets": found,
    }


# What is scored


@dataclass(frozen=True)
class _Scored:
    """split: `None` where a store is scored whole."""

    rows: np.ndarray
    split: str | None
    part: str
    notes: list[str]


def _choose(
    run: LoadedRun, store: Store, own: Store | None, split_name: str | None, part: str | None, allow_leak: bool
) -> _Scored:
    if own is store and split_name in (None, run.metrics["split"]["name"]):
        split_name = run.split_name
    if split_name is None:
        if part not in (None, ALL):
            listed = ", ".join(store.splits()) or "none"
            raise SplitError(
                f"--part {part} of which split? {store.tree.location} does not have the run's; it has {listed}.\n"
                "Name one with --split, or score all segments without --part."
            )
        split, part, rows = None, ALL, np.arange(store.n_segments)
    else:
        split, part = store.split(split_name), part or "test"
        check_split(split, store.groups)
        rows = np.arange(store.n_segments) if part == ALL else split.rows(PARTS[part])
    if len(rows) == 0:
        raise SplitError(f"Split {split_name} of {store.tree.location} has no {part} segments.")

    notes = []
    n_folds, seeds = run.metrics["split"]["folds"], run.metrics["seeds"]
    pooled = [f"means over {len(seeds)} seeds"] if len(seeds) > 1 else []
    pooled += [f"the test parts of {n_folds} folds pooled"] if n_folds > 1 else []
    if pooled:
        model = f"split {run.split_name} and seed {run.metrics['model']['seed']}"
        notes.append(f"This is about one model, that of {model}; metrics.json has {' and '.join(pooled)}.")
    notes += _leak_notes(run, store, own, split, part, rows, allow_leak)
    return _Scored(rows, split_name, part, notes)


def _leak_notes(
    run: LoadedRun,
    store: Store,
    own: Store | None,
    split: Split | None,
    part: str,
    rows: np.ndarray,
    allow: bool,
) -> list[str]:
    """Whether an encoder, or the run itself, has seen what is scored. Raises `LeakError` unless it is allowed."""
    if own is None:
        parts = np.full(store.n_segments, Part.LEFT_OUT, np.uint8)
        parts[rows] = Part.TEST
        what = (
            f"Neither {store.tree.location} nor {run.environment['store']} has split {run.split_name} as run "
            f"{run.name} was trained on it: what it has seen cannot be told"
        )
        if not allow:
            raise LeakError(f"{what}.\nTrain again with cli fit, or accept it with --allow-leak.")
        return [f"LEAK: {what}.", *check_encoders(store, run.features, [Split(ALL, parts, {})], allow)]

    learned = own.split(run.split_name)
    by_run = own is store and split is not None and split.name == run.split_name
    notes = check_encoders(own, run.features, [split if own is store and split is not None else learned], allow)
    if by_run and part == "test":
        return notes
    seen = np.concatenate([learned.rows(Part.TRAIN), learned.rows(Part.VAL)])
    n_seen = int((np.isin(store.groups[rows], own.groups[seen]) | np.isin(store.ids[rows], own.ids[seen])).sum())
    what = (
        f"{n_seen:,} of the {len(rows):,} segments are of groups that run {run.name} was trained on, or whose score "
        "chose its epoch"
    )
    if n_seen == 0:
        return notes
    if by_run:
        return [*notes, f"{what}: this is not how it does on unseen ones."]
    if allow:
        return [*notes, f"LEAK: {what}. The result is not to be believed."]
    raise LeakError(f"{what}: they are not unseen.\nUse --split {run.split_name}, or accept it with --allow-leak.")


# What the run has learned from


@dataclass(frozen=True)
class _Learned:
    """presence: each slot's rate in training. validation: what a temperature is fitted to, where it is known."""

    presence: Rates
    training: Tensor | None  # bool (n, M): the mask of the training part
    validation: tuple[StoredSegments, list[Target], np.ndarray] | None
    notes: list[str]

    @classmethod
    def of(
        cls,
        run: LoadedRun,
        store: Store,
        own: Store | None,
        data: StoredSegments,
        targets: list[Target],
        allow_pending: bool,
    ) -> _Learned:
        """Without the run's own store, the rates of all the run's segments stand for those of the training part."""
        try:
            if own is None:
                raise TriadError(f"{run.environment['store']} does not have split {run.split_name} as it was.")
            if own is not store:
                data, targets = open_features(run, own, allow_pending=allow_pending), load_labels(run, own)[0]
        except TriadError as error:
            why = str(error).partition("\n")[0]
            return cls(
                dict(run.metrics["presence"]), None, None, [f"No temperature, training rates of all parts: {why}"]
            )
        split = own.split(run.split_name)
        train_rows = split.rows(Part.TRAIN)
        return cls(_presence(data, train_rows), data.present[train_rows], (data, targets, split.rows(Part.VAL)), [])

    def chances(self, slots: Sequence[str], all_slots: Sequence[str]) -> Chances:
        """How often each combination of these slots is there in training."""
        if self.training is None:
            return independent({slot: self.presence[slot] for slot in slots})
        columns = [all_slots.index(slot) for slot in slots]
        combinations, counts = np.unique(self.training[:, columns].numpy(), axis=0, return_counts=True)
        shares = counts / counts.sum()
        return {tuple(map(bool, shown)): float(share) for shown, share in zip(combinations, shares, strict=True)}


def _presence(data: StoredSegments, rows: np.ndarray) -> dict[str, float]:
    return {slot: float(data.present[rows, column].double().mean()) for column, slot in enumerate(data.slots)}


def _usual_deployments(slots: Sequence[str]) -> Sequence[Rates]:
    """Each slot always there, and all of them."""
    return [{slot: 1.0} for slot in slots] + ([dict.fromkeys(slots, 1.0)] if len(slots) > 1 else [])


def _check_rates(rates: Rates, slots: Sequence[str]) -> None:
    for slot, rate in rates.items():
        if slot not in slots:
            raise UnknownName("slot of this run", slot, slots)
        if not 0 <= rate <= 1:
            raise ConfigError(f"--presence {slot}={rate:g}: a rate is a share of the segments, from 0 to 1.")


def _pattern_facts(scorer: Scorer, shown: View, whole: View, by_nature: View) -> dict[str, Any]:
    scores = scorer.scores(shown)
    return {
        "shown": scores.facts(),
        "difference": scores.minus(scorer.scores(whole)),
        "by_nature": scorer.scores(by_nature).facts(),
    }


def _pair_facts(scorer: Scorer, views: Mapping[str, View]) -> dict[str, Any]:
    """Both scores, and the first minus the second."""
    scores = {name: scorer.scores(view) for name, view in views.items()}
    first, second = scores.values()
    return {**{name: of_view.facts() for name, of_view in scores.items()}, "difference": first.minus(second)}


# Calibration


def _calibration(
    run: LoadedRun, scorer: Scorer, data: StoredSegments, whole: View, learned: _Learned
) -> dict[str, Any]:
    """How the model is calibrated as it is; and where it states shares, how with the temperature of validation."""
    target = scorer.target
    before, facts = _calibration_of(scorer, whole)
    found = {"as_predicted": facts}
    if target.kind not in ("categorical", "soft_distribution") or learned.validation is None:
        return found
    val_data, val_targets, val_rows = learned.validation
    val_target = val_targets[scorer.index]
    val_rows = val_rows[val_target.known.numpy()[val_rows]]
    if len(val_rows) == 0 or np.isin(data.ids[whole.rows], val_data.ids[val_rows]).any():
        return found  # a temperature is not judged by what it was fitted to
    truth = val_target.truth.numpy()[val_rows]
    shares = np.eye(target.n_outputs)[truth] if target.kind == "categorical" else truth
    temperature = fit_temperature(run.logits(val_data, val_rows)[scorer.index].numpy(), shares)
    logits = run.logits(data, whole.rows)
    logits[scorer.index] = logits[scorer.index].double() / temperature
    outputs = [of.predict(out) for of, out in zip(run.targets, logits, strict=True)]
    after, facts = _calibration_of(scorer, View(whole.rows, [1.0], [outputs]))
    return {
        **found,
        "temperature": {"value": temperature, "n": len(val_rows), "at_limit": temperature in TEMPERATURES},
        "with_temperature": facts,
        "difference": after.minus(before),
    }


def _calibration_of(scorer: Scorer, view: View) -> tuple[Scores, dict[str, Any]]:
    kind = scorer.target.kind
    truth, known = scorer.truth(view.rows)
    prediction = view.outputs[0][scorer.index][known]
    further = []
    if kind != "regression" and len(truth):
        stated, _ = statements(kind, truth, prediction)
        further = [ece(kind, equal_mass(stated), "ece_equal_mass")]
    scores = scorer.scores(view, further)
    return scores, {"metrics": scores.by_name(), **describe(kind, scorer.target.classes, truth, prediction)}
