"""Waits and shares under overload, in the time of a simulated engine: nothing here depends on the machine."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from uptake.server.admit import Admission, House, Ticket
from uptake.server.errors import ApiError
from uptake.server.keys import Key, Limits

SEATS = 32
STEP = 0.025  # seconds of a pass, in which every row that sits goes on by a token: 1,280 tokens a second
GENEROUS = Limits(10**7, 10**9, 10**9, 10**5)


@dataclass(frozen=True)
class Kind:
    """What a client asks for: rows, the tokens reserved for each, those written, and those trained on."""

    reserved: int = 128
    written: int = 128
    trained: int = 0
    rows: int = 1

    @property
    def alone(self) -> float:
        """The seconds that it takes where nobody waits."""
        return STEP * (self.written + self.trained)


class Engine:
    """An engine of 32 seats and a clock of its own, behind an admission."""

    def __init__(self) -> None:
        self.now = 0.0
        self.admission = Admission(House(running=SEATS), lambda: self.now)
        self.kinds: dict[Ticket, Kind] = {}
        self.left: dict[Ticket, int] = {}
        self.worked: dict[str, int] = {}
        self.passes: list[int] = []  # rows that sat at each
        self.ended: dict[Ticket, float] = {}

    def ask(self, key: Key, kind: Kind) -> Ticket:
        """Ask for something. Raises ApiError where it is refused."""
        ticket = self.admission.admit(key, kind.reserved * kind.rows, kind.rows)
        self.kinds[ticket] = kind
        self._pump()
        return ticket

    def tick(self) -> None:
        """Let a pass go by."""
        self.now += STEP
        self.passes.append(sum(self.kinds[ticket].rows for ticket in self.left))
        for ticket in [*self.left]:
            kind = self.kinds[ticket]
            self.left[ticket] -= 1
            ticket.worked += kind.rows
            self.worked[ticket.key.id] = self.worked.get(ticket.key.id, 0) + kind.rows
            if not self.left[ticket]:
                del self.left[ticket]
                self.ended[ticket] = self.now
                self.admission.done(ticket, kind.written * kind.rows, kind.trained * kind.rows)
        self._pump()

    def _pump(self) -> None:
        while (ticket := self.admission.next()) is not None:
            self.left[ticket] = self.kinds[ticket].written + self.kinds[ticket].trained


def client(engine: Engine, key: Key, kind: Kind) -> Iterator[None]:
    """Ask again and again, and where it was refused when the server said so; a pass a step."""
    while True:
        try:
            ticket = engine.ask(key, kind)
        except ApiError as error:
            again = engine.now + max(1.0, error.retry_after or 0)
            while engine.now < again:
                yield
            continue
        while ticket not in engine.ended:
            yield


def key(name: str) -> Key:
    return Key(name, f"ten_{name}", ("infer",), GENEROUS)


def p95(values: list[float]) -> float:
    return sorted(values)[int(0.95 * len(values))]


KINDS = {
    "as the bench": Kind(),
    "short": Kind(16, 16),
    "ends early": Kind(1024, 64),
    "adapts": Kind(64, 64, 192),
    "four rows": Kind(rows=4),
}


@pytest.mark.parametrize(
    ("name", "keys"), [*((name, 1) for name in KINDS), ("as the bench", 20), ("short", 20)]
)
def test_whoever_is_accepted_at_four_times_the_load_waits_no_longer_than_its_answer_takes(
    name: str, keys: int
) -> None:
    kind, engine, refused, tickets = KINDS[name], Engine(), 0, list[Ticket]()
    rate = 4 * SEATS / kind.rows / kind.alone
    asks, offered = 0, int(20 * rate)
    while asks < offered or engine.left:
        while asks < min(offered, rate * engine.now):
            asks += 1
            try:
                tickets.append(engine.ask(key(f"k{asks % keys}"), kind))
            except ApiError as error:
                assert error.status == 503 and error.retry_after
                refused += 1
        engine.tick()
    # Half as long on average; rows that began together end together, so that seats come free in one go.
    patience = House().patience if House().patience > kind.alone / 2 else 0
    took = p95([engine.ended[ticket] - ticket.begun for ticket in tickets])
    assert took <= 2 * kind.alone + patience
    # It refuses what the engine cannot do, and not what it can.
    assert refused < 0.75 * offered
    loaded = engine.passes[: int(20 / STEP)]
    assert sum(loaded) >= 0.95 * SEATS * len(loaded)


PAIRS: dict[str, tuple[Kind, Kind]] = {
    "as the bench": (Kind(), Kind()),
    "longer": (Kind(512, 512), Kind(64, 64)),
    "many rows": (Kind(rows=8), Kind()),
    "reserves little, trains much": (Kind(16, 16, 240), Kind()),
    "reserves much, writes little": (Kind(), Kind(1024, 64)),
}


@pytest.mark.parametrize("before", [0, 10, 37.7])
@pytest.mark.parametrize("name", PAIRS)
def test_a_modest_key_gets_its_share_beside_a_greedy_one(name: str, before: float) -> None:
    much, little = PAIRS[name]
    engine, shuffled = Engine(), random.Random(0)
    greedy, modest = key("greedy"), key("modest")
    clients = [client(engine, greedy, much) for _ in range(128)]

    def run(seconds: float) -> None:
        end = engine.now + seconds
        while engine.now < end:
            shuffled.shuffle(clients)
            for each in clients:
                next(each)
            engine.tick()

    run(before)
    assert not before or min(engine.passes[-100:]) > 0.9 * SEATS  # alone it has the whole machine
    clients.extend(client(engine, modest, little) for _ in range(32))
    engine.worked.clear()
    run(max(10.0, 4 * much.alone))
    share = engine.worked["modest"] / (sum(engine.worked.values()) / 2)
    assert (0.8 if name == "as the bench" else 0.7) <= share <= 1.3
    engine.worked.clear()
    run(30.0)  # and from then on
    assert 0.9 <= engine.worked["modest"] / (sum(engine.worked.values()) / 2) <= 1.1


def test_who_comes_back_now_and_then_saves_nothing_up() -> None:
    engine = Engine()
    steady, rare = key("steady"), key("rare")
    clients = [client(engine, steady, Kind()) for _ in range(64)]

    def run(seconds: float, also: Callable[[], None] = lambda: None) -> None:
        end = engine.now + seconds
        while engine.now < end:
            for each in clients:
                next(each)
            also()
            engine.tick()

    engine.ask(rare, Kind())
    run(300)  # what it did not use meanwhile is nobody's
    engine.worked.clear()
    others = [client(engine, rare, Kind()) for _ in range(64)]
    clients += others
    run(20)
    assert engine.worked["steady"] >= 0.8 * sum(engine.worked.values()) / 2
