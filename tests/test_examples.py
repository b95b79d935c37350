"""Examples and the windows they are cut into, against slices of the whole text; losses and divergences."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import toys
from uptake.lm.base import LM
from uptake.lm.examples import (
    Example,
    at_targets,
    encode,
    even_pieces,
    of_target,
    of_targets,
    overlapping_windows,
    pieces,
    rolling_windows,
)
from uptake.lm.experts import Experts, FixedShare
from uptake.lm.scoring import divergence, kl, losses, per_token
from uptake.lm.wrappers import Prefixed, Routed

CONTEXTS, COUNTS, ROOMS = st.integers(1, 40), st.integers(0, 90), st.integers(2, 20)


def made(context: int, count: int) -> tuple[Example, list[int]]:
    """Return an example whose tokens say where they stand, and its whole text."""
    whole = list(range(context + count))
    spans = tuple((i, i + 1) for i in range(count))
    return Example(tuple(whole[:context]), tuple(whole[context:]), spans), whole


def check(window: Example, whole: list[int], context: int) -> None:
    """A window is a stretch of the text, and its spans are those of its target."""
    tokens = [*window.context, *window.target]
    assert tokens == whole[tokens[0] : tokens[-1] + 1] and window.context
    assert [*window.inputs] == tokens[:-1]
    assert [start + context for start, _ in window.spans] == [*window.target]


@given(context=CONTEXTS, count=COUNTS, room=ROOMS)
def test_rolling_windows_score_every_token_once(context: int, count: int, room: int) -> None:
    example, whole = made(context, count)
    windows = [*rolling_windows(example, room)]
    assert [token for window in windows for token in window.target] == whole[context:]
    for window in windows:
        check(window, whole, context)
        assert len(window.inputs) <= room
    # All but the last are full; the first of several gives the context half of itself at most.
    assert all(len(window.inputs) == room for window in windows[1:])
    if windows and context + count - 1 <= room:
        assert windows == [example]
    elif windows:
        assert len(windows[0].context) <= max(1, room // 2)


@given(context=CONTEXTS, count=COUNTS, size=st.integers(1, 20))
def test_pieces_are_slices_of_the_whole_text_with_one_token_of_overlap(
    context: int, count: int, size: int
) -> None:
    example, whole = made(context, count)
    inputs = [whole[start : min(start + size, len(whole) - 1)] for start in range(0, len(whole) - 1, size)]
    learnt = [each for each in inputs if each[-1] + 1 >= context]
    found = [*pieces(example, size)]
    assert [[*piece.inputs] for piece in found] == (learnt if count else [])
    assert [token for piece in found for token in piece.target] == whole[context:]
    for piece in found:
        check(piece, whole, context)


@given(context=CONTEXTS, count=COUNTS, size=st.integers(1, 20), room=ROOMS)
def test_even_pieces_see_as_much_as_there_is_room_for(context: int, count: int, size: int, room: int) -> None:
    example, whole = made(context, count)
    places, found = zip(*even_pieces(example, size, room), strict=True) if count else ((), ())
    assert list(places) == [sum(len(piece.target) for piece in found[:place]) for place in range(len(found))]
    assert [token for piece in found for token in piece.target] == whole[context:]
    for piece in found:
        check(piece, whole, context)
        assert len(piece.target) <= size and len(piece.inputs) == min(room, piece.target[-1])
    lengths = [len(piece.target) for piece in found]
    assert not lengths or max(lengths) - min(lengths) <= 1


@given(count=COUNTS, room=ROOMS, overlap=st.integers(0, 10))
def test_overlapping_windows_see_the_end_of_the_one_before(count: int, room: int, overlap: int) -> None:
    overlap = min(overlap, room - 1)
    example, whole = made(1, count)
    found = [*overlapping_windows(example, room, overlap)]
    assert [token for window in found for token in window.target] == whole[1:]
    for window in found:
        check(window, whole, 1)
        assert len(window.inputs) <= room
    for before, after in pairwise(found):
        assert len(before.inputs) == room
        assert len(after.inputs) - len(after.target) == min(overlap, after.target[0] - 1)


@given(context=CONTEXTS, count=st.integers(1, 90), room=ROOMS)
def test_what_is_too_long_loses_its_beginning(context: int, count: int, room: int) -> None:
    example, whole = made(context, count)
    ended = example.ending(room)
    assert [*ended.context, *ended.target] == whole[-(room + 1) :]
    assert [*ended.target] == whole[context:][-room:]
    check(ended, whole, context)


def test_a_text_is_encoded_behind_the_opening_token() -> None:
    tokenizer = toys.lm().tokenizer
    example = encode(tokenizer, "so ", "é!")
    assert example.context == (tokenizer.opening, *tokenizer.encode("so ")[0])
    assert example.target == tuple(tokenizer.encode("é!")[0]) and example.spans == ((0, 1), (0, 1), (1, 2))
    assert encode(tokenizer, "", "").inputs == (tokenizer.opening,)


TEXTS = [("so ", "the cat sat"), ("", "a dog ran over the hill"), ("one fish, ", "x")]


def models() -> dict[str, LM]:
    one, other = (toys.lm("llama", seed=seed, dtype=torch.float64) for seed in (0, 5))
    return {
        "base": one,
        "prefixed": Prefixed(one, [[0, 40, 41], [], [0, 7]]),
        "mixed": toys.mixed([one, other], [0.3, 0.7]),
        "routed": Routed([one, other, one]),
        "nested": Prefixed(toys.mixed([one, Routed([other, one, other])], [0.5, 0.5]), [[0, 40], [0], []]),
    }


@pytest.mark.parametrize("name", models())
def test_losses_are_those_of_each_example_by_itself(name: str) -> None:
    model = models()[name]
    examples = [encode(model.tokenizer, *text) for text in TEXTS]
    weights = [torch.rand(len(example.target), dtype=torch.float64) for example in examples]
    expected = []
    for row, (example, weight) in enumerate(zip(examples, weights, strict=True)):
        log_probs, _ = model.at([row]).step(torch.tensor([example.inputs]))
        nll = [-log_probs[0, len(example.context) - 1 + i, t] for i, t in enumerate(example.target)]
        expected.append((torch.stack(nll) * weight).sum() / len(nll))
    found = losses(model, examples, weights)
    assert torch.allclose(found, torch.stack(expected), atol=1e-12)
    counts = torch.tensor([11.0, 23.0, 1.0], dtype=torch.float64)
    assert torch.allclose(per_token(found, examples), (found * counts).sum() / 35)


def test_a_mixture_by_bayes_predicts_what_it_scores() -> None:
    one, other = (toys.lm("llama", seed=seed, dtype=torch.float64) for seed in (0, 5))
    model = Experts([one, other], FixedShare((0.7, 0.3)))
    example = encode(model.tokenizer, *TEXTS[0])
    (log_probs,) = model.predictions([example])
    total = of_target(log_probs, example).sum().exp()
    parts = [of_target(part.predictions([example])[0], example).sum().exp() for part in (one, other)]
    assert torch.allclose(total, 0.7 * parts[0] + 0.3 * parts[1], rtol=1e-9)
    assert torch.allclose(log_probs.exp().sum(-1), torch.ones(11, dtype=torch.float64))


def test_the_divergence_of_two_models_is_the_sum_over_the_vocabulary() -> None:
    one, other = toys.lm("llama"), toys.lm("llama", seed=5)
    examples = [encode(one.tokenizer, "so ", "the cat sat " * 4), encode(one.tokenizer, "", "x")]
    found = kl(one, other, examples, torch.float64)
    for example, nats in zip(examples, found, strict=True):
        p, q = (lm.predictions([example])[0].double() for lm in (one, other))
        expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
        assert torch.allclose(nats, expected, rtol=1e-4) and nats.dtype == torch.float64
    assert all(nats.abs().max() == 0 for nats in kl(one, one, examples[:1]))


def test_what_the_base_rules_out_costs_nothing_and_has_no_gradient() -> None:
    before = torch.tensor([0.5, 0.5, 0.0]).log()
    after = torch.tensor([0.25, 0.25, 0.5]).log().requires_grad_()
    found = divergence(before, after)
    assert found.item() == pytest.approx(torch.tensor(2.0).log().item())
    (gradient,) = torch.autograd.grad(found, after)
    assert torch.equal(gradient, torch.tensor([-0.5, -0.5, 0.0]))


def test_targets_are_picked_from_a_padded_batch() -> None:
    examples = [Example((3, 4), (5, 6)), Example((7,), (8,)), Example((1, 2), ())]
    log_probs = torch.randn(4, 5, 9, requires_grad=True)
    expected = [log_probs[0, [1, 2], [5, 6]], log_probs[1, [0], [8]], torch.zeros(0)]
    picked = of_targets(log_probs, examples)
    rows = at_targets(log_probs, examples)
    for found, row, wanted, example in zip(picked, rows, expected, examples, strict=True):
        assert torch.equal(found, wanted) and torch.equal(of_target(row, example), wanted)
    (gradient,) = torch.autograd.grad(torch.cat(rows).sum(), log_probs)
    assert gradient.sum() == 3 * 9 and gradient[0, 1:3].sum() == 2 * 9
