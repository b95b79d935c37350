"""The routes of states that were kept: listed, deleted, taken away as adapters, handed over."""

from pathlib import Path
from typing import Annotated

from pydantic import Field
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from uptake.server import things, wire
from uptake.server.app import Door
from uptake.server.routing import Routes


class HandOver(wire.Shape):
    """A body that names where an adapter is to go."""

    target: Annotated[wire.Text, Field(min_length=1, max_length=100)]


def add_states(routes: Routes, door: Door) -> None:
    """Add these routes to the server."""

    @routes.get("/uptake/states")
    async def states(request: Request) -> Response:
        key, page = door.key(request, "stores"), things.page(request)
        return things.listed(await door.keep(key, "state_list", **page), page, things.state)

    @routes.get("/uptake/states/{name}")
    async def state(request: Request, name: str) -> Response:
        found = await door.keep(door.key(request, "stores"), "state_get", id=name)
        return JSONResponse(things.state(found))

    @routes.delete("/uptake/states/{name}")
    async def delete(request: Request, name: str) -> Response:
        found = await door.keep(door.key(request, "stores"), "state_delete", id=name)
        return things.deleted(found, "state.deleted")

    @routes.get("/uptake/states/{name}/adapter")
    async def adapter(request: Request, name: str) -> Response:
        path = await door.keep(door.key(request, "stores"), "state_adapter", id=name)
        gone = BackgroundTask(Path(path).unlink, missing_ok=True)
        return FileResponse(path, media_type="application/zip", filename=f"{name}.zip", background=gone)

    @routes.post("/uptake/states/{name}/hand_over")
    async def hand_over(request: Request, name: str) -> Response:
        key = door.key(request, "stores")
        asked = await door.body(request, HandOver)
        return JSONResponse(await door.keep(key, "state_hand_over", id=name, target=asked.target))
