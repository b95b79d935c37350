"""ROME, MEMIT, AlphaEdit and UltraEdit: what they write, in any order, and that the base is never touched."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import toys
from uptake.adaptation.delta import LowRank, fingerprint
from uptake.adaptation.editing.moments import Moments
from uptake.errors import BadInput
from uptake.lm.base import Segment
from uptake.lm.examples import Example
from uptake.lm.fact_values import Fact, ValueSearch, search
from uptake.lm.feed_forward import down_projection, entering_projections
from uptake.lm.gradient_factors import gradient_factors
from uptake.lm.key_statistics import OrdinaryText, key_covariance
from uptake.methods.alphaedit import AlphaEdit
from uptake.methods.contract.editor import fact_of, name_in
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.memit import Memit
from uptake.methods.rome import Rome
from uptake.methods.ultraedit import UltraEdit
from uptake.text.types import Found, Passage

TEXT = OrdinaryText(tokens=512, length=32)
HOW = ValueSearch(steps=20, contexts=2, context_tokens=3, limit=50.0)
CLOSED = [
    Rome(depth=0, values=HOW, ordinary=TEXT),
    Memit(depth=0, strength=1e-3, values=HOW, ordinary=TEXT),
    AlphaEdit(depth=0, energy=0.5, strength=1e-3, values=HOW, ordinary=TEXT),
]
EDITS = [
    Passage(n, f" {target}", f"the home of {name} is", document=f"e{n}", meta={"subject": name})
    for n, (name, target) in enumerate([("Anna", "x"), ("Bo", "y"), ("Cid", "z"), ("Dora", "w")], 1)
]


def found(*passages: Passage) -> Evidence:
    return Evidence(Found(passages, (0.0,) * len(passages)))


def made(method: Any, lm: Any, *passages: Passage, state: Any = None) -> Any:
    start = method.init(lm) if state is None else state
    return method.adapt([start], lm, [found(*passages)], Context())[0]


def named(method: Any) -> str:
    return type(method).__name__


@pytest.mark.parametrize("method", CLOSED, ids=named)
@pytest.mark.parametrize("shape", toys.SHAPES)
def test_the_target_is_said_and_the_base_is_untouched(method: Any, shape: str) -> None:
    lm = toys.lm(shape)
    before = fingerprint(lm.module)
    # Written at the prompt's end: a random model hardly attends to anything before.
    said = Passage(7, "x", "the home of anna is")
    state = made(method, lm, said)
    (part,) = state.delta.parts.values()
    assert isinstance(part, LowRank) and part.up.shape[1] == 1
    asked = [Segment(said.text, said.prompt)]
    base, edited = (model.score(asked)[0].log_probs for model in (lm, method.adapted([state], lm)))
    assert edited.sum() > base.sum() + 0.02
    assert fingerprint(lm.module) == before
    with pytest.raises(ZeroDivisionError):
        method.adapt([state], lm, [found(EDITS[1])], Context(cancelled=lambda: 1 // 0))  # type: ignore[arg-type, return-value]
    assert fingerprint(lm.module) == before
    assert not any(p._forward_hooks or p._forward_pre_hooks for p in lm.module.modules())


@pytest.mark.parametrize("method", CLOSED, ids=named)
def test_order_and_batches_change_no_bit(method: Any) -> None:
    lm = toys.lm("llama")
    whole = made(method, lm, *EDITS)
    backward = made(method, lm, *EDITS[::-1])
    stepwise = method.init(lm)
    for edit in (EDITS[2], EDITS[0], EDITS[3], EDITS[1]):
        stepwise = made(method, lm, edit, state=stepwise)
    assert whole.delta.fingerprint == backward.delta.fingerprint == stepwise.delta.fingerprint


@pytest.mark.parametrize("method", CLOSED, ids=named)
def test_an_edit_that_is_taken_back_was_never_made(method: Any) -> None:
    lm = toys.lm("gpt2")
    whole = made(method, lm, *EDITS)
    left = method.forget(whole, lm, [2, 4])
    assert left.delta.fingerprint == made(method, lm, EDITS[0], EDITS[2]).delta.fingerprint
    assert [passage.id for passage in left.passages] == [1, 3]
    none = method.forget(whole, lm, [1, 2, 3, 4])
    asked = [Segment(EDITS[0].text, EDITS[0].prompt)]
    assert torch.equal(method.adapted([none], lm).score(asked)[0].log_probs, lm.score(asked)[0].log_probs)
    assert method.forget(none, lm, [9]).delta.fingerprint == method.init(lm).delta.fingerprint


def test_the_methods_are_their_closed_forms() -> None:
    lm = toys.lm("gpt2", dtype=torch.float64)
    place = down_projection(lm.module, 0)
    c = key_covariance(lm, place, TEXT)
    pairs = [search(lm, place, fact_of(edit, ""), HOW) for edit in EDITS]
    keys, changes = (torch.stack([getattr(pair, name) for pair in pairs]) for name in ("key", "change"))
    dense = torch.linalg.solve(1e-3 * c + keys.T @ keys, keys.T @ changes)  # Conv1D stores [in, out]
    found_ = made(CLOSED[1], lm, *EDITS).delta.difference(place.weight).double()
    assert float((found_ - dense).abs().max() / dense.abs().max()) < 1e-5
    inverse = torch.linalg.inv(c)
    total = sum(
        torch.outer(inverse @ key, change) / (key @ inverse @ key)
        for key, change in zip(keys, changes, strict=True)
    )
    found_ = made(CLOSED[0], lm, *EDITS).delta.difference(place.weight).double()
    assert float((found_ - total).abs().max() / total.abs().max()) < 1e-5
    space = CLOSED[2].null_space_of(lm)
    assert "of 128 directions" in str(space) and space.energy <= 0.5
    found_ = made(CLOSED[2], lm, *EDITS).delta.difference(place.weight).double()
    p = space.projection
    assert float((p @ found_ - found_).abs().max() / found_.abs().max()) < 1e-5


def test_statistics_of_a_layer_are_those_of_its_inputs(tmp_path: Any) -> None:
    lm = toys.lm("llama")
    place = down_projection(lm.module, 1)
    (tmp_path / "text").write_text("some words, " * 40)
    text = OrdinaryText(str(tmp_path / "text"), tokens=96, length=24, ridge=0.0)
    keys: list[torch.Tensor] = []
    module = toys.lm("llama").module
    module.get_submodule(place.path).register_forward_pre_hook(
        lambda _, inputs: keys.append(inputs[0][:, 1:].flatten(0, 1).double())
    )
    for batch in text.batches(lm):
        module(batch)
    rows = torch.cat(keys)
    expected = rows.T @ rows / len(rows)
    c = key_covariance(lm, place, text)
    assert float((c - expected).abs().max()) < 1e-6
    assert key_covariance(lm, place, text) is c
    assert torch.equal(key_covariance(lm, place, OrdinaryText(tokens=0)), torch.eye(48).double())
    with pytest.raises(BadInput, match="give a file"):
        key_covariance(lm, place, replace(text, file=str(tmp_path / "none")))
    (tmp_path / "short").write_text("few")
    with pytest.raises(BadInput, match="under 24 tokens"):
        key_covariance(lm, place, replace(text, file=str(tmp_path / "short")))


def test_subjects_are_given_or_found_or_the_prompts_end() -> None:
    given = fact_of(EDITS[0], "")
    assert (given.end, given.essence) == (16, "Anna")
    assert name_in("Where does Marie Curie of France live? In") == "Marie Curie of France"
    assert name_in("The answer is") == "" and name_in("Anna Karenina lives in") == "Anna Karenina"
    bare = fact_of(Passage(1, " x", "so it is"), "")
    assert (bare.end, bare.essence) == (8, "")
    assert fact_of(Passage(1, "x"), "after this ").prompt == "after this "
    with pytest.raises(BadInput, match="leave it out"):
        fact_of(Passage(1, " x", "so it is", meta={"subject": "Bo"}), "")


@pytest.mark.parametrize("method", [*CLOSED, UltraEdit.example()], ids=named)
def test_an_edit_that_cannot_be_made_is_told_of_and_the_others_are_made(method: Any) -> None:
    lm = toys.lm("llama")
    wrong = [
        Passage(8, " x", "so it is", document="gone", meta={"subject": "Bo"}),
        Passage(9, " x", "a" * 90, document="long"),
    ]
    context = Context()
    for bad in wrong:
        context = Context()
        (state,) = method.adapt([method.init(lm)], lm, [found(EDITS[0], bad)], context)
        reason = context.ledger(0).failed
        assert bad.document in reason and "was not made" in reason and "\n" not in reason
        assert state.delta.fingerprint == made(method, lm, EDITS[0]).delta.fingerprint


def test_settings_that_cannot_work_are_refused() -> None:
    lm = toys.lm("llama")
    with pytest.raises(BadInput, match="reaches no later token"):
        Memit(depth=1).init(lm)
    for wrong in (
        lambda: Memit(strength=0),
        lambda: AlphaEdit(energy=1),
        lambda: AlphaEdit(strength=-1),
        lambda: UltraEdit(learning_rate=0),
        lambda: UltraEdit(first=0.9, last=0.1),
        lambda: OrdinaryText(tokens=-1),
    ):
        with pytest.raises(BadInput, match="use"):
            wrong()


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_factors_are_the_gradient(shape: str) -> None:
    lm = toys.lm(shape, dtype=torch.float64)
    places = [
        each
        for layer in (0, 1)
        for each in (*entering_projections(lm.module, layer), down_projection(lm.module, layer))
    ]
    # Of different length, so that the shorter is padded.
    examples = [Example((0, 40, 41, 42), (43, 44)), Example((0, 9), (8,))]

    def loss(model: Any) -> torch.Tensor:
        return -sum(each.mean() for each in model.token_log_probs(examples))

    value, factors = gradient_factors(lm, places, loss)
    module = toys.module(shape, dtype=torch.float64)
    other = lm.around(module.requires_grad_())
    expected = loss(other)
    assert float((value - expected.detach()).abs()) <= 1e-12
    expected.backward()  # type: ignore[no-untyped-call]
    for place, found_ in zip(places, factors, strict=True):
        gradient = module.get_parameter(place.weight).grad
        gradient = gradient.T if place.transposed else gradient
        assert float((found_.weight_gradient() - gradient).abs().max()) <= 1e-10
        u, d = found_.tokens()
        # Tokens behind the last that predicts anything get no gradient, padding none at all.
        assert len(u) == 7 if place is places[0] else len(u) <= 7
        assert float((d.T @ u - gradient).abs().max()) <= 1e-10
    assert not any(p.grad is not None for p in lm.module.parameters())


@pytest.mark.parametrize("together", [1, 2])
def test_ultraedit_is_its_formula_turn_by_turn(together: int) -> None:
    lm = toys.lm("llama", dtype=torch.float64)
    method = UltraEdit(learning_rate=1e-3, first=0, last=1, turn=2, together=together)
    state = made(method, lm, *EDITS)
    places = [each for layer in (0, 1) for each in entering_projections(lm.module, layer)]
    now, moments, totals = lm, {}, {}
    for turn in (EDITS[:2], EDITS[2:]):
        rows: dict[str, list[torch.Tensor]] = {place.path: [] for place in places}
        for edit in turn:
            prompt, target = (lm.tokenizer.encode(text)[0] for text in (edit.prompt, edit.text))
            example = Example((lm.tokenizer.opening, *prompt), tuple(target))
            _, factors = gradient_factors(
                now, places, lambda m, one=example: -m.token_log_probs([one])[0].mean()
            )
            for place, (u, d) in zip(places, factors, strict=True):
                rows[place.path].append(torch.cat([u[0, -len(target) :], d[0, -len(target) :]], 1))
        for place in places:
            joined = torch.cat(rows[place.path])
            moments[place.path] = torch.cat([*moments.get(place.path, []), joined])[None]
            everything = moments[place.path][0]
            hat = (joined - everything.mean(0)) / (everything.std(0) + 1e-7)
            k, hat_k, hat_v = joined[:, : place.width_in], hat[:, : place.width_in], hat[:, place.width_in :]
            c = -1e-3 * hat_k.square().sum(1, keepdim=True) * hat_v
            step = torch.linalg.solve(k.T @ k + torch.eye(k.shape[1]).double(), k.T @ c).T
            totals[place.weight] = totals.get(place.weight, 0) + step
        now = lm.overlay(type(state.delta).dense(lm.fingerprint, totals))
    for name, total in totals.items():
        assert float((state.delta.difference(name) - total).abs().max() / total.abs().max()) < 1e-4
    before, after = (
        model.score([Segment(EDITS[0].text, EDITS[0].prompt)])[0].log_probs.sum() for model in (lm, now)
    )
    assert after > before
    assert all(isinstance(each, Moments) and each.count == 8 for each in state.moments.values())


def test_ultraedit_holds_many_turns_densely_and_forgets_by_making_the_others_again() -> None:
    lm = toys.lm("llama")
    method = UltraEdit(learning_rate=1e-4, first=0, last=0, turn=4)
    state = method.init(lm)
    for _ in range(12):
        state = made(method, lm, *EDITS, state=state)
    assert {type(part).__name__ for part in state.delta.parts.values()} == {"Dense"}
    once = made(method, lm, *EDITS)
    assert {type(part).__name__ for part in once.delta.parts.values()} == {"LowRank"}
    left = method.forget(once, lm, [2])
    expected = made(method, lm, EDITS[0], *EDITS[2:])
    assert left.delta.fingerprint == expected.delta.fingerprint


def test_a_prompt_without_subject_is_written_at_its_end() -> None:
    lm = toys.lm("llama")
    method = CLOSED[1]
    state = made(method, lm, Passage(5, " no", "so it is"))
    place = down_projection(lm.module, 0)
    expected = search(lm, place, Fact("so it is", " no", 8), HOW)
    assert torch.equal(state.keys["5"], expected.key)
