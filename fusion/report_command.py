"""`cli report`: the report of a run or an ablation again, from its folder, the store and the raw data."""

from __future__ import annotations

from pathlib import Path

import click

from fusion.completion import complete_runs
from fusion.report_parts import CLIPS, MAX_POINTS
from stores.commands import LOCATION
from stores.remote import Location


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path), shell_complete=complete_runs)
@click.option(
    "--store",
    "store_path",
    type=LOCATION,
    help="The store it was trained on. [default: where the run says, here, or beside runs/]",
)
@click.option(
    "--data",
    "data_path",
    type=LOCATION,
    help="The raw data of texts and audio. [default: where the store says]",
)
@click.option(
    "--map",
    "projection",
    type=click.Choice(["pca", "tsne", "none"]),
    default="pca",
    show_default=True,
    help="How segments are placed: pca takes seconds, tsne minutes.",
)
@click.option("--text/--no-text", "texts", default=True, show_default=True, help="Lyrics in the file.")
@click.option(
    "--audio/--no-audio",
    default=None,
    help="Clips of segments in the file. [default: --audio, unless the audio lies in parquet files]",
)
@click.option("--clips", type=click.IntRange(0), default=CLIPS, show_default=True, help="How many; 6 MB at most.")
@click.option("--health/--no-health", default=True, show_default=True, help="Data health, and the scan for leaks.")
@click.option("--max-points", type=click.IntRange(1), default=MAX_POINTS, show_default=True, help="Of the map.")
def report_command(
    run: Path,
    store_path: Location | None,
    data_path: Location | None,
    projection: str,
    texts: bool,
    audio: bool | None,
    clips: int,
    health: bool,
    max_points: int,
) -> None:
    """Write report.html anew. RUN is the folder of a run or an ablation, or its name in runs/ or ablations/.

    Numbers come from the folder alone; the map, texts, audio and data health from the store and its raw data, where
    they are at hand. The options are for runs.

    \b
    Example:
      cli report runs/gated --map tsne --clips 100
    """
    from fusion.report import write_ablation_report, write_report
    from fusion.report.folder import RunFolder, find_folder
    from fusion.report.material import find_store, material_of
    from fusion.report_parts import ReportParts

    folder, is_ablation = find_folder(run)
    if is_ablation:
        click.echo(f"Report: {write_ablation_report(folder)}")
        return
    parts = ReportParts(projection, texts, audio, health, max_points, clips)  # type: ignore[arg-type]
    found = RunFolder.read(folder)
    store = find_store(found, store_path) if store_path is not None else None
    material = material_of(found, parts, store, data_path=data_path)
    path = write_report(folder, parts, material=material)
    click.echo(f"Report: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    for what, why in material.why_not.items():
        click.echo(f"  no {what}: {why}")
