"""Deltas: algebra, attaching without touching the base, disk, and what moves."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import toys
from uptake.adaptation.delta import Delta, LowRank, fingerprint, skeleton
from uptake.adaptation.inner_loop import gradient_descent, token_loss
from uptake.adaptation.optimizers import SGD, AdamW, Optimizer
from uptake.adaptation.trainable import All, LoRA, Named, Top, Trainable
from uptake.adaptation.trainable.opening import open_weights
from uptake.adaptation.trainable.places import block_matrices
from uptake.adaptation.transforms import Losses, chain
from uptake.errors import BadInput, Damaged, Mismatch

NAME = "model.layers.0.mlp.up_proj.weight"


def dense(seed: int, base: str = "b") -> Delta:
    return Delta.dense(
        base, {NAME: torch.randn(4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)}
    )


def low(seed: int, rank: int = 2, transposed: bool = False) -> Delta:
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(4, rank, generator=generator, dtype=torch.float64)
    down = torch.randn(rank, 3, generator=generator, dtype=torch.float64)
    return Delta.of("b", {NAME: LowRank(up, down, 0.5, transposed)}, "lora")


deltas = st.builds(lambda kind, seed: kind(seed), st.sampled_from([dense, low]), st.integers(0, 99))


@given(deltas, deltas, st.floats(-3, 3))
def test_algebra_is_that_of_the_differences(one: Delta, other: Delta, factor: float) -> None:
    left, right = one.difference(NAME), other.difference(NAME)
    assert torch.allclose((one + other).difference(NAME), left + right)
    assert torch.allclose((one - other).difference(NAME), left - right)
    assert torch.allclose((one * factor).difference(NAME), left * factor)
    assert torch.allclose((one - one).difference(NAME), torch.zeros_like(left), atol=1e-12)


def test_minus_itself_is_exactly_nothing() -> None:
    assert not (dense(1) + -dense(1)).difference(NAME).any()


def test_a_transposed_product_fits_the_stored_shape() -> None:
    assert torch.equal(low(1, transposed=True).difference(NAME), low(1).difference(NAME).T)
    with pytest.raises(Mismatch, match="orientation"):
        low(1) + low(1, transposed=True)
    with pytest.raises(Mismatch, match="load the model it was made on"):
        dense(1) + dense(1, base="other")


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_a_skeleton_shares_all_that_did_not_move_and_keeps_ties(shape: str) -> None:
    module = toys.module(shape)
    name, old = next(iter(module.named_parameters()))
    made = skeleton(module, {name: torch.nn.Parameter(old.detach() + 1)})
    for other, parameter in made.named_parameters():
        assert (parameter is dict(module.named_parameters())[other]) == (other != name)
    tied = module.get_output_embeddings().weight is module.get_input_embeddings().weight
    assert (made.get_output_embeddings().weight is made.get_input_embeddings().weight) == tied
    assert fingerprint(made) != fingerprint(module) == fingerprint(toys.module(shape))


class Odd(torch.nn.Module):
    """Has what a module may have beside parameters: another's module, a list, a hook, a shared dictionary."""

    def __init__(self, other: torch.nn.Module, shared: dict[str, int]) -> None:
        super().__init__()
        self.own, self.nothing = torch.nn.Linear(2, 2), None
        self.register_buffer("count", torch.zeros(1), persistent=False)
        self.seen, self.shared = [other], shared
        self.own.register_forward_hook(lambda *_: None)


