"""One bucket of an object storage: whole objects by key, over `obstore`, which speaks the protocols of all three.

Conventions
-----------
* An object is written whole, in one request, and atomically: a reader sees the old one or the new one.
* Conditional writes (`put_new`, `put_over`) are what locks are on a disk. Where the answer to one is lost on its way,
  the next try meets the object that the first has made: whoever calls must recognise its own content.
* A listing may lag behind (it does not at AWS, Google, Azure, R2 or MinIO): it enumerates, and decides nothing.
* Server errors (5xx, slow down), broken connections and timeouts are tried again after growing pauses, `RETRIES` times
  and for `RETRY_SECONDS` at most; then, and where the storage refuses for good, `RemoteError` says so in a line.

Sources: docs.rs/object_store, `RetryConfig` and `PutMode`; Amazon S3 User Guide, "Conditional writes".
"""

from __future__ import annotations

import io
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any, BinaryIO, TypeVar, cast

from stores.errors import RemoteError

RETRIES = 10
RETRY_SECONDS = 60.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 10.0
CONNECT_SECONDS, SILENT_SECONDS = 10.0, 30.0  # after which a connection counts as dead
REQUEST_SECONDS = 900.0  # of the largest object on a slow line
PARALLEL = 32  # requests in flight: at 20 ms each, 1,600 a second
READER_BYTES = 8 * 2**20
DELETED_AT_ONCE = 1000  # the most that S3 takes in one request
BROKEN = r"HTTP error|error decoding|error reading|partial response|connection|timed out"  # in the words of libraries
NOT_AGAIN = r"status code|after \d+ retries|169\.254\.169\.254"  # an answer, or tried often enough
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_SERVICE_ACCOUNT",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
ENVIRONMENT = ("AWS_", "GOOGLE_", "AZURE_")

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Facts:
    """What the storage says of an object: its key, version (etag), bytes, and when it was written."""

    key: str
    size: int
    etag: str
    version: str | None  # where the storage numbers versions (Google), what a conditional write goes by
    modified: float  # seconds since 1970, by the storage's clock


@dataclass(frozen=True)
class Object:
    """An object as it was read: its facts and its bytes."""

    content: memoryview
    facts: Facts


class Objects:
    """Get one from `objects_of`. Threads may share it."""

    def __init__(self, bucket: str):
        """bucket: with its scheme. Raises `RemoteError` where obstore is not installed."""
        try:
            import obstore
            from obstore import exceptions
        except ImportError as error:
            raise RemoteError(
                f"{bucket} needs the package obstore, which is not installed: pip install 'triad-fusion[cloud]'"
            ) from error
        self.bucket = bucket
        self._obstore = obstore
        self._refused = (exceptions.AlreadyExistsError, exceptions.PreconditionError)
        self._errors = (exceptions.BaseError, OSError)
        self._store = self._ask("", lambda: _open(bucket))
        self._pool = ThreadPoolExecutor(PARALLEL, "object storage")

    def get(self, key: str) -> Object | None:
        """The object; `None` where there is none. Raises `RemoteError`."""

        def request() -> Object:
            found = self._obstore.get(self._store, key)
            content = memoryview(cast(Any, found.bytes())).cast("B")  # the transfer, which may break off, too
            return Object(content, _facts(found.meta))

        return self._ask(key, request)

    def get_range(self, key: str, start: int, stop: int) -> memoryview | None:
        """Bytes [start, stop), which must be there."""
        found = self._ask(key, lambda: self._obstore.get_range(self._store, key, start=start, end=stop))
        return None if found is None else memoryview(cast(Any, found)).cast("B")

    def head(self, key: str) -> Facts | None:
        """What is known of the object; `None` where there is none. Raises `RemoteError`."""
        return self._ask(key, lambda: _facts(self._obstore.head(self._store, key)))

    def put(self, key: str, content: bytes | memoryview) -> None:
        """Write the object, over whatever is there. Raises `RemoteError`."""
        self._ask(key, lambda: self._obstore.put(self._store, key, content, use_multipart=False))

    def put_new(self, key: str, content: bytes) -> Facts | None:
        """`None` where there is an object of this key already."""
        return self._put_if(key, content, "create")

    def put_over(self, key: str, content: bytes, old: Facts) -> Facts | None:
        """`None` where the object is no longer `old`, or gone."""
        return self._put_if(key, content, {"e_tag": old.etag} | ({"version": old.version} if old.version else {}))

    def delete(self, keys: Iterable[str]) -> None:
        """What is not there need not be deleted."""
        wanted = list(keys)
        for start in range(0, len(wanted), DELETED_AT_ONCE):
            some = wanted[start : start + DELETED_AT_ONCE]
            self._ask(some[0], lambda some=some: self._obstore.delete(self._store, some))  # type: ignore[misc]

    def copy(self, key: str, to: str) -> None:
        """Copy an object within the storage. Raises `RemoteError`."""
        self._ask(key, lambda: self._obstore.copy(self._store, key, to))

    def open(self, facts: Facts) -> BinaryIO:
        """To read anywhere in the object, `READER_BYTES` at a time."""
        return cast(BinaryIO, io.BufferedReader(_Ranges(self, facts), READER_BYTES))

    def all_below(self, prefix: str) -> list[Facts]:
        """Every object below `prefix/`."""
        pages = self._ask(prefix, lambda: list(self._obstore.list(self._store, prefix or None)))
        return [_facts(found) for page in pages or [] for found in page]

    def below(self, prefix: str) -> tuple[list[str], list[Facts]]:
        """What stands directly below `prefix/`: the keys of what holds more, and objects."""
        found = self._ask(prefix, lambda: self._obstore.list_with_delimiter(self._store, prefix or None))
        return (
            ([], []) if found is None else (list(found["common_prefixes"]), [_facts(one) for one in found["objects"]])
        )

    def has_any(self, prefix: str) -> bool:
        """Whether a listing shows anything below `prefix`."""
        folders, objects = self.below(prefix)
        return bool(folders or objects)

    def many(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """As `map`, in order, with several requests in flight. function: none that calls `many` itself."""
        wanted = list(items)
        return [function(item) for item in wanted] if len(wanted) < 2 else list(self._pool.map(function, wanted))

    def _put_if(self, key: str, content: bytes, mode: Any) -> Facts | None:
        def request() -> Facts:
            put = self._obstore.put(self._store, key, content, mode=mode, use_multipart=False)
            return Facts(key, len(content), str(put["e_tag"]), put["version"], 0.0)

        try:
            return self._ask(key, request)
        except self._refused:
            return None

    def _ask(self, key: str, request: Callable[[], Result]) -> Result | None:
        """`None` where there is no such object.

        obstore tries again by itself, but not where a connection breaks in a conditional write, or within an answer.
        """
        give_up = time.monotonic() + RETRY_SECONDS
        for pause in _pauses():
            try:
                return request()
            except self._refused:
                raise
            except self._errors as error:
                said = str(error)
                if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in said:
                    return None
                broken = re.search(BROKEN, said) and not re.search(NOT_AGAIN, said)
                if broken and pause is not None and time.monotonic() + pause < give_up:
                    time.sleep(pause)
                    continue
                raise RemoteError(_told(self.bucket, key, said)) from error
        raise AssertionError("the last pause is None")


class _Ranges(io.RawIOBase):
    def __init__(self, objects: Objects, facts: Facts):
        self._objects, self._facts, self._at = objects, facts, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._facts.size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        stop = min(self._at + len(view), self._facts.size)
        if stop <= self._at:
            return 0
        found = self._objects.get_range(self._facts.key, self._at, stop)
        if found is None:
            raise RemoteError(f"{self._objects.bucket}/{self._facts.key} was deleted while it was being read.")
        view[: len(found)] = found
        self._at += len(found)
        return len(found)


def objects_of(bucket: str) -> Objects:
    """One client for a bucket, a process, and what the environment says now. bucket: with its scheme."""
    said = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith(ENVIRONMENT)))
    return _objects_of(bucket, os.getpid(), said)


