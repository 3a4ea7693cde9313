"""`cli train-encoder` and `cli fit`: from segments or features to a result."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from featurize.commands import complete_encoders
from featurize.project import Project, code_option, project_options
from fusion.completion import complete_fusions
from fusion.options import device_option, feature_option, show_trackers, target_option, track_option
from stores.completion import complete_splits

FEW_GROUPS = 30  # below this a bootstrap over groups is rough


@click.command("train-encoder")
@click.option(
    "--encoder",
    "encoder_name",
    metavar="NAME|FILE.py:CLASS",
    required=True,
    shell_complete=complete_encoders,
    help="Which encoder, e.g. mel_cnn, or a class of your own.",
)
@project_options
@target_option
@click.option(
    "--split",
    "split_name",
    shell_complete=complete_splits,
    help="The split whose training part it learns from. [default: split.name]",
)
@click.option("--option", "option_pairs", multiple=True, metavar="KEY=VALUE", help="An option of the encoder.")
@click.option(
    "--objective",
    type=click.Choice(["labels", "masked_events"]),
    help="Or learn from MIDI without labels. [default: encoder_training.objective, labels]",
)
@click.option("--from", "start", type=click.Path(path_type=Path), help="Start from this trained encoder's weights.")
@click.option("--name", help="Folder in encoders/ beside the store. [default: the encoder's name]")
@click.option("--workers", type=click.IntRange(0), help="Processes that prepare. [default: all cores]")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True, help="Where."
)
@click.option(
    "--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True, help="Of the forward pass."
)
@track_option
@click.option("--overwrite", is_flag=True, help="Replace a trained encoder of the same name.")
@click.option("--json", "as_json", is_flag=True, help="Print metrics.json.")
def train_encoder_command(
    project: Project,
    encoder_name: str,
    target_names: tuple[str, ...],
    split_name: str | None,
    option_pairs: tuple[str, ...],
    objective: str | None,
    start: Path | None,
    name: str | None,
    workers: int | None,
    device: str,
    precision: str,
    tracker_names: tuple[str, ...],
    overwrite: bool,
    as_json: bool,
) -> None:
    """Train an encoder on the raw segments of a split's training part, and leave it for `cli featurize`.

    Augmentation, epochs and learning rate are set by preprocessing and encoder_training.

    \b
    Example:
      cli train-encoder --encoder mel_cnn
    """
    from featurize.commands import parse_options
    from featurize.encoder_options import configured_options
    from featurize.encoders import USER_ENCODERS, encoder_class
    from featurize.progress import named_progress
    from featurize.project import StoreRows
    from fusion.runs import check_name
    from fusion.settings import settings
    from fusion.table import encoder_lines
    from fusion.tracking import open_trackers
    from fusion.train_encoder import augmentation_of, train_encoder

    trackers = open_trackers(tracker_names)
    encoder_name = USER_ENCODERS.use(encoder_name)
    cls = encoder_class(encoder_name)
    options = {**configured_options(project.config, encoder_name), **parse_options(option_pairs)}
    options.pop("pretrained_model", None)  # where featurize finds it afterwards
    name = check_name(project.trained_encoders, name or cls.name, overwrite)
    store = project.open_store()
    with named_progress("train-encoder") as progress:
        trained = train_encoder(
            store,
            StoreRows(store, project.open_source(store), cls.modality),
            _with_objective(settings(project.config, target=target_names), objective),
            encoder_name,
            options,
            folder=project.trained_encoders / name,
            split_name=split_name or project.config.split.name,
            start=start,
            augmentation=augmentation_of(project.config, encoder_name, options),
            workers=os.cpu_count() or 1 if workers is None else workers,
            device=device,
            precision=precision,
            progress=progress,
            trackers=trackers,
        )
    if as_json:
        click.echo(json.dumps(trained.metrics, indent=2))
        return
    click.echo("\n".join(encoder_lines(trained.metrics)))
    where = "" if name == cls.name else f" --option pretrained_model={trained.folder} --as {name}"
    click.echo(f"\nEncoder: {trained.folder}   Next: cli featurize --encoder {encoder_name}{where}")
    show_trackers(trackers)


@click.command("fit")
@project_options
@code_option
@click.option(
    "--fusion",
    metavar="NAME|FILE.py:CLASS",
    shell_complete=complete_fusions,
    help="late (default), gated, early, cross_attention, bottleneck or low_rank; or a class of your own, "
    "my_fusion.py:MyFusion or my.module:MyFusion.",
)
@target_option
@click.option("--slots", help="Which slots to use, e.g. text,audio. [default: all that have a feature]")
@feature_option
@click.option(
    "--split",
    "split_name",
    shell_complete=complete_splits,
    help="A split, or a set of folds made by `cli split --folds`.",
)
@click.option("--seeds", type=click.IntRange(1), help="How many seeds to train. [default: training.seeds, 3]")
@click.option("--name", help="Name of the run. [default: the fusion's, numbered]")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
@click.option("--baselines/--no-baselines", "with_baselines", default=True, show_default=True)
@click.option(
    "--stream/--no-stream",
    default=None,
    help="Read the store chunk by chunk, or into memory. [default: training.stream, auto: by its size]",
)
@device_option
@click.option("--allow-pending", is_flag=True, help="Count rows that are not featurized yet as missing.")
@click.option("--allow-leak", is_flag=True, help="Accept encoders that saw labels of held-out groups; the run says so.")
@track_option
@click.option("--overwrite", is_flag=True, help="Replace a run of the same name.")
@click.option("--plain-report", is_flag=True, help="A report of numbers alone: no map, texts, audio or data health.")
@click.option("--dry-run", is_flag=True, help="Say what there is to train and how long it takes; no more.")
@click.option("--json", "as_json", is_flag=True, help="Print metrics.json.")
def fit_command(project: Project, as_json: bool, dry_run: bool, runs: Path, plain_report: bool, **options: Any) -> None:
    """Train a fusion head on stored features, each slot alone and the baselines beside it, and write a run.

    \b
    Example:
      cli fit --fusion gated
    """
    from featurize.progress import progress_bar
    from fusion.api import fit
    from fusion.report_parts import PLAIN, ReportParts
    from fusion.settings import settings
    from fusion.table import result_lines
    from fusion.tracking import open_trackers

    trackers = open_trackers(options["tracker_names"])
    config = settings(
        project.config,
        fusion=options["fusion"],
        target=options["target_names"],
        slots=options["slots"],
        features=options["features"],
        seeds=options["seeds"],
        stream=options["stream"],
        device=options["device"],
    )
    same = {key: options[key] for key in ("name", "allow_pending", "allow_leak", "overwrite")} | {"runs": runs}
    split, baselines = options["split_name"], options["with_baselines"]
    if dry_run:
        _show_plan(project, config, {**same, "split_name": split, "with_baselines": baselines}, as_json)
        return
    with progress_bar("fit", "trainings") as progress:
        report = PLAIN if plain_report else ReportParts()
        store = project.open_store()
        run = fit(
            store,
            config=config,
            split=split,
            baselines=baselines,
            report=report,
            progress=progress,
            track=trackers,
            **same,
        )
    if as_json:
        click.echo(json.dumps(run.metrics, indent=2))
        return
    click.echo("\n".join(result_lines(run.metrics)))
    n_groups = min(target["splits"]["test"]["n_groups"] for target in run.metrics["targets"].values())
    if run.metrics["split"]["folds"] == 1 and n_groups < FEW_GROUPS:
        click.echo(f"\nOnly {n_groups} test groups, hence the wide intervals. All groups are tested in turn with:")
        click.echo("  cli split --folds 5 --name cv && cli fit --split cv")
    click.echo(f"\nRun: {run.folder}   Report: {run.folder / 'report.html'}")
    show_trackers(trackers)


def _show_plan(project: Project, config: Any, settings: dict[str, Any], as_json: bool) -> None:
    from featurize.progress import duration, progress_bar, size
    from fusion.dry_run import plan_fit

    with progress_bar("fit (dry run)", "models") as progress:
        plan = plan_fit(project.open_store(), config, progress=progress, **settings)
    if as_json:
        click.echo(json.dumps({**vars(plan), "seconds": plan.seconds}, indent=2))
        return
    n = sum(plan.trainings.values())
    click.echo(f"{settings['runs'] / plan.run}: {n:,} trainings of at most {plan.epochs:,} epochs")
    for model, n in plan.trainings.items():
        click.echo(f"  {n:,} x {model}, {plan.seconds_per_epoch[model] * 1000:,.0f} ms an epoch (measured)")
    click.echo(f"  at most {duration(plan.seconds)}, where early stopping ends none; baselines and report come on top")
    click.echo(f"  {size(plan.n_bytes)} of weights. Nothing was written.")


def _with_objective(config: Any, objective: str | None) -> Any:
    """The configuration with the objective that `--objective` names, where it names one."""
    from fusion.config import validated

    if objective is None:
        return config
    values = config.model_dump(mode="python")
    values["encoder_training"]["objective"] = objective
    return validated(values, "the options")
