"""`featurize.featurize`: the work of `cli featurize` as a function, which the command calls.

store: a path, or a `Store`. config and workers: as `featurize.ingest_api` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from featurize import pipeline
from featurize.config import FeaturizeConfig
from featurize.config_reading import Given, given_config
from featurize.encoder_options import check_sample_rate, configured_options
from featurize.encoders import USER_ENCODERS
from featurize.encoders.base import Encoder
from featurize.errors import ConfigError
from featurize.extract import Progress
from featurize.limits import Limits
from featurize.pipeline import Featurized, open_encoder
from featurize.project import open_source_of, trained_encoders_of
from featurize.trained import has_tuned, open_tuned
from featurize.user_code import allow_code, check_importable, is_code
from stores import open_store
from stores.remote import Location, location
from stores.store import Store

__all__ = ["Featurized", "allow_code", "choose_encoder", "featurize", "path_of"]


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
