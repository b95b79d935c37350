"""A soft prompt: vectors that stand before every text, where a text has embeddings (Lester et al. 2021).

It uses as many of the max input tokens as it has vectors. Hooks on the transformer put it before the
embeddings of a text that begins, shift what goes on from a cache, and take its places out of what comes out.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from uptake.adaptation.delta.overlay import Overlay
from uptake.adaptation.delta.part import Name, Part
from uptake.errors import BadInput, Mismatch

HOOKS = "soft_prompts"  # of a transformer: the hook that knows them


@dataclass(frozen=True, eq=False)
class Prompt(Part):
    """`vectors` [tokens, width] before the text, on the whole model; several stand in their owners' order.

    It can be neither added to another nor scaled: it is an input and no difference.
    """

    vectors: Tensor

    @property
    def input_tokens(self) -> int:
        return len(self.vectors)

    def apply(self, site: Overlay[Any], name: Name) -> dict[str, nn.Parameter]:
        if name.path:
            raise Mismatch(f'a soft prompt on {name.path!r}: it stands before the whole text, name it ""')
        transformer = transformer_of(site.module)
        width = transformer.get_input_embeddings().weight.shape[1]
        if self.vectors.ndim != 2 or self.vectors.shape[1] != width:
            raise Mismatch(
                f"a soft prompt of shape {tuple(self.vectors.shape)} before embeddings of width {width}: use "
                "the base it was made on"
            )
        key = f"prompt_of_{name.owner}"
        parameter = site.register(transformer, key, self.vectors)
        before = getattr(transformer, HOOKS, None)
        if before is None:
            before = []
            setattr(transformer, HOOKS, before)
            transformer.register_forward_pre_hook(_put_before, with_kwargs=True)
            transformer.register_forward_hook(_take_out, with_kwargs=True)
        before.append(key)
        site.take_input_tokens(self.input_tokens)
        return {"vectors": parameter}


def transformer_of(module: Any) -> Any:
    """Return what is between embeddings and logits. Raises BadInput for a module of another build."""
    found = getattr(module, "base_model", None)
    if getattr(getattr(module, "config", None), "is_encoder_decoder", False):
        raise BadInput(
            f"{type(module).__name__} is an encoder-decoder, and a soft prompt stands before one text "
            "alone: use a causal model, or trainable=lora"
        )
    if found is None or found is module or not hasattr(found, "get_input_embeddings"):
        raise BadInput(
            f"{type(module).__name__} has no embeddings to put a soft prompt before: use a causal model"
        )
    return found


def _vectors(transformer: Any, rows: int) -> Tensor:
    """Return what stands before each row, [rows, tokens, width].

    A tensor given in a prompt's place may hold one for each row (`LM.with_parameters`).
    """
    own = [getattr(transformer, key) for key in getattr(transformer, HOOKS)]
    return torch.cat([each.expand(rows, -1, -1) for each in own], 1)


def _put_before(
    transformer: Any, inputs: tuple[Any, ...], more: dict[str, Any]
) -> tuple[tuple[Any, ...], Any]:
    # Some families hand the transformer its first inputs by place.
    more = {**dict(zip(inspect.signature(transformer.forward).parameters, inputs, strict=False)), **more}
    embeddings = more.get("inputs_embeds")
    ids: Any = more.get("input_ids")
    rows = len(ids if embeddings is None else embeddings)
    vectors = _vectors(transformer, rows)
    count = vectors.shape[1]
    begins = not _length(more)
    mask, places = more.get("attention_mask"), more.get("position_ids")
    if mask is not None:
        if mask.ndim != 2:
            raise BadInput(
                "a model with a soft prompt takes a mask of one row a text: read on its base instead"
            )
        more["attention_mask"] = torch.cat([mask.new_ones(rows, count), mask], 1)
    if places is not None:
        places = places + count
        if begins:
            own = torch.arange(count, device=places.device).expand(rows, -1)
            places = torch.cat([own, places.expand(rows, -1)], 1)
        more["position_ids"] = places
    if begins:
        if embeddings is None:
            embeddings = transformer.get_input_embeddings()(ids)
        more["inputs_embeds"] = torch.cat([vectors.to(embeddings.dtype), embeddings], 1)
        more["input_ids"] = None
    return (), more


def _take_out(transformer: Any, inputs: tuple[Any, ...], more: dict[str, Any], output: Any) -> Any:
    hidden = output.last_hidden_state
    # Who goes on from a cache finds more in it than these places.
    if _length(more) not in (0, hidden.shape[1]):
        return output
    count = sum(getattr(transformer, key).shape[-2] for key in getattr(transformer, HOOKS))
    output.last_hidden_state = hidden[:, count:]
    if output.get("hidden_states") is not None:
        output.hidden_states = tuple(layer[:, count:] for layer in output.hidden_states)
    return output


def _length(more: dict[str, Any]) -> int:
    cache = more.get("past_key_values")
    return 0 if cache is None else int(cache.get_seq_length())
