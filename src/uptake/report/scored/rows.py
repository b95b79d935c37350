"""One row a query, method and k: how many bits its text took, and what that cost."""

from collections.abc import Mapping
from dataclasses import dataclass

from uptake.report.results import Neighbour, Row
from uptake.text.overlap import NEAR_TWIN


@dataclass(frozen=True, slots=True)
class Scored(Row):
    """One query under one method. Bits are base 2; seconds are CPU seconds."""

    k: int  # neighbours asked for; 0 where the method reads none
    query: str
    document: str  # the unit of the bootstrap
    bytes: int  # UTF-8 bytes scored
    bits: float  # where the query failed: the base model's
    base_bits: float
    bytes_not_scored: int = 0  # which the tokenizer does not give back: neither they nor their bits count
    neighbours: int = 0  # neighbours read
    overlap: float = 0.0  # largest 13-gram containment of a neighbour read in the whole document
    letters: float = (
        0.0  # largest share of a passage's runs of letters that stand there, of those it may read
    )
    withheld: int = 0  # candidates the leak filter kept back
    coverage: float = 1.0  # share of the store that was searched for them
    tokens_trained: int = 0
    tokens_read: int = 0  # tokens put in context
    steps: int = 0
    retrieve_seconds: float = 0.0
    train_seconds: float = 0.0
    score_seconds: float = 0.0
    gpu_seconds: float = 0.0  # of training and scoring, where there is a GPU
    prepare_seconds: float = 0.0  # of what was done once for all queries and fell to this one: in no other
    failed: str = ""  # why, where it failed
    stopped: str = ""  # why not everything was read, where it was not: failure, or a budget that was spent

    @property
    def near_twin(self) -> bool:
        """Whether a passage it may read is of a near twin of the document, or of the document itself."""
        return self.letters >= NEAR_TWIN


@dataclass(frozen=True, slots=True)
class Showcase:
    """One query in full: its text token by token, and what each method made of every token.

    `tokens` are the pieces of the scored text in order; `log_probs[method][i]` is the natural
    log-probability of piece i.
    """

    query: str
    document: str
    prefix: str
    tokens: tuple[str, ...]
    log_probs: Mapping[str, tuple[float, ...]]  # includes "base"
    neighbours: tuple[Neighbour, ...]
