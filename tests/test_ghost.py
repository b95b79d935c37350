"""Ghost norms in float64: equal to a loop over units and to torch.func, for every kind of layer."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import toys
from uptake.adaptation.delta import Delta
from uptake.adaptation.privacy import layers
from uptake.adaptation.privacy.clipping import ClippedSum
from uptake.adaptation.privacy.ghost import Ghost, Unsuited
from uptake.adaptation.privacy.layers import Rows
from uptake.adaptation.trainable import All, LoRA, Named, Top, Trainable
from uptake.adaptation.transforms import Clip, Losses, gradients_of
from uptake.settings import parse

WORDS = ["the cat sat on the mat", "a dog", "xx yy xx yy xx", "the the the", "once more", "z"]
KINDS: dict[str, Trainable] = {
    "all": All(),
    "top": Top(1),
    "one matrix": Named("layers.0.mlp.down_proj"),
    "norms": Named("norm"),
    "lora": LoRA(2),
}


def opened(trainable: Trainable, shape: str = "llama") -> tuple[Any, Any]:
    """A toy in float64 with something to train on it that stands off its start."""
    lm = toys.lm(shape, dtype=torch.float64)
    private, copy = lm.trainable_copy(trainable, Delta(lm.fingerprint), torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in copy.parameters.values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return private, copy


def batch(words: Sequence[str]) -> tuple[Tensor, Tensor]:
    rows = [[0, *toys.tokenizer()(text)["input_ids"]] for text in words]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
    return ids, torch.tensor([len(row) for row in rows])


def losses(log_probs: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
    """The mean loss of each row over its own tokens."""
    own = torch.arange(1, ids.shape[1])[None] < lengths[:, None]
    nll = -log_probs[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    return (nll * own).sum(1) / own.sum(1)


def run_of(private: Any, words: Sequence[str]) -> Any:
    def run(rows: Sequence[int]) -> Tensor:
        ids, lengths = batch([words[row] for row in rows])
        return losses(private.step(ids)[0], ids, lengths)

    return run


def looped(private: Any, copy: Any, words: Sequence[str], owners: Sequence[int], norm: float) -> Any:
    """Each unit by itself, row by row, then clipped and summed."""
    total = {name: torch.zeros_like(p) for name, p in copy.parameters.items()}
    norms = []
    for unit in range(max(owners) + 1):
        own = {name: torch.zeros_like(p) for name, p in copy.parameters.items()}
        for text, owner in zip(words, owners, strict=True):
            if owner == unit:
                loss = run_of(private, [text])([0])[0]
                found = torch.autograd.grad(loss, [*copy.parameters.values()], allow_unused=True)
                for name, gradient in zip(own, found, strict=True):
                    own[name] += 0 if gradient is None else gradient
        norms.append(float(torch.stack([each.square().sum() for each in own.values()]).sum().sqrt()))
        for name in total:
            total[name] += own[name] * min(1.0, norm / norms[-1])
    return total, norms


def close(found: Any, right: Any, apart: float = 1e-6) -> bool:
    """Whether gradients agree; Llama's normalisation rounds to float32 even in float64, GPT-2's does not."""
    whole = max(float(each.abs().max()) for each in right.values())
    return all(torch.allclose(found[name], right[name], rtol=0, atol=apart * whole) for name in right)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("owners", [(0, 1, 2, 3, 4, 5), (0, 1, 0, 2, 1, 0)], ids=["documents", "users"])
def test_ghost_norms_are_those_of_each_unit_by_itself(kind: str, owners: tuple[int, ...]) -> None:
    private, copy = opened(KINDS[kind])
    right, norms = looped(private, copy, WORDS, owners, 0.5)
    ghost = Ghost(copy.module, copy.parameters)
    run = run_of(private, WORDS)
    found, measured = ghost.clipped(lambda: run(range(6)), owners, lambda n: (0.5 / n).clamp(max=1))
    assert torch.allclose(measured, torch.tensor(norms, dtype=torch.float64), rtol=1e-10)
    assert close(found, right)
    assert min(norms) > 0 and max(norms) > 0.5, "something is clipped"


@pytest.mark.parametrize("shape", ["gpt2", "neox"])
def test_the_same_in_other_architectures(shape: str) -> None:
    # GPT-2: Conv1D, biases, positions that all rows share, and a weight that is embedding and output at once.
    for trainable in (All(), LoRA(2)):
        private, copy = opened(trainable, shape)
        owners = (0, 1, 1, 2, 3, 3)
        right, norms = looped(private, copy, WORDS, owners, 0.5)
        ghost = Ghost(copy.module, copy.parameters)
        run = run_of(private, WORDS)
        found, measured = ghost.clipped(partial(run, range(6)), owners, lambda n: (0.5 / n).clamp(max=1))
        assert torch.allclose(measured, torch.tensor(norms, dtype=torch.float64), rtol=1e-11)
        assert close(found, right, 1e-12)


def test_ghost_norms_are_those_of_torch_func() -> None:
    private, copy = opened(LoRA(2))
    ids, lengths = batch(WORDS)
    values = {name: p.detach() for name, p in copy.parameters.items()}

    def loss(values: Any, ids: Tensor, length: Tensor) -> Tensor:
        out = functional_call(copy.module, values, (ids[None],), {"use_cache": False}).logits
        return losses(out.log_softmax(-1), ids[None], length[None])[0]

    each = vmap(grad(loss), (None, 0, 0))(values, ids, lengths)
    right = torch.stack([g.flatten(1).square().sum(1) for g in each.values()]).sum(0).sqrt()
    ghost = Ghost(copy.module, copy.parameters)
    run = run_of(private, WORDS)
    found, measured = ghost.clipped(lambda: run(range(6)), range(6), lambda n: torch.ones_like(n))
    assert torch.allclose(measured, right, rtol=1e-10)
    assert close(found, {name: gradient.sum(0) for name, gradient in each.items()})


@given(
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(0, 10**6),
    st.booleans(),
)
@settings(max_examples=60)
def test_both_ways_of_a_matrix_agree(
    count: int, time: int, into: int, out: int, seed: int, shared: bool
) -> None:
    """Pairs of places or the matrix itself: whichever the sizes choose, it is the gradient's norm."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(count, time, into, generator=generator, dtype=torch.float64)
    b = torch.randn(count, time, out, generator=generator, dtype=torch.float64)
    owners = tuple(min(row, 1) if shared else row for row in range(count))
    rows = Rows(owners)
    ids = torch.randint(0, 3, (count, time), generator=generator)
    formed = torch.zeros(rows.count, out, into, dtype=torch.float64)
    looked = torch.zeros(rows.count, 3, out, dtype=torch.float64)
    for row, owner in enumerate(owners):
        formed[owner] += b[row].T @ a[row]
        looked[owner].index_add_(0, ids[row], b[row])
    assert torch.allclose(layers.matrix(a, b, rows), formed.square().sum((1, 2)))
    assert torch.allclose(layers.embedding(ids, b, rows), looked.square().sum((1, 2)))
    assert torch.allclose(layers.embedding(ids, b, rows, 1), looked[:, [0, 2]].square().sum((1, 2)))
    summed = torch.zeros(rows.count, out, dtype=torch.float64).index_add_(0, torch.tensor(owners), b.sum(1))
    assert torch.allclose(layers.bias(b, rows), summed.square().sum(1))


