"""Training on a GPU: the CPU's losses, and nothing that waits for it. Where there is none, a pretended one is used."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from importlib.metadata import distributions
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import fusion as library
import fusion.runs as runs
from featurize.config import SplitConfig
from featurize.errors import ConfigError
from featurize.splits import make_splits
from fusion.checkpoint import Checkpoint
from fusion.config import FusionConfig, TrainingConfig, validated
from fusion.data import SegmentData, load_segments
from fusion.device import training_device
from fusion.fitting import fit
from fusion.modules import FUSIONS
from fusion.precision import resolved
from fusion.report_parts import PLAIN
from fusion.settings import settings
from fusion.streaming import stream_segments
from fusion.targets import Target, load_targets
from fusion.train import Trained, infer, train
from stores.backends import new_tree
from stores.base import STRING, ArrayTree
from stores.errors import TriadError
from stores.feature import Status
from stores.memory_store import MemoryTree
from stores.store import Part, Store
from tests.pretended_device import PretendedDevice
from tests.stores_contract import RECORD
from tests.test_loop import TRAINING, Killed, dies_after_saving, with_every_kind_of_target
from tests.test_train import TRAIN, VAL, losses

HAS_CUDA = torch.cuda.is_available()
gpu = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not HAS_CUDA, reason="needs a CUDA device")
pytestmark = pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS")  # said of a thread's first product
EACH_FUSION = pytest.mark.parametrize("strategy", list(FUSIONS))
WITH_OR_WITHOUT_FRAMES = pytest.mark.parametrize("with_frames", [False, True], ids=["vectors", "frames"])
STILL = FusionConfig(hidden_dim=8, dropout=0.0)
VARIANTS = {
    "pieces": {"micro_batch_size": 35},
    "slots alone": {"auxiliary_loss": 0.5, "gradient_modulation": 0.3},
    "slots alone in pieces": {"auxiliary_loss": 0.5, "gradient_modulation": 0.3, "micro_batch_size": 35},
    "slot by slot": {"clip_per_slot": True, "clip": 0.05},
    "by a metric": {"early_stopping": "macro_f1"},
}
EACH_VARIANT = pytest.mark.parametrize("variant", list(VARIANTS))
FRAMES, T, N, CHUNK_ROWS = "text", 4, 300, 64
WIDTHS = {"text": 6, "audio": 4}


def segments(with_frames: bool = False) -> tuple[SegmentData, list[Target]]:
    """Four kinds of target; frames, where wanted, of one slot of two."""
    data, targets = with_every_kind_of_target()
    if not with_frames:
        return data, targets
    rng = np.random.default_rng(1)
    n, width = data.vectors[FRAMES].shape
    frames = torch.from_numpy(rng.normal(size=(n, T, width)).astype(np.float32))
    n_frames = torch.from_numpy(rng.integers(0, T + 1, n))
    return replace(data, frames={FRAMES: frames}, n_frames={FRAMES: n_frames}), targets


@pytest.fixture
def from_source(monkeypatch: pytest.MonkeyPatch, unrendered: None) -> None:
    """A run records the versions of packages; from a source tree this one is not installed."""
    installed = {name for name in runs.PACKAGES if next(distributions(name=name), None) is not None}
    monkeypatch.setattr(runs, "PACKAGES", tuple(sorted(installed)))


def run(device: str, fusion: FusionConfig = STILL, with_frames: bool = False, **changes: object) -> Trained:
    data, targets = segments(with_frames)
    training = TRAINING.model_copy(update={"device": device, **changes})
    return train(data, targets, TRAIN, VAL, fusion, training, seed=0)


def same_losses(one: Trained, other: Trained, rtol: float = 1e-3) -> None:
    np.testing.assert_allclose(losses(one), losses(other), rtol=rtol)


def build(tree: ArrayTree) -> Store:
    """Text tells the label; audio has frames, and lacks in every third row. Songs of five segments."""
    rng = np.random.default_rng(0)
    label = (np.arange(N) // 7) % 2
    names = np.array(["no", "yes"], dtype=STRING)[label]
    made = Store.create(
        tree,
        {"id": np.arange(N).astype(STRING), "group": (np.arange(N) // 5).astype(STRING)},
        {"liked": names},
        {"layout": "test"},
        CHUNK_ROWS,
    )
    vectors = {slot: rng.normal(size=(N, width)) for slot, width in WIDTHS.items()}
    vectors["text"][:, 0] += 2 * label - 1
    n_frames = rng.integers(0, T + 1, N)
    frames = np.where((np.arange(T) < n_frames[:, None])[:, :, None], rng.normal(size=(N, T, WIDTHS["audio"])), 0)
    for slot, width in WIDTHS.items():
        record = {**RECORD, "modality": slot, "width": width}
        feature = made.create_feature(f"{slot}/toy", record, frames=T if slot == "audio" else 0)
        for chunk in feature.chunks():
            rows = np.array(chunk)
            status = np.where((slot == "text") | (rows % 3 > 0), Status.PRESENT, Status.ABSENT).astype(np.uint8)
            of_frames = {"frames": frames[rows], "n_frames": n_frames[rows]} if feature.has_frames else {}
            hashes = np.ones((len(rows), 16), np.uint8)
            feature.write_chunk(chunk, rows, vectors[slot][rows], status, hashes, [""] * len(rows), **of_frames)
    (split,) = make_splits(made.groups, names, SplitConfig())
    made.write_split(split)
    return made


@pytest.fixture(scope="module")
def store() -> Store:
    return build(MemoryTree())


def train_on(
    store: Store, device: str, stream: bool, with_frames: bool = False, strategy: str = "late", **changes: object
) -> Trained:
    read = stream_segments if stream else load_segments
    data = read(store, {slot: f"{slot}/toy" for slot in WIDTHS}, with_frames=with_frames)
    rows = [store.split("default").rows(part) for part in (Part.TRAIN, Part.VAL)]
    training = TRAINING.model_copy(update={"device": device, **changes})
    fusion = STILL.model_copy(update={"strategy": strategy})
    return train(data, load_targets(store, []), *rows, fusion, training, seed=0)


# What is configured


def test_the_option_sets_what_is_configured() -> None:
    assert settings().training.device == "cpu"
    assert settings({"training": {"device": "auto"}}).training.device == "auto"
    assert settings({"training": {"device": "auto"}}, device="cuda").training.device == "cuda"
    with pytest.raises(ConfigError, match=r"training\.device.*'gpu'"):
        validated({"training": {"device": "gpu"}}, "test")


def test_auto_is_what_is_there() -> None:
    there = {"cuda": HAS_CUDA, "mps": torch.backends.mps.is_available(), "cpu": True}
    assert training_device("auto").type == next(name for name, is_there in there.items() if is_there)
    assert training_device("cpu").type == "cpu"
    assert resolved(TrainingConfig(precision="fp32"), torch.device("cuda")).precision == "fp32"
    assert resolved(TrainingConfig(), torch.device("mps")).precision == "fp32"


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_said_before_anything_is_written(device, project, run_cli) -> None:
    if {"cuda": HAS_CUDA, "mps": torch.backends.mps.is_available()}[device]:
        pytest.skip(f"there is a {device} device")
    with new_tree(project / "features.zarr") as tree:
        build(tree)
    output = run_cli("fit", "--device", device, code=2).output
    assert f"no {device} device that torch can use" in output and "Traceback" not in output
    assert not (project / "runs").exists()
    with pytest.raises(ConfigError, match=f"no {device} device"):
        library.fit(project / "features.zarr", config={"training": {"device": device}})
    with pytest.raises(ConfigError, match=f"no {device} device"):
        run(device)


@pytest.mark.usefixtures("from_source")
def test_a_run_tells_its_device(store, tmp_path) -> None:
    config = validated({"training": {"device": "auto", "epochs": 1, "seeds": [0], "bootstrap": 100}}, "test")
    folder = fit(store, config, runs=tmp_path, with_baselines=False, report=PLAIN).folder
    assert yaml.safe_load((folder / "config.yaml").read_text("utf-8"))["training"]["device"] == "auto"
    told = json.loads((folder / "environment.json").read_text("utf-8"))["device"]
    assert told["type"] == training_device("auto").type and ("name" in told) == HAS_CUDA


# What a GPU computes, by the CPU's numbers


@pytest.fixture
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU computes what a GPU would: all rows, with what does not count replaced."""
    for module in ("modules.base", "balance", "data", "optimization", "targets"):
        monkeypatch.setattr(f"fusion.{module}.not_known_yet", lambda _: True)


