"""The recipe of Fusion-in-Decoder: its world, training as asking, its signals beside plain loops."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import recipe_modules
from uptake.lm.seq2seq import Seq2Seq


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    yield from recipe_modules.imported("fusion", monkeypatch)


@pytest.fixture
def world(recipe: Any) -> Any:
    import fusion_world

    return fusion_world


def test_every_answer_follows_from_the_passages_that_are_needed_and_from_no_others(world: Any) -> None:
    some = world.asked(np.random.default_rng(0), 300, 4, even=True)
    for row in range(300):
        lines = [tuple(line) for line in some.passages[row].reshape(-1, 3).tolist()]
        told = {(relation, name): value for relation, name, value in lines}
        word, key = some.questions[row].tolist()
        meant = told[world.MEANS, key] if word == world.VIA else key
        assert [told[world.FIRST, meant], told[world.SECOND, meant]] == some.answers[row].tolist()
        assert (world.MEANS, meant) not in told or word == world.OF
        named = [place for place in range(4) if meant in some.passages[row, place].reshape(-1, 3)[:, 1]]
        needed = {some.first[row], some.second[row]}
        assert set(named) <= needed and len(needed) == (1 if some.kinds[row] == 0 else 2)
    assert np.bincount(some.kinds).tolist() == [100, 100, 100]


def test_what_is_trained_is_what_is_asked(recipe: Any, world: Any) -> None:
    net, words = recipe.network(0).double().eval(), world.tokenizer()
    some = world.asked(np.random.default_rng(1), 6, 4)
    for name in ("fused", "in a row"):
        way = recipe.WAYS[name]
        inputs = recipe.read(some, way.reader, np.random.default_rng(0))
        _, nats = recipe.right(way, Seq2Seq(net, words, name), some)
        with torch.no_grad():
            trained = recipe.loss_of(net, inputs, some.answers).item()
        if name == "fused":
            assert nats.mean() / 2 == pytest.approx(trained, abs=1e-6)
        assert len(nats) == 6


def test_signals_are_those_of_plain_loops(recipe: Any, world: Any) -> None:
    import fusion_signals

    lm = Seq2Seq(recipe.network(0).double().eval(), world.tokenizer(), "toy")
    some = world.asked(np.random.default_rng(2), 3, 4)
    for row in range(3):
        found = fusion_signals.of_question(lm, some, row)
        question, answer = world.as_text(some.questions[row]) + " ", world.as_text(some.answers[row])

        def cost(places: list[int], row: int = row, question: str = question, answer: str = answer) -> float:
            texts = [world.as_text(some.passages[row, place]) for place in places]
            model = recipe.answering(recipe.WAYS["fused"], lm, texts, question)
            return -float(model.score([recipe.Segment(answer, question)])[0].log_probs.sum())

        for place in range(4):
            others = [each for each in range(4) if each != place]
            assert found["PDist, EMDR2"][place] == pytest.approx(-cost([place]), abs=1e-6)
            assert found["LOOP"][place] == pytest.approx(cost(others), abs=1e-6)


def test_attention_is_weighed_by_the_norms_of_values(recipe: Any, world: Any) -> None:
    """By hand, from the module's own projections, in float64."""
    import fusion_signals

    net = recipe.network(3).double().eval()
    lm = Seq2Seq(net, world.tokenizer(), "toy")
    states, seen = torch.randn(1, 7, recipe.WIDTH, dtype=torch.float64), torch.ones(1, 7, dtype=torch.bool)
    seen[0, 5] = False
    asked: list[torch.Tensor] = []
    hooks = [
        block.layer[1].EncDecAttention.register_forward_pre_hook(lambda _, args: asked.append(args[0]))
        for block in net.decoder.block
    ]
    found = fusion_signals.attention(lm, states, seen, (40, 41))
    for hook in hooks:
        hook.remove()
    wanted = torch.zeros(7, dtype=torch.float64)
    for block, hidden in zip(net.decoder.block, asked, strict=True):
        cross = block.layer[1].EncDecAttention
        for token in range(2):
            for head in range(cross.n_heads):
                part = slice(head * 32, head * 32 + 32)
                q = cross.q(hidden)[0, token, part]
                scores = [float(q @ cross.k(states)[0, place, part]) for place in range(7)]
                weights = torch.tensor(scores).double().masked_fill(~seen[0], -torch.inf).softmax(0)
                for place in range(7):
                    wanted[place] += weights[place] * cross.v(states)[0, place, part].norm()
    assert torch.allclose(found, wanted, atol=1e-6) and float(found[5]) == 0


def test_it_goes_on_from_what_is_trained(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out.json"), "--steps", "2"]
    given += ["--batch", "4", "--test", "2", "--seeds", "1", "--more", "3"]
    recipe.main(given)
    first = json.loads((tmp_path / "out.json").read_text())
    assert set(first["passages"]) == {"4", "3"}
    assert set(first["passages"]["4"]["all"]["exact"]) == set(recipe.WAYS)
    assert set(first["preferred"][0]) == {"PDist, EMDR2", "LOOP", "ADist"}
    monkeypatch.setattr(recipe, "loss_of", lambda *_: pytest.fail("trained again"))
    recipe.main(given)
    again = json.loads((tmp_path / "out.json").read_text())
    assert again["passages"] == first["passages"] and again["preferred"] == first["preferred"]
    with pytest.raises(SystemExit):
        recipe.main([*given, "--steps", "3"])
    assert "made with other settings" in capsys.readouterr().err
