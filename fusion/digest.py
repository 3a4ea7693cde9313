"""A fingerprint of values that decide something, whatever they are made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
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
