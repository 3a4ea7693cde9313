"""What one modality of one segment is before any encoder has touched it.

Conventions
-----------
* Times are seconds, as float, counted from the start of the file or blob.
* `start_seconds` / `end_seconds` cut the segment out of a longer recording; `None` means the file's own edge.
* Waveform blobs are little-endian float32, mono, full scale ±1.
* A raw value is picklable and small where it can be: files travel as paths, blobs as bytes.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from featurize.limits import MAX_AUDIO_BYTES, MAX_MIDI_BYTES
from stores.remote import Location, RemoteStatus, local_file

MODALITIES = ("text", "audio", "midi")

DIGEST_BYTES = 16  # 128 bits: at 10^9 rows two different inputs collide with probability 10^-21


class UnreadableInput(ValueError):
    """This segment has the modality but it cannot be encoded; the message is kept as the row's failure reason."""


@dataclass(frozen=True)
class RawText:
    """The lyrics of one segment."""

    text: str

    def digest(self) -> bytes:
        """16 bytes that are equal where the text is."""
        return _digest(b"text", self.text.encode("utf-8", "surrogatepass"))


@dataclass(frozen=True)
class RawAudio:
    """An audio file (`path`; in object storage, too), or a float32 blob (`samples` with `sample_rate_hz`)."""

    path: Location | None = None
    samples: bytes | None = None
    sample_rate_hz: int | None = None
    start_seconds: float | None = None
    end_seconds: float | None = None

    def digest(self) -> bytes:
        """16 bytes that are equal where samples, rate and span are. Raises `UnreadableInput` where a file is gone."""
        span = _pack_span(self.start_seconds, self.end_seconds)
        if self.path is not None:
            return _digest(b"audio-file", span, _file_digest(self.path, MAX_AUDIO_BYTES))
        return _digest(b"audio-blob", span, struct.pack("<q", self.sample_rate_hz or 0), self.samples or b"")


@dataclass(frozen=True)
class RawMidi:
    """A Standard MIDI File, on disk (`path`) or as bytes (`data`).

    shift_seconds: added to the file's times before the segment is cut; stated by the table, measured by `cli align`.
    """

    path: Location | None = None
    data: bytes | None = None
    start_seconds: float | None = None
    end_seconds: float | None = None
    shift_seconds: float = 0.0

    def digest(self) -> bytes:
        """16 bytes that are equal where content, span and shift are. Raises `UnreadableInput` where a file is gone."""
        content = _file_digest(self.path, MAX_MIDI_BYTES) if self.path is not None else _digest(self.data or b"")
        shift = [struct.pack("<d", self.shift_seconds)] if self.shift_seconds else []
        return _digest(b"midi", _pack_span(self.start_seconds, self.end_seconds), content, *shift)

    def read_bytes(self) -> bytes:
        """The file's bytes. Raises `UnreadableInput` where the file is gone or may not be read."""
        return self.data or b"" if self.path is None else read_limited(self.path, MAX_MIDI_BYTES)


Raw = RawText | RawAudio | RawMidi


def read_limited(path: Location, most_bytes: int) -> bytes:
    """All of a regular file that has at most so many bytes. Raises `UnreadableInput`."""
    try:
        check_size(path, path.stat(), most_bytes)
        return local_file(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL byte
        if isinstance(error, UnreadableInput):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise UnreadableInput(f"cannot read {path}: {reason}") from error


def check_size(path: Location, status: os.stat_result | RemoteStatus, most_bytes: int) -> None:
    """Raise `UnreadableInput` where it is no regular file, or has more bytes than are ever read."""
    if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait forever
        raise UnreadableInput(f"cannot read {path}: not a regular file")
    if status.st_size > most_bytes:
        raise UnreadableInput(f"{path} has {status.st_size:,} bytes; at most {most_bytes:,} are read")


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        digest.update(struct.pack("<q", len(part)))  # lengths keep ("ab", "c") apart from ("a", "bc")
        digest.update(part)
    return digest.digest()


def _pack_span(start_seconds: float | None, end_seconds: float | None) -> bytes:
    nan = float("nan")
    return struct.pack(
        "<dd", nan if start_seconds is None else start_seconds, nan if end_seconds is None else end_seconds
    )


def _file_digest(path: Location, most_bytes: int) -> bytes:
    try:
        status = path.stat()
        check_size(path, status, most_bytes)
        if isinstance(status, RemoteStatus):
            return _cached_remote_digest(path, status.etag)
        return _cached_file_digest(path, status.st_mtime_ns, status.st_size, status.st_ino)
    except OSError as error:
        raise UnreadableInput(f"cannot read {path}: {error.strerror}") from error


@lru_cache(maxsize=4096)  # the segments of one song share its file: read it once per run
def _cached_file_digest(path: Path, mtime_ns: int, size: int, inode: int) -> bytes:
    return _content_digest(path)


@lru_cache(maxsize=4096)
def _cached_remote_digest(path: Location, etag: str) -> bytes:
    return _content_digest(local_file(path))


def _content_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES)).digest()
