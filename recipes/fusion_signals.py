"""What the losses that learn from a reader would have a retriever prefer, by a reader that fuses passages.

Here they are as published: LOOP takes a passage from all that the reader sees, ADist reads its attention.
"""

from typing import Any

import numpy as np
import torch
from fusion_world import KINDS, PASSAGE, Asked
from torch import Tensor

from uptake.lm.examples import Example
from uptake.lm.seq2seq import Seq2Seq


def signals(lm: Seq2Seq, some: Asked) -> dict[str, Any]:
    """Return how often each loss's target has the passages that are needed before all others, by kind.

    Of a question that needs two passages both have to be: chance is 1 in 4 for one of four, 1 in 6 for two.
    """
    found = [of_question(lm, some, row) for row in range(len(some.kinds))]
    needed = [{one, two} for one, two in zip(some.first.tolist(), some.second.tolist(), strict=True)]
    told: dict[str, Any] = {}
    for name in found[0]:
        orders = [np.argsort(-each[name], kind="stable").tolist() for each in found]
        best = np.array(
            [wants <= set(order[: len(wants)]) for order, wants in zip(orders, needed, strict=True)]
        )
        told[name] = {
            kind: round(float(best[some.kinds == number].mean()), 4) for number, kind in enumerate(KINDS)
        }
    return told


@torch.no_grad()
def of_question(lm: Seq2Seq, some: Asked, row: int) -> dict[str, np.ndarray]:
    """Return what each loss's target rises with, a value a passage: EMDR2's, uniform before, is PDist's."""
    question = some.questions[row].tolist()
    inputs = [[*passage, *question] for passage in some.passages[row].tolist()]
    answer = tuple(some.answers[row].tolist())
    example = Example((lm.tokenizer.opening, *question), answer)
    encoded = lm.encode([inputs])
    width = encoded.seen.shape[1] // len(inputs)
    after, without = [], []
    for place in range(len(inputs)):
        its = torch.arange(encoded.seen.shape[1]) // width == place
        after.append(nats(lm, encoded._replace(seen=encoded.seen & its), example))
        without.append(nats(lm, encoded._replace(seen=encoded.seen & ~its), example))
    weighed = attention(lm, encoded.output.last_hidden_state, encoded.seen, answer)
    return {
        "PDist, EMDR2": -np.array(after),
        "LOOP": np.array(without),
        "ADist": weighed.view(len(inputs), width)[:, :PASSAGE].sum(1).numpy(),
    }


def nats(lm: Seq2Seq, encoded: Any, example: Example) -> float:
    """Return the nats of an answer by what the decoder is let see."""
    (rows,) = lm.decode(encoded, [example])
    return -float(rows.gather(1, torch.tensor(example.target)[:, None]).sum())


def attention(lm: Seq2Seq, states: Tensor, seen: Tensor, answer: tuple[int, ...]) -> Tensor:
    """Return the cross-attention to each place times the norm of its value, over layers, heads and tokens.

    Izacard et al. 2022; their sum orders passages of one question as their mean does.
    """
    net: Any = lm.module
    kept = net.config._attn_implementation
    net.set_attn_implementation("eager")
    try:
        out = net(
            encoder_outputs=(states,),
            attention_mask=seen.long(),
            decoder_input_ids=torch.tensor([[lm.first, *answer[:-1]]]),
            output_attentions=True,
            use_cache=False,
        )
    finally:
        net.set_attn_implementation(kept)
    total = torch.zeros(states.shape[1], dtype=states.dtype)
    for block, weights in zip(net.decoder.block, out.cross_attentions, strict=True):
        cross = block.layer[1].EncDecAttention
        values = cross.v(states).view(states.shape[1], cross.n_heads, -1).norm(dim=-1)
        total += (weights[0].sum(1) * values.T).sum(0)
    return total
