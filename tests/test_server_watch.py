"""Requests that end while their client neither reads nor leaves: unread, revoked, or with keys gone."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from uptake.server import generating
from uptake.server.admit import Admission
from uptake.server.answers import Answer, Choice
from uptake.server.generating import Generating, Turns
from uptake.server.keys import LOCAL
from uptake.server.meter import Meter


class Engine:
    """One that says a token, and then nothing more."""

    cancelled = False

    def call(self, frame: dict[str, Any]) -> None:
        pass

    async def events(self, call: None) -> AsyncIterator[list[dict[str, Any]]]:
        begun = {"event": "begun", "prompt_tokens": 3, "trained": 0}
        try:
            yield [begun, {"event": "tokens", "rows": [[0, "a", "", 1, None]]}]
            await asyncio.Event().wait()
        finally:
            self.cancelled = True


def refused() -> bool:
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("allowed", "reads", "told"),
    [
        (lambda: True, False, b""),
        (lambda: False, False, b""),
        (lambda: False, True, b"the key was revoked"),
        (refused, True, b"the key was revoked"),
    ],
)
def test_a_request_ends_by_itself(
    monkeypatch: pytest.MonkeyPatch, allowed: Any, reads: bool, told: bytes
) -> None:
    monkeypatch.setattr(generating, "ASKED_EVERY", 0.01)
    monkeypatch.setattr(generating, "UNREAD", 0.03)
    meter, sent, engine = Meter(), bytearray(), Engine()
    turns = Turns(Admission(), meter)

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            if not reads:
                await asyncio.Event().wait()
            sent.extend(message["body"])

    async def run() -> None:
        answer: Any = Answer("completion", "m", "fp", [Choice(0)], False)
        frame, asked = {"n": 1}, turns.enter(LOCAL, 4)
        one: Any = (turns, engine, meter, asked, frame, answer, True, False, [], None, allowed)
        await asyncio.wait_for(Generating(*one)({}, receive, send), 10)

    asyncio.run(run())
    assert engine.cancelled and not turns.admission.running and told in bytes(sent)
    assert bytes(sent).endswith(b"data: [DONE]\n\n") == reads
    page = meter.page()
    assert (b'uptake_cancelled_total{stage="unread"} 1.0' in page) == (
        not reads and allowed is not refused and allowed()
    )
