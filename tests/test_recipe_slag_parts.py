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


@pytest.mark.long
def test_each_run_is_asked_with_each_part_put_back(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, learner = toys.lm("llama"), Slag(**SETTINGS)
    learner.save(learner.fresh(lm), lm, tmp_path / "ten.safetensors")
    (tmp_path / "ten.json").write_text(json.dumps({"name": "ten", "settings": {"kind": "Slag", **SETTINGS}}))
    asked = tuple(Edit(f"{n}", f"a{n} is", " red") for n in range(6))
    monkeypatch.setattr(recipe.learned_editors, "SEQUENCE", 3)
    monkeypatch.setattr(recipe.learned_editors, "parts_of", lambda *_: {"valid": asked})
    monkeypatch.setattr(recipe.uptake, "load", lambda *_: lm)
    out = tmp_path / "out.json"
    recipe.main(["--model", "toy", "--work", str(tmp_path), "--out", str(out), str(tmp_path / "ten.json")])
    found = json.loads(out.read_text())["ten"]
    assert set(found) == set(recipe.PARTS) and {told["sequences"] for told in found.values()} == {2}
