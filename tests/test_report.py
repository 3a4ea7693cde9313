"""The report: made from the run folder alone, with the numbers of metrics.json, and nothing that a label could run.

One run is really fitted (every kind of target, hostile labels); odd shapes are written as plain files by `write_run`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fusion.report
from featurize.config import SplitConfig
from featurize.splits import make_splits
from fusion.config import Config
from fusion.fitting import fit
from fusion.report import write_report
from fusion.report.headline import best_single_slot, headline, slots_alone
from fusion.report.words import bounds, number, pattern_label, signed
from stores.base import STRING
from stores.feature import Status
from stores.memory_store import MemoryTree
from stores.store import Store
from tests.unrendered import unrendered_pictures

HOSTILE = "<script>alert(1)</script>"
SLOTS = {"text": 0.8, "audio": 1.0, "midi": 0.4}  # share of segments that have it
KINDS = {"mood": "categorical", "tags": "multi_label", "valence": "regression", "mix": "soft_distribution"}
N = 120
SVG = re.compile(r"<svg\b.*?</svg>", re.DOTALL)


def make_store() -> Store:
    """Three slots, four targets of which the text slot knows something, and labels that try to be markup."""
    rng = np.random.default_rng(0)
    signal = rng.normal(size=N)
    moods = np.array([HOSTILE, 'calm & "quiet" $x$', "", "ärger \x0b 悲しい"], dtype=STRING)
    soft = np.exp(np.stack([signal, -signal], axis=1)).astype(np.float32)
    labels = {
        "mood": moods[np.digitize(signal, [-0.6, 0.5, 0.7])],
        "tags": np.array([f"{HOSTILE};b" if value > 0 else "b" for value in signal], dtype=STRING),
        "valence": np.where(rng.random(N) < 0.1, np.nan, signal * 3 + 50).astype(np.float32),
        "mix": soft / soft.sum(axis=1, keepdims=True),
    }
    segments = {
        "id": np.array([f"s{i}" for i in range(N)], dtype=STRING),
        "group": np.array([f"song {i // 3}" for i in range(N)], dtype=STRING),
    }
    store = Store.create(MemoryTree(), segments, labels, {"layout": "test"}, N)
    for slot, share in SLOTS.items():
        vectors = rng.normal(size=(N, 6)).astype(np.float32)
        vectors[:, 0] += 2 * signal if slot == "text" else 0
        status = np.where(rng.random(N) < share, Status.PRESENT, Status.ABSENT).astype(np.uint8)
        record = {
            "encoder": "toy", "class_name": "Toy", "modality": slot, "width": 6, "weights": {}, "parameters": {},
            "precision": "fp32", "libraries": {}, "trained_on": None,
        }  # fmt: skip
        feature = store.create_feature(f"{slot}/toy", record)
        hashes = np.zeros((N, 16), np.uint8)
        feature.write_chunk(feature.chunks()[0], np.arange(N), vectors, status, hashes, [""] * N)
    store.write_split(make_splits(store.groups, None, SplitConfig(method="random"))[0])
    return store


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `fit`, with all that a report may read and without the report."""
    config = Config.model_validate(
        {
            "model": {
                "fusion": {"strategy": "gated", "hidden_dim": 8},
                "targets": [{"name": name, "kind": kind} for name, kind in KINDS.items()],
            },
            "training": {"epochs": 3, "seeds": [0, 1], "bootstrap": 100, "lr": 0.01},
        }
    )
    with unrendered_pictures():
        run = fit(make_store(), config, runs=tmp_path_factory.mktemp("runs"), name="every-kind").folder
    alone = tmp_path_factory.mktemp("alone")
    for name in ("metrics.json", "environment.json", "config.yaml", "history.parquet", "predictions.parquet"):
        shutil.copy(run / name, alone)
    return alone


@pytest.fixture(scope="module")
def page(fitted: Path) -> str:
    return write_report(fitted).read_text("utf-8")


