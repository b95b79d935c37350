"""What `uptake serve` was told, as the door, the engine and the tests share it."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class StoreAt:
    """One of the operator's stores: its name in `uptake.store`, where it is, and how it is searched."""

    name: str
    path: str
    encoder: str | None = None
    search_by: str | None = None  # as `Datastore.open` takes it
    vector_weight: float = 20.0
    query_encoder: str = ""  # the file or folder of the queries' own encoder


@dataclass(frozen=True)
class Recipe:
    """One way to adapt under a name of its own, which follows the base's and a plus sign."""

    name: str
    method: str
    k: int = 20
    settings: tuple[str, ...] = ()
    store: str | None = None


@dataclass(frozen=True)
class Config:
    """All that an engine needs to begin."""

    model: str
    name: str  # what clients call the base
    device: str = "cpu"
    dtype: str = "float32"
    threads: int | None = None
    stores: tuple[StoreAt, ...] = ()
    recipes: tuple[Recipe, ...] = ()
    embedder: str = ""  # the encoder of texts, as `uptake index` names one
    embedder_name: str = ""  # what clients call it
    hand_over: tuple[tuple[str, str], ...] = ()  # (name, KIND=URL) of servers that adapters may go to
    data: str = ""  # the folder of what clients store
    rows: int = 64  # that write at once
    state_bytes: int = 1 << 30  # of states that are kept in memory
    trained_tokens: int = 100_000  # that one request may train on
    grid: str = ""  # what the self-test of this machine gave the engine before this one

    def plain(self) -> dict[str, Any]:
        """Return it as data for another process."""
        return asdict(self)

    @classmethod
    def of(cls, data: dict[str, Any]) -> "Config":
        """Return what `plain` gave."""
        stores = tuple(StoreAt(**each) for each in data.pop("stores"))
        recipes = tuple(
            Recipe(**{**each, "settings": tuple(each["settings"])}) for each in data.pop("recipes")
        )
        targets = tuple((name, where) for name, where in data.pop("hand_over"))
        return cls(**data, stores=stores, recipes=recipes, hand_over=targets)
