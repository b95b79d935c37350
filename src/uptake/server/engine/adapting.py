"""Adapting to requests: found, read and kept, once for all who ask for the same.

What is read decides the key of what becomes of it: tenant, base, method, settings, seed, query, passages and
budget. One flight makes a key, and whoever asks meanwhile waits for it. Flights that only differ in what they
read are adapted together.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from uptake.codec import plain
from uptake.evaluation.failures import finite
from uptake.lm.causal import Causal
from uptake.lm.grid import Grid
from uptake.methods.contract.method import Context, Evidence, State
from uptake.methods.contract.spending import Ledger
from uptake.server.engine.answering import Answering
from uptake.server.engine.pieces import Pieces
from uptake.server.engine.plans import Plan, digest
from uptake.server.engine.states import Adapted, Made, States, Told, Waiter
from uptake.server.engine.telling import forgotten
from uptake.server.records import Thing
from uptake.settings import describe
from uptake.store.datastore import Datastore
from uptake.text.overlap import LeakFilter
from uptake.text.types import Found, Passage, stable_hash

GRID = "grid 1"  # part of every key: states do not depend on it, answers might
TOGETHER = 8  # flights of one batch


@dataclass(eq=False)
class _Flight:
    key: str
    plan: Plan
    tenant: str
    evidence: Evidence
    search_ms: float
    waiters: list[Waiter]
    forgotten: bool = False

    @property
    def wanted(self) -> bool:
        return not all(waiter.cancelled for waiter in self.waiters)


class Adapter:
    """Makes states for whoever asks. `ask` and `tick` belong to the thread that computes."""

    def __init__(
        self,
        lm: Causal,
        grid: Grid | None,
        store_of: Callable[[str, str], Datastore],
        later: Callable[[Callable[[], None]], None],
        most_bytes: int,
        keeper: Executor,
        is_kept: Callable[[Made], bool] = lambda made: False,
    ) -> None:
        """`store_of(tenant, id)` opens a store; `later` runs something in the thread that computes.

        `keeper` searches, and does nothing else with stores meanwhile. `is_kept` says whether a state is on
        the disk already.
        """
        self._lm, self._grid, self._store_of, self._later = lm, grid, store_of, later
        self.states = States(most_bytes)
        self._answering = Answering(lm, grid)
        self._keeper, self._is_kept = keeper, is_kept
        self._flights: dict[str, _Flight] = {}
        self._queue: list[_Flight] = []
        self._batch: list[_Flight] = []
        self._work: Pieces[list[Made | Exception]] | None = None
        self._searching = 0

    @property
    def busy(self) -> bool:
        """Whether there is a state to work on."""
        return bool(self._queue) or self._work is not None

    @property
    def open(self) -> int:
        """How many states are wanted and not there yet."""
        return len(self._flights) + self._searching

    def ask(
        self, plan: Plan, tenant: str, query: str, quota: int, told: Told, ids: Sequence[int] = ()
    ) -> Waiter:
        """Have a state made for a plan and a query; `told` hears of it, in the thread that computes.

        `ids` are what will be read with the state first: it is tried on them.
        """
        waiter = Waiter(told, plan, tenant, quota, ids, keep=plan.keep)
        self._searching += 1

        def search() -> None:
            started = time.monotonic()
            try:
                evidence = self._find(plan, tenant, query)
            except Exception as error:
                failed = error
                self._later(lambda: self._found(waiter, failed, 0.0))
                return
            passed = (time.monotonic() - started) * 1000
            self._later(lambda: self._found(waiter, evidence, passed))

        self._keeper.submit(search)
        return waiter

    def recall(
        self,
        plan: Plan,
        tenant: str,
        kept: Thing,
        quota: int,
        load: Callable[[], Adapted],
        told: Told,
    ) -> Waiter:
        """Have a state that was kept; `load` reads it where it is not in memory."""
        waiter = Waiter(told, plan, tenant, quota)
        if made := self.states.get(kept["key"]):
            told(made, "hit")
            return waiter
        self._searching += 1

        def read() -> None:
            try:
                found: Adapted | Exception = load()
            except Exception as error:
                found = error
            self._later(lambda: came(found))

        def came(found: Adapted | Exception) -> None:
            self._searching -= 1
            if isinstance(found, Exception):
                told(found, "kept")
            elif not waiter.cancelled:
                made = self._restored(tenant, kept, found)
                self.states.put(made, quota)
                told(made, "kept")

        self._keeper.submit(read)
        return waiter

    def _find(self, plan: Plan, tenant: str, query: str) -> Evidence:
        found, source = Found(), None
        if plan.searches:
            assert plan.store is not None
            source = self._store_of(tenant, plan.store).source(query, leak=LeakFilter.off())
            generator = np.random.default_rng(stable_hash(str(plan.seed), "choose", query))
            found = plan.spec.choose(self._lm, source, plan.k, generator)
        return Evidence(found.behind(plan.texts) if plan.texts else found, query, source)

    def _found(self, waiter: Waiter, evidence: Evidence | Exception, search_ms: float) -> None:
        self._searching -= 1
        if isinstance(evidence, Exception):
            waiter.told(evidence, "made")
            return
        key = self._key(waiter.plan, waiter.tenant, evidence)
        made = self.states.get(key)
        if made is not None and (not waiter.keep or self._is_kept(made)):
            waiter.told(made, "hit")
        elif (flight := self._flights.get(key)) and flight.wanted and not flight.forgotten:
            # One that nobody waits for any more ends early: it is made anew.
            flight.waiters.append(waiter)
        else:
            flight = _Flight(key, waiter.plan, waiter.tenant, evidence, search_ms, [waiter])
            self._flights[key] = flight
            self._queue.append(flight)

    def _key(self, plan: Plan, tenant: str, evidence: Evidence) -> str:
        passages = [[one.id, one.text, one.prompt] for one in evidence.passages]
        # A method that does more than train may search on by itself, and then all of the store decides.
        more = plan.store if not plan.spec.method.trains_weights_only else None
        version = [more, self._store_of(tenant, more).contents] if more else None
        return digest(
            [tenant, self._lm.fingerprint, str(self._lm.dtype), self._lm.device.type, GRID],
            [plan.method, plain(describe(plan.spec.method)), plan.seed, evidence.query],
            [passages, list(evidence.found.scores), version],
            [plan.budget.tokens, plan.budget.steps],
        )

    def tick(self) -> None:
        """Work on one piece of what is adapted to now, or begin the next batch."""
        if self._work is None:
            self._queue = [flight for flight in self._queue if flight.wanted or self._landed(flight)]
            if not self._queue:
                return
            first = self._queue[0]
            same = [flight for flight in self._queue if flight.plan.alike == first.plan.alike]
            self._batch = same[: 1 if first.plan.spec.method.separate else TOGETHER]
            self._queue = [flight for flight in self._queue if flight not in self._batch]
            batch = self._batch
            self._work = Pieces(lambda pieces: self._adapt(batch, pieces))
        if self._work.go():
            work, batch = self._work, self._batch
            self._work, self._batch = None, []
            for flight, made in zip(batch, work.result(), strict=True):
                self._landed(flight)
                self._tell(flight, made)

    def forget(
        self, tenant: str, store: str, mine: Callable[[str], bool]
    ) -> tuple[int, Callable[[Made], bool]]:
        """Drop whatever was made, or is being made, of documents.

        Return how many states went, and what says of any other whether it should have. What is being made
        fails, so that whoever waits asks again. `store` is where the documents were found, "" for texts that
        came with a request.
        """

        def read(passages: Sequence[Passage], where: str | None) -> bool:
            return (not store or where == store) and any(mine(passage.document) for passage in passages)

        def held(made: Made) -> bool:
            searches = made.answers.searches and store and made.store == store
            return made.tenant == tenant and (bool(searches) or read(made.passages, made.store))

        for flight in [*self._flights.values()]:
            if flight.tenant == tenant and read(flight.evidence.passages, flight.plan.store):
                flight.forgotten = True
                for waiter in flight.waiters:
                    if not waiter.cancelled:
                        waiter.told(forgotten(), "made")
                    waiter.cancelled = True
        return self.states.forget(held), held

    def _landed(self, flight: _Flight) -> bool:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
        return False

    def _tell(self, flight: _Flight, made: Made | Exception) -> None:
        # A budget of tokens and steps ends every reading of the same at the same place.
        if isinstance(made, Made) and made.stopped in (None, "budget") and not flight.forgotten:
            self.states.put(made, flight.waiters[0].quota)
        for place, waiter in enumerate(flight.waiters):
            if not waiter.cancelled:
                waiter.told(made, "joined" if place else "made")

    def _adapt(
        self, batch: Sequence[_Flight], pieces: Pieces[list[Made | Exception]]
    ) -> list[Made | Exception]:
        """Adapt to some flights together, each by itself where that fails."""
        plan = batch[0].plan
        started = time.monotonic()

        def cancelled() -> bool:
            pieces.pause()
            return not any(flight.wanted for flight in batch)

        context = Context(plan.seed, plan.budget, [Ledger() for _ in batch], cancelled, continues=False)
        try:
            fresh = [plan.spec.method.init(self._lm) for _ in batch]
            evidence = [flight.evidence for flight in batch]
            states = plan.spec.method.adapt(fresh, self._lm, evidence, context)
            passed = (time.monotonic() - started) * 1000
            pairs = zip(batch, fresh, states, context.ledgers, strict=True)
            return [self._made(*each, passed) for each in pairs]
        except Exception as error:
            if len(batch) == 1:
                return [error]
            return [made for flight in batch for made in self._adapt([flight], pieces)]

    def _made(self, flight: _Flight, fresh: State, state: State, ledger: Ledger, adapt_ms: float) -> Made:
        method = flight.plan.spec.method
        answering, ids = self._answering, flight.waiters[0].ids
        answers, begun, sound = answering.of(method, state), None, True
        if state is not fresh:
            begun, sound = answering.tried(answers, flight.evidence.query, ids)
            sound = sound and finite(state)
        if not sound:
            ledger.stop("diverged", "the adapted model gives no numbers: use a smaller learning rate")
            state, begun = fresh, None
            answers = answering.of(method, fresh)
        stopped, found = ledger.stopped, flight.evidence.found
        keep = any(waiter.keep for waiter in flight.waiters)
        return Made(
            flight.key,
            flight.tenant,
            answers,
            found.passages,
            found.scores,
            ledger.steps,
            ledger.tokens_trained,
            None if stopped is None else stopped.kind,
            stopped is not None and stopped.kind == "diverged",
            self._answering.bytes(answers) + sum(len(passage.text) for passage in found.passages),
            flight.plan.store,
            flight.search_ms,
            adapt_ms,
            Adapted(method, state) if keep else None,
            begun,
        )

    def _restored(self, tenant: str, kept: Thing, found: Adapted) -> Made:
        answers = self._answering.of(found.method, found.state)
        history = found.state.history
        passages = tuple(passage for reading in history for passage in reading.passages)
        scores = tuple(score for reading in history for score in reading.scores)
        return Made(
            kept["key"],
            tenant,
            answers,
            passages,
            scores,
            kept["steps"],
            kept["trained"],
            kept["stopped"],
            diverged=False,
            bytes=self._answering.bytes(answers) + sum(len(passage.text) for passage in passages),
            store=kept["store"],
            search_ms=0.0,
            adapt_ms=0.0,
        )
