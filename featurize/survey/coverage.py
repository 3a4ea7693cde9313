"""Who has which modality, by group and by label; and what a split leaves its parts without.

Classes are the values of a categorical label; of a number, each part's mean and spread are told instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from featurize.labels import could_be_target, infer_kind, strata
from featurize.survey.found import Survey
from stores.store import Part, Split

FEWEST_GROUPS = 3  # one for each part of a split
TELLING = 0.3  # so far may a class's share of a modality be from all others' before missingness tells the label
FEWEST_TOLD = 10  # segments of a class, below which a share is chance
LOPSIDED = 0.9
NUMBERS: dict[str, Callable[[np.ndarray], Any]] = {"mean": np.mean, "deviation": np.std, "min": np.min, "max": np.max}
PARTS = (Part.TRAIN, Part.VAL, Part.TEST)


def survey_coverage(
    survey: Survey,
    ids: np.ndarray,
    groups: np.ndarray,
    presence: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
) -> None:
    """Tables of coverage by group and by label. ids, groups: text (N,). presence: bool (N,) by modality or slot."""
    names, of_group = np.unique(groups, return_inverse=True)
    sizes = np.bincount(of_group)
    rows = []
    for modality, there in presence.items():
        shares = np.bincount(of_group, weights=there) / sizes
        rows.append(
            {
                "modality": modality,
                "segments": int(there.sum()),
                "share": _share(there.mean()),
                "groups with all": int((shares == 1).sum()),
                "with some": int(((shares > 0) & (shares < 1)).sum()),
                "with none": int((shares == 0).sum()),
            }
        )
    title = f"coverage: {len(ids):,} segments in {len(names):,} groups, {sizes.min():,} to {sizes.max():,} in a group"
    survey.table("coverage", title, rows)
    for label, values in labels.items():
        if has_classes(values):
            _by_class(survey, label, strata(values), groups, presence)
    unlabelled = [label for label, values in labels.items() if not (strata(values) != "").any()]
    survey.warn("label without a single value", unlabelled, "Leave the column away, or fill it.", note=True)


def survey_split(
    survey: Survey, ids: np.ndarray, groups: np.ndarray, split: Split, labels: Mapping[str, np.ndarray]
) -> None:
    """A table of each label, (N,) or (N, K), by part; classes that a part lacks are problems."""
    for label, values in labels.items():
        if values.dtype.kind != "T" and values.ndim == 1 and not has_classes(values):
            _numbers_by_part(survey, label, values, split)
        if not has_classes(values):
            continue
        classes = np.asarray(strata(values))
        rows: list[dict[str, Any]] = []
        gone: dict[Part, list[str]] = {part: [] for part in PARTS}
        for name in np.unique(classes[classes != ""]).tolist():
            counts = {part: int(((classes == name) & (split.parts == part)).sum()) for part in PARTS}
            n_groups = len(np.unique(groups[classes == name]))
            rows.append({"class": name, **{p.name.lower(): counts[p] for p in PARTS}, "groups": n_groups})
            for part in PARTS:
                gone[part] += [] if counts[part] else [repr(name)]
        missing = classes == ""
        if missing.any():
            counts = {part: int((missing & (split.parts == part)).sum()) for part in PARTS}
            rows.append({"class": "(missing)", **{p.name.lower(): counts[p] for p in PARTS}, "groups": None})
        title = f"{label} by part of split {split.name} ({split.facts.get('method', '')})"
        survey.table(f"split.{split.name}.{label}", title, rows)
        for part, why in (
            (Part.TRAIN, "It is never learned."),
            (Part.VAL, "The best epoch is chosen without it."),
            (Part.TEST, "Nothing is measured of it."),
        ):
            what = f"{label} class without a segment in {part.name.lower()} of split {split.name}"
            survey.warn(
                what, gone[part], f"{why} Another split.seed, more songs of it, or k folds: cli split --folds 5"
            )


def has_classes(values: np.ndarray) -> bool:
    """Whether a label, (N,) or (N, K), is categorical, as far as its values tell."""
    return could_be_target(values) and infer_kind(values) == "categorical"


def _numbers_by_part(survey: Survey, label: str, values: np.ndarray, split: Split) -> None:
    rows: list[dict[str, Any]] = []
    for part in PARTS:
        here = values[split.parts == part]
        known = here[~np.isnan(here)]
        facts = {"part": part.name.lower(), "known": len(known), "missing": len(here) - len(known)}
        rows.append(facts | {name: float(f(known)) if len(known) else None for name, f in NUMBERS.items()})
        what = f"{label} without a single value in {part.name.lower()} of split {split.name}"
        survey.warn(
            what, [] if len(known) else [label], "Fill some, or make another split: cli split --seed 1 --name b"
        )
    survey.table(f"split.{split.name}.{label}", f"{label} by part of split {split.name}", rows)


def _by_class(
    survey: Survey, label: str, classes: np.ndarray, groups: np.ndarray, presence: Mapping[str, np.ndarray]
) -> None:
    known = classes != ""
    rows: list[dict[str, Any]] = []
    few: list[str] = []
    telling: list[str] = []
    for name in np.unique(classes[known]).tolist():
        here = classes == name
        n_groups = len(np.unique(groups[here]))
        shares = {modality: float(there[here].mean()) for modality, there in presence.items()}
        rows.append(
            {
                "class": name,
                "segments": int(here.sum()),
                "groups": n_groups,
                **{modality: _share(share) for modality, share in shares.items()},
            }
        )
        few += [f"{name!r} ({n_groups})"] if n_groups < FEWEST_GROUPS else []
        others = known & ~here
        if min(here.sum(), others.sum()) >= FEWEST_TOLD:
            for modality, share in shares.items():
                rest = float(presence[modality][others].mean())
                if abs(share - rest) >= TELLING:
                    telling.append(f"{modality} of {name!r}: {share:.0%}, of the others {rest:.0%}")
    missing = f", {int((~known).sum()):,} without one" if not known.all() else ""
    survey.table(f"label.{label}", f"coverage by {label}: {len(rows)} classes{missing}", rows)
    if not rows:
        return
    remedy = f"It cannot stand in train, val and test at once: more songs, or leave the class out of {label}."
    survey.warn(f"{label} class in fewer than {FEWEST_GROUPS} groups", few, remedy)
    remedy = "What is missing gives the label away; see that a model beats mask only in cli fit."
    survey.warn(f"{label} class whose coverage differs", telling, remedy)
    most = max(rows, key=lambda row: row["segments"])
    if most["segments"] >= LOPSIDED * known.sum() and len(rows) > 1:
        example = f"{most['class']!r} has {most['segments'] / known.sum():.0%}"
        remedy = "Accuracy says little: metric: macro_f1 and class_weights: balanced for this target."
        survey.warn(f"{label} is almost one class", [example], remedy)


def _share(value: float | np.floating[Any]) -> str:
    return f"{float(value):.1%}"
