"""The recipe that trains a T5 and a Switch: it resumes, its networks are models here, its baselines match."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import recipe_modules
import uptake
from uptake.lm.examples import Example
from uptake.lm.scoring import losses
from uptake.lm.seq2seq import Seq2Seq
from uptake.tasks.span_corruption import SpanCorruption


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    yield from recipe_modules.imported("seq2seq", monkeypatch)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    recipe_modules.pile_of_cats(tmp_path)
    return [
        "--pile", str(tmp_path / "pile"), "--tokenizer", str(tmp_path / "tokenizer"), "--size", "toy",
        "--inputs", "32", "--batch", "3", "--test", "12", "--every", "2",
    ]  # fmt: skip


def test_it_goes_on_where_it_stopped_and_its_networks_are_models(
    recipe: Any, command: list[str], tmp_path: Path
) -> None:
    def run(name: str, *more: str) -> dict[str, Any]:
        recipe.main(
            [*command, "--work", str(tmp_path / name), "--out", str(tmp_path / f"{name}.json"), *more]
        )
        return json.loads((tmp_path / f"{name}.json").read_text())["networks"]

    whole = run("whole", "--steps", "4")
    run("parts", "--steps", "2")
    again = run("parts", "--steps", "4")
    for name in recipe.NAMES:
        assert again[name]["windows"] == whole[name]["windows"]
        assert [each["valid"] for each in again[name]["course"]] == [
            each["valid"] for each in whole[name]["course"]
        ]
        assert whole[name]["course"][-1]["valid"] < whole[name]["course"][0]["valid"]
    assert len(whole["switch"]["expert_shares"]) == recipe.EXPERTS and "dropped" not in whole["dense"]
    switch, wide = whole["switch"], whole["wide"]
    assert abs(switch["parameters"] / wide["parameters"] - 1) < 0.01
    # Seats that stay empty are counted.
    dense = whole["dense"]["flops_of_a_window"]
    assert dense <= switch["flops_of_a_window"] < wide["flops_of_a_window"]

    model = uptake.load(str(tmp_path / "whole/switch"))
    assert isinstance(model, Seq2Seq)
    tokenizer = recipe.tokenizer_of(str(tmp_path / "tokenizer"))
    corruption = SpanCorruption.of(tokenizer)
    assert corruption.sentinels[0] == max(corruption.sentinels)
    test = recipe.Corrupted(
        recipe.pile(tmp_path / "pile", "test", tokenizer), corruption, tokenizer.end, 32, "cpu"
    )
    inputs, labels = test.batch([0, 1], (5,))
    # The end token that the tokenizer puts behind a text is not part of a context.
    examples = [
        Example((tokenizer.opening, *given[:-1].tolist()), tuple(wanted.tolist()))
        for given, wanted in zip(inputs, labels, strict=True)
    ]
    found = losses(model, examples) * labels.shape[1]
    expected = recipe.nats(model.module, (inputs, labels), "cpu")
    assert torch.allclose(found.double(), torch.tensor(expected, dtype=torch.float64), atol=1e-3)


def test_its_sparse_layer_is_the_published_one_in_a_plain_loop(recipe: Any) -> None:
    from switch_routing import Routing  # beside the recipe, on the path while it is imported

    torch.manual_seed(0)
    config = recipe.SwitchTransformersConfig(
        d_model=8, d_ff=12, num_experts=3, expert_capacity=2, num_layers=2, num_decoder_layers=2,
        num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, num_heads=2, d_kv=4, vocab_size=32,
        dropout_rate=0.0,
    )  # fmt: skip
    network = recipe.SwitchTransformersForConditionalGeneration(config).double()
    routing = Routing(network)
    layer = next(part for part in network.modules() if type(part).__name__.endswith("SparseMLP"))
    hidden = torch.randn(3, 7, 8, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        layer.router.classifier.weight.mul_(50)
    found = layer(hidden)
    expected, chosen, probabilities = torch.zeros_like(found), [], []
    for row in range(3):
        count = [0, 0, 0]
        for place in range(7):
            shares = (layer.router.classifier.weight.float() @ hidden[row, place].float()).softmax(0)
            expert = int(shares.argmax())
            chosen.append(expert)
            probabilities.append(shares)
            count[expert] += 1
            if count[expert] <= 2:
                made = layer.experts[f"expert_{expert}"](hidden[row, place])
                expected[row, place] = made * shares[expert].double()
    assert torch.allclose(found, expected, atol=1e-9)
    assert 0 < int((expected == 0).all(-1).sum()) < 21, "some tokens found no seat"
    mean = torch.stack(probabilities).mean(0)
    balance = 3 * sum(chosen.count(expert) / 21 * mean[expert] for expert in range(3))
    assert torch.allclose(routing.balance[0], balance)
    assert float(routing.taken[0].sum()) == pytest.approx(float((expected != 0).any(-1).float().mean()))
    layer.router.classifier.weight.data.zero_()
    layer(hidden)
    assert float(routing.balance[1]) == pytest.approx(1), "even routing costs exactly the coefficient"
    (gradient,) = torch.autograd.grad(routing.balance[0], hidden)
    assert bool(gradient.abs().sum() > 0)
