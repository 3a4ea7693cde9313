"""A run's JSON files, as this version wrote them or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stores.errors import TriadError


def read_run_json(path: Path, needed: Iterable[str] = ()) -> dict[str, Any]:
    """A mapping with the keys in `needed`. Raises `TriadError`."""
    try:
        values = json.loads(path.read_text("utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"it holds a {type(values).__name__}")
        if missing := [key for key in needed if key not in values]:
            raise ValueError(f"it lacks {', '.join(missing)}")
    except (OSError, ValueError, RecursionError) as error:
        raise TriadError(f"{path} cannot be read ({error}). Train the run again with cli fit.") from error
    return values
