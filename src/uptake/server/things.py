"""What clients store, as they are told of it, and the pages that lists come in."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from uptake.server.errors import bad


def page(request: Request) -> dict[str, Any]:
    """Return which page a query string asks for. Raises ApiError."""
    given = request.query_params
    try:
        limit = int(given.get("limit", "20"))
    except ValueError:
        limit = 0
    if not 1 <= limit <= 10_000:
        raise bad(f"limit {given['limit'][:40]!r}: use 1 to 10000", "limit")
    if given.get("order", "desc") not in ("asc", "desc"):
        raise bad(f"order {given['order'][:40]!r}: use asc or desc", "order")
    return {"limit": limit, "after": given.get("after"), "newest_first": given.get("order", "desc") == "desc"}


def user(request: Request) -> str:
    """Return the user that a query string names: without one, nothing is meant, least of all everybody."""
    user = request.query_params.get("user", "")
    if not user:
        raise bad("user is missing: name whose memories", "user", "missing_field")
    return user


def listed(rows: list[dict[str, Any]], page: dict[str, Any], shown: Any) -> Response:
    data = [shown(row) for row in rows[: page["limit"]]]
    ends = (
        {"first_id": data[0]["id"], "last_id": data[-1]["id"]}
        if data
        else {"first_id": None, "last_id": None}
    )
    return JSONResponse({"object": "list", "data": data, **ends, "has_more": len(rows) > page["limit"]})


def deleted(found: dict[str, Any], kind: str) -> Response:
    receipt = {"forgotten": found["forgotten"], **({"left": found["left"]} if found["left"] else {})}
    return JSONResponse({"id": found["id"], "object": kind, "deleted": True, "uptake": receipt})


def file(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "object": "file",
        "bytes": row["size"],
        "created_at": row["created"],
        "filename": row["filename"],
        "purpose": row["purpose"],
        "status": "processed",
    }


def store(row: dict[str, Any]) -> dict[str, Any]:
    counts = row["file_counts"]
    return {
        "id": row["id"],
        "object": "vector_store",
        "created_at": row["created"],
        "name": row["name"] or "",
        "usage_bytes": 0,
        "file_counts": counts,
        "status": "in_progress" if counts["in_progress"] else "completed",
        "last_active_at": row["created"],
        "metadata": row["metadata"] or {},
        "uptake": {"searched_by": row["searched"]},
    }


def held(row: dict[str, Any]) -> dict[str, Any]:
    error = {"code": "unsupported_file", "message": row["error"]} if row["error"] else None
    return {
        "id": row["file"],
        "object": "vector_store.file",
        "created_at": row["created"],
        "vector_store_id": row["store"],
        "status": row["status"],
        "usage_bytes": 0,
        "last_error": error,
        "attributes": {},
    }


def memory(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "object": "memory",
        "created_at": row["created"],
        "user": row["user"],
        "text": row["text"],
    }


def session(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "object": "session",
        "created_at": row["created"],
        "uptake": row["uptake"],
        "passages": row.get("texts", []),
    }


def state(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "object": "state",
        "created_at": row["created"],
        "model": row["model"],
        "answers": row["answers"],
        "bytes": row["size"],
        "method": row["method"],
        "settings": row["settings"],
        "seed": row["seed"],
        "store": row["store"],
        "documents": row["documents"],
        "steps": row["steps"],
        "tokens_trained": row["trained"],
        "stopped": row["stopped"],
        "handed_over": row.get("handed", []),
    }
