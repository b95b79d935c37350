"""The weights that CaMeLS learnt (Hu et al. 2023), for any gradient method and any language model."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from uptake.adaptation.draws import drawing_from
from uptake.adaptation.token_weights.base import Spans, TokenWeights
from uptake.adaptation.token_weights.network import Weighing, from_file
from uptake.errors import BadInput
from uptake.text.types import Passage

_loaded: OrderedDict[tuple[object, ...], Weighing] = OrderedDict()
_loading = threading.RLock()
_LOADED = 2  # networks that stay loaded


@dataclass(frozen=True)
class Camels(TokenWeights):
    """What a small language model was trained to find worth learning: a file from `uptake train camels`."""

    weights: str = ""
    network: Weighing | None = field(
        default=None, repr=False, compare=False, metadata={"setting": False}
    )  # one at hand, in place of a file

    def of(self, passage: Passage, spans: Spans, before: Sequence[Passage] = ()) -> Tensor:
        return (self.network or self._load()).of(passage.text, spans)

    def _load(self) -> Weighing:
        """Read the network, once."""
        path = Path(self.weights)
        if not self.weights or not path.is_file():
            raise BadInput(
                f"token_weights=camels(weights={self.weights}): there is no such file; make one with "
                "`uptake train camels`"
            )
        found = path.stat()
        key = (path.resolve(), found.st_mtime_ns, found.st_size)
        with _loading, drawing_from(torch.Generator()):  # the weights it is made with are replaced
            if key not in _loaded:
                _loaded[key] = from_file(path).requires_grad_(False).eval()
                while len(_loaded) > _LOADED:
                    _loaded.popitem(last=False)
            return _loaded[key]
