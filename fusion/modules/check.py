"""Whether a fusion keeps the contract of `fusion.modules.base`: for the author of a new one, and before it is trained.

check_fusion(MyFusion)     # raises `ConfigError`, which says which promise is broken
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from featurize.errors import ConfigError
from featurize.user_code import spec_of
from fusion.modules.base import Fused, MultimodalFusion

WIDTHS = {"text": 5, "audio": 4, "a b/c.d": 3}  # a slot may be called what its user likes
HIDDEN = 16
ROWS = 12
TOLERANCE = 1e-5


class Broken(Exception):
    """A promise, in words."""


def check_fusion(cls: type[MultimodalFusion], options: Mapping[str, Any] | None = None) -> None:
    """Fuse random vectors, some of them missing, and look at what comes out. Takes milliseconds.

    options: further ones of its constructor. Raises `ConfigError`, which says which promise is broken.
    """
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
        raise ConfigError(
            f'{spec_of(cls)} has no name that a run could bear. Give the class one: name = "{cls.__name__.lower()}"'
        )
    state = torch.get_rng_state()
    try:
        _check(cls, options or {})
    except Broken as error:
        raise ConfigError(f"{spec_of(cls)} breaks the contract of a fusion: {error}.") from error
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(
            f"{spec_of(cls)} fails in {at.name}(), line {at.lineno} of {at.filename}: "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    finally:
        torch.set_rng_state(state)


def _check(cls: type[MultimodalFusion], options: Mapping[str, Any]) -> None:
    torch.manual_seed(0)
    fusion = cls(WIDTHS, hidden_dim=HIDDEN, dropout=0.3, **options)
    with torch.no_grad():
        for parameter in fusion.parameters():  # one may start with zeros, and behind a zero every leak hides
            parameter.add_(0.2 * torch.randn(parameter.shape))
    features = {slot: torch.randn(ROWS, width) for slot, width in WIDTHS.items()}
    present = torch.rand(ROWS, len(WIDTHS)) < 0.6
    present[0], present[-1] = True, False
    for training in (False, True):
        fusion.train(training)
        clean = _fused(fusion, _with_masked(features, present, 0.0), present)
        _check_shapes(fusion, clean, present)
        dirty = _fused(fusion, _with_masked(features, present, torch.nan), present)
        if not torch.equal(clean.vector, dirty.vector):
            raise Broken("numbers of a slot that is not present reach the output: zeros and NaN give different vectors")
    fusion.eval()
    whole = _fused(fusion, features, present)
    for row in (0, ROWS // 2, ROWS - 1):
        part = slice(row, row + 1)
        alone = _fused(fusion, {slot: vectors[part] for slot, vectors in features.items()}, present[part])
        if not torch.allclose(alone.vector, whole.vector[part], rtol=TOLERANCE, atol=TOLERANCE):
            raise Broken("a segment alone has another vector than in a batch with others")
    _check_shapes(fusion, _fused(fusion, {s: v[:0] for s, v in features.items()}, present[:0]), present[:0])
    _fused(fusion.train(), features, present).vector.sum().backward()
    if any(weight.grad is not None and not weight.grad.isfinite().all() for weight in fusion.parameters()):
        raise Broken("a gradient is NaN or infinite")


def _fused(fusion: MultimodalFusion, features: Mapping[str, Tensor], present: Tensor) -> Fused:
    torch.manual_seed(1)
    fused = fusion.fuse(features, present)
    if not isinstance(fused, Fused):
        raise Broken(f"fuse() returned a {type(fused).__name__}; expected Fused(vector, embeddings)")
    return fused


def _check_shapes(fusion: MultimodalFusion, fused: Fused, present: Tensor) -> None:
    n, n_slots = present.shape
    wanted = {"vector": (n, fusion.hidden_dim), "embeddings": (n, n_slots, fusion.hidden_dim), "weights": (n, n_slots)}
    for name, shape in wanted.items():
        values = getattr(fused, name)
        if name == "weights" and values is None:
            continue
        if tuple(values.shape) != shape:
            raise Broken(f"{name} has the shape {tuple(values.shape)}; expected {shape}")
        if not values.isfinite().all():
            raise Broken(f"{name} holds NaN or infinity, where slots are missing or all of them are")
    if fused.weights is not None and (fused.weights[~present].any() or (fused.weights < 0).any()):
        raise Broken("weights must be zero where a slot is missing, and never negative")


def _with_masked(features: Mapping[str, Tensor], present: Tensor, value: float) -> dict[str, Tensor]:
    return {
        slot: torch.where(present[:, index : index + 1], vectors, torch.full_like(vectors, value))
        for index, (slot, vectors) in enumerate(features.items())
    }
