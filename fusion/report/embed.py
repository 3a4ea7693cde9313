"""Data for the page's own script: JSON that no HTML parser can leave, and arrays as base64."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
from markupsafe import Markup

# What could end the script element or begin a comment in it, and what JavaScript once took for a line's end.
_ESCAPES = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


def script_json(value: Any) -> Markup:
    """JSON to stand in `<script type="application/json">`. Raises `ValueError` on NaN."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # a lone surrogate from a broken file cannot be written as UTF-8
    return Markup(text.translate(_ESCAPES).encode("utf-8", "replace").decode("utf-8"))


def array_base64(values: np.ndarray) -> str:
    """The bytes of an array (n,) or (n, K), little-endian, row after row."""
    return base64.b64encode(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()).decode("ascii")
