"""States that requests share: one flight a key, what is kept and for how long; a toy model and no server."""

import gc
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import replace
from types import FunctionType, ModuleType
from typing import Any

import pytest
import torch

import toys
from server_world import LORA, TEXTS
from uptake.adaptation.delta import LowRank
from uptake.lm.grid import Grid
from uptake.methods.contract.naming import method_specs
from uptake.methods.contract.spending import Budget
from uptake.server.engine.adapting import Adapter
from uptake.server.engine.plans import Plan
from uptake.server.engine.reading import passages
from uptake.server.engine.states import Made, States, Waiter


class AtOnce(Executor):
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        fn(*args, **kwargs)
        return Future()


class Asking:
    """An adapter whose searches are done at once, and what it told."""

    def __init__(self) -> None:
        self.lm = toys.lm(window=128)
        none: Any = None
        self.adapter = Adapter(self.lm, Grid(self.lm), none, lambda do: do(), 1 << 30, AtOnce())
        self.told: list[tuple[Made | Exception, str]] = []

    def ask(self, plan: Plan, tenant: str = "a") -> Waiter:
        return self.adapter.ask(
            plan, tenant, "", 1 << 30, lambda made, cache: self.told.append((made, cache))
        )

    def finish(self) -> None:
        while self.adapter.busy:
            self.adapter.tick()


def plan(*texts: str, steps: int | None = None, settings: tuple[str, ...] = LORA) -> Plan:
    spec = method_specs(["online"], settings)["online"]
    named = passages([(f"tx_{place}", text) for place, text in enumerate(texts)], "texts")
    return Plan("online", spec, 0, None, 0, Budget(None, steps), named)


@pytest.fixture(name="asking")
def asking_fixture() -> Asking:
    return Asking()


def test_one_flight_serves_all_who_ask_for_the_same(asking: Asking) -> None:
    for tenant in ("a", "a", "b"):
        asking.ask(plan(TEXTS[0]), tenant)
    asking.finish()
    asking.ask(plan(TEXTS[0]))
    caches = [cache for _, cache in asking.told]
    made = [each for each, _ in asking.told if isinstance(each, Made)]
    assert caches == ["made", "joined", "made", "hit"] and len(made) == 4
    assert made[0] is made[1] and made[3].answers is made[0].answers and made[2].key != made[0].key


def test_whoever_asks_after_all_others_left_gets_a_whole_state(asking: Asking) -> None:
    left = asking.ask(plan(*TEXTS))
    asking.adapter.tick()  # it has begun
    left.cancelled = True
    asking.ask(plan(*TEXTS))
    asking.finish()
    ((made, cache),) = asking.told
    assert isinstance(made, Made) and cache == "made" and made.stopped is None and made.steps == 3


def test_what_is_deleted_while_it_is_read_fails_and_is_not_kept(asking: Asking) -> None:
    asking.ask(plan(*TEXTS))
    asking.adapter.tick()
    states, held = asking.adapter.forget("a", "", lambda document: document == "tx_1")
    ((error, _),) = asking.told
    assert getattr(error, "code", "") == "forgotten" and states == 0
    asking.finish()
    assert len(asking.adapter.states) == 0 and len(asking.told) == 1
    asking.ask(plan(*TEXTS))
    asking.finish()
    made = asking.told[-1][0]
    assert isinstance(made, Made) and held(made)
    assert asking.adapter.forget("b", "", lambda document: True)[0] == 0
    assert asking.adapter.forget("a", "", lambda document: document == "tx_1")[0] == 1


def test_a_budget_gives_a_state_that_is_kept_and_a_divergence_none(asking: Asking) -> None:
    for _ in range(2):
        asking.ask(plan(*TEXTS, steps=1))
        asking.finish()
    assert [cache for _, cache in asking.told] == ["made", "hit"]
    broken = plan(TEXTS[0] * 4, TEXTS[1] * 4, settings=(LORA[0], "optimizer=sgd(learning_rate=1e30)"))
    for _ in range(2):
        asking.ask(broken)
        asking.finish()
    assert [cache for _, cache in asking.told[2:]] == ["made", "made"]
    assert all(isinstance(made, Made) and made.diverged for made, _ in asking.told[2:])


def test_together_or_alone_a_state_is_the_same(asking: Asking) -> None:
    other = Asking()
    for text in TEXTS:
        asking.ask(plan(text))  # three flights, one batch
        other.ask(plan(text))
        other.finish()
    asking.finish()
    for (one, _), (two, _) in zip(asking.told, other.told, strict=True):
        assert isinstance(one, Made) and isinstance(two, Made) and one.answers.own and two.answers.own
        for name, part in one.answers.own.parts.items():
            other_part = two.answers.own.parts[name]
            assert isinstance(part, LowRank) and isinstance(other_part, LowRank)
            assert part.up.equal(other_part.up)


def storages(value: Any) -> dict[int, int]:
    """Return the bytes of every tensor that a value keeps alive, by where it lies."""
    seen, found, stack = set[int](), dict[int, int](), [value]
    while stack:
        one = stack.pop()
        if id(one) in seen or isinstance(one, type | ModuleType | FunctionType):
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            found[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
        stack += gc.get_referents(one)
    return found


@pytest.mark.parametrize(
    "settings",
    [LORA, ("learning_rate=1e-3",), ("trainable=top(layers=1)", "learning_rate=1e-3")],
    ids=["lora", "all", "top"],
)
def test_a_state_is_counted_at_all_that_it_keeps(asking: Asking, settings: tuple[str, ...]) -> None:
    for text in TEXTS:
        asking.ask(plan(text, settings=settings))
    asking.finish()
    base = storages(asking.lm)
    for made, _ in asking.told:
        assert isinstance(made, Made)
        kept = {place: size for place, size in storages(made.answers).items() if place not in base}
        assert made.bytes == sum(kept.values()) + sum(len(each.text) for each in made.passages)


def test_the_least_recently_used_go_first_and_a_tenant_fills_its_own_room_alone(asking: Asking) -> None:
    asking.ask(plan(TEXTS[0]))
    asking.finish()
    made = asking.told[0][0]
    assert isinstance(made, Made)
    states = States(100)

    def put(name: str, tenant: str, size: int) -> None:
        states.put(replace(made, key=name, tenant=tenant, bytes=size), 60)

    put("a1", "a", 30), put("b1", "b", 30), put("a2", "a", 30)
    assert states.get("a1") is not None
    put("a3", "a", 30)  # the room of a is full: a2 was used the longest time ago
    assert states.get("a2") is None and states.get("a1") and states.get("b1") and states.bytes("a") == 60
    put("c1", "c", 61)  # larger than a room
    assert states.get("c1") is None
    put("c2", "c", 40)  # the house is full
    assert states.bytes() <= 100 and states.get("c2") is not None
