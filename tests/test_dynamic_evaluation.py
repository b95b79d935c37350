"""Dynamic evaluation: its steps by hand, its statistics, and what it makes of a text that repeats itself."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import toys
from uptake import api, methods
from uptake.adaptation.gradient_statistics import GradientStatistics
from uptake.adaptation.optimizers import RMS, SGD, AdamW, Optimizer
from uptake.adaptation.tensors import NetworkAbout, to_metadata, write_tensors
from uptake.adaptation.token_weights import Spans, TokenWeights
from uptake.adaptation.trainable import LoRA, Top
from uptake.errors import BadInput, Mismatch
from uptake.evaluation.engine import evaluate
from uptake.evaluation.plan import Plan
from uptake.evaluation.protocols.running import Running
from uptake.lm.base import LM, Segment
from uptake.methods.contract.learned import TrainingData
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.contract.spending import Budget
from uptake.methods.contract.weight_state import WeightState
from uptake.methods.dynamic_evaluation import GradientCounting, spec
from uptake.methods.finetune import Finetune
from uptake.text.types import Document, Found, Passage
from uptake.train import Training, train

TEXT = "the cat sat on the mat and a dog ran over the hill to see what the cat saw there, and back."
MATERIAL = TrainingData((Document("a", TEXT), Document("b", TEXT[::-1])))


EVEN = RMS(0.1, decay=0.1, statistics="even")


def dynamic(**settings: Any) -> Finetune:
    """Return dynamic evaluation under other settings."""
    return replace(spec.method, **settings)


def kept(lm: LM, statistics: GradientStatistics, path: Path) -> str:
    GradientCounting().save(statistics, lm, path)
    return str(path)


def running(method: Finetune, lm: LM, text: str = TEXT, size: int = 10) -> tuple[torch.Tensor, WeightState]:
    state, found = method.init(lm), []
    for start in range(0, len(text), size):
        segment = Segment(text[start : start + size], text[max(0, start - 20) : start])
        (scores,), (state,) = method.read([state], lm, [segment], Context())
        found.append(scores.log_probs)
    return torch.cat(found), state


def gradients(module: Any, inputs: Sequence[int], targets: Sequence[int]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the gradients of the mean loss of the last positions, and no trace in the module."""
    module.requires_grad_(True)
    logits = module(torch.tensor([inputs])).logits[0, -len(targets) :]
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(targets))
    names = dict(module.named_parameters())
    found = torch.autograd.grad(loss, list(names.values()))
    module.requires_grad_(False)
    return {name: gradient.numpy().copy() for name, gradient in zip(names, found, strict=True)}


def test_two_steps_by_hand(tmp_path: Path) -> None:
    lm = toys.lm(dtype=torch.float64)
    statistics = GradientCounting().build(lm).double()
    statistics.add([torch.rand_like(p) + 0.1 for p in lm.module.parameters()])
    path = kept(lm, statistics, tmp_path / "statistics")
    method = dynamic(optimizer=RMS(0.01, decay=0.4, epsilon=1e-3, statistics=path), own_prefix=False)
    first, second = lm.tokenizer.encode("the cat ")[0], lm.tokenizer.encode("sat on")[0]
    state, context = method.init(lm), Context()
    for text, before in (("the cat ", ""), ("sat on", "the cat ")):
        _, (state,) = method.read([state], lm, [Segment(text, before)], context)
    assert (context.ledger(0).steps, context.ledger(0).tokens_trained) == (2, 14)

    start = {name: p.numpy().copy() for name, p in lm.module.named_parameters()}
    rms = {name: statistics.rms(name).numpy() for name in start}
    mean = sum(each.sum() for each in rms.values()) / sum(each.size for each in rms.values())
    at, module = {name: each.copy() for name, each in start.items()}, toys.module(dtype=torch.float64)
    for inputs, targets in (([0, *first[:-1]], first), ([0, *first, *second[:-1]], second)):
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(torch.from_numpy(at[name]))
        found = gradients(module, inputs, targets)
        for name in at:
            pull = np.minimum(0.4 * rms[name] / mean, 1.0) * (start[name] - at[name])
            at[name] = at[name] + pull - 0.01 * found[name] / (rms[name] + 1e-3)
    for name in at:
        assert np.allclose(state.delta.difference(name).numpy(), at[name] - start[name], atol=1e-12)


@dataclass(frozen=True)
class Vowels(TokenWeights):
    """Vowels count three times, spaces not at all."""

    def of(self, passage: Passage, spans: Spans, before: Sequence[Passage] = ()) -> torch.Tensor:
        letters = [passage.text[start:end] for start, end in spans]
        return torch.tensor([0.0 if letter == " " else 1.0 + 2.0 * (letter in "aeiou") for letter in letters])


