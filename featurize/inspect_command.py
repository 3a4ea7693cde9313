"""`cli inspect`: what will go wrong with raw data, or with a store, before money is spent on it."""

from __future__ import annotations

import json
from typing import Any

import click

from featurize.project import Project, project_options
from stores.backends import kind_at
from stores.commands import LOCATION, summary_lines
from stores.console import echo_tinted
from stores.remote import Location


@click.command("inspect")
@click.argument("path", type=LOCATION, required=False)
@project_options
@click.option(
    "--sample", type=click.IntRange(0), default=64, show_default=True, help="Segments whose audio and MIDI is decoded."
)
@click.option("--costs/--no-costs", default=True, show_default=True, help="Measure what encoding raw data would cost.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every encoder record in full.")
def inspect_command(project: Project, path: Location | None, sample: int, costs: bool, as_json: bool) -> None:
    """Say what will go wrong: problems first, then tables. PATH is a store, or raw data as `cli ingest` takes it.

    Without PATH it is the store of this folder; where there is none yet, data.path of the configuration. Of raw data:
    coverage by group and label, durations, sample rates, silence, lyrics, classes in each part of the split, and what
    each encoder will cost. Of a store: the same of its labels and splits, and features that look degenerate.

    \b
    Example:
      cli inspect my-songs/
    """
    store_path = project.store_path if path is None else path
    if kind_at(store_path) is None and (path is not None or project.config.data.path is not None):
        _inspect_data(project, path or project.config.data.path, sample, costs, as_json)
    else:
        _inspect_store(project, store_path, as_json)


def _inspect_data(project: Project, path: Location, sample: int, costs: bool, as_json: bool) -> None:
    from featurize.progress import steps
    from featurize.sources import open_source
    from featurize.survey import survey_source

    source = open_source(path, project.config.data)
    with steps(f"inspect {path}") as say:
        survey = survey_source(source, project.config, sample=sample, costs=costs, say=say)
    if as_json:
        facts = {"data": str(path), "layout": source.layout, "segments": len(source)}
        click.echo(json.dumps({**facts, **survey.to_json()}, indent=2))
        return
    _show_problems(survey)
    for table in survey.tables:
        click.echo("\n".join(["", *table.lines()]))
    n_errors = sum(problem.severity == "error" for problem in survey.problems)
    after = f"mend {'the error' if n_errors == 1 else f'{n_errors} kinds of errors'}, then " if n_errors else ""
    click.echo(f"\nNext: {after}cli ingest {path}")


def _inspect_store(project: Project, store_path: Location, as_json: bool) -> None:
    from featurize.survey import survey_store
    from stores import open_store
    from stores.inspect import summarize

    store = open_store(store_path)
    summary = summarize(store)
    survey = survey_store(store, project.config, summary["features"])
    if as_json:
        click.echo(json.dumps({**summary, **survey.to_json()}, indent=2))
        return
    _show_problems(survey)
    click.echo("\n".join(["", *summary_lines(summary)]))
    for table in survey.tables:
        click.echo("\n".join(["", *table.lines()]))


def _show_problems(survey: Any) -> None:
    for problem in survey.problems:
        echo_tinted(str(problem))
    click.echo("No problem was found." if not survey.problems else f"{len(survey.problems)} kinds of problems.")
