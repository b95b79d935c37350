"""Training on the few examples of a task, all in each step, and what a task looks like to the base."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from uptake.adaptation.inner_loop import GradientDescent, check_loss
from uptake.lm.base import LM
from uptake.lm.capabilities import HiddenStates, capability
from uptake.lm.examples import Example, padded
from uptake.lm.scoring import losses

ON_CPU, ELSEWHERE = 1 << 22, 1 << 26  # log-probabilities of one pass
LossesOf = Callable[[Sequence[Example]], Tensor]


def in_passes(lm: LM, examples: Sequence[Example]) -> list[list[int]]:
    """Return which examples share a pass: places of like length, of not too many log-probabilities."""
    most = max(1, (ON_CPU if lm.device.type == "cpu" else ELSEWHERE) // len(lm.tokenizer))
    passes: list[list[int]] = []
    for place in sorted(range(len(examples)), key=lambda place: len(examples[place].inputs)):
        length = len(examples[place].inputs)
        if passes and length * (len(passes[-1]) + 1) <= most:
            passes[-1].append(place)
        else:
            passes.append([place])
    return passes


def descend(
    lm: LM,
    examples: Sequence[Example],
    descent: GradientDescent,
    steps: int,
    losses_of: LossesOf | None = None,
    goes_on: Callable[[], bool] = lambda: True,
) -> int:
    """Take `steps` steps, each on the mean loss of all examples, [examples]; return how many were taken.

    `losses_of` gives the loss of each example, that of its target a token if left out. Ends early where
    `goes_on` says so. Raises Diverged.
    """
    found = losses_of or (lambda some: losses(lm, some))
    passes, parameters = in_passes(lm, examples), list(descent.parameters.values())
    for step in range(steps):
        if not goes_on():
            return step
        total: list[Tensor | None] = [None] * len(parameters)
        for places in passes:
            loss = found([examples[place] for place in places]).sum() / len(examples)
            check_loss(loss)
            own = torch.autograd.grad(loss, parameters, allow_unused=True)
            total = [
                old if new is None else new if old is None else old + new
                for old, new in zip(total, own, strict=True)
            ]
        descent.apply(total)
    return steps


def task_vector(lm: LM, examples: Sequence[Example]) -> Tensor:
    """Return what the base makes of a task's examples, [width]: the mean of its last hidden states, scaled.

    The mean is over tokens, then over examples; scaled to mean 0 and variance 1.
    """
    base, means = capability(lm, HiddenStates), []
    with torch.no_grad():
        for places in in_passes(lm, examples):
            texts = [(*examples[place].context, *examples[place].target) for place in places]
            hidden, _ = base.hidden(padded(texts).to(lm.device))
            means += [hidden[row, : len(text)].mean(0) for row, text in enumerate(texts)]
        mean = torch.stack(means).mean(0)
    return functional.layer_norm(mean, mean.shape)
