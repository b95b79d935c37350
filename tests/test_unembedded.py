"""KL from hidden states, some places at a time: what whole tables of log-probabilities give, in float64."""

import pytest
import torch

from uptake.lm import unembedded
from uptake.lm.capabilities import Unembedding
from uptake.lm.edited_rows import alike
from uptake.lm.scoring import divergence


@pytest.mark.parametrize("bias", [False, True])
def test_value_and_gradient_are_those_of_whole_tables(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unembedded, "PLACES", 3)
    draws = torch.Generator().manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return 3 * torch.randn(shape, generator=draws, dtype=torch.float64)

    matrix = Unembedding(some(11, 4), some(11) if bias else None)
    before, after, weights = some(8, 4), some(8, 4).requires_grad_(), some(8)
    found = unembedded.divergences_of(matrix, before, after)
    p, q = (torch.log_softmax(matrix.logits(hidden), -1) for hidden in (before, after))
    expected = divergence(p, q)
    assert float((found - expected).detach().abs().max()) <= 1e-10
    (mine,), (theirs,) = (torch.autograd.grad(weights @ value, after) for value in (found, expected))
    assert float((mine - theirs).abs().max()) <= 1e-10
    assert not unembedded.divergences_of(matrix, before, after.detach()).requires_grad


def test_rows_of_about_one_length_share_a_pass() -> None:
    lengths = [50, 3, 12, 4, 60, 13, 3]
    groups = [[lengths[place] for place in group] for group in alike(lengths)]
    assert groups == [[3, 3, 4], [12, 13], [50, 60]] and not [*alike([])]
