"""`cli ablate`: a live table while it runs, the results as text, and the best as a command that is ready to run."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurize.project import Project, code_option, project_options
from fusion.completion import complete_fusion_list
from fusion.options import device_option, feature_option, show_trackers, target_option, track_option
from fusion.table import interval_text, model_label, value_text
from stores.completion import complete_splits
from stores.console import is_quiet

LINEAR = "logistic regression"  # as in `fusion.shapley`, which would import torch

if TYPE_CHECKING:
    from rich.table import Table

    from fusion.ablation import Progress
    from fusion.shapley import Cell, Model


@click.command("ablate")
@project_options
@code_option
@click.option(
    "--fusion",
    "fusions",
    default="all",
    show_default=True,
    shell_complete=complete_fusion_list,
    help="all, or a list such as late,gated; of your own classes, too: my_fusion.py:MyFusion.",
)
@click.option("--slots", default="all", show_default=True, help="all subsets of slots, or a list: text+audio,text.")
@click.option("--seeds", type=click.IntRange(1), help="How many seeds to train. [default: training.seeds, 3]")
@click.option(
    "--split",
    "split_name",
    shell_complete=complete_splits,
    help="A split, or a set of folds made by `cli split --folds`.",
)
@target_option
@feature_option
@click.option(
    "--name", default="default", show_default=True, help="Folder in ablations/; what it has is not run again."
)
@click.option("--ablations", type=click.Path(path_type=Path), default=Path("ablations"), show_default=True)
@click.option("--workers", type=click.IntRange(0), default=0, show_default=True, help="Processes that train.")
@device_option
@click.option("--allow-pending", is_flag=True, help="Count rows that are not featurized yet as missing.")
@click.option("--allow-leak", is_flag=True, help="Accept encoders that saw labels of held-out groups; it is noted.")
@track_option
@click.option("--dry-run", is_flag=True, help="Say what there is to run and how long it takes; no more.")
@click.option("--json", "as_json", is_flag=True, help="Print metrics.json.")
def ablate_command(
    project: Project,
    fusions: str,
    slots: str,
    seeds: int | None,
    target_names: tuple[str, ...],
    features: tuple[str, ...],
    tracker_names: tuple[str, ...],
    device: str | None,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train every fusion on every subset of slots, fold and seed; compare them in pairs; say what each slot adds.

    Interrupt it and type it again: finished trainings are not repeated, nor are those that a larger list shares.
    All groups are tested in turn with --split cv, once cli split --folds 5 --name cv has made the folds.

    \b
    Example:
      cli ablate --fusion late,gated --slots all --seeds 5
    """
    from fusion.api import ablate, named_fusions, named_subsets
    from fusion.settings import settings
    from fusion.tracking import open_trackers

    trackers = open_trackers(tracker_names)
    config = settings(project.config, target=target_names, features=features, seeds=seeds, device=device)
    named = named_fusions(fusions)
    subsets = named_subsets(slots)
    if dry_run:
        _show_plan(project, config, {**options, "fusions": named, "subsets": subsets}, as_json)
        return
    options["split"] = options.pop("split_name")
    store = project.open_store()
    with _live_table() as progress:
        found = ablate(
            store,
            config=config,
            fusions="all" if named is None else named,
            subsets="all" if subsets is None else subsets,
            progress=progress,
            track=trackers,
            **options,
        )
    if as_json:
        click.echo(json.dumps(found.metrics, indent=2))
        return
    click.echo("\n".join(ablation_lines(found.metrics)))
    click.echo(f"\nTrain the best: {fit_line(found.metrics, config, click.get_current_context().params)}")
    click.echo(f"Report: {found.folder / 'report.html'}")
    click.echo(f"Tables: {found.folder}/*.csv and *.parquet   {found.n_run:,} of {found.n_cells:,} cells were run now")
    show_trackers(trackers)


def _show_plan(project: Project, config: Any, options: dict[str, Any], as_json: bool) -> None:
    from featurize.progress import duration, progress_bar
    from fusion.dry_run import plan_ablation

    with progress_bar("ablate (dry run)", "fusions") as progress:
        plan = plan_ablation(project.open_store(), config, progress=progress, **options)
    if as_json:
        click.echo(json.dumps(vars(plan), indent=2))
        return
    click.echo(f"{options['ablations'] / options['name']}: {plan.cells:,} cells, {plan.finished:,} of them finished")
    for model, n in plan.to_run.items():
        click.echo(f"  {n:,} x {model} to run")
    if plan.measured_by:
        at_most = "where early stopping ends none; " if "epochs" in plan.measured_by else ""
        click.echo(f"  about {duration(plan.seconds)} at most, {at_most}measured by {plan.measured_by}")
    if plan.not_measured:
        click.echo(f"  not counted: {', '.join(plan.not_measured)}")
    click.echo("  Nothing was written.")


def fit_line(metrics: Mapping[str, Any], config: Any, options: Mapping[str, Any]) -> str:
    """The `cli fit` that trains the first target's best configuration. options: what `cli ablate` was given."""
    from fusion.ablation import options_for

    best = next(iter(metrics["targets"].values()))["best"]
    overrides = list(options["overrides"])
    own = options_for(best["fusion"], config.model.fusion)
    if own != config.model.fusion.options:
        overrides.append(f"model.fusion.options={json.dumps(own)}")
    words = ["cli", "fit", "--fusion", best["fusion"], "--slots", ",".join(best["slots"])]
    words += ["--split", metrics["split"]["name"]]
    for flag, values in (
        ("--set", overrides),
        ("--target", options["target_names"]),
        ("--feature", options["features"]),
        ("--seeds", [options["seeds"]] if options["seeds"] else []),
        ("--device", [options["device"]] if options["device"] else []),
        ("--config", [options["config_path"]] if options["config_path"] else []),
        ("--store", [options["store_path"]] if options["store_path"] != Path("features.zarr") else []),
    ):
        words += [word for value in values for word in (flag, str(value))]
    words += [f"--{key.replace('_', '-')}" for key in ("allow_pending", "allow_leak") if options[key]]
    return shlex.join(words)


