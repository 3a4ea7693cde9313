"""`cli evaluate`: a run's model on the segments of a store; printed, and written beside its `metrics.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from featurize.project import code_option
from fusion.completion import complete_runs
from stores.commands import store_option
from stores.completion import complete_splits
from stores.remote import Location

EVALUATION = "evaluation.json"
TEMPERATURE_LIMITS = "at the limit of what is tried: validation has too few mistakes, or too few hits, to fit one"


@click.command("evaluate")
@click.argument("run", type=click.Path(path_type=Path), shell_complete=complete_runs)
@store_option
@code_option
@click.option(
    "--split",
    "split_name",
    shell_complete=complete_splits,
    help="Another split of the store. [default: the one the model was trained on]",
)
@click.option("--part", type=click.Choice(["test", "val", "train", "all"]), help="[default: test; all without a split]")
@click.option(
    "--presence",
    "deployments",
    multiple=True,
    metavar="SLOT=RATE,…",
    help="Score as if slots were there at these rates, e.g. midi=1.0,audio=0.9; repeatable. "
    "[default: each slot always there, and all of them]",
)
@click.option("--allow-pending", is_flag=True, help="Count rows that are not featurized yet as missing.")
@click.option("--allow-leak", is_flag=True, help="Score segments that are not unseen; the result says so.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="[default: evaluation.json in the run]")
@click.option("--json", "as_json", is_flag=True, help="Print evaluation.json.")
def evaluate_command(
    run: Path,
    store_path: Location,
    split_name: str | None,
    part: str | None,
    deployments: tuple[str, ...],
    allow_pending: bool,
    allow_leak: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Score RUN's model under every presence pattern, its calibration, and other presence rates than in training.

    RUN is a folder or a name in runs/. The store may be another one with the same features.

    \b
    Example:
      cli evaluate gated --presence midi=1.0,audio=0.9
    """
    from fusion.evaluate_run import evaluate_run
    from fusion.load_run import load_run
    from fusion.runs import write_json
    from stores import open_store

    if out is not None and not out.parent.is_dir():
        raise click.UsageError(f"--out {out}: there is no folder {out.parent}.")
    rates = [_rates(text) for text in deployments]
    loaded = load_run(run)
    evaluation = evaluate_run(
        loaded,
        open_store(store_path),
        split_name=split_name,
        part=part,
        deployments=rates,
        allow_pending=allow_pending,
        allow_leak=allow_leak,
    )
    out = out or loaded.folder / EVALUATION
    partial = out.with_name(f".{out.name}.partial")
    write_json(partial, evaluation)
    partial.replace(out)
    if as_json:
        click.echo(json.dumps(evaluation, indent=2))
        return
    click.echo("\n".join(evaluation_lines(evaluation)))
    click.echo(f"\nEvaluation: {out}")


def _rates(text: str) -> dict[str, float]:
    """`midi=1.0,audio=0.9`."""
    rates: dict[str, float] = {}
    for pair in text.split(","):
        slot, equals, rate = pair.strip().rpartition("=")
        try:
            if not equals or slot in rates:
                raise ValueError
            rates[slot] = float(rate)
        except ValueError:
            raise click.UsageError(
                f"--presence takes each slot once with its rate, e.g. midi=1.0,audio=0.9, not {text!r}."
            ) from None
    return rates


def evaluation_lines(evaluation: Mapping[str, Any]) -> list[str]:
    """evaluation: the content of `evaluation.json`."""
    slots = ", ".join(f"{slot}/{encoder}" for slot, encoder in evaluation["slots"].items())
    model = evaluation["model"]
    part = "all segments" if evaluation["split"] is None else f"{evaluation['part']} of split {evaluation['split']}"
    lines = [
        f"{evaluation['fusion']} of {slots}; model of split {model['split']}, seed {model['seed']}, epoch "
        f"{model['epoch']}",
        f"{evaluation['store']}, {part}: {evaluation['n_segments']:,} segments of {evaluation['n_groups']:,} groups",
        *(f"there in {where}: {_rates_text(rates)}" for where, rates in _presences(evaluation).items()),
    ]
    for name, target in evaluation["targets"].items():
        lines += ["", *_target_lines(name, target)]
    return lines + (["", *evaluation["notes"]] if evaluation["notes"] else [])


