"""`uptake serve`: OpenAI's API over one model that adapts in private for each request."""

from pathlib import Path
from typing import Annotated, Any

from uptake.cli import inputs, options, screen, searching
from uptake.errors import BadInput, Missing

EXAMPLES = options.examples(
    "uptake serve -m gpt2",
    "uptake serve -m gpt2 -s notes.store --method ttt-nn --set trainable=lora --port 8080",
    "uptake serve -m gpt2 --recipe notes.recipe -s notes.store --keys keys.db --host 0.0.0.0",
)
SERVING = "Serving"


def serve(
    model: options.Model,
    store: Annotated[
        list[str] | None,
        options.option(
            options.MAIN,
            "DIR",
            "Datastore that requests may search; may be repeated. notes.store serves MODEL+notes.",
            "--store",
            "-s",
        ),
    ] = None,
    method: options.MethodOr = None,
    k: Annotated[
        int | None,
        options.option(options.MAIN, "N", "Number of neighbours to read. Default: 20.", "-k", least=0),
    ] = None,
    settings: options.Setting = None,
    recipe: options.Recipe = None,
    encoder: options.Encoder = None,
    search_by: searching.SearchBy = None,
    vector_weight: searching.VectorWeight = 20.0,
    query_encoder: searching.QueryEncoder = None,
    name: Annotated[
        str | None,
        options.option(SERVING, "NAME", "What clients call the model. Default: the end of --model."),
    ] = None,
    host: Annotated[
        str, options.option(SERVING, "ADDRESS", "Address to listen at; one beyond this machine needs --keys.")
    ] = "127.0.0.1",
    port: Annotated[
        int, options.option(SERVING, "N", "Port to listen at; 0 takes a free one.", least=0, most=65535)
    ] = 8000,
    keys: Annotated[
        str | None,
        options.option(SERVING, "FILE", "Keys that clients need, made by `uptake keys add`."),
    ] = None,
    data: Annotated[
        str | None,
        options.option(
            SERVING,
            "DIR",
            "Folder for what clients store; without it there are no files or sessions.",
        ),
    ] = None,
    embedder: Annotated[
        str | None,
        options.option(
            SERVING,
            "NAME|DIR|lm:MODEL",
            "Encoder behind /v1/embeddings; clients' stores are searched by meaning too.",
        ),
    ] = None,
    hand_over: Annotated[
        list[str] | None,
        options.option(
            SERVING,
            "NAME=KIND=URL",
            "Server that adapters may be handed over to; KIND: vllm, sglang, llamacpp. May be repeated.",
        ),
    ] = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    threads: options.Threads = None,
) -> None:
    """Serve a model to any client of OpenAI's API; each request may adapt it, in private.

    MODEL is the base; MODEL+notes adapts to what notes.store holds near the prompt, by --method. Without
    --keys it answers to this machine alone.
    """
    try:
        from uptake.server.config import Config
        from uptake.server.keys import Keys
        from uptake.server.serving import listening, serve
    except ImportError as error:
        raise Missing(f"the server is not here ({error}): pip install 'uptake[server]'") from None

    if host not in ("127.0.0.1", "::1", "localhost") and keys is None:
        raise BadInput(f"--host {host} is open to other machines: give --keys, made by `uptake keys add`")
    chosen = inputs.recipe(recipe)
    if chosen and method not in (None, chosen.method):
        raise BadInput(
            f"--method {method} --recipe {recipe}: the recipe is for {chosen.method}, leave one out"
        )
    stores, recipes = _offered(
        store or [],
        method or (chosen.method if chosen else "ttt-nn"),
        k if k is not None else (chosen.k if chosen else 20),
        (*(chosen.settings if chosen else ()), *(settings or ())),
        {
            "encoder": encoder,
            "search_by": search_by,
            "vector_weight": vector_weight,
            "query_encoder": query_encoder or "",
        },
    )
    known = None if keys is None else Keys(Path(keys))
    called = name or Path(model.rstrip("/")).name.removesuffix(".gguf")
    if not called or len(called) > 100 or "+" in called or "@" in called:
        raise BadInput(f"--name {called!r}: use 1 to 100 characters without + and @")
    config = Config(
        model,
        called,
        device,
        dtype,
        threads,
        stores,
        recipes,
        data=_whole(data),
        embedder=embedder or "",
        embedder_name=_called(embedder, called),
        hand_over=_targets(hand_over or []),
    )
    with listening(host, port) as at:
        address = f"http://{f'[{host}]' if ':' in host else host}:{at.getsockname()[1]}"

        def started(door: Any) -> None:
            for line in door.engine.hello["notes"]:
                screen.note(line)
            names = ", ".join(each["id"] for each in door.engine.hello["models"])
            screen.note(f"{names} at {address}/v1 ({door.engine.hello['grid']}); a page at {address}/lens")

        serve(config, known, at, started)


def _offered(
    stores: list[str], method: str, k: int, settings: tuple[str, ...], search: dict[str, Any]
) -> tuple[Any, Any]:
    """Return the stores by their names, and a recipe for each."""
    from uptake.server.config import Recipe, StoreAt

    names = [Path(path.rstrip("/")).name.removesuffix(".store") for path in stores]
    for place, name in enumerate(names):
        if not name or names.index(name) != place:
            raise BadInput(f"--store {stores[place]}: two stores would be called {name!r}; rename one")
    opened = tuple(StoreAt(name, path, **search) for name, path in zip(names, stores, strict=True))
    return opened, tuple(Recipe(name, method, k, settings, name) for name in names)


def _targets(given: list[str]) -> tuple[tuple[str, str], ...]:
    """Return the servers that adapters may go to, by their names. Raises BadInput."""
    from uptake.hand_over import target

    found: dict[str, str] = {}
    for each in given:
        name, _, where = each.partition("=")
        if not name or name in found:
            raise BadInput(f"--hand-over {each!r}: write NAME=KIND=URL, each name once")
        target(where)
        found[name] = where
    return tuple(found.items())


def _called(embedder: str | None, model: str) -> str:
    """Return what clients call the encoder: the end of its name, or that of a model whose states it is."""
    kind, _, path = (embedder or "").rpartition(":")
    end = Path(path.rstrip("/")).name.removesuffix(".gguf")
    return f"{end}-states" if kind or end == model else end


def _whole(folder: str | None) -> str:
    return "" if folder is None else str(Path(folder).absolute())
