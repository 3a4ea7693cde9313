"""`cli verify` and `cli convert`: whether a store is whole, and in which form; and what it holds, as lines of text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from stores.remote import Location, location

Command = Callable[..., Any]


class LocationType(click.ParamType):
    """An argument of a command: a path, or a URL of object storage."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Location:
        """As `click` calls it. A URL that cannot be is a mistake of the user."""
        return location(value)


LOCATION = LocationType()


def store_option(command: Command) -> Command:
    """`--store PATH`, as every command that reads one takes it."""
    return click.option(
        "--store",
        "store_path",
        type=LOCATION,
        default=Path("features.zarr"),
        show_default=True,
        help="The feature store; a path, or s3://, gs:// or az:// and where it is.",
    )(command)


@click.command("verify")
@store_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify_command(store_path: Location, as_json: bool) -> None:
    """Read every chunk back and check it against its checksum. Exits 1 where something is damaged.

    Each damaged chunk is named with its feature, array and rows; then what to do about them.

    \b
    Example:
      cli verify --store features.zarr
    """
    from stores import open_store
    from stores.verify import remedies, verify

    store = open_store(store_path)
    damages = list(verify(store))
    todo = remedies(store, damages)
    if as_json:
        click.echo(json.dumps({"damaged": [vars(damage) for damage in damages], "remedies": todo}, indent=2))
        raise SystemExit(1 if damages else 0)
    for damage in damages:
        click.echo(str(damage))
    if damages:
        click.echo(f"{len(damages)} damaged in {store_path}. What to do:")
        for line in todo:
            click.echo(f"  {line}")
        raise SystemExit(1)
    click.echo(f"{store_path}: every chunk is there and matches its checksum.")


@click.command("convert")
@click.argument("origin", metavar="A", type=LOCATION)
@click.argument("target", metavar="B", type=LOCATION)
@click.option("--replace", is_flag=True, help="Make B anew where it is a store already.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def convert_command(origin: Location, target: Location, replace: bool, as_json: bool) -> None:
    """Copy the whole store A to B: one HDF5 file where B ends in .h5 or .hdf5, a Zarr folder otherwise.

    The copy is compared with A, array by array, before it appears at B.

    \b
    Example:
      cli convert features.zarr features.h5
    """
    from stores.convert import convert

    done = convert(origin, target, replace=replace)
    if as_json:
        click.echo(json.dumps({"store": str(target), **vars(done)}, indent=2))
        return
    click.echo(
        f"{target}: {done.n_arrays:,} arrays in {done.n_chunks:,} chunks, {done.n_bytes / 1e6:,.1f} MB of values;"
        f" equal to {origin}."
    )


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """summary: of `stores.inspect.summarize`."""
    lines = [f"{summary['location']}: {summary['segments']:,} segments in {summary['groups']:,} groups"]
    lines.append("")
    lines.append("labels")
    for name, label in summary["labels"].items():
        detail = ""
        if "counts" in label:
            detail = ", ".join(f"{value} {count:,}" for value, count in label["counts"].items())
        elif "mean" in label:
            detail = f"{label['min']:.4g} to {label['max']:.4g}, mean {label['mean']:.4g}"
        elif "distinct" in label:
            detail = f"{label['distinct']:,} different texts"
        elif "width" in label:
            detail = f"vectors of {label['width']}"
        lines.append(f"  {name}: {detail}" + (f" ({label['missing']:,} missing)" if label["missing"] else ""))
    lines.append("splits")
    for name, split in summary["splits"].items():
        parts = ", ".join(
            f"{part} {count['segments']:,} segments / {count['groups']:,} groups"
            for part, count in split["parts"].items()
        )
        leak = "  LEAKS: groups are cut" if split.get("leaks") else ""
        lines.append(f"  {name} ({split['method']}, seed {split['seed']}): {parts}{leak}")
    if not summary["splits"]:
        lines.append("  none; `cli split` makes one")
    lines.append("features")
    for name, feature in summary["features"].items():
        lines.append(
            f"  {name}  {feature['width']} x {feature['dtype']}  present {feature['present']:,}, absent"
            f" {feature['absent']:,}, failed {feature['failed']:,}, pending {feature['pending']:,},"
            f" by {feature['encoder']}"
        )
        lines += [f"    failed {count:,}: {reason}" for reason, count in feature["reasons"].items()]
        lines += [f"    {warning['severity']}: {warning['message']}" for warning in feature["warnings"]]
    if not summary["features"]:
        lines.append("  none; `cli featurize --encoder NAME` makes one")
    return lines
