"""A run's result as lines of text: the fusion, its baselines and its presence patterns, target by target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def result_lines(metrics: Mapping[str, Any]) -> list[str]:
    """What `cli fit` prints. metrics: the content of `metrics.json`."""
    split = metrics["split"]
    folds = f", {split['folds']} folds pooled" if split["folds"] > 1 else ""
    slots = ", ".join(f"{slot}/{encoder}" for slot, encoder in metrics["slots"].items())
    seeds = ", ".join(str(seed) for seed in metrics["seeds"])
    lines = [f"{metrics['fusion']} of {slots}; split {split['name']} ({split['method']}{folds}); seeds {seeds}"]
    for name, target in metrics["targets"].items():
        test = target["splits"]["test"]
        arrow = "higher is better" if target["higher_is_better"] else "lower is better"
        lines += [
            "",
            f"{name}: {target['metric']} on {test['n']:,} test segments of {test['n_groups']:,} groups ({arrow})",
        ]
        rows = [(metrics["fusion"], test, "")]
        for baseline, parts in target["baselines"].items():
            rows.append((baseline, parts["test"], _difference(target["comparisons"][baseline], metrics["fusion"])))
        rows = [(model_label(model, target["kind"]), score, note) for model, score, note in rows]
        lines += _columns(rows)
        lines.append("  by what is shown to the model:")
        lines += _columns([(name, score, f"n {score['n']:,}") for name, score in target["presence_patterns"].items()])
    lines += ["", *metrics["notes"]] if metrics["notes"] else []
    return lines


def encoder_lines(metrics: Mapping[str, Any]) -> list[str]:
    """What `cli train-encoder` says: how long it learned, and its validation score beside stored features."""
    train_loss, val_loss = metrics["train_loss"], metrics["val_loss"]
    best = metrics["best_epoch"] - 1
    lines = [
        f"{metrics['encoder']}: {metrics['n_train']:,} training and {metrics['n_val']:,} validation segments of split"
        f" {metrics['split']}; best epoch {metrics['best_epoch']} of {metrics['epochs']},"
        f" {metrics['seconds_per_epoch']:.1f} s each",
        f"loss: training {train_loss[0]:.3f} at first, {train_loss[best]:.3f} at the best epoch;"
        f" validation {val_loss[0]:.3f}, {val_loss[best]:.3f}",
    ]
    if metrics["val_loss_by_frequency"] is not None:
        by_frequency = metrics["val_loss_by_frequency"]
        lines.append(f"nats per hidden token; guessing by frequency alone comes to {by_frequency:.3f}")
    if metrics["unreadable"]:
        name, reason = next(iter(metrics["unreadable"].items()))
        lines.append(f"left out, unreadable: {len(metrics['unreadable']):,} (e.g. {name!r}: {reason})")
    for target, result in metrics["targets"].items():
        lines += ["", f"{target}: {result['metric']} on validation, on which each was also chosen [95% interval]"]
        width = max(len(model) for model in result["models"])
        for model, found in result["models"].items():
            lines.append(f"  {model:<{width}}  {value_text(found['value'])} {interval_text(found['ci95'])}".rstrip())
    return lines


def finetuning_lines(metrics: Mapping[str, Any]) -> list[str]:
    """What `cli finetune` says before the result: what learned, how long, and what became of the validation loss."""
    tuning = metrics["finetuning"]
    loss = tuning["val_loss"]
    lines = [
        f"From run {tuning['from']}: validation loss {loss['before']:.4f} before, {loss['after']:.4f} after; best epoch"
        f" {tuning['best_epoch']} of {tuning['epochs']}, {tuning['seconds_per_epoch']:.1f} s each"
    ]
    for slot, facts in tuning["slots"].items():
        how = f"updates of rank {facts['lora']}" if facts["lora"] else "all of it"
        how = f"last {facts['last_layers']} blocks" if facts["last_layers"] else how
        share = f"{facts['n_learned']:,} numbers learned of {facts['n_weights']:,}"
        lines.append(f"  {slot}: {facts['encoder']}, {how}: {share}")
    return lines


def model_label(model: str, kind: str) -> str:
    """What a model is called: keys are one for every kind of target, but a regression's linear model is ridge."""
    return "ridge regression" if kind == "regression" and model == "logistic regression" else model


def interval_text(ci95: list[float] | None, digits: int = 3) -> str:
    """`[0.512, 0.604]`, or a dash where there is no interval."""
    return "—" if ci95 is None else f"[{ci95[0]:.{digits}f}, {ci95[1]:.{digits}f}]"


def value_text(value: float | None, digits: int = 3) -> str:
    """A number, or a dash where it is not defined."""
    return "—" if value is None else f"{value:.{digits}f}"


def _difference(comparison: Mapping[str, Any], fusion: str) -> str:
    if comparison["difference"] is None:
        return ""
    verdict = {True: f"{fusion} is better", False: f"{fusion} is worse", None: "no clear difference"}
    sign = f"{comparison['difference']:+.3f}"
    return f"{verdict[comparison['better']]} ({sign} {interval_text(comparison['ci95'])})"


def _columns(rows: list[tuple[str, Mapping[str, Any], str]]) -> list[str]:
    width = max(len(name) for name, _, _ in rows)
    return [
        f"  {name:<{width}}  {value_text(score['value']):>6}  {interval_text(score['ci95']):<16}  {note}".rstrip()
        for name, score, note in rows
    ]
