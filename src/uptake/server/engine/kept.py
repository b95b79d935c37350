"""The memory that an adapted state keeps: whatever of it is not the base's own."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from uptake.lm.base import LM


def tensors(value: Any) -> dict[int, int]:
    """Return the bytes of every tensor and array that a value keeps, by where in memory they begin.

    Looked into are models and modules, data classes, mappings and sequences. A store that is searched
    on and on is none of these: it is open anyway.
    """
    seen, found, stack = dict[int, Any](), dict[int, int](), [value]
    while stack:
        one = stack.pop()
        if id(one) in seen:
            continue
        seen[id(one)] = one  # held, so that no other takes its place in memory
        if isinstance(one, torch.Tensor):
            storage = one.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        elif isinstance(one, np.ndarray):
            found[one.__array_interface__["data"][0]] = one.nbytes
        elif isinstance(one, nn.Module):
            stack += [*one.parameters(), *one.buffers()]
        elif isinstance(one, LM):
            stack += vars(one).values()
        elif dataclasses.is_dataclass(one) and not isinstance(one, type):
            stack += [getattr(one, part.name) for part in dataclasses.fields(one)]
        elif isinstance(one, Mapping):
            stack += one.values()
        elif isinstance(one, tuple | list):
            stack += one
    return found
