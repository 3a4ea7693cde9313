"""Every tracking tool holds what the run folder holds, read back with its own reader; none of them stops a training.

All four packages are imported here and nowhere else: each takes a second or more.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import struct
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

import fusion.tracking as tracking
from fusion.ablation import ablate
from fusion.config import Config, load_config, validated
from fusion.fitting import Run, fit
from fusion.report_parts import PLAIN
from fusion.tracking import TRACKERS, open_trackers
from fusion.tracking.base import PROJECT, Point, TrackedRun
from fusion.tracking.log import final_values
from stores.backends import new_tree
from stores.memory_store import MemoryTree
from stores.store import Store
from tests.notebook import Notebook
from tests.test_ablate import write_toy_store

CONFIG: Config = validated(
    {"model": {"targets": [{"name": "liked"}]}, "training": {"epochs": 4, "bootstrap": 100, "seeds": [0, 1]}}, "test"
)
COMMANDS = [["fit"], ["ablate"], ["train-encoder", "--encoder", "mel_cnn"], ["finetune", "--from", "late"]]

# what other people's packages say on import
quiet = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:tensorboard.*",
    "ignore::DeprecationWarning:google.*",
    "ignore::DeprecationWarning:mlflow.*",
    "ignore::DeprecationWarning:wandb.*",
    "ignore::DeprecationWarning:trackio.*",
)
pytestmark = [quiet, pytest.mark.usefixtures("unrendered")]


@dataclass
class Held:
    """What a tool holds of a run. curves: by `series/name`, step to value. settings: `None` where it was not read."""

    curves: dict[str, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))
    values: dict[str, float] = field(default_factory=dict)
    settings: dict | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    status: str = ""


def in_tensorboard() -> Held:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = Held()
    for file in Path("tensorboard/toy").rglob("events.*"):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        series = file.parent.relative_to("tensorboard/toy").as_posix()
        for tag in events.Tags()["scalars"]:
            points = {event.step: event.value for event in events.Scalars(tag)}
            if series == ".":
                (found.values[tag],) = points.values()
            else:
                found.curves[f"{series}/{tag}"] = points
        for tag in events.Tags()["tensors"]:
            (text,) = events.Tensors(tag)[0].tensor_proto.string_val
            found.files["config.yaml"] = text.removeprefix(b"```yaml\n").removesuffix(b"```")
    return found


def in_mlflow() -> Held:
    from mlflow.tracking import MlflowClient

    client, found = MlflowClient(), Held()
    (run,) = client.search_runs([client.get_experiment_by_name(PROJECT).experiment_id])
    for name in run.data.metrics:
        history = client.get_metric_history(run.info.run_id, name)
        if "/seed " in name:
            found.curves[name] = {metric.step: metric.value for metric in history}
        else:
            (found.values[name],) = (metric.value for metric in history)
    found.settings, found.status = run.data.params, run.info.status
    folder = Path(client.download_artifacts(run.info.run_id, "", "downloaded" if Path("downloaded").mkdir() else None))
    found.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return found


def wandb_records(file: Path) -> Iterator:
    """A run that is not sent yet is a log as LevelDB has it: blocks of 32 KiB, in them parts of records."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, record = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 2**15 - at % 2**15) < 7:
            at += left
        _, size, kind = struct.unpack_from("<IHB", data, at)
        record, at = record + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(record)
            record = b""


def in_wandb() -> Held:
    found, settings = Held(), {}
    (file,) = Path("wandb").glob("offline-run-*/*.wandb")
    for record in wandb_records(file):
        row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for name, value in row.items():
            if "/" in name:
                found.curves[name][row["epoch"]] = value
        for item in record.summary.update:
            if item.key and not item.key.startswith("_"):
                found.values[item.key] = json.loads(item.value_json)
        for item in record.run.config.update:
            settings[item.key] = json.loads(item.value_json)
        for content in record.artifact.manifest.contents:
            found.files[content.path] = Path(content.local_path).read_bytes()
        if record.HasField("exit"):
            found.status = str(record.exit.exit_code)
    found.settings = {key: str(value) for key, value in TrackedRun("", "", settings).flat_settings().items()}
    return found


