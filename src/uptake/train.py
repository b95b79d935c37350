"""The one outer loop: trains the network of any Learned method on episodes of its own job.

It knows nothing of what an episode is; the method's `loss` does. Checkpoints hold the network
and the optimiser, so that an interrupted training ends where an uninterrupted one would.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uptake.errors import BadInput, Mismatch
from uptake.lm import LM
from uptake.method import Learned
from uptake.step import AdamW, Rule, descend
from uptake.tensors import read_tensors, write_tensors

FORMAT = "uptake-training-1"


@dataclass(frozen=True)
class Training:
    """Settings of a training: one step an episode, `passes` times over them."""

    rule: Rule = field(default_factory=lambda: AdamW(learning_rate=1e-3, weight_decay=0.0))
    passes: int = 1
    clip: float | None = 1.0
    save_every: int = 100  # steps
    seed: int = 0


def train(
    method: Learned[Any],
    lm: LM,
    episodes: Sequence[object],
    training: Training | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> nn.Module:
    """Return the method's network, trained on the episodes in a shuffled order that the seed fixes.

    With `checkpoint` an earlier call that was interrupted is gone on with. Raises Mismatch where
    that file belongs to another base model, BadInput where there is no episode.
    """
    training = training or Training()
    if not episodes:
        raise BadInput("no episodes to train on: give at least one")
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        network = method.build(lm)
    parameters = dict(network.named_parameters())
    memory: dict[str, Tensor] = {}
    done = 0
    if checkpoint is not None and checkpoint.exists():
        done, memory = _load(checkpoint, network, lm)
    order = _order(len(episodes), training)
    while done < len(order):
        stretch = order[done : done + training.save_every]
        memory = descend(
            lambda place: method.loss(network, lm, episodes[place]),
            parameters,
            stretch,
            training.rule,
            training.clip,
            memory,
        )
        done += len(stretch)
        if checkpoint is not None:
            _save(checkpoint, network, lm, done, memory)
        progress(done, len(order))
    return network


def _order(count: int, training: Training) -> list[int]:
    generator = torch.Generator().manual_seed(training.seed)
    return [int(i) for _ in range(training.passes) for i in torch.randperm(count, generator=generator)]


def _save(path: Path, network: nn.Module, lm: LM, done: int, memory: dict[str, Tensor]) -> None:
    tensors = {f"network/{name}": tensor for name, tensor in network.state_dict().items()}
    tensors |= {f"memory/{name}": tensor for name, tensor in memory.items()}
    write_tensors(path, tensors, {"format": FORMAT, "base": lm.fingerprint, "done": str(done)})


def _load(path: Path, network: nn.Module, lm: LM) -> tuple[int, dict[str, Tensor]]:
    metadata, tensors = read_tensors(path, "training")
    if metadata["base"] != lm.fingerprint:
        raise Mismatch(
            f"{path} was trained on model {metadata['base']}, not {lm.fingerprint}: load that model"
        )
    parts = {
        kind: {name.removeprefix(kind): t for name, t in tensors.items() if name.startswith(kind)}
        for kind in ("network/", "memory/")
    }
    network.load_state_dict(parts["network/"])
    return int(metadata["done"]), parts["memory/"]