def test_a_clipped_sum_is_the_clip_of_each_document() -> None:
    private, copy = opened(LoRA(2))
    summing = ClippedSum(copy.module, copy.parameters, 0.7)
    run = run_of(private, WORDS)
    for owners, rows in (((0, 1, 1), (0, 1, 2)), ((0,), (3,)), ((0, 1), (4, 5))):
        summing.add(lambda some, rows=rows: run([rows[each] for each in some]), owners)  # type: ignore[misc]
    together = summing.take()
    documents = ["a", "b", "b", "c", "d", "e"]
    right = gradients_of(Losses(run(range(6)), documents), copy.parameters, (Clip(0.7, per_document=True),))
    assert not summing.unsuited and close(together, right, 2e-4)
    # A unit too long for one pass is clipped by its whole gradient.
    summing.add_one([lambda: run([0]), lambda: run([1, 2])])
    whole, _ = looped(private, copy, WORDS[:3], (0, 0, 0), 0.7)
    assert close(summing.take(), whole)
    # Nothing summed is a gradient of zeros: a step takes noise alone.
    assert not any(each.any() for each in summing.take().values())


def test_without_a_clip_it_is_the_plain_sum() -> None:
    private, copy = opened(LoRA(2))
    run = run_of(private, WORDS)
    summing = ClippedSum(copy.module, copy.parameters, float("inf"))
    plain = gradients_of(Losses(run(range(6)), [*range(6)]), copy.parameters)
    summing.add(run, range(6))
    found = summing.take()
    assert all(torch.equal(found[name], plain[name]) for name in plain), "bit for bit"


