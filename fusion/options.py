"""Options that several commands of training have in common."""

from __future__ import annotations

import click

from stores.completion import complete_features, complete_labels

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
