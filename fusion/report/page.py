"""From a run folder to what the template shows: every number as text, every picture as SVG."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fusion.report.answers import Answers, answers
from fusion.report.by_kind import OUTCOMES, Outcome
from fusion.report.clips import Clips, make_clips
from fusion.report.data_health import DataHealth, data_health
from fusion.report.downloads import Download
from fusion.report.figures import Dot, learning_curves, model_intervals, of_model, pattern_intervals, slot_weights
from fusion.report.folder import FUSION, RunFolder
from fusion.report.headline import ALONE, Headline, best_single_slot, headline
from fusion.report.material import Material, rows_of
from fusion.report.mistakes import Mistake, worst_mistakes
from fusion.report.reliability import Calibration, calibration
from fusion.report.run_tables import run_tables
from fusion.report.segment_map import SegmentMap, build_map
from fusion.report.slot_figures import WeightRow, gradient_norms, weights_by_class, weights_by_pattern
from fusion.report.svg import Picture
from fusion.report.words import BASELINES, verdict
from fusion.table import model_label
from stores.errors import TriadError

Score = Mapping[str, Any]
LEAK = "LEAK: this split cuts through groups, so every value here is too high for groups that were never seen."


@dataclass(frozen=True)
class ModelRow:
    """A model on the test segments of one target. note: what the model is; comparison: fusion minus this model."""

    label: str
    role: str
    note: str
    score: Score
    validation: Score | None
    comparison: Mapping[str, Any] | None
    symbol: str
    word: str
    others: Mapping[str, Score]


@dataclass(frozen=True)
class PatternRow:
    """n_exactly: test segments that have just these slots; share: of all test segments."""

    name: str
    score: Score
    n_exactly: int
    share: float


@dataclass(frozen=True)
class TargetSection:
    """Everything about one target."""

    anchor: str
    name: str
    facts: Mapping[str, Any]
    headline: Headline
    models: list[ModelRow]
    model_picture: Picture
    patterns: list[PatternRow]
    pattern_picture: Picture | None
    outcome: Outcome | None
    calibration: Calibration | None
    mistakes: list[Mistake]

    @property
    def parts(self) -> Mapping[str, Score]:
        """Part of the split to its score."""
        return dict(self.facts["splits"])

    @property
    def other_metrics(self) -> list[str]:
        """Metrics beside the headline, in the order of metrics.json."""
        return list(self.facts["splits"]["test"].get("others", {}))


@dataclass(frozen=True)
class SlotRow:
    """weight_mean, weight_sd: over test segments that have the slot; `None` where the fusion gives no weights."""

    name: str
    encoder: str
    present: float
    weight_mean: float | None = None
    weight_sd: float | None = None
    n_weights: int = 0


@dataclass(frozen=True)
class Page:
    """What `run.html` reads. downloads: by name of the table. clips: audio by segment id."""

    run: RunFolder
    targets: list[TargetSection]
    slots: list[SlotRow]
    n_test: int
    curves: Picture | None
    gradients: Picture | None
    weights: Picture | None
    weight_rows: list[WeightRow]
    weight_class: str
    weight_class_rows: list[WeightRow]
    map: SegmentMap | None
    clips: Clips
    health: DataHealth | None
    why_not: Mapping[str, str]
    warnings: list[str]
    downloads: Mapping[str, Download]


def build_page(run: RunFolder, material: Material) -> Page:
    """All that the page shows, from the run folder and the material beside it."""
    metrics = run.metrics
    names = list(metrics["targets"])
    history = of_model(run.history, FUSION)
    weights = _weights(run)
    said = {name: answers(run, name, metrics["targets"][name]) for name in names}
    targets = [_target(run, name, f"target-{number}", said[name], material) for number, name in enumerate(names, 1)]
    trained_on = str(metrics.get("model", {}).get("split", metrics["split"]["name"]))
    weight_rows = weights_by_pattern(run)
    weight_class, weight_class_rows = weights_by_class(run, metrics["targets"])
    return Page(
        run=run,
        targets=targets,
        slots=[_slot(run, slot, weights) for slot in run.slots],
        n_test=run.n_test,
        curves=learning_curves(history, "curves") if history.num_rows else None,
        gradients=gradient_norms(history, run.slots, "gradients"),
        weights=slot_weights(weights, "weights") if weights else None,
        weight_rows=weight_rows,
        weight_class=weight_class,
        weight_class_rows=weight_class_rows,
        map=build_map(material, _labels(run, material), said, trained_on),
        clips=_clips(material, targets),
        health=data_health(material, metrics["split"]["name"]),
        why_not=material.why_not,
        warnings=_warnings(metrics),
        downloads=run_tables(
            run,
            {target.name: target.calibration for target in targets},
            [*weight_rows, *weight_class_rows],
            {target.name: target.mistakes for target in targets},
        ),
    )


def _labels(run: RunFolder, material: Material) -> list[Any]:
    """The run's targets with the store's labels; none where it has them no more."""
    from fusion.config import load_config
    from fusion.targets import load_targets

    if material.store is None:
        return []
    configured = {target.name: target for target in load_config(run.folder / "config.yaml").model.targets}
    found = []
    for name, facts in run.metrics["targets"].items():
        try:
            config = configured.get(name) or _plain_target(name)
            found += load_targets(material.store, [config.model_copy(update={"kind": facts["kind"]})])
        except TriadError:
            continue
    return found


def _plain_target(name: str) -> Any:
    from featurize.config import TargetConfig

    return TargetConfig(name=name)


def _clips(material: Material, targets: list[TargetSection]) -> Clips:
    """Audio of the mistakes, then of segments drawn at random."""
    if not material.plays_audio or material.store is None or material.source is None:
        return Clips()
    from featurize.project import StoreRows

    store = material.store
    worst = rows_of(store, [mistake.segment_id for target in targets for mistake in target.mistakes])
    drawn = np.random.default_rng(0).permutation(store.n_segments)
    rows = dict.fromkeys([*worst[worst >= 0].tolist(), *drawn.tolist()])
    return make_clips(store.ids.tolist(), StoreRows(store, material.source, "audio"), rows, material.parts.clips)


def _warnings(metrics: Mapping[str, Any]) -> list[str]:
    """The run's notes, and the split's leak where no note says it."""
    notes = list(metrics["notes"])
    if metrics["split"]["leaks"] and not any("cuts through groups" in note for note in notes):
        return [LEAK, *notes]
    return notes


def _target(run: RunFolder, name: str, anchor: str, said: Answers, material: Material) -> TargetSection:
    facts = run.metrics["targets"][name]
    metric, higher = facts["metric"], facts["higher_is_better"]
    models = _models(run, facts)
    majority = facts["baselines"].get("majority", {}).get("test", {}).get("value")
    patterns = facts["presence_patterns"]
    n_test = run.n_test
    return TargetSection(
        anchor=anchor,
        name=name,
        facts=facts,
        headline=headline(name, facts, run.metrics["fusion"]),
        models=models,
        model_picture=model_intervals(
            [Dot(row.label, row.role, row.score) for row in models], metric, higher, majority, f"{anchor}-models"
        ),
        patterns=[
            PatternRow(pattern, score, score["n_exactly"], score["n_exactly"] / max(n_test, 1))
            for pattern, score in patterns.items()
        ],
        pattern_picture=(
            pattern_intervals(patterns, run.slots, n_test, metric, higher, majority, f"{anchor}-patterns")
            if patterns
            else None
        ),
        outcome=OUTCOMES[facts["kind"]](run, name, facts["classes"], f"{anchor}-outcome"),
        calibration=calibration(run, name, facts, f"{anchor}-calibration"),
        mistakes=worst_mistakes(run, said, material),
    )


def _models(run: RunFolder, facts: Mapping[str, Any]) -> list[ModelRow]:
    """The fusion, slots alone, then what knows less and less."""
    fused = facts["splits"]
    test = fused["test"]
    note, others = f"all slots: {', '.join(run.slots)}", test.get("others", {})
    rows = [ModelRow(run.metrics["fusion"], "fusion", note, test, fused.get("val"), None, "", "", others)]
    alone = [name for name in facts["baselines"] if name.endswith(ALONE)]
    known = [name for name in BASELINES if name in facts["baselines"]]
    further = [name for name in facts["baselines"] if name not in {*alone, *known}]
    best = best_single_slot(facts)
    for name in [*alone, *further, *known]:
        parts = facts["baselines"][name]
        comparison = facts["comparisons"].get(name)
        symbol, word = verdict(comparison)
        note = "best single slot by validation" if name == best else BASELINES.get(name, "")
        role, label = "slot" if name in alone else "baseline", model_label(name, facts["kind"])
        test = parts["test"]
        others = test.get("others", {})
        rows.append(ModelRow(label, role, note, test, parts.get("val"), comparison, symbol, word, others))
    return rows


def _weights(run: RunFolder) -> dict[str, np.ndarray]:
    """Slot -> weights (n,) where present; empty where the fusion gives none."""
    if not all(f"weight.{slot}" in run.predictions.column_names for slot in run.slots):
        return {}
    return {
        slot: run.numbers(f"weight.{slot}")[run.predictions[f"present.{slot}"].to_numpy().astype(bool)]
        for slot in run.slots
    }


def _slot(run: RunFolder, slot: str, weights: Mapping[str, np.ndarray]) -> SlotRow:
    row = SlotRow(slot, run.metrics["slots"][slot], run.metrics["presence"][slot])
    found = weights.get(slot, np.empty(0))
    if len(found) == 0:
        return row
    return replace(row, weight_mean=float(found.mean()), weight_sd=float(found.std()), n_weights=len(found))
