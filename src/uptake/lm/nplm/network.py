"""The networks of NPLM and Transformer-N, and a Transformer of the same build.

A layer adds what it computes to what it read and normalises the sum. Of the first layer
nothing but embeddings is cached. A place before the text, or in the padding of a shorter row, reads as zeros,
so padding on the left changes nothing. Source: Sun & Iyyer 2021, arXiv 2104.03474, and their code.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

from uptake.errors import BadInput
from uptake.lm.nplm.configuration import NPLMConfig


class Averages(nn.Module):
    """Learnt averages of the `far` tokens before the `near` last ones, uniform at first.

    `kernels` is [averages, far]: the weight of the token that stands `near` + j before, j from 0. They are
    not held to sum to one.
    """

    def __init__(self, config: NPLMConfig) -> None:
        super().__init__()
        self.near, self.far = config.near, config.far
        self.kernels = nn.Parameter(torch.full((config.averages, config.far), 1 / config.far))

    def forward(self, history: Tensor, count: int) -> Tensor:
        """Return [rows, averages, count, width] at the last `count` places of history [rows, time, width]."""
        time = history.shape[1]
        places = torch.arange(time, device=history.device)
        lag = places[time - count :, None] - places - self.near
        kept = (lag >= 0) & (lag < self.far)
        weights = self.kernels[:, lag.clamp(0, self.far - 1)] * kept
        return torch.einsum("gts,bsd->bgtd", weights.to(history.dtype), history)


class FeedForward(nn.Module):
    """Two linear layers with ReLU between them."""

    def __init__(self, width: int, inner: int, out: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(width, inner)
        self.down_proj = nn.Linear(inner, out)

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.down_proj(torch.relu(self.up_proj(hidden)))
        return out


class NearbyLayer(nn.Module):
    """Reads the last tokens and the averages side by side; what it adds to is the sum of them all."""

    def __init__(self, config: NPLMConfig) -> None:
        super().__init__()
        self.near = config.near
        width = config.hidden_size
        self.mlp = FeedForward((config.near + config.averages) * width, config.bottleneck, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, hidden_states: Tensor, history: Tensor, averages: Tensor, **more: Any) -> Tensor:
        count = hidden_states.shape[1]
        last = functional.pad(history, (0, 0, self.near - 1, 0)).unfold(1, self.near, 1)[:, -count:]
        # [rows, time, parts, width], the current token last of the near ones
        parts = torch.cat([last.transpose(2, 3), averages.transpose(1, 2)], 2)
        out: Tensor = self.norm(parts.sum(2) + self.mlp(parts.flatten(2)))
        return out


class LaterLayer(nn.Module):
    """Attention, where the layer has it, and a feed-forward; an NPLM adds the averages once more."""

    def __init__(self, config: NPLMConfig, number: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.attends = config.attention != "none"
        if self.attends:
            self.self_attn = LlamaAttention(config, number)
            self.attention_norm = nn.LayerNorm(width)
        self.mlp = FeedForward(width, config.intermediate_size, width)
        self.norm = nn.LayerNorm(width)

    def forward(
        self, hidden_states: Tensor, averages: Tensor | None = None, history: object = None, **more: Any
    ) -> Tensor:
        if self.attends:
            attended, _ = self.self_attn(hidden_states=hidden_states, **more)
            hidden_states = self.attention_norm(hidden_states + attended)
        out: Tensor = self.norm(hidden_states + self.mlp(hidden_states))
        return out if self.attends or averages is None else out + averages.sum(1)


class NPLMPreTrainedModel(PreTrainedModel):
    """How weights begin; kernels begin uniform, where they are made."""

    config_class = NPLMConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _no_split_modules = ["NearbyLayer", "LaterLayer"]  # noqa: RUF012

    @property
    def reads_in_order(self) -> bool:
        """Whether what is cached has to be the text itself, in order, and nothing beside it."""
        return bool(self.config.reads_nearby)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if isinstance(module, Averages):
            nn.init.constant_(module.kernels, 1 / module.far)


class NPLMModel(NPLMPreTrainedModel):
    """Embeddings and layers, without what makes logits."""

    def __init__(self, config: NPLMConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.averages = Averages(config) if config.reads_nearby else None
        self.rotary_emb = LlamaRotaryEmbedding(config) if config.attention != "none" else None
        first: list[nn.Module] = [NearbyLayer(config)] if config.reads_nearby else []
        rest = [LaterLayer(config, at) for at in range(len(first), config.num_hidden_layers)]
        self.layers = nn.ModuleList([*first, *rest])
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **more: Any,
    ) -> BaseModelOutputWithPast:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        hidden: Tensor = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        known = 0 if past_key_values is None else past_key_values.get_seq_length()
        if position_ids is None:
            position_ids = torch.arange(known, known + hidden.shape[1], device=hidden.device)[None]
        shared: dict[str, Any] = {}
        if self.rotary_emb is not None:
            shared = {
                "attention_mask": create_causal_mask(
                    config=self.config,
                    inputs_embeds=hidden,
                    attention_mask=attention_mask,
                    past_key_values=past_key_values,
                    position_ids=position_ids,
                ),
                "position_embeddings": self.rotary_emb(hidden, position_ids=position_ids),
                "past_key_values": past_key_values,
            }
        if self.averages is not None:
            history = self._history(hidden, attention_mask, past_key_values)
            shared |= {"history": history, "averages": self.averages(history, hidden.shape[1])}
        every = [hidden]
        for layer in self.layers:
            hidden = layer(hidden, **shared)
            every.append(hidden)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=tuple(every) if output_hidden_states else None,
        )

    def _history(self, hidden: Tensor, mask: Tensor | None, cache: Any) -> Tensor:
        """Return the embeddings of the text so far, [rows, time, width], zeros where the mask says so."""
        if mask is not None and mask.ndim != 2:
            raise BadInput(
                f"attention_mask of {mask.ndim} dimensions: the first layer reads its last tokens side by "
                "side and takes [rows, time]"
            )
        if mask is not None:
            hidden = hidden * mask[:, -hidden.shape[1] :, None].to(hidden.dtype)
        if cache is None:
            return hidden
        # A cache holds keys and values of heads: here one head, an embedding's first half and its second.
        half = hidden.shape[-1] // 2
        keys, values = cache.update(hidden[:, None, :, :half], hidden[:, None, :, half:], 0)
        return torch.cat([keys, values], -1)[:, 0]


class NPLMForCausalLM(NPLMPreTrainedModel, GenerationMixin):
    """The language model: its embeddings make the logits as well."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: NPLMConfig) -> None:
        super().__init__(config)
        self.model = NPLMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **more: Any,
    ) -> CausalLMOutputWithPast:
        """Return logits [rows, time or as kept, vocabulary]; with labels the mean loss in nats as well."""
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
        )
        places = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(out.last_hidden_state[:, places])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
        )