def ablation_lines(metrics: Mapping[str, Any]) -> list[str]:
    """What `cli ablate` prints. metrics: the content of `metrics.json`."""
    split = metrics["split"]
    folds = f", {split['folds']} folds pooled" if split["folds"] > 1 else ""
    slots = ", ".join(f"{slot}/{encoder}" for slot, encoder in metrics["slots"].items())
    subsets = f"{len(metrics['subsets'])} subsets of {slots}" if len(metrics["subsets"]) > 1 else slots
    seeds = ", ".join(str(seed) for seed in metrics["seeds"])
    head = f"{', '.join(metrics['fusions'])} on {subsets}; split {split['name']} ({split['method']}{folds})"
    lines = [f"{head}; seeds {seeds}"]
    for name, target in metrics["targets"].items():
        arrow = "higher is better" if target["higher_is_better"] else "lower is better"
        on = f"{target['n']:,} test segments of {target['n_groups']:,} groups"
        lines += ["", f"{name}: {target['metric']} on {on} [95% interval] ({arrow})", *_summary_lines(target)]
        lines.append(f"  best on validation: {_best_text(target)}")
        together = f"all {len(target['comparisons'])} hold at once"
        lines += ["", f"  compared in pairs, on the same segments and resamples [intervals so wide that {together}]"]
        lines += _comparison_lines(target)
        lines += ["", "  what each slot adds to the majority's score: its Shapley value [95% interval]"]
        lines += _shapley_lines(target)
    return lines + (["", *metrics["notes"]] if metrics["notes"] else [])


def _best_text(target: Mapping[str, Any]) -> str:
    best, linear = target["best"], target["best_linear"]
    linear_model = model_label(LINEAR, target["kind"])
    return (
        f"{best['fusion']} on {'+'.join(best['slots'])} ({value_text(best['val'])});"
        f" {linear_model} comes to {value_text(linear['val'])} on {'+'.join(linear['slots'])}"
    )


def _summary_lines(target: Mapping[str, Any]) -> list[str]:
    rows = [("slots", "model", "test", "", "val", "seeds ±", "seconds")]
    rows += [
        (
            row["slots"] or "none",
            model_label(row["model"], target["kind"]),
            value_text(row["test"]),
            interval_text(_ends(row, "ci95")),
            value_text(row["val"]),
            value_text(row["seed_deviation"]),
            f"{row['seconds']:.1f}",
        )
        for row in target["summary"]
    ]
    return _aligned(rows)


def _comparison_lines(target: Mapping[str, Any]) -> list[str]:
    """What two models have in common stands first, and what they differ in after it."""
    rows = []
    for row in target["comparisons"]:
        if row["model"] == row["other_model"]:
            common, one, other = row["model"], row["slots"], row["other_slots"]
        else:
            common, one, other = row["slots"], row["model"], row["other_model"]
        one, other = model_label(one, target["kind"]), model_label(other, target["kind"])
        joint = interval_text(_ends(row, "joint_ci95"))
        rows.append((common, f"{one} − {other}", _signed(row["difference"]), joint, row["verdict"]))
    return _aligned(rows)


def _shapley_lines(target: Mapping[str, Any]) -> list[str]:
    rows = [
        (
            model_label(row["model"], target["kind"]),
            row["slot"],
            _signed(row["value"]),
            interval_text(_ends(row, "ci95")),
        )
        for row in target["shapley"]
    ]
    return _aligned(rows) if rows else ["  needs every subset: --slots all"]


def _ends(row: Mapping[str, Any], name: str) -> list[float] | None:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return None if low is None else [low, high]


def _signed(value: float | None) -> str:
    return "—" if value is None else f"{value:+.3f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


@contextmanager
def _live_table() -> Iterator[Progress]:
    """A table of validation scores that grows as cells are finished; lines of progress where there is no terminal.

    Of the test part nothing is shown before the end: who watches it is tempted to stop when it pleases.
    """
    if is_quiet() or not sys.stderr.isatty():
        from featurize.progress import progress_bar

        with progress_bar("ablate", "cells") as update:
            yield lambda cell, value, run, to_run: update(run, to_run)
        return
    from rich.console import Console
    from rich.live import Live

    from stores.terminal import own_stderr

    scores: dict[Model, list[float]] = {}
    title = [""]

    def progress(cell: Cell, value: float, run: int, to_run: int) -> None:
        scores.setdefault(cell.model, []).append(value)
        title[0] = f"ablate: {run:,} of {to_run:,} cells run; mean score on validation so far"

    with Live(console=Console(file=own_stderr()), transient=True, get_renderable=lambda: live_table(scores, title[0])):
        yield progress


def live_table(scores: Mapping[Model, Sequence[float]], title: str) -> Table:
    """A row for each subset, a column for each model. scores: validation scores of finished cells."""
    from rich.table import Table
    from rich.text import Text

    from stores.terminal import plain

    table = Table("slots", title=title, box=None)
    names = list(dict.fromkeys(model.name for model in scores))
    for name in names:
        table.add_column(name, justify="right")
    means = {model: f"{sum(values) / len(values):.3f}" for model, values in scores.items()}
    for slots in dict.fromkeys(model.slots for model in scores):
        of_slots = {model.name: mean for model, mean in means.items() if model.slots == slots}
        table.add_row(Text(plain("+".join(slots)) or "none"), *(of_slots.get(name, "") for name in names))
    return table
