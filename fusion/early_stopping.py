"""When a training is at its best: the epoch with the lowest validation loss, or with the best value of a metric."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from featurize.errors import UnknownName
from fusion.metrics import headline_metric, score
from fusion.targets import Target
from stores.errors import TriadError


class StoppingRule:
    """text: `loss`, a metric of the first target (`macro_f1`), or one of another (`mood/macro_f1`).

    Raises `UnknownName` on a target or metric that there is not.
    """

    def __init__(self, text: str, targets: Sequence[object]):
        self.name = text
        self._target: Target | None = None
        if text == "loss":
            return
        target_name, slash, metric_name = text.rpartition("/")
        known = {target.name: number for number, target in enumerate(targets) if isinstance(target, Target)}
        if not known or (slash and target_name not in known):
            raise UnknownName("target to stop by", target_name or text, known or ["loss"])
        self._number = known[target_name] if slash else next(iter(known.values()))
        target = targets[self._number]
        assert isinstance(target, Target)
        self._target = target
        self._metric = headline_metric(target.kind, metric_name)

    def badness(self, val_loss: float, logits: Sequence[Tensor], val_rows: np.ndarray) -> float:
        """The lower the better. logits: (n, K) for each target, of the validation rows."""
        if self._target is None:
            return val_loss
        known = self._target.known.numpy()[val_rows]
        truth = self._target.truth.numpy()[val_rows[known]]
        prediction = self._target.predict(logits[self._number][known])
        value = score(self._metric, truth, prediction)
        if math.isnan(value):
            raise TriadError(f"{self.name} is not defined on the validation part. Stop by another metric, or by loss.")
        return -self._metric.sign * value
