"""Configuration of everything before the vectors; `fusion/config.py` adds training and fusion to it.

Every key has a default, an unknown key is an error, and numbers must be finite. `fusion.config.load_config` reads the
YAML file, `--set key=value` and the options of a command, in that order of rising priority.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from featurize.limits import ROW_GIB, ROW_SECONDS

Layout = Literal["auto", "folder", "split_parquet"]
Scope = Literal["song", "segment"]
TimecodeRate = Literal["23.976", "24", "25", "29.97", "29.97 drop", "30"]
TargetKind = Literal["categorical", "multi_label", "regression", "soft_distribution"]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy, torch and scikit-learn all take
Width = Annotated[int, Field(gt=0, le=65_536)]

# What a role's column is called where the configuration does not say; roles that only one layout knows stand there.
FOLDER_COLUMNS = {
    "segment_id": "segment_id",
    "group": "group",
    "track_id": "track_id",
    "text": "text",
    "text_path": "text_path",
    "audio_path": "audio_path",
    "midi_path": "midi_path",
    "start_seconds": "start_seconds",
    "end_seconds": "end_seconds",
    "audio_start_seconds": "audio_start_seconds",
    "midi_start_seconds": "midi_start_seconds",
    "has_text": "has_text",
    "has_audio": "has_audio",
    "has_midi": "has_midi",
}
SPLIT_PARQUET_COLUMNS = {
    **FOLDER_COLUMNS,
    "group": "song_id",
    "text": "lyric_text",
    "audio_path": "segment_audio_file",
    "midi_path": "midi_file",
    "audio_waveform": "audio_waveform",
    "audio_sample_rate": "audio_sample_rate",
    "midi_binary": "midi_binary",
}


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, NaN and infinity are not numbers."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True, protected_namespaces=())


class ColumnsConfig(Section):
    """Which column of the table plays which role; what is left out has the layout's own name."""

    segment_id: str | None = None
    group: str | None = None
    track_id: str | None = None
    text: str | None = None
    text_path: str | None = None
    audio_path: str | None = None
    midi_path: str | None = None
    start_seconds: str | None = None
    end_seconds: str | None = None
    audio_start_seconds: str | None = None
    midi_start_seconds: str | None = None
    has_text: str | None = None
    has_audio: str | None = None
    has_midi: str | None = None
    audio_waveform: str | None = None
    audio_sample_rate: str | None = None
    midi_binary: str | None = None

    def mapping(self, layout: Literal["folder", "split_parquet"]) -> dict[str, str]:
        """Role to column name."""
        defaults = FOLDER_COLUMNS if layout == "folder" else SPLIT_PARQUET_COLUMNS
        return {**defaults, **self.model_dump(exclude_none=True)}


class DataConfig(Section):
    """Where the raw segments are, and how to read their table."""

    path: Path | None = Field(None, description="Folder, CSV or parquet; `cli ingest PATH` names it too.")
    layout: Layout = "auto"
    columns: ColumnsConfig = ColumnsConfig()
    labels: list[str] | None = Field(None, description="Columns kept as labels; all that play no role where null.")
    audio_is: Scope | None = Field(
        None, description="Whether an audio file or blob is the whole song (cut by the times) or the segment already."
    )
    midi_is: Scope | None = Field(None, description="The same for MIDI.")
    timecode_rate: TimecodeRate | None = Field(
        None, description="Frames per second, where times are SMPTE timecodes: 24, 25, 29.97, 29.97 drop, 30, 23.976."
    )
    allow_outside_root: bool = Field(False, description="Accept media paths that leave the data folder.")

    @field_validator("timecode_rate", mode="before")
    @classmethod
    def _rate_by_name(cls, rate: Any) -> Any:
        return f"{rate:g}" if isinstance(rate, int | float) else rate


