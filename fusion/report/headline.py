"""The answer in a few sentences: what the fusion reaches on a target, and whether that is more than simpler models do.

The single slot to compare with is chosen by its validation value: choosing by test would favour whichever was lucky.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fusion.report.words import bounds, listed, metric_label, number, signed, verdict
from fusion.table import model_label

ALONE = " alone"
LINEAR = ("logistic regression",)
BLIND = ("mask only", "majority")  # see nothing of the content


@dataclass(frozen=True)
class Rival:
    """A model that the fusion is compared with. note: why it is there."""

    label: str
    note: str
    score: Mapping[str, Any]
    comparison: Mapping[str, Any]
    symbol: str
    word: str


@dataclass(frozen=True)
class Headline:
    """verdict: the answer. result: value, interval and how many were tested. slots: which carry signal alone.

    tone: `good`, `bad` or `open`.
    """

    verdict: str
    result: str
    slots: str
    tone: str
    rivals: list[Rival]


def headline(name: str, target: Mapping[str, Any], fusion: str) -> Headline:
    """One target in a few sentences: result, interval, and what it has to beat."""
    test = target["splits"]["test"]
    metric = metric_label(target["metric"])
    within = f"95% interval {bounds(test['ci95'])}" if test["ci95"] else "no interval"
    tested = f"{test['n']:,} test segments of {test['n_groups']:,} groups"
    result = f"{fusion} reaches {metric} {number(test['value'])} ({within}) on {name}, over {tested}."
    if test["value"] is None:
        result = f"{fusion} has no defined {metric} on {name}, over {tested}."
    single = best_single_slot(target)
    rivals = [_rival(target, single, "the best single slot, chosen by its validation value")] if single else []
    notes = {
        "before fine-tuning": "the run it came from",
        "logistic regression": "linear model on the same features",
        "majority": "ignores all inputs",
        "mask only": "knows only what is missing",
    }
    rivals += [_rival(target, rival, note) for rival, note in notes.items() if rival in target["baselines"]]
    answer, tone = _answer(target, single, fusion)
    return Headline(answer, result, slots_alone(target), tone, rivals)


def slots_alone(target: Mapping[str, Any]) -> str:
    """One sentence: which slots predict by themselves what the majority baseline does not."""
    against = {name: c for name, c in target.get("above_majority", {}).items() if name.endswith(ALONE)}
    if not against:
        return ""
    carrying = [
        f"{name.removesuffix(ALONE)} ({signed(c['difference'])}, {bounds(c['ci95'])})"
        for name, c in against.items()
        if c["better"]
    ]
    rest = [name.removesuffix(ALONE) for name, c in against.items() if not c["better"]]
    if not carrying:
        return f"No slot is clearly better than the majority baseline by itself: {listed(rest)}."
    silent = f"; not shown for {listed(rest)}" if rest else ""
    return f"Alone, these slots are clearly better than the majority baseline: {listed(carrying)}{silent}."


def best_single_slot(target: Mapping[str, Any]) -> str | None:
    """The slot whose own model has the best validation value; `None` where no slot was tried alone."""
    sign = 1 if target["higher_is_better"] else -1
    values = {name: parts["val"]["value"] for name, parts in target["baselines"].items() if name.endswith(ALONE)}
    known = {name: sign * value for name, value in values.items() if value is not None}
    return max(known, key=lambda name: known[name], default=None)


def _rival(target: Mapping[str, Any], name: str, note: str) -> Rival:
    comparison = target["comparisons"][name]
    symbol, word = verdict(comparison)
    return Rival(model_label(name, target["kind"]), note, target["baselines"][name]["test"], comparison, symbol, word)


def _answer(target: Mapping[str, Any], single: str | None, fusion: str) -> tuple[str, str]:
    """One sentence, and its tone. Only what an interval excludes counts as a difference."""
    better = {name: comparison["better"] for name, comparison in target["comparisons"].items()}
    label = {name: model_label(name, target["kind"]) for name in better}
    if not better:
        return "No baselines were trained, so there is nothing to compare with.", "open"
    worse = [name for name in (single, *LINEAR, *BLIND) if name in better and better[name] is False]
    if worse:
        return f"{fusion} is clearly worse than {listed([label[name] for name in worse if name])}.", "bad"
    if "majority" in better and better["majority"] is None:
        return f"{fusion} is not clearly better than the majority baseline: no signal is shown.", "open"
    if "mask only" in better and better["mask only"] is None:
        return f"There is signal, but {fusion} is not clearly better than knowing only what is missing.", "open"
    strong = [name for name in (single, *LINEAR) if name in better]
    unclear = listed([label[name] for name in strong if name and better[name] is None])
    beaten = listed([label[name] for name in strong if name and better[name]])
    if unclear and beaten:
        return f"{fusion} is clearly better than {beaten}, but not clearly better than {unclear}.", (
            "good" if single and better[single] else "open"
        )
    if unclear:
        return f"There is signal, but {fusion} is not clearly better than {unclear}.", "open"
    return f"{fusion} is clearly better than {listed([label[name] for name in strong or better if name])}.", "good"
