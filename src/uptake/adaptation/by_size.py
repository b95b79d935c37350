"""How large a model is, and where defaults take it for a small one: the one place of that rule.

With SmolLM2-135M the last 4 of 30 blocks cost a fifth of all weights (0.63 against 3.14 CPU seconds a passage
of 1,024 characters), need a fifth of the memory beyond the model's own, and gained as much or more:
docs/tuning.md has the figures.
"""

from torch import nn

SMALL = 50_000_000  # weights up to which a model counts as small
BLOCKS = 4  # that are trained of a larger one


def weights_of(module: nn.Module) -> int:
    """Return how many weights a model has; tied ones count once."""
    return sum(parameter.numel() for parameter in module.parameters())