def test_token_weights_say_what_is_learnt_and_not_what_is_scored() -> None:
    lm = toys.lm(dtype=torch.float64)
    plain = dynamic(optimizer=SGD(0.1), own_prefix=False, chunk_tokens=8)
    method = replace(plain, token_weights=Vowels())
    (scores,), (state,) = method.read([method.init(lm)], lm, [Segment("the cat", "a ")], Context())
    assert torch.equal(scores.log_probs, lm.score([Segment("the cat", "a ")])[0].log_probs)

    before, ids = (lm.tokenizer.encode(text)[0] for text in ("a ", "the cat"))
    module = toys.module(dtype=torch.float64)
    logits = module(torch.tensor([[0, *before, *ids[:-1]]])).logits[0, -len(ids) :]
    nll = torch.nn.functional.cross_entropy(logits, torch.tensor(ids), reduction="none")
    (nll * torch.tensor([1.0, 1, 3, 0, 1, 3, 1])).mean().backward()
    for name, parameter in module.named_parameters():
        assert torch.allclose(state.delta.difference(name), -0.1 * parameter.grad, atol=1e-12)  # type: ignore[operator]

    # A piece without any weight is no step.
    context = Context()
    method.adapt([method.init(lm)], lm, [Evidence.of("the cat " + " " * 8 + "on a mat")], context)
    assert (context.ledger(0).steps, context.ledger(0).tokens_trained) == (2, 16)
    # The weights of a second piece are those of its own tokens.
    passages = Passage(1, "the cat "), Passage(2, "on a mat", prompt="the cat ")
    parts = Evidence(Found(passages, (0.0, 0.0)))
    (whole,), (apart,) = (
        method.adapt([method.init(lm)], lm, [found], Context())
        for found in (Evidence.of("the cat on a mat"), parts)
    )
    assert all(
        torch.equal(moved, apart.delta.difference(name)) for name, moved in whole.delta.differences.items()
    )


RULES: list[Optimizer] = [SGD(0.0), AdamW(0.0, weight_decay=0.0), RMS(0.0, decay=0.3, statistics="even")]


@pytest.mark.parametrize("optimizer", RULES, ids=lambda optimizer: type(optimizer).__name__)
def test_a_rate_of_zero_is_the_static_model_bit_for_bit(optimizer: Optimizer) -> None:
    method = dynamic(optimizer=optimizer)
    way = replace(methods.find("dynamic-evaluation"), method=method)
    plan = Plan({"base": methods.find("base"), "still": way}, Running(12, 30))
    rows = evaluate(toys.lm(), plan, [Document("a", TEXT), Document("b", TEXT[7:60])]).rows
    assert [row.bits for row in rows if row.method == "still"] == [
        row.bits for row in rows if row.method == "base"
    ]
    assert all(row.steps >= 4 for row in rows if row.method == "still")


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_scoring_and_taking_in_one_pass_is_one_after_the_other(shape: str) -> None:
    lm, method = toys.lm(shape, window=24), dynamic(optimizer=EVEN, chunk_tokens=16)
    state = apart = method.init(lm)
    # One piece; several pieces; a context that does not fit; the next one.
    for text, before in (("the cat ", ""), (TEXT[8:32], "the cat "), ("on the", TEXT[:32]), ("re", "he")):
        segment = Segment(text, before)
        (scores,), (state,) = method.read([state], lm, [segment], Context())
        (wanted,) = method.adapted([apart], lm).score([segment])
        (apart,) = method.adapt([apart], lm, [Evidence.of(text, query=before)], Context())
        assert torch.equal(scores.log_probs, wanted.log_probs) and scores.bytes == wanted.bytes
        assert all(
            torch.equal(state.delta.difference(n), part) for n, part in apart.delta.differences.items()
        )


def test_a_motif_gets_likelier_and_the_decay_forgets() -> None:
    lm, motif = toys.lm(), "abcabdab" * 10
    method = dynamic(optimizer=RMS(0.05, decay=0.0, statistics="even"))
    learnt, free = running(method, lm, motif)
    still, _ = running(replace(method, optimizer=RMS(0.0, statistics="even")), lm, motif)
    assert learnt[-20:].mean() > still[-20:].mean() + 0.5
    _, held = running(replace(method, optimizer=RMS(0.05, decay=0.5, statistics="even")), lm, motif)

    def moved(state: WeightState) -> float:
        return sum(float(part.square().sum()) for part in state.delta.differences.values()) ** 0.5

    assert moved(held) < 0.8 * moved(free)


