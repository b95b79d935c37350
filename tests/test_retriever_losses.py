"""Losses over a set of passages: what they are, written out, and gradients: prior less posterior."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uptake.retrievers import losses


def made(seed=0, questions=3, passages=4, tokens=3):
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randn(questions, passages, generator=draw, dtype=torch.float64) * 2
    log_probs = -torch.rand(questions, passages, tokens, generator=draw, dtype=torch.float64) * 4
    return scores.requires_grad_(), log_probs


def gradient(loss, scores):
    return torch.autograd.grad(loss.sum(), scores)[0]


@given(st.integers(0, 1000))
def test_the_answer_s_marginal_is_the_sum_over_passages(seed):
    scores, tokens = made(seed)
    found = losses.emdr2(scores, tokens.sum(2))
    for row in range(3):
        shares = scores[row].softmax(0)
        whole = sum(shares[k] * tokens[row, k].sum().exp() for k in range(4))
        torch.testing.assert_close(found[row], -whole.log())


@given(st.integers(0, 1000))
def test_a_token_s_marginal_is_the_sum_over_paths_of_passages(seed):
    scores, tokens = made(seed, questions=1, passages=3)
    shares = scores[0].softmax(0)
    whole = sum(
        torch.stack([shares[k] * tokens[0, k, t].exp() for t, k in enumerate(path)]).prod()
        for path in itertools.product(range(3), repeat=3)
    )
    torch.testing.assert_close(losses.emdr(scores, tokens)[0], -whole.log())


@given(st.integers(0, 1000))
def test_gradients_are_the_prior_less_a_posterior(seed):
    scores, tokens = made(seed)
    answer, lengths = tokens.sum(2), torch.full((3,), 3.0, dtype=torch.float64)
    prior = scores.softmax(1)
    posterior = (scores.log_softmax(1) + answer).softmax(1)
    torch.testing.assert_close(gradient(losses.emdr2(scores, answer), scores), prior - posterior)
    by_token = (scores.log_softmax(1)[:, :, None] + tokens).softmax(1)
    torch.testing.assert_close(
        gradient(losses.emdr(scores, tokens), scores), (prior[:, :, None] - by_token).sum(2)
    )
    target = (tokens.mean(2) / 0.3).softmax(1)
    torch.testing.assert_close(gradient(losses.pdist(scores, tokens.mean(2), 0.3), scores), prior - target)
    attention = torch.rand(3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(
        gradient(losses.adist(scores, attention, 0.1), scores), prior - (attention / 0.1).softmax(1)
    )
    left_out = torch.stack([answer[:, [j for j in range(4) if j != k]].exp().mean(1) for k in range(4)], 1)
    target = (-left_out.log() / 3 / 0.3).softmax(1)
    torch.testing.assert_close(gradient(losses.loop(scores, answer, lengths, 0.3), scores), prior - target)
    gold = torch.tensor([[True, False, True, False], [False] * 4, [False, False, False, True]])
    right = torch.where(gold, prior, 0)
    right = torch.where(gold.any(1, keepdim=True), right / right.sum(1, keepdim=True).clamp(min=1e-30), prior)
    torch.testing.assert_close(gradient(losses.contrastive(scores, gold), scores), prior - right)


def test_every_loss_s_gradient_is_that_of_differences():
    scores, tokens = made(5, questions=2)
    answer, lengths = tokens.sum(2), torch.full((2,), 3.0, dtype=torch.float64)
    gold = torch.tensor([[True, False, False, True], [False, True, False, False]])
    for loss in (
        lambda s: losses.emdr2(s, answer),
        lambda s: losses.emdr(s, tokens),
        lambda s: losses.pdist(s, tokens.mean(2), 0.5),
        lambda s: losses.loop(s, answer, lengths, 0.5),
        lambda s: losses.adist(s, answer, 0.5),
        lambda s: losses.contrastive(s, gold),
    ):
        assert torch.autograd.gradcheck(loss, (scores,))


@pytest.mark.parametrize("loss", ["emdr2", "emdr", "pdist", "loop", "adist", "contrastive"])
def test_passages_that_are_not_there_change_nothing(loss):
    scores, tokens = made(2)
    wider = torch.cat([scores, torch.full((3, 2), -torch.inf, dtype=torch.float64)], 1)
    none = torch.full((3, 2), -torch.inf, dtype=torch.float64)
    lengths = torch.full((3,), 3.0, dtype=torch.float64)
    gold = torch.tensor([[True, False, False, False]] * 3)

    def of(s, answer, by_token, marked):
        return {
            "emdr2": lambda: losses.emdr2(s, answer),
            "emdr": lambda: losses.emdr(s, by_token),
            "pdist": lambda: losses.pdist(s, answer / 3, 0.5),
            "loop": lambda: losses.loop(s, answer, lengths, 0.5),
            "adist": lambda: losses.adist(s, answer, 0.5),
            "contrastive": lambda: losses.contrastive(s, marked),
        }[loss]()

    padded = torch.cat([tokens, torch.zeros(3, 2, 3, dtype=torch.float64)], 1)
    marked = torch.cat([gold, torch.zeros(3, 2, dtype=torch.bool)], 1)
    few = of(scores, tokens.sum(2), tokens, gold)
    more = of(wider, torch.cat([tokens.sum(2), none], 1), padded, marked)
    torch.testing.assert_close(few, more)
    torch.testing.assert_close(gradient(few, scores), gradient(more, scores))


def test_a_single_passage_teaches_nothing():
    scores, tokens = made(3, questions=2, passages=1)
    answer, lengths = tokens.sum(2), torch.full((2,), 3.0, dtype=torch.float64)
    for loss in (
        losses.emdr2(scores, answer),
        losses.emdr(scores, tokens),
        losses.pdist(scores, answer, 0.5),
        losses.loop(scores, answer, lengths, 0.5),
        losses.contrastive(scores, torch.tensor([[True], [True]])),
    ):
        assert torch.equal(gradient(loss, scores), torch.zeros_like(scores))
