"""Test predictions of a run's fusion, as the table that `predictions.parquet` holds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from fusion.data import StoredSegments
from fusion.evaluate import Predictions
from fusion.targets import Target
from stores.store import Split


def prediction_table(
    data: StoredSegments,
    targets: list[Target],
    splits: list[Split],
    test: Predictions,
    weights: Mapping[tuple[int, int], np.ndarray],
) -> dict[str, Any]:
    """Test predictions of the fusion: ids, who was there, slot weights, and for each target truth and prediction.

    weights: (n, M) by seed and number of the split, where the fusion has them.
    """
    table: dict[str, list[Any]] = defaultdict(list)
    for seed, by_split in test.outputs.items():
        for number, outputs in by_split.items():
            rows = test.rows[number]
            table["segment_id"] += data.ids[rows].tolist()
            table["group"] += data.groups[rows].tolist()
            table["split"] += [splits[number].name] * len(rows)
            table["seed"] += [seed] * len(rows)
            for column, slot in enumerate(data.slots):
                table[f"present.{slot}"] += data.present[rows, column].tolist()
                if (seed, number) in weights:
                    table[f"weight.{slot}"] += weights[seed, number][:, column].tolist()
            for target, output in zip(targets, outputs, strict=True):
                _add_target(table, target, rows, output)
    return table


def _add_target(table: dict[str, list[Any]], target: Target, rows: np.ndarray, output: np.ndarray) -> None:
    """`<target>.true`, or `<target>.true.<class>` where a segment has several, and what `Target.columns` gives."""
    known = target.known.numpy()[rows]
    truth = target.truth.numpy()[rows]
    if target.kind == "categorical":
        table[f"{target.name}.true"] += [target.classes[t] if k else None for t, k in zip(truth, known, strict=True)]
    elif target.kind == "regression":
        table[f"{target.name}.true"] += [float(t[0]) if k else None for t, k in zip(truth, known, strict=True)]
    else:
        for index, label in enumerate(target.classes):
            cells = [float(t[index]) if k else None for t, k in zip(truth, known, strict=True)]
            table[f"{target.name}.true.{label}"] += cells
    for column, values in target.columns(output).items():
        table[column] += values.tolist()
