"""Options that several commands of training have in common."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from stores.completion import complete_features, complete_labels

if TYPE_CHECKING:
    from fusion.tracking.base import Tracker

target_option = click.option(
    "--target",
    "target_names",
    multiple=True,
    metavar="LABEL[:KIND]",
    help="What to predict; repeatable.",
    shell_complete=complete_labels,
)
feature_option = click.option(
    "--feature",
    "features",
    multiple=True,
    metavar="SLOT/NAME",
    shell_complete=complete_features,
    help="Which feature fills a slot; repeatable.",
)
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    help="Where heads are trained. [default: training.device, cpu]",
)
track_option = click.option(
    "--track",
    "tracker_names",
    multiple=True,
    type=click.Choice(["tensorboard", "mlflow", "wandb", "trackio"]),  # as `fusion.tracking` has them
    help="Tell this tool what is measured, too; repeatable. [default: none]",
)


def show_trackers(trackers: Iterable[Tracker]) -> None:
    """Where the run is to be seen in each."""
    for tracker in trackers:
        if tracker.where:
            click.echo(f"Tracked: {tracker.where}")
