"""Who may ask, and in which order: limits of each key, a bounded queue, and fair turns between keys.

A request is refused before it waits, or it waits for its turn. Turns follow deficit round robin over the
tokens that requests cost (Shreedhar & Varghese 1995), so that a key with many or long requests takes no more
than its share while others wait. This file knows no HTTP and no model; its clock is whatever it is given.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from uptake.server.errors import ApiError
from uptake.server.keys import Key

Clock = Callable[[], float]
MINUTE = 60.0


@dataclass(frozen=True)
class House:
    """What the whole server takes at once.

    `running` requests are with the engine, `waiting` wait for their turn. What waits may hold as many tokens
    as the engine, at the rate measured, does in `patience` seconds, and at least `queued_tokens`.
    """

    running: int = 32
    waiting: int = 256
    queued_tokens: int = 65_536
    patience: float = 20.0
    quantum: int = 256  # tokens a key gains with each turn


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
    """One request that was admitted: the tokens reserved for it, and where it is."""

    key: Key
    tokens: int
    begun: float
    stage: str = "waiting"  # then "running", then "done"


class _Turn:
    """One key's part in the round: what waits, and what it may spend."""

    def __init__(self) -> None:
        self.waiting: deque[Ticket] = deque()
        self.deficit = 0


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
        self._turns: dict[str, _Turn] = {}  # of keys with something waiting, in order of their turns
        self.waiting = self.running = self.queued_tokens = 0
        self._rate = _Rate()
        self.draining = False

    def admit(self, key: Key, tokens: int) -> Ticket:
        """Let a request that may cost so many tokens wait for its turn. Raises ApiError before it waits."""
        now = self._clock()
        self._refuse_draining()
        account = self._account(key, now)
        self._check(account, tokens, now)
        if self.waiting >= self.house.waiting or self.queued_tokens + tokens > self._most_queued(tokens):
            raise ApiError(
                503, "too many requests wait: try again later", "full", retry_after=max(1.0, self._delay())
            )
        account.requests.take(1, now)
        account.tokens.take(tokens, now)
        account.open += 1
        ticket = Ticket(key, tokens, now)
        self._turns.setdefault(key.id, _Turn()).waiting.append(ticket)
        self.waiting += 1
        self.queued_tokens += tokens
        return ticket

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
        """Return whose turn it is, None where nothing waits or the engine has enough."""
        if self.running >= self.house.running or not self._turns:
            return None
        while True:
            name, turn = next(iter(self._turns.items()))
            first = turn.waiting[0]
            if first.tokens <= turn.deficit:
                turn.waiting.popleft()
                turn.deficit -= first.tokens
                if not turn.waiting:
                    del self._turns[name]
                self.waiting -= 1
                self.queued_tokens -= first.tokens
                if not self.running:
                    self._rate.begin(self._clock())
                self.running += 1
                first.stage = "running"
                return first
            turn.deficit += self.house.quantum
            self._turns[name] = self._turns.pop(name)

    def done(self, ticket: Ticket, tokens: int = 0, trained: int = 0) -> None:
        """End a request, wherever it is; it has cost so many tokens, and the rest is given back."""
        if ticket.stage == "done":
            return
        now, account = self._clock(), self._accounts[ticket.key.id]
        if ticket.stage == "waiting":
            turn = self._turns[ticket.key.id]
            turn.waiting.remove(ticket)
            if not turn.waiting:
                del self._turns[ticket.key.id]
            self.waiting -= 1
            self.queued_tokens -= ticket.tokens
        else:
            self.running -= 1
            self._rate.add(tokens, now, idle=not self.running)
        ticket.stage = "done"
        account.open -= 1
        account.tokens.take(tokens - ticket.tokens, now)
        account.trained.take(trained, now)

    def _most_queued(self, tokens: int) -> float:
        # One request alone may always wait.
        return max(self.house.queued_tokens, self.house.patience * self._rate.a_second, tokens)

    def _delay(self) -> float:
        return self.queued_tokens / self._rate.a_second if self._rate.a_second else 1.0


class _Rate:
    """Tokens a second of an engine at work, the last minute of it for the most part."""

    def __init__(self) -> None:
        self._tokens = self._seconds = self._since = 0.0

    def begin(self, now: float) -> None:
        self._since = now

    def add(self, tokens: int, now: float, idle: bool) -> None:
        passed = now - self._since
        keep = 0.5 ** (passed / MINUTE)
        self._tokens = self._tokens * keep + tokens
        self._seconds = self._seconds * keep + passed
        self._since = now

    @property
    def a_second(self) -> float:
        return self._tokens / self._seconds if self._seconds > 0 else 0.0
