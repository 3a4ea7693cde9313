"""Paths into object storage: `s3://bucket/key`, `gs://bucket/key`, `az://container/key`.

A `RemotePath` answers what this project asks of a `Path`, so that code which reads takes either (`Location`).

Conventions
-----------
* Credentials, regions and endpoints come from the environment alone (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …;
  docs/object-storage.md). A URL that holds any is refused, and never repeated in a message.
* There are no folders, only keys; `is_dir` is whether any key lies below. There are no links.
* What does not exist raises `FileNotFoundError`, as with a `Path`. Whatever else the storage refuses, or that it cannot
  be reached, is a `RemoteError` (`stores.objects`).
"""

from __future__ import annotations

import errno
import fnmatch
import os
import posixpath
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urlsplit

from stores.errors import RemoteError

if TYPE_CHECKING:
    from stores.objects import Facts, Objects

SCHEMES = ("s3", "gs", "az")


@dataclass(frozen=True)
class RemotePath:
    """bucket: with its scheme, `s3://bucket`. key: without a slash at either end.

    listing: facts of objects by key, that were listed before (`listed`). copies: the folder of local copies.
    """

    bucket: str
    key: str
    listing: Mapping[str, Facts] = field(default_factory=dict, compare=False, repr=False)
    copies: Path | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.bucket}/{self.key}"

    def __truediv__(self, other: str | Path) -> RemotePath:
        return replace(self, key=posixpath.normpath(posixpath.join("/", self.key, str(other))).lstrip("/"))

    def __lt__(self, other: RemotePath) -> bool:
        return str(self) < str(other)

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process: with what is known of itself alone, and the same folder of copies."""
        from stores.object_cache import copies_in

        facts = self.listing.get(self.key)
        listing = {} if facts is None else {self.key: facts}
        return RemotePath, (self.bucket, self.key, listing, self.copies or copies_in().folder)

    @property
    def name(self) -> str:
        """The last part of the key."""
        return posixpath.basename(self.key)

    @property
    def suffix(self) -> str:
        """From the last dot of the name on."""
        return posixpath.splitext(self.name)[1]

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return posixpath.splitext(self.name)[0]

    @property
    def parent(self) -> RemotePath:
        """What the key is below."""
        return replace(self, key=posixpath.dirname(self.key))

    @property
    def objects(self) -> Objects:
        """The storage of its bucket."""
        from stores.objects import objects_of

        return objects_of(self.bucket)

    def with_name(self, name: str) -> RemotePath:
        """Beside it, under another name."""
        return self.parent / name

    def as_posix(self) -> str:
        """The URL."""
        return str(self)

    def resolve(self) -> RemotePath:
        """Itself: there are no links."""
        return self

    def is_relative_to(self, other: RemotePath) -> bool:
        """Whether it lies below `other`, in the same bucket."""
        return self.bucket == other.bucket and (not other.key or f"{self.key}/".startswith(f"{other.key}/"))

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """There are none to make."""

    def exists(self) -> bool:
        """Whether it is an object, or anything is below it."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Whether it is an object."""
        return self._facts() is not None

    def is_dir(self) -> bool:
        """Whether a listing shows anything below it."""
        return self.objects.has_any(self.key)

    def stat(self) -> RemoteStatus:
        """Size and version. Raises `FileNotFoundError`."""
        facts = self._facts()
        if facts is None:
            raise self._missing()
        return RemoteStatus(facts.size, facts.etag)

    def read_bytes(self) -> bytes:
        """All of it. Raises `FileNotFoundError`."""
        found = self.objects.get(self.key)
        if found is None:
            raise self._missing()
        return bytes(found.content)

    def open(self, mode: str = "rb") -> BinaryIO:
        """To read from anywhere in it, in pieces of 8 MiB."""
        assert mode == "rb"
        facts = self._facts()
        if facts is None:
            raise self._missing()
        return self.objects.open(facts)

    def fetched(self) -> Path:
        """A local copy of the object as it is now; `stores.object_cache` keeps and removes it."""
        from stores.object_cache import copies_in

        facts = self._facts()
        local = None if facts is None else copies_in(self.copies).fetch(self, facts.etag)
        if local is None:
            raise self._missing()
        return local

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """Objects directly below whose name matches."""
        names = (posixpath.basename(facts.key) for facts in self.objects.below(self.key)[1])
        return (self / name for name in names if fnmatch.fnmatchcase(name, pattern))

    def iterdir(self) -> Iterator[RemotePath]:
        """What a listing shows directly below it."""
        folders, files = self.objects.below(self.key)
        return (self / posixpath.basename(key) for key in [*folders, *(facts.key for facts in files)])

    def listed(self) -> RemotePath:
        """The same path, which knows what lies below it: one request for 1,000 objects, rather than one for each."""
        return replace(self, listing={facts.key: facts for facts in self.objects.all_below(self.key)})

    def _facts(self) -> Facts | None:
        """What a listing does not show is asked for: it may be older than the object."""
        return self.listing.get(self.key) or (self.objects.head(self.key) if self.key else None)

    def _missing(self) -> FileNotFoundError:
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))


@dataclass(frozen=True)
class RemoteStatus:
    """As `os.stat_result`, of a regular file."""

    st_size: int
    etag: str
    st_mode: int = stat.S_IFREG


Location = Path | RemotePath


def listed(path: Location) -> Location:
    """As `RemotePath.listed`; a folder on a disk as it is."""
    return path.listed() if isinstance(path, RemotePath) else path


def local_file(path: Location) -> Path:
    """The file itself, or its local copy. Raises `FileNotFoundError`, `RemoteError`."""
    return path.fetched() if isinstance(path, RemotePath) else path


def is_remote(text: str) -> bool:
    """Whether it is a URL of object storage rather than a path."""
    return text.partition("://")[0] in SCHEMES and "://" in text


def parse_remote(url: str) -> RemotePath:
    """Raises `RemoteError` where the URL names no bucket, or holds what should be secret."""
    scheme, _, rest = url.partition("://")
    parts = urlsplit(f"{scheme}://{rest.partition('/')[0]}")
    if "@" in parts.netloc or "?" in rest or "#" in rest:
        raise RemoteError(
            f"A {scheme}:// URL is a bucket and a key; this one has more, which may be secret and is not repeated. "
            "Credentials come from the environment: docs/object-storage.md"
        )
    if not parts.netloc:
        raise RemoteError(f"{url} names no bucket. It should look like {scheme}://bucket/features.zarr")
    key = posixpath.normpath("/" + rest.partition("/")[2]).lstrip("/")
    return RemotePath(f"{scheme}://{parts.netloc}", key)


def location(text: str | Path | RemotePath) -> Location:
    """A path, or where a text begins with s3://, gs:// or az:// a `RemotePath`."""
    if isinstance(text, RemotePath):
        return text
    return parse_remote(str(text)) if is_remote(str(text)) else Path(text)
