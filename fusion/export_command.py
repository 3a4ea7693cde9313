"""`cli export`: a run's model as a file that needs neither torch nor this package."""

from __future__ import annotations

import json
from pathlib import Path

import click

from fusion.completion import complete_runs


@click.command("export")
@click.argument("run", type=click.Path(path_type=Path), shell_complete=complete_runs)
@click.option(
    "--onnx", "path", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The ONNX file to write."
)
@click.option("--calibrated", is_flag=True, help="Divide by the temperatures that cli evaluate RUN found.")
@click.option("--overwrite", is_flag=True, help="Replace a file of the same name.")
@click.option("--json", "as_json", is_flag=True, help="Print inputs, outputs and the largest difference as JSON.")
def export_command(run: Path, path: Path, calibrated: bool, overwrite: bool, as_json: bool) -> None:
    """Write RUN's model as ONNX: vectors of each slot and their presence in, probabilities and values out.

    RUN is a folder or a name in runs/. The file is compared with the model before it has its name: all presence
    patterns, one row and many. Encoders are not in it.

    \b
    Example:
      cli export gated --onnx gated.onnx
    """
    from fusion.export_onnx import TOLERANCE, export_onnx
    from fusion.load_run import load_run, load_temperatures
    from stores.errors import TriadError

    if not path.parent.is_dir():
        raise click.UsageError(f"--onnx {path}: there is no folder {path.parent}.")
    if path.exists() and not overwrite:
        raise TriadError(f"{path} exists. Name another file, or --overwrite it.")
    loaded = load_run(run)
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
