"""`cli export`: a run's model, or a store's vectors, as a file that needs neither torch nor this package."""

from __future__ import annotations

import json
from pathlib import Path

import click

from featurize.project import code_option
from fusion.completion import complete_runs
from stores.commands import LOCATION
from stores.errors import TriadError
from stores.remote import Location


@click.command("export")
@click.argument("run", metavar="RUN|STORE", type=LOCATION, shell_complete=complete_runs)
@code_option
@click.option(
    "--onnx", "path", type=click.Path(path_type=Path, dir_okay=False), help="Of a run: the ONNX file to write."
)
@click.option("--calibrated", is_flag=True, help="Divide by the temperatures that cli evaluate RUN found.")
@click.option("--to", "kind", type=click.Choice(["parquet", "npz", "hdf5"]), help="Of a store: its vectors, as this.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="With --to. [default: the store's name]")
@click.option("--feature", "features", multiple=True, metavar="SLOT/NAME", help="With --to: only these; repeatable.")
@click.option("--overwrite", is_flag=True, help="Replace a file of the same name.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def export_command(
    run: Location,
    path: Path | None,
    calibrated: bool,
    kind: str | None,
    out: Path | None,
    features: tuple[str, ...],
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write RUN's model as ONNX: vectors of each slot and their presence in, probabilities and values out.

    RUN is a folder or a name in runs/. The file is compared with the model before it has its name: all presence
    patterns, one row and many. Encoders are not in it. Or write a STORE's vectors as one file: --to parquet

    \b
    Example:
      cli export gated --onnx gated.onnx
    """
    if (path is None) == (kind is None):
        raise click.UsageError("Say what: --onnx FILE of a run, or --to parquet | npz | hdf5 of a store.")
    if path is not None:
        _export_model(run, path, calibrated, overwrite, as_json)
    else:
        _export_vectors(run, str(kind), out, features, overwrite, as_json)


def _check_free(option: str, path: Path, overwrite: bool) -> None:
    if not path.parent.is_dir():
        raise click.UsageError(f"{option} {path}: there is no folder {path.parent}.")
    if path.exists() and not overwrite:
        raise TriadError(f"{path} exists. Name another file, or --overwrite it.")


def _export_vectors(
    store_path: Location, kind: str, out: Path | None, features: tuple[str, ...], overwrite: bool, as_json: bool
) -> None:
    from stores import open_store
    from stores.export_vectors import SUFFIXES, export_vectors

    store = open_store(store_path)
    path = out or Path(f"{store_path.stem}-vectors{SUFFIXES[kind]}")
    _check_free("--out", path, overwrite)
    columns = export_vectors(store, path, kind, features)
    if as_json:
        click.echo(json.dumps({"store": str(store_path), "file": str(path), "columns": columns}, indent=2))
        return
    for column, feature in columns.items():
        click.echo(f"  {feature}: {column}")
    pairs = " ".join(f"--column {column}={feature}" for column, feature in columns.items())
    click.echo(f"\nVectors: {path}   Back into a store: cli import {path} {pairs}")


def _export_model(run: Location, path: Path, calibrated: bool, overwrite: bool, as_json: bool) -> None:
    from fusion.export_onnx import TOLERANCE, export_onnx
    from fusion.load_run import load_run, load_temperatures

    _check_free("--onnx", path, overwrite)
    loaded = load_run(Path(str(run)))
    exported = export_onnx(loaded, path, load_temperatures(loaded) if calibrated else None)
    if as_json:
        facts = {"run": loaded.name, "onnx": str(path), "largest_difference": exported.difference}
        click.echo(json.dumps({**facts, "inputs": exported.inputs, "outputs": exported.outputs}, indent=2))
        return
    for title, shapes in (("in ", exported.inputs), ("out", exported.outputs)):
        for name, shape in shapes.items():
            click.echo(f"  {title}  {name}: {shape}")
    click.echo(f"Largest difference from the run's model: {exported.difference:.1e} (allowed {TOLERANCE:g})")
    click.echo(f"\nONNX: {path}")
