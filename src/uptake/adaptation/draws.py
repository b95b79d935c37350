"""Random draws of code that takes no generator (dropout, the first values of layers), from one of ours.

torch has one global generator for a whole process: whoever seeds it or draws from it changes what others
draw, in other threads too. Within `drawing_from` whatever this thread draws comes from a generator of its
own, and the global one is neither read nor changed.
"""

import inspect
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional, init
from torch.overrides import TorchFunctionMode

from uptake.errors import BadInput

_now = threading.local()

# These accept a `generator`, and without one use the global one.
_WITH_GENERATOR: frozenset[Callable[..., Any]] = frozenset(
    (
        *(torch.rand, torch.randn, torch.randint, torch.randperm),
        *(torch.normal, torch.bernoulli, torch.multinomial, torch.poisson),
        *(Tensor.bernoulli, Tensor.multinomial),
        *(Tensor.uniform_, Tensor.normal_, Tensor.bernoulli_, Tensor.random_, Tensor.exponential_),
        *(Tensor.geometric_, Tensor.cauchy_, Tensor.log_normal_),
        *(init.uniform_, init.normal_, init.trunc_normal_, init.kaiming_uniform_, init.kaiming_normal_),
    )
)
_UNKNOWN: frozenset[Callable[..., Any]] = frozenset(
    (
        *(functional.dropout1d, functional.dropout2d, functional.dropout3d),
        *(functional.alpha_dropout, functional.feature_alpha_dropout),
        functional.rrelu,
    )
)


@cache
def _draws(func: Callable[..., Any]) -> bool:
    """Whether a function draws, from the global generator where it is given none."""
    if func in _WITH_GENERATOR:
        return True
    # While transformers initialises a model, its own functions stand in the place of torch's.
    own = getattr(func, "__module__", "") == "transformers.initialization"
    return own and "generator" in inspect.signature(func).parameters


class _Draws(TorchFunctionMode):
    """Sees every function of torch that this thread calls, and passes a generator to those that draw."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self._generators = {generator.device: generator}
        self.seed = generator.initial_seed()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if _draws(func) and named.get("generator") is None:
            device = _device(args, named)
            # A tensor without storage, as a loader makes them first, draws nothing.
            return func(*args, **named | ({} if device.type == "meta" else {"generator": self._at(device)}))
        if func is functional.dropout:
            return self._dropout(*args, **named)
        if func is functional.scaled_dot_product_attention:
            dropped = args[4] if len(args) > 4 else named.get("dropout_p", 0.0)
            return self._attention(*args, **named) if dropped > 0 else func(*args, **named)
        if func in _UNKNOWN and (named.get("training") or True in args[2:3]):
            raise BadInput(f"{func.__name__} draws from torch's global generator: train without dropout")
        return func(*args, **named)

    def _at(self, device: torch.device) -> torch.Generator:
        """Return the generator of a device: a GPU draws by one of its own."""
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self.seed)
        return self._generators[device]

    def _dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0:
            return functional.dropout(input, p, training, inplace)
        if p == 1:
            return input.mul_(0) if inplace else input * 0
        # As torch does it on a CPU, to the bit.
        kept = torch.empty_like(input).bernoulli_(1 - p, generator=self._at(input.device)).div_(1 - p)
        return input.mul_(kept) if inplace else input * kept

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if enable_gqa:
            groups = query.shape[-3] // key.shape[-3]
            key, value = (each.repeat_interleave(groups, -3) for each in (key, value))
        scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attn_mask is not None:
            barred = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -math.inf) if barred else scores + attn_mask
        return self._dropout(scores.softmax(-1).to(value.dtype), dropout_p) @ value


@contextmanager
def drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Let whatever this thread draws in the block come from `generator`.

    A GPU draws by a generator of its own, from the same seed. Attention with dropout is
    computed step by step. Raises BadInput for kinds of dropout that language models have no use for.
    """
    before = getattr(_now, "seed", None)
    mode = _Draws(generator)
    _now.seed = mode.seed
    try:
        with mode:
            yield
    finally:
        _now.seed = before


def seed_of_draws() -> int:
    """Return the seed of the generator that is drawn from here and now."""
    seed = getattr(_now, "seed", None)
    return torch.initial_seed() if seed is None else int(seed)


def _device(args: tuple[Any, ...], named: Mapping[str, Any]) -> torch.device:
    """Return the device of the tensor that the numbers are drawn for, or else the named one."""
    given = next((each for each in (*args, *named.values()) if isinstance(each, Tensor)), None)
    if given is not None:
        return given.device
    return torch.device(named.get("device") or torch.get_default_device())
