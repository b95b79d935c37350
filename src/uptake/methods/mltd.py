"""Learning the difference: a reparameterisation and cells begin where a meta-training left them (MLtD,
Hou et al. 2022)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor, nn

from uptake.adaptation.delta import Delta, LowRank, Part
from uptake.adaptation.delta.cell import EDGES, OPERATIONS, Cell
from uptake.adaptation.inner_loop import unroll
from uptake.adaptation.optimizers import SGD
from uptake.adaptation.trainable import Trainable, TrainableCopy
from uptake.adaptation.trainable.opening import open_parts
from uptake.adaptation.trainable.places import attention_matrices, check_rank, sides, upper_blocks, width
from uptake.adaptation.trainable.tarp import tarp_parts
from uptake.adaptation.transforms import Losses, chain
from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.examples import Example
from uptake.lm.scoring import losses, per_token
from uptake.lm.task_training import task_vector
from uptake.methods.contract.editor import only_causal
from uptake.methods.contract.few_shot import shots_of
from uptake.methods.contract.method import MethodSpec
from uptake.methods.contract.task_learner import TaskLearner, as_start, opened_once, values_of
from uptake.tasks.few_shot import Task

OWNER = "mltd"
LINEAR = OPERATIONS.index("linear")  # of every edge, before a controller is asked


@dataclass(frozen=True)
class _Difference(Trainable):
    """What trains: of attention, TARP's parts or low-rank products; after each block, a cell."""

    kind: str
    rank: int
    cell: int
    layers: int | None
    chosen: tuple[int, ...] = (LINEAR,) * EDGES
    owner: str = OWNER

    def copy(self, module: nn.Module, start: Delta, generator: torch.Generator) -> TrainableCopy:
        if self.kind == "tarp":
            parts = tarp_parts(module, self.rank, self.layers, generator)
        else:
            parts = dict(self._low_rank(module, generator))
        if self.cell > width(module):
            raise BadInput(
                f"cell {self.cell:,}: wider than the model's {width(module):,}, use less, such as 16"
            )
        if self.cell:
            for path in upper_blocks(module, self.layers):
                parts[path] = Cell.fresh(width(module), self.cell, self.chosen, generator)
        return open_parts(module, parts, self.owner, start)

    def _low_rank(self, module: nn.Module, generator: torch.Generator) -> Mapping[str, Part]:
        found, matrices = {}, attention_matrices(module, self.layers)
        check_rank(module, self.rank, matrices)
        for name, transposed in matrices.items():
            into, out = sides(module.get_submodule(name.removesuffix(".weight")))
            down = torch.randn(self.rank, into, generator=generator) / into**0.5
            found[name] = LowRank(torch.zeros(out, self.rank), down, 1.0, transposed)
        return found


class Controller(nn.Module):
    """Where training begins, by the names of a model's parameters, and what chooses a task's architecture."""

    def __init__(self, start: nn.ParameterDict, width: int, cells: bool, hidden: int = 128) -> None:
        super().__init__()
        self.start = start
        self.choosing = (
            nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, EDGES * len(OPERATIONS)))
            if cells
            else None
        )

    def mix(self, task: Tensor) -> Tensor:
        """Return the architecture of a task, [edges, operations]: one 1 in each row.

        Its gradient is that of the softmax. There is no noise.
        """
        assert self.choosing is not None
        soft: Tensor = self.choosing(task).view(EDGES, len(OPERATIONS)).softmax(-1)
        hard = nn.functional.one_hot(soft.argmax(-1), len(OPERATIONS)).to(soft)
        return (hard - soft).detach() + soft


@dataclass(frozen=True, kw_only=True)
class Mltd(TaskLearner):
    """Trains TARP's parts or low-rank products of attention, and a cell after each block, on few examples.

    Training on other tasks finds where they begin: after `steps` steps on a task's `support` they are to
    answer its `asked`. Gradients are of first order, as published, or exact with `order=2`, which is ours.
    A controller chooses the operation of each edge of the cells by what the base makes of the examples.
    `kind=lora` and `cell=0` is plain LoRA from the same outer loop.
    """

    kind: Literal["tarp", "lora"] = "tarp"
    rank: int = 4
    cell: int = 16  # width of a cell; 0: no cells
    layers: int | None = None
    order: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in ("tarp", "lora"):
            raise BadInput(f"kind {self.kind!r}: use tarp or lora")
        if self.rank < 1 or self.cell < 0:
            raise BadInput(f"rank {self.rank}, cell {self.cell}: use 1 or more, and 0 (no cells) or more")
        if self.order not in (1, 2):
            raise BadInput(f"order {self.order}: use 1 or 2")

    @classmethod
    def example(cls) -> Self:
        return cls(weights="untrained", rank=2, cell=4, optimizer=SGD(learning_rate=0.5))

    def trainable_for(self, lm: LM, examples: Sequence[Example]) -> Trainable:
        network = self.network(lm)
        assert isinstance(network, Controller)
        plain = self._plain
        if network.choosing is None:
            return plain
        with torch.no_grad():
            mix = network.mix(task_vector(lm, examples))
        return _Difference(plain.kind, plain.rank, plain.cell, plain.layers, tuple(mix.argmax(-1).tolist()))

    @property
    def _plain(self) -> _Difference:
        return _Difference(self.kind, self.rank, self.cell, self.layers)

    def begin(self, lm: LM, opened: TrainableCopy, examples: Sequence[Example]) -> None:
        with torch.no_grad():
            for name, value in values_of(self.network(lm)).items():
                opened.parameters[name].copy_(value)

    def build(self, lm: LM) -> Controller:
        causal = only_causal(lm, "MLtD")
        # What is random is drawn by whoever asked for the network.
        seed = int(torch.randint(1 << 31, ()))
        opened = self._plain.copy(
            causal.module, Delta(causal.fingerprint), torch.Generator().manual_seed(seed)
        )
        return Controller(as_start(opened), width(causal.module), bool(self.cell))

    def loss(self, network: nn.Module, lm: LM, episode: Task) -> Tensor:
        """Return how badly the answers asked are said after the steps on the support, nats a token."""
        assert isinstance(network, Controller)
        causal = only_causal(lm, "MLtD")
        opened = opened_once(causal, self._plain)
        private = causal.around(opened.module)
        support, asked = shots_of(lm, episode.support), shots_of(lm, episode.asked)
        mixes: dict[str, Tensor] = {}
        if network.choosing is not None:
            mix = network.mix(task_vector(lm, support))
            mixes = {
                f"{path}.inserted_by_{OWNER}.mix": mix for path in upper_blocks(causal.module, self.layers)
            }
        held = {name: value.detach() for name, value in mixes.items()} if self.order == 1 else mixes

        def losses_of(values: Mapping[str, Tensor], some: Sequence[Example]) -> Losses:
            found = losses(private.with_parameters({**values, **held}), some)
            return Losses(found / len(some), tuple(range(len(some))))

        values, _ = unroll(
            losses_of,
            values_of(network),
            [support] * self.steps,
            self.optimizer,
            self.order if network.training else 0,
            chain(self.clip),
        )
        return per_token(losses(private.with_parameters({**values, **mixes}), asked), asked)


spec = MethodSpec(Mltd())