def in_trackio() -> Held:
    found = Held()
    with sqlite3.connect(f"trackio/{PROJECT}.db") as database:
        for step, row in database.execute("select step, metrics from metrics"):
            for name, value in json.loads(row).items():
                if "/seed " in name:
                    found.curves[name][step] = value
                else:
                    found.values[name] = value
    for blob in Path("trackio/artifacts").rglob("blobs/*/*/*"):
        content = blob.read_bytes()
        name = "report.html" if content.startswith(b"<!") else "metrics.json" if content[:1] == b"{" else "config.yaml"
        found.files[name] = content
    return found


READERS = {"tensorboard": in_tensorboard, "mlflow": in_mlflow, "wandb": in_wandb, "trackio": in_trackio}
INSTALLED = [name for name in TRACKERS if find_spec(TRACKERS[name].package) is not None]


@pytest.fixture(scope="module")
def store() -> Store:
    return write_toy_store(MemoryTree(), ("text", "audio"))


@contextmanager
def offline(folder: Path) -> Iterator[pytest.MonkeyPatch]:
    """Every tool writes to this folder, in which we stand, whatever the machine is set up for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for variable, value in {
            "MLFLOW_TRACKING_URI": (folder / "mlruns").as_uri(),
            "MLFLOW_ALLOW_FILE_STORE": "true",  # mlflow-skinny has no SQLite
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
            "WANDB_MODE": "offline",
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_CACHE_DIR": str(folder / "cache"),
            "WANDB_DATA_DIR": str(folder / "cache"),
            "TRACKIO_DIR": str(folder / "trackio"),
        }.items():
            patch.setenv(variable, value)
        for variable in ("MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT", "WANDB_DIR", "TRACKIO_PROJECT", "TRACKIO_SPACE_ID"):
            patch.delenv(variable, raising=False)
        yield patch


@pytest.fixture
def here(tmp_path) -> Iterator[pytest.MonkeyPatch]:
    with offline(tmp_path) as patch:
        yield patch


@pytest.fixture(scope="module")
def run(store, tmp_path_factory) -> Iterator[Run]:
    """A run that every tool that is installed was told of, and we stand where they wrote."""
    with offline(tmp_path_factory.mktemp("tracked")):
        trackers = open_trackers([*INSTALLED, *INSTALLED])
        assert len(trackers) == len(INSTALLED)
        run = fit(store, CONFIG, name="toy", trackers=trackers)
        where = " ".join(tracker.where for tracker in trackers)
        assert all(name in where for name in INSTALLED)
        yield run


def curves_of(folder: Path) -> dict[str, dict[int, float]]:
    """What `history.parquet` holds, called as trackers are told it."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for row in pq.read_table(folder / "history.parquet").to_pylist():
        series = f"{row.pop('model')}/{row.pop('split')}/seed {row.pop('seed')}"
        step = row.pop("epoch")
        for name, value in row.items():
            if value is not None:
                found[f"{series}/{name}"][step] = value
    return found


