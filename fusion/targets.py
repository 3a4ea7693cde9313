"""What is predicted: from a label column to a tensor, a loss, and a prediction in the label's own terms.

A target of K outputs: categorical (K classes, softmax), multi-label (K labels, sigmoid), regression (K = 1, in units of
the training split's standard deviation), soft distribution (K shares, softmax). A missing label is masked out of the
loss; it never becomes a uniform target.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from featurize.config import TargetConfig, TargetKind
from featurize.errors import ConfigError
from featurize.labels import resolve_targets
from fusion.device import not_known_yet
from stores.store import Store


@dataclass(frozen=True)
class Target:
    """truth: int64 (N,) class numbers for categorical; float32 (N, K) otherwise. known: bool (N,)."""

    name: str
    kind: TargetKind
    classes: list[str]  # names of the K outputs
    truth: Tensor
    known: Tensor
    metric: str | None = None
    loss_weight: float = 1.0
    label_smoothing: float = 0.0
    class_weight_config: str | Mapping[str, float] | None = None
    class_weights: Tensor | None = None  # float (K,)
    mean: float = 0.0  # regression: of the training split, in the label's units
    scale: float = 1.0

    @property
    def n_outputs(self) -> int:
        """K, how many logits a row has."""
        return len(self.classes)

    def fitted_to(self, rows: np.ndarray) -> Target:
        """With class weights, mean and scale of the training rows (n,). Raises `ConfigError` where none can be."""
        known = self.known[rows]
        truth = self.truth[rows][known]
        if len(truth) == 0:
            raise ConfigError(f"Target {self.name}: no segment of the training split has this label.")
        if not self.classes:
            raise ConfigError(f"Target {self.name}: its lists are all empty; there is no label to learn.")
        if self.kind == "categorical" and len(truth.unique()) < 2:
            only = self.classes[int(truth[0])]
            raise ConfigError(
                f"Target {self.name}: the training split has one class only ({only!r}); nothing to learn."
            )
        if self.kind == "regression":
            scale = float(truth.std(correction=0))
            return replace(self, mean=float(truth.mean()), scale=scale if scale > 0 else 1.0)
        return replace(self, class_weights=self._class_weights(truth))

    def to(self, device: torch.device) -> Target:
        """The same target for logits that are there."""
        weights = None if self.class_weights is None else self.class_weights.to(device)
        return replace(self, truth=self.truth.to(device), known=self.known.to(device), class_weights=weights)

    def loss(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Mean loss over the rows whose label is known, (B, K) to scalar; zero where none is."""
        known = self._is_known(rows)
        if not_known_yet(known):
            unknown = ~known  # replaced before and behind: what has no label passes no gradient on, not even NaN
            of_rows = self._loss(logits.masked_fill(unknown[:, None], 0.0), self.truth[rows], "none")
            of_rows = of_rows.mean(dim=1) if of_rows.ndim > 1 else of_rows
            return of_rows.masked_fill(unknown, 0.0).sum() / self._weight(rows, known)
        logits, truth = logits[known], self.truth[rows][known]
        return self._loss(logits, truth, "mean") if len(truth) else logits.sum() * 0.0

    def _loss(self, logits: Tensor, truth: Tensor, reduction: str) -> Tensor:
        """A scalar, the `mean`; or with `none`, of each row (B,) or of each number (B, K)."""
        if self.kind in ("categorical", "soft_distribution"):
            weights, smoothing = self.class_weights, self.label_smoothing
            return F.cross_entropy(logits, truth, weight=weights, label_smoothing=smoothing, reduction=reduction)
        if self.kind == "multi_label":
            smooth = truth * (1 - self.label_smoothing) + 0.5 * self.label_smoothing
            return F.binary_cross_entropy_with_logits(
                logits, smooth, pos_weight=self.class_weights, reduction=reduction
            )
        return F.mse_loss(logits, (truth - self.mean) / self.scale, reduction=reduction)

    def weight(self, rows: Tensor) -> float | Tensor:
        """What `loss` divides by: of rows (n,) those with a label, or the sum of their class weights; never zero."""
        known = self._is_known(rows)
        if not_known_yet(known):
            return self._weight(rows, known)
        rows, weights = rows[known], self._class_weights_of_rows
        return (float(len(rows)) if weights is None else float(weights[self.truth[rows]].sum())) or 1.0

    def _weight(self, rows: Tensor, known: Tensor) -> Tensor:
        weights = self._class_weights_of_rows
        of_rows = known.float() if weights is None else weights[self.truth[rows]].masked_fill(~known, 0.0)
        return of_rows.sum().clamp(min=torch.finfo(of_rows.dtype).tiny)

    @property
    def _class_weights_of_rows(self) -> Tensor | None:
        """Where a row weighs what its class does: (K,)."""
        return self.class_weights if self.kind == "categorical" else None

    def _is_known(self, rows: Tensor) -> Tensor:
        """bool (n,); `NOBODY` has no label."""
        return self.known[rows] & (rows >= 0)

    def predict(self, logits: Tensor) -> np.ndarray:
        """float64 (n, K): probabilities, shares, or values in the label's units."""
        return self.in_own_terms(logits.double()).numpy()

    def in_own_terms(self, logits: Tensor) -> Tensor:
        """As `predict`, of the same type and shape as the logits, (n, K)."""
        if self.kind in ("categorical", "soft_distribution"):
            return logits.softmax(dim=1)
        if self.kind == "multi_label":
            return logits.sigmoid()
        return logits * self.scale + self.mean

    def columns(self, output: np.ndarray) -> dict[str, np.ndarray]:
        """What `predict` gave, (n, K), as columns of a table: `<target>.predicted`, a class or a value, where there is
        one, and `<target>.p.<class>` where there are probabilities or shares.
        """
        found: dict[str, np.ndarray] = {}
        if self.kind == "categorical":
            found[f"{self.name}.predicted"] = np.array(self.classes, dtype=object)[output.argmax(axis=1)]
        elif self.kind == "regression":
            return {f"{self.name}.predicted": output[:, 0]}
        return found | {f"{self.name}.p.{label}": output[:, index] for index, label in enumerate(self.classes)}

    def _class_weights(self, truth: Tensor) -> Tensor | None:
        wanted = self.class_weight_config
        if wanted is None:
            return None
        if isinstance(wanted, Mapping):
            unknown = set(wanted) - set(self.classes)
            if unknown:
                raise ConfigError(f"Target {self.name}: class_weights names {sorted(unknown)[0]!r}, which is no class.")
            return torch.tensor([float(wanted.get(name, 1.0)) for name in self.classes])
        if self.kind == "multi_label":
            positive = truth.mean(dim=0).clamp(1 / len(truth), 1 - 1 / len(truth))
            return (1 - positive) / positive
        share = F.one_hot(truth, self.n_outputs).float().mean(0) if self.kind == "categorical" else truth.mean(0)
        return 1 / (share.clamp(min=1 / len(truth)) * self.n_outputs)


