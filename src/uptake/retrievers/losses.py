"""Losses over a set of passages: what a retriever is to prefer, by a reader's word or by a marked passage.

Pure functions. `scores` are the retriever's, [questions, passages], -inf where a question has fewer
passages; the retriever's distribution, the prior, is their softmax. What the reader says is a constant. Each
returns one loss a question, [questions]; its gradient in the scores is the prior less a posterior.
"""

import torch
from torch import Tensor


def prior(scores: Tensor) -> Tensor:
    """Return log p(passage | question), [questions, passages]."""
    return scores.log_softmax(1)


def emdr2(scores: Tensor, answer: Tensor) -> Tensor:
    """Return -log sum_z p(z | q) p(a | q, z), as EMDR2 and RAG-sequence have it (Sachan 2021, Lewis 2020).

    `answer` is the reader's log-probability of the whole answer after each passage, [questions, passages].
    """
    return -(prior(scores) + answer).logsumexp(1)


def emdr(scores: Tensor, tokens: Tensor) -> Tensor:
    """Return -sum_t log sum_z p(z | q) p(a_t | q, z, a_<t), as the code of EMDR2 and Atlas has it.

    `tokens` is [questions, passages, tokens]: the reader's log-probability of each token of the answer, 0
    where the answer has ended.
    """
    return -(prior(scores)[:, :, None] + tokens).logsumexp(1).sum(1)


def divergence(scores: Tensor, target: Tensor) -> Tensor:
    """Return KL(target || prior); `target` is a distribution over the passages, [questions, passages]."""
    known = target > 0
    log_ratio = torch.where(known, target, 1).log() - torch.where(known, prior(scores), 0)
    return torch.where(known, target * log_ratio, 0).sum(1)


def pdist(scores: Tensor, mean_token: Tensor, temperature: float) -> Tensor:
    """Return Atlas's perplexity distillation (Izacard et al. 2022): KL to softmax(mean_token / temperature).

    `mean_token` is the mean log-probability of a token of the answer after each passage, -inf for none.
    """
    return divergence(scores, (mean_token / temperature).softmax(1))


def without_each(answer: Tensor) -> Tensor:
    """Return log of the mean of p(a | q, z) over all passages but each, [questions, passages]; -inf for none.

    Where a question has one passage alone, nothing is left without it: that is -inf too.
    """
    count = answer.shape[1]
    others = ~torch.eye(count, dtype=torch.bool, device=answer.device)
    left = torch.where(others, answer[:, None, :], -torch.inf).logsumexp(2)
    known = answer > -torch.inf
    left = left - (known.sum(1, keepdim=True) - 1).clamp(min=1).to(answer).log()
    return torch.where(known, left, -torch.inf)


def loop(scores: Tensor, answer: Tensor, lengths: Tensor, temperature: float) -> Tensor:
    """Return Atlas's leave-one-out distillation: KL to softmax(loss without the passage / temperature).

    The paper takes passage z from all that its reader, Fusion-in-Decoder, sees at once. Here the reader is
    the even mixture of what it says after each passage: without z the answer costs -`without_each`, in nats a
    token.
    `lengths` is how many tokens each answer has, [questions].
    """
    known = answer > -torch.inf
    # A passage without which no other is left is worth all there is: the softmax of one.
    cost = -without_each(answer).clamp(min=-1e4) / lengths[:, None]
    return divergence(scores, torch.where(known, cost / temperature, -torch.inf).softmax(1))


def adist(scores: Tensor, attention: Tensor, temperature: float) -> Tensor:
    """Return Atlas's attention distillation: KL to softmax(attention / temperature).

    `attention` is the reader's attention to each passage from the answer's tokens, weighed by the norms of
    its values, [questions, passages]; -inf for none.
    """
    return divergence(scores, (attention / temperature).softmax(1))


def contrastive(scores: Tensor, gold: Tensor) -> Tensor:
    """Return -log of the prior's weight on the passages marked as right: supervised tuning.

    `gold` is [questions, passages], True for those; a question without any has loss 0.
    """
    marked = torch.where(gold, prior(scores), -torch.inf)
    return torch.where(gold.any(1), -marked.logsumexp(1), torch.zeros_like(scores[:, 0]))