def _presences(evaluation: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    return {"training": evaluation["presence"]["training"], "these": evaluation["presence"]["scored"]}


def _rates_text(rates: Mapping[str, float]) -> str:
    return ", ".join(f"{slot} {rate:.0%}" for slot, rate in rates.items())


def _target_lines(name: str, target: Mapping[str, Any]) -> list[str]:
    metric, whole, patterns = target["metric"], target["score"], target["presence_patterns"]
    others = list(whole["others"])
    arrow = "higher is better" if target["higher_is_better"] else "lower is better"
    header, as_they_are, *rows = _table(
        ["", "n", metric, *others],
        [
            _score_row("as they are", whole, others),
            *(_score_row(pattern, found["shown"], others) for pattern, found in patterns.items()),
            *(_score_row(pattern, found["by_nature"], others) for pattern, found in patterns.items()),
        ],
    )
    changes = [name for name in (metric, "confidence") if name in (metric, *others)]
    return [
        f"{name}: {metric} of {whole['n']:,} segments of {whole['n_groups']:,} groups ({arrow}; [95% interval])",
        header,
        as_they_are,
        "  those that have these slots, shown nothing else",
        *rows[: len(patterns)],
        "  and how that differs from the same segments as they are",
        *_table(
            ["", *changes],
            [[pattern, *(_change(found["difference"][m]) for m in changes)] for pattern, found in patterns.items()],
        ),
        "  those that have these slots and no others",
        *rows[len(patterns) :],
        "  if slots were there at other rates than (in training); of those that have them",
        *_table(
            ["", "n", "at these rates", "as in training", "difference"],
            [_deployment_row(found, metric) for found in target["deployments"]],
        ),
        *_calibration_lines(target),
    ]


def _deployment_row(found: Mapping[str, Any], metric: str) -> list[str]:
    trained = found["training_presence"]
    return [
        ", ".join(f"{slot} {rate:.0%} ({trained[slot]:.0%})" for slot, rate in found["presence"].items()),
        f"{found['deployed']['n']:,}",
        _scored(found["deployed"]),
        _scored(found["as_in_training"]),
        _change(found["difference"][metric]),
    ]


def _calibration_lines(target: Mapping[str, Any]) -> list[str]:
    calibration = target["calibration"]
    as_predicted = calibration["as_predicted"]
    if target["kind"] == "regression":
        names = ["slope", "intercept"]
        row = [_scored(as_predicted["metrics"][name]) for name in names]
        return [
            "  calibration: the line of truth on prediction (no variance is predicted, so no interval can be checked)",
            *_table(["", *names], [["as predicted", *row]]),
        ]
    known = ("log_loss", "kl", "confidence", "accuracy", "brier", "ece", "ece_equal_mass")
    names = [name for name in known if name in as_predicted["metrics"]]
    rows = [["as predicted", *(_scored(as_predicted["metrics"][name], digits=2) for name in names)]]
    lines = []
    if "temperature" in calibration:
        value, n = calibration["temperature"]["value"], calibration["temperature"]["n"]
        after = calibration["with_temperature"]["metrics"]
        rows.append([f"temperature {value:.2f}", *(_scored(after[name], digits=2) for name in names)])
        rows.append(["difference", *(_change(calibration["difference"][name], digits=2) for name in names)])
        limit = f", {TEMPERATURE_LIMITS}" if calibration["temperature"]["at_limit"] else ""
        lines.append(f"    temperature: fitted to {n:,} validation segments{limit}")
    if "ece_if_calibrated" in as_predicted:
        chance = as_predicted["ece_if_calibrated"]
        lines.append(
            f"    were it calibrated, ece would come to {chance['equal_width']:.3f} by chance, "
            f"ece_equal_mass to {chance['equal_mass']:.3f}"
        )
    lines = ["  calibration", *_table(["", *names], rows), *lines]
    if as_predicted.get("reliability"):
        table = as_predicted["reliability"]["equal_mass"]
        happened = "accuracy" if target["kind"] == "categorical" else "true share"
        numbers = [[f"{b['confidence']:.3f}", f"{b['accuracy']:.3f}", str(b["n"])] for b in table]
        lines += _table(["confidence", happened, "n"], numbers)
    if "labels" in as_predicted:
        names = ["stated", "happened", "brier", "ece_equal_width", "ece_equal_mass"]
        labels = as_predicted["labels"].items()
        lines += _table(["", *names], [[label, *(f"{facts[n]:.3f}" for n in names)] for label, facts in labels])
    return lines


def _score_row(name: str, score: Mapping[str, Any], others: Sequence[str]) -> list[str]:
    from fusion.table import value_text

    return [name, f"{score['n']:,}", _scored(score), *(value_text(score["others"][m]["value"]) for m in others)]


def _scored(score: Mapping[str, Any], digits: int = 3) -> str:
    from fusion.table import interval_text, value_text

    value = value_text(score["value"], digits)
    return value if score["ci95"] is None else f"{value} {interval_text(score['ci95'], digits)}"


def _change(difference: Mapping[str, Any], digits: int = 3) -> str:
    from fusion.table import interval_text

    if difference["difference"] is None:
        return "—"
    value = f"{difference['difference']:+.{digits}f}"
    return value if difference["ci95"] is None else f"{value} {interval_text(difference['ci95'], digits)}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column to the left, all others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "    " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in (header, *rows)
    ]
