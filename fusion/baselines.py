"""What any fusion has to beat: the prior, missingness alone, and a linear model on everything.

All predict in the target's own terms (`fusion.targets.Target.predict`), so that one evaluation serves them and the
fusions. The strength of the linear models' regularization is chosen on the validation split. To segments that are
larger than memory, linear models are fitted by a sample (`fusion.streamed_inputs`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge

from fusion.data import SegmentData, StoredSegments
from fusion.metrics import headline_metric, score
from fusion.model import Standardize
from fusion.streamed_inputs import StreamedInputs
from fusion.streaming import StreamedSegments
from fusion.targets import Target

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C of logistic regression; 1/alpha of ridge

Predict = Callable[[np.ndarray], np.ndarray]  # features (n, D) to predictions (n, K)
Inputs = np.ndarray | StreamedInputs  # float32 (N, D)


def predictions(
    data: SegmentData | StreamedSegments, targets: Sequence[Target], rows: Mapping[str, np.ndarray]
) -> dict[str, dict[str, list[np.ndarray]]]:
    """Every baseline's word on the validation and test rows: name to part to, by target, (n, K).

    rows: of `train`, `val` and `test`.
    """
    found: dict[str, dict[str, list[np.ndarray]]] = {
        "majority": {part: [majority(t, rows["train"], rows[part]) for t in targets] for part in ("val", "test")}
    }
    inputs: dict[str, Inputs] = {"logistic regression": inputs_of(data, rows["train"]), "mask only": mask(data)}
    held_out, n_val = np.concatenate([rows["val"], rows["test"]]), len(rows["val"])
    for name, values in inputs.items():
        outputs = [linear(values, target, rows["train"], rows["val"], held_out) for target in targets]
        found[name] = {"val": [out[:n_val] for out in outputs], "test": [out[n_val:] for out in outputs]}
    return found


def majority(target: Target, train_rows: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The training split's class shares, label shares or mean, the same for every row: (n, K)."""
    truth = target.truth[train_rows][target.known[train_rows]].numpy()
    if target.kind == "categorical":
        prior = np.bincount(truth, minlength=target.n_outputs) / len(truth)
    else:
        prior = truth.mean(axis=0)
    return np.tile(prior.astype(np.float64), (len(rows), 1))


