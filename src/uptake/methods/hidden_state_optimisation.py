"""Hidden-state optimisation (Yoshida & Gimpel 2021): adapts the key-value cache, no weight.

The cached keys and values of the text read are used for the next piece; the gradient of that piece's
loss, once it is scored, updates them by Adam. It needs no store; each piece costs one forward pass and a
backward pass to the cache.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from uptake.adaptation.delta import wide
from uptake.adaptation.optimizers import AdamW
from uptake.errors import BadInput, Diverged
from uptake.lm.base import LM, Cache, Scores, Segment, Wrapper
from uptake.lm.capabilities import KeyValueCache, capability
from uptake.lm.examples import Example, of_target
from uptake.lm.rows import row_by_row
from uptake.methods.contract.method import (
    Context,
    Evidence,
    Method,
    MethodSpec,
    State,
    charged_by_row,
    same_base,
)
from uptake.text.select import Nothing
from uptake.text.types import Source


@dataclass(frozen=True, kw_only=True)
class CacheState(State):
    """The keys and values of the last tokens read, a slot each, and Adam's moments of every slot.

    Tensors are [1, heads, slots, width], `slots` by `layer.keys` and `layer.values`, `optimizer_state` by
    these and the name of the moment. The last of `tokens` has no slot yet: it is the first
    input of whatever comes next, at `position`.
    """

    text: str = ""  # all that was read
    tokens: tuple[int, ...] = ()
    position: int = 0
    slots: dict[str, Tensor] = field(default_factory=dict)
    optimizer_state: dict[str, Tensor] = field(default_factory=dict)

    def last(self, count: int) -> Self:
        """Return this state with its last slots alone, `count` of them at most."""
        return replace(
            self,
            tokens=self.tokens[-count - 1 :],
            slots={name: tensor[..., -count:, :] for name, tensor in self.slots.items()},
            optimizer_state={name: tensor[..., -count:, :] for name, tensor in self.optimizer_state.items()},
        )


class Continued(Wrapper):
    """Row i goes on from states[i], whose slots stand before whatever it is given.

    They stand for the opening token and, in `score`, for a context that was just read.
    """

    def __init__(self, inner: LM, states: Sequence[CacheState]) -> None:
        super().__init__(inner)
        self.states, self.rows = list(states), len(states)

    def around(self, inner: LM) -> Self:
        return type(self)(inner, self.states)

    def at(self, rows: Sequence[int]) -> LM:
        return Continued(self.inner.at(rows), [self.states[row] for row in rows])

    def max_input_tokens(self, row: int) -> int:
        state = self.states[row]
        relative = capability(self.inner.at([row]), KeyValueCache).relative
        # A text that does not begin with the opening token is read after the last token, which has no slot.
        taken = max(0, len(state.tokens) - 1) if relative else state.position + bool(state.tokens)
        return self.inner.max_input_tokens(row) - taken

    def start(self) -> Cache:
        # One cache a row, because rows remember different lengths; None stands for "not yet begun".
        return [None] * len(self.states)

    def step(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        if cache is None and not any(state.tokens for state in self.states):
            return self.inner.step(ids, None, lengths)
        kept = cache if cache is not None else [None] * len(self.states)
        log_probs, after = row_by_row(self._step_row, ids, kept, lengths)
        return log_probs, cache and after

    def _step_row(self, row: int, ids: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        inner, state = capability(self.inner.at([row]), KeyValueCache), self.states[row]
        if cache is not None:
            return inner.step(ids, cache)
        if not state.tokens:
            return inner.step(ids, inner.start())
        rest = ids[:, 1:] if ids[0, 0] == self.tokenizer.opening else ids
        pending = torch.full_like(ids[:, :1], state.tokens[-1])
        log_probs, cache = inner.step(torch.cat([pending, rest], 1), _cache(state, state.slots))
        return log_probs[:, -ids.shape[1] :], cache

    def score(self, segments: Sequence[Segment], batch_tokens: int | None = None) -> list[Scores]:
        self._check_rows(len(segments))
        fresh = [
            Segment(segment.text) if state.text.endswith(segment.context) else segment
            for state, segment in zip(self.states, segments, strict=True)
        ]
        return super().score(fresh, batch_tokens)


@dataclass(frozen=True)
class HiddenStateOptimisation(Method[CacheState]):
    """One step of Adam on all slots for each piece of at most `chunk_tokens`, then slots of its own.

    A slot's moments stay with it until it is the oldest of more than `slots` and goes. Where
    positions come from a table, its end is not the end: the slots' tokens are then read again from
    its beginning, and what the steps had added to them is added again.
    """

    optimizer: AdamW = field(default_factory=lambda: AdamW(learning_rate=3e-3, weight_decay=0.0))
    chunk_tokens: int = 256  # at most a quarter of the window
    slots: int | None = None  # most that are kept; none: half the window
    own_prefix: bool = True  # read the query's own text first

    def __post_init__(self) -> None:
        if self.chunk_tokens < 1 or (self.slots is not None and self.slots < 1):
            raise BadInput(f"chunk_tokens {self.chunk_tokens}, slots {self.slots}: use 1 or more of each")

    @classmethod
    def example(cls) -> Self:
        return cls(optimizer=AdamW(learning_rate=0.1, weight_decay=0.0), chunk_tokens=8, slots=40)

    def check(self, lm: LM, source: Source | None = None) -> None:
        capability(lm, KeyValueCache)
        super().check(lm, source)

    def init(self, lm: LM) -> CacheState:
        return CacheState(base=lm.fingerprint)

    def adapt(
        self,
        states: Sequence[CacheState],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[CacheState]:
        def learn(row: int, state: CacheState, found: Evidence) -> CacheState:
            return self._adapt(row, state, lm, found, context)[0]

        return charged_by_row(learn, states, evidence, context, lm.device)

    def adapted(self, states: Sequence[CacheState], lm: LM) -> LM:
        same_base(states, lm)
        return Continued(lm, states)

    def read(
        self, states: Sequence[CacheState], lm: LM, segments: Sequence[Segment], context: Context
    ) -> tuple[list[Scores], list[CacheState]]:
        """Score each segment, then adapt to it: in one forward pass, where it is a single piece."""
        read = [
            self._read(row, state, lm, segment, context)
            for row, (state, segment) in enumerate(zip(states, segments, strict=True))
        ]
        return [scores for scores, _ in read], [state for _, state in read]

    def _read(
        self, row: int, state: CacheState, lm: LM, segment: Segment, context: Context
    ) -> tuple[Scores, CacheState]:
        evidence = Evidence.of(segment.text, query=segment.context)
        ids, spans = lm.tokenizer.encode(segment.text)
        if not state.text.endswith(segment.context) or not 0 < len(ids) <= self._size(lm):
            (scores,), (state,) = super().read([state], lm, [segment], context.of(row))
            return scores, state
        with context.charging([row], lm.device):
            after, log_probs = self._adapt(row, state, lm, evidence, context)
        return Scores.of(lm.tokenizer, segment.text, ids, spans, log_probs), after

    def _adapt(
        self, row: int, state: CacheState, lm: LM, evidence: Evidence, context: Context
    ) -> tuple[CacheState, Tensor]:
        """Return the state after reading, and what the last piece was scored with."""
        cached = capability(lm, KeyValueCache)
        texts = [(passage.prompt, passage.text) for passage in evidence.passages]
        if self.own_prefix and not state.history and evidence.prefix:
            texts = [("", evidence.prefix), *texts]
        after, ledger, log_probs = state, context.ledger(row), torch.zeros(0)
        try:
            for prompt, text in texts:
                for part, learnt in ((prompt, False), (text, True)):
                    for piece in self._pieces(lm, part):
                        learn = learnt and context.affords(row, len(piece))
                        after, log_probs = self._step(after, cached, piece, learn)
                        ledger.tokens_read += len(piece)
                        if learn:
                            ledger.tokens_trained += len(piece)
                            ledger.steps += 1
                    after = replace(after, text=after.text + part)
        except Diverged as error:
            ledger.stop("diverged", str(error))
            return state, log_probs
        return after.after(evidence, context) if texts else state, log_probs

    def _step(
        self, state: CacheState, lm: KeyValueCache, ids: Sequence[int], learn: bool
    ) -> tuple[CacheState, Tensor]:
        """Return the state after one piece, and the log-probabilities that the state before gave it."""
        before = state.tokens or tuple(lm.tokenizer.opened(""))
        piece = Example(before[-1:], tuple(ids))
        inputs = torch.tensor([piece.inputs], device=lm.device)
        leaves = {name: slot.detach().requires_grad_(learn) for name, slot in state.slots.items()}
        cache = _cache(state, leaves) if leaves else lm.start()
        with torch.set_grad_enabled(learn):
            log_probs, cache = lm.step(inputs, cache)
            log_probs = of_target(log_probs[0], piece)
        slots, optimizer_state = dict(state.slots), dict(state.optimizer_state)
        if learn and leaves:
            if not torch.isfinite(log_probs).all():
                raise Diverged("the loss is not finite: use a smaller learning rate")
            # The sum, not the mean: Adam knows no scale, and its epsilon should stay small beside it.
            gradients = torch.autograd.grad(-log_probs.sum(), list(leaves.values()))
            slots, optimizer_state = self.optimizer.update(
                slots, dict(zip(leaves, gradients, strict=True)), optimizer_state
            )
            for name in [] if lm.relative else slots:
                optimizer_state[f"{name}|shift"] = (
                    optimizer_state[f"{name}|shift"] + slots[name] - state.slots[name]
                )
        for name, fresh in _tensors(cache, len(before) - 1).items():
            slots[name] = _join(slots.get(name), fresh)
            for key in ("exp_avg", "exp_avg_sq", *(() if lm.relative else ("shift",))):
                optimizer_state[f"{name}|{key}"] = _join(
                    optimizer_state.get(f"{name}|{key}"), torch.zeros_like(fresh)
                )
            steps = torch.zeros_like(fresh[:, :1, :, :1])
            optimizer_state[f"{name}|step"] = _join(optimizer_state.get(f"{name}|step"), steps)
        after = replace(
            state,
            tokens=(*before, *ids),
            position=state.position + len(ids),
            slots=slots,
            optimizer_state=optimizer_state,
        ).last(self._most(lm))
        return self._back_to_the_beginning(after, lm), log_probs.detach()

    def _back_to_the_beginning(self, state: CacheState, lm: KeyValueCache) -> CacheState:
        """Return the state with its slots at the first positions, if the last ones are near."""
        if lm.relative or state.position + self._size(lm) <= lm.window:
            return state
        with torch.no_grad():
            _, cache = lm.step(torch.tensor([state.tokens[:-1]], device=lm.device), lm.start())
        slots = {
            name: fresh + state.optimizer_state[f"{name}|shift"] for name, fresh in _tensors(cache, 0).items()
        }
        return replace(state, slots=slots, position=len(state.tokens) - 1)

    def _pieces(self, lm: LM, text: str) -> Iterator[list[int]]:
        ids, size = lm.tokenizer.encode(text)[0], self._size(lm)
        for start in range(0, len(ids), size):
            yield ids[start : start + size]

    def _size(self, lm: LM) -> int:
        return max(1, min(self.chunk_tokens, lm.window // 4))

    def _most(self, lm: LM) -> int:
        return max(1, min(self.slots or lm.window, lm.window // 2))


def _join(old: Tensor | None, new: Tensor) -> Tensor:
    return new if old is None else torch.cat([old, new], -2)


def _tensors(cache: Any, start: int) -> dict[str, Tensor]:
    """Return the keys and values of a cache from slot `start` on, float32 or wider."""
    return {
        f"{number}.{kind}": wide(getattr(layer, kind)[..., start:, :].detach())
        for number, layer in enumerate(cache.layers)
        for kind in ("keys", "values")
    }


def _cache(state: CacheState, slots: Mapping[str, Tensor]) -> Any:
    """Return a cache that holds the slots, as of tokens up to the state's position."""
    from transformers import DynamicCache

    made = DynamicCache()
    gone = state.position - (len(state.tokens) - 1)
    for number in range(len(slots) // 2):
        made.layers.append(_layer()(slots[f"{number}.keys"], slots[f"{number}.values"], gone))
    return made


@functools.cache
def _layer() -> type:
    # Made on first use, because transformers is slow to import.
    from transformers.cache_utils import DynamicLayer

    class SlidingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
        """A cache layer whose first slots, `gone` of them, are no longer there."""

        def __init__(self, keys: Tensor, values: Tensor, gone: int) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.keys, self.values, self.gone = keys, values, gone
            self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

        def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> Any:
            keys, values = self.stored
            self.keys = torch.cat([keys.to(key_states.dtype), key_states], -2)
            self.values = torch.cat([values.to(value_states.dtype), value_states], -2)
            return self.keys, self.values

        def get_seq_length(self) -> int:
            return self.gone + int(self.stored[0].shape[-2])

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            return int(self.stored[0].shape[-2]) + query_length, self.gone

        @property
        def stored(self) -> tuple[Tensor, Tensor]:
            assert self.keys is not None and self.values is not None
            return self.keys, self.values

    return SlidingLayer


spec = MethodSpec(HiddenStateOptimisation(), Nothing(), segment=256)
