"""The outer loop: trains the network of any learned method on its episodes.

It knows nothing of what an episode is; the method's `gradients` does. Checkpoints hold the network,
the optimizer state and the best network so far, so that an interrupted training ends where an
uninterrupted one would.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uptake.adaptation.delta import fingerprint
from uptake.adaptation.inner_loop import GradientDescent
from uptake.adaptation.optimizers import AdamW, Optimizer
from uptake.adaptation.tensors import fill, from_metadata, read_tensors, to_metadata, write_tensors
from uptake.adaptation.transforms import GradientTransform, chain
from uptake.codec import plain
from uptake.errors import BadInput, Diverged, Mismatch
from uptake.lm.base import LM
from uptake.methods.contract.learned import Learner
from uptake.methods.contract.private_learning import Units, private_gradients
from uptake.settings import describe
from uptake.text.types import stable_hash

FORMAT = "uptake-training-1"
WARM_UP_SHARE = 0.1  # of the learning rate: Adam's first steps know no gradient but their own
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Training:
    """Settings of a training: one step for each episode, `passes` times over all.

    Where episodes come as the units of a private training, its own settings say how many steps there are.
    """

    optimizer: Optimizer = field(default_factory=lambda: AdamW(learning_rate=1e-3, weight_decay=0.0))
    passes: int = 1
    clip: float | None = 1.0
    transforms: tuple[GradientTransform, ...] = ()  # of each episode's gradient, before it is clipped
    save_every: int = 100  # steps between checkpoints, and between evaluations on the validation episodes
    # A tenth of the learning rate for the first `save_every` steps, then a linear decay to zero.
    warm_up_and_decay: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.passes < 1 or self.save_every < 1:
            raise BadInput(f"passes {self.passes}, save_every {self.save_every}: use 1 or more of each")
        chain(self.clip, self.transforms)


@dataclass(frozen=True)
class Point:
    """The progress of a training: mean loss since the point before, and on the validation episodes."""

    step: int
    total: int
    loss: float
    valid: float | None = None


@dataclass(frozen=True)
class _About:
    """What a checkpoint says beside its tensors."""

    base: str
    key: str  # of the training
    points: tuple[Point, ...]
    format: str = FORMAT


@dataclass
class _Progress:
    """All that a checkpoint holds."""

    network: nn.Module
    optimizer_state: Tensors
    points: list[Point]
    best: Tensors

    @property
    def done(self) -> int:
        return self.points[-1].step if self.points else 0


def train(
    method: Learner[Any],
    lm: LM,
    episodes: Sequence[Any] | Units,
    training: Training | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[Point], None] = lambda point: None,
    valid: Sequence[Any] = (),
    start: nn.Module | None = None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
    data_key: str = "",
    enough: Callable[[], bool] = lambda: False,
) -> tuple[nn.Module, list[Point]]:
    """Return the method's network, trained on the episodes in an order that the seed fixes, and its points.

    It begins from `start`, a network of an earlier training: easy episodes first, then hard
    ones. With `valid` episodes it is the network at its best on them, the first one included. With
    `checkpoint` an earlier call that was interrupted is resumed; `data_key` names the text that the
    episodes were made of, so that no other text's is. `progress` is told of every checkpoint, `on_step`
    of every step: how many are done, at first those of earlier calls, and how many there are. It ends early
    where `enough` says so at a checkpoint, the one that it goes on from included. `Units` are learnt under
    differential privacy: the loss in training is not told then, for it tells of them. Raises
    Mismatch where that file belongs to another training, BadInput where there is no episode or `start`
    has another shape, Diverged where a loss is not finite: the checkpoint then holds the last good state.
    """
    training = training or Training()
    if not episodes:
        raise BadInput("no episodes to train on: give at least one")
    described = [plain(describe(method)), plain(describe(training)), len(episodes), len(valid)]
    if isinstance(episodes, Units):
        described.append(plain(describe(episodes.dp)))
    state = _Progress(method.fresh(lm, training.seed), {}, [], {})
    if start is not None:
        _load_start(state.network, start)
        described.append(fingerprint(start))
    if data_key:
        described.append(data_key)
    key = f"{stable_hash(repr(tuple(described))):016x}"
    if checkpoint is not None and checkpoint.exists():
        _load(checkpoint, state, lm, key)
    order = [*range(episodes.dp.steps)] if isinstance(episodes, Units) else _order(len(episodes), training)
    total = len(order)
    on_step(state.done, total)
    if not state.points and valid:
        state.points.append(Point(0, total, float("nan"), _mean_loss(method, state.network, lm, valid)))
        state.best = _copy(state.network)
    if state.points:
        progress(state.points[-1])
    while state.done < total and not (state.done and enough()):
        places = order[state.done : state.done + training.save_every]
        _train_steps(method, lm, episodes, places, state, training, on_step, total)
        if valid:
            _validate(method, lm, valid, state)
        if checkpoint is not None:
            _save(checkpoint, state, lm, key)
        progress(state.points[-1])
    if state.best:
        state.network.load_state_dict(state.best)
    return state.network.requires_grad_(False).eval(), state.points


def _load_start(network: nn.Module, start: nn.Module) -> None:
    try:
        network.load_state_dict(start.state_dict())
    except RuntimeError as error:
        raise BadInput(
            "the network to start from has another shape: give the settings it was trained with"
        ) from error


def _train_steps(
    method: Learner[Any],
    lm: LM,
    episodes: Sequence[Any] | Units,
    places: Sequence[int],
    state: _Progress,
    training: Training,
    on_step: Callable[[int, int], None],
    total: int,
) -> None:
    """Go on from `state`, one step a place."""
    network = state.network.train()
    share = (1 - state.done / total if state.done else WARM_UP_SHARE) if training.warm_up_and_decay else 1.0
    descent = GradientDescent(
        dict(network.named_parameters()),
        training.optimizer.times(share),
        chain(training.clip, training.transforms),
        state.optimizer_state,
        # An interrupted training draws what an uninterrupted one would.
        torch.Generator().manual_seed(stable_hash("transforms", str(training.seed), str(state.done))),
    )
    losses: list[float] = []
    for place in places:
        if isinstance(episodes, Units):
            descent.apply(private_gradients(method, network, lm, episodes, place))
            losses.append(float("nan"))
            on_step(state.done + len(losses), total)
            continue
        loss, gradients = method.gradients(network, lm, episodes[place])
        if not loss - loss == 0:
            raise Diverged(f"the loss of episode {place} is {loss}: train with a smaller learning rate")
        descent.apply(gradients)
        losses.append(loss)
        on_step(state.done + len(losses), total)
    state.optimizer_state = descent.optimizer_state
    state.points.append(Point(state.done + len(places), total, sum(losses) / len(losses)))


def _validate(method: Learner[Any], lm: LM, valid: Sequence[Any], state: _Progress) -> None:
    """Note the validation loss at the newest point, and keep the network if it is the best so far."""
    point = state.points[-1]
    found = _mean_loss(method, state.network, lm, valid)
    if found < min((p.valid for p in state.points if p.valid is not None), default=float("inf")):
        state.best = _copy(state.network)
    state.points[-1] = Point(point.step, point.total, point.loss, found)


def _mean_loss(method: Learner[Any], network: nn.Module, lm: LM, episodes: Sequence[Any]) -> float:
    network.eval()
    return sum(method.loss(network, lm, episode).item() for episode in episodes) / len(episodes)


def _copy(network: nn.Module) -> Tensors:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def _order(count: int, training: Training) -> list[int]:
    generator = torch.Generator().manual_seed(training.seed)
    return [int(i) for _ in range(training.passes) for i in torch.randperm(count, generator=generator)]


def _save(path: Path, state: _Progress, lm: LM, key: str) -> None:
    parts = {
        "network": state.network.state_dict(),
        "optimizer_state": state.optimizer_state,
        "best": state.best,
    }
    tensors = {f"{part}/{name}": t.detach() for part, named in parts.items() for name, t in named.items()}
    write_tensors(path, tensors, to_metadata(_About(lm.fingerprint, key, tuple(state.points))))


def _load(path: Path, state: _Progress, lm: LM, key: str) -> None:
    metadata, tensors = read_tensors(path, "training")
    about = from_metadata(_About, metadata, path, "training")
    if about.base != lm.fingerprint:
        raise Mismatch(f"{path} was trained on model {about.base}, not {lm.fingerprint}: load that model")
    if about.key != key:
        raise Mismatch(
            f"{path} is of a training with other settings or episodes: give those, or begin a new file "
            "(--fresh)"
        )
    parts: dict[str, Tensors] = {"network": {}, "optimizer_state": {}, "best": {}}
    for full_name, tensor in tensors.items():
        part, _, name = full_name.partition("/")
        parts[part][name] = tensor
    fill(state.network, parts["network"], path)
    state.optimizer_state, state.best = parts["optimizer_state"], parts["best"]
    state.points = list(about.points)
