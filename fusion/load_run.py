"""A run's model built again from its folder, and the features and labels of a store in the terms it was trained in.

The folder says what the model needs: `config.yaml` the targets' columns, `metrics.json` the order of the slots,
`environment.json` the features' fingerprints, and the metadata of `model.safetensors` the rest. What does not fit is
refused: vectors of another encoder would pass through the model, and mean nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from featurize.config import TargetConfig, TargetKind
from featurize.errors import CodeNotAllowed, ConfigError
from featurize.trained import broken_weight
from featurize.user_code import code_facts, is_code
from fusion.config import Config, FusionConfig, load_config
from fusion.data import SegmentData, StoredSegments, load_segments
from fusion.evaluate_command import EVALUATION
from fusion.model import FusionModel
from fusion.modules import build_fusion, fusion_class
from fusion.run_json import read_run_json
from fusion.runs import open_run
from fusion.streaming import StreamedSegments, open_segments
from fusion.targets import Target, load_targets
from fusion.train import infer
from stores import open_store
from stores.errors import TriadError
from stores.store import Part, Store


@dataclass(frozen=True)
class LoadedRun:
    """features and widths are by slot, in slot order. targets know classes, mean and scale, but no segments' labels.

    frame_slots: those of which the model reads frames.
    """

    folder: Path
    config: Config
    metrics: Mapping[str, Any]  # metrics.json
    environment: Mapping[str, Any]  # environment.json
    features: Mapping[str, str]
    widths: Mapping[str, int]
    frame_slots: tuple[str, ...]
    targets: list[Target]
    model: FusionModel

    @property
    def name(self) -> str:
        """As `cli fit` called it."""
        return str(self.metrics["run"])

    @property
    def slots(self) -> tuple[str, ...]:
        """In the model's order."""
        return tuple(self.features)

    def encoder_of(self, slot: str) -> str:
        """As `cli featurize --encoder` takes it: one that was tuned stands with its run."""
        tuned = slot in self.metrics.get("finetuning", {}).get("slots", {})
        return f"{self.name}:{slot}" if tuned else self.features[slot].partition("/")[2]

    @property
    def split_name(self) -> str:
        """The split that the model was trained on: of folds, the first."""
        return str(self.metrics["model"]["split"])

    def logits(self, data: StoredSegments, rows: np.ndarray, present: Tensor | None = None) -> list[Tensor]:
        """(n, K) for each target. present: bool (n, M) in place of what is there, to hide slots from the model."""
        return infer(self.model, data, rows, present)[0]

    def predict(self, data: StoredSegments, rows: np.ndarray, present: Tensor | None = None) -> list[np.ndarray]:
        """float64 (n, K) for each target, in its own terms."""
        logits = self.logits(data, rows, present)
        return [target.predict(out) for target, out in zip(self.targets, logits, strict=True)]


class _TargetFacts(BaseModel):
    name: str
    kind: TargetKind
    classes: list[str]
    mean: float
    scale: float


class _ModelFacts(BaseModel):
    """The metadata of `model.safetensors`."""

    features: dict[str, str]
    widths: dict[str, Annotated[int, Field(gt=0, le=1_000_000)]]
    frames: list[str] = []
    fusion: dict[str, Any]
    code: dict[str, str] | None = None  # of a fusion that did not come with this package
    targets: list[_TargetFacts] = Field(min_length=1)


def load_run(run: Path) -> LoadedRun:
    """The run in a folder, or of a name in `runs/`. Raises `TriadError` where its model cannot be built again."""
    folder = open_run(run)
    metrics = read_run_json(folder / "metrics.json", ("run", "slots", "model", "n_segments"))
    environment = read_run_json(folder / "environment.json", ("store", "features", "splits", "packages"))
    facts, weights = _read_model(folder / "model.safetensors")
    config = load_config(folder / "config.yaml")
    slots = list(metrics["slots"])  # the model's own metadata is sorted by name
    if sorted(slots) != sorted(facts.widths) or sorted(slots) != sorted(facts.features):
        raise TriadError(
            f"{folder}: metrics.json names the slots {', '.join(slots)}, its model {', '.join(facts.widths)}. "
            "Train the run again with cli fit."
        )
    widths = {slot: facts.widths[slot] for slot in slots}
    nobody = torch.zeros(0)
    targets = [
        Target(t.name, t.kind, t.classes, nobody, nobody.bool(), mean=t.mean, scale=t.scale) for t in facts.targets
    ]
    _check_code(folder, facts)
    try:
        fusion = FusionConfig.model_validate(facts.fusion)
        module = build_fusion(
            fusion.strategy, widths, fusion.hidden_dim, fusion.dropout, fusion.attention_heads, fusion.options
        )
        model = FusionModel(module, widths, targets, fusion.dropout, facts.frames)
        model.load_state_dict(weights)
    except (TriadError, ValueError, RuntimeError) as error:
        then = environment["packages"].get("triad-fusion", "of an unknown version")
        said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        reason = " ".join(said.split()[:40])
        raise TriadError(
            f"{folder}: its weights do not fit the {facts.fusion.get('strategy')} fusion of this version; "
            f"triad-fusion {then} wrote them ({reason}).\nTrain it again: cli fit --config {folder / 'config.yaml'}"
        ) from error
    if broken := broken_weight(model):
        raise TriadError(
            f"{folder / 'model.safetensors'}: {broken} holds NaN or infinity. Train the run again with cli fit."
        )
    features = {slot: facts.features[slot] for slot in slots}
    return LoadedRun(folder, config, metrics, environment, features, widths, model.frame_slots, targets, model.eval())


