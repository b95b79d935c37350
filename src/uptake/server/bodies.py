"""JSON from outside: bounded in size and depth, without doubled keys, NaN or half characters."""

import json
from typing import Any, NoReturn

from uptake.server.errors import ApiError, bad

MOST_BYTES = 4 << 20
MOST_DEPTH = 32


def parse(raw: bytes) -> dict[str, Any]:
    """Return the object that a body holds. Raises ApiError, in time linear in its size."""
    if len(raw) > MOST_BYTES:
        raise too_large()
    try:
        found = json.loads(raw.decode("utf8"), object_pairs_hook=_object, parse_constant=_constant)
    except ApiError:
        raise
    except RecursionError:
        raise _deep() from None
    except (ValueError, UnicodeDecodeError) as error:
        where = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise bad(f"the body is no JSON{where}: send one JSON object in UTF-8", code="invalid_json") from None
    if not isinstance(found, dict):
        raise bad("the body is no JSON object: send {...}", code="invalid_json")
    _check_depth(found)
    try:
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode("utf8")
    except UnicodeEncodeError:
        raise bad(
            "a text holds half a character, which is no Unicode: leave it out", code="invalid_json"
        ) from None
    except ValueError:
        raise bad("a number is too large: use finite numbers", code="invalid_json") from None
    return found


def too_large(most: int = MOST_BYTES) -> ApiError:
    """Return the refusal of a body of more bytes than allowed."""
    return ApiError(413, f"the body is larger than {most:,} bytes: send less", "too_large")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        double = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise bad(f"the key {double[:60]!r} stands twice in one object: give it once", code="invalid_json")
    return found


def _constant(name: str) -> NoReturn:
    raise bad(f"{name} is no number of JSON: use finite numbers", code="invalid_json")


def _check_depth(found: dict[str, Any]) -> None:
    level: list[Any] = [found]
    for _ in range(MOST_DEPTH):
        inner = (each.values() if isinstance(each, dict) else each for each in level)
        level = [value for values in inner for value in values if isinstance(value, dict | list)]
        if not level:
            return
    raise _deep()


def _deep() -> ApiError:
    return bad(f"the body is nested more than {MOST_DEPTH} deep: send it flatter", code="invalid_json")
