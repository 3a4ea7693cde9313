"""What a file of predictions holds, in a few lines: who was there, what failed, and what was predicted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fusion.targets import Target

REASONS_SHOWN = 3


class PredictionSummary:
    """Add every table; `facts` is ready for JSON."""

    def __init__(self, slots: Sequence[str], targets: Sequence[Target]):
        self._slots = slots
        self._targets = targets
        self._n = self._n_nothing = 0
        self._used: Counter[str] = Counter()
        self._failed: dict[str, Counter[str]] = {slot: Counter() for slot in slots}
        self._classes: dict[str, Counter[str]] = {target.name: Counter() for target in targets}
        self._sums: Counter[str] = Counter()
        self._ranges: dict[str, list[float]] = {}

    def add(self, table: pa.Table) -> None:
        """Count a block of predictions in."""
        self._n += table.num_rows
        if table.num_rows == 0:
            return
        used = np.stack([table[f"used.{slot}"].to_numpy() for slot in self._slots], axis=1)
        self._n_nothing += int((~used.any(axis=1)).sum())
        self._used.update(dict(zip(self._slots, used.sum(axis=0).tolist(), strict=True)))
        for slot in self._slots:
            self._failed[slot].update(table[f"failed.{slot}"].drop_null().to_pylist())
        for target in self._targets:
            column = f"{target.name}.predicted"
            if target.kind == "categorical":
                self._classes[target.name].update(table[column].to_pylist())
            elif target.kind == "regression":
                low, high = (float(value.as_py()) for value in pc.min_max(table[column]).values())
                seen = self._ranges.get(target.name, [low, high])
                self._ranges[target.name] = [min(low, seen[0]), max(high, seen[1])]
                self._sums[column] += pc.sum(table[column]).as_py()
            else:
                for label in target.classes:
                    column = f"{target.name}.p.{label}"
                    self._sums[column] += pc.sum(table[column]).as_py()

    def facts(self) -> dict[str, Any]:
        """segments, how many have no slot at all; by slot used and failed; by target what was predicted."""
        return {
            "segments": self._n,
            "nothing_present": self._n_nothing,
            "used": {slot: self._used[slot] for slot in self._slots},
            "failed": {slot: dict(reasons.most_common()) for slot, reasons in self._failed.items()},
            "targets": {target.name: self._target(target) for target in self._targets} if self._n else {},
        }

    def _target(self, target: Target) -> dict[str, Any]:
        if target.kind == "categorical":
            return {"predicted": {name: self._classes[target.name][name] for name in target.classes}}
        if target.kind == "regression":
            low, high = self._ranges[target.name]
            return {"mean": self._sums[f"{target.name}.predicted"] / self._n, "min": low, "max": high}
        return {"mean": {label: self._sums[f"{target.name}.p.{label}"] / self._n for label in target.classes}}


def summary_lines(facts: Mapping[str, Any]) -> list[str]:
    """facts: of `PredictionSummary`."""
    n = facts["segments"]
    width = max(map(len, facts["used"]))
    lines = []
    for slot, used in facts["used"].items():
        reasons = facts["failed"][slot]
        lines.append(f"  {slot:<{width}}  there in {used:,} of {n:,}")
        lines += [f"    failed {count:,}: {reason}" for reason, count in list(reasons.items())[:REASONS_SHOWN]]
        if len(reasons) > REASONS_SHOWN:
            lines.append(f"    and {len(reasons) - REASONS_SHOWN:,} other reasons, in column failed.{slot}")
    if facts["nothing_present"]:
        lines.append(f"  {facts['nothing_present']:,} have nothing: all of these get one and the same prediction")
    for name, found in facts["targets"].items():
        if "predicted" in found:
            text = ", ".join(f"{label} {count / n:.0%}" for label, count in found["predicted"].items())
        elif "min" in found:
            text = f"{found['min']:.4g} to {found['max']:.4g}, mean {found['mean']:.4g}"
        else:
            text = "mean " + ", ".join(f"{label} {share:.3f}" for label, share in found["mean"].items())
        lines.append(f"{name}: {text}")
    return lines
