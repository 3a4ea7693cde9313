"""What `import featurize` gives: the work of `cli ingest` and `cli featurize` as functions, which the commands call.

store: a path, or a `Store`. config: a path, plain values, a model; or `None`, which is `config.yaml` in the current
folder where there is one, else the defaults, as for `cli`.

workers: 0, the default, starts no process, so that a script needs no `if __name__ == "__main__":`. Nothing then
protects it from files that kill or hang a decoder (SECURITY.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from featurize import pipeline
from featurize.config import FeaturizeConfig
from featurize.config_reading import Given, given_config
from featurize.encoder_options import check_sample_rate, configured_options
from featurize.encoders import USER_ENCODERS
from featurize.encoders.base import Encoder
from featurize.errors import ConfigError
from featurize.extract import Progress
from featurize.ingestion import Ingest, Problem, Written, check, refuse_errors, write_store
from featurize.limits import Limits
from featurize.pipeline import Featurized, open_encoder
from featurize.project import open_source_of, trained_encoders_of
from featurize.splits import first_split
from featurize.trained import has_tuned, open_tuned
from featurize.user_code import allow_code, check_importable, is_code
from stores import open_store
from stores.card import Card
from stores.remote import Location, location
from stores.store import DEFAULT_CHUNK_ROWS, Split, Store

__all__ = ["Featurized", "Ingested", "allow_code", "choose_encoder", "featurize", "ingest", "path_of"]


@dataclass(frozen=True, repr=False)
class Ingested:
    """found: what the data are. written: what became of the store. splits: those that were made, the first time."""

    store: Store
    found: Ingest
    written: Written
    splits: list[Split]
    no_split: str | None  # why none could be made

    @property
    def problems(self) -> list[Problem]:
        """What is wrong with the data, errors first."""
        return self.found.problems

    def card(self) -> Card:
        """What it shows of itself."""
        facts = [(modality, f"{int(there.sum()):,}") for modality, there in self.found.presence.items()]
        problems = [(str(problem.severity), f"{problem.count:,} x {problem.what}") for problem in self.problems]
        title = f"{self.store.tree.location}, {self.written}: {self.store.n_segments:,} segments"
        return Card(title, facts + problems + ([("no split", self.no_split)] if self.no_split else []))

    def __repr__(self) -> str:
        return self.card().text()

    def _repr_html_(self) -> str:
        return self.card().html()


def ingest(
    data: str | Location | None = None,
    store: str | Location = "features.zarr",
    *,
    config: Given = None,
    chunk_rows: int = DEFAULT_CHUNK_ROWS,
    replace: bool = False,
    workers: int = 0,
) -> Ingested:
    """Check a dataset and make its store, with a first split where it has none.

    data: as `cli ingest` takes it; `data.path` of the configuration where `None`. chunk_rows: of a new store. What is
    wrong with the data stands in `problems`. Raises `SourceError` where errors are among them, or where the store has
    segments that the data lack.
    """
    settings = given_config(config, FeaturizeConfig)
    found = check_data(data, settings, workers)
    return write(found, location(store), settings, replace=replace, chunk_rows=chunk_rows)


def check_data(data: str | Location | None, config: FeaturizeConfig, workers: int = 1) -> Ingest:
    """What `ingest` would find; writes nothing."""
    path = config.data.path if data is None else location(data)
    if path is None:
        raise ConfigError("Name the data: cli ingest FOLDER, or data.path in config.yaml.")
    return check(path, config.data, config.model.targets, workers)


def write(
    found: Ingest,
    store_path: Location,
    config: FeaturizeConfig,
    *,
    replace: bool = False,
    chunk_rows: int = DEFAULT_CHUNK_ROWS,
) -> Ingested:
    """The store of data that were checked, and a first split where it has none."""
    refuse_errors(found)
    store, written = write_store(found, store_path, replace=replace, chunk_rows=chunk_rows)
    return Ingested(store, found, written, *first_split(store, config.split, list(config.model.targets)))


def featurize(
    store: Store | str | Location,
    encoder: str | Encoder | type[Encoder],
    *,
    config: Given = None,
    options: Mapping[str, Any] | None = None,
    save_as: str | None = None,
    split: str | None = None,
    workers: int = 0,
    progress: Progress | None = None,
    **settings: Any,
) -> Featurized:
    """Run one encoder over all segments; only what is new or changed is encoded, equal inputs once.

    encoder: a name, `RUN:SLOT` of one that was tuned, `my_encoder.py:MyEncoder`, a class, or an encoder that is ready.
    options: of its constructor. split: whose training part an encoder is fitted on.
    settings: `replace`, `batch_size`, `batch_budget`, `dtype`, `frames`, `device`, `precision`, `retry_failed`,
    `repair`, `audit_rows`, `shard` and `engine`, as `featurize.pipeline.featurize` has them. Raises `TriadError`s on
    mistakes.
    """
    opened, found = open_both(store, config)
    ready, name = choose_encoder(opened, encoder, found, options)
    if workers and ready.heavy_preparation:
        check_importable(type(ready))
    return pipeline.featurize(
        opened,
        open_source_of(opened, path_of(opened), found),
        ready,
        save_as=save_as or name,
        split_name=split or found.split.name,
        workers=workers,
        limits=Limits(found.preprocessing.row_seconds, found.preprocessing.row_gib),
        progress=progress,
        **settings,
    )


def choose_encoder(
    store: Store,
    encoder: str | Encoder | type[Encoder],
    config: FeaturizeConfig,
    options: Mapping[str, Any] | None = None,
) -> tuple[Encoder, str | None]:
    """An encoder as `featurize` takes it, ready but for fitting; and what its feature is called, if not as itself."""
    if isinstance(encoder, Encoder):
        if options:
            raise ConfigError(f"{encoder.name} is built already; its options are given to its class.")
        ready, name = encoder, None
    elif isinstance(encoder, str) and ":" in encoder and (has_tuned(encoder) or not is_code(encoder)):
        ready, name = open_tuned(encoder, options or {})
    else:
        known = _registered(encoder)
        given = {**configured_options(config, known), **(options or {})}
        ready, name = open_encoder(known, given, trained=trained_encoders_of(path_of(store))), None
    check_sample_rate(config, ready)
    return ready, name


def _registered(encoder: str | type[Encoder]) -> str:
    """The name by which `featurize.encoders` knows it, after the import of code that is named so."""
    try:
        return USER_ENCODERS.use(encoder)
    except ConfigError as error:
        if isinstance(encoder, str) and isinstance(error.__cause__, ModuleNotFoundError):
            raise ConfigError(f"{error}\nNor is there a run {encoder.rpartition(':')[0]!r}.") from error
        raise


def open_both(store: Store | str | Location, config: Given) -> tuple[Store, FeaturizeConfig]:
    """A store and a configuration, however they are given."""
    return store if isinstance(store, Store) else open_store(store), given_config(config, FeaturizeConfig)


def path_of(store: Store) -> Location:
    """Where it stands."""
    return location(store.tree.location)
