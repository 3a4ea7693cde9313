"""`featurize.ingest`: the work of `cli ingest` as functions, which the command calls. They import no torch.

config: a path, plain values, a model; or `None`, which is `config.yaml` in the current folder where there is one, else
the defaults, as for `cli`.

workers: 0, the default, starts no process, so that a script needs no `if __name__ == "__main__":`. Nothing then
protects it from files that kill or hang a decoder (SECURITY.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from featurize.config import FeaturizeConfig
from featurize.config_reading import Given, given_config
from featurize.errors import ConfigError
from featurize.ingestion import Ingest, Problem, Written, check, refuse_errors, write_store
from featurize.splits import first_split
from stores.card import Card
from stores.remote import Location, location
from stores.store import DEFAULT_CHUNK_ROWS, Split, Store


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
