"""The slots of a run whose encoders can learn: built again from their features' records, and saved when they have.

An encoder without weights (`mel_stats`), one that was fitted (`lsa`), and a feature that came as vectors stay as they
are; their slots are read from the store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurize.encoders import encoder_class, known_encoders, name_in
from featurize.encoders.base import Encoder
from featurize.errors import ConfigError
from featurize.rebuild import rebuild_encoder
from featurize.trained import RECORD, find_tuned, is_trained, save_trained, trained_options, tuned_name
from featurize.user_code import is_code
from fusion.config import FinetuningConfig
from fusion.load_run import LoadedRun
from fusion.runs import write_json
from fusion.unfreeze import Unfrozen, can_learn
from stores.record import Record
from stores.store import Store


@dataclass
class LiveSlot:
    """A slot whose encoder learns. feature, record: of its vectors in the store. options: as saved with the encoder."""

    slot: str
    feature: str
    record: Record
    unfrozen: Unfrozen
    options: Mapping[str, Any]

    def __post_init__(self) -> None:
        self._n_learned = self.unfrozen.n_weights

    @property
    def encoder(self) -> Encoder:
        """The module whose weights may learn."""
        return self.unfrozen.encoder

    @property
    def is_pretrained(self) -> bool:
        """Whether what learns are weights that were learned on far more than is here."""
        return not self.encoder.must_train and self.unfrozen.lora is None

    @property
    def notes(self) -> list[str]:
        """Libraries whose versions differ from those that wrote the feature."""
        now, then = self.encoder.record.libraries, self.record["libraries"]
        others = [f"{name} {then.get(name)}, now {found}" for name, found in now.items() if then.get(name) != found]
        return [f"{self.feature} was written by other versions: {'; '.join(others)}."] if others else []

    def finish(self, trained_on: Mapping[str, Any]) -> None:
        """The encoder as a plain one, which says what it has seen."""
        self.unfrozen.merge()
        self.encoder.eval().requires_grad_(True).to("cpu")
        begun_with = {f"base_{key}": value for key, value in (self.encoder.loaded_from or {}).items()}
        self.encoder.loaded_from = {"source": "cli finetune", **begun_with}
        self.encoder.trained_on = trained_on

    def save(self, folder: Path) -> None:
        """Leave the tuned encoder and its record in a new folder."""
        folder.mkdir(parents=True)
        assert self.encoder.loaded_from is not None
        save_trained(folder, self.encoder, self.options, self.encoder.loaded_from)
        write_json(folder / RECORD, self.encoder.record.to_dict())

    def tuned_feature(self, run_name: str) -> str:
        """What `cli featurize --encoder RUN:slot` will call its vectors."""
        return f"{self.encoder.modality}/{tuned_name(self.encoder.name, run_name)}"

    def facts(self) -> dict[str, Any]:
        """What `metrics.json` says of it."""
        return {
            "from_feature": self.feature,
            "encoder": self.encoder.name,
            "last_layers": self.unfrozen.last_layers,
            "lora": self.unfrozen.lora,
            "gradient_checkpointing": self.unfrozen.recomputes,
            "precision": self.encoder.precision,
            "n_learned": self._n_learned,
            "n_weights": sum(weight.numel() for weight in self.encoder.parameters()),
        }


def live_slots(
    run: LoadedRun,
    store: Store,
    settings: FinetuningConfig,
    places: Mapping[str, Path],
    searched: Sequence[Path],
    runs: Sequence[Path],
    device: str,
) -> dict[str, LiveSlot]:
    """The slots that are to learn, in slot order, on their device and in the precision of their feature.

    places: by slot, where a trained encoder or a checkpoint stands; else `searched` are folders of trained encoders,
    and `runs` of runs. Raises `ConfigError` where an encoder cannot be had, or cannot learn.
    """
    for what, named in (("unfreeze", settings.unfreeze or []), ("encoder", places)):
        for slot in named:
            if slot not in run.slots:
                raise ConfigError(f"--{what} names slot {slot!r}; run {run.name} has {', '.join(run.slots)}.")
    found = {}
    for slot in run.slots:
        if settings.unfreeze is not None and slot not in settings.unfreeze:
            continue
        feature = store.feature(run.features[slot])
        encoder = None
        place = places.get(slot)
        name = name_in(feature.record)
        if (is_code(name) or name in known_encoders()) and not encoder_class(name).must_fit:
            for folder in runs:
                place = place or find_tuned(feature.record, folder)
            encoder = rebuild_encoder(
                feature.name,
                feature.record,
                place=place,
                searched=searched,
                device=device,
                allow_other_versions=True,  # whether they make a difference is measured, before anything is learned
            )
        if encoder is not None and can_learn(encoder):
            options = _options(encoder, feature.record, place)
            found[slot] = LiveSlot(slot, feature.name, feature.record, Unfrozen(slot, encoder, settings), options)
        elif settings.unfreeze is not None:
            raise ConfigError(
                f"{feature.name} has no weights that can learn; leave {slot} out of --unfreeze, and it is read from the"
                " store."
            )
    if not found:
        raise ConfigError(
            f"None of the encoders of run {run.name} has weights that can learn: {', '.join(run.features.values())}.\n"
            "Fit a run on features of mel_cnn, piano_roll, deberta, wav2vec2 or the like."
        )
    return found


def _options(encoder: Encoder, record: Record, place: Path | None) -> dict[str, Any]:
    """What `build_encoder` needs to build the same network, of a pretrained one with its tokenizer and the like."""
    if place is not None and is_trained(place):
        return trained_options(place)
    options = type(encoder).options_of(encoder.settings)
    if encoder.must_train:
        return options
    weights = record["weights"]
    checkpoint = place or Path(weights["source"])
    options["pretrained_model"] = str(checkpoint.resolve() if checkpoint.exists() else checkpoint)
    if place is None and "revision" in weights:
        options["revision"] = weights["revision"]
    return options
