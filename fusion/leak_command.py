"""`cli leaks`: what a split lets through, and what leaking would have bought."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import click

from featurize.project import Project, code_option, project_options
from stores.completion import complete_features, complete_labels, complete_splits


@click.command("leaks")
@project_options
@code_option
@click.option(
    "--split", "split_name", shell_complete=complete_splits, help="A split, or a set of folds. [default: split.name]"
)
@click.option(
    "--feature",
    "features",
    multiple=True,
    metavar="SLOT/NAME",
    shell_complete=complete_features,
    help="Only these; repeatable. [default: all]",
)
@click.option(
    "--target",
    "target_names",
    multiple=True,
    metavar="LABEL[:KIND]",
    shell_complete=complete_labels,
    help="Which labels; repeatable.",
)
@click.option("--scores", is_flag=True, help="Train on this split, and on its segments dealt one by one, to compare.")
@click.option("--seeds", type=click.IntRange(1), help="How many seeds to train. [default: training.seeds, 3]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def leaks_command(
    project: Project,
    split_name: str | None,
    features: tuple[str, ...],
    target_names: tuple[str, ...],
    scores: bool,
    seeds: int | None,
    as_json: bool,
) -> None:
    """Look for what leaks: twins across parts, groups that the split cuts, features and labels that know their group.

    Findings inform, and change nothing. With --scores the fusion is also trained on a split by segments, so that you
    see what leaking would have bought.

    \b
    Example:
      cli leaks --scores
    """
    from featurize.progress import progress_bar
    from fusion.leak_scan import opened_splits, scan, scannable_labels
    from fusion.settings import settings

    slots = list(dict.fromkeys(feature.partition("/")[0] for feature in features)) or None
    config = settings(project.config, target=target_names, slots=slots, features=features, seeds=seeds)
    store = project.open_store()
    split_name = split_name or str(config.split.name)
    splits = opened_splits(store, split_name)
    names = list(dict.fromkeys(features)) or store.features()
    labels = scannable_labels(store, config.model.targets)
    found = scan(store, names, splits, labels)
    compared = None
    if scores:
        from fusion.leak_scores import compare_splits

        with progress_bar("leaks", "trainings") as progress:
            compared = compare_splits(store, config, split_name=split_name, progress=progress)
    if as_json:
        findings = [asdict(finding) for finding in found]
        click.echo(json.dumps({"split": split_name, "findings": findings, "scores": compared}, indent=2))
        return
    click.echo("\n".join(_scan_lines(split_name, splits, names, list(labels), found)))
    click.echo("\n" + ("\n".join(_score_lines(compared)) if compared else "What leaking would buy: cli leaks --scores"))


def _scan_lines(
    split_name: str, splits: Sequence[Any], features: Sequence[str], labels: Sequence[str], found: Sequence[Any]
) -> list[str]:
    from fusion.leak_scan import TWINS

    def about(name: str) -> list[str]:
        return [f"  {finding.severity}: {finding.message}" for finding in found if finding.about == name]

    folds = f", {len(splits)} folds added up" if len(splits) > 1 else ""
    lines = [f"split {split_name} ({splits[0].facts['method']}{folds})"]
    of_splits = [line for split in splits for line in about(split.name)]
    lines += of_splits or ["  no group stands in two parts"]
    for name in features:
        lines += [name, *about(name)]
        if not any(finding.kind in TWINS for finding in found if finding.about == name):
            lines.append("  no val or test row has an equal input, an equal or a near-equal vector in train")
    if not features:
        lines.append("no features yet; cli featurize --encoder NAME makes one")
    for name in labels:
        if of_label := about(name):
            lines += [f"label {name}", *of_label]
    return lines


def _score_lines(compared: Mapping[str, Any]) -> list[str]:
    from fusion.table import interval_text, value_text

    slots = ", ".join(f"{slot}/{encoder}" for slot, encoder in compared["slots"].items())
    seeds = ", ".join(map(str, compared["seeds"]))
    lines = [f"What leaking would have bought: {compared['fusion']} of {slots}; seeds {seeds}"]
    for name, target in compared["targets"].items():
        arrow = "higher is better" if target["higher_is_better"] else "lower is better"
        lines += ["", f"{name}: {target['metric']} on test ({arrow})"]
        for label, key in (("by groups", "grouped"), ("by segments", "random"), ("majority", "majority")):
            score = target[key]
            tested = f"{score['n']:,} segments of {score['n_groups']:,} groups" + ("; LEAKS" if key == "random" else "")
            lines.append(
                f"  {label:<11}  {value_text(score['value']):>6}  {interval_text(score['ci95']):<16}  {tested}"
            )
        difference = target["difference"]
        verdict = {True: "leaking looks better", False: "leaking looks worse", None: "no clear difference"}
        value = "—" if difference["difference"] is None else f"{difference['difference']:+.3f}"
        ci95 = interval_text(difference["ci95"])
        lines.append(f"  {'difference':<11}  {value:>6}  {ci95:<16}  {verdict[difference['better']]}")
    if compared["folds"] == 1:
        lines += ["", "Either split tests other segments. With folds both test all, and the interval is narrower:"]
        lines.append("  cli split --folds 5 --name cv && cli leaks --split cv --scores")
    grouped, random = compared["notes"]["grouped"], compared["notes"]["random"]
    notes = [*grouped, *(f"By segments: {note}" for note in random if note not in grouped)]
    return [*lines, "", *notes] if notes else lines
