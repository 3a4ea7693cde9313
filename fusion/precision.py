"""Whether matrix products are taken in bfloat16: where the device multiplies it natively, it is faster."""

from __future__ import annotations

import torch

from fusion.config import TrainingConfig


def resolved(training: TrainingConfig, device: torch.device) -> TrainingConfig:
    """With `fp32` or `bf16` in place of `auto`."""
    if training.precision != "auto":
        return training
    return training.model_copy(update={"precision": "bf16" if multiplies_bfloat16(device) else "fp32"})


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether it does; emulated products would be slower than float32's."""
    if device.type != "cpu":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    asked = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # of x86; on other processors they say no
    return any(getattr(torch.cpu, name, lambda: False)() for name in asked)
