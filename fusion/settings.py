"""From a configuration and what a command, or a call from Python, says over it to the configuration in force."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from featurize.config import TargetConfig
from featurize.config_reading import Given, given_config
from featurize.errors import ConfigError
from fusion.config import Config, validated
from fusion.known_fusions import USER_FUSIONS

Names = str | Sequence[str] | None  # one, or several; a text may hold several with commas between


def settings(
    config: Given = None,
    *,
    fusion: str | type | None = None,
    target: Names = None,
    slots: Names = None,
    features: Mapping[str, str] | Names = None,
    seeds: int | Sequence[int] | None = None,
    stream: bool | None = None,
    device: str | None = None,
) -> Config:
    """What is `None` stays as configured.

    fusion: a name, `my_fusion.py:MyFusion`, or a class. target: what to predict, `mood` or `mood:categorical`. slots:
    which to use. features: which fills a slot, `{"audio": "clap"}` or `audio/clap`. seeds: how many, or which. stream:
    `training.stream`. device: `training.device`. Raises `ConfigError` where it does not fit together.
    """
    found = given_config(config, Config)
    values = found.model_dump(mode="python")
    strategy, training = values["model"]["fusion"], values["training"]
    if fusion is not None:
        strategy["strategy"] = USER_FUSIONS.use(fusion)
    if slots is not None:
        strategy["slots"] = listed(slots)
    strategy["features"] = {**strategy["features"], **_by_slot(features)}
    if seeds is not None:
        training["seeds"] = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if stream is not None:
        training["stream"] = stream
    if device is not None:
        training["device"] = device
    if names := listed(target):
        configured = {target.name: target for target in found.model.targets}
        values["model"]["targets"] = [_target(name, configured) for name in names]
    return validated(values, "the options")


def listed(names: Names) -> list[str]:
    """The names, in order; none for `None`."""
    if names is None:
        return []
    return [name.strip() for name in names.split(",") if name.strip()] if isinstance(names, str) else list(names)


def _by_slot(features: Mapping[str, str] | Names) -> dict[str, str]:
    if isinstance(features, Mapping):
        return dict(features)
    found = {}
    for feature in listed(features):
        slot, slash, name = feature.partition("/")
        if not slash:
            raise ConfigError(f"A feature is named SLOT/NAME, e.g. audio/mel_stats, not {feature!r}.")
        found[slot] = name
    return found


def _target(text: str, configured: Mapping[str, TargetConfig]) -> dict[str, Any]:
    """`mood`, as configured where it is; or `mood:categorical`."""
    name, colon, kind = text.rpartition(":")
    if not colon:
        name, kind = text, ""
    values: dict[str, Any] = configured[name].model_dump() if name in configured else {"name": name}
    return values | ({"kind": kind} if kind else {})