def scores_of(folder: Path) -> dict[str, float]:
    """Some of what `metrics.json` holds, called as trackers are told it: of each kind of score."""
    liked = json.loads((folder / "metrics.json").read_text("utf-8"))["targets"]["liked"]
    test, pattern = liked["splits"]["test"], liked["presence_patterns"]["text+audio"]
    return {
        "liked/fusion/train/accuracy": liked["splits"]["train"]["value"],
        "liked/fusion/test/accuracy": test["value"],
        "liked/fusion/test/accuracy_ci95_low": test["ci95"][0],
        "liked/fusion/test/accuracy_ci95_high": test["ci95"][1],
        "liked/fusion/test/macro_f1": test["others"]["macro_f1"]["value"],
        "liked/majority/test/accuracy": liked["baselines"]["majority"]["test"]["value"],
        "liked/text alone/val/accuracy": liked["baselines"]["text alone"]["val"]["value"],
        "liked/fusion on text+audio/test/accuracy": pattern["value"],
    }


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tool_holds_what_the_run_holds(run, name):
    if name not in INSTALLED:
        pytest.skip(f"needs pip install 'triad-fusion[{name}]'")
    found, expected, scores = READERS[name](), curves_of(run.folder), scores_of(run.folder)
    stored = np.float32 if name == "tensorboard" else np.float64
    spelled = (lambda text: text.replace("+", " ")) if name == "mlflow" else str
    assert found.curves == {key: {at: stored(y) for at, y in curve.items()} for key, curve in expected.items()}
    assert {key: found.values[spelled(key)] for key in scores} == {key: stored(value) for key, value in scores.items()}
    assert found.files["config.yaml"] == (run.folder / "config.yaml").read_bytes()
    if name != "tensorboard":
        assert {file: (run.folder / file).read_bytes() for file in found.files} == found.files
        assert set(found.files) == {"report.html", "config.yaml", "metrics.json"}
    if found.settings is not None:
        assert found.settings["training.seeds"] == "[0, 1]" and found.settings["slots.audio"] == "toy"
        assert found.settings["model.fusion.strategy"] == "late" and found.settings["command"] == "fit"
    assert found.status == {"mlflow": "FINISHED", "wandb": "0"}.get(name, "")


def test_a_second_run_of_a_name_is_another_one_in_tensorboard(here):
    (tracker,) = open_trackers(["tensorboard"])
    for values in ({"loss": 1.0}, {"loss": 2.0}):
        tracker.begin(TrackedRun("fit", "toy", {}))
        tracker.log("fusion", [Point(1, values)])
        tracker.end("failed")
    assert sorted(path.name for path in Path("tensorboard").iterdir()) == ["toy", "toy-2"]
    assert in_tensorboard().curves == {"fusion/loss": {1: 1.0}}


# What goes wrong


class Vandal(Notebook):
    """Takes the disk away from MLflow when it is told of the first training."""

    def log(self, series, points):
        super().log(series, points)
        if len(self.told) == 1:
            shutil.rmtree("mlruns")


def test_a_tool_that_fails_midway_costs_a_line_and_no_training(store, here, capsys):
    untracked = fit(store, CONFIG, name="toy", runs=Path("untracked"), with_baselines=False, report=PLAIN)
    vandal = Vandal()
    trackers = [vandal, *open_trackers(["mlflow"])]
    run = fit(store, CONFIG, name="toy", with_baselines=False, report=PLAIN, trackers=trackers)
    assert run.metrics == untracked.metrics
    for file in ("predictions.parquet", "model.safetensors"):
        assert (run.folder / file).read_bytes() == (untracked.folder / file).read_bytes()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: mlflow fails (") and line.endswith("and is told no more of this run.")
    assert vandal.ended == ["finished"] and set(vandal.files) == {"report.html", "config.yaml", "metrics.json"}
    assert {f"{s}/{n}" for s, curve in vandal.told.items() for n in curve[1]} == set(curves_of(run.folder))


def test_a_tool_that_cannot_begin_says_so_before_anything_is_trained(store, here):
    here.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody is there
    notebook = Notebook()
    with pytest.raises(tracking.ConfigError, match=r"^mlflow cannot begin a run \(.*127.0.0.1"):
        fit(store, CONFIG, trackers=[notebook, *open_trackers(["mlflow"])])
    assert notebook.ended == ["failed"] and notebook.told == {} and not Path("runs").exists()


@pytest.mark.skipif("wandb" not in INSTALLED, reason="needs pip install 'triad-fusion[wandb]'")
def test_wandb_asks_for_no_key(here):
    for variable in ("HOME", "NETRC"):
        here.setenv(variable, "nobody")
    for variable in ("WANDB_MODE", "WANDB_API_KEY"):
        here.delenv(variable, raising=False)
    import wandb

    wandb.teardown()  # what it has read of the environment is forgotten
    with pytest.raises(tracking.ConfigError, match="WANDB_API_KEY"):
        open_trackers(["wandb"])[0].begin(TrackedRun("fit", "toy", {}))
    wandb.teardown()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: words[0])