def metrics_of(run: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((run / "metrics.json").read_text("utf-8"))
    return metrics


def score(value: float | None, n: int, margin: float | None = 0.05) -> dict[str, Any]:
    ci95 = None if value is None or margin is None else [value - margin, value + margin]
    return {"metric": "", "n": n, "n_groups": 9, "value": value, "ci95": ci95, "per_seed": [value]}


def target_metrics(kind: str, metric: str, classes: list[str], n: int, value: float | None = 0.5) -> dict[str, Any]:
    """One target's part of metrics.json; every number is as good as `value` says."""
    names = ["text alone", "audio alone", "logistic regression", "mask only", "majority"]
    other = {"other_metric": {"value": value, "ci95": None}}
    open_question = {"difference": None if value is None else 0.0, "ci95": None, "better": None}
    return {
        "kind": kind,
        "metric": metric,
        "higher_is_better": True,
        "classes": classes,
        "splits": {part: {**score(value, n), "others": other} for part in ("train", "val", "test")},
        "baselines": {name: {"val": score(value, n), "test": {**score(value, n), "others": other}} for name in names},
        "presence_patterns": {
            name: {**score(value, n), "n_exactly": n // 3} for name in ("text", "audio", "text+audio")
        },
        "comparisons": {name: dict(open_question) for name in names},
    }


def write_run(run: Path, targets: dict[str, dict[str, Any]], columns: dict[str, Any], n: int, folds: int = 1) -> Path:
    """A run folder of plain files: `n` predictions in all, no slot weights."""
    metrics = {
        "format": 1, "run": "plain", "fusion": "late", "slots": {"text": "lsa", "audio": "clap"},
        "split": {"name": "default", "method": "grouped", "folds": folds, "leaks": False}, "seeds": [0],
        "n_segments": n, "n_groups": 9, "presence": {"text": 0.5, "audio": 1.0}, "notes": [], "targets": targets,
        "model": {"split": "default", "seed": 0, "epoch": 1},
    }  # fmt: skip
    names = [f"default.{row % folds}" for row in range(n)]
    who = {"segment_id": [str(row) for row in range(n)], "group": ["g"] * n, "split": names, "seed": [0] * n}
    present = {"present.text": [True] * n, "present.audio": [True] * n}
    history = {
        "model": ["fusion"] * 2 * folds,
        "split": [f"default.{fold}" for fold in range(folds) for _ in range(2)],
        "seed": [0] * 2 * folds,
        "epoch": [1, 2] * folds,
        "train_loss": [2.0, 1.0] * folds,
        "val_loss": [2.0, None] * folds,
    }
    run.mkdir(exist_ok=True)
    (run / "metrics.json").write_text(json.dumps(metrics), "utf-8")
    (run / "environment.json").write_text(json.dumps({"command": "cli fit", "packages": {"torch": "2"}}), "utf-8")
    (run / "config.yaml").write_text("training: {}\n", "utf-8")
    pq.write_table(pa.table({**who, **present, **columns}), run / "predictions.parquet")
    pq.write_table(pa.table(history), run / "history.parquet")
    return run


class Structure(HTMLParser):
    """What a browser would see: every start tag, and whether tags close in order."""

    VOID = frozenset({"meta", "br", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "script":
            self.scripts.append("")
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def structure(html: str) -> Structure:
    parsed = Structure()
    parsed.feed(html)
    parsed.close()
    assert parsed.open == []
    return parsed


def visible(html: str) -> str:
    """Text without tags and scripts, one space between words."""
    html = re.sub(r"<(script|style)\b.*?</\1>", " ", html, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_numbers_are_those_of_metrics_json(fitted: Path, page: str) -> None:
    metrics, text = metrics_of(fitted), visible(page)
    first = metrics["targets"]["mood"]["splits"]["test"]
    assert f"accuracy {number(first['value'])} (95% interval {bounds(first['ci95'])})" in text
    assert f"over {first['n']} test segments of {first['n_groups']} groups" in text
    for target in metrics["targets"].values():
        scores = [target["splits"]["test"], *(parts["test"] for parts in target["baselines"].values())]
        for row in [*scores, *target["presence_patterns"].values()]:
            assert f"{number(row['value'])} {bounds(row['ci95'])} {row['n']} " in text
        for comparison in target["comparisons"].values():
            assert f"{signed(comparison['difference'])} {bounds(comparison['ci95'])}" in text


def test_every_model_pattern_and_target_is_named(fitted: Path, page: str) -> None:
    text = visible(page)
    for name, target in metrics_of(fitted)["targets"].items():
        assert f"<h2>{name}</h2>" in page
        assert set(target["baselines"]) >= {"text alone", "midi alone", "logistic regression", "mask only", "majority"}
        for label in target["baselines"]:
            assert label in text
        assert len(target["presence_patterns"]) == 7
        for pattern in target["presence_patterns"]:
            assert pattern_label(pattern) in text
    assert "ridge regression" in text


def test_a_leaking_split_and_notes_are_said_first(fitted: Path, page: str, tmp_path: Path) -> None:
    assert metrics_of(fitted)["split"]["leaks"]
    assert page.count("LEAK: this split cuts through groups") == 1
    assert page.index("LEAK: this split cuts through groups") < page.index("<section")
    metrics = metrics_of(fitted)
    run = Path(shutil.copytree(fitted, tmp_path / "run"))
    for leaks in (True, False):
        metrics["split"]["leaks"], metrics["notes"] = leaks, [f"Saw {HOSTILE}"]
        (run / "metrics.json").write_text(json.dumps(metrics), "utf-8")
        with unrendered_pictures():
            html = write_report(run).read_text("utf-8")
        assert ("LEAK: this split cuts through groups" in html) == leaks
        assert "Saw &lt;script&gt;" in html


def test_labels_stay_text(page: str) -> None:
    assert "&lt;script&gt;alert(1)" in page
    assert "悲しい" in page
    (script,) = structure(page).scripts
    assert script == own_script()


def own_script() -> str:
    folder = Path(fusion.report.__file__).parent
    return "\n".join((folder / name).read_text("utf-8") for name in fusion.report.SCRIPTS)


def test_no_other_script_may_run(page: str) -> None:
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    digest = base64.b64encode(hashlib.sha256(own_script().encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy and policy.startswith("default-src 'none';")


def test_nothing_is_fetched(page: str) -> None:
    for tag, attributes in structure(page).tags:
        assert tag not in {"link", "iframe", "object", "base"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in {"src", "href", "xlink:href", "action", "srcset"}:
                assert (value or "").startswith(("#", "data:image/png;base64,", "data:text/csv;"))
            elif name != "xmlns":
                assert "://" not in (value or "")
    assert all(found.startswith("url(#") for found in re.findall(r"url\([^)]*", page))


def test_pictures_are_well_formed_and_follow_the_page(page: str) -> None:
    pictures = SVG.findall(page)
    assert len(pictures) == 4 * 3 + 3 + 3  # calibration of all but the number; curves, gradients, weights
    ids: list[str] = []
    for svg in pictures:
        root = ElementTree.fromstring(svg)
        assert root.get("role") == "img"
        assert root.get("aria-label")
        assert root.get("viewBox")
        assert root.get("width") is None
        assert "currentColor" in svg
        assert "#010203" not in svg
        own = [element.get("id", "") for element in root.iter() if "id" in element.attrib]
        ids += own
        assert set(re.findall(r"""url\(#([^)]+)\)|href="#([^"]+)""", svg)) <= {(i, "") for i in own} | {
            ("", i) for i in own
        }
    assert len(ids) == len(set(ids))
    assert page.count("<figcaption>") == len(pictures)


def test_the_same_run_gives_the_same_bytes(fitted: Path, page: str, tmp_path: Path) -> None:
    run = Path(shutil.copytree(fitted, tmp_path / "run"))
    path = write_report(run)
    assert path == run / "report.html"
    assert path.read_text("utf-8") == page
    assert sorted(p.name for p in run.iterdir()) == sorted(p.name for p in fitted.iterdir())


@pytest.mark.parametrize("kind", KINDS.values())
def test_values_that_are_not_known_do_not_break_it(kind: str, tmp_path: Path) -> None:
    classes = ["a", "b"]
    no_text, no_number = pa.nulls(6, pa.string()), pa.nulls(6, pa.float64())
    truth = {"t.true": no_text if kind == "categorical" else no_number, "t.predicted": no_text}
    truth |= {f"t.true.{name}": no_number for name in classes} | {f"t.p.{name}": [0.5] * 6 for name in classes}
    if kind == "regression":
        truth["t.predicted"] = [0.5] * 6
    html = write_report(
        write_run(tmp_path, {"t": target_metrics(kind, "r2", classes, 0, value=None)}, truth, 6)
    ).read_text("utf-8")
    assert "late has no defined R² on t" in html
    assert "not compared" in html
    assert "None" not in visible(html)
    assert "nan" not in visible(html).split()


def test_many_classes_targets_and_rows_stay_small(tmp_path: Path) -> None:
    n, classes = 10_000, [f"a rather long label of class {i}" for i in range(70)]
    rng = np.random.default_rng(0)
    truth, said = rng.choice(classes, n), rng.choice(classes, n)
    columns: dict[str, Any] = {}
    targets: dict[str, Any] = {}
    for name in ("one", "two"):
        targets[name] = target_metrics("categorical", "accuracy", classes, n)
        columns |= {f"{name}.true": truth, f"{name}.predicted": said}
    for name in ("three", "four"):
        targets[name] = target_metrics("regression", "r2", [name], n, value=-40.0)
        columns |= {f"{name}.true": rng.normal(size=n), f"{name}.predicted": rng.normal(size=n)}
    run = write_run(tmp_path, targets, columns, n, folds=5)
    path = write_report(run)
    assert path.stat().st_size < 2_000_000
    text = visible(path.read_text("utf-8"))
    assert "2,000 of 10,000 points, drawn at random." in text
    assert "An arrow at the left edge" in text  # R² of -40
    assert "11 others" in text
    assert "5 folds, their test predictions pooled" in text


def test_a_run_without_baselines(tmp_path: Path) -> None:
    target = target_metrics("regression", "r2", ["t"], 4)
    target["baselines"], target["comparisons"] = {}, {}
    columns = {"t.true": [0.0, 1.0, 2.0, None], "t.predicted": [0.0, 1.0, 2.0, 3.0]}
    html = write_report(write_run(tmp_path, {"t": target}, columns, 4)).read_text("utf-8")
    assert "nothing to compare with" in html


def test_the_best_slot_is_chosen_by_validation() -> None:
    target = target_metrics("categorical", "accuracy", ["a"], 9)
    target["baselines"]["text alone"]["val"]["value"] = 0.6
    target["baselines"]["audio alone"]["test"]["value"] = 0.9
    assert best_single_slot(target) == "text alone"
    target["higher_is_better"] = False
    assert best_single_slot(target) == "audio alone"
    target["baselines"]["audio alone"]["val"]["value"] = None
    assert best_single_slot(target) == "text alone"


def test_slots_that_carry_signal_alone_are_named():
    target = target_metrics("categorical", "accuracy", ["a"], 9)
    found = {"better": True, "difference": 0.25, "ci95": [0.1, 0.4]}
    target["above_majority"] = {
        "text alone": found,
        "audio alone": {**found, "better": None},
        "logistic regression": found,
    }
    assert slots_alone(target) == (
        "Alone, these slots are clearly better than the majority baseline: text (+0.250, [0.100, 0.400]);"
        " not shown for audio."
    )
    target["above_majority"].pop("text alone")
    assert slots_alone(target) == "No slot is clearly better than the majority baseline by itself: audio."
    assert slots_alone({}) == ""


@pytest.mark.parametrize(
    ("better", "tone", "verdict"),
    [
        ({}, "good", "late is clearly better than audio alone and logistic regression."),
        ({"majority": None}, "open", "late is not clearly better than the majority baseline: no signal is shown."),
        (
            {"mask only": None},
            "open",
            "There is signal, but late is not clearly better than knowing only what is missing.",
        ),
        (
            {"audio alone": None},
            "open",
            "late is clearly better than logistic regression, but not clearly better than audio alone.",
        ),
        (
            {"logistic regression": None},
            "good",
            "late is clearly better than audio alone, but not clearly better than logistic regression.",
        ),
        (
            {"audio alone": None, "logistic regression": None},
            "open",
            "There is signal, but late is not clearly better than audio alone and logistic regression.",
        ),
        ({"text alone": False}, "good", "late is clearly better than audio alone and logistic regression."),
        ({"audio alone": False}, "bad", "late is clearly worse than audio alone."),
        ({"logistic regression": False, "majority": None}, "bad", "late is clearly worse than logistic regression."),
    ],
)
def test_verdict(better: dict[str, bool | None], tone: str, verdict: str) -> None:
    target = target_metrics("categorical", "accuracy", ["a"], 9)
    target["baselines"]["audio alone"]["val"]["value"] = 0.6
    for name, comparison in target["comparisons"].items():
        comparison["better"] = better.get(name, True)
    found = headline("mood", target, "late")
    assert (found.tone, found.verdict) == (tone, verdict)
    assert [rival.label for rival in found.rivals] == ["audio alone", "logistic regression", "majority", "mask only"]
