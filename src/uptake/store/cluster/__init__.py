"""One datastore over many machines, on Ray: the same `Datastore`, given an address.

A shard is a fixed number of rows of the table, counted as they were written: shard i holds rows
i * rows up to (i + 1) * rows. Growth makes new shards at the end, removal shrinks some, and no row
moves (save where a whole written piece goes), so a shard's FAISS base stays good until its own rows have
changed by a tenth.

- shard.py: an actor. It answers for one range at any version, with the `VectorIndex` that one
  machine uses: base, newer rows searched exactly, removed rows masked. It has no state that
  the table does not have, so Ray may start it again anywhere.
- index.py, replicas.py: the caller's side of a search. Queries go to all shards, ids and scores come back and
  are merged; every request names the caller's version, so a reader sees one version, whole. Texts
  are read once, by the caller, after the merge. Scores are exact and do not depend on the rows
  beside them: merged ids are those of one machine.
- hedging.py: sends a late request to a second replica as well. wire.py: the bytes that are sent.
- pool.py: any work that comes in pieces, shared between actors; a lost actor's piece is done again.
- build.py: a store made by such a pool: workers write fragments, the driver commits once.

A cluster is one trust domain: Ray runs what its members send. Nothing here listens on a socket.
This file imports no Ray, the others are imported only where a cluster is asked for.
"""

from dataclasses import dataclass
from typing import Literal

from uptake.errors import BadInput

Policy = Literal["fail", "wait", "partial"]
POLICIES = ("fail", "wait", "partial")


@dataclass(frozen=True)
class Cluster:
    """The cluster that searches a store, and what happens while a shard does not answer.

    `address` is what `ray.init` takes: host:port, "auto", or "local" for a cluster of this machine
    alone; a program that is connected already stays where it is. `missing` is "fail" (an error),
    "wait" (for Ray to start the shard again) or "partial" (the others answer, and results say what
    share of the store was searched).
    """

    address: str = "local"
    rows: int = 1_000_000  # of the table, a shard
    replicas: int = 1  # actors of the same shard, which take turns
    hedge: float | None = None  # share of recent answers, such as 0.95; slower requests go to two replicas
    missing: Policy = "fail"
    patience: float = 600.0  # seconds a shard may take to start, to come back, or to answer
    cpus: float = 1.0  # that an actor reserves; it searches with one thread

    def __post_init__(self) -> None:
        if self.rows < 1 or self.replicas < 1:
            raise BadInput(f"rows {self.rows}, replicas {self.replicas}: use 1 or more of each")
        if self.hedge is not None and not (0 < self.hedge < 1 and self.replicas > 1):
            raise BadInput(
                f"hedge {self.hedge}, replicas {self.replicas}: late requests go to a second replica: "
                "use 2 or more, and a share between 0 and 1"
            )
        if self.missing not in POLICIES:
            raise BadInput(f"missing {self.missing!r}: use {', '.join(POLICIES)}")
        if not self.patience > 0 or self.cpus < 0:
            raise BadInput(f"patience {self.patience}, cpus {self.cpus}: use more than 0, and 0 or more")
