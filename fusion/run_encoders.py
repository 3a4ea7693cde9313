"""From raw segments to what a run's model reads: the encoders that wrote its features, over segments of any origin.

What they were stands in the store that the run was trained on (`featurize.rebuild`). New segments pass through the one
loop that makes features (`featurize.extract`), into a store in memory: numbers are rounded as the run's were, equal
inputs are encoded once, and what cannot be encoded is missing, with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from featurize.extract import extract
from featurize.rebuild import rebuild_encoder
from featurize.segments import Raw
from featurize.trained import find_tuned
from fusion.load_run import LoadedRun, check_features
from stores import open_store
from stores.errors import StoreError, TriadError
from stores.memory_store import MemoryTree
from stores.remote import Location, RemotePath, location
from stores.source_path import folder_of
from stores.store import Store

Read = Callable[[int, str], Raw | None]  # row and slot to what is there; may raise `UnreadableInput`
Progress = Callable[[str, int, int], None]  # what is counted, how many are done, how many in all


class RunEncoders:
    """The encoders of some slots of a run.

    store_path: the store with the run's features; the one that the run names where `None`. places: by slot, where a
    trained encoder or a checkpoint stands. Raises `TriadError` where an encoder cannot be had.
    """

    def __init__(
        self,
        run: LoadedRun,
        slots: Sequence[str],
        store_path: Location | None = None,
        *,
        places: Mapping[str, Path] | None = None,
        device: str = "cpu",
        workers: int = 0,
        allow_other_versions: bool = False,
    ):
        self._frame_slots = [slot for slot in slots if slot in run.frame_slots]
        self._workers = workers
        self.store, path = find_store(run, slots, store_path)
        self._features = {slot: self.store.feature(run.features[slot]) for slot in slots}
        self._by_slot = {
            slot: rebuild_encoder(
                feature.name,
                feature.record,
                feature.state(),
                place=(places or {}).get(slot) or find_tuned(feature.record, run.folder.parent),
                searched=[folder_of(path) / "encoders"],
                device=device,
                allow_other_versions=allow_other_versions,
            )
            for slot, feature in self._features.items()
        }

    @property
    def max_frames(self) -> int:
        """The most that a segment has in one slot."""
        return max((self._features[slot].max_frames for slot in self._frame_slots), default=0)

    def modality(self, slot: str) -> str:
        """What a slot's encoder reads: text, audio or midi."""
        return self._by_slot[slot].modality

    def encode(self, ids: np.ndarray, read: Read, progress: Progress | None = None) -> Store:
        """A store in memory with these segments and a feature for each slot. ids: text (n,)."""
        store = Store.create(MemoryTree(), {"id": ids, "group": ids}, {}, {})
        for slot, encoder in self._by_slot.items():
            stored = self._features[slot]
            feature = store.create_feature(
                stored.name,
                stored.record,
                dtype=stored.dtype,
                frames=stored.max_frames if slot in self._frame_slots else 0,
            )
            extract(
                feature,
                encoder,
                _Rows(read, slot),
                workers=self._workers,
                progress=None if progress is None else _named(progress, f"{slot} segments"),
            )
        return store


class _Rows:
    """A `featurize.extract.RawSource` of one slot."""

    def __init__(self, read: Read, slot: str):
        self._read = read
        self._slot = slot

    def raw(self, row: int) -> Raw | None:
        return self._read(row, self._slot)


def find_store(run: LoadedRun, slots: Sequence[str], store_path: Location | None = None) -> tuple[Store, Location]:
    """The first store that holds the run's features of these slots, and where it is.

    Looked for at `store_path`, then where the run says, from here and from the folder that `runs/` stands in. Raises
    `TriadError`.
    """
    said = location(run.environment["store"])
    wrong: TriadError | None = None
    wanted: list[Location] = [] if store_path is None else [store_path]
    wanted += [said] if isinstance(said, RemotePath) else [said, run.folder.resolve().parent.parent / said]
    for path in wanted:
        try:
            store = open_store(path)
            check_features(run, store, slots)
        except TriadError as error:
            wrong = error if wrong is None or not isinstance(error, StoreError) else wrong
        else:
            return store, path
    assert wrong is not None
    raise TriadError(
        f"What run {run.name}'s encoders were is kept in the store it was trained on, {said}: {_first_line(wrong)}\n"
        "Say where that store is: --store PATH"
    ) from wrong


def _named(progress: Progress, what: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(what, done, total)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
