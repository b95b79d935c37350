"""Requests as the engine works on them: from a frame to rows that write, and what is told of them."""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.lm.examples import Example
from uptake.lm.generation import Decoding
from uptake.lm.grid_rows import Beginning, Own
from uptake.server.engine.adapting import Adapter
from uptake.server.engine.keeper import Keeper
from uptake.server.engine.plans import Plan, Plans
from uptake.server.engine.prompts import Prompts
from uptake.server.engine.reading import Named, passages
from uptake.server.engine.rows import Answers, Row, Writer, plain
from uptake.server.engine.scoring import TOP, Scorer, placed
from uptake.server.engine.states import Made, Told, Waiter
from uptake.server.engine.telling import forgotten, refusal, shown
from uptake.server.errors import bad, not_found, of
from uptake.text.token_bytes import TokenBytes
from uptake.text.types import stable_hash


@dataclass(eq=False)
class Job:
    """One request under way."""

    id: int
    frame: dict[str, Any]
    prompts: list[list[int]] = field(default_factory=list)
    plan: Plan | None = None
    waiters: list[Waiter] = field(default_factory=list)
    made: dict[int, tuple[Made, str]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)
    read: dict[int, Beginning | None] = field(default_factory=dict)  # of prompts, before their rows began
    begun: list[dict[str, Any]] = field(default_factory=list)  # what is told with the first tokens

    @property
    def trained(self) -> int:
        """The tokens that were trained on for this request and no other."""
        return sum(made.trained for made, cache in self.made.values() if cache == "made")


