"""A project folder: `config.yaml`, the store beside it, and the way from one to raw segments and encoders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click

from featurize.alignment import Correction
from featurize.config import ColumnsConfig, DataConfig, FeaturizeConfig
from featurize.errors import SourceError
from featurize.segments import Raw, RawMidi
from featurize.sources import Source, open_source
from featurize.sources.vectors import LAYOUT
from featurize.user_code import allow_code
from stores import open_store
from stores.commands import store_option
from stores.remote import Location, RemotePath
from stores.source_path import found_path
from stores.store import Store


@dataclass(frozen=True)
class Project:
    """What every command works on. `config` is a `fusion.config.Config`; this layer uses the part it knows."""

    config: Any
    store_path: Location

    @property
    def trained_encoders(self) -> Path:
        """Where `cli train-encoder` leaves its encoders."""
        return trained_encoders_of(self.store_path)

    def open_store(self) -> Store:
        """The store of the command line. Raises `StoreError` where there is none."""
        return open_store(self.store_path)

    def open_source(self, store: Store) -> Source:
        """The raw data that the store was made from. Raises `SourceError` where it is gone."""
        return open_source_of(store, self.store_path, self.config)


def project_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--config`, `--set` and `--store`; the command receives a `Project` in their place."""

    @wraps(command)
    @click.pass_context
    def with_project(
        context: click.Context,
        /,
        config_path: Path | None,
        overrides: tuple[str, ...],
        store_path: Location,
        **options: Any,
    ) -> Any:
        load_config = context.find_root().obj  # set by cli.py, because the whole configuration is the top layer's
        return command(Project(load_config(config_path, overrides), store_path), **options)

    with_settings = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a configuration key, e.g. split.seed=1.",
    )(store_option(with_project))
    return click.option(
        "--config",
        "config_path",
        type=click.Path(path_type=Path, dir_okay=False),
        default=None,
        help="Configuration file; config.yaml in this folder where there is one.",
    )(with_settings)


def _allow(_context: click.Context, _parameter: click.Parameter, named: tuple[str, ...]) -> None:
    for name in named:
        allow_code(name)


code_option = click.option(
    "--allow-code",
    multiple=True,
    metavar="MODULE|FILE.py",
    expose_value=False,
    callback=_allow,
    help="Code of an encoder or fusion that a file names, and that you trust; repeatable.",
)


class StoreRows:
    """Raw inputs of one modality by row of the store, whatever the order of the source's table.

    MIDI is shifted or left out as `cli align` was told to; `as_stated` takes it as the data has it.
    """

    def __init__(self, store: Store, source: Source, modality: str, *, as_stated: bool = False):
        row_of = {segment_id: row for row, segment_id in enumerate(source.ids)}
        missing = [segment_id for segment_id in store.ids.tolist() if segment_id not in row_of]
        if missing:
            raise SourceError(
                f"{source.table.path} no longer has {len(missing):,} of the store's segments, e.g. {missing[0]!r}.\n"
                "Put them back, or make the store anew: cli ingest --replace"
            )
        self._rows = [row_of[segment_id] for segment_id in store.ids.tolist()]
        self._source = source
        self._modality = modality
        self.n_new = len(source) - len(self._rows)
        self._correction = None if as_stated or modality != "midi" else Correction.of(store)

    def raw(self, row: int) -> Raw | None:
        """The raw input of a row of the store, MIDI shifted as `cli align` measured it; `None` where it has none."""
        raw = self._source.raw(self._rows[row], self._modality)
        if self._correction is not None and isinstance(raw, RawMidi):
            return self._correction.apply(row, raw)
        return raw


def trained_encoders_of(store_path: Location) -> Path:
    """The folder of encoders that were trained here: beside the store, or in this folder where that is on no disk."""
    return Path("encoders") if isinstance(store_path, RemotePath) else store_path.parent / "encoders"


def open_source_of(store: Store, store_path: Location, config: FeaturizeConfig) -> Source:
    """The source a store was made from, read as it was then. Raises `SourceError` where it has moved, or had none."""
    facts = store.source
    if facts["layout"] == LAYOUT:
        raise SourceError(
            f"{store_path} was made of vectors and has no raw data to read. Where there is some: cli ingest DATA"
        )
    path = config.data.path or found_path(facts["path"], store_path)
    if not path.exists():
        raise SourceError(
            f"The raw data of {store_path} was at {path} and is not there now.\nSay where it is: --set data.path=FOLDER"
        )
    data = DataConfig(
        layout=facts["layout"],
        columns=ColumnsConfig(**facts["columns"]),
        audio_is=facts["audio_is"],
        midi_is=facts["midi_is"],
        allow_outside_root=facts["allow_outside_root"],
        timecode_rate=facts.get("timecode_rate"),
    )
    return open_source(path, data)
