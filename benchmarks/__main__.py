"""All measurements by one command.

    python -m benchmarks                   # what there is
    python -m benchmarks fit loading       # these, one after another, with their defaults
    python -m benchmarks speed             # every comparison of docs/performance.md; takes about half an hour

Options of one alone: `python -m benchmarks.fit --help`.
"""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import click

SPEED = ("loading", "fit", "ablate", "streaming", "text", "audio", "startup")  # of docs/performance.md
NO_MEASUREMENT = {"__init__", "__main__", "lightning_loop", "pairs", "s3_folder"}
FOLDER = Path(__file__).parent
ALL = sorted(file.stem for file in FOLDER.glob("*.py") if file.stem not in NO_MEASUREMENT)


@click.command()
@click.argument("names", nargs=-1, type=click.Choice([*ALL, "speed"]), metavar="[NAME]...")
def main(names: tuple[str, ...]) -> None:
    """Run measurements by name; without one, list them."""
    chosen = [name for given in names for name in (SPEED if given == "speed" else (given,))]
    for name in chosen:
        click.secho(f"\n{name}", bold=True)
        import_module(f"benchmarks.{name}").main([], standalone_mode=False)
    if not chosen:
        for name in ALL:
            text = (FOLDER / f"{name}.py").read_text("utf-8")  # not imported: what one needs, another user may lack
            click.echo(f"{name:15} {(ast.get_docstring(ast.parse(text)) or '').splitlines()[0]}")


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