class Jobs:
    """All requests under way, by their number."""

    def __init__(
        self,
        lm: Causal,
        plans: Plans,
        adapter: Adapter,
        writer: Writer,
        send: Callable[..., None],
        keeper: Keeper | None,
        later: Callable[[Callable[[], None]], None],
    ) -> None:
        """`send(*frames)` sends them in one go; `later` runs something in the thread that computes."""
        self._keeper, self._later = keeper, later
        self._lm, self._plans, self._adapter, self._writer, self._send = lm, plans, adapter, writer, send
        self._names, self._read = TokenBytes(lm.tokenizer), Prompts(lm)
        self.open: dict[int, Job] = {}
        self.scorer = Scorer(self._names)

    def begin(self, frame: dict[str, Any]) -> None:
        """Take a request up. Raises whatever is wrong with it."""
        job = Job(frame["id"], frame)
        job.plan = self._plan(frame)
        if job.plan is not None and job.plan.keep and self._keeper is None:
            raise bad("a server without --data keeps nothing: leave keep out", "uptake.keep")
        job.prompts = self._read.of(frame)
        job.told["tokens"] = self._read.room(frame, job.prompts)
        if frame.get("echo") and job.plan is not None and job.plan.searches and job.plan.query is None:
            told = "an echo would be scored by a model that searched with what is scored: give a query"
            raise bad(told, "uptake.query", "query_missing")
        self.open[job.id] = job
        if job.plan is None:
            self._write(job, [Answers(own=None, lm=self._lm)] * len(job.prompts))
            return
        for place, ids in enumerate(job.prompts):
            query = job.plan.query
            self._ask(job, place, self._read.query(frame, ids) if query is None else query)

    def _plan(self, frame: dict[str, Any]) -> Plan | None:
        """Return how a request is answered, None for the base as it is. Raises ApiError, BadInput."""
        base, at, name = frame["model"].partition("@")
        if not at or base != self._lm.name:
            return self._plans.of(frame["model"], self._asked(frame))
        if self._keeper is None:
            raise not_found(f"state {name[:60]!r}", "model")
        kept = self._keeper.states.known(frame["tenant"], name)
        return self._plans.of_kept(name, kept, frame.get("uptake"))

    def _asked(self, frame: dict[str, Any]) -> dict[str, Any] | None:
        """Return how a request adapts, with what a session has kept and a person's memories put in place."""
        if frame.get("uptake") is None:
            return None
        asked = {name: value for name, value in frame["uptake"].items() if value is not None}
        texts: list[Named] = [("", one) for one in asked.get("texts", [])]
        read: list[Named] = []
        session, person = asked.pop("session", None), asked.pop("memory", None)
        if (session or person) and self._keeper is None:
            raise not_found("a session or a memory on a server that keeps nothing", "uptake")
        if session and self._keeper:
            kept, read = self._keeper.session(frame["tenant"], session)
            asked = {**kept, **asked}
        if person and self._keeper:
            if asked.get("store"):
                raise bad("a store and a memory are two places to search: name one", "uptake.memory")
            asked["store"] = self._keeper.person(frame["tenant"], person)
            if asked["store"] is None:
                raise not_found("a memory of this user", "uptake.memory")
        return {**asked, "texts": passages(texts, "uptake.texts", read)}

    def score(self, frame: dict[str, Any]) -> None:
        """Take up the scoring of a text after its context, under each of some models."""
        text, context = frame["text"], frame["context"]
        ids, spans = self._lm.tokenizer.encode(text)
        if not ids:
            raise bad("text is empty: give one to score", "text")
        plans = [self._plan({**one, "tenant": frame["tenant"]}) for one in frame["compare"]]
        if any(plan is not None and plan.keep for plan in plans):
            raise bad("what scores is not kept: ask for a completion with keep first", "uptake.keep")
        if not context and any(plan is not None and plan.searches and plan.query is None for plan in plans):
            told = "a text would be scored by a model that searched with it: give a context, or a query"
            raise bad(told, "context", "query_missing")
        job = Job(frame["id"], frame)
        self.open[job.id] = job
        example = Example(tuple(self._lm.tokenizer.opened(context)), tuple(ids))
        found: dict[int, dict[str, Any]] = {}

        def scored(
            place: int, answers: Answers, uptake: dict[str, Any] | None, trained: int
        ) -> Iterator[None]:
            rows = yield from self.scorer.windows(partial(self._lm_of, self._seated(answers)), example, TOP)
            tokens = placed(rows, spans, text)
            bits = -sum(token["logprob"] for token in tokens) / math.log(2)
            size = len(text.encode("utf8", "replace"))
            found[place] = {
                "model": frame["compare"][place]["model"],
                "bits": bits,
                "bits_per_byte": bits / size,
                "tokens": tokens,
                "uptake": uptake,
                "trained": trained,
            }
            if len(found) == len(plans):
                del self.open[job.id]
                answer = {"bytes": size, "results": [found[each] for each in range(len(plans))]}
                self._send({"id": job.id, "event": "answer", "answer": answer})

        for place, plan in enumerate(plans):
            if plan is None:
                self._score(job, scored(place, Answers(lm=self._lm), None, 0))
                continue
            asked = context if plan.query is None else plan.query

            def came(made: Made, cache: str, place: int = place, plan: Plan = plan) -> None:
                own = made.trained if cache == "made" else 0
                self._score(job, scored(place, made.answers, shown(made, cache, plan, context + text), own))

            taking = self._taking(job, place, plan, came)
            self._wait(job, plan, asked, taking)

    def _score(self, job: Job, work: Iterator[None]) -> None:
        """Have something scored for a request, unless it has ended by then."""
        self.scorer.add(work, lambda: self.open.get(job.id) is job, lambda error: self.fail(job.id, error))

    def forget(self, gone: Callable[[Made], bool]) -> int:
        """End every request that is answered from something; return how many."""
        ended = [job for job in self.open.values() if any(gone(made) for made, _ in job.made.values())]
        for job in ended:
            self.fail(job.id, forgotten())
        return len(ended)

    def cancel(self, number: int) -> None:
        """End a request whose client is gone; one that is not there has ended."""
        job = self.open.pop(number, None)
        if job is None:
            return
        for waiter in job.waiters:
            waiter.cancelled = True
        for row in job.rows:
            self._writer.drop(row)

    def tick(self) -> None:
        """Let rows write, and tell what they wrote."""
        told = set(self._writer.tick())
        for job in [*self.open.values()]:
            if any(row in told for row in job.rows):
                self._report(job)

    def fail(self, number: int, error: Exception) -> None:
        """End a request with an error."""
        self.cancel(number)
        self._send({"id": number, "event": "error", "error": of(error).plain()})

    def _ask(self, job: Job, place: int, query: str) -> None:
        plan = job.plan
        assert plan is not None

        def came(made: Made, cache: str) -> None:
            job.read[place] = made.begun
            if len(job.made) == len(job.prompts):
                self._write(job, [job.made[each][0].answers for each in range(len(job.prompts))])

        ids = self._read.opened(job.frame, job.prompts[place])
        self._wait(job, plan, query, self._taking(job, place, plan, came), ids)

    def _wait(self, job: Job, plan: Plan, query: str, taking: Told, ids: Sequence[int] = ()) -> None:
        """Let a job wait for a state: one that was kept, or one that is made, and reads `ids` first."""
        tenant, quota, keeper = job.frame["tenant"], job.frame["state_bytes"], self._keeper
        if plan.kept is None or keeper is None:
            job.waiters.append(self._adapter.ask(plan, tenant, query, quota, taking, ids))
            return
        name = plan.kept
        kept = keeper.states.known(tenant, name)
        load = partial(keeper.states.load, tenant, name)
        job.waiters.append(self._adapter.recall(plan, tenant, kept, quota, load, taking))

    def _taking(self, job: Job, place: int, plan: Plan, then: Callable[[Made, str], None]) -> Told:
        """Return what takes an adapted state for a place of a job, then goes on; a fault ends the job."""

        def take(made: Made | Exception, cache: str) -> None:
            if job.id not in self.open:
                return
            try:
                if isinstance(made, Exception):
                    raise made
                if refused := refusal(made, plan):
                    raise refused
                job.made[place] = made.bare, cache
                if plan.keep:
                    self._keep(job, made, plan, lambda: then(made, cache))
                else:
                    then(made, cache)
            except Exception as error:
                self.fail(job.id, error)

        return take

    def _keep(self, job: Job, made: Made, plan: Plan, then: Callable[[], None]) -> None:
        """Go on once a state is on the disk; where it cannot be, the job ends."""
        assert self._keeper is not None
        keeper = self._keeper

        def save() -> None:
            # A text of it may have been deleted meanwhile: then the job has ended as well.
            if self.open.get(job.id) is not job:
                return
            try:
                keeper.states.save(made, plan, job.frame["store_bytes"])
            except Exception as error:
                failed = error
                self._later(lambda: self.fail(job.id, failed))
            else:
                self._later(lambda: go_on())

        def go_on() -> None:
            if self.open.get(job.id) is job:
                then()

        keeper.submit(save)

    def _write(self, job: Job, answers: Sequence[Answers]) -> None:
        """Let a request's rows wait for their seats, and tell what is known before they write."""
        frame = job.frame
        begun: dict[str, Any] = {
            "id": job.id,
            "event": "begun",
            "prompt_tokens": sum(map(len, job.prompts)),
            "trained": job.trained,
        }
        if job.plan is not None:
            found = [
                shown(*job.made[place], job.plan, self._lm.tokenizer.decode(list(ids)))
                for place, ids in enumerate(job.prompts)
            ]
            begun["uptake"] = found[0] if len(found) == 1 else {"prompts": found}
        if frame.get("echo"):
            self._score(job, self._echoed(job, answers, begun))
        else:
            self._begin_rows(job, answers, begun)

    def _echoed(self, job: Job, answers: Sequence[Answers], begun: dict[str, Any]) -> Iterator[None]:
        """Score prompts that are to be told again, then let their rows begin."""
        echoes = []
        for ids, own in zip(job.prompts, answers, strict=True):
            echoes.append((yield from self._echo(job, ids, own)))
        self._begin_rows(job, answers, {**begun, "echo": echoes})

    def _begin_rows(self, job: Job, answers: Sequence[Answers], begun: dict[str, Any]) -> None:
        frame = job.frame
        job.begun = [begun]
        for place, (ids, own) in enumerate(zip(job.prompts, answers, strict=True)):
            for choice in range(frame["n"]):
                number = place * frame["n"] + choice
                decoding = Decoding(
                    tokens=job.told["tokens"],
                    temperature=frame["temperature"],
                    top_p=frame["top_p"],
                    seed=stable_hash(str(frame["seed"]), str(number)),
                    stop=tuple(frame["stop"]),
                    alternatives=frame["logprobs"] or 0,
                    beyond_window=False,
                )
                row = Row(number, self._seated(own), self._behind(job, own, ids), decoding)
                row.begun = job.read.get(place)
                job.rows.append(row)
                self._writer.add(row)
        job.read.clear()

    def _seated(self, answers: Answers) -> Answers:
        """Return who answers: the base itself sits in the grid, where there is one."""
        if answers.lm is self._lm and self._writer.grid is not None:
            return Answers(own=Own())
        return answers

    def _behind(self, job: Job, answers: Answers, ids: Sequence[int]) -> list[int]:
        """Return what a row reads. What stands before a text takes the place of an opening token."""
        opened, opening = self._read.opened(job.frame, ids), self._lm.tokenizer.opening
        chat = job.frame.get("messages") is not None
        return [opening, *opened] if chat and (answers.own is None or answers.own.behind) else opened

    def _lm_of(self, answers: Answers) -> LM:
        if answers.lm is not None:
            return answers.lm
        assert answers.own is not None and self._writer.grid is not None
        return self._writer.grid.alone(answers.own)

    def _echo(self, job: Job, ids: Sequence[int], answers: Answers) -> Generator[None, None, dict[str, Any]]:
        """Return a prompt's text, and its tokens with their log-probabilities, none for the first."""
        found: dict[str, Any] = {"text": self._text(ids), "tokens": None}
        if job.frame["logprobs"] is None:
            return found
        opened = self._read.opened(job.frame, ids)
        tokens: list[list[Any]] = [[list(self._names.of(token)), None, None] for token in ids[:1]]
        if len(opened) > 1:
            example = Example(tuple(opened[:1]), tuple(opened[1:]))
            who = partial(self._lm_of, answers)
            rows = yield from self.scorer.windows(who, example, job.frame["logprobs"])
            tokens += rows[len(rows) - len(ids) + 1 :] if len(ids) > 1 else []
        return {**found, "tokens": tokens}

    def _text(self, ids: Sequence[int]) -> str:
        return b"".join(map(self._names.of, ids)).decode("utf8", "replace")

    def _report(self, job: Job) -> None:
        rows = []
        for row in job.rows:
            if row.error:
                self.fail(job.id, row.error)
                return
            if not row.told:
                continue
            text = "".join(token.text for token in row.told)
            finish = row.told[-1].finish
            tokens = None
            if job.frame["logprobs"] is not None:
                tokens = [plain(token, self._names) for token in row.told if token.id is not None]
            rows.append([row.choice, text, finish, sum(token.id is not None for token in row.told), tokens])
            row.told.clear()
        told, job.begun = job.begun, []
        if rows:
            told.append({"id": job.id, "event": "tokens", "rows": rows})
        if all(row.done for row in job.rows):
            told.append({"id": job.id, "event": "end", "trained": job.trained})
            del self.open[job.id]
        self._send(*told)
