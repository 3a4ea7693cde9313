"""A source gives, row by row, the raw text, audio and MIDI of segments, reading media only when asked.

Where a segment states a modality in several ways, the order is: blob, then file on disk. A flag `has_audio: false`
settles it where there is no file; a flag `true` with neither blob nor file is a failure, not an absence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from featurize.config import Scope
from featurize.limits import MAX_TEXT_BYTES
from featurize.segments import Raw, RawAudio, RawMidi, RawText, UnreadableInput, read_limited
from featurize.sources.media_ahead import MediaAhead
from featurize.sources.table import SegmentTable
from stores.remote import Location, RemotePath

FLAGS = {"text": "has_text", "audio": "has_audio", "midi": "has_midi"}
PATHS = {"text": "text_path", "audio": "audio_path", "midi": "midi_path"}


class Blobs(Protocol):
    """Media that lies in the table's companion files rather than in files of its own."""

    def has(self, modality: str) -> bool:
        """Whether there are blobs of this modality at all."""

    def audio(self, row: int) -> tuple[bytes, int] | None:
        """Little-endian float32 samples and their rate in Hz; `None` where the row has none."""

    def midi(self, row: int) -> bytes | None:
        """A whole MIDI file; `None` where the row has none."""

    def problems(self, flags: dict[str, list[bool | None]]) -> list[tuple[str, list[int]]]:
        """For each modality the rows whose flag claims a blob that is not there. flags: by modality, one a row."""