class SplitConfig(Section):
    """How segments are dealt to train, val and test."""

    name: str = Field("default", min_length=1)
    method: Literal["grouped", "random"] = Field("grouped", description="`random` cuts through songs, and leaks.")
    val: float = Field(0.15, gt=0, lt=1)
    test: float = Field(0.15, gt=0, lt=1)
    folds: int | None = Field(None, ge=3, le=1000, description="k-fold instead: each fold is test once.")
    stratify_by: str | None = Field(None, description="A label; the first target where null.")
    seed: Seed = 0

    @model_validator(mode="after")
    def _something_is_left_to_train_on(self) -> SplitConfig:
        if self.val + self.test >= 1:
            raise ValueError(
                f"val {self.val} and test {self.test} leave nothing to train on; their sum must be below 1"
            )
        return self


class TargetConfig(Section):
    """One thing to predict."""

    name: str = Field(min_length=1)
    column: str | None = Field(None, description="The label column; the target's name where null.")
    columns: list[str] | None = Field(None, description="Several numeric columns that form one soft distribution.")
    kind: TargetKind | None = Field(None, description="Inferred from the label where null.")
    metric: str | None = Field(None, description="The headline metric; each kind has a default.")
    loss_weight: float = Field(1.0, gt=0)
    class_weights: Literal["balanced"] | dict[str, float] | None = None
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    separator: str = Field(";", min_length=1, description="Between the labels of a multi-label text.")


class EncoderConfig(Section):
    """Which encoder fills a slot, and its options."""

    type: str
    pretrained_model: str | None = None
    hidden_dim: Width | None = None
    options: dict[str, Any] = Field(default_factory=dict, description="Further options of this encoder.")


class TextEncoderConfig(EncoderConfig):
    type: str = "lsa"


class AudioEncoderConfig(EncoderConfig):
    type: str = "mel_stats"


class MIDIEncoderConfig(EncoderConfig):
    type: str = "midi_stats"
    vocab_size: int | None = Field(None, gt=0, le=10_000_000)


class AudioPreprocessing(Section):
    sample_rate: int | None = Field(None, gt=0, le=768_000, description="Hz; the encoder's own where null.")
    duration: float | None = Field(None, gt=0, le=86_400, description="Seconds; the segment's own where null.")
    augmentations: list[str] = Field(
        ["time_stretch", "pitch_shift", "noise"], description="In training only; [] for none."
    )


class MIDIPreprocessing(Section):
    tokenization: Literal["separate", "compound"] = "separate"
    max_events: int = Field(
        1024, gt=0, le=1_000_000, description="Tokens read at once; a segment with more is read in windows."
    )
    augmentations: list[str] = Field(
        ["transpose", "velocity", "time_jitter"], description="In training only; [] for none. There is also quantize."
    )


class PreprocessingConfig(Section):
    audio: AudioPreprocessing = AudioPreprocessing()
    midi: MIDIPreprocessing = MIDIPreprocessing()
    row_seconds: float = Field(ROW_SECONDS, gt=0, le=86_400, description="A row that takes a worker longer is failed.")
    row_gib: float = Field(ROW_GIB, gt=0, le=4096, description="A row that takes more memory is failed (on Linux).")


class ModelEncodersConfig(Section):
    targets: list[TargetConfig] = Field(default_factory=list, description="Inferred where the data has one label.")
    text_encoder: TextEncoderConfig = TextEncoderConfig()
    audio_encoder: AudioEncoderConfig = AudioEncoderConfig()
    midi_encoder: MIDIEncoderConfig = MIDIEncoderConfig()

    def encoder_for(self, modality: str) -> EncoderConfig | None:
        return {"text": self.text_encoder, "audio": self.audio_encoder, "midi": self.midi_encoder}.get(modality)


class FeaturizeConfig(Section):
    """What `ingest`, `split` and `featurize` read."""

    data: DataConfig = DataConfig()
    split: SplitConfig = SplitConfig()
    model: ModelEncodersConfig = ModelEncodersConfig()
    preprocessing: PreprocessingConfig = PreprocessingConfig()
