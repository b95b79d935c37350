"""The in-context learner: what it may see, its tasks, and that many tasks make it learn."""

import json
from pathlib import Path

import gpicl as recipe
import pytest
import torch
from gpicl_network import InContextLearner, Tasks

from uptake.errors import BadInput


def prototypes(seed: int = 0) -> torch.Tensor:
    return torch.randn(3, 8, generator=torch.Generator().manual_seed(seed))


def test_a_position_sees_inputs_up_to_itself_and_labels_before_it() -> None:
    torch.manual_seed(0)
    net = InContextLearner(8, 3, 20).eval()
    inputs, labels = torch.randn(2, 12, 8), torch.randint(3, (2, 12))
    before = net(inputs, labels)
    other = labels.clone()
    other[:, 5] = (labels[:, 5] + 1) % 3
    after = net(inputs, other)
    assert torch.allclose(before[:, :6], after[:, :6], atol=1e-6)
    assert (before[:, 6] - after[:, 6]).abs().max() > 1e-4
    moved = inputs.clone()
    moved[:, 5] += 1
    after = net(moved, labels)
    assert torch.allclose(before[:, :5], after[:, :5], atol=1e-6)
    assert (before[:, 5] - after[:, 5]).abs().max() > 1e-4


def test_a_task_is_one_projection_and_one_permutation() -> None:
    generator = torch.Generator().manual_seed(1)
    tasks = Tasks.draw(prototypes(), 4, generator, noise=0.0)
    inputs, labels = tasks.sequences(torch.tensor([2, 0]), 50, generator)
    for row, task in enumerate((2, 0)):
        for label in range(3):
            (drawn,) = (tasks.permutations[task] == label).nonzero()[0]
            wanted = tasks.projections[task] @ tasks.prototypes[drawn]
            assert torch.allclose(inputs[row, labels[row] == label], wanted, atol=1e-6)
    assert sorted(tasks.permutations[0].tolist()) == [0, 1, 2]


@pytest.mark.long
def test_few_tasks_are_memorised_and_unlimited_ones_are_learnt() -> None:
    generator = torch.Generator().manual_seed(2)
    few, unseen = (Tasks.draw(prototypes(), count, generator) for count in (16, 256))
    memory = recipe.train(few, endless=False, steps=150, seed=0)
    assert min(recipe.accuracy(memory, few)) > 0.95, "it knows its tasks from the first position on"
    assert max(recipe.accuracy(memory, unseen)) < 0.5
    learner = recipe.train(few, endless=True, steps=700, seed=0)
    right = recipe.accuracy(learner, unseen)
    assert right[0] < 0.45 and sum(right[-5:]) / 5 > 0.9
    assert sum(recipe.accuracy(learner, unseen, scrambled=True)[-5:]) / 5 < 0.45


def test_an_interrupted_recipe_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {name: str(tmp_path / name) for name in ("journal", "out", "plot")}
    arguments = [word for name, path in files.items() for word in (f"--{name}", path)]
    monkeypatch.setattr(
        "sys.argv", ["gpicl", "--tasks", "1", "0", "--seeds", "1", "--steps", "2", *arguments]
    )
    trained: list[int] = []
    cell = recipe.cell

    def interrupted(count: int, steps: int, seed: int) -> dict[str, float]:
        trained.append(count)
        if trained == [1, 0]:
            raise KeyboardInterrupt
        return cell(count, steps, seed)

    monkeypatch.setattr(recipe, "cell", interrupted)
    with pytest.raises(KeyboardInterrupt):
        recipe.main()
    recipe.main()
    assert trained == [1, 0, 0], "the finished cell is not trained again"
    assert [one["tasks"] for one in json.loads(Path(files["out"]).read_text())["cells"]] == [1, 0]
    assert Path(files["plot"]).read_text().startswith("<svg")


def test_a_width_that_the_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(BadInput, match="width 10 for 4 heads"):
        InContextLearner(8, 3, 20, width=10)
