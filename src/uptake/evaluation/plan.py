"""What an evaluation is to do: the ways, the protocol, and what they may spend."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from uptake.errors import BadInput
from uptake.evaluation.protocol import PerQuery, Protocol, Query
from uptake.methods.contract.method import MethodSpec
from uptake.methods.contract.spending import Budget
from uptake.text.overlap import LeakFilter
from uptake.text.types import Document


@dataclass(frozen=True)
class Plan:
    """What to run: everything but the model, the store and the documents."""

    methods: Mapping[str, MethodSpec]
    protocol: Protocol = field(default_factory=PerQuery)
    ks: tuple[int, ...] = (20,)
    seed: int = 0
    batch: int = 8  # queries side by side
    budget: Budget = field(default_factory=Budget)
    leak: LeakFilter = field(default_factory=LeakFilter)
    showcases: int = 0  # how many queries to keep in full

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
        """Whether each query must wait for the one before it."""
        return any(spec.method.sequential for spec in self.methods.values())

    @property
    def searches(self) -> bool:
        """Whether a store is needed."""
        return (
            self.protocol.retrieves
            and max(self.ks) > 0
            and any(spec.searches for spec in self.methods.values())
        )

    def asked(self, spec: MethodSpec) -> tuple[int, ...]:
        """Return how many neighbours a way is asked to read: none where it finds none."""
        return self.ks if self.protocol.retrieves and spec.searches and spec.select.hands else (0,)


def units(protocol: Protocol, documents: Iterable[Document]) -> list[list[Query]]:
    """Return what is taken up in one go, in order: a query, or under `running` a whole document's."""
    per_document = [queries for document in documents if (queries := list(protocol.queries(document)))]
    if not per_document:
        raise BadInput(f"no document can be scored: give {protocol.wants}")
    if not protocol.retrieves:
        return per_document
    return [[query] for queries in per_document for query in queries]
