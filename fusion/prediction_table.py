"""Test predictions of a run's fusion, as the table that `predictions.parquet` holds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

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
) -> dict[str, pa.ChunkedArray]:
    """Test predictions of the fusion: ids, who was there, slot weights, and for each target truth and prediction.

    weights: (n, M) by seed and number of the split, where the fusion has them.
    """
    table: dict[str, list[pa.Array]] = defaultdict(list)
    for seed, by_split in test.outputs.items():
        for number, outputs in by_split.items():
            rows = test.rows[number]
            table["segment_id"].append(pa.array(data.ids[rows].tolist(), pa.string()))
            table["group"].append(pa.array(data.groups[rows].tolist(), pa.string()))
            table["split"].append(pa.repeat(splits[number].name, len(rows)))
            table["seed"].append(pa.repeat(seed, len(rows)))
            for column, slot in enumerate(data.slots):
                table[f"present.{slot}"].append(pa.array(data.present[rows, column].numpy()))
                if (seed, number) in weights:
                    table[f"weight.{slot}"].append(pa.array(weights[seed, number][:, column].astype(np.float64)))
            for target, output in zip(targets, outputs, strict=True):
                for name, values in (_truth(target, rows) | target.columns(output)).items():
                    table[name].append(values if isinstance(values, pa.Array) else pa.array(values))
    return {name: pa.chunked_array(blocks) for name, blocks in table.items()}


def _truth(target: Target, rows: np.ndarray) -> dict[str, pa.Array]:
    """`<target>.true`, or `<target>.true.<class>` where a segment has several; null where it is not known."""
    unknown = ~target.known.numpy()[rows]
    truth = target.truth.numpy()[rows]
    if target.kind == "categorical":
        names = np.array(target.classes, dtype=object)[truth]
        return {f"{target.name}.true": pa.array(names, pa.string(), mask=unknown)}
    columns = {f"{target.name}.true.{label}": truth[:, index] for index, label in enumerate(target.classes)}
    if target.kind == "regression":
        columns = {f"{target.name}.true": truth[:, 0]}
    return {name: pa.array(values.astype(np.float64), mask=unknown) for name, values in columns.items()}
