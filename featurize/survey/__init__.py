"""What will go wrong with a data set, found before it costs anything: `cli inspect` on raw data and on stores.

Tables and headers are read whole. What must be decoded is decoded of a sample, drawn with a fixed seed, and every table
says how large it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import numpy as np

from featurize.config import FeaturizeConfig
from featurize.errors import SplitError
from featurize.ingestion import check_source
from featurize.labels import could_be_target
from featurize.sources import Source
from featurize.splits import make_splits
from featurize.survey.audio import survey_audio
from featurize.survey.coverage import survey_coverage, survey_split
from featurize.survey.found import Survey
from featurize.survey.lyrics import survey_lyrics
from featurize.survey.notes import survey_notes
from stores.store import Split, Store

SAMPLE = 64  # segments whose audio or MIDI is decoded
SPLITS_SHOWN = 5
LABELS_WATCHED = 8  # where no target is configured: a table may have dozens of columns

__all__ = ["SAMPLE", "Survey", "survey_source", "survey_store"]


def survey_source(
    source: Source,
    config: FeaturizeConfig,
    *,
    sample: int = SAMPLE,
    costs: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> Survey:
    """Everything that `cli ingest` checks, and what the media themselves say. say: called with what is looked at now.

    Raises `SourceError` where the table cannot be used at all.
    """
    say("the table")
    found = check_source(source, config.data, config.model.targets)
    survey = Survey(list(found.problems))
    ids, groups = np.array(found.segments["id"]), np.array(found.segments["group"])
    watched = _to_watch(found.labels, config)
    survey_coverage(survey, ids, groups, found.presence, watched)
    if not found.errors:
        for split in _planned_splits(survey, groups, found.labels, next(iter(watched), None), config):
            survey_split(survey, ids, groups, split, watched)
    say("lyrics")
    lyrics = survey_lyrics(survey, source)
    say("audio")
    survey_audio(survey, source, found.presence["audio"], sample)
    say("MIDI")
    survey_notes(survey, source, found.presence["midi"], sample)
    if costs:
        from featurize.survey.costs import survey_costs  # it needs torch, and the rest does not

        survey_costs(survey, source, config, {**found.presence, "text": lyrics}, say)
    survey.sort()
    return survey


def survey_store(store: Store, config: FeaturizeConfig, features: Mapping[str, Any]) -> Survey:
    """What a store shows of its segments, labels, splits and features. features: of `stores.inspect.summarize`."""
    survey = Survey([])
    ids, groups = store.ids, store.groups
    watched = _to_watch({name: store.label(name) for name in store.label_names()}, config)
    presence = {
        slot: np.logical_or.reduce([store.feature(name).present for name in store.features() if _slot(name) == slot])
        for slot in sorted({_slot(name) for name in store.features()})
    }
    if not presence:
        presence = {
            name.removeprefix("has_"): store.segment_column(name).astype(bool)
            for name in store.segment_columns()
            if name.startswith("has_")
        }
    survey.of_features(features)
    survey_coverage(survey, ids, groups, presence, watched)
    for name in store.splits()[:SPLITS_SHOWN]:
        survey_split(survey, ids, groups, store.split(name), watched)
    survey.sort()
    return survey


def _slot(feature: str) -> str:
    return feature.partition("/")[0]


def _planned_splits(
    survey: Survey,
    groups: np.ndarray,
    labels: Mapping[str, np.ndarray],
    first_target: str | None,
    config: FeaturizeConfig,
) -> list[Split]:
    """The split that `cli ingest` would make, in memory."""
    by = config.split.stratify_by or first_target
    settings = config.split.model_copy(update={"stratify_by": by, "folds": None})
    try:
        return make_splits(groups, labels.get(by) if by else None, settings)
    except SplitError as error:
        survey.warn("split that cannot be made", [str(error)], "More groups, or other shares: split.val, split.test.")
        return []


def _to_watch(labels: Mapping[str, np.ndarray], config: FeaturizeConfig) -> dict[str, np.ndarray]:
    """The labels that are targets; where none is configured, the first few that could be."""
    wanted = [column for target in config.model.targets for column in target.columns or [target.column or target.name]]
    if wanted:
        return {name: values for name, values in labels.items() if name in wanted}
    return dict(islice(((name, v) for name, v in labels.items() if could_be_target(v)), LABELS_WATCHED))