def _check_code(folder: Path, facts: _ModelFacts) -> None:
    """Raise `TriadError` where its fusion is code that its user has not named, or is no longer what it was."""
    name = str(facts.fusion.get("strategy"))
    if not is_code(name) and not facts.code:
        return
    try:
        now = code_facts(fusion_class(name))
    except CodeNotAllowed as error:
        raise CodeNotAllowed(f"{folder}: {error}") from error
    then = (facts.code or {}).get("sha256", "")
    if now is None or now["sha256"] != then:
        raise TriadError(
            f"{folder}: its fusion {name} is not what it was in training (SHA-256 {(now or {}).get('sha256', '')[:8]}, "
            f"then {then[:8]}).\nPut its file back as it was, or train again with cli fit."
        )


def load_features(run: LoadedRun, store: Store, *, allow_pending: bool = False) -> SegmentData:
    """What the run's slots are in a store. Raises `TriadError` where one is missing there, or another encoder's."""
    check_features(run, store, run.slots)
    return load_segments(store, run.features, with_frames=bool(run.frame_slots), allow_pending=allow_pending)


def open_features(run: LoadedRun, store: Store, *, allow_pending: bool = False) -> SegmentData | StreamedSegments:
    """The same, streamed where they are too large for memory, or the run's configuration says so."""
    check_features(run, store, run.slots)
    stream, with_frames = run.config.training.stream, bool(run.frame_slots)
    return open_segments(store, run.features, stream, with_frames=with_frames, allow_pending=allow_pending)


def check_features(run: LoadedRun, store: Store, slots: Iterable[str]) -> None:
    """Raise `TriadError` where a store lacks what these slots of the run need, or has another encoder's."""
    stored = store.features()
    for slot in slots:
        name = run.features[slot]
        if name not in stored:
            listed = ", ".join(stored) or "none"
            raise TriadError(
                f"Run {run.name} needs {name}; {store.tree.location} has {listed}.\n"
                f"Make it as the run's was, with cli featurize --encoder {run.encoder_of(slot)} or cli import."
            )
        feature = store.feature(name)
        if feature.width != run.widths[slot]:
            raise TriadError(
                f"{store.tree.location}: {name} has {feature.width} columns; run {run.name} was trained on "
                f"{run.widths[slot]}.\nFeaturize it as it was, or train again with cli fit."
            )
        then = str(run.environment["features"][name])
        if feature.fingerprint != then:
            raise TriadError(
                f"{store.tree.location}: {name} is by another encoder, or another configuration of it, than run "
                f"{run.name} was trained on\n(fingerprint {feature.fingerprint[:8]}, then {then[:8]}). "
                "Featurize it as it was, or train again with cli fit."
            )
        if slot in run.frame_slots and not feature.has_frames:
            raise TriadError(
                f"{store.tree.location}: {name} has no frames, which run {run.name} reads.\n"
                f"Write them: cli featurize --encoder {name.partition('/')[2]} --frames 16 --replace"
            )


