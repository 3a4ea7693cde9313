"""`cli finetune`: a run's encoders and its head, trained together."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from featurize.project import Project, code_option, project_options
from fusion.completion import complete_runs
from fusion.options import show_trackers, track_option


@click.command("finetune")
@click.option(
    "--from",
    "start",
    required=True,
    type=click.Path(path_type=Path),
    shell_complete=complete_runs,
    help="A run of cli fit: a folder, or its name.",
)
@project_options
@code_option
@click.option("--unfreeze", metavar="SLOTS", help="Whose encoders learn, e.g. audio,midi. [default: all that can]")
@click.option("--last-layers", type=click.IntRange(1), metavar="K", help="Only each encoder's last K blocks learn.")
@click.option("--lora", type=click.IntRange(1), metavar="RANK", help="Low-rank updates of the attention learn instead.")
@click.option("--epochs", type=click.IntRange(1), help="At most. [default: finetuning.epochs, 5]")
@click.option(
    "--encoder",
    "places",
    multiple=True,
    metavar="SLOT=FOLDER",
    help="Where a slot's encoder is, if it is not found: a trained encoder's folder, or a checkpoint; repeatable.",
)
@click.option("--name", help="Name of the new run. [default: the old one's with -tuned]")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
@click.option("--workers", type=click.IntRange(0), help="Processes that read and prepare. [default: all cores]")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True, help="Where."
)
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), help="In training. [default: finetuning.precision]")
@click.option("--allow-pending", is_flag=True, help="Count rows that are not featurized yet as missing.")
@click.option("--allow-leak", is_flag=True, help="Accept encoders that saw labels of held-out groups; the run says so.")
@track_option
@click.option("--overwrite", is_flag=True, help="Replace a run of the same name.")
@click.option("--dry-run", is_flag=True, help="Say what would learn and how long it takes; no more.")
@click.option("--json", "as_json", is_flag=True, help="Print metrics.json.")
def finetune_command(
    project: Project,
    start: Path,
    places: tuple[str, ...],
    unfreeze: str | None,
    last_layers: int | None,
    lora: int | None,
    epochs: int | None,
    precision: str | None,
    workers: int | None,
    tracker_names: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a run's head and the encoders that wrote its features together, on raw segments; write a new run.

    Interrupt it and type it again: it goes on from the last epoch that was saved. The encoders it leaves are used as
    any other: cli featurize --encoder NEW-RUN:audio

    \b
    Example:
      cli finetune --from gated --unfreeze audio
    """
    from featurize.progress import named_progress
    from fusion.config import validated
    from fusion.finetuning import finetune
    from fusion.load_run import load_run
    from fusion.table import finetuning_lines, result_lines
    from fusion.tracking import open_trackers

    trackers = open_trackers(tracker_names)
    given = {
        "unfreeze": None if unfreeze is None else [slot.strip() for slot in unfreeze.split(",") if slot.strip()],
        "last_layers": last_layers,
        "lora": lora,
        "epochs": epochs,
        "precision": precision,
    }
    values = project.config.model_dump(mode="python")
    values["finetuning"] |= {key: value for key, value in given.items() if value is not None}
    config = validated(values, "the options")
    options |= {"places": _places(places), "trained": project.trained_encoders}
    options["workers"] = os.cpu_count() or 1 if workers is None else workers
    if dry_run:
        _show_plan(project, load_run(start), config, options, as_json)
        return
    say = (lambda line: click.echo(line, err=True)) if as_json else click.echo
    store = project.open_store()
    with named_progress("finetune") as progress:
        run = finetune(
            store,
            project.open_source(store),
            load_run(start),
            config,
            say=say,
            progress=progress,
            trackers=trackers,
            **options,
        )
    if as_json:
        click.echo(json.dumps(run.metrics, indent=2))
        return
    click.echo("\n".join([*finetuning_lines(run.metrics), "", *result_lines(run.metrics)]))
    click.echo(f"\nRun: {run.folder}   Report: {run.folder / 'report.html'}")
    click.echo("Store the vectors of the tuned encoders:")
    for slot, facts in run.metrics["finetuning"]["slots"].items():
        precision = "" if facts["precision"] == "fp32" else f" --precision {facts['precision']}"
        click.echo(f"  cli featurize --encoder {run.metrics['run']}:{slot}{precision}")
    show_trackers(trackers)


def _show_plan(project: Project, run: Any, config: Any, options: dict[str, Any], as_json: bool) -> None:
    from featurize.progress import duration, size
    from fusion.finetune_dry_run import plan_finetuning

    store = project.open_store()
    plan = plan_finetuning(store, project.open_source(store), run, config, **options)
    if as_json:
        click.echo(json.dumps({**vars(plan), "seconds": plan.seconds}, indent=2))
        return
    click.echo(f"{options['runs'] / plan.run}: {plan.segments:,} training segments, at most {plan.epochs:,} epochs")
    for slot, n in plan.learning.items():
        click.echo(f"  {slot}: {n:,} weights of {run.features[slot]} would learn")
    click.echo(
        f"  about {duration(plan.read_seconds)} to read, {duration(plan.seconds_per_epoch)} an epoch, at most"
        f" {duration(plan.seconds)} in all; measured on {plan.sample:,} segments"
    )
    click.echo(f"  {size(plan.n_bytes)} of weights. Nothing was written.")


def _places(pairs: tuple[str, ...]) -> dict[str, Path]:
    found = {}
    for pair in pairs:
        slot, equals, path = pair.partition("=")
        if not equals or not path:
            raise click.UsageError(f"--encoder takes SLOT=FOLDER, not {pair!r}.")
        found[slot] = Path(path)
    return found