def test_a_unit_that_is_no_number_adds_nothing() -> None:
    private, copy = opened(LoRA(2))
    run = run_of(private, WORDS)

    def spoilt(rows: Sequence[int]) -> Tensor:
        return run(rows) * torch.tensor([float("nan") if row == 2 else 1.0 for row in rows])

    summing = ClippedSum(copy.module, copy.parameters, 0.7)
    summing.add(spoilt, range(6))
    found = summing.take()
    right, _ = looped(private, copy, [*WORDS[:2], *WORDS[3:]], range(5), 0.7)
    assert close(found, right)


class Twice(nn.Module):
    """A layer that runs twice, or a weight that is used beside its layer."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.inner = how, nn.Linear(3, 3, dtype=torch.float64)
        self.other = nn.Bilinear(3, 3, 1, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(x)
        if self.how == "runs":
            out = self.inner(out)
        if self.how == "beside":
            out = out @ self.inner.weight
        return out


def test_what_no_norm_is_known_of_is_refused_and_done_one_by_one() -> None:
    x = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(Unsuited, match="other is a Bilinear, of which no norm is known"):
        Ghost(module := Twice(""), dict(module.named_parameters()))
    for how, why in (("runs", "inner runs more than once"), ("beside", "used outside of its layer")):
        module = Twice(how)
        parameters = dict(module.inner.named_parameters(prefix="inner"))

        def run(rows: Sequence[int], module: nn.Module = module) -> Tensor:
            return module(x[[*rows]]).square().sum((1, 2))

        ghost = Ghost(module, parameters)
        with pytest.raises(Unsuited, match=why):
            ghost.clipped(lambda run=run: run([0, 1]), (0, 1), torch.ones_like)  # type: ignore[misc]
        ghost.close()
        summing = ClippedSum(module, parameters, 0.5)
        summing.add(run, (0, 1))
        assert why in summing.unsuited
        right = gradients_of(Losses(run([0, 1]), "ab"), parameters, (Clip(0.5, per_document=True),))
        assert close(summing.take(), right, 1e-5)


def test_taps_leave_no_trace_where_nothing_is_watched() -> None:
    private, copy = opened(LoRA(2))
    ids, _ = batch(WORDS)
    before = private.step(ids)[0]
    ghost = Ghost(copy.module, copy.parameters)
    assert torch.equal(private.step(ids)[0], before)
    with ghost.watching(range(6)):
        assert torch.equal(private.step(ids)[0], before)


@pytest.mark.parametrize("kind", ["ia3", "prompt", "compacter", "tarp"])
def test_every_other_kind_is_clipped_just_so(kind: str) -> None:
    """Kinds whose numbers a hook uses have no ghost norm: each unit by itself, told, with the same result."""
    text = {"prompt": "prompt(tokens=3)", "compacter": "compacter(n=2,reduction=4)"}.get(kind, kind)
    private, copy = opened(parse(Trainable, text, "trainable"))
    run = run_of(private, WORDS)
    owners = (0, 1, 1, 2, 2, 2)
    right, norms = looped(private, copy, WORDS, owners, 0.05)
    summing = ClippedSum(copy.module, copy.parameters, 0.05)
    summing.add(run, owners)
    found = summing.take()
    assert max(norms) > 0.05 and close(found, right, 2e-4)
    assert summing.unsuited or kind in ("compacter", "tarp")
