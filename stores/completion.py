"""`cli completion`, and what a shell may offer for the names in a store: read from its folders, without a library.

A completer is called as click calls it; where there is nothing to offer, it offers nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

import click
from click.shell_completion import get_completion_class

from stores.remote import RemotePath, location

SHELLS = ("bash", "zsh", "fish")
INSTALL = {
    "bash": "cli completion bash >> ~/.bashrc",
    "zsh": "cli completion zsh >> ~/.zshrc",
    "fish": "cli completion fish > ~/.config/fish/completions/cli.fish",
}


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion_command(context: click.Context, shell: str) -> None:
    """Print what teaches SHELL the commands and options, and the names of encoders, features, splits, labels and runs.

    \b
    Example:
      cli completion bash >> ~/.bashrc
    """
    found = get_completion_class(shell)
    assert found is not None  # click knows all of SHELLS
    root = context.find_root().command
    script = found(root, {}, "cli", "_CLI_COMPLETE")
    click.echo(script.source_template % script.source_vars())  # `source()` would start a bash to ask for its version


def complete_features(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """SLOT/NAME of the features in the store."""
    return starting_with(incomplete, _names(context, "features", depth=2))


def complete_splits(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Splits, and sets of folds: cv for cv.0, cv.1, …"""
    splits = _names(context, "splits")
    sets = [name.rpartition(".")[0] for name in splits if name.rpartition(".")[2].isdigit()]
    return starting_with(incomplete, [*splits, *sets])


def complete_labels(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Labels of the store that the command line names, for the Tab key."""
    return starting_with(incomplete, _names(context, "labels"))


def starting_with(incomplete: str, names: Iterable[str]) -> list[str]:
    """Those names that begin so, each once, in order."""
    return sorted({name for name in names if name.startswith(incomplete)})


def last_of_list(incomplete: str, names: Iterable[str], separator: str = ",") -> list[str]:
    """Completions of the last name of a list such as `late,ga`."""
    before, found, last = incomplete.rpartition(separator)
    return [f"{before}{found}{name}" for name in starting_with(last, names)]


def _names(context: click.Context, group: str, depth: int = 1) -> list[str]:
    store = location(context.params.get("store_path") or "features.zarr")
    if isinstance(store, RemotePath):  # a Tab key must not wait for a network
        return []
    folder = store / group
    if folder.parent.is_file():  # an HDF5 store has no folders to list
        return _names_in_file(folder.parent, group)
    found = (path.parent.relative_to(folder) for path in folder.glob("/".join(["*"] * depth) + "/zarr.json"))
    return ["/".join(unquote(part) for part in name.parts) for name in found]


def _names_in_file(path: Path, group: str) -> list[str]:
    from stores import open_store
    from stores.errors import StoreError

    try:
        store = open_store(path)
    except StoreError:
        return []
    return {"features": store.features, "splits": store.splits, "labels": store.label_names}[group]()
