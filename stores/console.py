"""How commands speak: quietly, in colour, with a traceback; the two options that every command has for it.

`cli --quiet fit` and `cli fit --quiet` are the same. Quiet: no progress and no results as text, only errors; JSON that
was asked for is still printed. Colours are off where there is no terminal, and where `NO_COLOR` is set.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import wraps
from pathlib import Path
from typing import Any

import click

from stores.errors import TriadError
from stores.terminal import own_stderr, own_stdout, plain

QUIET, DEBUG = "triad.quiet", "triad.debug"  # in the `meta` that all contexts of one call share
COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


class HintingGroup(click.Group):
    """A group that names the nearest command where there is none of that name."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """As click does; raises `click.UsageError` with the nearest name, or with all."""
        from difflib import get_close_matches

        known = self.list_commands(ctx)
        if args and args[0] not in known and not args[0].startswith("-"):
            near = get_close_matches(args[0], known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(known)}."
            raise click.UsageError(f"There is no command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)


def with_common_options(command: click.Command, *, result_is_output: bool = False) -> click.Command:
    """The command with `--quiet` and `--debug`; of a group, its commands too.

    result_is_output: what it prints is all that it does, and stays when it is to be quiet.
    """
    common = copy.copy(command)
    common.params = [*command.params, *common_options()]
    if command.callback is not None:
        common.callback = command.callback if result_is_output else _silenced(command.callback)
    if isinstance(common, click.Group):
        common.commands = {
            name: with_common_options(inner, result_is_output=result_is_output)
            for name, inner in common.commands.items()
        }
    return common


def common_options() -> list[click.Parameter]:
    """`--quiet` and `--debug`, which go before a command or after it."""
    return [
        _switch(["--quiet", "-q"], QUIET, "Print nothing but errors, and the JSON of --json."),
        _switch(["--debug"], DEBUG, "Show the traceback of a mistake, too."),
    ]


def is_quiet() -> bool:
    """Whether this call of `cli` is to keep quiet; not where there is none."""
    return _said(QUIET)


def is_debugged() -> bool:
    """Whether this call of `cli` shows the traceback of a mistake; not where there is none."""
    return _said(DEBUG)


def confirm(loss: str, yes: bool) -> None:
    """Ask before something goes that no option named. Raises `TriadError` where nobody can answer.

    loss: one sentence that says what goes.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise TriadError(f"{loss}\nIf that is meant: --yes")
    click.confirm(f"{loss} Go on?", abort=True, err=True)


def colour_setting(context: click.Context) -> bool | None:
    """What click is to do about colours: `None` lets it look for a terminal."""
    return False if os.environ.get("NO_COLOR") else context.color


def tinted(text: str) -> str:
    """`error: …`, `warning: …` and `note: …` with the first word in its colour; any other text as it is."""
    word, colon, rest = text.partition(":")
    if word.lower() not in COLOURS:
        return text
    return click.style(word, fg=COLOURS[word.lower()], bold=word.lower() == "error") + colon + rest


def echo_tinted(text: str, *, err: bool = False, color: bool | None = None) -> None:
    """Print `tinted` text: its own colours reach the terminal, and nothing of what strangers wrote does."""
    click.echo(tinted(plain(text)), file=own_stderr() if err else own_stdout(), color=color)


def _silenced(callback: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(callback)
    def quiet_or_not(*arguments: Any, **options: Any) -> Any:
        if not is_quiet() or options.get("as_json") or options.get("out") == "-":
            return callback(*arguments, **options)
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            return callback(*arguments, **options)

    return quiet_or_not


def _switch(names: list[str], key: str, help_line: str) -> click.Option:
    def remember(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
        if value:
            context.meta[key] = True

    return click.Option(names, is_flag=True, expose_value=False, callback=remember, help=help_line)


def _said(key: str) -> bool:
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(key))