@EACH_FUSION
@WITH_OR_WITHOUT_FRAMES
def test_computing_what_is_missing_changes_nothing(strategy, with_frames, request) -> None:
    fusion = STILL.model_copy(update={"strategy": strategy})
    expected = run("cpu", fusion, with_frames, epochs=2)
    request.getfixturevalue("nothing_known")
    same_losses(run("cpu", fusion, with_frames, epochs=2), expected, rtol=1e-5)


@EACH_VARIANT
def test_nor_does_it_in_pieces_or_for_slots_alone(variant, request) -> None:
    expected = run("cpu", **VARIANTS[variant])
    request.getfixturevalue("nothing_known")
    found = run("cpu", **VARIANTS[variant])
    same_losses(found, expected, rtol=1e-5)
    assert found.history[-1]["gradient_norm.audio"] == pytest.approx(expected.history[-1]["gradient_norm.audio"], 1e-3)


@pytest.mark.usefixtures("nothing_known")
def test_what_is_not_there_does_not_count_there_either() -> None:
    """Not even NaN, neither in vectors and frames nor in the logits of rows without a label."""
    data, targets = segments(with_frames=True)
    fusion, training = STILL.model_copy(update={"strategy": "early"}), TRAINING.model_copy(update={"epochs": 2})
    clean = train(data, targets, TRAIN, VAL, fusion, training, seed=0)
    here = data.present[:, [data.slots.index(FRAMES)]]
    vectors = {**data.vectors, FRAMES: torch.where(here, data.vectors[FRAMES], torch.nan)}
    real = (torch.arange(T) < data.n_frames[FRAMES][:, None]) & here
    frames = {FRAMES: torch.where(real[:, :, None], data.frames[FRAMES], torch.nan)}
    dirty = replace(data, vectors=vectors, frames=frames)
    found = train(dirty, targets, TRAIN, VAL, fusion, training, seed=0)
    assert losses(found) == losses(clean)

    rows = torch.arange(20)
    for target in targets:
        known = target.known[rows]
        assert known.sum() > 0 or target.name == "shares"
        logits = torch.where(known[:, None], torch.zeros(20, target.n_outputs), torch.nan).requires_grad_()
        target.loss(logits, rows).backward()
        assert logits.grad is not None and logits.grad.isfinite().all() and not logits.grad[~known].any()
        nobody = replace(target, known=torch.zeros_like(target.known))
        assert float(nobody.loss(torch.zeros(20, target.n_outputs), rows)) == 0.0


