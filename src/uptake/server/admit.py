"""Who may ask, and in which order: limits of each key, a short queue, and fair turns between keys.

A request is refused before it waits, or it waits for its turn. What waits is bounded by what runs
(`Admission.admit`), so that waiting takes less long than being answered. A turn goes to the key that the
engine has worked least for, in tokens read, written and trained on: the virtual token counter of Sheng et
al. 2024 (Fairness in Serving Large Language Models). Sharing out entries alone would forget how long
requests run, what they train, and who holds all seats already. This file knows no HTTP and no model; its
clock is whatever it is given.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from uptake.server.errors import ApiError
from uptake.server.keys import Key

Clock = Callable[[], float]
MINUTE = 60.0
KEEP = 0.9  # of what is known of a key's requests, at each that ends


@dataclass(frozen=True)
class House:
    """What the whole server takes at once.

    `running` seats are with the engine, one for each row. As many may wait as half of those that run or,
    where answers are short, as end in `patience` seconds; and never more than `waiting` requests.
    """

    running: int = 32
    waiting: int = 256
    patience: float = 2.0


class Bucket:
    """An allowance a minute that refills evenly; what was taken too much is owed."""

    def __init__(self, minute: float, now: float) -> None:
        self._minute, self._left, self._then = minute, minute, now

    def left(self, now: float) -> float:
        """Return what may be taken now; less than 0 where more was taken."""
        self._left = min(self._minute, self._left + (now - self._then) * self._minute / MINUTE)
        self._then = now
        return self._left

    def wait(self, amount: float, now: float) -> float:
        """Return the seconds until this amount may be taken: all there ever is, where it is more."""
        return max(0.0, (min(amount, self._minute) - self.left(now)) * MINUTE / self._minute)

    def take(self, amount: float, now: float) -> None:
        """Take an amount, or give a negative one back."""
        self._left = min(self._minute, self.left(now) - amount)


@dataclass(eq=False)
class Ticket:
    """One request that was admitted: the tokens reserved for it, its seats, and where it is.

    `worked` are the tokens read, written and trained on for it so far; whoever serves it keeps it up to date.
    """

    key: Key
    tokens: int
    seats: int
    begun: float
    worked: int = 0
    stage: str = "waiting"  # then "running", then "done"


class _Share:
    """One key's part of the engine: what waits, what runs, and the tokens that it was worked for."""

    def __init__(self) -> None:
        self.waiting: deque[Ticket] = deque()
        self.running: set[Ticket] = set()
        self.ended = 0  # tokens of requests that have ended
        self._reserved = self._spent = 1.0  # of those, the last ones for the most part

    def expected(self, tickets: Iterable[Ticket]) -> float:
        """Return what requests will have cost: of their reservations as much as the key's last ones did."""
        part = self._spent / self._reserved
        return sum(max(ticket.worked, ticket.tokens * part) for ticket in tickets)

    @property
    def worked(self) -> int:
        """The tokens that the engine has worked for this key."""
        return self.ended + sum(ticket.worked for ticket in self.running)

    @property
    def promised(self) -> float:
        """The same, as expected, once all that runs has ended."""
        return self.ended + self.expected(self.running)

    def end(self, ticket: Ticket, spent: int) -> None:
        """Count what a request that ran has cost in the end."""
        self.running.remove(ticket)
        self.ended += spent
        self._reserved = self._reserved * KEEP + ticket.tokens
        self._spent = self._spent * KEEP + spent


class _Account:
    """What one key has used of its limits."""

    def __init__(self, key: Key, now: float) -> None:
        self.limits, self.open = key.limits, 0
        self.requests = Bucket(key.limits.requests, now)
        self.tokens = Bucket(key.limits.tokens, now)
        self.trained = Bucket(key.limits.trained, now)


