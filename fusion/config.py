"""The whole configuration: what `featurize/config.py` knows, with training and fusion added; and how it is read.

Priority, rising: defaults, the YAML file, `--set key=value`, a command's own options.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import Field, field_validator

from featurize import config_reading
from featurize.bounded_yaml import read_yaml
from featurize.config import FeaturizeConfig, ModelEncodersConfig, Section, Seed, Width
from featurize.config_reading import file_in_force, read_file
from featurize.errors import ConfigError

FUSION_NAMES = ("late", "early", "cross_attention", "gated", "bottleneck", "low_rank")  # as in `fusion.modules`

# Far beyond use: what is larger is a slip, and would fill the memory before it failed
MAX_BATCH = 10_000_000
MAX_EPOCHS = 1_000_000

Stream = bool | Literal["auto"]
LR = "Learning rate."
WEIGHT_DECAY = "Pull towards zero, apart from the gradient (AdamW)."
BATCH = "Segments a step."


class FusionConfig(Section):
    """How slots become one vector. The defaults are the ones of `docs/experiments.md`."""

    strategy: str = Field("late", description=", ".join(FUSION_NAMES[:-1]) + f" or {FUSION_NAMES[-1]}.")
    hidden_dim: Width = Field(128, description="Width of the fused vector.")
    attention_heads: int = Field(
        4, gt=0, le=1024, description="A divisor of hidden_dim; late, gated and low_rank have none."
    )
    dropout: float = Field(0.3, ge=0, lt=1, description="In the fusion and before the heads.")
    features: dict[str, str] = Field(
        default_factory=dict, description="Slot to feature name, e.g. audio: clap; each slot's encoder where empty."
    )
    slots: list[str] | None = Field(None, description="Which slots to use; all that have a feature where null.")
    options: dict[str, Any] = Field(default_factory=dict, description="Further options of this strategy.")


class SlotTrainingConfig(Section):
    """What one slot's own weights, its projection or encoder, have otherwise than the rest."""

    lr: float | None = Field(None, gt=0, description=LR)
    weight_decay: float | None = Field(None, ge=0, description=WEIGHT_DECAY)
    schedule: Literal["cosine", "constant"] | None = Field(None, description="Of its learning rate.")
    warmup: float | None = Field(None, ge=0, lt=1, description="Share of all steps in which its learning rate rises.")
    clip: float | None = Field(None, gt=0, description="Gradient norm of this slot's weights by themselves.")


class LoopConfig(Section):
    """What the one loop reads, whatever it trains; the defaults stand in its kinds."""

    section: ClassVar[str]  # where a user sets it

    epochs: int
    patience: int
    batch_size: int
    lr: float
    weight_decay: float
    adam_epsilon: float
    micro_batch_size: int | None = Field(
        None,
        gt=0,
        le=MAX_BATCH,
        description="So many rows go through at once, and gradients add up to those of the whole batch.",
    )
    slot_weight_decay: float | None = Field(
        None, ge=0, description="Of the weights that only one slot uses, its projection or encoder; as all where null."
    )
    weight_averaging: float = Field(
        0.0, ge=0, lt=1, description="Validated and kept is a running mean of the weights, with this decay; 0 is off."
    )
    schedule: Literal["cosine", "constant"] = Field("cosine", description="Of the learning rate, after the warm-up.")
    warmup: float = Field(0.0, ge=0, lt=1, description="Share of all steps in which the learning rate rises.")
    clip: float = Field(1.0, gt=0, description="Largest norm of a step's gradient.")
    clip_per_slot: bool = Field(False, description="Each slot's weights by themselves, and the shared ones.")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16: matrix products in bfloat16, the rest not.")
    auxiliary_loss: float = Field(0.0, ge=0, description="Weight of what each slot alone would lose; 0 is off.")
    gradient_modulation: float = Field(
        0.0, ge=0, description="How much smaller the steps of the slot that is ahead become; 0 is off, 0.3 usual."
    )
    early_stopping: str = Field("loss", min_length=1, description="Or a metric on validation: macro_f1, mood/macro_f1.")
    slots: dict[str, SlotTrainingConfig] = Field(default_factory=dict, description="Slot to what it has of its own.")
    modality_dropout: float = Field(0.0, ge=0, lt=1, description="Chance that a present slot is hidden in a step.")


class TrainingConfig(LoopConfig):
    """The training loop."""

    section = "training"

    epochs: int = Field(100, gt=0, le=MAX_EPOCHS, description="At most; early stopping usually ends it.")
    patience: int = Field(15, gt=0, description="Epochs without a better validation loss before it stops.")
    batch_size: int = Field(256, gt=0, le=MAX_BATCH, description=BATCH)
    lr: float = Field(3e-3, gt=0, description=LR)
    weight_decay: float = Field(1.0, ge=0, description=WEIGHT_DECAY)
    adam_epsilon: float = Field(
        1e-2, gt=0, description="As large as gradients are: steps shrink with them, and early stopping acts as ridge."
    )
    slot_weight_decay: float | None = Field(10.0, ge=0, description="Of the projections; as all where null.")
    weight_averaging: float = Field(
        0.99, ge=0, lt=1, description="Validated and kept is a running mean of the weights, with this decay; 0 is off."
    )
    modality_dropout: float = Field(0.3, ge=0, lt=1, description="Chance that a present slot is hidden in a step.")
    precision: Literal["auto", "fp32", "bf16"] = Field(  # type: ignore[assignment]  # train resolves it
        "auto", description="bf16: matrix products in bfloat16; auto: where the device multiplies it natively."
    )
    device: Literal["cpu", "cuda", "mps", "auto"] = Field(
        "cpu", description="Where it trains; auto: on a GPU where there is one. A CPU gives the same bits every time."
    )
    stream: Stream = Field(
        "auto", description="Read the store chunk by chunk, in shuffled order; auto: where memory is too small for it."
    )
    seeds: list[Seed] = Field(
        [0, 1, 2], min_length=1, max_length=1000, description="One training each; results are their means."
    )
    bootstrap: int = Field(2000, ge=100, le=1_000_000, description="Group resamples behind each confidence interval.")

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("expected each seed once; a repeated one trains the same model again")
        return seeds