def linear(
    inputs: Inputs, target: Target, train_rows: np.ndarray, val_rows: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """Logistic (or ridge) regression from inputs (N, D), fitted on training rows: predictions (n, K) for `rows`.

    Of streamed inputs, on their sample of the training rows.
    """
    known = target.known.numpy()
    if isinstance(inputs, StreamedInputs):
        train_rows = inputs.sample
    train_rows, val_rows = train_rows[known[train_rows]], val_rows[known[val_rows]]
    truth = target.truth.numpy()
    metric = headline_metric(target.kind, target.metric)
    learned = inputs.take(train_rows) if isinstance(inputs, StreamedInputs) else inputs[train_rows]
    fitted = [_fit_linear(learned, truth[train_rows], target, strength) for strength in STRENGTHS]
    outputs = _predict(fitted, inputs, val_rows) if len(val_rows) else [np.zeros(0)] * len(fitted)
    candidates = []
    for strength, predict, output in zip(STRENGTHS, fitted, outputs, strict=True):
        quality = metric.sign * score(metric, truth[val_rows], output) if len(val_rows) else 0.0
        candidates.append((quality if np.isfinite(quality) else -np.inf, -strength, predict))
    best = max(candidates, key=lambda candidate: candidate[:2])[2]
    return _predict([best], inputs, rows)[0]


def inputs_of(data: SegmentData | StreamedSegments, train_rows: np.ndarray) -> Inputs:
    """The concatenation (N, ΣD + M), in memory or streamed as the segments are."""
    return StreamedInputs(data, train_rows) if isinstance(data, StreamedSegments) else concatenation(data, train_rows)


def concatenation(data: SegmentData, train_rows: np.ndarray) -> np.ndarray:
    """All slots standardized side by side, zeros where missing, and the mask: float32 (N, ΣD + M)."""
    parts = []
    for index, slot in enumerate(data.slots):
        present = data.present[:, index]
        standardize = Standardize(data.widths[slot])
        standardize.fit(data.vectors[slot][train_rows[present[train_rows].numpy()]])
        parts.append(np.where(present[:, None], standardize(data.vectors[slot]).numpy(), 0.0))
    return np.concatenate([*parts, mask(data)], axis=1).astype(np.float32)


def mask(data: StoredSegments) -> np.ndarray:
    """Which slots are there, and nothing else: float32 (N, M)."""
    return data.present.numpy().astype(np.float32)


def _predict(models: Sequence[Predict], inputs: Inputs, rows: np.ndarray) -> list[np.ndarray]:
    """What each model says of the rows, (n, K) each, from one pass over the inputs."""
    blocks: Iterable[np.ndarray] = (
        inputs.blocks(rows) if isinstance(inputs, StreamedInputs) else [np.asarray(inputs[rows])]
    )
    found = [[predict(block) for predict in models] for block in blocks]
    return [np.concatenate(outputs) for outputs in zip(*found, strict=True)]


def _fit_linear(inputs: np.ndarray, truth: np.ndarray, target: Target, strength: float) -> Predict:
    if target.kind == "regression":
        ridge = Ridge(alpha=1 / strength).fit(inputs, truth[:, 0])
        return lambda x: ridge.predict(x)[:, None]
    if target.kind == "multi_label":
        columns = [_fit_classes(inputs, truth[:, k].astype(np.int64), 2, strength) for k in range(target.n_outputs)]
        return lambda x: np.stack([predict(x)[:, 1] for predict in columns], axis=1)
    if target.kind == "soft_distribution":
        return _fit_shares(inputs, truth, strength)
    return _fit_classes(inputs, truth, target.n_outputs, strength)


def _fit_shares(inputs: np.ndarray, shares: np.ndarray, strength: float) -> Predict:
    """Logistic regression on shares (n, K): what a row for each class would give, weighted by its share, in 1/K of the
    time. The loss and its end are scikit-learn's."""
    (n, width), k = inputs.shape, shares.shape[1]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(k, width + 1)
        logits = inputs @ weights[:, :width].T.astype(inputs.dtype) + weights[:, width]
        log_p = logits - logsumexp(logits, axis=1, keepdims=True)
        error = (np.exp(log_p) - shares) / n
        gradient = np.empty_like(weights)
        gradient[:, :width] = error.astype(inputs.dtype).T @ inputs + weights[:, :width] / (strength * n)
        gradient[:, width] = error.sum(axis=0)
        penalty = 0.5 * np.square(weights[:, :width]).sum() / (strength * n)
        return float(-(shares * log_p).sum() / n + penalty), gradient.ravel()

    ended = minimize(
        loss, np.zeros(k * (width + 1)), jac=True, method="L-BFGS-B", options={"maxiter": 300, "gtol": 1e-4}
    )
    weights = ended.x.reshape(k, width + 1)
    return lambda x: softmax(x @ weights[:, :width].T + weights[:, width], axis=1)


def _fit_classes(inputs: np.ndarray, classes: np.ndarray, n_classes: int, strength: float) -> Predict:
    present = np.unique(classes)
    if len(present) < 2:
        return lambda x: np.tile(np.eye(n_classes)[present[0]], (len(x), 1))
    model = LogisticRegression(C=strength, max_iter=300)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the weakest regularization may not get there; it loses
        model.fit(inputs, classes)

    def predict(x: np.ndarray) -> np.ndarray:
        probabilities = np.zeros((len(x), n_classes))
        probabilities[:, model.classes_] = model.predict_proba(x)
        return probabilities

    return predict