def load_labels(run: LoadedRun, store: Store) -> tuple[list[Target], list[str]]:
    """The run's targets with a store's labels, and notes on labels that the run does not know.

    Raises `ConfigError` where the store lacks a label, or has it as something else.
    """
    configured = {config.name: config for config in run.config.model.targets}
    targets, notes = [], []
    for learned in run.targets:
        config = configured.get(learned.name, TargetConfig(name=learned.name))
        config = config.model_copy(update={"kind": learned.kind})
        (found,) = load_targets(store, [config])
        fixed_width = config.columns is not None or store.label(config.column or config.name).ndim == 2
        truth, known = _in_terms_of(learned, found, fixed_width)
        unknown = [name for name in found.classes if name not in learned.classes]
        if unknown and learned.kind != "regression":
            left_out = int((found.known & ~known).sum())
            what = f"{left_out:,} segments with them are not scored" if left_out else "they are not scored"
            notes.append(f"{learned.name}: run {run.name} has not learned {', '.join(unknown[:3])}; {what}.")
        targets.append(
            replace(found, classes=learned.classes, truth=truth, known=known, mean=learned.mean, scale=learned.scale)
        )
    return targets, notes


def load_temperatures(run: LoadedRun) -> dict[str, float]:
    """By target, what `cli evaluate` divided logits by, where a best one was found. Raises `ConfigError` on none."""
    path = run.folder / EVALUATION
    try:
        targets = json.loads(path.read_text("utf-8"))["targets"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"Run {run.name} has no temperatures yet. Find them: cli evaluate {run.folder}") from error
    found = {name: target["calibration"].get("temperature") for name, target in targets.items()}
    fitted = {name: float(facts["value"]) for name, facts in found.items() if facts and not facts["at_limit"]}
    if not fitted:
        raise ConfigError(
            f"{path} has a temperature for none of the targets: there is one for classes and shares, where validation "
            "has mistakes and hits enough. Leave --calibrated away."
        )
    return fitted


def own_store(run: LoadedRun, store: Store) -> Store | None:
    """This store, or else the one the run names, where it still has the split that the model was trained on.

    Only there is it known what the run has learned from. A store that has grown since is still the run's own.
    """
    if _has_split_of(run, store):
        return store
    try:
        named = open_store(run.environment["store"])
    except TriadError:
        return None
    return named if _has_split_of(run, named) else None


def _has_split_of(run: LoadedRun, store: Store) -> bool:
    if run.split_name not in store.splits():
        return False
    split = store.split(run.split_name)
    then, since = np.split(split.parts, [run.metrics["n_segments"]])
    digest = hashlib.sha256(then.tobytes()).hexdigest()
    if digest != run.environment["splits"][run.split_name] or (since != Part.LEFT_OUT).any():
        return False
    # another data set may be dealt alike; it does not have the segments that the run predicted
    path = run.folder / "predictions.parquet"
    try:
        table = pq.read_table(path, columns=["segment_id", "split"])
    except (OSError, ValueError) as error:
        raise TriadError(f"{path} cannot be read ({error}). Train the run again with cli fit.") from error
    predicted = table.filter(pc.equal(table["split"], run.split_name))["segment_id"].to_pylist()
    return set(predicted) == set(store.ids[split.rows(Part.TEST)].tolist())


def _in_terms_of(learned: Target, found: Target, fixed_width: bool) -> tuple[Tensor, Tensor]:
    """truth and known with the classes that the run has learned, in its order."""
    if learned.kind == "regression" or found.classes == learned.classes:
        return found.truth, found.known
    if learned.kind == "categorical":
        number = {name: index for index, name in enumerate(learned.classes)}
        numbers = torch.tensor([number.get(name, -1) for name in found.classes])
        truth = numbers[found.truth] if len(numbers) else found.truth
        return truth.clamp(min=0), found.known & (truth >= 0)
    if fixed_width:
        raise ConfigError(
            f"Target {learned.name}: the run has learned {len(learned.classes)} shares or labels "
            f"({', '.join(learned.classes[:3])}, …); this store has {len(found.classes)}."
        )
    truth = torch.zeros(len(found.truth), learned.n_outputs)
    for column, name in enumerate(learned.classes):
        if name in found.classes:
            truth[:, column] = found.truth[:, found.classes.index(name)]
    return truth, found.known


def _read_model(path: Path) -> tuple[_ModelFacts, dict[str, Tensor]]:
    """What `fusion.runs.write_model` wrote: facts and weights."""
    try:
        with safe_open(path, "pt") as file:
            facts = _ModelFacts.model_validate_json(file.metadata()["triad_fusion"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "its metadata"
        raise TriadError(
            f"{path} holds no model of a run ({where}: {first['msg']}). Train the run again with cli fit."
        ) from error
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise TriadError(f"{path} holds no model of a run ({error}). Train the run again with cli fit.") from error
    return facts, weights