class Counted(Odd):
    """Says itself how it is copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Counted":
        made = Counted(self.seen[0], self.shared)
        made.copies = getattr(self, "copies", 0) + 1
        return made


def test_a_skeleton_of_odd_modules_is_what_deepcopy_makes() -> None:
    inner, shared = torch.nn.Linear(2, 2), {"a": 1}
    module = torch.nn.ModuleList([inner, Odd(inner, shared), Odd(inner, shared), torch.nn.GRU(2, 2)])
    module.append(Counted(inner, shared))
    made: Any = skeleton(module)
    assert made[1].seen[0] is made[0] is not inner and made[2].seen[0] is made[0]
    assert made[1].shared is made[2].shared and made[1].shared == shared and made[1].shared is not shared
    assert made[1].own.weight is module[1].own.weight and made[1].count is module[1].count
    assert made[4].copies == 1
    expected = copy.deepcopy(module)
    for one, other in zip(made.modules(), expected.modules(), strict=True):
        assert type(one) is type(other) and list(vars(one)) == list(vars(other))
    # What is put on the copy leaves the original alone.
    made[1].own.register_forward_hook(lambda *_: None)
    made[1].register_buffer("more", torch.zeros(1), persistent=False)
    made[0].seen_by = made[1]
    assert len(module[1].own._forward_hooks) == 1 and not hasattr(module[1], "more")
    assert module[1]._non_persistent_buffers_set == {"count"} and not hasattr(inner, "seen_by")


def test_a_start_from_a_file_trains_on_where_the_module_is() -> None:
    module = toys.module()
    start = Delta.dense("base", {name: torch.ones_like(value) for name, value in module.named_parameters()})
    opened = open_weights(module.to("meta"), [name for name, _ in module.named_parameters()], start)
    assert {each.device.type for each in opened.parameters.values()} == {"meta"}


@pytest.mark.parametrize("trainable", [All(), Top(1), Named(".1.mlp."), LoRA(rank=3)], ids=str)
@pytest.mark.parametrize("shape", toys.SHAPES)
def test_what_was_trained_is_what_the_delta_puts_back(shape: str, trainable: Trainable) -> None:
    lm = toys.lm(shape, dtype=torch.float64)
    base = fingerprint(lm.module)
    ids = torch.tensor([[0, 5, 6, 7, 5, 6, 7, 9]])
    private, opened = lm.trainable_copy(trainable, Delta(lm.fingerprint), torch.Generator().manual_seed(0))

    def losses(batch: torch.Tensor) -> Losses:
        return Losses.one(token_loss(private.step(batch[:, :-1])[0], batch[:, 1:]), "")

    with torch.no_grad():
        assert torch.equal(private.step(ids)[0], lm.step(ids)[0]), "nothing has moved yet"
    gradient_descent(losses, opened.parameters, [ids, ids], SGD(0.1), chain(1.0))
    with torch.no_grad():
        trained, again = private.step(ids)[0], lm.overlay(opened.delta()).step(ids)[0]
    assert torch.allclose(trained, again, atol=1e-12)
    assert not torch.allclose(again, lm.step(ids)[0], atol=1e-3)
    assert fingerprint(lm.module) == base
    if isinstance(trainable, Top):
        assert all(".1." in name for name in opened.delta().names)
    if isinstance(trainable, Named):
        assert opened.delta().names == {name for name, _ in lm.module.named_parameters() if ".1.mlp." in name}
    if isinstance(trainable, LoRA):
        assert opened.delta().names == block_matrices(lm.module).keys()


def test_a_bfloat16_base_still_takes_small_steps() -> None:
    lm = toys.lm(dtype=torch.bfloat16)
    _, opened = lm.trainable_copy(All(), Delta(lm.fingerprint), torch.Generator())
    assert all(parameter.dtype == torch.float32 for parameter in opened.parameters.values())
    name = next(iter(opened.parameters))
    with torch.no_grad():
        opened.parameters[name].add_(1e-6)
    moved = lm.overlay(opened.delta()).module.get_parameter(name)
    assert torch.allclose(moved - lm.module.get_parameter(name).float(), torch.tensor(1e-6), rtol=0.2)


@pytest.mark.parametrize("optimizer", [AdamW(1e-2), SGD(0.1, momentum=0.9)], ids=str)
def test_the_inner_loop_goes_on_from_its_memory(optimizer: Optimizer) -> None:
    def run(*parts: list[float], forget: bool = False) -> torch.Tensor:
        weight = torch.nn.Parameter(torch.ones(3))
        memory: dict[str, torch.Tensor] = {}
        for part in parts:
            before = {} if forget else memory
            memory = gradient_descent(
                lambda x: Losses.one((weight - x).pow(2).sum(), ""),
                {"w": weight},
                part,
                optimizer,
                (),
                before,
            )
        return weight.detach()

    assert torch.equal(run([1.5, 2.0, -3.0]), run([1.5], [2.0, -3.0]))
    assert not torch.equal(run([1.5, 2.0, -3.0]), run([1.5], [2.0, -3.0], forget=True))


def test_token_weights_scale_the_step_and_not_the_mean() -> None:
    log_probs = torch.log_softmax(torch.randn(2, 5, 7, dtype=torch.float64), -1)
    targets, weights = torch.randint(0, 7, (2, 5)), torch.rand(2, 5, dtype=torch.float64)
    nll = torch.nn.functional.nll_loss(log_probs.flatten(0, 1), targets.flatten(), reduction="none")
    assert torch.allclose(token_loss(log_probs, targets), nll.mean())
    assert torch.allclose(token_loss(log_probs, targets, weights), (nll * weights.flatten()).sum() / 10)
    assert torch.allclose(
        token_loss(log_probs, targets, weights / 2), token_loss(log_probs, targets, weights) / 2
    )


def test_disk_round_trip_and_what_is_refused(tmp_path: Path) -> None:
    delta, path = dense(1) + low(2), tmp_path / "delta"
    delta.save(path)
    loaded = Delta.load(path, "b")
    assert torch.equal(loaded.difference(NAME), delta.difference(NAME)) and loaded.names == delta.names
    with pytest.raises(Mismatch, match="belongs to base model b"):
        Delta.load(path, "other")
    with pytest.raises(BadInput, match="no delta at"):
        Delta.load(tmp_path / "none", "b")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(Damaged, match="restore it"):
        Delta.load(path, "b")
    lm = toys.lm()
    with pytest.raises(Mismatch, match="lacks"):
        lm.overlay(Delta.dense(lm.fingerprint, {"no.such": torch.zeros(1)}))


@pytest.mark.parametrize("same", [True, False], ids=["one tensor", "overlapping views"])
def test_parts_that_share_memory_are_saved_each_in_full(tmp_path: Path, same: bool) -> None:
    memory = torch.arange(15.0).reshape(5, 3)
    values = {"a": memory[:4], "b": memory[:4] if same else memory[1:], "c": memory.T}
    Delta.dense("b", values).save(tmp_path / "delta")
    loaded = Delta.load(tmp_path / "delta", "b")
    assert all(torch.equal(loaded.difference(name), wanted) for name, wanted in values.items())
    loaded.difference("a").zero_()
    assert torch.equal(loaded.difference("b"), values["b"])


def test_moves_that_do_not_fit_say_so() -> None:
    lm = toys.lm()
    start = Delta(lm.fingerprint)
    for trainable, words in (
        (Top(0), "use 1 to 2"),
        (Top(3), "the model has 2"),
        (Named("no.such"), "no weight is called so"),
    ):
        with pytest.raises(BadInput, match=words):
            lm.trainable_copy(trainable, start, torch.Generator())
    with pytest.raises(BadInput, match="1 or more"):
        LoRA(0)
    with pytest.raises(BadInput, match="finite"):
        AdamW(float("nan"))