def load_targets(store: Store, configured: list[TargetConfig]) -> list[Target]:
    """The configured targets, or the one that the labels suggest. Raises `ConfigError`."""
    labels = {name: store.label(name) for name in store.label_names()}
    return [_load_target(config, labels) for config in resolve_targets(configured, labels)]


def _load_target(config: TargetConfig, labels: Mapping[str, np.ndarray]) -> Target:
    assert config.kind is not None
    if config.columns:
        values = np.stack([_as_numbers(config, labels[column]) for column in config.columns], axis=1)
    else:
        assert config.column is not None
        values = labels[config.column]
    classes, truth, known = _ENCODERS[config.kind](config, values)
    return Target(
        config.name,
        config.kind,
        classes,
        torch.from_numpy(truth),
        torch.from_numpy(known),
        config.metric,
        config.loss_weight,
        config.label_smoothing,
        config.class_weights,
    )


Encoded = tuple[list[str], np.ndarray, np.ndarray]


def _categorical(config: TargetConfig, values: np.ndarray) -> Encoded:
    if values.ndim != 1:
        raise ConfigError(
            f"Target {config.name}: {config.column} holds lists; a categorical target needs one value each."
        )
    if values.dtype.kind == "T":
        names = values
    else:
        names = np.array(["" if np.isnan(v) else _whole(v) for v in values.tolist()], np.dtypes.StringDType())
    known = np.asarray(names != "")
    classes = sorted(set(names[known].tolist()), key=_natural)
    number = {name: index for index, name in enumerate(classes)}
    truth = np.array([number.get(name, 0) for name in names.tolist()], np.int64)
    return classes, truth, known


