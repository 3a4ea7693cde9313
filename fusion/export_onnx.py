"""A run's model as one ONNX file, checked against the original before it has its name.

Inputs, `batch` rows each:

    <slot>              float32 (batch, D)      what the slot's encoder gives; of a missing one, anything
    present             bool (batch, M)         columns in the order of the slots
    <slot>.frames       float32 (batch, T, D)   only of slots whose frames the model reads, with
    <slot>.n_frames     int64 (batch,)          how many of them are real, the first ones

Outputs, in the targets' own terms, as columns of `fusion.predictor` are called:

    <target>.p          float32 (batch, K)      probabilities or shares, as `classes` of the metadata names them
    <target>.predicted  float32 (batch,)        of a regression, in the label's units
    weight              float32 (batch, M)      how much each slot counted, where the fusion says so

The file's metadata `triad_fusion` is JSON: the run, slots with feature, fingerprint and width, targets with kind and
classes.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from featurize.errors import ConfigError
from fusion.load_run import LoadedRun
from fusion.model import Standardize
from fusion.modules.base import Frames
from stores.errors import TriadError

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
TOLERANCE = 1e-5
BATCHES = (1, 257)  # checked; 257 is no multiple of anything that a kernel may like
N_FRAMES = 5  # of each slot that has frames, in what is checked
PRESENT, WEIGHT = "present", "weight"


@dataclass(frozen=True)
class Exported:
    """inputs, outputs: type and shape by name, as text. difference: the largest from the run's model.

    It is absolute of probabilities and weights; of a regression, relative to the training labels' deviation, or to the
    value where that is larger.
    """

    inputs: dict[str, str]
    outputs: dict[str, str]
    difference: float


def export_onnx(run: LoadedRun, path: Path, temperatures: Mapping[str, float] | None = None) -> Exported:
    """Write `path`, once it is known to say what the run's model says.

    temperatures: by target, what logits are divided by. Raises `ConfigError` where packages are missing or names
    collide, `TriadError` where the model cannot be exported or the file does not say the same; nothing is written then.
    """
    onnx, runtime = _packages()
    model = _Exported(run, temperatures or {})
    proto = _export(model)
    onnx.helper.set_model_props(proto, {"triad_fusion": json.dumps(_facts(run, model), ensure_ascii=False)})
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(proto.SerializeToString())
        session = _session(runtime, partial)
        difference = _largest_difference(session, model)
        if not difference <= TOLERANCE:
            raise TriadError(
                f"The ONNX file would differ from run {run.name} by {difference:.1e}; {TOLERANCE:g} is allowed. "
                "Nothing was written."
            )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return Exported(_shapes(session.get_inputs()), _shapes(session.get_outputs()), difference)


class _Exported(nn.Module):
    """The model with inputs in a row, and outputs in the targets' own terms."""

    def __init__(self, run: LoadedRun, temperatures: Mapping[str, float]):
        super().__init__()
        self.model = run.model
        self.targets = run.targets
        self.temperatures = [temperatures.get(target.name, 1.0) for target in run.targets]
        frames = [f"{slot}.{what}" for slot in run.frame_slots for what in ("frames", "n_frames")]
        self.input_names = [*run.slots, PRESENT, *frames]
        self.output_names = [f"{t.name}.{'predicted' if t.kind == 'regression' else 'p'}" for t in run.targets]
        _check_names(self.input_names, [*self.output_names, WEIGHT])
        with torch.no_grad():
            if len(self(*self.some_inputs(3))) > len(run.targets):
                self.output_names.append(WEIGHT)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.input_names, inputs, strict=True))
        features: dict[str, Tensor | Frames] = {slot: given[slot] for slot in self.model.slots}
        for slot in self.model.frame_slots:
            values, n_frames = given[f"{slot}.frames"], given[f"{slot}.n_frames"]
            steps = torch.arange(values.shape[1], device=values.device)
            features[slot] = Frames(given[slot], values, steps < n_frames[:, None])
        logits, weights = self.model(features, given[PRESENT])
        outputs = []
        for target, of_target, temperature in zip(self.targets, logits, self.temperatures, strict=True):
            output = target.in_own_terms(of_target / temperature)
            outputs.append(output[:, 0] if target.kind == "regression" else output)
        return (*outputs, *([] if weights is None else [weights]))

    def some_inputs(self, size: int, seed: int = 0) -> list[Tensor]:
        """Vectors as training had them, everything present, in the order of `input_names`."""
        draw = torch.Generator().manual_seed(seed)
        found: dict[str, Tensor] = {PRESENT: torch.ones(size, len(self.model.slots), dtype=torch.bool)}
        for index, slot in enumerate(self.model.slots):
            key = f"slot_{index}"
            found[slot] = _drawn(self.model.standardize[key], (size,), draw)
            if slot in self.model.frame_slots:
                found[f"{slot}.frames"] = _drawn(self.model.standardize_frames[key], (size, N_FRAMES), draw)
                found[f"{slot}.n_frames"] = torch.randint(N_FRAMES + 1, (size,), generator=draw)
        return [found[name] for name in self.input_names]


