"""`cli import`: vectors that are already there, into a store."""

from __future__ import annotations

import json
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import click

from featurize.project import Project, project_options


@click.command("import")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@project_options
@click.option("--ids", "id_name", help="The column of ids. [default: segment_id, ids or id]")
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="COLUMN=SLOT/NAME",
    help="Take this column as this feature, and only what is named so; repeatable. [default: every NAME_embedding]",
)
@click.option(
    "--flag",
    "flags",
    multiple=True,
    metavar="COLUMN=FLAG",
    help="The column that says which vectors are there; repeatable. [default: has_COLUMN, where there is one]",
)
@click.option(
    "--made-by",
    multiple=True,
    metavar="COLUMN=TEXT",
    help="Which encoder made a column: files with the same words are taken for the same encoder's; repeatable.",
)
@click.option("--dtype", type=click.Choice(["float16", "float32"]), default="float16", show_default=True)
@click.option("--replace", is_flag=True, help="Write features anew that the store has already.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def import_command(
    project: Project,
    files: tuple[Path, ...],
    id_name: str | None,
    columns: tuple[str, ...],
    flags: tuple[str, ...],
    made_by: tuple[str, ...],
    dtype: str,
    replace: bool,
    as_json: bool,
) -> None:
    """Take precomputed vectors into the store, joined by id. FILE is parquet with list columns, HDF5 or npz.

    Where there is no store yet, the first file makes one, with its groups, times and labels. What is flagged false,
    null or all zero is absent. Everything is checked before anything is written. Killed, or given again, the same
    command writes what is missing.

    \b
    Example:
      cli import training_data_with_embeddings.parquet
    """
    from featurize.commands import tell_splits
    from featurize.import_vectors import add_features, check_new_store, choose_columns, make_store
    from featurize.sources.table import listed
    from featurize.sources.vectors import open_vectors
    from featurize.splits import first_split
    from stores.backends import is_there

    say = _silent if as_json else click.echo
    first = (project.config.split, list(project.config.model.targets))
    result: dict[str, Any] = {"store": str(project.store_path)}
    names = [_pairs(*given) for given in (("--column", columns), ("--flag", flags), ("--made-by", made_by))]
    with ExitStack() as exits:
        opened = [exits.enter_context(closing(open_vectors(path, id_name))) for path in files]
        wanted = choose_columns(opened, *names)
        if is_there(project.store_path):
            store = project.open_store()
            imported = add_features(store, wanted, dtype, replace=replace)
            result |= {"created": False, "segments": store.n_segments}
            say(f"{project.store_path}: {store.n_segments:,} segments")
            if not store.splits():  # the import that made the store was killed before it came to this
                result["split"] = tell_splits(project, store, first_split(store, *first), say)
        else:
            say(f"There is no store at {project.store_path} yet; {wanted[0].file.path} makes one.")
            found = check_new_store(wanted, project.config.data, project.config.model.targets)
            for problem in found.problems:
                say(str(problem))
            store, imported = make_store(found, wanted, project.store_path, dtype)
            n_groups = len(set(found.source.groups))
            result |= {"created": True, "segments": store.n_segments, "groups": n_groups, "labels": list(found.labels)}
            say(f"Wrote {project.store_path}: {store.n_segments:,} segments in {n_groups:,} groups.")
            say(f"  labels: {listed(list(found.labels)) or 'none'}")
            result["split"] = tell_splits(project, store, first_split(store, *first), say)
    result["features"] = [_facts(one) for one in imported]
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    for facts in result["features"]:
        click.echo("\n".join(_lines(facts)))
    click.echo(f"Next: cli fit   (features {', '.join(store.features())})")


def _pairs(option: str, texts: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise click.UsageError(f"{option} takes two names with = between them, not {text!r}.")
        pairs[name] = value
    return pairs


def _facts(imported: Any) -> dict[str, Any]:
    return {
        "feature": imported.feature.name,
        "file": str(imported.wanted.file.path),
        "column": imported.wanted.column,
        "flag": imported.wanted.flag,
        "width": imported.feature.width,
        "dtype": str(imported.feature.dtype),
        "present": imported.n_present,
        "unchanged": imported.unchanged,
        "absent": imported.absent,
        "unknown_ids": len(imported.unknown),
        "unknown_examples": imported.unknown[:3],
    }


def _lines(facts: dict[str, Any]) -> list[str]:
    absent = ", ".join(f"{why} {count:,}" for why, count in facts["absent"].items())
    lines = [
        f"{facts['feature']}: {facts['present']:,} present, {sum(facts['absent'].values()):,} absent"
        + (f" ({absent})" if absent else "")
        + f"; {facts['width']} x {facts['dtype']}, from {facts['column']} of {Path(facts['file']).name}"
        + ("; it stood there already" if facts["unchanged"] else "")
    ]
    if facts["unknown_ids"]:
        examples = ", ".join(map(repr, facts["unknown_examples"]))
        lines.append(
            f"  {facts['unknown_ids']:,} ids of the file are not in the store and were passed over: {examples}"
        )
    return lines


def _silent(_line: str) -> None:
    pass
