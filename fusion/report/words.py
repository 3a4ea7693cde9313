"""The report's plain words: what metrics, models and verdicts are called, and how numbers are written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fusion.table import interval_text, value_text

METRICS = {
    "accuracy": ("accuracy", "share of segments whose class is right"),
    "macro_f1": ("macro F1", "F1 score averaged over classes, each counting the same"),
    "balanced_accuracy": ("balanced accuracy", "share of right answers averaged over the true classes"),
    "log_loss": ("log loss", "mean surprise at the true class, in nats"),
    "micro_f1": ("micro F1", "F1 score over all labels together"),
    "r2": ("R²", "share of the variance that is explained; 0 is as good as the mean"),
    "rmse": ("RMSE", "root mean squared error, in the label's unit"),
    "mae": ("MAE", "mean absolute error, in the label's unit"),
    "overlap": ("overlap", "mean shared area of the true and the predicted distribution"),
    "kl": ("KL divergence", "mean divergence from the true to the predicted distribution, in nats"),
    "same_mode": ("same mode", "share of segments whose largest class is right"),
}
BASELINES = {
    "logistic regression": "linear model on all slots side by side",
    "mask only": "knows only which slots are missing",
    "majority": "ignores its inputs: the most common answer, or the mean",
}
KINDS = {
    "categorical": "one of several classes",
    "multi_label": "any number of labels",
    "regression": "a number",
    "soft_distribution": "shares of several classes",
}
VERDICTS = {True: ("▲", "better"), False: ("▼", "worse"), None: ("≈", "no clear difference")}
NOT_COMPARED = ("—", "not compared")
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def metric_label(name: str) -> str:
    """A metric's name in words."""
    return METRICS[name][0] if name in METRICS else name.replace("_", " ")


def metric_meaning(name: str) -> str:
    """What a metric measures, in a sentence; nothing where it is not known."""
    return METRICS[name][1] if name in METRICS else ""


def pattern_label(name: str) -> str:
    """`text + audio` of `text+audio`."""
    return name.replace("+", " + ")


def verdict(comparison: Mapping[str, Any] | None) -> tuple[str, str]:
    """Symbol and word for fusion against another model."""
    if comparison is None or comparison["difference"] is None:
        return NOT_COMPARED
    return VERDICTS[comparison["better"]]


def number(value: float | None) -> str:
    """Three decimals with a true minus sign, or a dash."""
    return value_text(value).replace("-", "−")


def signed(value: float | None) -> str:
    """With its sign, also a plus."""
    return f"+{number(value)}" if value is not None and value >= 0 else number(value)


def bounds(ci95: list[float] | None) -> str:
    """`[0.412, 0.530]`, with a true minus."""
    return interval_text(ci95).replace("-", "−")


def percent(share: float) -> str:
    """Of a share, in [0, 1]."""
    return f"{100 * share:.0f}%" if share == 0 or share >= 0.01 else f"{100 * share:.1f}%"


def listed(names: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def short(label: str, length: int = 22) -> str:
    """A label for a picture: one line, without what XML cannot hold, cut in the middle, as many differ in the end."""
    label = " ".join(_NOT_XML.sub("\N{REPLACEMENT CHARACTER}", label).split())
    if len(label) <= length:
        return label
    tail = (length - 1) // 2
    return f"{label[: length - 1 - tail].rstrip()}…{label[-tail:].lstrip()}"
