"""Keys and values that lie in place: rows of their own lengths write each token at its own column."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


class InPlace(DynamicCache):
    """A cache over keys and values [rows, heads, width, size] of each layer; `columns` [rows, time]."""

    def __init__(self, layers: Sequence[Any] | Tensor, columns: Tensor) -> None:
        super().__init__()
        self._kept, self._columns = layers, columns
        self._rows = torch.arange(len(columns), device=columns.device)[:, None]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        keys, values = self._kept[layer_idx]
        keys[self._rows, :, self._columns] = key_states.transpose(1, 2).to(keys.dtype)
        values[self._rows, :, self._columns] = value_states.transpose(1, 2).to(values.dtype)
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0
