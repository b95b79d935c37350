"""What an evaluation is to do: the methods, the protocol, and what they may spend."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from uptake.errors import BadInput
from uptake.evaluation.protocol import Protocol
from uptake.evaluation.protocols.per_query import PerQuery
from uptake.methods.contract.method import MethodSpec
from uptake.methods.contract.spending import Budget
from uptake.text.overlap import LeakFilter


@dataclass(frozen=True)
class Plan:
    """What to run: everything but the model, the store and the inputs."""

    methods: Mapping[str, MethodSpec]
    protocol: Protocol = field(default_factory=PerQuery)
    ks: tuple[int, ...] = (20,)
    seed: int = 0
    batch: int = 8  # queries side by side
    budget: Budget = field(default_factory=Budget)
    leak: LeakFilter = field(default_factory=LeakFilter)
    showcases: int = 0  # how many units to keep in full

    def __post_init__(self) -> None:
        if not self.methods:
            raise BadInput("no method given: name at least one, such as ttt-nn")
        if not self.ks or min(self.ks) < 0:
            raise BadInput(f"k {list(self.ks)}: use 0 or more neighbours")
        if self.batch < 1:
            raise BadInput(f"batch {self.batch}: use 1 or more")
        object.__setattr__(self, "ks", tuple(sorted(set(self.ks))))

    @property
    def sequential(self) -> bool:
        """Whether each unit must wait for the one before it."""
        return self.protocol.sequential(self)

    @property
    def searches(self) -> bool:
        """Whether neighbours will be retrieved from a store."""
        return self.protocol.searches(self)

    def neighbour_counts(self, spec: MethodSpec) -> tuple[int, ...]:
        """Return the numbers of neighbours a method reads: only 0 where it reads none."""
        return self.protocol.neighbour_counts(self, spec)
