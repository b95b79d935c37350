"""The routes of what clients store: OpenAI's files and vector stores, memories of people, and sessions."""

import asyncio
import contextlib
import os
import secrets
import shutil
from pathlib import Path
from typing import Annotated, Any, BinaryIO, ClassVar

from pydantic import Field
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from uptake.server import things, wire
from uptake.server.app import Door
from uptake.server.errors import bad, not_found, of
from uptake.server.receiving import received_form
from uptake.server.routing import Routes

MOST_UPLOAD = 512 << 20
Name = Annotated[str, Field(max_length=256)]
Metadata = Annotated[dict[str, wire.Text], Field(max_length=16)]


class NewStore(wire.Shape):
    """A body that makes a vector store."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "expires_after": (None,),
        "chunking_strategy": (None, {"type": "auto"}),
        "description": (None, ""),
    }
    name: Name | None = None
    file_ids: Annotated[list[wire.Text], Field(max_length=500)] = Field(default=[])
    metadata: Metadata | None = None


class NewHeld(wire.Shape):
    """A body that lets a vector store hold a file."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "chunking_strategy": (None, {"type": "auto"}),
        "attributes": (None, {}),
    }
    file_id: wire.Text


class Search(wire.Shape):
    """A body that searches a vector store."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "filters": (None,),
        "ranking_options": (None,),
        "rewrite_query": (None, False),
    }
    query: wire.Text | Annotated[list[wire.Text], Field(min_length=1, max_length=1)]
    max_num_results: Annotated[int, Field(ge=1, le=50)] = 10


class NewMemory(wire.Shape):
    """A body that keeps a memory of a person."""

    user: Annotated[wire.Text, Field(min_length=1, max_length=256)]
    text: Annotated[wire.Text, Field(min_length=1)]


class NewSession(wire.Strict):
    """A body that begins a session: how it adapts, and what it searches for."""

    method: wire.Text
    settings: Annotated[list[wire.Text], Field(max_length=64)] = Field(default=[])
    store: wire.Text | None = None
    k: Annotated[int, Field(ge=0, le=1000)] | None = None
    query: wire.Text | None = None
    seed: wire.Seed | None = None


class Begin(wire.Shape):
    """Its shape: the same, in a request."""

    uptake: NewSession


class Take(wire.Shape):
    """A body with texts and edits that a session reads."""

    texts: Annotated[wire.Texts, Field(min_length=1)]


def add_routes(routes: Routes, door: Door) -> None:
    """Add these routes to the server."""

    keep = door.keep

    @routes.post("/v1/files")
    async def add_file(request: Request) -> Response:
        key = door.key(request, "stores")
        async with received_form(request, MOST_UPLOAD) as form:
            file, purpose = form.get("file"), form.get("purpose", "assistants")
            if not isinstance(file, UploadFile):
                raise bad("a file is missing: send it as multipart/form-data", "file", "missing_field")
            if purpose not in ("assistants", "user_data"):
                raise bad(f"purpose {str(purpose)[:40]!r}: use assistants or user_data", "purpose")
            upload = Path(door.config.data) / "uploads" / f"up_{secrets.token_hex(12)}"
            try:
                await asyncio.to_thread(_written, file.file, upload)
            except OSError as error:
                raise of(error) from None
        filename = (file.filename or "file").replace("\\", "/").rpartition("/")[2][:255] or "file"
        quota = key.limits.store_bytes
        try:
            made = await keep(
                key, "file_add", upload=upload.name, filename=filename, purpose=purpose, quota=quota
            )
        finally:
            with contextlib.suppress(OSError):
                upload.unlink(missing_ok=True)
        return JSONResponse(things.file(made))

    @routes.get("/v1/files")
    async def files(request: Request) -> Response:
        key = door.key(request, "stores")
        return things.listed(
            await keep(key, "file_list", **(page := things.page(request))), page, things.file
        )

    @routes.get("/v1/files/{name}")
    async def file(request: Request, name: str) -> Response:
        return JSONResponse(things.file(await keep(door.key(request, "stores"), "file_get", id=name)))

    @routes.get("/v1/files/{name}/content")
    async def content(request: Request, name: str) -> Response:
        path = await keep(door.key(request, "stores"), "file_path", id=name)
        return FileResponse(path, media_type="application/octet-stream")

    @routes.delete("/v1/files/{name}")
    async def delete_file(request: Request, name: str) -> Response:
        return things.deleted(await keep(door.key(request, "stores"), "file_delete", id=name), "file")

    @routes.post("/v1/vector_stores")
    async def add_store(request: Request) -> Response:
        key = door.key(request, "stores")
        asked = await door.body(request, NewStore)
        more = {"name": asked.name, "metadata": asked.metadata, "file_ids": list(asked.file_ids)}
        return JSONResponse(things.store(await keep(key, "store_add", **more)))

    @routes.get("/v1/vector_stores")
    async def stores(request: Request) -> Response:
        key = door.key(request, "stores")
        return things.listed(
            await keep(key, "store_list", **(page := things.page(request))), page, things.store
        )

    @routes.get("/v1/vector_stores/{name}")
    async def store(request: Request, name: str) -> Response:
        return JSONResponse(things.store(await keep(door.key(request, "stores"), "store_get", id=name)))

    @routes.delete("/v1/vector_stores/{name}")
    async def delete_store(request: Request, name: str) -> Response:
        return things.deleted(
            await keep(door.key(request, "stores"), "store_delete", id=name), "vector_store.deleted"
        )

    @routes.post("/v1/vector_stores/{name}/search")
    async def search(request: Request, name: str) -> Response:
        key = door.key(request, "stores")
        asked = await door.body(request, Search)
        query = asked.query if isinstance(asked.query, str) else asked.query[0]
        rows = await keep(key, "store_search", id=name, query=query, k=asked.max_num_results)
        found = [
            {
                "file_id": row["file_id"],
                "filename": row["filename"],
                "score": row["score"],
                "attributes": {},
                "content": [{"type": "text", "text": row["text"]}],
            }
            for row in rows
        ]
        head = {"object": "vector_store.search_results.page", "search_query": [query]}
        return JSONResponse({**head, "data": found, "has_more": False, "next_page": None})

    @routes.post("/v1/vector_stores/{name}/files")
    async def hold(request: Request, name: str) -> Response:
        key = door.key(request, "stores")
        asked = await door.body(request, NewHeld)
        return JSONResponse(things.held(await keep(key, "held_add", store=name, file=asked.file_id)))

    @routes.get("/v1/vector_stores/{name}/files")
    async def held(request: Request, name: str) -> Response:
        key, page = door.key(request, "stores"), things.page(request)
        rows = await keep(key, "held_list", store=name)
        rows = rows[::-1] if page["newest_first"] else rows
        if page["after"] is not None:
            places = [place for place, row in enumerate(rows) if row["file"] == page["after"]]
            if not places:
                raise not_found(f"file {page['after'][:60]!r}", "after")
            rows = rows[places[0] + 1 :]
        return things.listed(rows[: page["limit"] + 1], page, things.held)

    @routes.get("/v1/vector_stores/{name}/files/{file}")
    async def one_held(request: Request, name: str, file: str) -> Response:
        return JSONResponse(
            things.held(await keep(door.key(request, "stores"), "held_get", store=name, file=file))
        )

    @routes.delete("/v1/vector_stores/{name}/files/{file}")
    async def let_go(request: Request, name: str, file: str) -> Response:
        found = await keep(door.key(request, "stores"), "held_delete", store=name, file=file)
        return things.deleted(found, "vector_store.file.deleted")

    @routes.post("/uptake/memories")
    async def remember(request: Request) -> Response:
        key = door.key(request, "stores")
        asked = await door.body(request, NewMemory)
        quota = key.limits.store_bytes
        return JSONResponse(
            things.memory(await keep(key, "memory_add", user=asked.user, text=asked.text, quota=quota))
        )

    @routes.get("/uptake/memories")
    async def memories(request: Request) -> Response:
        key, user = door.key(request, "stores"), things.user(request)
        return things.listed(
            await keep(key, "memory_list", user=user, **(page := things.page(request))), page, things.memory
        )

    @routes.delete("/uptake/memories")
    async def forget_person(request: Request) -> Response:
        key, user = door.key(request, "stores"), things.user(request)
        return things.deleted(await keep(key, "person_delete", user=user), "memories.deleted")

    @routes.get("/uptake/memories/{name}")
    async def memory(request: Request, name: str) -> Response:
        return JSONResponse(things.memory(await keep(door.key(request, "stores"), "memory_get", id=name)))

    @routes.delete("/uptake/memories/{name}")
    async def forget(request: Request, name: str) -> Response:
        found = await keep(door.key(request, "stores"), "memory_delete", id=name)
        return things.deleted(found, "memory.deleted")

    @routes.post("/uptake/sessions")
    async def begin(request: Request) -> Response:
        key = door.key(request, "infer")
        asked = await door.body(request, Begin)
        kept = asked.uptake.model_dump(exclude_unset=True)
        return JSONResponse(things.session(await keep(key, "session_add", uptake=kept)))

    @routes.get("/uptake/sessions/{name}")
    async def session(request: Request, name: str) -> Response:
        return JSONResponse(things.session(await keep(door.key(request, "infer"), "session_get", id=name)))

    @routes.post("/uptake/sessions/{name}/take")
    async def take(request: Request, name: str) -> Response:
        key = door.key(request, "infer")
        asked = await door.body(request, Take)
        quota = key.limits.store_bytes
        given = [one if isinstance(one, str) else one.model_dump() for one in asked.texts]
        return JSONResponse(await keep(key, "session_take", id=name, texts=given, quota=quota))

    @routes.delete("/uptake/sessions/{name}/passages/{passage}")
    async def drop(request: Request, name: str, passage: str) -> Response:
        found = await keep(door.key(request, "infer"), "session_drop", id=name, passage=passage)
        return things.deleted(found, "session.passage.deleted")

    @routes.delete("/uptake/sessions/{name}")
    async def end(request: Request, name: str) -> Response:
        found = await keep(door.key(request, "infer"), "session_delete", id=name)
        return things.deleted(found, "session.deleted")


def _written(source: BinaryIO, upload: Path) -> None:
    """Write what was sent to a file, and to the disk; nothing is left of one that there is no room for."""
    try:
        with upload.open("wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
            out.flush()
            os.fsync(out.fileno())
    except OSError:
        upload.unlink(missing_ok=True)
        raise
