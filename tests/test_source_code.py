"""On-the-fly adaptation to a source file: the holes, that nothing blanked leaks, and the outer gradients."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import toys
import uptake
from cli_world import Run, World, made_fixture, run_fixture, world_fixture
from uptake.adaptation.delta import Delta
from uptake.adaptation.inner_loop import token_loss, unroll
from uptake.adaptation.optimizers import SGD
from uptake.adaptation.trainable import LoRA
from uptake.adaptation.transforms import Losses
from uptake.errors import BadInput
from uptake.evaluation.protocols.holes import Holes
from uptake.lm.base import LM, Segment
from uptake.methods.contract.learned import TrainingData
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.finetune import Finetune
from uptake.methods.source_code import HoleEpisode, SourceCode, TrainedStart, hole_loss
from uptake.store.datastore import Datastore
from uptake.tasks.holes import Hole, Making
from uptake.text.types import Document, Found
from uptake.train import Training, train

__all__ = ["made_fixture", "run_fixture", "world_fixture"]

SOURCE = '''"""A file."""

import os


def total(values, start=0):
    # adds them up
    result = start
    for value in values:
        result += value * len("a name")
    return result


def show(path):
    for name in sorted(os.listdir(path)):
        print(name, total([1, 2]))
'''
FILE = Document("a.py", SOURCE)


def optimizer(rate: float = 0.05) -> Finetune:
    return Finetune(optimizer=SGD(rate), clip=None, chunk_tokens=32, passes=2)


def test_identifiers_are_names_of_the_code_alone() -> None:
    found = [hole.target.strip() for hole in Making(count=100).holes(FILE)]
    assert found.count("total") == 2 and found.count("value") == 2 and "listdir" in found
    assert not {"for", "def", "adds", "a", "name_", "file"} & set(found)
    assert found.count("name") == 2, "not the one within a text"
    hole = next(hole for hole in Making(count=100).holes(FILE) if hole.target == "listdir")
    assert hole.before.endswith("sorted(os.") and hole.after.startswith("\n        print(name")


def test_lines_are_lines_of_code() -> None:
    found = [hole.target.strip() for hole in Making(kind="line", count=100).holes(FILE)]
    assert found[:3] == ["import os", "def total(values, start=0):", "result = start"]
    assert all(hole.end == hole.blank for hole in Making(kind="line").holes(FILE))


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_holes_stand_where_they_say_whatever_ends_a_line(ending: str) -> None:
    document = Document("b.py", SOURCE.replace("\n", ending))
    found = Making(count=100).holes(document)
    assert [hole.target for hole in found] == [hole.target for hole in Making(count=100).holes(FILE)]
    assert all("\r" not in hole.document.text[hole.start : hole.blank] for hole in found)


def test_the_same_holes_each_time_and_none_where_a_file_is_no_python() -> None:
    few = Making(count=3)
    assert few.holes(FILE) == few.holes(FILE) and len(few.holes(FILE)) == 3
    assert few.holes(Document("c.py", "def f(:\n  '''")) == []
    with pytest.raises(BadInput, match="kind 'word'"):
        Making(kind="word")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="count 0"):
        Making(count=0)


def test_support_is_the_rest_of_the_file_nearest_first() -> None:
    hole = Making(count=100).holes(FILE)[12]
    pieces = hole.support(size=40)
    by_place = sorted(pieces, key=lambda passage: passage.start)
    shown = "".join(passage.text for passage in by_place)
    assert shown.split() == (hole.before + " " + hole.after).split()
    gaps = [
        hole.start - p.start - len(p.text) if p.start < hole.start else p.start - hole.blank for p in pieces
    ]
    assert gaps == sorted(gaps) and gaps[0] == 0
    sides = {
        around: {p.start >= hole.blank for p in hole.support(around, 40)} for around in ("before", "after")
    }
    assert sides == {"before": {False}, "after": {True}} and hole.support("none") == ()


def mutated(hole: Hole) -> Hole:
    """The same hole with other characters in the place of every blanked one."""
    other = "".join("@" for _ in range(hole.blank - hole.start))
    text = hole.before + other + hole.after
    return replace(hole, document=Document(hole.document.id, text))


def test_what_is_blanked_changes_nothing() -> None:
    lm, making = toys.lm(), Making(count=100, size=64, prefix=48)
    method = SourceCode(inner=replace(optimizer(), max_steps=6))
    for hole in making.holes(FILE)[3:13:3]:
        assert mutated(hole).target != hole.target
        logs = []
        behind = replace(
            hole, blank=hole.blank + 1, end=hole.end
        )  # the control: one more character is hidden
        for one in (hole, mutated(hole), mutated(behind)):
            context = one.before[-making.prefix :]
            evidence = Evidence(Found().behind(making.support(one)), query=context)
            (state,) = method.adapt([method.init(lm)], lm, [evidence], Context())
            # Scored on the same text, so that all that could differ is what was read.
            logs.append(method.adapted([state], lm).score([Segment(hole.target, context)])[0].log_probs)
        assert torch.equal(*logs[:2]) and not torch.equal(*logs[1:])


def test_the_protocol_gives_the_support_and_hides_the_line(tmp_path) -> None:
    protocol = Holes(count=100, prefix=50, size=64)
    for query, hole in zip(protocol.queries(FILE), protocol.holes(FILE), strict=True):
        assert query.target == hole.target and query.context == hole.before[-50:]
        assert query.support == hole.support("both", 64)
    store = Datastore.create(tmp_path / "store", retriever="lexical")
    store.add([Document("other.py", "def total(numbers):\n    return sum(numbers)\n" * 4)])
    rows = {}
    for around in ("both", "none"):
        results = uptake.compare(
            toys.lm(),
            [FILE],
            ["base", "source-code", "ttt-nn"],
            store=store,
            k=[0, 1],
            settings=["learning_rate=1e-3", "source-code.inner.max_steps=3"],
            protocol=Holes(count=2, prefix=50, size=64, around=around),
        )
        rows[around] = {(row.method, row.k): row for row in results.rows}
    assert rows["both"]["source-code", 0].steps == 3 and rows["none"]["source-code", 0].steps == 0
    assert rows["none"]["source-code", 0].bits == rows["none"]["source-code", 0].base_bits
    # Neighbours come on top of the support, which is read once.
    alone = rows["none"]["ttt-nn", 1].steps
    assert alone > 0 and rows["none"]["ttt-nn", 0].steps == 0
    assert rows["both"]["ttt-nn", 1].steps == rows["both"]["ttt-nn", 0].steps + alone


def started(method: SourceCode, lm: LM, seed: int = 3) -> TrainedStart:
    """A start away from the base, so that where a gradient is taken shows."""
    network = method.build(lm)
    assert isinstance(network, TrainedStart)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in network.parameters():
            value.copy_(torch.randn(value.shape, generator=generator, dtype=value.dtype) * 0.01)
    return network


def episode(lm: LM) -> HoleEpisode:
    return SourceCode(making=Making(count=1, size=64, prefix=40)).episodes(lm, TrainingData((FILE,)))[0]


def test_fomaml_takes_its_gradient_where_adaptation_ends_and_gives_it_to_the_start() -> None:
    lm = toys.lm(dtype=torch.float64)
    method, one = SourceCode(inner=optimizer(), outer="fomaml"), episode(lm)
    network = started(method, lm).double()
    loss, gradients = method.gradients(network, lm, one)

    # The walk by hand, as a function of the start.
    _, opened = lm.trainable_copy(
        method.inner.trainable, Delta.dense(lm.fingerprint, network.values()), torch.Generator()
    )
    start = {name: value.detach().requires_grad_() for name, value in opened.parameters.items()}
    pieces = []
    for passage in list(one.evidence.passages) * 2:
        ids = [lm.tokenizer.opening, *lm.tokenizer.encode(passage.text)[0]]
        pieces += [ids[at : at + 33] for at in range(0, len(ids) - 1, 32)]

    def piece_loss(values, ids):
        log_probs, _ = lm.with_parameters(values).step(torch.tensor([ids[:-1]]))
        return Losses.one(token_loss(log_probs, torch.tensor([ids[1:]])), "")

    ended, _ = unroll(piece_loss, start, pieces, SGD(0.05), order=1)
    wanted = hole_loss(lm.with_parameters(ended), one.hole)
    assert loss == pytest.approx(wanted.item(), abs=1e-12)
    by_hand = torch.autograd.grad(wanted, [start[name] for name in network.values()])
    assert max((a - b).abs().max() for a, b in zip(gradients, by_hand, strict=True)) < 1e-10
    # The control: the gradient where adaptation begins is another.
    at_start = hole_loss(lm.with_parameters(start), one.hole)
    early = torch.autograd.grad(at_start, [start[name] for name in network.values()])
    assert max((a - b).abs().max() for a, b in zip(gradients, early, strict=True)) > 1e-3


def test_one_step_of_reptile_is_a_step_of_the_inner_rule_made_smaller() -> None:
    lm, alpha, epsilon = toys.lm(dtype=torch.float64), 0.05, 0.3
    inner = replace(optimizer(alpha), chunk_tokens=None, passes=1, max_steps=1)
    method, one = SourceCode(inner=inner, outer="reptile"), episode(lm)
    network = started(method, lm).double()
    before = network.values()
    _, gradients = method.gradients(network, lm, one)
    moved = [-epsilon * gradient for gradient in gradients]  # plain descent at epsilon

    private, opened = lm.trainable_copy(
        inner.trainable, Delta.dense(lm.fingerprint, before), torch.Generator()
    )
    ids = torch.tensor([[lm.tokenizer.opening, *lm.tokenizer.encode(one.evidence.passages[0].text)[0]]])
    ids = ids[:, : lm.window + 1]
    loss = token_loss(private.step(ids[:, :-1])[0], ids[:, 1:])
    wanted = torch.autograd.grad(loss, [opened.parameters[name] for name in before])
    assert max((a + epsilon * alpha * g).abs().max() for a, g in zip(moved, wanted, strict=True)) < 1e-12
    assert max(g.abs().max() for g in wanted) > 1e-3


@pytest.mark.parametrize("outer", ["fomaml", "reptile"])
def test_a_trained_start_leads_further_and_counts_from_the_first_passage_on(outer, tmp_path) -> None:
    lm = toys.lm()
    files = [
        Document(f"{word}.py", "".join(f"{word}_{n} = {word}({n})\n" for n in range(30)))
        for word in ("cat", "dog", "fish")
    ]
    method = SourceCode(
        inner=replace(optimizer(), max_steps=2), outer=outer, making=Making(count=4, size=128)
    )
    episodes = method.episodes(lm, TrainingData(tuple(files)))
    assert len(episodes) == 12
    network, points = train(
        method, lm, episodes, Training(optimizer=SGD(0.5), passes=2, save_every=8), valid=episodes[::4]
    )
    assert min(point.valid for point in points) < points[0].valid
    method.save(network, lm, tmp_path / "start")
    trained = replace(method, weights=str(tmp_path / "start"))
    unread = trained.init(lm)
    segment = [Segment("cat_1 = ", "x")]
    (nothing,) = trained.adapt([unread], lm, [Evidence.of()], Context())
    assert torch.equal(
        trained.adapted([nothing], lm).score(segment)[0].log_probs, lm.score(segment)[0].log_probs
    )
    still = replace(trained, inner=replace(trained.inner, max_steps=0))
    (state,) = still.adapt([unread], lm, [Evidence.of("x = 1")], Context())
    wanted = trained.network(lm).values()
    assert all(
        torch.allclose(state.delta.difference(name), value, atol=1e-6) for name, value in wanted.items()
    )
    assert max(value.abs().max() for value in wanted.values()) > 1e-4


def test_low_rank_starts_and_files_without_holes_are_refused() -> None:
    lm = toys.lm()
    with pytest.raises(BadInput, match="set inner"):
        SourceCode(inner=replace(optimizer(), trainable=LoRA(rank=2))).build(lm)
    with pytest.raises(BadInput, match="no hole"):
        SourceCode().episodes(lm, TrainingData((Document("x.py", "'only a text'"),)))
    with pytest.raises(BadInput, match="outer 'maml'"):
        SourceCode(outer="maml")  # type: ignore[arg-type]


def test_holes_and_starts_from_the_command_line(run: Run, world: World, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("one", "two"):
        (folder / f"{name}.py").write_text(SOURCE.replace("total", name))
    trained = tmp_path / "start.safetensors"
    ran = run("train", "source-code", "-m", world.model, "--documents", folder, "--out", trained,
              "--set", "max_steps=2", "--set", "making.count=2")  # fmt: skip
    assert ran.code == 0, ran.err
    command = ["eval", "-m", world.model, "--data", folder, "--method", "source-code", "--protocol", "holes",
               "--windows", 3, "--set", "max_steps=2", "--json", "-"]  # fmt: skip
    ran = run(*command, "--set", f"weights={trained}")
    assert ran.code == 0, ran.err
    assert ran.json["methods"]["source-code"]["queries"] == 6
    ran = run(*command, "--hole", "word")
    assert ran.code == 2 and "kind 'word'" in ran.err
    ran = run(*command[:4], world.data, *command[5:])
    assert ran.code == 2 and "Python files" in ran.err
