"""A fingerprint of values that decide something, and of the code that does."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch


def digest(value: Any) -> str:
    """SHA-256 of plain values, arrays and tensors, and of lists, mappings and dataclasses of them, in their order."""
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    if is_dataclass(value):
        value = [[field.name, getattr(value, field.name)] for field in fields(value)]
    if isinstance(value, Mapping):
        value = [[key, item] for key, item in value.items()]
    if isinstance(value, list | tuple):
        return hashlib.sha256(json.dumps([digest(item) for item in value]).encode()).hexdigest()
    if isinstance(value, np.ndarray) and value.dtype.kind != "T":
        hashed = hashlib.sha256(f"{value.dtype} {value.shape}".encode())
        hashed.update(np.ascontiguousarray(value).data)
        return hashed.hexdigest()
    plain = value.tolist() if isinstance(value, np.ndarray) else value
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()


@cache
def code_digest(*modules: str) -> str:
    """Of the source of these and of what they import from `fusion`; a fusion more in the list changes nothing."""
    sources: dict[str, str] = {"fusion.modules": ""}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        file = _source_file(name)
        if name in sources or file is None:
            continue
        sources[name] = file.read_text("utf-8")
        for node in ast.walk(ast.parse(sources[name])):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "fusion":
                waiting += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    return digest(sorted(sources.items()))


def _source_file(module: str) -> Path | None:
    """`None` for what is no module, such as a class in one."""
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec is not None and spec.origin is not None else None
