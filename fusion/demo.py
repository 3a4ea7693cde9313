"""`cli demo`: everything once, on a data set that makes itself, offline."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from stores.console import confirm

ENCODERS = ("lsa", "mel_stats", "midi_stats")
CONFIG = """\
# A project folder: `cli` finds this file, and features.zarr beside it.
data:
  path: data
model:
  targets:
    - {name: mood, kind: categorical}
    - {name: energy, kind: regression}
  fusion:
    strategy: late
"""


@click.command("demo")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path("demo"))
@click.option("--songs", type=click.IntRange(6), default=120, show_default=True, help="Songs of six segments each.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--workers", type=click.IntRange(0), default=None, help="Processes that prepare. [default: all cores]")
@click.option("--yes", is_flag=True, help="Replace what FOLDER holds without asking.")
def demo_command(folder: Path, songs: int, seed: int, workers: int | None, yes: bool) -> None:
    """Make a data set, run everything on it, end in a report. FOLDER defaults to demo/.

    Composes songs, renders their audio, writes lyrics, hides much of it, and labels them with a mood that no single
    modality gives away. Then: ingest, featurize, fit, report. Needs no network; run it again and it goes on.

    \b
    Example:
      cli demo
    """
    made_by = folder / "data" / "made_by.txt"
    recipe = f"cli demo --songs {songs} --seed {seed}\n"
    before = made_by.read_text("utf-8") if made_by.is_file() else None
    is_new = before != recipe
    theirs = [name for name in ("config.yaml", "data", "features.zarr") if (folder / name).exists()]
    if theirs and is_new:
        whose = f"was made by {before.strip()}" if before else "was not made by cli demo"
        confirm(f"{folder} {whose}; its {', '.join(theirs)} would be replaced.", yes)
    started = time.monotonic()

    def say(line: str) -> None:
        click.echo(f"[{time.monotonic() - started:5.1f} s] {line}")

    say(f"Making {songs * 6:,} segments of {songs} songs in {folder}/data …")
    from featurize.demo import make_demo

    if is_new:
        make_demo(folder / "data", n_songs=songs, seed=seed)
    if is_new or not (folder / "config.yaml").exists():
        (folder / "config.yaml").write_text(CONFIG, "utf-8")

    from featurize.encoders import build_encoder
    from featurize.ingestion import check, write_store
    from featurize.pipeline import featurize
    from featurize.progress import progress_bar
    from featurize.project import open_source_of
    from featurize.splits import write_splits
    from fusion.config import load_config
    from fusion.fitting import fit
    from fusion.table import result_lines

    config = load_config(folder / "config.yaml", [f"data.path={folder / 'data'}"])
    found = check(folder / "data", config.data, config.model.targets)
    for problem in found.problems:
        click.echo(str(problem))
    store_path = folder / "features.zarr"
    store, _ = write_store(found, store_path, replace=is_new)
    made_by.write_text(recipe, "utf-8")  # from here on a second run goes on with what is there
    shares = ", ".join(f"{modality} {there.mean():.0%}" for modality, there in found.presence.items())
    say(f"Ingested: {shares} of the segments; labels {', '.join(found.labels)}")
    if config.split.name not in store.splits():
        write_splits(store, config.split, list(config.model.targets))
    for encoder in ENCODERS:
        with progress_bar(encoder, "segments") as progress:
            done = featurize(
                store,
                open_source_of(store, store_path, config),
                build_encoder(encoder),
                workers=os.cpu_count() or 1 if workers is None else workers,
                progress=progress,
            )
        e = done.extraction
        say(
            f"{done.feature.name}: {e.present:,} present, {e.absent:,} absent, {e.failed:,} failed;"
            f" {e.encoded:,} encoded now, {e.copied:,} copied from equal inputs"
        )
    with progress_bar("fit", "trainings") as progress:
        run = fit(store, config, runs=folder / "runs", name="demo", overwrite=True, progress=progress)
    say("Trained, with every baseline beside it:")
    click.echo()
    click.echo("\n".join(result_lines(run.metrics)))
    click.echo()
    say(f"Report: {(run.folder / 'report.html').resolve()}")
    click.echo(f"Go on with: cd {folder} && cli fit --fusion gated")
