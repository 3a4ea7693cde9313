"""What each encoder will cost: seconds by encoding a sample on this machine, bytes by width times rows.

Measured are the encoders that the configuration names, and those that need no download. A pretrained model is measured
where it can be loaded.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from featurize.config import FeaturizeConfig
from featurize.encode import set_up
from featurize.encoder_options import configured_options
from featurize.encoders import build_encoder, encoder_class
from featurize.measure import SAMPLE_ROWS, feature_bytes, measure
from featurize.segments import Raw, UnreadableInput
from featurize.sources import Source
from featurize.survey.audio import SEED
from featurize.survey.found import Survey
from stores.errors import TriadError

WITHOUT_DOWNLOAD = {"text": "lsa", "audio": "mel_stats", "midi": "midi_stats"}
FITTED_ON = 500  # texts; all of them would take as long as it takes


def survey_costs(
    survey: Survey,
    source: Source,
    config: FeaturizeConfig,
    presence: Mapping[str, np.ndarray],
    say: Callable[[str], None],
) -> None:
    """presence: bool (N,) by modality."""
    rows = []
    for modality, there in presence.items():
        if not there.any():
            continue
        configured = config.model.encoder_for(modality)
        names = dict.fromkeys(
            [configured.type if configured else WITHOUT_DOWNLOAD[modality], WITHOUT_DOWNLOAD[modality]]
        )
        for name in names:
            say(f"what {name} costs")
            rows.append(
                {"encoder": f"{modality}/{name}", "segments": int(there.sum()), **_cost(source, config, name, there)}
            )
    workers = os.cpu_count() or 1
    how = f"by {SAMPLE_ROWS} segments of each, seed {SEED}; {workers} processes prepare"
    survey.table("costs", f"what encoding costs here at most ({how})", rows)


def _cost(source: Source, config: FeaturizeConfig, name: str, there: np.ndarray) -> dict[str, Any]:
    try:
        cls = encoder_class(name)
        if cls.must_train:
            return _unmeasured(f"cli train-encoder --encoder {name} makes it first")
        encoder = build_encoder(name, configured_options(config, name))
        set_up(encoder)
        fitting = 0.0
        if encoder.must_fit:
            fitting = _fit(encoder, source, there)
        rows = np.flatnonzero(there)
        chosen = rows[:SAMPLE_ROWS] if source.has_blobs(cls.modality) else _draw(rows, SAMPLE_ROWS)
        cost = measure(encoder, _raws(source, chosen, cls.modality))
    except (TriadError, UnreadableInput) as error:
        return _unmeasured(str(error).splitlines()[0])
    if cost is None:
        return _unmeasured("none of the sample can be encoded")
    seconds = cost.seconds(len(rows), os.cpu_count() or 1) + fitting
    size = feature_bytes(len(source), encoder.width, 2)
    return {"seconds": float(seconds), "width": encoder.width, "MB": size / 1e6, "remark": ""}


def _unmeasured(why: str) -> dict[str, Any]:
    return {"seconds": None, "width": None, "MB": None, "remark": f"not measured: {why}"[:110]}


def _fit(encoder: Any, source: Source, there: np.ndarray) -> float:
    """Seconds that fitting on all of them would take, by fitting on some."""
    rows = np.flatnonzero(there)
    chosen = _draw(rows, FITTED_ON)
    raws = _raws(source, chosen, encoder.modality)
    started = time.perf_counter()
    encoder.fit(raws)
    return (time.perf_counter() - started) * len(rows) / len(chosen)


def _draw(rows: np.ndarray, most: int) -> np.ndarray:
    return np.sort(np.random.default_rng(SEED).choice(rows, size=min(most, len(rows)), replace=False))


def _raws(source: Source, rows: np.ndarray, modality: str) -> list[Raw]:
    found = []
    for row in rows.tolist():
        try:
            raw = source.raw(row, modality)
        except UnreadableInput:
            continue
        if raw is not None:
            found.append(raw)
    return found