def test_a_missing_package_is_told_before_anything_else(project, run_cli, monkeypatch, command):
    monkeypatch.setattr(tracking, "find_spec", lambda _: None)
    output = run_cli(*command, "--track", "mlflow", code=2).output
    assert output == "Error: --track mlflow needs mlflow: pip install 'triad-fusion[mlflow]', or leave it away.\n"


# What is told, and when


def test_an_interrupted_fit_ends_so_and_the_next_tells_everything(store, project):
    broken = Notebook()

    def stop(done: int, _: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(store, CONFIG, name="toy", with_baselines=False, report=PLAIN, trackers=[broken], progress=stop)
    assert broken.ended == ["interrupted"] and len(broken.told) == 1 and broken.values == {}
    run = fit(store, CONFIG, name="toy", with_baselines=False, report=PLAIN, trackers=[broken])
    assert broken.ended == ["interrupted", "finished"] and broken.values == final_values(run.metrics)
    told = {f"{s}/{n}": {at: row[n] for at, row in c.items()} for s, c in broken.told.items() for n in c[1]}
    assert told == curves_of(run.folder)


def test_a_cell_of_an_ablation_is_told_once(store, project):
    notebook = Notebook()

    def run(*fusions: str) -> list[str]:
        ablate(store, CONFIG, fusions=fusions, subsets=[["text"], ["text", "audio"]], trackers=[notebook])
        return sorted(notebook.told)

    first = run("late")
    assert first == sorted(
        [f"{model} on {slots}" for model in ("late", "logistic regression") for slots in ("text", "text+audio")]
        + ["mask only on text+audio", "majority"]
    )
    rows = [
        row for row in tables("results") if (row["model"], row["slots"], row["metric"]) == ("late", "text", "accuracy")
    ]
    scores = {row["seed"]: row["val"] for row in rows}
    told = {step: row["val/liked/accuracy"] for step, row in notebook.told["late on text"].items()}
    assert told == {0: scores[0], 1: scores[1]} and set(notebook.told["majority"]) == {0}
    assert {"train_loss", "val_loss", "epochs", "seconds"} < set(notebook.told["late on text"][1])

    (summary,) = [row for row in tables("summary") if row["model"] == "late" and row["slots"] == "text"]
    assert notebook.values["liked/late on text/test/accuracy"] == summary["test"]
    assert notebook.values["liked/late on text/test/accuracy_ci95_low"] == summary["ci95_low"]

    assert run("late", "gated") == ["gated on text", "gated on text+audio"]  # the rest was there
    assert run("late", "gated") and len(notebook.runs) == 2  # there was nothing to run, and nothing to tell


def tables(name: str) -> list[dict]:
    return pq.read_table(f"ablations/default/{name}.parquet").to_pylist()


def test_the_tracker_of_the_document_works(project, capsys):
    with new_tree(Path("features.zarr")) as tree:
        write_toy_store(tree, ("text", "audio"))
    Path("config.yaml").write_text(yaml.safe_dump(CONFIG.model_dump(mode="json")), "utf-8")
    document = (Path(__file__).parents[1] / "docs" / "tracking.md").read_text("utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    exec(program, {"__name__": "document"})
    lines = capsys.readouterr().out.splitlines()
    epochs = pq.read_table("runs/late/history.parquet").num_rows
    assert lines[0] == f"late {CONFIG.training.lr}" and lines[-1] == "finished" and len(lines) == epochs + 3
    assert "'liked/fusion/test/accuracy'" in lines[-2]


def test_settings_are_those_of_the_configuration():
    config = load_config()
    flat = TrackedRun("fit", "toy", config.model_dump(mode="json"), {"slots": {"text": "lsa"}}).flat_settings()
    assert flat["training.lr"] == config.training.lr and flat["slots.text"] == "lsa" and flat["run"] == "toy"
    assert None not in flat.values() and not any(isinstance(value, dict | list) for value in flat.values())