class Source:
    """Segments of one dataset. `raw(row, modality)` is the way in; the rest is what checks and records need."""

    def __init__(
        self,
        table: SegmentTable,
        root: Location,
        layout: str,
        *,
        audio_is: Scope,
        midi_is: Scope,
        blobs: Blobs | None = None,
        allow_outside_root: bool = False,
        timecode_rate: str | None = None,
    ):
        self.table = table
        self.root = root
        self._ahead = MediaAhead(self) if isinstance(root, RemotePath) else None
        self.layout = layout
        self.scopes: dict[str, Scope] = {"audio": audio_is, "midi": midi_is}
        self.blobs = blobs
        self.allow_outside_root = allow_outside_root
        self.ids = table.texts("segment_id")
        self.groups = table.texts("group")
        self.timecode_rate = timecode_rate
        self.start_seconds, self.unreadable_starts = table.seconds("start_seconds", timecode_rate)
        self.end_seconds, self.unreadable_ends = table.seconds("end_seconds", timecode_rate)
        self.file_start_seconds = {}
        self.unreadable_file_starts: list[int] = []
        for modality in ("audio", "midi"):
            starts, unreadable = table.seconds(f"{modality}_start_seconds", timecode_rate)
            self.file_start_seconds[modality] = starts
            self.unreadable_file_starts += unreadable
        self.texts = table.texts("text")
        self.paths = {modality: table.texts(role) for modality, role in PATHS.items()}
        self.flags = {modality: table.flags(role) for modality, role in FLAGS.items()}

    def __len__(self) -> int:
        return len(self.table)

    def has_blobs(self, modality: str) -> bool:
        """Whether media of this modality stand in the data themselves, not in files."""
        return self.blobs is not None and self.blobs.has(modality)

    def file(self, row: int, modality: str) -> Location | None:
        """The media file that the table names, whether it exists or not. Raises `UnreadableInput` outside the root."""
        stated = self.paths[modality][row]
        if stated is None:
            return None
        path = self.root / stated
        if not self.allow_outside_root and not stays_inside(path, self.root):
            raise UnreadableInput(f"{stated} leaves the data folder {self.root}")
        return path

    def span(self, row: int, modality: str) -> tuple[float | None, float | None]:
        """Where the segment lies in its file, in the file's own time; `None` where nothing is cut."""
        if self.scopes[modality] == "segment":
            return None, None
        begins = self.begins(row, modality)
        start, end = self.start_seconds[row] - begins, self.end_seconds[row] - begins
        return (None if np.isnan(start) else float(start)), (None if np.isnan(end) else float(end))

    def begins(self, row: int, modality: str) -> float:
        """When the file or blob begins, on the clock of `start_seconds`: as stated, else a song at 0."""
        stated = self.file_start_seconds[modality][row]
        unstated = 0.0 if self.scopes[modality] == "song" else np.nan_to_num(self.start_seconds[row])
        return float(unstated if np.isnan(stated) else stated)

    def midi_shift_seconds(self, row: int) -> float:
        """What is added to the times of MIDI that is a segment already: they then count from where its audio begins."""
        if self.scopes["midi"] == "song" or np.isnan(self.file_start_seconds["midi"][row]):
            return 0.0
        audio_begins = self.begins(row, "audio") if self.scopes["audio"] == "segment" else self.start_seconds[row]
        return self.begins(row, "midi") - float(np.nan_to_num(audio_begins))

    def fetch(self, row: int, modality: str) -> None:
        """Where files are in object storage: get this row's, and unless most are blobs those of the next rows, too."""
        if self._ahead is not None:
            self._ahead.fetch(row, modality, alone=self.has_blobs(modality))

    def raw(self, row: int, modality: str) -> Raw | None:
        """The raw input; `None` where the segment has no such modality. Raises `UnreadableInput`."""
        readers: dict[str, Callable[[int], Raw | None]] = {
            "text": self._text,
            "audio": self._audio,
            "midi": self._midi,
        }
        raw = readers[modality](row)
        if raw is None and self.flags[modality][row] and modality != "text":
            raise UnreadableInput(f"{FLAGS[modality]} is true, but there is neither a blob nor a file")
        return raw

    def _text(self, row: int) -> RawText | None:
        if self.flags["text"][row] is False:
            return None
        text = self.texts[row]
        if text is not None:
            return RawText(text)
        path = self.file(row, "text")
        if path is None:
            return None
        self.fetch(row, "text")
        content = read_limited(path, MAX_TEXT_BYTES)
        try:
            return RawText(content.decode("utf-8-sig"))
        except UnicodeDecodeError:  # lyric collections of the 2000s; every byte string is valid in this codec
            return RawText(content.decode("latin-1"))

    def _audio(self, row: int) -> RawAudio | None:
        start, end = self.span(row, "audio")
        blob = self.blobs.audio(row) if self.blobs is not None and self.flags["audio"][row] is not False else None
        if blob is not None:
            samples, sample_rate_hz = blob
            return RawAudio(samples=samples, sample_rate_hz=sample_rate_hz, start_seconds=start, end_seconds=end)
        path = self._media_file(row, "audio")
        return None if path is None else RawAudio(path=path, start_seconds=start, end_seconds=end)

    def _midi(self, row: int) -> RawMidi | None:
        start, end = self.span(row, "midi")
        shift = self.midi_shift_seconds(row)
        data = self.blobs.midi(row) if self.blobs is not None and self.flags["midi"][row] is not False else None
        if data is not None:
            return RawMidi(data=data, start_seconds=start, end_seconds=end, shift_seconds=shift)
        path = self._media_file(row, "midi")
        if path is None:
            return None
        return RawMidi(path=path, start_seconds=start, end_seconds=end, shift_seconds=shift)

    def _media_file(self, row: int, modality: str) -> Location | None:
        path = self.file(row, modality)
        if path is None or is_file(path):
            self.fetch(row, modality)  # here, not by a worker: what is read twice is transferred once
            return path
        if self.flags[modality][row] is False:  # the table says there is none, and there is none
            return None
        raise UnreadableInput(f"{self.paths[modality][row]} does not exist in {self.root}")


def is_file(path: Location) -> bool:
    """Whether there is such a file; a name that cannot be one is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # longer than a name may be, a NUL byte
        return False


def stays_inside(path: Location, root: Location) -> bool:
    """Whether `path`, links followed, lies in `root`."""
    if isinstance(path, RemotePath) or isinstance(root, RemotePath):
        return isinstance(path, RemotePath) and isinstance(root, RemotePath) and path.is_relative_to(root)
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError):  # loops of links, NUL bytes, names too long
        return False
