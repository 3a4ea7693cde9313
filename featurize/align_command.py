"""`cli align`: does the MIDI of each segment fit its audio?"""

from __future__ import annotations

import json
import os
from typing import Any

import click

from featurize.project import Project, project_options

SHOWN = 10
NOTABLE_SECONDS = 0.05  # a shift below this is between a sixteenth note's swing and a frame of most encoders


@click.command("align")
@project_options
@click.option("--correct/--no-correct", default=False, help="Shift the MIDI of segments that belong together.")
@click.option("--exclude/--no-exclude", default=False, help="Treat MIDI that belongs to another piece as absent.")
@click.option(
    "--max-offset", type=click.FloatRange(0.1, 30), default=2.0, show_default=True, help="Seconds either way."
)
@click.option("--workers", type=click.IntRange(0), default=None, help="Processes that measure. [default: all cores]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, every segment.")
def align_command(
    project: Project, correct: bool, exclude: bool, max_offset: float, workers: int | None, as_json: bool
) -> None:
    """Compare the onsets of audio and MIDI in every segment that has both; list what does not fit.

    The measurement stays in the store, and what has not changed is not measured again. With --correct or --exclude it
    is applied where MIDI is read; run featurize again for the MIDI encoders. Without them nothing is changed.

    \b
    Example:
      cli align --correct --exclude
    """
    from featurize.alignment import align
    from featurize.progress import progress_bar
    from featurize.project import StoreRows

    store = project.open_store()
    source = project.open_source(store)
    with progress_bar("align", "segments") as progress:
        columns = align(
            store,
            StoreRows(store, source, "audio"),
            StoreRows(store, source, "midi", as_stated=True),
            correct=correct,
            exclude=exclude,
            max_offset_seconds=max_offset,
            workers=os.cpu_count() or 1 if workers is None else workers,
            progress=progress,
        )
    if as_json:
        click.echo(json.dumps(_as_json(store.ids, columns), indent=2))
        return
    click.echo("\n".join(_lines(store.ids, columns, correct, exclude)))


def _lines(ids: Any, columns: Any, correct: bool, exclude: bool) -> list[str]:
    import numpy as np

    verdict, offset = columns["verdict"], columns["offset_seconds"]
    measured = verdict != ""
    together = verdict == "together"
    shifted = together & (np.abs(np.nan_to_num(offset)) >= NOTABLE_SECONDS)
    done = {
        "shifted": "their MIDI is shifted when it is read" if correct else "apply it with --correct",
        "apart": "their MIDI counts as absent" if exclude else "leave it out with --exclude",
    }
    lines = [f"{int(measured.sum()):,} of {len(ids):,} segments have audio and MIDI:"]
    lines.append(f"  together {int(together.sum()):,}, of these shifted by 50 ms or more {int(shifted.sum()):,}")
    lines += _examples(ids, np.flatnonzero(shifted), lambda row: f"{offset[row]:+.3f} s", done["shifted"])
    apart = np.flatnonzero(verdict == "apart")
    lines.append(f"  apart {len(apart):,}")
    lines += _examples(ids, apart, lambda row: str(columns["reason"][row]), done["apart"])
    for kind in ("unclear", "failed"):
        rows = np.flatnonzero(verdict == kind)
        lines.append(f"  {kind} {len(rows):,}")
        lines += _examples(ids, rows, lambda row: str(columns["reason"][row]), "left as it is")
    if (correct and shifted.any()) or (exclude and len(apart)):
        lines.append("MIDI features are brought up to date by: cli featurize --encoder midi_stats")
    return lines


def _examples(ids: Any, rows: Any, say: Any, remedy: str) -> list[str]:
    lines = [f"    {ids[row]}: {say(row)}" for row in rows[:SHOWN].tolist()]
    if len(rows) > SHOWN:
        lines.append(f"    and {len(rows) - SHOWN:,} more; --json lists them all")
    return [*lines, f"    ({remedy})"] if lines else []


def _as_json(ids: Any, columns: Any) -> list[dict[str, Any]]:
    import math

    def number(value: float) -> float | None:
        return None if math.isnan(value) else float(value)

    return [
        {
            "segment_id": str(ids[row]),
            "verdict": str(columns["verdict"][row]) or None,
            **{name: number(columns[name][row]) for name in ("offset_seconds", "lead", "score")},
            "reason": str(columns["reason"][row]),
        }
        for row in range(len(ids))
    ]
