"""The run folder: everything one training produced, from which any table and the report can be made again.

config.yaml          the configuration in force
environment.json     versions, machine, command, store and split fingerprints
metrics.json         every number, with intervals (`docs/metrics.md`)
history.parquet      one row an epoch, for every model, split and seed
predictions.parquet  one row a segment, split and seed, of what was held out
model.safetensors    weights of one model; what it needs to be rebuilt stands in the file's metadata
report.html
evaluation.json      what `cli evaluate` found, where it was asked
encoders/<slot>/     encoders that `cli finetune` tuned, as `featurize.trained` saves them
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import save

from featurize.errors import UnknownName
from fusion.config import Config, dump_yaml
from stores.errors import TriadError, disk_told

CHECKPOINTS = "checkpoints"  # of trainings that are not finished, in a run that is not
PACKAGES = ("triad-fusion", "torch", "numpy", "scikit-learn", "zarr", "pyarrow")


def free_name(runs: Path, wanted: str) -> str:
    """`wanted`, or `wanted-2`, `wanted-3`, … where that run exists."""
    name, number = wanted, 2
    while (runs / name).exists():
        name, number = f"{wanted}-{number}", number + 1
    return name


def check_name(runs: Path, name: str, overwrite: bool) -> str:
    """`name`, if a run may be called so. Raises `TriadError`; ask before the training, not after."""
    if not name or "/" in name or "\\" in name or name.startswith("."):
        raise TriadError(f"A run is called by a plain name such as gated-2, not {name!r}.")
    if (runs / name).exists() and not overwrite:
        raise TriadError(f"Run {runs / name} exists. Use another --name, or --overwrite it.")
    return name


@contextmanager
def new_run(runs: Path, name: str) -> Iterator[Path]:
    """A folder that becomes `runs/name` when the block ends without error.

    Of one that was interrupted, the checkpoints are still there; whose they are, they know themselves.
    """
    final = runs / name
    partial = runs / f".{name}.partial"
    partial.mkdir(parents=True, exist_ok=True)
    for left in partial.iterdir():
        if left.is_dir() and left.name != CHECKPOINTS:
            shutil.rmtree(left)
        elif left.name != CHECKPOINTS:
            left.unlink()
    with disk_told(partial):
        yield partial
    shutil.rmtree(partial / CHECKPOINTS, ignore_errors=True)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)


def open_run(run: Path) -> Path:
    """The folder of a finished run: a path, or a name in `runs/`. Raises `UnknownName`."""
    for folder in (run, Path("runs") / run):
        if (folder / "metrics.json").is_file():
            return folder
    known = sorted(path.parent.name for path in Path("runs").glob("*/metrics.json"))
    raise UnknownName("run", str(run), known)


def write_config(run: Path, config: Config) -> None:
    """The configuration in force as `config.yaml`."""
    (run / "config.yaml").write_text(dump_yaml(config), "utf-8")


def write_json(path: Path, value: Any) -> None:
    """Plain values, indented. Raises `ValueError` on NaN and infinities, which JSON has not."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")


def write_table(path: Path, columns: Mapping[str, Any]) -> None:
    """Columns of one length as a parquet file."""
    pq.write_table(pa.table(dict(columns)), path)


def write_model(path: Path, weights: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Weights as safetensors, and as metadata what is needed to build the module that takes them."""
    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    partial = path.with_name(f"{path.name}.partial")  # not into the file itself: the weights may be mapped from it
    partial.write_bytes(save(tensors, metadata={"triad_fusion": json.dumps(facts, sort_keys=True)}))
    partial.replace(path)


def environment(**facts: Any) -> dict[str, Any]:
    """Versions, machine and command, with further `facts` of the run."""
    return {
        "command": shlex.join(["cli", *sys.argv[1:]]),
        "recorded_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "packages": {name: version(name) for name in PACKAGES},
        **facts,
    }
