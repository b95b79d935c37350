"""The recipe that puts parts of a SLAG network back: what is left of it, and what is written down."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import toys
from recipe_modules import imported
from uptake.methods.slag import Slag
from uptake.tasks.edits import Edit
from uptake.text.types import Document

SETTINGS: dict[str, int] = {"blocks": 1, "condition": 4, "hidden": 4, "length": 3}


@pytest.fixture(name="recipe")
def recipe_fixture(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    yield from imported("slag_parts", monkeypatch)


def test_what_is_put_back_writes_what_it_wrote_at_birth(recipe: Any) -> None:
    network: Any = Slag(**SETTINGS).fresh(toys.lm("llama"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    into, _, out, _, _ = network.heads[0].sizes
    u, gradient = torch.ones(1, into), torch.ones(1, out)

    def made(*places: int) -> tuple[Tensor, Tensor]:
        head = recipe.as_at_birth(network, places).heads[0]
        up, down, _ = head((u, gradient, torch.zeros(1, dtype=torch.long)), torch.ones(1, 4))
        return torch.outer(up[:, 0], down[0]), torch.outer(up[:, 1], down[1])

    (whole, text), (step, nothing), (same, none) = made(), made(0, 1, 2, 3, 4), made(1, 3)
    assert torch.allclose(step, -0.1 * torch.outer(gradient[0], u[0])) and not nothing.any()
    assert torch.equal(same, whole) and not none.any()
    assert not torch.allclose(whole, step) and text.any()


def test_networks_are_told_apart_by_what_is_left_of_each_sequence(recipe: Any) -> None:
    first, second = {"said": [[1, 0], [1, 1]] * 10}, {"said": [[0, 0], [0, 1]] * 10}
    found = recipe.apart(first, second)
    assert found["first"] == {"difference": 1.0, "interval": [1.0, 1.0]}
    assert found["all"] == {"difference": 0.5, "interval": [0.5, 0.5]}


@pytest.mark.long
def test_a_network_is_trained_and_asked_with_each_part_put_back(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = toys.lm("llama", window=160)
    edits = tuple(Edit(f"{n}", f"a{n} is", " red", rephrases=(f"so a{n} is",)) for n in range(6))
    monkeypatch.setattr(recipe.learned_editors, "SEQUENCE", 3)
    monkeypatch.setattr(
        recipe.learned_editors, "parts_of", lambda *_: dict.fromkeys(("train", "test"), edits)
    )
    monkeypatch.setattr(recipe.learned_editors, "unrelated", lambda _: {"train": (Document("1", "fish"),)})
    monkeypatch.setattr(recipe.uptake, "load", lambda *_: lm)
    out = tmp_path / "out.json"
    given = ["--model", "toy", "--work", str(tmp_path), "--out", str(out), "--part", "test"]
    some = ["--set", "condition=4", "--set", "hidden=4", "--set", "length=3"]
    recipe.main(["train", *given, "--name", "ten", *some, "--steps", "2"])
    for back in recipe.PARTS:
        recipe.main(["ask", *given, "--name", "ten", "--back", back, "--sequences", "2"])
    recipe.main(["ask", *given, "--sequences", "2"])
    recipe.main(["table", "--out", str(out)])
    found = json.loads(out.read_text())
    assert found["networks"]["ten"]["edits"] == 12
    (asked,) = found["asked"].values()
    assert len(asked) == len(recipe.PARTS) + 1 and {told["sequences"] for told in asked.values()} == {2}
    (apart,) = found["apart"].values()
    assert len(apart) == 21
    with pytest.raises(SystemExit, match="train it first"):
        recipe.main(["ask", *given, "--name", "other"])
