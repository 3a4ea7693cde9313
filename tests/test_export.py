"""`cli export --onnx`: the file says what the run's model says, to a runtime that knows nothing of either."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from featurize.errors import ConfigError
from fusion import export_onnx as module
from fusion.config import Config
from fusion.export_onnx import TOLERANCE, Exported, export_onnx
from fusion.load_run import LoadedRun
from fusion.model import FusionModel, Standardize
from fusion.modules import FUSIONS, build_fusion
from fusion.modules.base import Frames, Fused, MultimodalFusion
from fusion.modules.late import LateFusion
from fusion.targets import Target
from stores.errors import TriadError

WIDTHS = {"text": 5, "my.midi": 4}  # a slot may be called what one likes; more of them take longer to export
NOBODY = torch.zeros(0)
TARGETS = [
    Target("mood", "categorical", ["angry", "calm", "sad"], NOBODY, NOBODY.bool()),
    Target("tags", "multi_label", ["live", "=1+1"], NOBODY, NOBODY.bool()),
    Target("year", "regression", ["year"], NOBODY, NOBODY.bool(), mean=1990.0, scale=12.0),
    Target("colour", "soft_distribution", ["red", "green", "blue", "ünï"], NOBODY, NOBODY.bool()),
]
TEMPERATURES = {"mood": 2.0}
N_FRAMES = 6


OPTIONS = {"early": {"n_layers": 1}, "bottleneck": {"n_layers": 1}}  # more take longer to export, and are no different


def new_run(strategy: str, frame_slots: tuple[str, ...] = (), fusion: MultimodalFusion | None = None) -> LoadedRun:
    """A run of a model that has random weights everywhere: nothing in it is zero by chance of its start."""
    torch.manual_seed(0)
    fusion = fusion or build_fusion(strategy, WIDTHS, 16, 0.3, 4, OPTIONS.get(strategy))
    model = FusionModel(fusion, WIDTHS, TARGETS, 0.3, frame_slots).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
        for part in model.modules():
            if isinstance(part, Standardize):
                part.mean.copy_(3 * torch.randn_like(part.mean))
                part.scale.copy_(torch.rand_like(part.scale) + 0.5)
                part.scale[0] = torch.inf  # a column that never varied
    features = {slot: f"{slot}/stats" for slot in WIDTHS}
    environment = {"features": {name: f"of {name}" for name in features.values()}, "packages": {"triad-fusion": "0"}}
    metrics = {"run": "it", "fusion": strategy}
    return LoadedRun(Path(), Config(), metrics, environment, features, WIDTHS, model.frame_slots, TARGETS, model)


def some_inputs(run: LoadedRun, size: int, pattern: tuple[bool, ...], seed: int = 0) -> dict[str, np.ndarray]:
    """NaN wherever nobody may look."""
    draw = np.random.default_rng(seed)
    inputs = {"present": np.tile(np.array(pattern), (size, 1))}
    for slot, here in zip(run.slots, pattern, strict=True):
        inputs[slot] = draw.normal(3, 4, (size, WIDTHS[slot])).astype(np.float32) if here else nan(size, WIDTHS[slot])
        if slot in run.frame_slots:
            n_frames = draw.integers(0, N_FRAMES + 1, size)
            real = here & (np.arange(N_FRAMES) < n_frames[:, None])
            values = draw.normal(3, 4, (size, N_FRAMES, WIDTHS[slot])).astype(np.float32)
            inputs[f"{slot}.frames"] = np.where(real[:, :, None], values, np.float32(np.nan))
            inputs[f"{slot}.n_frames"] = n_frames
    return inputs


def nan(*shape: int) -> np.ndarray:
    return np.full(shape, np.nan, np.float32)


def by_the_model(run: LoadedRun, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    features: dict = {}
    for slot in run.slots:
        features[slot] = torch.from_numpy(inputs[slot])
        if slot in run.frame_slots:
            real = np.arange(N_FRAMES) < inputs[f"{slot}.n_frames"][:, None]
            values = torch.from_numpy(inputs[f"{slot}.frames"])
            features[slot] = Frames(features[slot], values, torch.from_numpy(real))
    with torch.no_grad():
        logits, weights = run.model(features, torch.from_numpy(inputs["present"]))
    outputs = {}
    for target, out in zip(run.targets, logits, strict=True):
        output = target.predict(out.double() / TEMPERATURES.get(target.name, 1.0))
        is_value = target.kind == "regression"
        outputs[f"{target.name}.{'predicted' if is_value else 'p'}"] = output[:, 0] if is_value else output
    return outputs if weights is None else {**outputs, "weight": weights.numpy()}


def check_metadata(run: LoadedRun, session: onnxruntime.InferenceSession, exported: Exported) -> None:
    facts = json.loads(session.get_modelmeta().custom_metadata_map["triad_fusion"])
    frames = "my.midi" in run.frame_slots
    assert facts["run"] == "it" and facts["slots"] == {
        "text": {"feature": "text/stats", "fingerprint": "of text/stats", "width": 5, "frames": False},
        "my.midi": {"feature": "my.midi/stats", "fingerprint": "of my.midi/stats", "width": 4, "frames": frames},
    }
    assert list(facts["slots"]) == list(run.slots)
    assert {name: (target["kind"], target["classes"]) for name, target in facts["targets"].items()} == {
        target.name: (target.kind, target.classes) for target in TARGETS
    }
    outputs = [output.name for output in session.get_outputs()]
    assert [target["output"] for target in facts["targets"].values()] == outputs[: len(TARGETS)]
    assert exported.inputs["my.midi"] == "float (batch, 4)" and exported.outputs["year.predicted"] == "float (batch)"


EVERY = [(name, ("my.midi",) if fusion.reads_frames else ()) for name, fusion in FUSIONS.items()]  # a text has none


@pytest.mark.parametrize(("strategy", "frame_slots"), EVERY, ids=lambda value: str(value))
def test_the_file_says_what_the_model_says(strategy, frame_slots, tmp_path):
    run = new_run(strategy, frame_slots)
    exported = export_onnx(run, tmp_path / "it.onnx", TEMPERATURES)
    assert exported.difference <= TOLERANCE and [path.name for path in tmp_path.iterdir()] == ["it.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "it.onnx")
    check_metadata(run, session, exported)
    names = [output.name for output in session.get_outputs()]
    for size, pattern in product((1, 257), product((True, False), repeat=len(WIDTHS))):
        inputs = some_inputs(run, size, pattern, seed=size)
        assert set(inputs) == {value.name for value in session.get_inputs()}
        found = dict(zip(names, session.run(None, inputs), strict=True))
        expected = by_the_model(run, inputs)
        assert list(found) == list(expected)
        for name in expected:
            assert found[name].dtype == np.float32 and found[name].shape == expected[name].shape
            scale = np.maximum(np.abs(expected[name]), 12.0) if name == "year.predicted" else 1.0
            assert (np.abs(found[name] - expected[name]) / scale).max() <= TOLERANCE, (name, size, pattern)


class TwoFacedFusion(LateFusion):
    """Says something else while it is exported."""

    def fuse(self, features, present) -> Fused:
        fused = super().fuse(features, present)
        return replace(fused, vector=fused.vector + 0.01) if torch.compiler.is_compiling() else fused


class InexportableFusion(LateFusion):
    """Looks at numbers to decide what to do."""

    def fuse(self, features, present) -> Fused:
        fused = super().fuse(features, present)
        return fused if float(fused.vector.sum()) > 0 else replace(fused, vector=-fused.vector)


@pytest.mark.parametrize(
    ("fusion", "message"),
    [
        (TwoFacedFusion, "would differ from run it by .*Nothing was written"),
        (InexportableFusion, "cannot export the late"),
    ],
)
def test_what_is_not_the_same_is_not_written(fusion, message, tmp_path):
    with pytest.raises(TriadError, match=message) as caught:
        export_onnx(new_run("late", fusion=fusion(WIDTHS, 16)), tmp_path / "it.onnx")
    assert len(str(caught.value).splitlines()) == 1 and list(tmp_path.iterdir()) == []


def test_names_that_would_collide_are_refused(tmp_path):
    widths = {"text": 5, "present": 4}
    model = FusionModel(build_fusion("late", widths, 16, 0.3), widths, TARGETS, 0.3)
    run = replace(new_run("late"), model=model, widths=widths, features={slot: f"{slot}/x" for slot in widths})
    with pytest.raises(ConfigError, match="two things 'present': its inputs are text, present, present, its outputs"):
        export_onnx(run, tmp_path / "it.onnx")


def test_without_the_packages_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PACKAGES", ("onnx", "onnxruntime", "onnxscript_that_nobody_has"))
    with pytest.raises(ConfigError, match=r"onnxscript_that_nobody_has is not installed.*triad-fusion\[onnx\]"):
        export_onnx(new_run("late"), tmp_path / "it.onnx")