def test_statistics_are_root_mean_squares_and_come_back_from_disk(tmp_path: Path) -> None:
    lm = toys.lm()
    method = GradientCounting(chunk_tokens=30)
    episodes = method.episodes(lm, MATERIAL)
    assert sorted(len(episode.target) for episode in episodes) == sorted([22, 23, 23, 23] * 2)
    assert max(len(episode.inputs) for episode in episodes) == 60
    network, points = train(method, lm, episodes, Training(save_every=3), tmp_path / "checkpoint")
    assert isinstance(network, GradientStatistics) and points[-1].step == 8
    found = [gradients(toys.module(), episode.inputs, episode.target) for episode in episodes]
    for name in network.names:
        wanted = np.sqrt(np.mean([each[name] ** 2 for each in found], axis=0))
        assert np.allclose(network.rms(name).numpy(), wanted, rtol=1e-3, atol=1e-7)
    path = tmp_path / "rms.safetensors"
    method.save(network, lm, path)
    read = api.method_specs(
        ["dynamic-evaluation"], ["optimizer=rms(learning_rate=1e-3)", f"statistics={path}"]
    )
    there = read["dynamic-evaluation"].method
    assert there == dynamic(optimizer=RMS(1e-3, statistics=str(path)))
    known = there.optimizer.known(dict(lm.module.named_parameters()), lm.fingerprint)
    assert all(torch.equal(known[f"{name}|rms"], network.rms(name)) for name in network.names)
    learnt, state = running(there, lm)
    assert not torch.equal(learnt, running(dynamic(optimizer=RMS(1e-3, statistics="even")), lm)[0])
    assert not any("rms" in name for name in state.optimizer_state), "states do not carry them"
    with pytest.raises(Mismatch, match="count again"):
        there.init(toys.lm(seed=1))
    # Another file in the same place is read anew.
    network.get_buffer("count").mul_(4)
    method.save(network, lm, path)
    halved = there.optimizer.known(dict(lm.module.named_parameters()), lm.fingerprint)
    assert all(torch.allclose(2 * halved[name], each) for name, each in known.items())


def test_counting_goes_on_after_an_interruption(tmp_path: Path) -> None:
    lm, method = toys.lm(), GradientCounting(chunk_tokens=30)
    episodes, settings = method.episodes(lm, MATERIAL), Training(save_every=3)
    whole, _ = train(method, lm, episodes, settings)

    def interrupt(point: Any) -> None:
        if point.step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(method, lm, episodes, settings, tmp_path / "c", interrupt)
    again, _ = train(method, lm, episodes, settings, tmp_path / "c")
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in whole.state_dict().items())


def test_where_the_rule_needs_a_file_it_says_so(tmp_path: Path) -> None:
    lm = toys.lm()
    default = methods.find("dynamic-evaluation").method
    assert running(default, lm)[1].history
    path = tmp_path / "statistics"
    for absent, cure in (("", "uptake train dynamic-evaluation"), (str(path), "no such file")):
        with pytest.raises(BadInput, match=cure):
            dynamic(optimizer=RMS(statistics=absent)).init(lm)
    statistics = GradientCounting().build(lm)
    statistics.add([torch.ones_like(p) for p in lm.module.parameters()])
    rms = RMS(statistics=kept(lm, statistics, path))
    with pytest.raises(BadInput, match="trainable=all or trainable=top"):
        running(dynamic(optimizer=rms, trainable=LoRA(2)), lm)
    running(dynamic(optimizer=rms, trainable=Top(1)), lm)
    write_tensors(path, {}, to_metadata(NetworkAbout("Camels", lm.fingerprint, {}, {})))
    with pytest.raises(Mismatch, match="a network of Camels"):
        dynamic(optimizer=rms).init(lm)
    counting = GradientCounting()
    with pytest.raises(BadInput, match="no validation text"):
        train(counting, lm, counting.episodes(lm, MATERIAL), valid=counting.episodes(lm, MATERIAL))
    for wrong in ({"chunk_tokens": 0}, {"clip": 0.0}):
        with pytest.raises(BadInput, match="use"):
            dynamic(**wrong)
    with pytest.raises(BadInput, match="chunk_tokens 0"):
        GradientCounting(chunk_tokens=0)


def test_a_loss_that_is_not_finite_and_a_spent_budget_end_the_learning() -> None:
    lm, wild, context = toys.lm(), dynamic(optimizer=SGD(1e38)), Context()
    state = wild.init(lm)
    for start in (0, 8, 16):
        segment = Segment(TEXT[start : start + 8], TEXT[:start])
        (scores,), (state,) = wild.read([state], lm, [segment], context)
    assert "smaller learning rate" in context.ledger(0).failed
    way = replace(methods.find("dynamic-evaluation"), method=wild)
    (row,) = evaluate(lm, Plan({"wild": way}, Running(8)), [Document("a", TEXT)]).rows
    assert "smaller learning rate" in row.failed
    context = Context(budget=Budget(tokens=8))
    method = dynamic(optimizer=SGD(0.1))
    (scores,), (state,) = method.read([method.init(lm)], lm, [Segment(TEXT[:8])], context)
    (scores,), (after,) = method.read([state], lm, [Segment(TEXT[8:16], TEXT[:8])], context)
    assert context.ledger(0).tokens_trained == 8 and len(scores.log_probs) == 8
    assert all(torch.equal(after.delta.difference(n), part) for n, part in state.delta.differences.items())
