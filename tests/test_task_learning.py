"""Learning tasks from few examples: T-Few's losses, MLtD, ATTEMPT and mixtures against their formulas."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import toys
from uptake.adaptation.delta import Delta, LowRank, Name
from uptake.adaptation.delta.cell import EDGES, OPERATIONS, Cell
from uptake.adaptation.delta.prompt import Prompt
from uptake.adaptation.inner_loop import GradientDescent
from uptake.adaptation.optimizers import SGD, AdamW
from uptake.adaptation.trainable import LoRA, Trainable
from uptake.adaptation.trainable.opening import open_parts
from uptake.adaptation.trainable.prompt import Prompt as TrainablePrompt
from uptake.adaptation.trainable.tarp import TARP
from uptake.errors import BadInput, Mismatch
from uptake.lm.causal import Causal
from uptake.lm.choices import Choices, chosen
from uptake.lm.examples import encode
from uptake.lm.task_training import descend, task_vector
from uptake.methods.adapter_mixture import AdapterMixture, Experts
from uptake.methods.attempt import Attempt, Attention, inputs_of
from uptake.methods.contract.few_shot import shots_of, wrong_of
from uptake.methods.contract.learned import TrainingData
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.few_shot import FewShot
from uptake.methods.mltd import Mltd, _Difference
from uptake.tasks.few_shot import Shot, Task, grouped_tasks, hole_shots, tasks_of, world_tasks
from uptake.tasks.questions import Question
from uptake.text.types import Document, Found
from uptake.train import Training, train

torch.set_num_threads(1)
SHOTS = (
    Shot("a cat is ", "red\n", ("blue", "dry")),
    Shot("a dog is ", "blue\n", ("red",)),
    Shot("so ", "it\n"),
)
TASK = Task("colours", SHOTS, (Shot("a cow is ", "red\n"), Shot("an ox is ", "blue\n")))


def evidence(shots: tuple[Shot, ...], query: str = "") -> Evidence:
    return Evidence(Found(tuple(shot.passage() for shot in shots), (0.0,) * len(shots)), query)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# T-Few's losses


def test_the_losses_of_choices_are_the_formulas_of_t_few() -> None:
    lm = toys.lm(dtype=torch.float64)
    passages = [shot.passage() for shot in SHOTS]
    examples, wrong = shots_of(lm, SHOTS), wrong_of(lm, passages)
    assert [len(wrong.get(each, ())) for each in examples] == [2, 1, 0]

    def naive(shot: Shot) -> float:
        def log_probs(answer: str) -> list[float]:
            ids = lm.tokenizer.opened(shot.prompt) + list(lm.tokenizer.encode(answer)[0])
            told = lm.step(torch.tensor([ids]))[0][0]
            first = len(lm.tokenizer.opened(shot.prompt))
            return [float(told[place - 1, ids[place]]) for place in range(first, len(ids))]

        right = log_probs(shot.answer)
        loss = -sum(right) / len(right)
        if not shot.wrong:
            return loss
        others = [log_probs(f"{answer}\n") for answer in shot.wrong]
        flat = [value for other in others for value in other]
        unlikely = -sum(math.log(1 - math.exp(value) + 0.01) for value in flat) / len(flat)
        scores = [sum(each) / len(each) for each in (right, *others)]
        length = -scores[0] + math.log(sum(math.exp(score) for score in scores))
        return loss + 2.0 * unlikely + 3.0 * length

    found = Choices(unlikely=2.0, length=3.0).losses(lm, examples, wrong)
    assert torch.allclose(found, torch.tensor([naive(shot) for shot in SHOTS]).double(), atol=1e-10)
    plain = Choices(0.0, 0.0).losses(lm, examples, wrong)
    assert torch.allclose(plain, torch.stack([-each.mean() for each in lm.token_log_probs(examples)]))
    assert len(chosen(lm, examples, wrong)) == 3 and chosen(lm, examples, {}) == [0, 0, 0]


def test_training_with_choices_makes_wrong_answers_less_likely_than_without() -> None:
    lm = toys.lm()
    wrong = wrong_of(lm, [shot.passage() for shot in SHOTS])

    def margin(choices: Choices | None) -> float:
        method = FewShot(trainable=LoRA(rank=2), optimizer=AdamW(1e-2), steps=8, choices=choices)
        (state,) = method.adapt([method.init(lm)], lm, [evidence(SHOTS)], Context())
        model = method.adapted([state], lm).at([0])
        with torch.no_grad():
            return sum(
                float(model.at([0]).token_log_probs([right])[0].mean())
                - max(float(model.at([0]).token_log_probs([each])[0].mean()) for each in others)
                for right, others in wrong.items()
            )

    assert margin(Choices()) > margin(None)


def test_all_examples_are_in_each_step() -> None:
    lm = toys.lm(dtype=torch.float64)
    examples = shots_of(lm, SHOTS)

    def trained(run: Any) -> dict[str, torch.Tensor]:
        private, opened = lm.trainable_copy(
            LoRA(rank=2), Delta(lm.fingerprint), torch.Generator().manual_seed(0)
        )
        run(private, GradientDescent(opened.parameters, SGD(0.3)), opened.parameters)
        return {name: value.detach().clone() for name, value in opened.parameters.items()}

    def naive(private: Any, descent: GradientDescent, parameters: dict[str, nn.Parameter]) -> None:
        for _ in range(3):
            loss = sum(-private.token_log_probs([each])[0].mean() for each in examples) / len(examples)
            descent.apply(torch.autograd.grad(loss, list(parameters.values())))

    found, wanted = trained(lambda p, d, _: descend(p, examples, d, 3)), trained(naive)
    assert all(torch.allclose(found[name], wanted[name], atol=1e-12) for name in wanted)


# MLtD


@pytest.mark.parametrize("kind", ["tarp", "lora"])
@pytest.mark.parametrize("shape", ["llama", "gpt2", "neox"])
def test_mltd_begins_as_the_base_bit_for_bit(kind: str, shape: str) -> None:
    lm = toys.lm(shape)
    opened = _Difference(kind, 2, 4, None).copy(lm.module, Delta(lm.fingerprint), seeded())
    ids = torch.tensor([[0, 5, 9, 200, 7]])
    with torch.no_grad():
        assert torch.equal(lm.around(opened.module).step(ids)[0], lm.step(ids)[0])
        for parameter in opened.parameters.values():
            parameter.add_(0.1)
        changed = lm.around(opened.module).step(ids)[0]
        assert not torch.allclose(changed, lm.step(ids)[0], atol=1e-3)
        # What was trained is what the delta gives back.
        again = lm.overlay(opened.delta()).step(ids)[0]
    assert torch.allclose(changed, again, atol=1e-4)


def test_a_low_rank_part_trains_as_peft_s_layers_do() -> None:
    lm = toys.lm("gpt2", dtype=torch.float64)
    begun = LoRA(rank=2).stackable(lm.module, Delta(lm.fingerprint), seeded())
    assert begun is not None
    start = Delta.of(
        lm.fingerprint,
        {
            path: part.holding({"up": torch.full_like(part.tensors()["up"], 0.01)})
            for path, part in begun.items()
        },
        "lora",
    )
    parts = {name.path: part for name, part in start.parts.items()}
    ours = open_parts(lm.module, parts, "lora", start)
    theirs = LoRA(rank=2).copy(lm.module, start, torch.Generator())
    example = encode(lm.tokenizer, "one ", "two three")
    for opened in (ours, theirs):
        loss = -lm.around(opened.module).token_log_probs([example])[0].mean()
        GradientDescent(opened.parameters, SGD(0.5)).apply(
            torch.autograd.grad(loss, list(opened.parameters.values()))
        )
    mine, peft = ours.delta().parts_of(LowRank), theirs.delta().parts_of(LowRank)
    assert all(torch.allclose(mine[name].difference(), peft[name].difference(), atol=1e-10) for name in peft)
    with pytest.raises(Mismatch, match="name the weight of a linear layer"):
        part = next(iter(parts.values()))
        open_parts(lm.module, {"lm_head.weight": part}, "other", Delta(lm.fingerprint))


def test_a_cell_is_the_sum_over_its_edges() -> None:
    generator = torch.Generator().manual_seed(0)
    ops = [0, 1, 2, 3, 1, 2, 3, 0, 2]
    cell = Cell.fresh(6, 4, ops, generator)
    values = {
        name: value if name == "mix" else torch.randn(value.shape, generator=generator)
        for name, value in cell.values.items()
    }
    values = {name: value.double() for name, value in values.items()}
    network = Cell(values).build().double()
    network.load_state_dict(values)
    network.requires_grad_(False)
    x = torch.randn(2, 5, 6, generator=generator, dtype=torch.float64)
    known = nn.functional.layer_norm(x, (6,), values["norm.weight"], values["norm.bias"])
    states = [(known @ values[f"in{n}.weight"].T + values[f"in{n}.bias"]).relu() for n in (0, 1)]
    edge = 0
    for _ in range(3):
        total = torch.zeros_like(states[0])
        for state in list(states):

            def through(name: str, state: torch.Tensor = state, edge: int = edge) -> torch.Tensor:
                return state @ values[name][edge].T + values[f"{name}_bias"][edge]

            kind = OPERATIONS[ops[edge]]
            total = (
                total
                + {
                    "none": lambda: 0 * state,  # noqa: B023
                    "identity": lambda: state,  # noqa: B023
                    "linear": lambda: through("linear").relu(),
                    "glu": lambda: through("value") * through("gate").sigmoid(),
                }[kind]()
            )
            edge += 1
        states.append(total)
    wanted = (states[-1] + states[-2] + states[-3]) / 3 @ values["up.weight"].T + values["up.bias"]
    assert edge == EDGES and torch.allclose(network(x), wanted, atol=1e-12)
    # With gradients asked of the mix nothing is left out, and one-hot rows give the same.
    network.mix.requires_grad_()
    assert torch.allclose(network(x), wanted, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2])
def test_the_outer_gradient_of_mltd_is_that_of_a_plain_loop(order: int) -> None:
    lm = toys.lm(dtype=torch.float64)
    method = Mltd(rank=2, cell=0, kind="lora", steps=2, optimizer=SGD(0.2), clip=None, order=order)
    network = method.fresh(lm).double().train()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05)
    _, found = method.gradients(network, lm, TASK)
    start = [value.detach().clone().requires_grad_() for value in network.start.values()]
    names = [name.replace("/", ".") for name in network.start]
    opened = _Difference("lora", 2, 0, None).copy(lm.module, Delta(lm.fingerprint), seeded())
    private = lm.around(opened.module)

    def mean(values: list[torch.Tensor], shots: tuple[Shot, ...], by_token: bool) -> torch.Tensor:
        told = private.with_parameters(dict(zip(names, values, strict=True))).token_log_probs(
            shots_of(lm, shots)
        )
        return -torch.cat(told).mean() if by_token else -torch.stack([each.mean() for each in told]).mean()

    values = start
    for _ in range(2):
        inner = torch.autograd.grad(mean(values, TASK.support, False), values, create_graph=order == 2)
        values = [value - 0.2 * own for value, own in zip(values, inner, strict=True)]
    wanted = torch.autograd.grad(mean(values, TASK.asked, True), start)
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(found, wanted, strict=True) if a is not None)
    assert any(own.abs().max() > 1e-6 for own in wanted)


def test_a_controller_chooses_one_operation_an_edge_and_learns_through_the_softmax() -> None:
    lm = toys.lm()
    method = Mltd(rank=2, cell=4, steps=1)
    network = method.fresh(lm).train()
    with torch.no_grad():
        for name, value in network.start.items():
            if name.endswith("up/weight"):
                value.add_(0.1)
    mix = network.mix(task_vector(lm, shots_of(lm, SHOTS)))
    assert torch.equal(mix.sum(-1), torch.ones(EDGES)) and sorted(set(mix.flatten().tolist())) == [0.0, 1.0]
    _, gradients = method.gradients(network, lm, TASK)
    by_name = dict(zip((name for name, _ in network.named_parameters()), gradients, strict=True))
    assert by_name["choosing.2.weight"] is not None and by_name["choosing.2.weight"].abs().max() > 0
    (state,) = replace(method, trained=network.eval()).adapt(
        [replace(method, trained=network).init(lm)], lm, [evidence(SHOTS)], Context()
    )
    cells = state.delta.parts_of(Cell)
    assert len(cells) == 2
    assert all(torch.equal(cell.values["mix"], mix.detach()) for cell in cells.values())


# ATTEMPT


def attention(tokens: int = 3, sources: int = 2) -> tuple[Causal, Attention]:
    lm = toys.lm(dtype=torch.float64)
    torch.manual_seed(0)
    network = Attention(torch.randn(sources, tokens, 32).double(), 8, 2.0).double()
    return lm, network


def test_attempt_is_its_formula() -> None:
    lm, network = attention()
    examples = shots_of(lm, SHOTS)
    inputs = inputs_of(lm, examples)
    table = lm.module.get_input_embeddings().weight
    for row, shot in enumerate(SHOTS):
        ids = lm.tokenizer.opened(shot.prompt)  # of what is read, nothing of the answer
        assert torch.equal(inputs[row].double(), table[ids].max(0).values.float().double())
    inputs = inputs.double()
    prompts = [*network.sources, network.target]
    for row in range(3):
        hidden = nn.functional.silu(inputs[row] @ network.down.weight.T) @ network.up.weight.T
        asked = nn.functional.layer_norm(hidden, (32,), network.norm.weight, network.norm.bias)
        scores = torch.stack([each.max(0).values @ asked for each in prompts]) / 2.0
        shares = scores.exp() / scores.exp().sum()
        wanted = sum(share * prompt for share, prompt in zip(shares, prompts, strict=True)) + network.target
        assert torch.allclose(network.mixed(inputs)[row], wanted, atol=1e-10)
    with torch.no_grad():
        network.up.weight.zero_()
    mean = torch.stack(prompts).mean(0)
    assert torch.allclose(network.mixed(inputs), (mean + network.target).expand(3, -1, -1), atol=1e-12)


def test_a_prompt_for_each_row_is_each_row_by_itself() -> None:
    lm = toys.lm("gpt2", dtype=torch.float64)
    opened = TrainablePrompt(3).copy(lm.module, Delta(lm.fingerprint), seeded())
    ((name, _),) = opened.parameters.items()
    vectors = torch.randn(2, 3, 32, dtype=torch.float64)
    ids = torch.tensor([[0, 4, 7, 9], [0, 8, 1, 3]])
    together = lm.around(opened.module).with_parameters({name: vectors}).step(ids)[0]
    for row in range(2):
        alone = lm.overlay(Delta.of(lm.fingerprint, {"": Prompt(vectors[row])}, "p")).step(
            ids[row : row + 1]
        )[0]
        assert torch.allclose(together[row], alone[0], atol=1e-10)


def test_source_prompts_are_kept_as_files_and_in_the_network(tmp_path: Path) -> None:
    lm = toys.lm()
    method = FewShot(trainable=TrainablePrompt(3), optimizer=AdamW(1e-2), steps=1)
    paths = []
    for number in range(2):
        (state,) = method.adapt(
            [method.init(lm)], lm, [evidence(SHOTS[number : number + 2])], Context(seed=number)
        )
        paths.append(str(tmp_path / f"{number}.delta"))
        state.delta.save(Path(paths[-1]))
    mixing = Attempt(sources=tuple(paths), inner=8, steps=2, support=2, asked=1)
    network = mixing.fresh(lm)
    wanted = [Delta.load(Path(path), lm.fingerprint).parts[Name("prompt", "")].vectors for path in paths]  # type: ignore[attr-defined]
    assert torch.equal(network.sources, torch.stack(wanted))
    mixing.save(network, lm, tmp_path / "network")
    for path in paths:
        Path(path).unlink()
    loaded = replace(mixing, sources=(), weights=str(tmp_path / "network")).network(lm)
    assert torch.equal(loaded.sources, network.sources) and loaded.temperature == pytest.approx(math.e * 32)
    LoRA(rank=1).copy(lm.module, Delta(lm.fingerprint), torch.Generator()).delta().save(tmp_path / "lora")
    with pytest.raises(BadInput, match="holds no single soft prompt"):
        Attempt(sources=(str(tmp_path / "lora"),)).fresh(lm)
    with pytest.raises(BadInput, match="name their files"):
        Attempt(weights="untrained").check(lm)


def test_attempt_mixes_for_what_is_asked_and_finds_the_source_that_fits() -> None:
    lm = toys.lm()
    torch.manual_seed(0)
    method = Attempt(weights="untrained", drawn=3, tokens=3, inner=16, temperature=1.0, optimizer=AdamW(1e-2))
    network = method.fresh(lm).train()
    # Inputs with a "q" are to have the first source, all others the second: made-up tasks of attention alone.
    texts = ["a q is", "q or so", "the q", "a cat", "so dry", "hill"]
    wanted = torch.tensor([0, 0, 0, 1, 1, 1])
    inputs = inputs_of(lm, [encode(lm.tokenizer, text, "") for text in texts])
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(60):
        loss = -network.shares(inputs).log()[range(6), wanted].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trained = replace(method, trained=network.requires_grad_(False).eval(), weights="")
    shares = network.shares(inputs_of(lm, [encode(lm.tokenizer, "one q more", "")]))
    assert shares[0, 0] > 0.5
    (state,) = trained.adapt([trained.init(lm)], lm, [evidence(SHOTS, "a q is")], Context())
    other = trained.asked_for(state, lm, "so dry")
    assert not torch.equal(
        state.delta.parts[Name("attempt", "")].vectors,  # type: ignore[attr-defined]
        other.delta.parts[Name("attempt", "")].vectors,  # type: ignore[attr-defined]
    )
    assert trained.asked_for(trained.init(lm), lm, "so dry").delta.parts == {}


# Mixtures


def test_a_mixture_is_the_sum_of_its_experts_by_their_shares() -> None:
    lm = toys.lm("gpt2", dtype=torch.float64)
    method = AdapterMixture(experts=3, rank=2, hidden=8)
    network = method.fresh(lm).double()
    assert isinstance(network, Experts)
    with torch.no_grad():
        for up in network.up:
            up.copy_(torch.randn(up.shape, generator=torch.Generator().manual_seed(1)))
    delta = method.delta(network, lm, TASK)
    vector = task_vector(lm, shots_of(lm, TASK.support)).double()
    logits = network.router(vector).view(2, 3)
    shares = logits.exp() / logits.exp().sum(-1, keepdim=True)
    for matrix, up, down in zip(network.matrices, network.up, network.down, strict=True):
        wanted = sum(shares[matrix.block, e] * up[e] @ down[e] for e in range(3))
        found = delta.difference(matrix.name)
        assert torch.allclose(found, wanted.T if matrix.transposed else wanted, atol=1e-10)
    # A loss without a step is that of the delta.
    model = lm.overlay(delta)
    asked = shots_of(lm, TASK.asked)
    wanted_loss = -torch.cat(model.token_log_probs(asked)).mean()
    assert torch.allclose(method.loss(network, lm, TASK), wanted_loss, atol=1e-8)
    hard = network.shares(vector, "hard")
    assert torch.allclose(hard, nn.functional.one_hot(logits.argmax(-1), 3).double())
    assert torch.allclose(network.shares(vector, "average"), torch.full((2, 3), 1 / 3).double())


def test_one_expert_is_lora() -> None:
    lm = toys.lm()
    method = AdapterMixture(experts=1, rank=2, hidden=4, optimizer=SGD(0.3), steps=3)
    network = method.fresh(lm)
    trained = replace(method, trained=network.requires_grad_(False))
    (state,) = trained.adapt([trained.init(lm)], lm, [evidence(SHOTS)], Context())
    start = Delta.of(
        lm.fingerprint,
        {
            matrix.name: LowRank(up[0], down[0], 1.0, matrix.transposed)
            for matrix, up, down in zip(network.matrices, network.up, network.down, strict=True)
        },
        "lora",
    )
    lora = FewShot(trainable=LoRA(rank=2, alpha=2), optimizer=SGD(0.3), steps=3, choices=None)
    begun = replace(lora.init(lm), delta=start)
    (other,) = lora.adapt([begun], lm, [evidence(SHOTS)], Context())
    mine, theirs = state.delta.differences, other.delta.differences
    assert mine.keys() == theirs.keys()
    assert all(torch.allclose(mine[name], theirs[name], atol=1e-6) for name in mine)


# Training them, and tasks


@pytest.mark.parametrize(
    "method",
    [
        Mltd(rank=2, cell=4, support=3, asked=2, steps=1, optimizer=SGD(0.5)),
        Attempt(drawn=2, tokens=3, inner=8, support=3, asked=2),
        AdapterMixture(experts=2, rank=2, hidden=8, support=3, asked=2),
    ],
    ids=["mltd", "attempt", "mixture"],
)
def test_each_is_trained_on_tasks_of_questions(method: Any, tmp_path: Path) -> None:
    lm = toys.lm()
    questions = tuple(
        Question(f"{task}{number}", f"{task} {number} is", (word,), meta={"task": task})
        for task, word in (("up", "high"), ("in", "deep"))
        for number in range(6)
    )
    episodes = method.episodes(lm, TrainingData((), questions))
    assert len(episodes) == 2 and {len(each.support) for each in episodes} == {3}
    training = Training(optimizer=AdamW(3e-3, weight_decay=0.0), passes=4, save_every=4)
    network, points = train(method, lm, episodes, training)
    assert points[-1].loss < points[0].loss
    method.save(network, lm, tmp_path / "network")
    settings = {"drawn": 0} if isinstance(method, Attempt) else {}
    loaded = replace(method, weights=str(tmp_path / "network"), **settings)
    saved, read = network.state_dict(), loaded.network(lm).state_dict()
    assert saved.keys() == read.keys() and all(torch.equal(saved[name], read[name]) for name in saved)
    with pytest.raises(BadInput, match="name the task of each question"):
        method.episodes(lm, TrainingData((), (Question("q", "what?", ("it",)),)))


def test_tasks_are_other_words_of_one_kind_and_no_example_is_asked_that_was_learnt() -> None:
    made = world_tasks(8, 4, (0, 1), "train", seed=3)
    assert len(made) == 2 and made == world_tasks(8, 4, (0, 1), "train", seed=3)
    for task in made:
        assert len(task.support) == 8 and len(task.asked) == 4
        assert not {shot.prompt for shot in task.support} & {shot.prompt for shot in task.asked}
        for shot in task.asked:
            assert shot.answer.strip() in shot.prompt and shot.answer.strip() not in shot.wrong
    code = "import os\n\n\ndef read(name):\n    value = os.path.join(name, name)\n    return value\n"
    files = [hole_shots(Document(f"p/{number}.py", f"# {number}\n{code}"), 40, 3) for number in range(4)]
    (task,) = grouped_tasks({"p": files, "q": files[:1]}, 6, 3)
    assert task.name == "p" and len(task.support) == 6 and len(task.asked) == 3
    assert task.first(2).support == task.support[:2]
    document = Document("d", "It is red.")
    asked = [Question(f"{n}", "Which?", ("red",), "d", {"attribute": "hue"}) for n in range(3)]
    (found,) = tasks_of(asked, [document], 2, 1)
    assert found.support[0] == Shot("It is red.\nWhich?\n", "red\n")


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: Mltd(rank=0), "rank 0"),
        (lambda: Mltd(kind="other"), "use tarp or lora"),  # type: ignore[arg-type]
        (lambda: Mltd(order=3), "use 1 or 2"),  # type: ignore[arg-type]
        (lambda: Mltd(steps=-1), "steps -1"),
        (lambda: Mltd(support=0), "support 0"),
        (lambda: Attempt(tokens=0), "tokens 0"),
        (lambda: Attempt(temperature=0.0), "temperature 0"),
        (lambda: Attempt(sources=("a",), drawn=2), "give one of them"),
        (lambda: AdapterMixture(experts=0), "experts 0"),
        (lambda: AdapterMixture(choose="most"), "use soft, hard or average"),  # type: ignore[arg-type]
        (lambda: Choices(unlikely=-1.0), "unlikely -1"),
        (lambda: FewShot(steps=-1), "steps -1"),
    ],
    ids=range(12),
)
def test_bad_settings_are_refused_in_one_line_with_the_cure(made: Any, told: str) -> None:
    with pytest.raises(BadInput, match=told) as error:
        made()
    assert "\n" not in str(error.value)


def test_a_prompt_that_fills_the_window_is_refused() -> None:
    lm = toys.lm(window=16)
    method = Attempt(weights="untrained", drawn=1, tokens=16)
    with pytest.raises(BadInput, match="fewer"):
        method.adapt([method.init(lm)], lm, [evidence(SHOTS)], Context())


@pytest.mark.parametrize(
    "trainable",
    [LoRA(rank=33), TARP(rank=33), _Difference("lora", 33, 0, None), _Difference("tarp", 33, 0, None)],
    ids=["lora", "tarp", "mltd lora", "mltd tarp"],
)
def test_a_rank_that_no_matrix_has_is_refused_before_memory_is_spent(trainable: Trainable) -> None:
    lm = toys.lm()
    with pytest.raises(BadInput, match="no matrix that it is for has a rank above 32; use that or less"):
        trainable.copy(lm.module, Delta(lm.fingerprint), seeded())
    with pytest.raises(BadInput, match="rank 36: no matrix"):
        AdapterMixture(experts=3, rank=12).fresh(lm)
    with pytest.raises(BadInput, match="cell 33: wider than the model's 32"):
        Mltd(cell=33).fresh(lm)