# What a GPU would be waited for


@EACH_FUSION
@WITH_OR_WITHOUT_FRAMES
def test_everything_is_where_it_belongs(strategy, with_frames, monkeypatch) -> None:
    fusion = FusionConfig(strategy=strategy, hidden_dim=8, dropout=0.3)
    with PretendedDevice(monkeypatch):
        trained = run("cpu", fusion, with_frames, epochs=1, batch_size=100, weight_averaging=0.9)
    assert all(weight.device.type == "cpu" for weight in trained.model.state_dict().values())
    assert all(target.truth.device.type == "cpu" for target in trained.targets) and len(trained.history) == 1
    data, _ = segments(with_frames)
    assert infer(trained.model, data, VAL)[0][0].device.type == "cpu"


@pytest.mark.parametrize("variant", ["slots alone in pieces", "slot by slot"])
def test_an_epoch_is_waited_for_as_often_whatever_its_steps(variant, monkeypatch) -> None:
    reads = []
    for batch_size in (100, 40):
        with monkeypatch.context() as patched, PretendedDevice(patched) as device:
            run("cpu", epochs=1, batch_size=batch_size, **VARIANTS[variant])
        reads.append(device.reads)
    assert reads[0] == reads[1] > 0


@WITH_OR_WITHOUT_FRAMES
def test_streamed_batches_are_sent_there(store, with_frames, monkeypatch) -> None:
    with PretendedDevice(monkeypatch) as device:
        trained = train_on(store, "cpu", stream=True, with_frames=with_frames, epochs=1, batch_size=120)
    assert device.reads > 0 and len(trained.history) == 1


# On a GPU


@gpu
@needs_cuda
@EACH_FUSION
@WITH_OR_WITHOUT_FRAMES
def test_a_gpu_learns_what_the_cpu_learns(strategy, with_frames) -> None:
    fusion = STILL.model_copy(update={"strategy": strategy})
    found, expected = (run(device, fusion, with_frames) for device in ("cuda", "cpu"))
    same_losses(found, expected)
    assert all(weight.device.type == "cpu" for weight in found.model.state_dict().values())
    for name, weight in expected.model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], weight, rtol=1e-2, atol=1e-3)


@gpu
@needs_cuda
@pytest.mark.parametrize("number", range(4), ids=["categorical", "regression", "multi_label", "soft_distribution"])
def test_a_gpu_learns_every_kind_of_target(number) -> None:
    data, targets = segments()
    assert len(targets) == 4
    found, expected = (
        train(data, [targets[number]], TRAIN, VAL, STILL, TRAINING.model_copy(update={"device": device}), seed=0)
        for device in ("cuda", "cpu")
    )
    same_losses(found, expected)


@gpu
@needs_cuda
@EACH_VARIANT
def test_a_gpu_learns_the_same_in_pieces_and_for_slots_alone(variant) -> None:
    found, expected = (run(device, **VARIANTS[variant]) for device in ("cuda", "cpu"))
    same_losses(found, expected)
    for slot in ("text", "audio"):
        norms = [trained.history[-1][f"gradient_norm.{slot}"] for trained in (found, expected)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-2)


