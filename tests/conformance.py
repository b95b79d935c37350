"""The laws every method obeys, whatever it does inside. Each takes a subject and a base model.

A subject is a method as people name it, under settings that show on a tiny model, which reads bare texts or
what its own selection finds on a shelf. `tests/test_conformance.py` runs the laws over every name and over
toys. A new method adds nothing here: it is found by its file name.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shelf import Shelf
from uptake.adaptation.delta import Delta, fingerprint
from uptake.adaptation.delta.part import WeightPart
from uptake.errors import BadInput, Mismatch
from uptake.lm.base import LM, Scores, Segment
from uptake.lm.gated import Gated
from uptake.lm.rows import left_padded
from uptake.methods.contract.composed import Together
from uptake.methods.contract.method import Context, Evidence, Method, MethodSpec
from uptake.methods.contract.state import load_state, save_state

A, B, C = "the cat sat on the mat. ", "a dog ran over the hill.", "one fish, two fish, red."
PROMPTS = ("so ", "a dog ", "a dog ran over ")
SEGMENTS = [Segment("the cat sat on the hill", "so "), Segment("a dog ran after the cat", "so ")]


@dataclass(frozen=True)
class Subject:
    """A method under settings for the laws. With `stored` its selection chooses among texts on a shelf."""

    spec: MethodSpec
    stored: bool = False

    @classmethod
    def of(cls, method: Method[Any]) -> "Subject":
        return cls(MethodSpec(method))

    @property
    def method(self) -> Method[Any]:
        return self.spec.method

    @property
    def drawn(self) -> bool:
        """Whether it reads what a store drew at random, which is another draw once something is gone."""
        return self.stored and "draw='random'" in repr(self.method)

    def evidence(self, lm: LM, *texts: str, query: str = "so ") -> Evidence:
        """Return what the method may read of these texts, as the evaluation hands it over."""
        if not self.stored:
            return Evidence.of(*texts, query=query)
        shelf = Shelf.of(lm, *texts)
        found = self.spec.choose(lm, shelf, len(texts), np.random.default_rng(0))
        return Evidence(found, query, shelf)


Law = Callable[[Subject, LM, LM, Path], None]


def example(spec: MethodSpec) -> MethodSpec:
    """Return a method as it is named, under its class's example settings; what the name sets itself stays."""
    return replace(spec, method=_example(spec.method))


def _example(method: Any) -> Any:
    if isinstance(method, Together):
        return replace(method, **{name: _example(part) for name, part in method.parts})
    shown, plain = type(method).example(), type(method)()
    changed = {part.name: getattr(shown, part.name) for part in fields(shown)}
    return replace(method, **{n: value for n, value in changed.items() if value != getattr(plain, n)})


def read(subject: Subject, lm: LM, *texts: str, state: Any = None, context: Context | None = None) -> Any:
    """Return the state after reading each text in a `take` of its own."""
    state = subject.method.init(lm) if state is None else state
    for text in texts:
        (state,) = subject.method.adapt([state], lm, [subject.evidence(lm, text)], context or Context())
    return state


def logs(
    subject: Subject, lm: LM, state: Any, text: str = SEGMENTS[0].text, before: str = "so "
) -> torch.Tensor:
    (scores,) = subject.method.adapted([state], lm).score([Segment(text, before)])
    return scores.log_probs


def values(delta: Delta) -> dict[str, torch.Tensor]:
    """Return what a delta holds: differences of weights, and the tensors of parts that are none."""
    others = delta.without(lambda _, part: isinstance(part, WeightPart)).parts.items()
    parts = {f"{name} {key}": value for name, part in others for key, value in part.tensors().items()}
    return {**delta.differences, **parts}


def spoiled(delta: Delta) -> Delta:
    """Return the delta with no number in any of its tensors."""
    return Delta(
        delta.base,
        {
            name: part.holding({key: value * math.nan for key, value in part.tensors().items()})
            for name, part in delta.parts.items()
        },
    )


def same(left: list[Scores], right: list[Scores]) -> bool:
    return all(torch.equal(one.log_probs, other.log_probs) for one, other in zip(left, right, strict=True))


