"""Arrays just as this project writes them in Zarr, read without zarr-python, in a fraction of its time.

A chunk is its rows in this machine's byte order, or its texts, and a checksum. Whatever is described in another way, or
is damaged, is left to zarr-python, which reads it or says what is wrong.
Source: Zarr core specification 3.0, "Array metadata"; the codecs `bytes`, `crc32c` and, for texts, `vlen-utf8`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
from numcodecs.vlen import VLenUTF8  # type: ignore[import-untyped]

from stores.base import STRING

CHECKSUM_BYTES = 4
NUMBERS = {"bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))}
NUMBERS |= {"float16", "float32", "float64"}


@dataclass(frozen=True)
class PlainArray:
    """shape: (N, …). A chunk is `chunk_rows` rows of it, the last one, too; the other axes are never cut."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk_rows: int

    def read_chunk(self, file: str, into: np.ndarray) -> bool:
        """Read the first rows of a chunk; false where zarr-python has to say what is wrong. into: (n, …)."""
        try:
            with open(file, "rb", buffering=0) as opened:  # noqa: PTH123 (a `Path` costs as much as the reading)
                if self.dtype == STRING or len(into) < self.chunk_rows:
                    self.decode(opened.read(), into)
                    return True
                content = into.reshape(-1).view(np.uint8)
                return opened.readinto(content.data) == len(content) and _is_right(content, opened.read())
        except (OSError, ValueError):
            return False

    def decode(self, stored: bytes | memoryview, into: np.ndarray) -> None:
        """The first rows of a chunk, (n, …). Raises `ValueError` where length or checksum are not as expected."""
        if not is_whole(stored):
            raise ValueError("stored and computed checksum do not match")
        content = np.frombuffer(stored, np.uint8)[:-CHECKSUM_BYTES]
        if self.dtype == STRING:
            rows = VLenUTF8().decode(content)
        else:
            rows = content.view(self.dtype).reshape(-1, *self.shape[1:])
        if len(rows) != self.chunk_rows:
            raise ValueError(f"the chunk has {len(rows):,} rows, not {self.chunk_rows:,}")
        into[:] = rows[: len(into)]


def plain_array(document: Any) -> PlainArray | None:
    """What a node's `zarr.json` describes, if that is an array as this project writes them."""
    try:
        shape, kind = tuple(document["shape"]), document["data_type"]
        codecs = [(codec["name"], codec.get("configuration") or {}) for codec in document["codecs"]]
        grid, keys = document["chunk_grid"], document["chunk_key_encoding"]
        chunk_rows, *others = grid["configuration"]["chunk_shape"]
        is_plain = (
            document["node_type"] == "array"
            and document["zarr_format"] == 3
            and not document.get("storage_transformers")
            and grid["name"] == "regular"
            and tuple(others) == shape[1:]
            and keys["name"] == "default"
            and keys.get("configuration", {}).get("separator", "/") == "/"
            and codecs in _codecs(kind)
            and all(isinstance(length, int) for length in (*shape, chunk_rows))
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    if not is_plain or chunk_rows < 1:
        return None
    return PlainArray(shape, STRING if kind == "string" else np.dtype(kind), chunk_rows)


def _codecs(kind: str) -> list[list[tuple[str, dict[str, Any]]]]:
    """How arrays of such a type may be stored."""
    if kind == "string":
        return [[("vlen-utf8", {}), ("crc32c", {})]]
    if kind not in NUMBERS or sys.byteorder != "little":
        return []
    little: list[tuple[str, dict[str, Any]]] = [("bytes", {"endian": "little"}), ("crc32c", {})]
    single: list[tuple[str, dict[str, Any]]] = [("bytes", {}), ("crc32c", {})]
    return [little, single] if np.dtype(kind).itemsize == 1 else [little]


def is_whole(stored: bytes | memoryview) -> bool:
    """Whether a chunk as it is stored ends in its checksum."""
    return _is_right(np.frombuffer(stored, np.uint8)[:-CHECKSUM_BYTES], stored[-CHECKSUM_BYTES:])


def _is_right(content: np.ndarray, checksum: bytes | memoryview) -> bool:
    return len(checksum) == CHECKSUM_BYTES and google_crc32c.value(content) == int.from_bytes(checksum, "little")