class EncoderTrainingConfig(LoopConfig):
    """`cli train-encoder`: the same loop with raw segments, and what suits a network that learns from nothing."""

    section = "encoder_training"

    objective: Literal["labels", "masked_events"] = Field(
        "labels", description="Or no labels: MIDI tokens are hidden, and predicted from those around them."
    )
    epochs: int = Field(40, gt=0, le=MAX_EPOCHS, description="At most; early stopping usually ends it.")
    patience: int = Field(10, gt=0, description="Epochs without a better validation loss before it stops.")
    batch_size: int = Field(16, gt=0, le=MAX_BATCH, description=BATCH)
    lr: float = Field(1e-3, gt=0, description=LR)
    weight_decay: float = Field(1e-2, ge=0, description=WEIGHT_DECAY)
    adam_epsilon: float = Field(1e-8, gt=0, description="Keeps Adam from dividing by zero.")
    dropout: float = Field(0.2, ge=0, lt=1, description="Before the heads.")
    seed: Seed = Field(0, description="Of weights, order and dropout.")


class FinetuningConfig(LoopConfig):
    """`cli finetune`: the same loop from a run's head and the encoders of its features on, together."""

    section = "finetuning"

    unfreeze: list[str] | None = Field(None, description="Slots whose encoders learn; all that can where null.")
    last_layers: int | dict[str, int] | None = Field(
        None, description="So many of an encoder's last blocks learn, or slot to how many; all of it where null."
    )
    lora: int | dict[str, int] | None = Field(
        None, description="Rank of low-rank updates of the attention, learned in place of an encoder; or slot to rank."
    )
    gradient_checkpointing: bool = Field(
        False, description="Less memory, a third more time: activations are computed again for the gradient."
    )
    tolerance: float = Field(
        0.02,
        gt=0,
        description="How far logits of encoders and store may differ, beyond rounding.",
    )
    epochs: int = Field(5, gt=0, le=MAX_EPOCHS, description="At most; early stopping may end it.")
    patience: int = Field(2, gt=0, description="Epochs without a better validation loss before it stops.")
    batch_size: int = Field(16, gt=0, le=MAX_BATCH, description=BATCH)
    lr: float = Field(1e-4, gt=0, description="Of the head, of encoders that were trained here, and of LoRA's weights.")
    pretrained_lr: float = Field(2e-5, gt=0, description="Of pretrained encoders' own weights.")
    weight_decay: float = Field(1e-2, ge=0, description=WEIGHT_DECAY)
    adam_epsilon: float = Field(1e-8, gt=0, description="Keeps Adam from dividing by zero.")
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of all steps in which the learning rate rises.")
    modality_dropout: float = Field(0.2, ge=0, lt=1, description="Chance that a present slot is hidden in a step.")
    seed: Seed = Field(0, description="Of weights, order and dropout.")

    @field_validator("last_layers", "lora")
    @classmethod
    def _at_least_one(cls, value: int | dict[str, int] | None) -> int | dict[str, int] | None:
        numbers = value.values() if isinstance(value, dict) else [1 if value is None else value]
        if any(number < 1 for number in numbers):
            raise ValueError("expected at least 1, or null")
        return value


class ModelConfig(ModelEncodersConfig):
    """What is predicted, from what, and how."""

    fusion: FusionConfig = FusionConfig()


class Config(FeaturizeConfig):
    """Everything. Sections: data, split, preprocessing, model, training, encoder_training, finetuning."""

    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    encoder_training: EncoderTrainingConfig = EncoderTrainingConfig()
    finetuning: FinetuningConfig = FinetuningConfig()


def load_config(path: Path | None = None, overrides: Iterable[str] = ()) -> Config:
    """Read `path` (or `config.yaml` in this folder, where there is one) and apply `key=value` overrides.

    Raises `ConfigError` on a missing file, unreadable YAML, an unknown key (naming the nearest), or a bad value.
    """
    path = file_in_force(path)
    values = read_file(path) if path is not None else {}
    for override in overrides:
        _put(values, key_of(override), _scalar(override.partition("=")[2]), override)
    return validated(values, str(path or "the options"))


def key_of(override: str) -> str:
    """`training.lr` of `training.lr=3e-4`. Raises `ConfigError` where it has no key or no value."""
    key, equals, _ = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set takes KEY=VALUE, e.g. training.lr=3e-4, not {override!r}.")
    return key


def validated(values: Mapping[str, Any], origin: str) -> Config:
    """A `Config` from plain values. Raises `ConfigError` with one line for each mistake."""
    return config_reading.validated(values, origin, Config)


def dump_yaml(config: Config) -> str:
    """The configuration as YAML that `load_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _scalar(text: str) -> Any:
    try:
        value = read_yaml(text)
    except (yaml.YAMLError, ValueError):
        return text
    if value == text:  # YAML 1.1 takes 3e-4, without a dot, for a text; what is quoted is meant as one
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _put(values: dict[str, Any], key: str, value: Any, override: str) -> None:
    *sections, last = key.split(".")
    for section in sections:
        if values.get(section) is None:  # absent, or left empty in the file
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            raise ConfigError(f"--set {override}: {section} is a value, not a section.")
    values[last] = value
