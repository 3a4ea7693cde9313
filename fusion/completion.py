"""What a shell may offer for fusions and runs. No torch: a key is pressed, and somebody waits."""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import CompletionItem

from fusion.known_fusions import known_fusions
from stores.completion import last_of_list, starting_with


def complete_fusions(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Fusions, for the Tab key."""
    return starting_with(incomplete, known_fusions())


def complete_fusion_list(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """`all`, or the last name of a list such as late,ga."""
    return last_of_list(incomplete, known_fusions() if "," in incomplete else [*known_fusions(), "all"])


def complete_runs(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names in runs/, and folders."""
    runs = Path(context.params.get("runs") or "runs")
    names = starting_with(incomplete, [path.parent.name for path in runs.glob("*/metrics.json")])
    return [*map(CompletionItem, names), CompletionItem(incomplete, type="dir")]
