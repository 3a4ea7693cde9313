"""Options of `cli featurize` that say where chunks are encoded: `--engine` and what belongs to it, and `--shard`."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from stores.shard import Shard


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command receives `shard` and `engine`, as `featurize.pipeline.featurize` takes them."""

    @wraps(command)
    def with_engine(
        *arguments: Any,
        shard: Shard | None,
        engine_name: str,
        address: str | None,
        actors: tuple[int, int] | None,
        cpus: float,
        gpus: float,
        **options: Any,
    ) -> Any:
        engine = None
        if engine_name == "ray":
            if shard is not None:
                raise click.UsageError("--engine ray deals out the chunks by itself; leave --shard away.")
            if options["dry_run"]:
                raise click.UsageError("--dry-run measures on this machine; leave --engine away.")
            from featurize.engines.ray import RayEngine

            engine = RayEngine(address, actors, cpus, gpus, options["device"])
            if options["workers"] is None:
                options["workers"] = max(1, round(cpus))
        elif context_has("address", "actors", "cpus", "gpus"):
            raise click.UsageError("--address, --actors, --cpus-per-actor and --gpus-per-actor belong to --engine ray.")
        return command(*arguments, shard=shard, engine=engine, **options)

    for option in reversed(OPTIONS):
        with_engine = option(with_engine)
    return with_engine


def context_has(*names: str) -> bool:
    """Whether the user gave any of these."""
    source = click.get_current_context().get_parameter_source
    return any(source(name) is click.core.ParameterSource.COMMANDLINE for name in names)


def _shard(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Shard | None:
    return None if value is None else Shard.parse(value)


def _actors(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    found = re.fullmatch(r"(\d{1,6})(?:\.\.(\d{1,6}))?", value, re.ASCII)
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= least <= most:
        raise click.BadParameter(f"{value!r} is neither a number of actors nor MIN..MAX, e.g. 4 or 1..16.")
    return least, most


OPTIONS = [
    click.option(
        "--shard",
        metavar="I/N",
        callback=_shard,
        help="Only the I-th of every N chunks: for job arrays, which run N such commands in any order.",
    ),
    click.option(
        "--engine",
        "engine_name",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="This process encodes, or actors on a Ray cluster do.",
    ),
    click.option("--address", help="Of a Ray cluster: HOST:PORT, ray://HOST:PORT, auto. [default: one starts here]"),
    click.option(
        "--actors",
        metavar="MIN..MAX",
        callback=_actors,
        help="Ray actors at first and at most, or one number. [default: as many as there is room for]",
    ),
    click.option(
        "--cpus-per-actor",
        "cpus",
        type=click.FloatRange(0),
        default=1.0,
        show_default=True,
        help="CPUs of a Ray actor; also how many of its processes prepare, without --workers.",
    ),
    click.option(
        "--gpus-per-actor",
        "gpus",
        type=click.FloatRange(0),
        default=0.0,
        show_default=True,
        help="GPUs of a Ray actor; 0.5 lets two share one.",
    ),
]
