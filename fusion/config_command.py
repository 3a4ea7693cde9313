"""`cli config`: the configuration in force; `init`, `schema` and `show` beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from featurize.project import Project, project_options
from stores.console import HintingGroup, echo_tinted


@click.command()
@project_options
def _print(project: Project) -> None:
    from fusion.config import dump_yaml

    click.echo(dump_yaml(project.config), nl=False)


@click.pass_context
def _print_where_nothing_follows(context: click.Context, /, **options: Any) -> None:
    if context.invoked_subcommand is None:
        context.invoke(_print, **options)


config_command = HintingGroup(
    "config",
    callback=_print_where_nothing_follows,
    params=_print.params,
    invoke_without_command=True,
    help="""Show the configuration in force, as YAML: defaults, the file, and --set.

    \b
    Example:
      cli config --set training.lr=3e-4
    """,
)


@config_command.command("init", short_help="Write a commented file with every key.")
@click.argument("path", type=click.Path(path_type=Path), default=Path("config.yaml"))
def init_command(path: Path) -> None:
    """Write a commented file with every key, its default, and what it means. PATH is the file, or its folder.

    Looks for a data set there and fills in data.path; a JSON Schema beside it lets an editor complete keys.

    \b
    Example:
      cli config init
    """
    from fusion.config_file import SCHEMA_NAME, write_config_file

    path = path / "config.yaml" if path.is_dir() else path
    found = write_config_file(path)
    click.echo(f"Wrote {path}, and {path.with_name(SCHEMA_NAME)} for editors.")
    if found is None:
        click.echo("  No data set stands there yet; data.path says where it is.")
        click.echo("Next: cli ingest DATA")
        return
    click.echo(f"  data.path: {found.path} ({found.n_segments:,} segments)")
    if len(found.targets) > 1:
        targets = ", ".join(f"{name} ({kind})" for name, kind in found.targets.items())
        echo_tinted(f"note: several labels could be predicted: {targets}. Name some in model.targets.")
    click.echo("Next: cli inspect, then cli ingest")


@config_command.command("schema", short_help="Print the JSON Schema, for editors.")
def schema_command() -> None:
    """Print the JSON Schema of the configuration, with which an editor completes and checks it.

    \b
    Example:
      cli config schema > config.schema.json
    """
    from fusion.config_file import json_schema

    click.echo(json.dumps(json_schema(), indent=2))


@config_command.command("show", short_help="Print every value, and where it comes from.")
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Configuration file; config.yaml in this folder where there is one.",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key, e.g. split.seed=1.")
@click.option("--changed", is_flag=True, help="Only what is not a default.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: key to value and origin.")
def show_command(config_path: Path | None, overrides: tuple[str, ...], changed: bool, as_json: bool) -> None:
    """Print every value in force and where it comes from: default, the file, or --set.

    \b
    Example:
      cli config show --changed --set training.lr=3e-4
    """
    from fusion.config_origin import settings

    found = [s for s in settings(config_path, overrides) if not changed or s.is_changed]
    if as_json:
        click.echo(json.dumps({s.key: {"value": s.value, "origin": s.origin} for s in found}, indent=2))
        return
    rows = [(s.key, json.dumps(s.value, ensure_ascii=False), s.origin) for s in found]
    width = max((len(key) for key, _, _ in rows), default=0)
    for key, value, origin in rows:
        click.echo(f"{key:<{width}}  {value:<24}  {origin}")
    if not rows:
        click.echo("Everything is at its default.")