class Admission:
    """Admits requests and gives them their turns. Used from one thread."""

    def __init__(self, house: House | None = None, clock: Clock = time.monotonic) -> None:
        self.house, self._clock = house or House(), clock
        self._accounts: dict[str, _Account] = {}
        self._shares: dict[str, _Share] = {}
        self._waiting: dict[
            str, _Share
        ] = {}  # those with something waiting; who had the last turn comes last
        self._last = ""  # the key that had the last turn
        self.waiting = 0  # requests
        self.running = self.queued = 0  # seats that are taken, and that are waited for
        self._reserved = 0  # tokens, for what runs
        self._rate = _Rate()
        self.draining = False

    def admit(self, key: Key, tokens: int, rows: int = 1) -> Ticket:
        """Let a request that may cost so many tokens wait for seats for its rows.

        Raises ApiError before it waits where its turn would be too far off. By Little's law rows wait half
        as long as they are answered where half as many wait as run. Of that a key may take as much as it
        leaves free, so that there is room for the next key (Choudhury & Hahne 1998); one that was worked
        less for than any other that waits gets every turn until they are level, and may let as much wait.
        """
        now = self._clock()
        self._refuse_draining()
        account = self._account(key, now)
        self._check(account, tokens, now)
        seats = min(rows, self.house.running)
        share = self._shares.setdefault(key.id, _Share())
        if self.waiting and not self._may_wait(share, seats):
            raise ApiError(
                503, "too many requests wait: try again later", "full", retry_after=max(1.0, self._delay())
            )
        account.requests.take(1, now)
        account.tokens.take(tokens, now)
        account.open += 1
        ticket = Ticket(key, tokens, seats, now)
        if not share.waiting:
            self._join(key.id, share)
        share.waiting.append(ticket)
        self.waiting += 1
        self.queued += seats
        return ticket

    def _may_wait(self, share: _Share, seats: int) -> bool:
        if self.waiting >= self.house.waiting:
            return False
        room = max(self.running / 2, self.house.patience * self._rate.a_second)
        if _seats(share.waiting) + seats <= room - self.queued:
            return True
        others = [each.promised for each in self._others(share) if each is not share]
        return share.promised + share.expected(share.waiting) < min(others, default=0)

    def _others(self, share: _Share) -> list[_Share]:
        """Return those that wait; where nobody does, who had the last turn."""
        return [*self._waiting.values()] or [self._shares.get(self._last, share)]

    def _join(self, name: str, share: _Share) -> None:
        """Let a key begin to wait, level with those that do: what it did not use before is nobody's.

        One that still runs something has not been away, and keeps what it lacks, up to all that runs.
        """
        level = min(each.worked for each in self._others(share))
        if share.running:
            level -= self._reserved
        share.ended += max(0, level - share.worked)
        self._waiting[name] = share

    def visit(self, key: Key) -> None:
        """Count a request that costs no tokens. Raises ApiError."""
        now = self._clock()
        account = self._account(key, now)
        self._refuse_draining()
        if (wait := account.requests.wait(1, now)) > 0:
            raise ApiError(
                429, "the key has used its requests of this minute: wait", "rate_limit", retry_after=wait
            )
        account.requests.take(1, now)

    def _refuse_draining(self) -> None:
        if self.draining:
            raise ApiError(503, "the server is going down: try another, or later", "draining", retry_after=5)

    def _account(self, key: Key, now: float) -> "_Account":
        account = self._accounts.get(key.id)
        if account is None or account.limits != key.limits:
            account = self._accounts[key.id] = _Account(key, now)
        return account

    def _check(self, account: _Account, tokens: int, now: float) -> None:
        limits = account.limits
        if tokens > limits.tokens:
            raise ApiError(
                400,
                f"the request may take {tokens:,} tokens, the key {limits.tokens:,} a minute: ask for less",
                "too_many_tokens",
            )
        if account.open >= limits.concurrency:
            raise ApiError(
                429,
                f"{account.open} requests of this key are open: wait for one to end",
                "concurrency",
                retry_after=1,
            )
        waits = {
            "requests": account.requests.wait(1, now),
            "tokens": account.tokens.wait(tokens, now),
            "trained tokens": account.trained.wait(1, now),
        }
        what = max(waits, key=lambda name: waits[name])
        if waits[what] > 0:
            raise ApiError(
                429,
                f"the key has used its {what} of this minute: wait",
                "rate_limit",
                retry_after=waits[what],
            )

    def next(self) -> Ticket | None:
        """Return whose turn it is, None where nothing waits or there are too few seats."""
        if not self._waiting:
            return None
        name, share = min(self._waiting.items(), key=lambda item: item[1].promised)
        first = share.waiting[0]
        if self.running + first.seats > self.house.running:
            return None  # nobody overtakes it, or many small requests would keep a large one out for ever
        self._leave(first)
        if share.waiting:
            self._waiting[name] = self._waiting.pop(name)
        if not self.running:
            self._rate.begin(self._clock())
        self.running += first.seats
        self._reserved += first.tokens
        share.running.add(first)
        self._last = name
        first.stage = "running"
        return first

    def _leave(self, ticket: Ticket) -> None:
        """Take a request out of the queue."""
        share = self._shares[ticket.key.id]
        share.waiting.remove(ticket)
        if not share.waiting:
            del self._waiting[ticket.key.id]
        self.waiting -= 1
        self.queued -= ticket.seats

    def done(self, ticket: Ticket, tokens: int = 0, trained: int = 0) -> None:
        """End a request, wherever it is; it has cost so many tokens, and the rest is given back."""
        if ticket.stage == "done":
            return
        now, account, share = self._clock(), self._accounts[ticket.key.id], self._shares[ticket.key.id]
        if ticket.stage == "waiting":
            self._leave(ticket)
        else:
            self.running -= ticket.seats
            self._reserved -= ticket.tokens
            share.end(ticket, tokens + trained)
            self._rate.add(ticket.seats, now)
        ticket.stage = "done"
        account.open -= 1
        account.tokens.take(tokens - ticket.tokens, now)
        account.trained.take(trained, now)

    def _delay(self) -> float:
        return self.queued / self._rate.a_second if self._rate.a_second else 1.0


def _seats(tickets: Iterable[Ticket]) -> int:
    """Return the seats that requests take together."""
    return sum(ticket.seats for ticket in tickets)


class _Rate:
    """Rows that end in a second of an engine at work, in the last minute of it for the most part."""

    def __init__(self) -> None:
        self._rows = self._seconds = self._since = 0.0

    def begin(self, now: float) -> None:
        self._since = now

    def add(self, rows: int, now: float) -> None:
        passed = now - self._since
        keep = 0.5 ** (passed / MINUTE)
        self._rows = self._rows * keep + rows
        self._seconds = self._seconds * keep + passed
        self._since = now

    @property
    def a_second(self) -> float:
        return self._rows / self._seconds if self._seconds > 0 else 0.0
