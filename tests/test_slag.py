"""SLAG: its network against its dense formula, what sequences teach, and bad input."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import toys
from uptake.adaptation.delta import Delta
from uptake.adaptation.editing.slag import Head, SlagNetwork
from uptake.adaptation.optimizers import AdamW
from uptake.errors import BadInput
from uptake.lm.base import Segment
from uptake.lm.examples import encode
from uptake.lm.gradient_factors import gradient_factors
from uptake.methods.contract.edit_training import EditEpisode
from uptake.methods.contract.learned import TrainingData
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.slag import Slag, _conditions
from uptake.tasks.edits import Edit, Probe
from uptake.text.types import Document, Found, Passage
from uptake.train import Training, train

METHOD = Slag(blocks=2, condition=6, hidden=5, rate=0.5, steps=1, batch=2)
FIRST = EditEpisode(
    "so it is", " x", ("so it is", "and it is"), (("so is it", " y"),), "other", (("b", " c"),), "o"
)
SECOND = EditEpisode("the second", " yz", ("the second", "2"), (("a", " b"), ("c d", "e")), "more", old="p")
THIRD = EditEpisode("a third", " w", ("a third",), (), "text")


def network_of(method: Slag, lm: Any, moved: float = 0.3) -> SlagNetwork:
    network = method.fresh(lm).double()
    assert isinstance(network, SlagNetwork)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(moved * torch.randn(parameter.shape, generator=generator).to(parameter))
    return network


def gradients(lm: Any, method: Slag, example: Any) -> dict[str, Tensor]:
    """Return the gradient of each weight that is edited, [out, in], by autograd."""
    places = method.places(lm)
    leaves = {p.weight: lm.module.get_parameter(p.weight).detach().clone().requires_grad_() for p in places}
    loss = -lm.with_parameters(leaves).token_log_probs([example])[0].mean()
    found = torch.autograd.grad(loss, list(leaves.values()))
    return {
        place.weight: gradient.T if place.transposed else gradient
        for place, gradient in zip(places, found, strict=True)
    }


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_an_edit_is_its_dense_formula_and_at_birth_a_gradient_step(shape: str) -> None:
    lm = toys.lm(shape, dtype=torch.float64)
    example, text = encode(lm.tokenizer, "so it is", " x"), "o >> x || so it is"
    wanted = gradients(lm, METHOD, example)
    for moved in (0.0, 0.3):
        network = network_of(METHOD, lm, moved)
        delta, steps = METHOD.edited(network, lm, Delta(lm.fingerprint), example, text)
        assert steps == 1
        (condition,) = _conditions(network, lm, [text]).detach()
        for place, head in zip(METHOD.places(lm), network.heads, strict=True):
            into, out = place.width_in, place.width_out
            made = head.outer(torch.tanh(head.inner(condition))).detach()  # type: ignore[operator, union-attr]
            a, a_other, b, b_other = (made[s:e] for s, e in _cuts(into, into, out, out))
            whole = 2 * out * METHOD.rate * torch.outer(torch.softmax(b, 0), a) * wanted[place.weight]
            expected = torch.sigmoid(made[-1]) * (whole + torch.outer(torch.softmax(b_other, 0), a_other))
            if not moved:
                step = -METHOD.rate * wanted[place.weight]
                assert float((expected - step).abs().max()) <= 1e-10
            found = delta.difference(place.weight)
            found = found.T if place.transposed else found
            assert float((found - expected).abs().max()) <= 1e-10


def test_what_the_text_alone_writes_does_not_grow_with_the_rate_of_the_gradient_step() -> None:
    tokens = (torch.ones(1, 4), torch.ones(1, 6), torch.zeros(1, dtype=torch.long))
    made = []
    for rate in (0.1, 1.0):
        torch.manual_seed(0)
        head = Head(4, 6, 3, 2, rate)
        torch.nn.init.constant_(head.outer.bias, 0.3)  # as training leaves it: a' is not 0
        up, down, _ = head(tokens, torch.ones(1, 3))
        made.append((torch.outer(up[:, 0], down[0]), torch.outer(up[:, 1], down[1])))
    (step, text), (larger, same) = made
    assert torch.allclose(larger, 10 * step) and text.abs().min() > 0
    assert torch.equal(text, same)
    head.text = 0.0
    assert head(tokens, torch.ones(1, 3))[0].shape == (6, 1)


def _cuts(*sizes: int) -> list[tuple[int, int]]:
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def test_the_second_edit_is_made_of_the_model_that_the_first_one_left() -> None:
    lm = toys.lm("llama")
    method = replace(METHOD, weights="untrained", rate=2.0, steps=3)
    edits = [Passage(1, " x", "so it is", meta={"old": "o"}), Passage(2, " yz", "the second")]

    def made(*some: Passage, state: Any = None) -> Any:
        found = Evidence(Found(some, (0.0,) * len(some)))
        return method.adapt([state or method.init(lm)], lm, [found], Context())[0]

    both = made(*edits)
    assert both.delta.fingerprint == made(edits[1], state=made(edits[0])).delta.fingerprint
    assert both.delta.fingerprint != made(*edits[::-1]).delta.fingerprint
    assert method.forget(both, lm, [1]).delta.fingerprint == made(edits[1]).delta.fingerprint
    asked = [Segment(" x", "so it is")]
    found = method.adapted([both], lm).score(asked)[0].log_probs
    assert found.sum() > lm.score(asked)[0].log_probs.sum()
    # Many edits have no more rank than the weight; what they add up to is the same.
    many = made(*[Passage(n, f" {n}", f"number {n} is") for n in range(9)])
    assert all(part.up.shape[1] <= min(part.shape) for part in many.delta.parts.values())


def naive(
    network: SlagNetwork, lm: Any, method: Slag, edits: list[EditEpisode], others: list[EditEpisode]
) -> Tensor:
    """Return the loss after each edit of one sequence, a list, on weights that are whole tensors."""
    places, total = method.places(lm), method._total
    before = {p.weight: lm.module.get_parameter(p.weight).detach() for p in places}
    losses = []
    for turn, edit in enumerate(edits):
        model = lm.with_parameters(before)
        example = encode(lm.tokenizer, edit.prompt, edit.target)
        (condition,) = _conditions(network, lm, [f"{edit.old} >> {edit.target.strip()} || {edit.prompt}"])
        leaves = {name: value.clone().requires_grad_() for name, value in before.items()}
        loss = -lm.with_parameters(leaves).token_log_probs([example])[0].mean()
        grads = torch.autograd.grad(loss, list(leaves.values()))
        after = {}
        for place, head, gradient in zip(places, network.heads, grads, strict=True):
            gradient = gradient.T if place.transposed else gradient
            into, out = place.width_in, place.width_out
            made = head.outer(torch.tanh(head.inner(condition)))  # type: ignore[operator, union-attr]
            a, a_other, b, b_other = (made[s:e] for s, e in _cuts(into, into, out, out))
            change = 2 * out * method.rate * torch.outer(torch.softmax(b, 0), a) * gradient
            change = change + method.text * torch.outer(torch.softmax(b_other, 0), a_other)
            change = torch.sigmoid(made[-1]) * change
            after[place.weight] = before[place.weight] + (change.T if place.transposed else change)
        edited = lm.with_parameters(after)

        def said(prompt: str, text: str, edited: Any = edited) -> Tensor:
            return -edited.token_log_probs([encode(lm.tokenizer, prompt, text)])[0].mean()

        def moved(text: str, edited: Any = edited, model: Any = model) -> Tensor:
            example = encode(lm.tokenizer, "", text)
            (p,), (q,) = model.predictions([example]), edited.predictions([example])
            return (p.detach().exp() * (p.detach() - q)).sum(-1).mean()

        loss = method.edit * said(edit.prompt, edit.target)
        for prompt in edit.asked[1:]:
            loss = loss + method.paraphrases * said(prompt, edit.target) / len(edit.asked[1:])
        for prompt, text in edit.entailed:
            loss = loss + method.entailed * said(prompt, text) / len(edit.entailed)
        for earlier in edits[:turn]:
            loss = loss + method.kept * said(earlier.prompt, earlier.target) / turn
        for prompt, text in edit.near:
            loss = loss + method.near * moved(prompt + text) / len(edit.near)
        loss = loss + method.others * moved(others[turn].prompt + others[turn].target)
        losses.append((loss + method.locality * moved(edit.unrelated)) / total)
        before = {name: value.detach() for name, value in after.items()}
    return torch.stack(losses)


ZEROS = [
    {}, {"kept": 0.0}, {"near": 0.0}, {"others": 0.0}, {"locality": 0.0}, {"paraphrases": 0.0},
    {"entailed": 0.7}, {"text": 0.0}, {"text": 0.3},
]  # fmt: skip


@pytest.mark.parametrize("change", ZEROS, ids=str)
def test_the_loss_is_that_of_whole_tensors_and_each_term_can_be_left_out(change: dict[str, float]) -> None:
    lm = toys.lm("llama", dtype=torch.float64)
    method = replace(METHOD, length=2, **change)  # type: ignore[arg-type]
    network = network_of(method, lm, 0.1)
    sequences = ((FIRST, SECOND), (SECOND, THIRD))
    loss, found = method.gradients(network, lm, sequences)
    one, other = (naive(network, lm, method, [*a], [*b]) for a, b in (sequences, sequences[::-1]))
    total = (one.sum() + other.sum()) / 4
    assert loss == pytest.approx(total.item(), abs=1e-10)
    assert loss == pytest.approx(method.loss(network, lm, sequences).item(), abs=1e-10)
    expected = torch.autograd.grad(total, list(network.parameters()), allow_unused=True)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine is not None and theirs is not None
        assert float((mine - theirs).abs().max()) <= 1e-10


def test_one_edit_by_itself_is_a_sequence_of_one() -> None:
    lm = toys.lm("llama", dtype=torch.float64)
    network = network_of(METHOD, lm, 0.1)
    whole = METHOD.loss(network, lm, ((FIRST,), (SECOND,))).item()
    single = naive(network, lm, METHOD, [FIRST], [SECOND]) + naive(network, lm, METHOD, [SECOND], [FIRST])
    assert whole == pytest.approx(single.item() / 2, abs=1e-10)


def test_the_last_steps_gradient_is_finite_differences_and_earlier_steps_give_none() -> None:
    lm = toys.lm("gpt2", dtype=torch.float64)  # whose norms are not in float32
    method = replace(METHOD, steps=3, batch=1, others=0.0, rate=0.01)
    network, edit = network_of(method, lm, 0.1), replace(SECOND, target=" yzqwvu")
    *_, last = method._losses(network, lm, ((edit,),))
    parameter = network.condition.bias
    (gradient,) = torch.autograd.grad(last, parameter)

    def shifted(by: float, only_last: bool) -> float:
        """Return the last loss with the parameter moved, in the last step alone or in all of them."""
        losses = method._losses(network, lm, ((edit,),))
        found = 0.0
        for step in range(3):
            if step == (2 if only_last else 0):
                with torch.no_grad():
                    parameter[0] += by
            found = next(losses).item()
        with torch.no_grad():
            parameter[0] -= by
        return found

    slope = (shifted(1e-5, True) - shifted(-1e-5, True)) / 2e-5
    through_all = (shifted(1e-5, False) - shifted(-1e-5, False)) / 2e-5
    assert gradient[0].item() == pytest.approx(slope, rel=1e-5)
    assert abs(through_all - slope) > 1e-3 * abs(slope), "no earlier step had any effect to leave out"


def test_sequences_are_cut_from_edits_and_training_learns() -> None:
    lm = toys.lm("llama")
    edits = tuple(
        Edit(
            str(n),
            f"the {n} is",
            target,
            old="q",
            rephrases=(f"it is {n}, the",),
            neighbours=(Probe("the", "a"),),
        )
        for n, target in enumerate("xyzwuv")
    )
    method = replace(METHOD, length=2)
    material = TrainingData((), unrelated=(Document("", "other text"),), edits=edits)
    (episode,) = method.episodes(lm, material)
    assert [[edit.prompt for edit in sequence] for sequence in episode] == [
        ["the 0 is", "the 2 is"], ["the 1 is", "the 3 is"],
    ]  # fmt: skip
    training = Training(AdamW(learning_rate=3e-3, weight_decay=0.0), passes=8, save_every=4)
    network, points = train(method, lm, [episode], training, valid=[episode])
    assert points[-1].valid < points[0].valid  # type: ignore[operator]
    assert isinstance(network, nn.Module)


def test_what_cannot_be_trained_is_refused() -> None:
    lm = toys.lm("llama")
    edit = Edit("1", "a", "b")
    with pytest.raises(BadInput, match="--edits"):
        METHOD.episodes(lm, TrainingData(()))
    with pytest.raises(BadInput, match="1 edits, fewer"):
        replace(METHOD, locality=0.0).episodes(lm, TrainingData((), edits=(edit,)))
    with pytest.raises(BadInput, match="the model has 2"):
        replace(METHOD, blocks=3).fresh(lm)
    for wrong in ({"steps": 0}, {"condition": 3}, {"near": -1.0}, {"edit": 0.0}, {"rate": float("nan")}):
        with pytest.raises(BadInput, match=r"use|weight"):
            replace(METHOD, **wrong)  # type: ignore[arg-type]
    context = Context()
    long = Passage(5, "x", "a" * 90, document="long")
    method = replace(METHOD, weights="untrained")
    (state,) = method.adapt([method.init(lm)], lm, [Evidence(Found((long,), (0.0,)))], context)
    assert "edit 'long' was not made" in context.ledger(0).failed and not state.delta.parts


def test_factors_of_a_batch_are_those_of_each_text_alone() -> None:
    lm = toys.lm("neox", dtype=torch.float64)
    from uptake.lm.edited_rows import EditedRows

    method = replace(METHOD, blocks=1)
    places, said = method.places(lm), [encode(lm.tokenizer, e.prompt, e.target) for e in (FIRST, SECOND)]
    rows = EditedRows(lm, places)
    batch = rows.factors(rows.read(said, [0, 1]))
    for row, example in enumerate(said):
        _, alone = gradient_factors(lm, places, lambda m, e=example: -m.token_log_probs([e])[0].mean())
        for (both, owners), one in zip(batch, alone, strict=True):
            for mine, theirs in zip(both, one.tokens(), strict=True):
                assert torch.allclose(mine[owners == row], theirs, atol=1e-10)
