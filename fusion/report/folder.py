"""What the report reads: a run folder, and nothing beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featurize.errors import UnknownName
from fusion.run_json import read_run_json
from stores.errors import TriadError

FUSION = "fusion"  # the model's name in history.parquet, as in fusion.evaluate, which would import torch


@dataclass(frozen=True)
class RunFolder:
    """metrics, environment: the parsed JSON. history: one row an epoch. predictions: one row a segment, split, seed."""

    folder: Path
    metrics: Mapping[str, Any]
    environment: Mapping[str, Any]
    config: str
    history: pa.Table
    predictions: pa.Table

    @classmethod
    def read(cls, run: Path) -> RunFolder:
        """Raises `TriadError` where a file is missing or damaged."""
        metrics = read_run_json(run / "metrics.json", ("run", "slots", "targets"))
        environment = read_run_json(run / "environment.json")
        try:
            return cls(
                folder=run,
                metrics=metrics,
                environment=environment,
                config=(run / "config.yaml").read_text("utf-8"),
                history=pq.read_table(run / "history.parquet"),
                predictions=pq.read_table(run / "predictions.parquet"),
            )
        except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
            reason = str(error).splitlines()[0]
            raise TriadError(f"{run} is no whole run ({reason}). Train it again with cli fit.") from error

    @property
    def slots(self) -> list[str]:
        """In the model's order."""
        return list(self.metrics["slots"])

    @cached_property
    def seeds(self) -> np.ndarray:
        """int (rows,), the seed of every prediction."""
        return np.asarray(self.predictions["seed"].to_numpy())

    @property
    def n_test(self) -> int:
        """Test segments of all folds, those without a label too."""
        first = self.seeds[:1]
        return int((self.seeds == first).sum()) if len(first) else 0

    def texts(self, column: str) -> np.ndarray:
        """object (rows,): text, or `None` where it is not known."""
        return np.array(self.predictions[column].to_pylist(), dtype=object)

    def numbers(self, column: str) -> np.ndarray:
        """float64 (rows,), NaN where not known."""
        return np.asarray(self.predictions[column].cast(pa.float64()).to_numpy(), dtype=np.float64)

    def matrix(self, prefix: str, classes: list[str]) -> np.ndarray:
        """float64 (rows, K): the columns `<prefix>.<class>`."""
        return np.stack([self.numbers(f"{prefix}.{name}") for name in classes], axis=1)


def find_folder(named: Path) -> tuple[Path, bool]:
    """The folder of a finished run or ablation, a path or a name in `runs/` or `ablations/`; and which it is.

    Raises `UnknownName`, and `TriadError` where its `metrics.json` cannot be read.
    """
    for folder in (named, Path("runs") / named, Path("ablations") / named):
        if (folder / "metrics.json").is_file():
            return folder, "ablation" in read_run_json(folder / "metrics.json")
    known = [*Path("runs").glob("*/metrics.json"), *Path("ablations").glob("*/metrics.json")]
    raise UnknownName("run or ablation", str(named), sorted(path.parent.name for path in known))
