"""Run cells of an ablation here, or in other processes; each comes back when it is finished."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from pebble import ProcessPool

from featurize.user_code import allow_code, allowed_code
from featurize.workers import process_context, take_environment
from fusion.shapley import Cell
from fusion.shared_tensors import pickled
from stores.errors import TriadError


class Runs(Protocol):
    """What trains and keeps a cell. Picklable."""

    def run(self, cell: Cell) -> None:
        """Train one cell and keep it where `Cells.read` finds it."""


def run_cells(cells: Runs, missing: Sequence[Cell], workers: int) -> Iterator[Cell]:
    """Run these; `workers=0` does it in this process."""
    if not workers or not missing:
        for cell in missing:
            cells.run(cell)
            yield cell
        return
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        copied = pickled(cells, Path(folder))
        given = (copied, allowed_code(), dict(os.environ))
        context = process_context(type(cells).__module__)
        pool = ProcessPool(workers, context=context, initializer=_adopt_cells, initargs=given)
        try:
            for future in as_completed([pool.schedule(_run_in_worker, args=(cell,)) for cell in missing]):
                cell, mistake = future.result()
                if mistake is not None:
                    raise TriadError(mistake)
                yield cell
        finally:
            pool.stop()
            pool.join()


_cells: Runs  # of this worker process


def _adopt_cells(copied: bytes, code: Sequence[str], environment: Mapping[str, str]) -> None:
    global _cells
    take_environment(environment)
    for module in code:  # its user has named it in the process that started this one
        allow_code(module)
    _cells = pickle.loads(copied)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle


def _run_in_worker(cell: Cell) -> tuple[Cell, str | None]:
    """The cell, and the user's mistake where there is one: not every exception survives the way back."""
    try:
        _cells.run(cell)
    except TriadError as error:
        return cell, str(error)
    return cell, None
