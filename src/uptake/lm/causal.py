"""Any Hugging Face causal language model as an LM."""

import inspect
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from uptake.adaptation.delta import skeleton, wide
from uptake.adaptation.delta.overlay import input_tokens_taken
from uptake.adaptation.side_by_side import by_row
from uptake.errors import BadInput
from uptake.lm.base import LMT, Cache
from uptake.lm.capabilities import (
    FeedForwardKeys,
    HiddenStates,
    KeyValueCache,
    Layers,
    SelectedPlaces,
    Slots,
    Unembedding,
    refusal,
)
from uptake.lm.examples import Example
from uptake.lm.feed_forward_input import FeedForwardInput
from uptake.lm.frozen_layers import FrozenLayers
from uptake.lm.pretrained import Pretrained, most_tokens
from uptake.lm.rows import RowCaches, each_row
from uptake.text.tokenizer import Tokenizer


class Causal(Pretrained, HiddenStates, FeedForwardKeys, Layers, SelectedPlaces, KeyValueCache):
    """A causal language model; its module is frozen and from then on never changed."""

    def __init__(
        self,
        module: nn.Module,
        tokenizer: Tokenizer,
        name: str = "",
        base: str | None = None,
        quantisation: str = "",
    ) -> None:
        super().__init__(module, tokenizer, name, base, quantisation)
        self._frozen_layers: dict[int, FrozenLayers] = {}
        config: Any = module.config
        # Parts of a delta that stand before the text, as a soft prompt, take inputs up.
        self._taken = input_tokens_taken(module)
        whole = most_tokens(config, tokenizer)
        self.window = whole - self._taken
        if self._taken and self.window < 2:
            # One is for what opens a text; after it there has to be room for a token.
            raise BadInput(
                f"{self._taken:,} of the model's {whole:,} input tokens are taken by soft prompts, which "
                f"leaves no room for a text: use a prompt of at most {whole - 2:,} tokens"
            )
        self.relative = _relative(config)

    def capable(self, kind: type[LMT]) -> LMT | None:
        # A layer that reads its last tokens side by side has no attention to more than the text.
        if kind is Layers and getattr(self.module, "reads_in_order", False):
            return None
        return super().capable(kind)

    def start(self) -> Cache:
        from transformers import DynamicCache

        return DynamicCache()

    def step(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        if self._blind and (lengths is not None or isinstance(cache, RowCaches)):
            return each_row(self, ids, cache, lengths)
        out = self._run(self.module, ids, cache, lengths)
        return torch.log_softmax(wide(out.logits), -1), None if cache is None else out.past_key_values

    def hidden(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        inner: Any = self.module.base_model
        if inner is self.module:
            raise BadInput(refusal(self, HiddenStates))
        out = self._run(inner, ids, cache, lengths)
        return wide(out.last_hidden_state), None if cache is None else out.past_key_values

    @cached_property
    def unembedding(self) -> Unembedding:
        matrix: Any = self.module.get_output_embeddings()  # type: ignore[operator]
        found = Unembedding(self._now(matrix.weight), self._now(getattr(matrix, "bias", None)))
        # Some models cap or scale their logits afterwards: then this is not what they compute.
        probe = torch.tensor([[self.tokenizer.opening]], device=self.device)
        with torch.no_grad():
            logits = wide(self._run(self.module, probe, None).logits)
            off = (found.logits(self.hidden(probe)[0]) - logits).abs().max()
        if off > (1e-2 if self.dtype.itemsize < 4 else 1e-4) * logits.abs().max():
            raise BadInput(
                f"{type(self.module).__name__} makes more of its logits than its output embedding does: "
                "use a model without capped or scaled logits"
            )
        return found

    def step_at(self, ids: Tensor, places: Tensor) -> Tensor:
        # Models of before transformers could choose places make logits at all of them.
        some = "logits_to_keep" in inspect.signature(self.module.forward).parameters
        chosen: dict[str, Any] = {"logits_to_keep": places} if some else {}
        logits = self._run(self.module, ids, None, **chosen).logits
        return torch.log_softmax(wide(logits if some else logits[:, places]), -1)

    def read_on(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None, **more: Any
    ) -> tuple[Tensor, Cache]:
        # `more` goes to the module: positions and a mask of one's own.
        if self._blind and (lengths is not None or isinstance(cache, RowCaches)):
            return super().read_on(ids, cache, lengths)
        out = self._run(self.module, ids, cache, lengths, **self._last_alone, **more)
        return torch.log_softmax(wide(out.logits[:, -1]), -1), None if cache is None else out.past_key_values

    def read_on_at(self, ids: Tensor, cache: Cache, last: int, **more: Any) -> Tensor:
        """Return what `read_on` does at the last places, [rows, last, vocabulary]."""
        some: dict[str, Any] = dict.fromkeys(self._last_alone, last)
        logits = self._run(self.module, ids, cache, **some, **more).logits[:, -last:]
        return torch.log_softmax(wide(logits), -1)

    def read_on_with_keys(self, ids: Tensor, cache: Cache, **more: Any) -> tuple[Tensor, Tensor, Cache]:
        """Return what `read_on` does and, second, the key of each place, [rows, time, width]."""
        keyed = self._with_keys
        out = self._run(keyed.module, ids, cache, **self._last_alone, **more)
        keys = wide(keyed.seen()[:, -ids.shape[1] :])
        return torch.log_softmax(wide(out.logits[:, -1]), -1), keys, out.past_key_values

    @property
    def _last_alone(self) -> dict[str, Any]:
        """What makes the module compute logits at the last place alone, where it can."""
        some = "logits_to_keep" in inspect.signature(self.module.forward).parameters
        return {"logits_to_keep": 1} if some else {}

    def predictions(self, examples: Sequence[Example]) -> list[Tensor]:
        ids = examples[0].inputs if len(examples) == 1 else ()
        first = len(ids) - len(examples[0].target) if ids else 0
        if not first:
            return super().predictions(examples)
        # No logits before the target: of a long context and a large vocabulary they are most of the memory.
        places = torch.arange(first, len(ids), device=self.device)
        return [*self.step_at(torch.tensor([ids], device=self.device), places)]

    def frozen_layers(self, count: int) -> FrozenLayers:
        """Return what keeps the output of the lowest `count` blocks, the same one each time."""
        if count not in self._frozen_layers:
            self._frozen_layers[count] = FrozenLayers(
                self.module, count, lambda module, ids: self._run(module, ids, None)
            )
        return self._frozen_layers[count]

    def step_with_keys(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor, Cache]:
        keyed = self._with_keys  # two threads may both have made one
        out = self._run(keyed.module, ids, cache, lengths)
        log_probs = torch.log_softmax(wide(out.logits), -1)
        keys = wide(keyed.seen()[:, -ids.shape[1] :])
        return log_probs, keys, None if cache is None else out.past_key_values

    def keys(self, ids: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        keyed = self._with_keys
        self._run(keyed.module.base_model, ids, None, lengths)  # type: ignore[arg-type]
        return wide(keyed.seen()[:, -ids.shape[1] :])

    @cached_property
    def _with_keys(self) -> FeedForwardInput:
        return FeedForwardInput(self.module)

    @property
    def pads(self) -> bool:
        return not self._blind

    def layers(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[tuple[Tensor, ...], Cache]:
        out = self._run(self._private, ids, cache, lengths, output_hidden_states=True, logits_to_keep=1)
        return tuple(map(wide, out.hidden_states)), None if cache is None else out.past_key_values

    @cached_property
    def _private(self) -> nn.Module:
        """These weights in a module that takes hooks: transformers leaves some where it returns layers."""
        return self.module if self._base else skeleton(self.module)

    def step_with_slots(self, ids: Tensor, places: Tensor, slots: Slots, cache: Cache) -> Tensor:
        joined, known = self.start(), cache.get_seq_length()
        for layer, (keys, values, *_) in enumerate(cache):
            more = slots.keys[layer].to(keys.dtype), slots.values[layer].to(values.dtype)
            joined.update(torch.cat([keys, more[0]], 2), torch.cat([values, more[1]], 2), layer)
        columns, gaps = torch.arange(known, device=self.device), getattr(cache, "gaps", None)
        before, positions = columns < places[..., None], places
        if gaps is not None:
            before, positions = before & (columns >= gaps[..., None]), (places - gaps).clamp(min=0)
        own = torch.eye(ids.shape[1], dtype=torch.bool, device=self.device).expand(*ids.shape, -1)
        seen = torch.cat([before, own.repeat_interleave(slots.each, -1), own], -1)
        barred = torch.zeros(seen.shape, dtype=self.dtype, device=self.device)
        barred = barred.masked_fill(~seen, torch.finfo(self.dtype).min)[:, None]
        out = self._run(self.module, ids, joined, position_ids=positions, attention_mask=barred)
        return torch.log_softmax(wide(out.logits), -1)

    def _run(
        self,
        module: nn.Module,
        ids: Tensor,
        cache: Cache,
        lengths: Sequence[int] | None = None,
        **more: Any,
    ) -> Any:
        arguments = {
            "input_ids": ids,
            "past_key_values": cache,
            "use_cache": cache is not None,
            **self._places(module, ids, cache, lengths),
            **more,
        }
        inside = getattr(self.module, "base_model_prefix", "")  # a module of one's own may name none
        prefix = "" if type(module) is type(self.module) else f"{inside}."
        return self._call(module, arguments, prefix)

    @property
    def _blind(self) -> bool:
        """Whether padding, which sees no token, would be no number: eager attention is float32 at most."""
        config: Any = self.module.config
        return self.dtype == torch.float64 and getattr(config, "_attn_implementation", "") == "eager"

    def _places(
        self, module: nn.Module, ids: Tensor, cache: Cache, lengths: Sequence[int] | None
    ) -> dict[str, Tensor]:
        """Return what the module needs for rows of different length: the mask, and each token's position."""
        gaps: Tensor | None = getattr(cache, "gaps", None)
        if lengths is not None:
            if self._blind:
                raise BadInput(
                    "float64 with eager attention cannot hold rows of different length: use float32"
                )
            gaps = ids.shape[1] - torch.tensor(lengths, device=self.device)[:, None]
            if cache is not None:
                cache.gaps = gaps  # what reads on from this cache has to know
        if gaps is None:
            return {}
        # What a soft prompt has in the cache, the module itself adds to mask and positions.
        known = 0 if cache is None else max(0, cache.get_seq_length() - self._taken)
        columns = torch.arange(known + ids.shape[1], device=self.device)
        found = {"attention_mask": (columns >= gaps).long()}
        if "position_ids" in inspect.signature(module.forward).parameters:  # else they come of the mask
            found["position_ids"] = (columns - gaps)[:, known:].clamp(min=0)
        return found

    def _now(self, parameter: Any) -> Any:
        """Return what replaces a parameter."""
        names = {id(own): name for name, own in self.module.named_parameters()}
        return (self._replaced or {}).get(names.get(id(parameter), ""), parameter)

    @cached_property
    def by_row(self) -> dict[str, bool]:
        """The weights that rows of a batch may differ in, and whether each is stored [in, out]."""
        if self._replaced is not None:
            return {}
        return by_row(self.module, lambda module, ids: self._run(module, ids.to(self.device), None))

    def around(self, module: nn.Module) -> "Causal":
        """Return this LM with the weights of another module, a private one, in place of its own."""
        copy = Causal(module, self.tokenizer, self.name, self.fingerprint)
        copy.device, copy.dtype = self.device, self.dtype
        return copy


def _relative(config: Any) -> bool:
    """Return whether positions are rotations whose speed does not depend on the length of the text."""
    rotary = getattr(config, "rope_parameters", None) or {}
    return rotary.get("rope_type") in ("default", "linear", "llama3", "yarn")