def forget_clients() -> None:
    """So that the next ones go by what this module's constants say then."""
    _objects_of.cache_clear()


@lru_cache(maxsize=8)
def _objects_of(bucket: str, _pid: int, _environment: tuple[tuple[str, str], ...]) -> Objects:
    return Objects(bucket)


def _open(bucket: str) -> Any:
    from obstore import store

    scheme, _, name = bucket.partition("://")
    kind: Any = {"s3": store.S3Store, "gs": store.GCSStore, "az": store.AzureStore}[scheme]
    return kind(name, client_options=_client_options(os.environ), retry_config=_retry_config())


def _client_options(environment: Mapping[str, str]) -> dict[str, Any]:
    options: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
        "read_timeout": timedelta(seconds=SILENT_SECONDS),
        "timeout": timedelta(seconds=REQUEST_SECONDS),
    }
    endpoints = [value for name, value in environment.items() if name.startswith(ENVIRONMENT) and "ENDPOINT" in name]
    if any(value.startswith("http://") for value in endpoints):  # said so, as for a server of one's own
        options["allow_http"] = True
    return options


def _retry_config() -> dict[str, Any]:
    pauses = {
        "init_backoff": timedelta(seconds=FIRST_PAUSE_SECONDS),
        "max_backoff": timedelta(seconds=LONGEST_PAUSE_SECONDS),
        "base": 2,
    }
    return {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_SECONDS), "backoff": pauses}


def _pauses() -> Iterator[float | None]:
    """Seconds between tries, then `None`."""
    for attempt in range(RETRIES):
        yield random.uniform(0.5, 1.0) * min(FIRST_PAUSE_SECONDS * 2**attempt, LONGEST_PAUSE_SECONDS)
    yield None


def _facts(meta: Any) -> Facts:
    return Facts(meta["path"], meta["size"], str(meta["e_tag"]), meta["version"], meta["last_modified"].timestamp())


def _told(bucket: str, key: str, said: str) -> str:
    """One line about what the storage answered; its own words hold no credentials, but addresses of many lines."""
    where = f"{bucket}/{key}" if key else bucket
    code = _first(r"<Code>(\w+)</Code>", said)
    status = _first(r"status code: (\d{3}[^:\n]*)", said)
    tries = _first(r"after (\d+) retries", said)
    seconds = _first(r"in ([\d.]+m?s), after", said)
    if code == "NoSuchBucket":
        return f"There is no bucket {bucket}. Make it, or give another."
    if "169.254.169.254" in said or "Account must be specified" in said:  # a machine's own account was asked, in vain
        scheme = bucket.partition("://")[0]
        return f"{where}: there are no credentials. Set {CREDENTIALS[scheme]}: docs/object-storage.md"
    if status[:3] in ("401", "403"):
        return f"{where}: access denied ({code or status}). Has the environment the credentials of this bucket?"
    reason = f"answers {status}{f' ({code})' if code else ''}" if status else _without_status(said)
    after = f", after {tries} retries in {seconds}" if tries else ""
    return f"{where}: the storage {reason}{after}. What was finished is kept; give the same command again."


def _without_status(said: str) -> str:
    reason = _first(r"HTTP error: ([^\n]+)", said) or said.strip().splitlines()[0][:200]
    return f"cannot be reached ({reason})"


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found.group(1).strip() if found else ""
