"""Models of a hub: found in the cache where the hub does not answer, which is asked once and shortly.

Loaders ask it for each of a model's files, again and again where nobody answers: a wrong name without a
network took more than a minute. HF_HUB_OFFLINE=1 asks no hub at all.
"""

from pathlib import Path

from uptake.errors import Missing

PATIENCE = 5.0  # seconds that the hub may take to answer


def cached_if_silent(name: str, what: str) -> Path | None:
    """Return the folder of a hub model in the cache where the hub does not answer; None where it has it.

    `what` stands before the name in a message. Raises Missing, in one line, where neither has it.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        HfApi().model_info(name, timeout=PATIENCE)
        return None
    except HFValidationError:
        raise Missing(f"{what} {name!r}: no such folder, and no name on the hub is like that") from None
    except RepositoryNotFoundError:
        reason, cure = (
            "the hub has no such model, or not for you",
            "give its right name or a folder that holds it",
        )
    except (
        Exception
    ) as error:  # no network, no answer in time, offline by choice: the client raises many kinds
        reason = f"the hub does not answer ({_short(error)})"
        cure = "give a folder that holds it, or try again with a network (HF_HUB_OFFLINE=1 asks no hub)"
    config = try_to_load_from_cache(name, "config.json")
    if isinstance(config, str):
        return Path(config).parent
    raise Missing(f"{what} {name!r}: no such folder, not in the cache, and {reason}: {cure}")


def _short(error: Exception) -> str:
    first = next(iter(str(error).strip().splitlines()), "")[:80].rstrip(" .:")
    return first or type(error).__name__
