"""How the operator's stores are searched: by words, vectors or both, and with the queries' own encoder."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import server_world
from server_world import TEXTS
from uptake.retrievers.query_encoder import QueryMap
from uptake.server.config import Recipe, StoreAt
from uptake.store import Datastore
from uptake.text.types import Document

PROMPT = "the cat sat on"


@pytest.fixture(name="world", scope="module")
def world_fixture(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A model, a store of its states, and a query encoder that finds the passage least like the prompt."""
    folder = tmp_path_factory.mktemp("searching")
    model = server_world.saved_model(folder / "toy")
    store = Datastore.create(folder / "near.store", encoder=f"lm:{model}")
    store.add([Document(f"d{number}", text) for number, text in enumerate(TEXTS)])
    query = store.query_vectors([PROMPT])[0]
    ids = sorted(
        key for some in store.passages_of([f"d{n}" for n in range(len(TEXTS))]).values() for key in some
    )
    vectors = store.vectors(ids)
    least = vectors[int(np.argmin(vectors @ query))]
    turned = QueryMap(store.view.encoder_fingerprint, np.outer(query, 9 * least).astype(np.float32))
    turned.save(folder / "queries.safetensors")
    return model, folder / "near.store", folder / "queries.safetensors"


@pytest.mark.parametrize("by", ["dense", "sum", "lexical", "hybrid", None])
@pytest.mark.parametrize("own", [True, False])
def test_a_server_finds_what_the_store_so_searched_finds(
    world: tuple[Path, Path, Path], by: str | None, own: bool
) -> None:
    model, path, file = world
    if own and by == "lexical":
        pytest.skip("words have no vectors to turn")
    query_encoder = QueryMap.load(file) if own else None
    store = Datastore.open(path, search_by=by, query_encoder=query_encoder)
    expected = [found.document for found in store.source(PROMPT).search(2).passages]
    at = StoreAt("near", str(path), search_by=by, query_encoder=str(file) if own else "")
    config = replace(
        server_world.config(model.parent),
        stores=(at,),
        recipes=(Recipe("near", "in-context", 2, (), "near"),),
    )
    assert type(config).of(config.plain()) == config
    with server_world.running(config) as server:
        asked = {"model": "toy+near", "prompt": PROMPT, "max_tokens": 1, "uptake": {"explain": True}}
        told = server.post("/v1/completions", asked).json()["uptake"]
    assert sorted(near["document"] for near in told["neighbours"]) == sorted(expected)
    if by == "dense":
        plain = Datastore.open(path, search_by=by).source(PROMPT).search(1).passages[0].document
        turned = Datastore.open(path, search_by=by, query_encoder=QueryMap.load(file))
        assert turned.source(PROMPT).search(1).passages[0].document != plain
