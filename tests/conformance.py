"""The laws every method obeys, whatever it does inside. Each takes a method and a base model.

`tests/test_conformance.py` runs them over every method found and over the toys. A new method
adds nothing here: it is found by its file name.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from uptake.adaptation.delta import Delta, fingerprint
from uptake.errors import Mismatch
from uptake.lm.base import LM, Scores, Segment
from uptake.methods.contract.method import Context, Evidence, Method
from uptake.methods.contract.state import load_state, save_state

A, B, C = "the cat sat on the mat. ", "a dog ran over the hill.", "one fish, two fish, red."
SEGMENTS = [Segment("the cat sat on the hill", "so "), Segment("a dog ran after the cat", "so ")]
AnyMethod = Method[Any]
Law = Callable[[AnyMethod, LM, LM, Path], None]


def read(method: AnyMethod, lm: LM, *texts: str, state: Any = None, context: Context | None = None) -> Any:
    """Return the state after reading each text in a `take` of its own."""
    state = method.init(lm) if state is None else state
    for text in texts:
        (state,) = method.adapt([state], lm, [Evidence.of(text, query="so ")], context or Context())
    return state


def logs(method: AnyMethod, lm: LM, state: Any, text: str = SEGMENTS[0].text) -> torch.Tensor:
    (scores,) = method.adapted([state], lm).score([Segment(text, "so ")])
    return scores.log_probs


def same(left: list[Scores], right: list[Scores]) -> bool:
    return all(torch.equal(one.log_probs, other.log_probs) for one, other in zip(left, right, strict=True))


def law_the_base_is_untouched(method: AnyMethod, lm: LM, other: LM, folder: Path) -> None:
    module = lm.module  # type: ignore[attr-defined]
    before, training = fingerprint(module), module.training
    logs(method, lm, read(method, lm, A, B))

    class StoppedError(Exception):
        pass

    def interrupt() -> bool:
        raise StoppedError

    with suppress(StoppedError):
        read(method, lm, A, context=Context(cancelled=interrupt))
    with pytest.raises(Exception, match="states for"):
        method.adapt([method.init(lm)], lm, [], Context())
    assert fingerprint(module) == before and module.training == training
    assert not any(p.requires_grad or p.grad is not None for p in module.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def law_old_states_stay_valid(method: AnyMethod, lm: LM, other: LM, folder: Path) -> None:
    first = read(method, lm, A)
    before = logs(method, lm, first)
    read(method, lm, B, state=first)
    assert torch.equal(logs(method, lm, first), before)


def law_order_of_queries_does_not_matter(method: AnyMethod, lm: LM, other: LM, folder: Path) -> None:
    def run(*texts: str) -> dict[str, torch.Tensor]:
        context = Context(seed=3)
        return {text: logs(method, lm, read(method, lm, text, context=context)) for text in texts}

    forward, backward = run(A, B), run(B, A)
    assert all(torch.equal(forward[text], backward[text]) for text in (A, B))


def law_reading_shows_and_reading_nothing_does_not(
    method: AnyMethod, lm: LM, other: LM, folder: Path
) -> None:
    base = lm.score(SEGMENTS[:1])[0].log_probs
    nothing = method.adapt([method.init(lm)], lm, [Evidence.of()], Context())[0]
    before = logs(method, lm, nothing)
    if method.ongoing:
        # The second token is scored by a model that has learnt the first: only there it is the base.
        assert torch.equal(before, logs(method, lm, method.init(lm)))
        assert torch.allclose(before[:1], base[:1], atol=1e-5)
    else:
        assert torch.equal(before, base)
    if method.reads:
        after = logs(method, lm, read(method, lm, A))
        assert not torch.equal(after[:1], before[:1])


def law_no_token_sees_a_later_one(method: AnyMethod, lm: LM, other: LM, folder: Path) -> None:
    model = method.adapted([read(method, lm, A)], lm)
    ids = torch.tensor([[model.tokenizer.opening, *model.tokenizer.encode("the cat sat on it")[0]]])
    changed = ids.clone()
    changed[0, 9:] = model.tokenizer.encode("q")[0][0]
    with torch.no_grad():
        before, after = model.step(ids)[0], model.step(changed)[0]
    assert torch.allclose(before[0, :9], after[0, :9], atol=1e-6)
    assert not torch.allclose(before[0, 9:], after[0, 9:], atol=1e-6)


def law_probabilities_sum_to_one(method: AnyMethod, lm: LM, other: LM, folder: Path) -> None:
    model = method.adapted([read(method, lm, A), method.init(lm)], lm)
    log_probs, _ = model.step(torch.randint(1, 200, (2, 12), generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(log_probs.exp().sum(-1), torch.ones(2, 12), atol=1e-5)


def law_a_state_survives_the_disk(method: AnyMethod, lm: LM, other: LM, folder: Path) -> None:
    state = read(method, lm, A, B)
    save_state(state, folder / "state")
    loaded = load_state(type(state), folder / "state", lm)
    assert loaded.history == state.history
    assert torch.equal(logs(method, lm, loaded), logs(method, lm, state))
    # What was saved can also be read on from.
    further = read(method, lm, C, state=loaded)
    assert torch.equal(logs(method, lm, further), logs(method, lm, read(method, lm, C, state=state)))
    with pytest.raises(Mismatch, match="load that model"):
        load_state(type(state), folder / "state", other)


def law_the_same_seed_gives_the_same_result(method: AnyMethod, lm: LM, other: LM, folder: Path) -> None:
    torch.manual_seed(1)
    first = logs(method, lm, read(method, lm, A, context=Context(seed=7)))
    torch.manual_seed(2)
    noise = torch.get_rng_state()
    assert torch.equal(first, logs(method, lm, read(method, lm, A, context=Context(seed=7))))
    assert torch.equal(noise, torch.get_rng_state()), "the global random state was used"


def law_a_batch_is_a_loop(method: AnyMethod, lm: LM, other: LM, folder: Path) -> None:
    def batch(second: str) -> list[Scores]:
        evidence = [Evidence.of(A, query="so "), Evidence.of(second, query="so ")]
        states = method.adapt([method.init(lm), method.init(lm)], lm, evidence, Context())
        return method.adapted(states, lm).score(SEGMENTS)

    together = batch(B)
    for row, text in enumerate((A, B)):
        alone = method.adapted([read(method, lm, text)], lm).score([SEGMENTS[row]])[0]
        assert torch.allclose(alone.log_probs, together[row].log_probs, atol=1e-5)
    assert len(B) == len(C)
    assert same(together[:1], batch(C)[:1]), "another row's text changed this row's bits"


def law_side_by_side_equals_alone(method: AnyMethod, lm: LM, other: LM, folder: Path) -> None:
    mine, theirs = read(method, lm, A), read(method, lm, B)
    if not isinstance(getattr(mine, "delta", None), Delta):
        return  # no weights of its own
    broken = replace(theirs, delta=theirs.delta * math.nan)
    assert all(torch.isnan(broken.delta.difference(name)).any() for name in broken.delta.names)

    def taken(neighbour: Any, text: str) -> Any:
        evidence = [Evidence.of(each, query="so ") for each in (C, text)]
        state, _ = method.adapt([mine, neighbour], lm, evidence, Context())
        return state

    alone, beside = read(method, lm, C, state=mine), taken(theirs, A)
    for neighbour, text in (
        (broken, A),
        (theirs, "some other text, longer than mine by a good deal"),
        (mine, ""),
    ):
        state = taken(neighbour, text)
        for name in alone.delta.names:
            assert torch.equal(state.delta.difference(name), beside.delta.difference(name)), name
            assert torch.allclose(state.delta.difference(name), alone.delta.difference(name), atol=1e-6), name
    ids = [lm.tokenizer.opening, *lm.tokenizer.encode(A)[0]]

    def told(states: list[Any], second: list[int]) -> torch.Tensor:
        model = method.adapted(states, lm)
        rows, cache = torch.tensor([ids, second][: len(states)]), model.start()
        stretches = [rows[:, :-2], rows[:, -2:-1], rows[:, -1:]]
        with torch.no_grad():
            found = []
            for stretch in stretches:
                log_probs, cache = model.step(stretch, cache)
                found.append(log_probs[0])
            return torch.cat(found)

    others = [lm.tokenizer.opening, *lm.tokenizer.encode(B)[0]]
    by_itself, plain = told([mine], []), told([mine, theirs], others)
    for neighbour, text in ((broken, others), (theirs, others[::-1]), (method.init(lm), ids)):
        found = told([mine, neighbour], text)
        assert torch.equal(found, plain), "a neighbour changed this row's bits"
        assert torch.allclose(found, by_itself, atol=1e-5)


def law_reading_is_scoring_then_taking(method: AnyMethod, lm: LM, other: LM, folder: Path) -> None:
    segments = SEGMENTS[:1]
    scores, states = method.read([read(method, lm, A)], lm, segments, Context())
    apart = read(method, lm, A)
    assert same(scores, method.adapted([apart], lm).score(segments))
    (taken,) = method.adapt([apart], lm, [method.evidence_of(segments[0])], Context())
    assert torch.equal(logs(method, lm, states[0]), logs(method, lm, taken))


def law_a_token_is_scored_before_it_is_read(method: AnyMethod, lm: LM, other: LM, folder: Path) -> None:
    def run(end: str) -> tuple[torch.Tensor, torch.Tensor]:
        first, second = "one fish, two ", f"fish, red {end}"
        (before,), states = method.read([method.init(lm)], lm, [Segment(first)], Context())
        (after,), _ = method.read(states, lm, [Segment(second, first)], Context())
        return before.log_probs, after.log_probs

    (first, second), (same_first, changed) = run("fish"), run("lake")
    assert torch.equal(first, same_first)
    assert torch.allclose(second[:10], changed[:10], atol=1e-6)
    assert not torch.allclose(second[10:], changed[10:], atol=1e-6)


def law_reading_in_parts_is_reading_at_once(method: AnyMethod, lm: LM, other: LM, folder: Path) -> None:
    together = method.adapt([method.init(lm)], lm, [Evidence.of(A, B, query="so ")], Context())[0]
    if method.cumulative:
        assert torch.allclose(logs(method, lm, together), logs(method, lm, read(method, lm, A, B)), atol=1e-5)


def law_donated_equals_copied(method: AnyMethod, lm: LM, other: LM, folder: Path) -> None:
    evidence = [Evidence.of(B, query="so ")]
    (copied,) = method.adapt([read(method, lm, A)], lm, evidence, Context())
    (donated,) = method.adapt([read(method, lm, A)], lm, evidence, Context(), donate=True)
    assert torch.equal(logs(method, lm, copied), logs(method, lm, donated))


def law_dropping_is_never_having_read(method: AnyMethod, lm: LM, other: LM, folder: Path) -> None:
    b = Evidence.of(B).passages[0].id
    dropped = method.forget(read(method, lm, A, B, C), lm, [b])
    assert torch.equal(logs(method, lm, dropped), logs(method, lm, read(method, lm, A, C)))
    together = method.adapt([method.init(lm)], lm, [Evidence.of(A, B, query="so ")], Context())[0]
    assert torch.equal(
        logs(method, lm, method.forget(together, lm, [b])), logs(method, lm, read(method, lm, A))
    )
    assert all(passage.id != b for reading in dropped.history for passage in reading.passages)


LAWS: dict[str, Law] = {name: law for name, law in list(globals().items()) if name.startswith("law_")}
