"""What a request with one answer costs its key: what it used, nothing where it was refused or never ran."""

import asyncio
from typing import Any

import pytest

from uptake.server.admit import Admission, House
from uptake.server.errors import bad
from uptake.server.generating import Told, Turns, Waiting
from uptake.server.keys import Key, Limits
from uptake.server.meter import Meter

RESERVED, USED = 400, 30


class Engine:
    """Answers, refuses, or waits for ever."""

    def __init__(self, way: str) -> None:
        self.way = way

    async def answer(self, frame: dict[str, Any]) -> Any:
        if self.way == "refuses":
            raise bad("a text of 9,000 tokens", "text")
        if self.way == "waits":
            await asyncio.Event().wait()
        return USED


async def cost(way: str, running: int, leaves: bool) -> float:
    """Return the tokens that a request has cost its key."""
    now = 0.0
    admission = Admission(House(running=running), lambda: now)
    turns, key = Turns(admission, Meter()), Key("k", "t", ("infer",), Limits(tokens=1000))
    if running == 1:
        turns.enter(key, 0)  # has the only seat
    ticket, gone = turns.enter(key, RESERVED), asyncio.Event()
    engine: Any = Engine(way)
    waiting = Waiting(turns, engine, ticket, {}, lambda found: Told({"found": found}, found))

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    asked = asyncio.create_task(waiting({"type": "http"}, receive, send))
    await asyncio.sleep(0.01)
    if leaves:
        gone.set()
    await asyncio.wait_for(asked, 5)
    return 1000 - admission._accounts["k"].tokens.left(now)


@pytest.mark.parametrize(
    ("way", "running", "leaves", "expected"),
    [
        ("answers", 2, False, USED),
        ("refuses", 2, False, 0),
        ("answers", 1, True, 0),  # left before its turn
        ("waits", 2, True, RESERVED),  # what the engine had done by then is not known
    ],
)
def test_a_request_costs_what_it_used(way: str, running: int, leaves: bool, expected: int) -> None:
    assert asyncio.run(cost(way, running, leaves)) == pytest.approx(expected)
