"""`cli predict`: what a run's model says of the segments of a store, or of raw segments; a row a segment, in a file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from featurize.project import Project, code_option, project_options
from fusion.completion import complete_runs
from stores.commands import LOCATION
from stores.remote import Location

if TYPE_CHECKING:
    from fusion.prediction_file import Write

STDOUT = "-"
FEW_SEGMENTS = 100  # are prepared sooner than other processes have started


@click.command("predict")
@click.argument("run", type=click.Path(path_type=Path), shell_complete=complete_runs)
@click.argument("data", type=LOCATION)
@project_options
@code_option
@click.option(
    "--out", help="File to write, or - for standard output. [default: predictions.parquet, or as --format says]"
)
@click.option(
    "--format", "file_format", type=click.Choice(["parquet", "csv", "jsonl"]), help="[default: as the file's name ends]"
)
@click.option("--slots", help="Show only these to the model, e.g. text,audio. [default: all of the run's]")
@click.option("--calibrated", is_flag=True, help="Divide by the temperatures that cli evaluate RUN found.")
@click.option(
    "--encoder",
    "places",
    multiple=True,
    metavar="SLOT=FOLDER",
    help="Where a trained encoder or a checkpoint is, if not where it was; repeatable.",
)
@click.option("--allow-other-versions", is_flag=True, help="Encode though libraries are not those of the features.")
@click.option(
    "--workers",
    type=click.IntRange(0),
    help=f"Processes that prepare raw segments. [default: all cores; none for fewer than {FEW_SEGMENTS}]",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    default="auto",
    show_default=True,
    help="Where raw segments are encoded.",
)
@click.option("--overwrite", is_flag=True, help="Replace a file of the same name.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def predict_command(
    project: Project,
    run: Path,
    data: Location,
    out: str | None,
    file_format: str | None,
    slots: str | None,
    calibrated: bool,
    places: tuple[str, ...],
    allow_other_versions: bool,
    workers: int | None,
    device: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Predict the segments of DATA with RUN's model. Labels are not needed.

    RUN is a folder or a name in runs/. DATA is a store with the run's features, or raw segments as cli ingest takes
    them: these pass through the very encoders that the run's features were made by, which --store remembers. What a
    segment lacks, or what cannot be read, is missing.

    \b
    Example:
      cli predict gated new-songs/ --out moods.csv
    """
    from featurize.progress import named_progress
    from featurize.sources import Source
    from fusion.prediction_file import format_of, new_file, text_writer
    from fusion.prediction_summary import PredictionSummary, summary_lines
    from fusion.predictor import Predictor, open_data
    from stores.errors import TriadError
    from stores.terminal import data_stdout

    to_stdout = out == STDOUT
    path = Path(out or f"predictions.{file_format or 'parquet'}")
    file_format = (file_format or "csv") if to_stdout else format_of(path, file_format)
    if to_stdout and (as_json or file_format == "parquet"):
        raise click.UsageError("--out - prints csv or jsonl, and nothing else: leave --json and parquet away.")
    if not to_stdout:
        if not path.parent.is_dir():
            raise click.UsageError(f"--out {path}: there is no folder {path.parent}.")
        if path.exists() and not overwrite:
            raise TriadError(f"{path} exists. Name another file with --out, or --overwrite it.")
    opened = open_data(data, project.config.data)
    if workers is None:
        workers = 0 if isinstance(opened, Source) and len(opened) < FEW_SEGMENTS else os.cpu_count() or 1
    predictor = Predictor(
        run,
        slots=None if slots is None else [slot.strip() for slot in slots.split(",") if slot.strip()],
        calibrated=calibrated,
        device=device,
        workers=workers,
        store=project.store_path,
        places=_places(places),
        allow_other_versions=allow_other_versions,
    )
    notes = predictor.notes(opened)
    summary = PredictionSummary(predictor.slots, predictor.run.targets)
    output: AbstractContextManager[Write] = new_file(path, file_format)
    if to_stdout:
        output = nullcontext(text_writer(data_stdout(), file_format))
    with output as write, named_progress("predict") as progress:
        for table in predictor.blocks(opened, progress=progress):
            write(table)
            summary.add(table)
    facts = summary.facts()
    if as_json:
        shown = {"run": predictor.run.name, "data": str(data), "out": str(path), **facts, "notes": notes}
        click.echo(json.dumps(shown, indent=2))
        return
    lines = [f"{predictor.run.name} on {data}: {facts['segments']:,} segments", *summary_lines(facts), *notes]
    click.echo("\n".join(lines if to_stdout else [*lines, f"\nPredictions: {path}"]), err=to_stdout)


def _places(pairs: Sequence[str]) -> dict[str, Path]:
    """`audio=encoders/mine`."""
    places = {}
    for pair in pairs:
        slot, equals, folder = pair.partition("=")
        if not equals or not slot or not folder:
            raise click.UsageError(f"--encoder takes SLOT=FOLDER, e.g. audio=encoders/mel_cnn, not {pair!r}.")
        places[slot] = Path(folder)
    return places
