"""Which weights of an encoder learn: all, the last blocks, or low-rank updates of its attention (LoRA).

Source: Hu et al. 2022, "LoRA: Low-rank adaptation of large language models"; by `peft`. An update of rank r starts as
nothing, and is added to the weights in the end, so that what is left is a plain encoder.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from torch import nn

from featurize.encoders.base import Encoder
from featurize.errors import ConfigError
from fusion.config import FinetuningConfig

# What attention is called in models of transformers (attention, attn, SelfAttention), and its matrices in our own
ATTENTION = re.compile("attention|attn|to_queries_keys_values|to_states", re.IGNORECASE)
MATRICES = ("Linear", "NonDynamicallyQuantizableLinear", "Conv1D")  # the last is GPT-2's


def can_learn(encoder: Encoder) -> bool:
    """Whether it has weights that a gradient can reach; what `lsa` fitted is none."""
    return any(True for _ in encoder.parameters())


def of_slot(setting: int | dict[str, int] | None, slot: str) -> int | None:
    """What `finetuning.last_layers` or `finetuning.lora` says for a slot."""
    return setting.get(slot) if isinstance(setting, dict) else setting


class Unfrozen:
    """A slot's encoder, of which just those weights learn that the configuration names. Raises `ConfigError`."""

    def __init__(self, slot: str, encoder: Encoder, config: FinetuningConfig):
        self.encoder = encoder
        self.last_layers, self.lora = of_slot(config.last_layers, slot), of_slot(config.lora, slot)
        self._low_rank: Any = None
        if self.last_layers and self.lora:
            raise ConfigError(f"Slot {slot} has both last_layers and lora; choose one of them.")
        encoder.requires_grad_(self.last_layers is None and self.lora is None)
        if self.last_layers is not None:
            _unfreeze_last(slot, encoder, self.last_layers)
        if self.lora is not None:
            self._low_rank = _add_low_rank(slot, encoder, self.lora)
        self.recomputes = config.gradient_checkpointing and encoder.recompute_activations()

    @property
    def n_weights(self) -> int:
        """How many numbers learn."""
        return sum(weight.numel() for weight in self.encoder.parameters() if weight.requires_grad)

    def merge(self) -> None:
        """Add low-rank updates to the weights that they belong to, and leave nothing else behind."""
        if self._low_rank is not None:
            self._low_rank.merge_and_unload()
            self._low_rank = None


def _unfreeze_last(slot: str, encoder: Encoder, n_blocks: int) -> None:
    blocks = encoder.ordered_blocks()
    if not 1 <= n_blocks <= len(blocks):
        has = f"has {len(blocks)} blocks" if blocks else "has no blocks to tell apart"
        raise ConfigError(
            f"Slot {slot}: last_layers is {n_blocks}, but encoder {encoder.name} {has}.\n"
            f"Say for which slots it is: --set finetuning.last_layers='{{text: {n_blocks}}}'."
        )
    for block in blocks[-n_blocks:]:
        block.requires_grad_(True)


def _add_low_rank(slot: str, encoder: Encoder, rank: int) -> Any:
    if find_spec("peft") is None:
        raise ConfigError("LoRA needs peft: pip install 'triad-fusion[finetune]', or leave --lora away.")
    from peft import LoraConfig, LoraModel

    names = _attention_matrices(encoder, encoder.ordered_blocks())
    if not names:
        raise ConfigError(
            f"Slot {slot}: encoder {encoder.name} has no attention that LoRA could update.\n"
            f"Say for which slots it is: --set finetuning.lora='{{text: {rank}}}', or leave {slot} out of --unfreeze."
        )
    # alpha: what is learned counts twice, as in the authors' code for language models, whatever the rank
    settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names, fan_in_fan_out=_is_transposed(encoder))
    return LoraModel(encoder, settings, "default")


def _attention_matrices(encoder: Encoder, blocks: Sequence[nn.Module]) -> list[str]:
    inside = {id(module) for block in blocks for module in block.modules()}
    return [
        name
        for name, module in encoder.named_modules()
        if id(module) in inside and type(module).__name__ in MATRICES and ATTENTION.search(name)
    ]


def _is_transposed(encoder: Encoder) -> bool:
    return any(type(module).__name__ == "Conv1D" for module in encoder.modules())
