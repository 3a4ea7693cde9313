"""`cli ablate` as a user types it; cells that are kept, killed and repeated; and what the tables say of known truth."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import os
import random
import re
import shlex
import signal
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import fusion.ablation as ablate_module
import fusion.digest as digest_module
from featurize.config import SplitConfig, TargetConfig
from featurize.errors import ConfigError, SplitError, UnknownName
from featurize.splits import make_splits
from fusion.ablate_command import live_table
from fusion.ablation import Ablation, Cells, ablate
from fusion.config import Config, validated
from fusion.data import choose_features, load_segments
from fusion.fitting import fit
from fusion.modules import FUSIONS
from fusion.shapley import (
    LINEAR,
    MAJORITY,
    MASK_ONLY,
    TABLES,
    Cell,
    Finished,
    Model,
    TargetTables,
    chance_of_seeds,
    joint_intervals,
    shapley_values,
    write_rows,
)
from fusion.targets import load_targets
from stores import open_store
from stores.base import STRING, ArrayTree
from stores.errors import TriadError
from stores.feature import Status
from stores.memory_store import MemoryTree
from stores.store import Store
from stores.zarr_store import new_zarr_tree
from tests.fusion_contract import make_targets
from tests.stores_contract import RECORD

pytestmark = pytest.mark.usefixtures("unrendered")

N_SEGMENTS = 96
WIDTH = 6
SLOTS = ("text", "audio", "midi")
N_FOLDS = 3
KILLS = 3


def write_toy_store(tree: ArrayTree, slots: tuple[str, ...] = SLOTS) -> Store:
    """Text tells `liked` and audio tells `energy`, both linearly; MIDI tells nothing; a fifth of each is missing."""
    rng = np.random.default_rng(0)
    liked, energy = rng.integers(0, 2, N_SEGMENTS), rng.normal(size=N_SEGMENTS)
    segments = {
        "id": np.array([f"s{i}" for i in range(N_SEGMENTS)], dtype=STRING),
        "group": np.array([f"g{i // 4}" for i in range(N_SEGMENTS)], dtype=STRING),
    }
    names = np.array(["", "no", "yes"], dtype=STRING)[np.where(np.arange(N_SEGMENTS) % 9 == 0, 0, liked + 1)]
    store = Store.create(tree, segments, {"liked": names, "energy": energy}, {"layout": "test"}, 64)
    told = {"text": 2 * liked - 1, "audio": energy}
    for slot in slots:
        noise = rng.normal(size=(N_SEGMENTS, WIDTH))
        vectors = noise + 3 * np.outer(told.get(slot, np.zeros(N_SEGMENTS)), np.eye(WIDTH)[0])
        feature = store.create_feature(f"{slot}/toy", {**RECORD, "modality": slot, "width": WIDTH})
        status = np.where(rng.random(N_SEGMENTS) < 0.2, Status.ABSENT, Status.PRESENT).astype(np.uint8)
        for chunk in feature.chunks():
            rows = np.array(chunk)
            hashes = np.ones((len(rows), 16), np.uint8)
            feature.write_chunk(chunk, rows, vectors[rows], status[rows], hashes, [""] * len(rows))
    for config in (SplitConfig(), SplitConfig(name="cv", folds=N_FOLDS)):
        for split in make_splits(store.groups, names, config):
            store.write_split(split)
    return store


@pytest.fixture(scope="module")
def store() -> Store:
    return write_toy_store(MemoryTree())


@pytest.fixture
def toy_project(project) -> Path:
    """A project folder with the toy store, and we stand in it."""
    with new_zarr_tree(project / "features.zarr") as tree:
        write_toy_store(tree)
    (project / "config.yaml").write_text(
        "model: {targets: [{name: liked}]}\ntraining: {epochs: 1, bootstrap: 100, seeds: [0]}\n"
    )
    return project


def settings(**training) -> Config:
    values = {"epochs": 3, "bootstrap": 100, "seeds": [0], **training}
    return validated({"model": {"targets": [{"name": "liked"}]}, "training": values}, "test")


TEXT_ONLY = {"fusions": ["late"], "subsets": [["text"]]}


def tables_of(folder: Path) -> dict[str, list[dict]]:
    return {name: pq.read_table(folder / f"{name}.parquet").to_pylist() for name in TABLES}


def written(folder: Path) -> dict[str, bytes]:
    """Every file but the environment, which holds the command and the time; the report without that time."""
    files = [path for path in folder.iterdir() if path.is_file() and path.stem != "environment"]
    return {path.name: re.sub(rb"recorded at</dt><dd>[^<]*", b"", path.read_bytes()) for path in files}


def without_seconds(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


# As a user types it


def test_the_users_line_gives_every_table(toy_project, run_cli):
    line = ["ablate", "--fusion", "late,gated", "--slots", "all", "--seeds", "2", "--split", "cv"]
    line += ["--target", "liked", "--target", "energy"]
    result = run_cli(*line)
    folder = toy_project / "ablations" / "default"
    metrics = json.loads((folder / "metrics.json").read_text())
    tables = tables_of(folder)
    n_cells = N_FOLDS * (7 * (2 * 2 + 1) + 2)
    assert f"{n_cells} of {n_cells} cells were run now" in result.output
    assert len(list((folder / "cells").iterdir())) == n_cells
    assert len(tables["results"]) == n_cells * (4 + 3)  # metrics of a categorical target and of a regression
    assert len(tables["summary"]) == 2 * (7 * 3 + 2)
    assert len(tables["comparisons"]) == 2 * (3 + 2 + 6)
    assert len(tables["shapley"]) == 2 * 3 * 3
    for name in ("summary", "comparisons", "shapley"):
        assert [row for target in metrics["targets"].values() for row in target[name]] == tables[name]
    assert metrics["subsets"][-1] == "text+audio+midi" and metrics["fusions"] == ["late", "gated"]
    assert metrics["targets"]["liked"]["n"] == 85 and metrics["targets"]["energy"]["n_groups"] == 24
    assert "all 11 hold at once" in result.output and "ridge regression" in result.output
    printed = json.loads(run_cli(*line, "--json").stdout)
    assert printed == metrics and printed["targets"]["liked"]["summary"][0]["model"] == "late"


def test_the_best_is_a_command_that_runs_and_gives_the_same_number(toy_project, run_cli):
    arguments = ["--split", "cv", "--set", "training.lr=3e-3", "--seeds", "2", "--feature", "text/toy"]
    arguments += ["--set", "model.fusion.options={rank: 2}"]  # which late has not
    result = run_cli("ablate", "--fusion", "late,low_rank", "--slots", "text,audio,text+audio", *arguments)
    metrics = json.loads((toy_project / "ablations/default/metrics.json").read_text())
    (line,) = re.findall(r"Train the best: cli (.*)", result.output)
    best = metrics["targets"]["liked"]["best"]
    command = shlex.split(line)
    assert command[:5] == ["fit", "--fusion", best["fusion"], "--slots", ",".join(best["slots"])]
    run_cli(*command, "--name", "best")
    trained = json.loads((toy_project / "runs/best/metrics.json").read_text())["targets"]["liked"]["splits"]
    summary = {(row["model"], row["slots"]): row for row in metrics["targets"]["liked"]["summary"]}
    found = summary[best["fusion"], "+".join(best["slots"])]
    assert trained["test"]["value"] == pytest.approx(found["test"])
    assert trained["val"]["value"] == pytest.approx(found["val"]) == pytest.approx(best["val"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fusion", "late,gatde"], r"no fusion 'gatde'. Did you mean 'gated'\? Known: late"),
        (["--slots", "text+audoi"], r"no slot 'audoi'. Did you mean 'audio'\?"),
        (["--split", "tenfold"], r"no split 'tenfold'; it has .*cv.0.* `cli split` makes one"),
        (["--name", "a/b"], "plain name"),
        (["--slots", ","], "No slots to try"),
        (["--fusion", ","], "No fusion to try"),
        (["--fusion", "late", "--set", "model.fusion.options={rank: 2}"], "no option of late 'rank'"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(toy_project, run_cli, arguments, message):
    result = run_cli("ablate", *arguments, code=2)
    assert re.search(message, result.output), result.output
    assert not (toy_project / "ablations").exists()


def test_too_many_slots_must_be_named(tmp_path):
    slots = tuple("abcdefg")
    store = write_toy_store(MemoryTree(), slots)
    with pytest.raises(ConfigError, match="7 slots have 127 subsets.*\n.*--slots text"):
        ablate(store, settings(), fusions=["late"], ablations=tmp_path)
    found = ablate(store, settings(), fusions=["late"], subsets=[["b", "a"], ["g"], ["a", "b"]], ablations=tmp_path)
    assert found.metrics["subsets"] == ["g", "a+b"] and list(found.metrics["slots"]) == ["a", "b", "g"]


# Cells


@pytest.fixture
def trainings(monkeypatch) -> list[tuple]:
    """What was trained: strategy, slots and seed."""
    seen: list[tuple] = []
    train = ablate_module.train

    def counted(data, targets, train_rows, val_rows, fusion, training, seed):
        seen.append((fusion.strategy, data.slots, seed))
        return train(data, targets, train_rows, val_rows, fusion, training, seed)

    monkeypatch.setattr(ablate_module, "train", counted)
    return seen


def test_finished_cells_are_not_run_again_and_give_the_same_bytes(store, tmp_path, trainings):
    grid = {"subsets": [["text"], ["text", "midi"]], "ablations": tmp_path}
    first = ablate(store, settings(), **grid)
    before = written(first.folder)
    assert len(trainings) == len(FUSIONS) * 2 and first.n_run == first.n_cells
    trainings.clear()
    again = ablate(store, settings(), **grid)
    assert trainings == [] and again.n_run == 0
    assert written(again.folder) == before and again.metrics == first.metrics


def test_a_larger_grid_runs_only_what_is_new(store, tmp_path, trainings):
    ablate(store, settings(), **TEXT_ONLY, ablations=tmp_path)
    trainings.clear()
    ablate(store, settings(seeds=[0, 1]), fusions=["late", "gated"], subsets=[["text"]], ablations=tmp_path)
    assert sorted(trainings) == [("gated", ("text",), 0), ("gated", ("text",), 1), ("late", ("text",), 1)]
    trainings.clear()
    ablate(store, settings(bootstrap=200), fusions=["gated"], subsets=[["text"], ["midi"]], ablations=tmp_path)
    assert trainings == [("gated", ("midi",), 0)]  # of the others, only the intervals are new


def cells_of(store: Store, config: Config, split: str = "default") -> Cells:
    data = load_segments(store, choose_features(store, config))
    targets = load_targets(store, list(config.model.targets))
    return Cells(data, targets, [store.split(split)], config, Path())


LATE = Cell(Model("late", ("text", "audio")), 0, 0)


def test_whatever_decides_a_cell_changes_its_name_and_nothing_else_does(store):
    cells = cells_of(store, settings())

    def with_data(**changes) -> Cells:
        return replace(cells, data=replace(cells.data, **changes))

    def with_model(**changes) -> Cells:
        values = settings().model_dump()
        values["model"]["fusion"] |= changes
        return replace(cells, config=validated(values, "test"))

    target = cells.targets[0]
    one_off = {slot: v.clone() for slot, v in cells.data.vectors.items()}
    one_off["audio"][-1, 0] += 1
    other_midi = {slot: v.clone() for slot, v in cells.data.vectors.items()}
    other_midi["midi"][-1, 0] += 1
    flipped = cells.data.present.clone()
    flipped[5, 0] = ~flipped[5, 0]
    split = cells.splits[0]
    names = {
        "as it is": cells.path(LATE),
        "lr": cells_of(store, settings(lr=2e-3)).path(LATE),
        "epochs": cells_of(store, settings(epochs=4)).path(LATE),
        "hidden": with_model(hidden_dim=64).path(LATE),
        "a vector": with_data(vectors=one_off).path(LATE),
        "presence": with_data(present=flipped).path(LATE),
        "labels": replace(cells, targets=[replace(target, known=~target.known)]).path(LATE),
        "loss weight": replace(cells, targets=[replace(target, loss_weight=2.0)]).path(LATE),
        "two targets": replace(cells, targets=[target, target]).path(LATE),
        "split": replace(cells, splits=[replace(split, parts=np.roll(split.parts, 4))]).path(LATE),
        "seed": cells.path(LATE._replace(seed=1)),
        "fusion": cells.path(LATE._replace(model=Model("gated", LATE.model.slots))),
        "linear": cells.path(Cell(Model(LINEAR, LATE.model.slots), 0, None)),
        "subset": cells.path(LATE._replace(model=Model("late", ("text",)))),
        "order": cells.path(LATE._replace(model=Model("late", ("audio", "text")))),
    }
    assert len(set(names.values())) == len(names), names
    same = {
        "bootstrap": cells_of(store, settings(bootstrap=200)).path(LATE),
        "seeds": cells_of(store, settings(seeds=[0, 5])).path(LATE),
        "strategy": with_model(strategy="gated").path(LATE),
        "another slot": with_data(vectors=other_midi).path(LATE),
        "name of the split": replace(cells, splits=[replace(split, name="other")]).path(LATE),
    }
    assert set(same.values()) == {names["as it is"]}


def test_frames_count_for_the_fusions_that_read_them(store):
    cells = cells_of(store, settings())
    frames = {"text": torch.zeros(N_SEGMENTS, 2, WIDTH)}
    n_frames = {"text": torch.ones(N_SEGMENTS, dtype=torch.int64)}
    with_frames = replace(cells, data=replace(cells.data, frames=frames, n_frames=n_frames))
    for name, fusion in FUSIONS.items():
        cell = LATE._replace(model=Model(name, LATE.model.slots))
        assert (cells.path(cell) != with_frames.path(cell)) == fusion.reads_frames
    linear = Cell(Model(LINEAR, LATE.model.slots), 0, None)
    assert cells.path(linear) == with_frames.path(linear)


def test_an_edited_fusion_has_new_cells_and_the_others_keep_theirs(store, tmp_path, monkeypatch):
    def path(fusion: str) -> Path:
        digest_module.code_digest.cache_clear()
        return cells_of(store, settings()).path(Cell(Model(fusion, ("text",)), 0, 0))

    before = path("late"), path("gated")
    find, module = digest_module._source_file, FUSIONS["gated"].__module__
    edited = tmp_path / "gated.py"
    edited.write_text(find(module).read_text("utf-8") + "\n# an idea\n", "utf-8")
    monkeypatch.setattr(digest_module, "_source_file", lambda name: edited if name == module else find(name))
    after = path("late"), path("gated")
    digest_module.code_digest.cache_clear()
    assert after[0] == before[0] != before[1] != after[1]


def test_code_that_a_training_imports_is_part_of_it(monkeypatch):
    read = []
    monkeypatch.setattr(
        digest_module, "_source_file", lambda name, find=digest_module._source_file: read.append(name) or find(name)
    )
    digest_module.code_digest.cache_clear()
    digest_module.code_digest("fusion.train", "fusion.modules.late")
    digest_module.code_digest.cache_clear()
    assert {"fusion.train", "fusion.model", "fusion.targets", "fusion.missing", "fusion.modules.base"} <= set(read)
    assert not {name for name in read if name.startswith(("fusion.report", "fusion.ablation"))}


def test_a_damaged_cell_is_run_again(store, tmp_path):
    first = ablate(store, settings(), **TEXT_ONLY, ablations=tmp_path)
    cell = max((first.folder / "cells").iterdir(), key=lambda path: path.stat().st_size)
    cell.write_bytes(cell.read_bytes()[:-10])
    again = ablate(store, settings(), **TEXT_ONLY, ablations=tmp_path)
    assert again.n_run == 1
    assert without_seconds(tables_of(again.folder)["results"]) == without_seconds(tables_of(first.folder)["results"])


def test_other_processes_give_the_same_numbers(store, tmp_path):
    grid = {"fusions": ["late"], "subsets": [["text"], ["text", "midi"]], "split_name": "cv"}
    alone = ablate(store, settings(), **grid, ablations=tmp_path / "alone")
    together = ablate(store, settings(), **grid, ablations=tmp_path / "together", workers=2)
    assert together.n_run == alone.n_run > 0
    for name in TABLES:
        assert without_seconds(tables_of(together.folder)[name]) == without_seconds(tables_of(alone.folder)[name])


def test_a_mistake_in_another_process_is_a_mistake_here(store, tmp_path):
    with pytest.raises(TriadError, match=r"Lower the learning rate"):
        ablate(store, settings(lr=1e30), **TEXT_ONLY, ablations=tmp_path, workers=1)


def test_what_is_set_for_one_slot_does_not_stop_subsets_without_it(store, tmp_path):
    config = settings(slots={"audio": {"lr": 1e-4}})
    found = ablate(store, config, fusions=["late"], subsets=[["text"], ["text", "audio"]], ablations=tmp_path)
    plain = ablate(store, settings(), fusions=["late"], subsets=[["text"], ["text", "audio"]], ablations=tmp_path)
    assert found.n_run == found.n_cells and plain.n_run == 1  # text alone is the same training in both


def ablate_in_place(folder: Path, ready=None) -> Ablation:
    store = open_store(folder.parent / "features.zarr")
    if ready is not None:
        ready.set()
    grid = {"fusions": ["late", "gated"], "subsets": [["text"], ["audio"]], "split_name": "cv"}
    return ablate(store, settings(epochs=10), **grid, ablations=folder)


def test_killed_at_random_moments_no_finished_cell_is_repeated_and_the_tables_are_the_same(tmp_path):
    with new_zarr_tree(tmp_path / "features.zarr") as tree:
        write_toy_store(tree)
    expected = ablate_in_place(tmp_path / "never-killed")
    cells = tmp_path / "killed" / "default" / "cells"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_ablate"])
    moments = random.Random(0)
    finished: dict[str, int] = {}
    died = 0
    while died < KILLS and len(finished) < expected.n_cells:
        ready = context.Event()
        process = context.Process(target=ablate_in_place, args=(tmp_path / "killed", ready))
        process.start()
        assert ready.wait(60)
        process.join(moments.uniform(0, 0.6))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            died += 1
        process.join()
        now = {path.name: path.stat().st_mtime_ns for path in cells.glob("*.safetensors")}
        assert finished.items() <= now.items()  # what was finished stays, and is not written again
        finished = now
    assert died > 1
    last = ablate_in_place(tmp_path / "killed")
    assert last.n_run == expected.n_cells - len(finished)
    assert [path.suffix for path in cells.iterdir()] == [".safetensors"] * expected.n_cells
    for name in TABLES:
        assert without_seconds(tables_of(last.folder)[name]) == without_seconds(tables_of(expected.folder)[name])


# What the tables say


def test_what_carries_the_signal_is_found_and_what_does_not_is_not(store, tmp_path):
    config = settings(epochs=30, bootstrap=500)
    config = config.model_copy(
        update={"model": config.model.model_copy(update={"targets": [TargetConfig(name="liked", metric="log_loss")]})}
    )
    found = ablate(store, config, fusions=["late"], split_name="cv", ablations=tmp_path).metrics["targets"]["liked"]
    verdicts = {(row["slots"], row["other_model"], row["other_slots"]): row for row in found["comparisons"]}
    full = "text+audio+midi"
    assert found["higher_is_better"] is False and "text" in found["best"]["slots"]
    assert verdicts[full, MAJORITY, ""]["verdict"] == "better" and verdicts[full, MAJORITY, ""]["difference"] < 0
    assert verdicts["audio+midi", "late", full]["verdict"] == "worse"
    assert verdicts[full, MASK_ONLY, full]["verdict"] == "better"
    adds = {row["slot"]: row for row in found["shapley"] if row["model"] == "late"}
    assert adds["text"]["ci95_high"] < 0 and adds["text"]["value"] < min(adds[s]["value"] for s in ("audio", "midi"))


def test_values_are_those_of_fit_and_pooled_over_folds(store, tmp_path):
    config = settings(seeds=[0, 1])
    found = ablate(store, config, fusions=["late"], subsets=[SLOTS], split_name="cv", ablations=tmp_path)
    run = fit(store, config, runs=tmp_path, split_name="cv")
    fitted = run.metrics["targets"]["liked"]
    summary = {(row["model"], row["slots"]): row for row in found.metrics["targets"]["liked"]["summary"]}
    full = "+".join(SLOTS)
    assert summary["late", full]["test"] == pytest.approx(fitted["splits"]["test"]["value"])
    for name, slots in ((LINEAR, full), (MASK_ONLY, full), (MAJORITY, "")):
        assert summary[name, slots]["test"] == pytest.approx(fitted["baselines"][name]["test"]["value"])
        assert summary[name, slots]["ci95_low"] == pytest.approx(fitted["baselines"][name]["test"]["ci95"][0])
    assert summary["late", full]["seed_deviation"] == pytest.approx(
        np.std(fitted["splits"]["test"]["per_seed"], ddof=1)
    )


def one_fold(
    predicted: Mapping[Model, np.ndarray], labels: list[str], groups: np.ndarray | None = None
) -> TargetTables:
    """Tables of models whose probabilities, (n, K) in validation and test alike, are known."""
    (target,) = make_targets({"y": labels}, TargetConfig(name="y"))
    n = len(labels)
    groups = np.arange(n).astype(STRING) if groups is None else groups
    tables = TargetTables(0, target, groups, 200)
    rows = [{"val": np.arange(n), "test": np.arange(n)}]
    for model, outputs in predicted.items():
        finished = Finished({"val": [outputs], "test": [outputs]}, {"split": "s", "seconds": 1.0})
        tables.add(model, {Cell(model, 0, 0): finished}, rows)
    return tables


def some_models(n: int, seed: int = 0) -> tuple[dict[Model, np.ndarray], list[str]]:
    """`a`, and `twin` that says the same, on slot x; and the baselines."""
    rng = np.random.default_rng(seed)
    labels = ["no", "yes"] * (n // 2)
    said = {name: rng.dirichlet([1, 1], n) for name in ("a", LINEAR, MASK_ONLY, MAJORITY)}
    said["twin"] = said["a"]
    return {Model(name, () if name == MAJORITY else ("x",)): outputs for name, outputs in said.items()}, labels


def test_a_model_compared_with_its_twin_differs_by_exactly_nothing():
    models, labels = some_models(40)
    rows = one_fold(models, labels).comparisons(["a", "twin"], ("x",))
    (twins,) = [row for row in rows if (row["model"], row["other_model"]) == ("a", "twin")]
    numbers = [value for key, value in twins.items() if key == "difference" or "ci95" in key]
    assert numbers == [0.0] * 5 and twins["verdict"] == "no clear difference"
    assert len(rows) == 3 + 2 and any(row["joint_ci95_low"] < row["joint_ci95_high"] for row in rows)


def test_with_one_group_nothing_is_compared():
    models, labels = some_models(40)
    tables = one_fold(models, labels, np.array(["g"] * 40, dtype=STRING))
    assert {row["verdict"] for row in tables.comparisons(["a", "twin"], ("x",))} == {"not compared"}
    assert all(row["ci95_low"] is None and row["test"] is not None for row in tables.summary())


def test_the_best_is_chosen_on_validation_whatever_the_test_says():
    labels = ["no", "yes"] * 20
    right = np.eye(2)[np.arange(40) % 2]
    (target,) = make_targets({"y": labels}, TargetConfig(name="y"))
    tables = TargetTables(0, target, np.arange(40).astype(STRING), 100)
    rows = [{"val": np.arange(20), "test": np.arange(20, 40)}]
    for name, val, test in (("lucky", 1 - right, right), ("chosen", right, 1 - right), ("same", right, right)):
        outputs = {"val": [val[:20]], "test": [test[20:]]}
        tables.add(
            Model(name, ("x",)),
            {Cell(Model(name, ("x",)), 0, 0): Finished(outputs, {"split": "s", "seconds": 1})},
            rows,
        )
    assert tables.best(["lucky", "chosen", "same"]) == Model("chosen", ("x",))
    assert tables.test[Model("lucky", ("x",))][0] == 1.0


VALUES = st.dictionaries(
    st.sampled_from([frozenset(s) for size in range(5) for s in combinations("abcd", size)]),
    st.floats(-10, 10),
    min_size=16,
    max_size=16,
)


@given(VALUES)
def test_shapley_values_add_up_and_are_the_mean_over_all_orders(values):
    scores = {subset: np.array([value, 2 * value]) for subset, value in values.items()}
    found = shapley_values("abcd", scores)
    total = scores[frozenset("abcd")] - scores[frozenset()]
    assert np.allclose(sum(found.values()), total)
    for slot in "abcd":
        gains = [
            scores[frozenset(order[: order.index(slot) + 1])] - scores[frozenset(order[: order.index(slot)])]
            for order in permutations("abcd")
        ]
        assert np.allclose(found[slot], np.mean(gains, axis=0))


@given(st.lists(st.floats(-10, 10), min_size=4, max_size=4))
def test_symmetric_slots_are_worth_the_same_and_an_idle_one_nothing(by_size):
    """The score depends on how many of a, b and c are there; d does nothing."""
    subsets = [frozenset(s) for size in range(5) for s in combinations("abcd", size)]
    found = shapley_values("abcd", {s: np.array([by_size[len(s - {"d"})]]) for s in subsets})
    assert np.allclose(found["a"], found["b"]) and np.allclose(found["b"], found["c"])
    assert np.allclose(found["d"], 0)


def test_shapley_values_need_every_subset(store, tmp_path):
    some = ablate(store, settings(), fusions=["late"], subsets=[["text"], ["text", "audio"]], ablations=tmp_path)
    assert some.metrics["targets"]["liked"]["shapley"] == []
    every = [["text"], ["audio"], ["audio", "text"]]
    found = ablate(store, settings(), fusions=["late"], subsets=every, ablations=tmp_path).metrics["targets"]["liked"]
    summary = {(row["model"], row["slots"]): row["test"] for row in found["summary"]}
    for model in ("late", LINEAR):
        values = [row["value"] for row in found["shapley"] if row["model"] == model]
        assert len(values) == 2
        assert sum(values) == pytest.approx(summary[model, "text+audio"] - summary[MAJORITY, ""])


def test_joint_intervals_hold_together_as_often_as_they_say():
    """Twelve differences, correlated as those of five models are, all truly zero."""
    rng = np.random.default_rng(0)
    pairs = list(combinations(range(5), 2))
    alone = together = 0
    n_trials, n_groups, n_resamples = 300, 60, 400
    for _ in range(n_trials):
        by_group = rng.normal(size=(n_groups, 5)) + rng.normal(size=(n_groups, 1))
        weights = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_resamples) / n_groups
        scores = np.concatenate([by_group.mean(axis=0)[None], weights @ by_group]).T
        differences = [scores[i] - scores[j] for i, j in pairs]
        together += all(low <= 0 <= high for low, high in joint_intervals(differences))
        alone += all(low <= 0 <= high for low, high in (joint_intervals([d])[0] for d in differences))
    assert 0.92 <= together / n_trials <= 0.98
    assert alone / n_trials < 0.85  # what they would do, each for itself


def test_seeds_add_the_variance_that_segments_do_not_explain():
    rng = np.random.default_rng(0)
    own = np.array([0.5, 0.6, 0.7, 0.4, 0.9])  # seeds that differ alike on every segment
    drawn = chance_of_seeds(own, np.tile(own, (20_000, 1)))
    assert drawn.std() == pytest.approx(own.std(ddof=1) / 5**0.5, rel=0.03) and abs(drawn.mean()) < 0.002
    assert not chance_of_seeds(own[:1], own[None, :1].repeat(10, axis=0)).any()
    assert not chance_of_seeds(np.full(3, 0.5), rng.normal(size=(10, 3))).any()
    noisy = rng.normal(0.5, 0.1, (20_000, 5))  # as different as chance in the segments makes them
    assert not chance_of_seeds(np.array([0.5, 0.55, 0.45, 0.6, 0.4]), noisy).any()


# Files


def test_csv_and_parquet_agree_and_no_text_becomes_a_formula(tmp_path):
    names = ["=1+1", "+x", "-x", "@x", "\tx", "plain", 'a "quoted", b']
    numbers = [-0.1, 1 / 3, 1e-17, None, -5.0, 0.0, 12345678.9]
    rows = [
        {"target": name, "metric": "accuracy", "model": "late", "slot": "text", "value": number}
        | {"ci95_low": number, "ci95_high": None}
        for name, number in zip(names, numbers, strict=True)
    ]
    write_rows(tmp_path, "shapley", rows)
    assert pq.read_table(tmp_path / "shapley.parquet").to_pylist() == rows
    with (tmp_path / "shapley.csv").open(newline="", encoding="utf-8") as file:
        cells = list(csv.DictReader(file))
    assert [cell["target"] for cell in cells] == ["'=1+1", "'+x", "'-x", "'@x", "'\tx", "plain", 'a "quoted", b']
    assert [float(cell["value"]) if cell["value"] else None for cell in cells] == numbers
    assert cells[0]["value"] == "-0.1"


def test_tables_without_rows_have_their_columns(tmp_path):
    write_rows(tmp_path, "comparisons", [])
    assert pq.read_table(tmp_path / "comparisons.parquet").column_names == list(TABLES["comparisons"])


def test_every_cell_can_be_read_by_others(store, tmp_path):
    found = ablate(store, settings(), **TEXT_ONLY, ablations=tmp_path, split_name="cv")
    rows = [row for row in tables_of(found.folder)["results"] if row["metric"] == "accuracy"]
    assert [(row["model"], row["split"], row["seed"]) for row in rows[:3]] == [("late", f"cv.{k}", 0) for k in range(3)]
    assert all(row["best_epoch"] in (1, 2, 3) for row in rows if row["model"] == "late")
    assert all(row["best_epoch"] is None and row["seed"] is None for row in rows if row["model"] != "late")


def test_the_live_table_has_a_row_for_each_subset_and_a_column_for_each_model():
    scores = {Model("late", ("text",)): [0.5, 0.6], Model(LINEAR, ("text",)): [0.25], Model(MAJORITY, ()): [0.125]}
    out = io.StringIO()
    Console(file=out, width=100).print(live_table(scores, "3 of 9"))
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert ["text", "0.550", "0.250"] in lines and ["none", "0.125"] in lines


def test_progress_counts_what_is_run_and_shows_what_was_there(store, tmp_path):
    seen: list[tuple] = []
    report = {"progress": lambda *told: seen.append(told)}
    ablate(store, settings(), **TEXT_ONLY, ablations=tmp_path, **report)
    assert [told[2:] for told in seen] == [(k, 4) for k in (1, 2, 3, 4)]
    assert all(0 <= told[1] <= 1 for told in seen)
    seen.clear()
    ablate(store, settings(seeds=[0, 1]), **TEXT_ONLY, ablations=tmp_path, **report)
    assert [told[2] for told in seen] == [0, 0, 0, 0, 1]


def test_errors_of_the_library_are_the_users_to_mend(store, tmp_path):
    with pytest.raises(UnknownName, match="no fusion 'x'"):
        ablate(store, settings(), fusions=["x"], ablations=tmp_path)
    with pytest.raises(SplitError, match="no split 'x'"):
        ablate(store, settings(), split_name="x", ablations=tmp_path)
    with pytest.raises(ConfigError, match="No slots to try"):
        ablate(store, settings(), subsets=[], ablations=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert torch.get_num_threads() >= 1