@gpu
@needs_cuda
def test_bfloat16_and_dropout_learn_as_much_there() -> None:
    assert resolved(TrainingConfig(), torch.device("cuda")).precision in ("bf16", "fp32")
    expected = run("cpu")
    same_losses(run("cuda", precision="bf16"), expected, rtol=0.05)
    dropped = STILL.model_copy(update={"dropout": 0.3})
    first, again = run("cuda", dropped), run("cuda", dropped)
    same_losses(first, again, rtol=1e-5)
    assert losses(first) != losses(run("cuda")) and np.isfinite(losses(first)).all()


@gpu
@needs_cuda
def test_a_loss_that_is_no_number_is_said_there_too() -> None:
    with pytest.raises(TriadError, match="The loss became (nan|inf) in epoch 1"):
        run("cuda", lr=1e30)


@gpu
@needs_cuda
@EACH_FUSION
@WITH_OR_WITHOUT_FRAMES
def test_a_gpu_is_waited_for_as_often_whatever_the_steps(strategy, with_frames) -> None:
    waits = []
    fusion = STILL.model_copy(update={"strategy": strategy, "dropout": 0.3})
    run("cuda", fusion, with_frames, epochs=1)  # what is done once in a process
    for batch_size in (100, 25):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                balanced = {"auxiliary_loss": 0.5, "gradient_modulation": 0.3, "weight_averaging": 0.9}
                run("cuda", fusion, with_frames, epochs=2, batch_size=batch_size, **balanced)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        waits.append(len([warning for warning in said if "called a synchronizing" in str(warning.message)]))
    assert waits[0] == waits[1] > 0


@gpu
@needs_cuda
@pytest.mark.parametrize("after", [1, 3])
def test_an_interrupted_training_goes_on_there(after, tmp_path, monkeypatch) -> None:
    data, targets = segments()
    fusion = STILL.model_copy(update={"dropout": 0.3})
    training = TRAINING.model_copy(update={"device": "cuda", "weight_averaging": 0.9})

    def trained(checkpoint: Checkpoint | None) -> Trained:
        return train(data, targets, TRAIN, VAL, fusion, training, 0, checkpoint)

    expected = trained(None)
    saved = dies_after_saving(after, monkeypatch)
    with pytest.raises(Killed):
        trained(Checkpoint(tmp_path / "a.pt", "key"))
    found = trained(Checkpoint(tmp_path / "a.pt", "key"))
    assert saved[: after + 1] == [*range(1, after + 2)] and len(found.history) == len(expected.history)
    same_losses(found, expected, rtol=1e-5)
    for name, weight in expected.model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], weight, rtol=1e-4, atol=1e-6)


@gpu
@needs_cuda
@WITH_OR_WITHOUT_FRAMES
@pytest.mark.parametrize("strategy", ["late", "early"])
def test_what_is_streamed_there_is_learned_as_in_memory(store, strategy, with_frames) -> None:
    in_memory = train_on(store, "cpu", stream=False, with_frames=with_frames, strategy=strategy)
    for stream in (True, False):
        same_losses(train_on(store, "cuda", stream, with_frames, strategy), in_memory)


@gpu
@needs_cuda
@pytest.mark.usefixtures("from_source")
def test_a_run_from_a_gpu_predicts_on_the_cpu(project, run_cli) -> None:
    """From Python, and as a command; in memory, and streamed."""
    path: Path = project / "features.zarr"
    with new_tree(path) as tree:
        build(tree)
    few = {"training": {"device": "cuda", "epochs": 3, "seeds": [0], "bootstrap": 100}}
    made = library.fit(path, config=few, name="api", baselines=False, report=PLAIN)
    assert json.loads((made.folder / "environment.json").read_text("utf-8"))["device"]["type"] == "cuda"
    quick = ("--no-baselines", "--plain-report", "--seeds", "1")
    overrides = (*quick, "--set", "training.epochs=3", "--set", "training.bootstrap=100")
    run_cli("fit", "--device", "cuda", "--name", "typed", *overrides)
    run_cli("fit", "--device", "auto", "--stream", "--fusion", "early", "--name", "streamed", *overrides)
    for name in ("api", "typed", "streamed"):
        weights = load_file(project / "runs" / name / "model.safetensors")
        assert weights and all(weight.device.type == "cpu" for weight in weights.values())
        table = library.predict(project / "runs" / name, path)
        assert table.num_rows == N
    ours, theirs = (load_file(project / "runs" / name / "model.safetensors") for name in ("api", "typed"))
    for name, weight in ours.items():
        torch.testing.assert_close(theirs[name], weight, rtol=1e-3, atol=1e-4)