def _regression(config: TargetConfig, values: np.ndarray) -> Encoded:
    numbers = _as_numbers(config, values)
    known = ~np.isnan(numbers)
    return [config.name], np.nan_to_num(numbers)[:, None].astype(np.float32), known


def _multi_label(config: TargetConfig, values: np.ndarray) -> Encoded:
    if values.ndim == 2:
        known = ~np.isnan(values).any(axis=1)
        return [str(i) for i in range(values.shape[1])], np.nan_to_num(values).astype(np.float32), known
    if values.dtype.kind != "T":
        raise ConfigError(
            f"Target {config.name}: {config.column} holds numbers; a multi-label target needs texts or lists."
        )
    rows = [_label_set(text, config.separator) for text in values.tolist()]
    classes = sorted({label for row in rows if row is not None for label in row}, key=_natural)
    number = {name: index for index, name in enumerate(classes)}
    truth = np.zeros((len(rows), len(classes)), np.float32)
    for at, row in enumerate(rows):
        for label in row or ():
            truth[at, number[label]] = 1
    return classes, truth, np.array([row is not None for row in rows], bool)


def _soft_distribution(config: TargetConfig, values: np.ndarray) -> Encoded:
    if values.ndim != 2:
        raise ConfigError(f"Target {config.name}: a soft distribution needs a list column, or several `columns`.")
    negative = int((values < 0).any(axis=1).sum())
    if negative:
        raise ConfigError(f"Target {config.name}: {negative:,} rows have negative shares; a distribution has none.")
    total = values.sum(axis=1, keepdims=True)
    known = np.asarray(total[:, 0] > 0)  # NaN compares false; all-zero is no distribution
    shares = np.where(known[:, None], values / np.where(known[:, None], total, 1), 0).astype(np.float32)
    return list(config.columns or [str(i) for i in range(values.shape[1])]), shares, known


_ENCODERS = {
    "categorical": _categorical,
    "multi_label": _multi_label,
    "regression": _regression,
    "soft_distribution": _soft_distribution,
}


def _as_numbers(config: TargetConfig, values: np.ndarray) -> np.ndarray:
    if values.ndim != 1 or values.dtype.kind == "T":
        raise ConfigError(f"Target {config.name}: its column holds no plain numbers.")
    return values.astype(np.float64)


def _label_set(text: str, separator: str) -> set[str] | None:
    """The labels of one cell; `None` where it is missing. An empty JSON list is a known "none of them"."""
    if not text:
        return None
    if text.startswith("["):
        try:
            return {str(label) for label in json.loads(text)}
        except ValueError:
            pass
    return {label.strip() for label in text.split(separator) if label.strip()}


def _whole(number: float) -> str:
    """`3` for 3.0, every digit otherwise."""
    return repr(float(number)).removesuffix(".0")


def _natural(name: str) -> tuple[int, float, str]:
    """Numbers by value, before texts by letter."""
    try:
        number = float(name)
    except ValueError:
        number = math.nan
    return (1, 0.0, name) if math.isnan(number) else (0, number, name)
