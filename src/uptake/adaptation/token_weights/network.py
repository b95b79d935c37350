"""CaMeLS's network: a small language model reads a text, and a head says what each token is worth.

Hu et al. 2023, arXiv 2305.15076: h is the small model's last hidden state and the weight
softplus_{beta=3}(W2 GELU(W1 h)). W2 and its bias begin at zero, so that every token begins at
ln 2 / 3. The small model is trained along, and goes with the network wherever it is stored.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uptake.adaptation.tensors import NetworkAbout, fill, from_metadata, read_tensors
from uptake.codec import Malformed, loads
from uptake.errors import BadInput, Damaged, Mismatch
from uptake.text.tokenizer import Tokenizer

Spans = Sequence[tuple[int, int]]
KIND = "Camels"  # the method whose network this is, as files call it


class Weighing(nn.Module):
    """Texts in, weights out: one for each token of the tokenizer that the small model reads by."""

    def __init__(self, reader: nn.Module, tokenizer: Tokenizer, window: int, hidden: int = 128) -> None:
        """`reader` is a Hugging Face transformer without its language-modelling head."""
        super().__init__()
        config: Any = reader.config
        first = next(reader.parameters())
        self.reader, self.tokenizer, self.window, self.hidden = reader, tokenizer, window, hidden
        self.up = nn.Linear(config.hidden_size, hidden, dtype=first.dtype)
        self.out = nn.Linear(hidden, 1, dtype=first.dtype)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def train(self, mode: bool = True) -> "Weighing":
        super().train(mode)
        # Without dropout, a training that is resumed ends where one in a single go does.
        self.reader.eval()
        return self

    def forward(self, ids: Tensor) -> Tensor:
        """Return scores [batch, time], of any sign; a token's has seen the tokens up to it and itself."""
        states = self.reader(input_ids=ids, use_cache=False).last_hidden_state
        scores: Tensor = self.out(nn.functional.gelu(self.up(states))).squeeze(-1)
        return scores

    def weigh(self, text: str) -> tuple[Tensor, Spans]:
        """Return the weight of each of its own tokens of a text, and their spans of characters."""
        scores, spans = self.scores(text)
        return nn.functional.softplus(scores, beta=3), spans

    def scores(self, text: str) -> tuple[Tensor, Spans]:
        """Return what the weight of each of its own tokens of a text is the softplus of, and their spans.

        Where the window is too short, its later windows begin with half a window already scored.
        """
        ids, spans = self.tokenizer.encode(text)
        if not ids:
            return torch.zeros(0), spans
        whole = torch.tensor([self.tokenizer.opened(text)], device=self.up.weight.device)
        parts, done, step = [], 1, max(1, self.window // 2)
        while done < whole.shape[1]:
            start = 0 if done == 1 else done - (self.window - step)
            end = min(start + self.window, whole.shape[1])
            parts.append(self(whole[:, start:end])[0, done - start :])
            done = end
        return torch.cat(parts), spans

    def of(self, text: str, spans: Spans) -> Tensor:
        """Return one weight for each token of another tokenizer's spans of the text."""
        weights, own = self.weigh(text)
        return weights if tuple(own) == tuple(spans) else aligned(weights, own, spans)

    def about(self) -> dict[str, str]:
        """Return what `restore` needs besides the tensors."""
        config: Any = self.reader.config
        inner: Any = self.tokenizer.inner
        return {
            "config": config.to_json_string(use_diff=False),
            "tokenizer": inner.backend_tokenizer.to_str(),
            "special": json.dumps({"bos_token": inner.bos_token, "eos_token": inner.eos_token}),
            "window": str(self.window),
            "hidden": str(self.hidden),
            "dtype": str(self.up.weight.dtype).removeprefix("torch."),
        }


def restore(about: Mapping[str, str]) -> Weighing:
    """Return a network of the shape that `about` describes, its weights at random.

    Needs neither a hub nor code from elsewhere. Raises BadInput for a kind of small model that
    transformers does not know, KeyError and Malformed for what `Weighing.about` does not say.
    """
    from tokenizers import Tokenizer as Backend
    from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

    config, special = loads(dict[str, Any], about["config"]), loads(dict[str, str | None], about["special"])
    window, hidden = loads(int, about["window"]), loads(int, about["hidden"])
    dtype = getattr(torch, about["dtype"], None)
    if not isinstance(dtype, torch.dtype):
        raise Malformed(f"dtype is {about['dtype']!r}")
    kind = config.pop("model_type")
    for name in ("dtype", "torch_dtype", "auto_map", "transformers_version"):
        config.pop(name, None)
    try:
        reader = AutoModel.from_config(AutoConfig.for_model(kind, **config))  # type: ignore[no-untyped-call]
    except ValueError:
        raise BadInput(
            f"the small model is a {kind!r}, which transformers does not know: give a reader that it knows"
        ) from None
    try:
        backend = Backend.from_str(about["tokenizer"])
    except Exception as error:  # tokenizers has no kind of its own
        raise Malformed(f"no tokenizer: {error}") from None
    inner = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, **special
    )
    return Weighing(reader.to(dtype), Tokenizer(inner), window, hidden)


def from_file(path: Path) -> Weighing:
    """Read what `uptake train camels` wrote. Raises BadInput, Damaged, or Mismatch for another network."""
    metadata, tensors = read_tensors(path, "network")
    about = from_metadata(NetworkAbout, metadata, path, "network")
    if about.kind != KIND:
        raise Mismatch(f"{path} is a network of {about.kind}, not of {KIND}: give its own")
    try:
        network = restore(about.about)
    except (KeyError, Malformed) as error:
        raise Damaged(f"{path} lacks what its network is made by ({error}): make it anew") from None
    fill(network, tensors, path)
    return network


def aligned(weights: Tensor, own: Spans, spans: Spans) -> Tensor:
    """Return weights for `spans` from those of `own` spans of the same text.

    A character weighs what the tokens that cover it weigh on average, a token what its characters
    do. Characters that no token of `own` covers weigh nothing. For spans without overlap it is
    linear, keeps the sum of weight times length, and changes nothing where both are the same.
    """
    length = max((end for _, end in (*own, *spans)), default=0)
    device = weights.device
    starts, ends = (torch.tensor([span[i] for span in own], dtype=torch.long, device=device) for i in (0, 1))
    # Differences at the edges of spans, summed up along the characters.
    total = weights.new_zeros(length + 1)
    total = total.index_add(0, starts, weights).index_add(0, ends, -weights).cumsum(0)
    edges = torch.zeros(length + 1, device=device).index_add(0, starts, torch.ones(len(own), device=device))
    count = edges.index_add(0, ends, -torch.ones(len(own), device=device)).cumsum(0)
    character = total / count.clamp(min=1)
    upto = torch.cat([character.new_zeros(1), character.cumsum(0)])
    first, last = (torch.tensor([span[i] for span in spans], dtype=torch.long, device=device) for i in (0, 1))
    return (upto[last] - upto[first]) / (last - first).clamp(min=1)
