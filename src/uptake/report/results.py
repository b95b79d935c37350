"""What an evaluation writes down: one row a query, way and k, and a header once.

Plain data, so that a report can be made from a file long after the run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Row:
    """One query under one way of taking text up. Bits are base 2; seconds are CPU seconds."""

    method: str
    k: int  # neighbours asked for; 0 where the way reads none
    query: str
    document: str  # the unit of the bootstrap
    bytes: int  # UTF-8 bytes scored
    bits: float  # where the query failed: the base model's
    base_bits: float
    neighbours: int = 0  # neighbours read
    overlap: float = 0.0  # largest 13-gram containment of a neighbour read in the whole document
    withheld: int = 0  # candidates the leak filter kept back
    coverage: float = 1.0  # share of the store that was searched for them
    tokens_trained: int = 0
    tokens_read: int = 0  # tokens put in context
    steps: int = 0
    retrieve_seconds: float = 0.0
    train_seconds: float = 0.0
    score_seconds: float = 0.0
    failed: str = ""  # why, where it failed
    stopped: str = ""  # why not everything was read, where it was not: failure, or a budget that was spent


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A passage that was read, as the report shows it."""

    document: str
    start: int
    score: float
    overlap: float
    text: str


@dataclass(frozen=True, slots=True)
class Showcase:
    """One query in full: its text token by token, and what each way made of every token.

    `tokens` are the pieces of the scored text in order; `log_probs[way][i]` is the natural
    log-probability of piece i.
    """

    query: str
    document: str
    prefix: str
    tokens: tuple[str, ...]
    log_probs: Mapping[str, tuple[float, ...]]  # includes "base"
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt continued by the base model and after taking text up."""

    prompt: str
    continuations: Mapping[str, str]  # way -> text
    neighbours: tuple[Neighbour, ...] = ()


@dataclass(frozen=True, slots=True)
class Header:
    """What was run, once for the whole report."""

    seed: int
    versions: Mapping[str, str]
    model: Mapping[str, str | int]
    store: Mapping[str, str | int]
    protocol: Mapping[str, str | int | float]
    settings: Mapping[str, Mapping[str, object]]  # way -> every setting of its method
    peak_rss_bytes: Mapping[str, int] = field(default_factory=dict)  # way -> most memory held
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Results:
    """A whole evaluation."""

    header: Header
    rows: tuple[Row, ...]
    showcases: tuple[Showcase, ...] = ()
    samples: tuple[Sample, ...] = ()