def _drawn(standardize: nn.Module, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    """Normal numbers with the training split's mean and scale; (*shape, D)."""
    assert isinstance(standardize, Standardize)
    scale = standardize.scale.nan_to_num(posinf=0.0)  # a column that never varies
    noise = torch.randn(*shape, len(scale), generator=draw)
    return standardize.mean + scale * noise


def _packages() -> tuple[Any, Any]:
    """onnx and onnxruntime."""
    try:
        onnx, runtime, _ = (import_module(name) for name in PACKAGES)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"An ONNX file needs {', '.join(PACKAGES)}; {error.name} is not installed. Try pip install "
            "'triad-fusion[onnx]'"
        ) from error
    return onnx, runtime


def _check_names(inputs: Sequence[str], outputs: Sequence[str]) -> None:
    names = [*inputs, *outputs]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"An ONNX file would call two things {name!r}: its inputs are {', '.join(inputs)}, its outputs "
                f"{', '.join(outputs)}. Train with another name for the slot or the target."
            )


def _export(model: _Exported) -> Any:
    """The ONNX protobuf. Raises `TriadError` where torch cannot."""
    batch = torch.export.Dim("batch", min=1)
    shapes: list[dict[int, Any]] = []
    for name in model.input_names:
        slot, _, what = name.rpartition(".")
        with_frames = what == "frames" and slot in model.model.frame_slots
        time = {1: torch.export.Dim(f"time_{model.model.slots.index(slot)}", min=1)} if with_frames else {}
        shapes.append({0: batch, **time})
    try:
        with _quiet():
            program = torch.onnx.export(
                model.eval(),
                tuple(model.some_inputs(3)),
                input_names=model.input_names,
                output_names=model.output_names,
                dynamic_shapes=(tuple(shapes),),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # torch raises a dozen kinds, with pages of advice about its own code
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise TriadError(
            f"torch {torch.__version__} cannot export the {model.model.fusion.name} fusion to ONNX: {reason}"
        ) from error
    assert program is not None
    return program.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """What exporters say about themselves while they work: the file is checked afterwards."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _facts(run: LoadedRun, model: _Exported) -> dict[str, Any]:
    return {
        "run": run.name,
        "fusion": run.metrics["fusion"],
        "slots": {
            slot: {
                "feature": feature,
                "fingerprint": run.environment["features"][feature],
                "width": run.widths[slot],
                "frames": slot in run.frame_slots,
            }
            for slot, feature in run.features.items()
        },
        "targets": {
            target.name: {"kind": target.kind, "classes": target.classes, "output": output, "temperature": temperature}
            for target, output, temperature in zip(run.targets, model.output_names, model.temperatures, strict=False)
        },
        "triad_fusion": run.environment["packages"]["triad-fusion"],
    }


def _session(runtime: Any, path: Path) -> Any:
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors
    return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _shapes(values: Sequence[Any]) -> dict[str, str]:
    """`float (batch, 512)` by name."""
    return {
        value.name: f"{value.type.removeprefix('tensor(').removesuffix(')')} ({', '.join(map(str, value.shape))})"
        for value in values
    }


def _largest_difference(session: Any, model: _Exported) -> float:
    """Over batches of one and of many, every presence pattern, and NaN in whatever is not there."""
    largest = 0.0
    for size in BATCHES:
        for number, pattern in enumerate(product((True, False), repeat=len(model.model.slots))):
            inputs = _with_holes(model, model.some_inputs(size, seed=number), pattern)
            try:
                found = session.run(model.output_names, {name: array.numpy() for name, array in inputs.items()})
            except Exception as error:  # of onnxruntime, which has no common root for them
                raise TriadError(f"onnxruntime cannot run the exported file: {error}. Nothing was written.") from error
            with torch.inference_mode():
                expected = model(*inputs.values())
            for output, (of_file, of_model) in enumerate(zip(found, expected, strict=True)):
                is_value = output < len(model.targets) and model.targets[output].kind == "regression"
                scale = model.targets[output].scale if is_value else None
                largest = max(largest, _difference(of_file, of_model.numpy(), scale))
    return largest


def _with_holes(model: _Exported, inputs: list[Tensor], pattern: tuple[bool, ...]) -> dict[str, Tensor]:
    """The inputs by name with these slots present, and NaN where nobody may look."""
    found = dict(zip(model.input_names, inputs, strict=True))
    found[PRESENT] = torch.tensor(pattern).expand(len(inputs[0]), -1).clone()
    for slot, here in zip(model.model.slots, pattern, strict=True):
        if not here:
            found[slot] = torch.full_like(found[slot], torch.nan)
        if slot in model.model.frame_slots:
            real = (torch.arange(N_FRAMES) < found[f"{slot}.n_frames"][:, None]) & here
            found[f"{slot}.frames"] = torch.where(real[:, :, None], found[f"{slot}.frames"], torch.nan)
    return found


def _difference(found: np.ndarray, expected: np.ndarray, scale: float | None) -> float:
    """Infinite where shapes differ, or where anything is not finite."""
    if found.shape != expected.shape or found.dtype != expected.dtype or not np.isfinite([found, expected]).all():
        return np.inf
    difference = np.abs(found.astype(np.float64) - expected)
    return float((difference if scale is None else difference / np.maximum(np.abs(expected), scale)).max(initial=0.0))
