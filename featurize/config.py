"""Configuration of everything before the vectors; `fusion/config.py` adds training and fusion to it.

Every key has a default, an unknown key is an error, and numbers must be finite. `fusion.config.load_config` reads the
YAML file, `--set key=value` and the options of a command, in that order of rising priority.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from featurize.limits import ROW_GIB, ROW_SECONDS
from stores.remote import Location, location

Layout = Literal["auto", "folder", "split_parquet"]
Scope = Literal["song", "segment"]
TimecodeRate = Literal["23.976", "24", "25", "29.97", "29.97 drop", "30"]
TargetKind = Literal["categorical", "multi_label", "regression", "soft_distribution"]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy, torch and scikit-learn all take
Width = Annotated[int, Field(gt=0, le=65_536)]
if TYPE_CHECKING:
    DataPath = Location
else:
    DataPath = Annotated[
        Any,
        PlainValidator(location),
        PlainSerializer(str, when_used="json"),
        WithJsonSchema({"type": "string", "format": "path"}),
    ]
TYPE = "Which encoder; cli featurize --list names them."

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

    segment_id: str | None = Field(None, description="The segment's id, unique.")
    group: str | None = Field(None, description="The song, or whatever a split must not cut through.")
    track_id: str | None = Field(None, description="A finer id, kept but not used.")
    text: str | None = Field(None, description="The lyric itself.")
    text_path: str | None = Field(None, description="A file with the lyric.")
    audio_path: str | None = Field(None, description="A sound file.")
    midi_path: str | None = Field(None, description="A Standard MIDI File.")
    start_seconds: str | None = Field(None, description="Where the segment begins in the song.")
    end_seconds: str | None = Field(None, description="Where it ends.")
    audio_start_seconds: str | None = Field(None, description="When the audio file begins, on the same clock.")
    midi_start_seconds: str | None = Field(None, description="When the MIDI file begins, on the same clock.")
    has_text: str | None = Field(None, description="Whether there is a lyric.")
    has_audio: str | None = Field(None, description="Whether there is audio.")
    has_midi: str | None = Field(None, description="Whether there is MIDI.")
    audio_waveform: str | None = Field(None, description="Samples in the media file: little-endian float32, mono.")
    audio_sample_rate: str | None = Field(None, description="Their rate in Hz.")
    midi_binary: str | None = Field(None, description="A whole Standard MIDI File in the media file.")

    def mapping(self, layout: Literal["folder", "split_parquet"]) -> dict[str, str]:
        """Role to column name."""
        defaults = FOLDER_COLUMNS if layout == "folder" else SPLIT_PARQUET_COLUMNS
        return {**defaults, **self.model_dump(exclude_none=True)}


class DataConfig(Section):
    """Where the raw segments are, and how to read their table."""

    path: DataPath | None = Field(None, description="Folder, CSV or parquet, or a URL; `cli ingest PATH` names it too.")
    layout: Layout = Field("auto", description="auto looks: a table beside its files, or *_metadata.parquet.")
    columns: ColumnsConfig = ColumnsConfig()
    labels: list[str] | None = Field(None, description="Columns kept as labels; all that play no role where null.")
    audio_is: Scope | None = Field(
        None, description="Whether an audio file or blob is the whole song (cut by the times) or the segment already."
    )
    midi_is: Scope | None = Field(None, description="The same for MIDI.")
    timecode_rate: TimecodeRate | None = Field(
        None,
        description="Frames per second, where times are SMPTE timecodes: 24, 25, 29.97, 29.97 drop, 30, 23.976.",
        json_schema_extra={"anyOf": [{"type": ["string", "number", "null"]}]},  # YAML reads 25 as a number
    )
    allow_outside_root: bool = Field(False, description="Accept media paths that leave the data folder.")

    @field_validator("timecode_rate", mode="before")
    @classmethod
    def _rate_by_name(cls, rate: Any) -> Any:
        return f"{rate:g}" if isinstance(rate, int | float) else rate


class SplitConfig(Section):
    """How segments are dealt to train, val and test."""

    name: str = Field("default", min_length=1, description="What it is called in the store.")
    method: Literal["grouped", "random"] = Field("grouped", description="`random` cuts through songs, and leaks.")
    val: float = Field(0.15, gt=0, lt=1, description="Share of segments, as near as whole songs come.")
    test: float = Field(0.15, gt=0, lt=1, description="The same for test.")
    folds: int | None = Field(None, ge=3, le=1000, description="k-fold instead: each fold is test once.")
    stratify_by: str | None = Field(None, description="A label; the first target where null.")
    seed: Seed = Field(0, description="Another seed deals another split.")

    @model_validator(mode="after")
    def _something_is_left_to_train_on(self) -> SplitConfig:
        if self.val + self.test >= 1:
            raise ValueError(
                f"val {self.val} and test {self.test} leave nothing to train on; their sum must be below 1"
            )
        return self


class TargetConfig(Section):
    """One thing to predict."""

    name: str = Field(min_length=1, description="What it is called in every table.")
    column: str | None = Field(None, description="The label column; the target's name where null.")
    columns: list[str] | None = Field(None, description="Several numeric columns that form one soft distribution.")
    kind: TargetKind | None = Field(None, description="Inferred from the label where null.")
    metric: str | None = Field(None, description="The headline metric; each kind has a default.")
    loss_weight: float = Field(1.0, gt=0, description="What its loss counts beside the others'.")
    class_weights: Literal["balanced"] | dict[str, float] | None = Field(
        None, description="What each class counts in the loss; balanced: as much as it is rare."
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of a label that is spread over all classes.")
    separator: str = Field(";", min_length=1, description="Between the labels of a multi-label text.")


class EncoderConfig(Section):
    """Which encoder fills a slot, and its options."""

    type: str = Field(description=TYPE)
    pretrained_model: str | None = Field(
        None, description="A Hugging Face name, a local folder, or what cli train-encoder wrote; its own where null."
    )
    hidden_dim: Width | None = Field(None, description="Width of an encoder that is trained here; its own where null.")
    options: dict[str, Any] = Field(default_factory=dict, description="Further options of this encoder.")


class TextEncoderConfig(EncoderConfig):
    """The encoder of lyrics."""

    type: str = Field("lsa", description=TYPE)


class AudioEncoderConfig(EncoderConfig):
    """The encoder of audio."""

    type: str = Field("mel_stats", description=TYPE)


class MIDIEncoderConfig(EncoderConfig):
    """The encoder of MIDI."""

    type: str = Field("midi_stats", description=TYPE)
    vocab_size: int | None = Field(
        None, gt=0, le=10_000_000, description="Of encoders that read tokens; their own where null."
    )


class AudioPreprocessing(Section):
    """Holds for every encoder of audio."""

    sample_rate: int | None = Field(None, gt=0, le=768_000, description="Hz; the encoder's own where null.")
    duration: float | None = Field(None, gt=0, le=86_400, description="Seconds; the segment's own where null.")
    augmentations: list[str] = Field(
        ["time_stretch", "pitch_shift", "noise"], description="In training only; [] for none."
    )


class MIDIPreprocessing(Section):
    """Holds for every encoder of MIDI."""

    tokenization: Literal["separate", "compound"] = Field(
        "separate", description="A token for each property of a note, or one for the note."
    )
    max_events: int = Field(
        1024, gt=0, le=1_000_000, description="Tokens read at once; a segment with more is read in windows."
    )
    augmentations: list[str] = Field(
        ["transpose", "velocity", "time_jitter"], description="In training only; [] for none. There is also quantize."
    )


class PreprocessingConfig(Section):
    """What is done to raw input before an encoder sees it."""

    audio: AudioPreprocessing = AudioPreprocessing()
    midi: MIDIPreprocessing = MIDIPreprocessing()
    row_seconds: float = Field(ROW_SECONDS, gt=0, le=86_400, description="A row that takes a worker longer is failed.")
    row_gib: float = Field(ROW_GIB, gt=0, le=4096, description="A row that takes more memory is failed (on Linux).")


class ModelEncodersConfig(Section):
    """What is predicted, from what, and how."""

    targets: list[TargetConfig] = Field(default_factory=list, description="Inferred where the data has one label.")
    text_encoder: TextEncoderConfig = TextEncoderConfig()
    audio_encoder: AudioEncoderConfig = AudioEncoderConfig()
    midi_encoder: MIDIEncoderConfig = MIDIEncoderConfig()

    def encoder_for(self, modality: str) -> EncoderConfig | None:
        """What is configured for a modality; `None` for any but text, audio and midi."""
        return {"text": self.text_encoder, "audio": self.audio_encoder, "midi": self.midi_encoder}.get(modality)


class FeaturizeConfig(Section):
    """What `ingest`, `split` and `featurize` read."""

    data: DataConfig = DataConfig()
    split: SplitConfig = SplitConfig()
    model: ModelEncodersConfig = ModelEncodersConfig()
    preprocessing: PreprocessingConfig = PreprocessingConfig()