def law_the_base_is_untouched(subject: Subject, lm: LM, other: LM, folder: Path) -> None:
    module = lm.module  # type: ignore[attr-defined]
    before, training = fingerprint(module), module.training
    logs(subject, lm, read(subject, lm, A, B))

    class StoppedError(Exception):
        pass

    def interrupt() -> bool:
        raise StoppedError

    with suppress(StoppedError):
        read(subject, lm, A, context=Context(cancelled=interrupt))
    with pytest.raises(Exception, match="states for"):
        subject.method.adapt([subject.method.init(lm)], lm, [], Context())
    assert fingerprint(module) == before and module.training == training
    assert not any(p.requires_grad or p.grad is not None for p in module.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def law_old_states_stay_valid(subject: Subject, lm: LM, other: LM, folder: Path) -> None:
    first = read(subject, lm, A)
    before = logs(subject, lm, first)
    read(subject, lm, B, state=first)
    assert torch.equal(logs(subject, lm, first), before)


def law_order_of_queries_does_not_matter(subject: Subject, lm: LM, other: LM, folder: Path) -> None:
    def run(*texts: str) -> dict[str, torch.Tensor]:
        context = Context(seed=3)
        return {text: logs(subject, lm, read(subject, lm, text, context=context)) for text in texts}

    forward, backward = run(A, B), run(B, A)
    assert all(torch.equal(forward[text], backward[text]) for text in (A, B))


def law_reading_shows_and_reading_nothing_does_not(subject: Subject, lm: LM, other: LM, folder: Path) -> None:
    base = lm.score(SEGMENTS[:1])[0].log_probs
    nothing = subject.method.adapt([subject.method.init(lm)], lm, [Evidence.of()], Context())[0]
    before = logs(subject, lm, nothing)
    if subject.method.learns_while_scoring:
        # The second token is scored by a model that has learnt the first: only there it is the base.
        assert torch.equal(before, logs(subject, lm, subject.method.init(lm)))
        assert torch.allclose(before[:1], base[:1], atol=1e-5)
    else:
        assert torch.equal(before, base)
    if subject.method.reads:
        after = logs(subject, lm, read(subject, lm, A))
        assert not torch.equal(after[:1], before[:1])


def law_no_token_sees_a_later_one(subject: Subject, lm: LM, other: LM, folder: Path) -> None:
    model = subject.method.adapted([read(subject, lm, A)], lm)
    ids = torch.tensor([[model.tokenizer.opening, *model.tokenizer.encode("the cat sat on it")[0]]])
    changed = ids.clone()
    changed[0, 9:] = model.tokenizer.encode("q")[0][0]
    with torch.no_grad():
        before, after = model.step(ids)[0], model.step(changed)[0]
    assert torch.allclose(before[0, :9], after[0, :9], atol=1e-6)
    assert not torch.allclose(before[0, 9:], after[0, 9:], atol=1e-6)


def law_probabilities_sum_to_one(subject: Subject, lm: LM, other: LM, folder: Path) -> None:
    model = subject.method.adapted([read(subject, lm, A), subject.method.init(lm)], lm)
    log_probs, _ = model.step(torch.randint(1, 200, (2, 12), generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(log_probs.exp().sum(-1), torch.ones(2, 12), atol=1e-5)


def law_a_state_survives_the_disk(subject: Subject, lm: LM, other: LM, folder: Path) -> None:
    state = read(subject, lm, A, B)
    try:
        save_state(state, folder / "state")
    except BadInput as refused:
        # What searches a store is not saved, and says so.
        assert subject.stored and "searched and not saved" in str(refused)
        assert not (folder / "state").exists()
        return
    loaded = load_state(type(state), folder / "state", lm)
    assert loaded.history == state.history
    assert torch.equal(logs(subject, lm, loaded), logs(subject, lm, state))
    # What was saved can also be read on from.
    further = read(subject, lm, C, state=loaded)
    assert torch.equal(logs(subject, lm, further), logs(subject, lm, read(subject, lm, C, state=state)))
    with pytest.raises(Mismatch, match="load that model"):
        load_state(type(state), folder / "state", other)


def law_the_same_seed_gives_the_same_result(subject: Subject, lm: LM, other: LM, folder: Path) -> None:
    torch.manual_seed(1)
    first = logs(subject, lm, read(subject, lm, A, context=Context(seed=7)))
    torch.manual_seed(2)
    noise = torch.get_rng_state()
    assert torch.equal(first, logs(subject, lm, read(subject, lm, A, context=Context(seed=7))))
    assert torch.equal(noise, torch.get_rng_state()), "the global random state was used"


def law_a_batch_is_a_loop(subject: Subject, lm: LM, other: LM, folder: Path) -> None:
    def batch(second: str) -> list[Scores]:
        evidence = [subject.evidence(lm, A), subject.evidence(lm, second)]
        states = subject.method.adapt(
            [subject.method.init(lm), subject.method.init(lm)], lm, evidence, Context()
        )
        return subject.method.adapted(states, lm).score(SEGMENTS)

    together = batch(B)
    for row, text in enumerate((A, B)):
        alone = subject.method.adapted([read(subject, lm, text)], lm).score([SEGMENTS[row]])[0]
        assert torch.allclose(alone.log_probs, together[row].log_probs, atol=1e-5)
    assert len(B) == len(C)
    assert same(together[:1], batch(C)[:1]), "another row's text changed this row's bits"


def law_side_by_side_equals_alone(subject: Subject, lm: LM, other: LM, folder: Path) -> None:
    mine, theirs = read(subject, lm, A), read(subject, lm, B)
    if not isinstance(getattr(mine, "delta", None), Delta):
        return  # no weights of its own
    broken = replace(theirs, delta=spoiled(theirs.delta))
    assert all(torch.isnan(value).any() for value in values(broken.delta).values())

    def taken(neighbour: Any, text: str) -> Any:
        evidence = [subject.evidence(lm, each) for each in (C, text)]
        state, _ = subject.method.adapt([mine, neighbour], lm, evidence, Context())
        return state

    alone, beside = read(subject, lm, C, state=mine), taken(theirs, A)
    for neighbour, text in (
        (broken, A),
        (theirs, "some other text, longer than mine by a good deal"),
        (mine, ""),
    ):
        state = taken(neighbour, text)
        found, by_grid = values(state.delta), values(beside.delta)
        for name, value in values(alone.delta).items():
            assert torch.equal(found[name], by_grid[name]), name
            assert torch.allclose(found[name], value, atol=1e-6), name
    ids = [lm.tokenizer.opening, *lm.tokenizer.encode(A)[0]]

    def told(states: list[Any], second: list[int]) -> torch.Tensor:
        model = subject.method.adapted(states, lm)
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
    for neighbour, text in ((broken, others), (theirs, others[::-1]), (subject.method.init(lm), ids)):
        found = told([mine, neighbour], text)
        assert torch.equal(found, plain), "a neighbour changed this row's bits"
        assert torch.allclose(found, by_itself, atol=1e-5)


def law_reading_is_scoring_then_taking(subject: Subject, lm: LM, other: LM, folder: Path) -> None:
    segments = SEGMENTS[:1]
    scores, states = subject.method.read([read(subject, lm, A)], lm, segments, Context())
    apart = read(subject, lm, A)
    assert same(scores, subject.method.adapted([apart], lm).score(segments))
    (taken,) = subject.method.adapt([apart], lm, [subject.method.evidence_of(segments[0])], Context())
    assert torch.equal(logs(subject, lm, states[0]), logs(subject, lm, taken))


def law_a_token_is_scored_before_it_is_read(subject: Subject, lm: LM, other: LM, folder: Path) -> None:
    def run(end: str) -> tuple[torch.Tensor, torch.Tensor]:
        first, second = "one fish, two ", f"fish, red {end}"
        (before,), states = subject.method.read([subject.method.init(lm)], lm, [Segment(first)], Context())
        (after,), _ = subject.method.read(states, lm, [Segment(second, first)], Context())
        return before.log_probs, after.log_probs

    (first, second), (same_first, changed) = run("fish"), run("lake")
    assert torch.equal(first, same_first)
    assert torch.allclose(second[:10], changed[:10], atol=1e-6)
    assert not torch.allclose(second[10:], changed[10:], atol=1e-6)


def law_reading_in_parts_is_reading_at_once(subject: Subject, lm: LM, other: LM, folder: Path) -> None:
    whole = subject.evidence(lm, A, B)
    (together,) = subject.method.adapt([subject.method.init(lm)], lm, [whole], Context())
    (state,) = [subject.method.init(lm)]
    for start in (0, 1):  # as the evaluation does for one and for two neighbours
        part = replace(whole, found=whole.found.part(start, start + 1))
        (state,) = subject.method.adapt([state], lm, [part], Context())
    if subject.method.incremental:
        assert torch.allclose(logs(subject, lm, together), logs(subject, lm, state), atol=1e-5)


def law_rows_of_different_length_go_on_as_each_by_itself(
    subject: Subject, lm: LM, other: LM, folder: Path
) -> None:
    model = subject.method.adapted([read(subject, lm, A), subject.method.init(lm), read(subject, lm, B)], lm)
    rows = [model.tokenizer.opened(text) for text in ("so the cat", "so a", "so one fish, two")]
    with torch.no_grad():
        ids, lengths = left_padded(rows, model.device)
        first, cache = model.step(ids, model.start(), lengths)
        if cache is None:  # what keeps none reads everything again
            ids, lengths = left_padded([[*row, 60] for row in rows], model.device)
            second = model.step(ids, None, lengths)[0][:, -1:]
        else:
            second, _ = model.step(torch.full((3, 1), 60), cache)
        for row, own in enumerate(rows):
            alone = model.at([row])
            begun, kept = alone.step(torch.tensor([own]), alone.start())
            assert torch.allclose(first[row, -len(own) :], begun[0], atol=1e-4)
            whole, _ = alone.step(torch.tensor([[*own, 60]]))
            if isinstance(model, Gated):
                # Who answers is decided by the prompt, and a text read at once has none.
                whole, _ = alone.step(torch.tensor([[60]]), kept)
            else:
                assert torch.allclose(first[row, -len(own) :], whole[0, :-1], atol=1e-4)
            assert torch.allclose(second[row], whole[0, -1:], atol=1e-4)


def law_donated_equals_copied(subject: Subject, lm: LM, other: LM, folder: Path) -> None:
    evidence = [subject.evidence(lm, B)]
    (copied,) = subject.method.adapt([read(subject, lm, A)], lm, evidence, Context())
    (donated,) = subject.method.adapt([read(subject, lm, A)], lm, evidence, Context(), donate=True)
    assert torch.equal(logs(subject, lm, copied), logs(subject, lm, donated))


def law_dropping_is_never_having_read(subject: Subject, lm: LM, other: LM, folder: Path) -> None:
    b = Evidence.of(B).passages[0].id
    if not subject.stored:
        dropped = subject.method.forget(read(subject, lm, A, B, C), lm, [b])
        assert torch.equal(logs(subject, lm, dropped), logs(subject, lm, read(subject, lm, A, C)))
        assert all(passage.id != b for reading in dropped.history for passage in reading.passages)
    whole = subject.evidence(lm, A, B)
    (together,) = subject.method.adapt([subject.method.init(lm)], lm, [whole], Context())
    left = subject.method.forget(together, lm, [b])
    assert all(passage.id != b for reading in left.history for passage in reading.passages)
    if not subject.drawn:
        assert torch.equal(logs(subject, lm, left), logs(subject, lm, read(subject, lm, A)))
    # Where a prompt sees the one text that it is about, what is gone shows in what was asked about it.
    shows = (
        not torch.equal(logs(subject, lm, left, before=before), logs(subject, lm, together, before=before))
        for before in PROMPTS
    )
    assert any(shows) or not subject.method.reads


LAWS: dict[str, Law] = {name: law for name, law in list(globals().items()) if name.startswith("law_")}
