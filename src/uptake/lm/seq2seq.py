"""Any Hugging Face encoder-decoder as an LM: the context goes to its encoder, the target to its decoder.

T5, Switch and their kin, BART too. The encoder may also read several texts apart, all of which the decoder
attends to at once (Fusion-in-Decoder, Izacard & Grave 2021): no other class of network is needed for that.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from uptake.adaptation.delta import wide
from uptake.errors import BadInput
from uptake.lm.base import Cache
from uptake.lm.capabilities import ApartInputs
from uptake.lm.examples import Example, padded
from uptake.lm.pretrained import Pretrained, most_tokens
from uptake.text.tokenizer import Tokenizer

# Lengths are rounded up to a multiple of this, so that a row's bits depend little on who is beside it.
WIDTH = 16
Inputs = Sequence[Sequence[int]]  # texts that an encoder reads apart, of one row


class Encoded(NamedTuple):
    """What the decoder attends to: states [rows, places, width] as the model hands them on, and the mask."""

    output: Any  # of the encoder's own kind
    seen: Tensor  # [rows, places], true where there is text


class Seq2Seq(Pretrained, ApartInputs):
    """An encoder-decoder; its module is frozen and from then on never changed.

    An example's context, without the opening token that stands for "nothing before", is what the encoder
    reads, between the special tokens that the tokenizer puts around a text. The decoder begins with the
    model's own first token.
    """

    has_step = False

    def __init__(
        self,
        module: nn.Module,
        tokenizer: Tokenizer,
        name: str = "",
        base: str | None = None,
        quantisation: str = "",
    ) -> None:
        super().__init__(module, tokenizer, name, base, quantisation)
        config: Any = module.config
        self.window = most_tokens(config, tokenizer)
        first = config.decoder_start_token_id
        first = getattr(config, "pad_token_id", None) if first is None else first
        if first is None:
            raise BadInput(
                f"{type(module).__name__} does not say what its decoder begins with: set "
                "decoder_start_token_id in its config.json"
            )
        self.first = int(first)
        self._read: tuple[tuple[Any, ...], Encoded] | None = None

    def step(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        raise BadInput(
            f"{type(self.module).__name__} is an encoder-decoder, which reads no text step by step: use a "
            "causal model, or a method that trains weights or puts text before the prompt, such as ttt-nn "
            "or in-context"
        )

    def predictions(self, examples: Sequence[Example]) -> list[Tensor]:
        return self.predictions_apart([[example.context] for example in examples], examples)

    def predictions_apart(self, inputs: Sequence[Inputs], examples: Sequence[Example]) -> list[Tensor]:
        encoded = self._remembered([[self.encoder_ids(text) for text in row] for row in inputs])
        return self.decode(encoded, examples)

    def decode(self, encoded: Encoded, examples: Sequence[Example]) -> list[Tensor]:
        """Return log-probabilities [targets, vocabulary] of each target, by what the decoder attends to."""
        targets = _to_width([(self.first, *example.target[:-1]) for example in examples])
        logits = self._run(encoded, targets.to(self.device))
        return [
            torch.log_softmax(wide(row[: len(example.target)]), -1)
            for row, example in zip(logits, examples, strict=True)
        ]

    def encoder_ids(self, context: Sequence[int]) -> list[int]:
        """Return the tokens that the encoder reads of a context; its beginning goes where it does not fit."""
        before, after = self._around
        text = context[1:] if context and context[0] == self.tokenizer.opening else context
        room = self.window - len(before) - len(after)
        return [*before, *text[max(0, len(text) - room) :], *after] or [self.tokenizer.opening]

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """The special tokens that the tokenizer puts before and after a text."""
        bare = self.tokenizer.anchor
        whole = list(self.tokenizer.inner(self.tokenizer.decode(bare))["input_ids"])
        for at in range(len(whole) - len(bare) + 1):
            if whole[at : at + len(bare)] == bare:
                return whole[:at], whole[at + len(bare) :]
        return [], []

    def _remembered(self, inputs: Sequence[Inputs]) -> Encoded:
        """Return what the encoder makes of these, kept for the next token where texts are continued."""
        if torch.is_grad_enabled() or self._replaced is not None:
            return self.encode(inputs)
        key = tuple(tuple(tuple(text) for text in row) for row in inputs)
        kept = self._read
        if kept is None or kept[0] != key:
            kept = self._read = key, self.encode(inputs)
        return kept[1]

    def encode(self, inputs: Sequence[Inputs]) -> Encoded:
        """Read `inputs[i]`, each text by itself, and return all that row i's decoder attends to."""
        most = max(len(row) for row in inputs)
        # A row of fewer texts than others has empty ones, which nobody sees.
        texts = [text for row in inputs for text in (*row, *[()] * (most - len(row)))]
        ids = _to_width(texts)
        lengths = torch.tensor([len(text) for text in texts])
        seen = (torch.arange(ids.shape[1]) < lengths[:, None]).to(self.device)
        encoder: Any = self.module.get_encoder()  # type: ignore[operator]
        # A text of padding alone would be no number in some attentions: it reads its first place.
        reads = seen.clone()
        reads[:, 0] = True
        prefix = next(f"{name}." for name, part in self.module.named_modules() if part is encoder)
        out = self._call(encoder, {"input_ids": ids.to(self.device), "attention_mask": reads.long()}, prefix)
        states = out.last_hidden_state.reshape(len(inputs), most * ids.shape[1], -1)
        return Encoded(type(out)(last_hidden_state=states), seen.reshape(len(inputs), -1))

    def _run(self, encoded: Encoded, ids: Tensor) -> Tensor:
        """Return logits [rows, time, vocabulary] after each of a decoder's inputs."""
        arguments = {
            "encoder_outputs": encoded.output,
            "attention_mask": encoded.seen.long(),
            "decoder_input_ids": ids,
            "use_cache": False,
        }
        logits: Tensor = self._call(self.module, arguments).logits
        return logits

    def around(self, module: nn.Module) -> "Seq2Seq":
        copy = Seq2Seq(module, self.tokenizer, self.name, self.fingerprint)
        copy.device, copy.dtype = self.device, self.dtype
        return copy


def _to_width(rows: Sequence[Sequence[int]]) -> Tensor:
    """Return rows of tokens as [rows, width], zeros to the right."""
    ids = padded(rows)
    return nn.functional.pad(ids, (0, -ids.shape[1] % WIDTH))
