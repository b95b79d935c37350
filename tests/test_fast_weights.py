"""Fast weights against an explicit gradient step, in float64."""

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from uptake.lm.capabilities import Unembedding
from uptake.methods.fwl.network import EPSILON, FAST, LENGTH, RATE_SPEED, FastWeights, Sums

WIDTH, VOCABULARY, TIME = 6, 11, 9


def network(chunk: int = 4, stretch: int = 0) -> FastWeights:
    torch.manual_seed(0)
    made = FastWeights(WIDTH, chunk=chunk, stretch=stretch).double()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            # Every rate another one, large enough for the step to show.
            rates = name.startswith("log_rates")
            parameter.copy_(
                (torch.randn_like(parameter) / 2 - 1) / RATE_SPEED if rates else torch.randn_like(parameter)
            )
    return made


def world(rows: int = 1) -> tuple[Tensor, Tensor, Unembedding]:
    torch.manual_seed(1)
    hidden = torch.randn(rows, TIME, WIDTH, dtype=torch.float64)
    labels = torch.randint(VOCABULARY, (rows, TIME))
    weight = torch.randn(VOCABULARY, WIDTH, dtype=torch.float64)
    return hidden, labels, Unembedding(weight, torch.randn(VOCABULARY, dtype=torch.float64))


def fast_logits(net: FastWeights, hidden: Tensor, labels: Tensor, unembedding: Unembedding) -> Tensor:
    return unembedding.logits(net(hidden, labels, unembedding, net.start(len(hidden)))[0])


def plain(parts: dict[str, Tensor], hidden: Tensor) -> Tensor:
    """The block as anybody would write it."""
    features = (hidden @ parts["first"] + parts["first_bias"]).relu() ** 2
    features = LENGTH * features / (features.square().sum(-1, keepdim=True) + EPSILON).sqrt()
    z = features @ parts["second"] + parts["second_bias"]
    return hidden + functional.layer_norm(z, (WIDTH,), parts["gain"], parts["bias"], EPSILON) @ parts["last"]


def stepped(net: FastWeights, hidden: Tensor, labels: Tensor, out: Unembedding, stretch: int) -> Tensor:
    """Answer at every position after one explicit step on those of its stretch before it.

    The stretch before has left its weights moved, by one step on all of it.
    """
    slow = dict(net.named_parameters(recurse=False))

    def after(parts: dict[str, Tensor], start: int, end: int) -> dict[str, Tensor]:
        logits = out.logits(plain(parts, hidden[start:end]))
        loss = functional.cross_entropy(logits, labels[start:end], reduction="sum")
        gradients = torch.autograd.grad(loss, [parts[name] for name in FAST], create_graph=True)
        moved = zip(FAST, gradients, strict=True)
        return parts | {name: parts[name] - net.rates[name] * gradient for name, gradient in moved}

    rows, begun = [], slow
    for t in range(len(hidden)):
        start = t - t % stretch
        if t > 0 and t == start:
            begun = after(begun, t - stretch, t)
        parts = after(begun, start, t) if t > start else begun
        rows.append(out.logits(plain(parts, hidden[t : t + 1])))
    return torch.cat(rows)


@pytest.mark.parametrize("chunk", [2, 4, 100])
def test_every_position_answers_as_one_step_on_all_before_it(chunk: int) -> None:
    net, (hidden, labels, out) = network(chunk), world(rows=3)
    found = fast_logits(net, hidden, labels, out)
    for row in range(3):
        naive = stepped(net, hidden[row], labels[row], out, stretch=TIME)
        assert torch.allclose(found[row], naive, rtol=0, atol=1e-11)
        assert not torch.allclose(found[row], out.logits(net.still(hidden[row])), atol=0.1)


@pytest.mark.parametrize(("stretch", "chunk"), [(1, 4), (3, 100), (4, 3), (5, 1), (TIME, 4)])
def test_stretches_are_explicit_steps_one_after_another(stretch: int, chunk: int) -> None:
    net, (hidden, labels, out) = network(chunk, stretch), world(rows=2)
    found = fast_logits(net, hidden, labels, out)
    for row in range(2):
        naive = stepped(net, hidden[row], labels[row], out, stretch)
        assert torch.allclose(found[row], naive, rtol=0, atol=1e-11)


def test_steps_one_after_another_are_something_else_from_the_third_position_on() -> None:
    net, (hidden, labels, out) = network(), world()
    found = fast_logits(net, hidden, labels, out)[0]
    naive = stepped(net, hidden[0], labels[0], out, stretch=1)
    assert torch.allclose(found[:2], naive[:2], rtol=0, atol=1e-11)
    assert ((found - naive).abs().amax(-1) > 1e-3)[2:].all()


@pytest.mark.parametrize("stretch", [0, 5])
@pytest.mark.parametrize("chunk", [1, 2, 8, 9, 100])
def test_the_chunk_changes_nothing(chunk: int, stretch: int) -> None:
    hidden, labels, out = world(rows=2)
    whole = fast_logits(network(TIME, stretch), hidden, labels, out)
    found = fast_logits(network(chunk, stretch), hidden, labels, out)
    assert torch.allclose(found, whole, rtol=0, atol=1e-11)


@pytest.mark.parametrize("stretch", [0, 4, 6])
def test_a_label_shows_only_after_its_position(stretch: int) -> None:
    net, (hidden, labels, out) = network(stretch=stretch), world()
    before = fast_logits(net, hidden, labels, out)[0]
    labels[0, 5] = (labels[0, 5] + 1) % VOCABULARY
    after = fast_logits(net, hidden, labels, out)[0]
    assert torch.equal(before[:6], after[:6])
    assert ((before - after).abs().amax(-1) > 1e-6)[6:].all()


@pytest.mark.parametrize("stretch", [0, 4, 5])
def test_a_hidden_state_shows_only_from_its_position_on(stretch: int) -> None:
    net, (hidden, labels, out) = network(stretch=stretch), world()
    before = fast_logits(net, hidden, labels, out)[0]
    hidden[0, 5] += 1
    after = fast_logits(net, hidden, labels, out)[0]
    assert torch.equal(before[:5], after[:5])
    assert ((before - after).abs().amax(-1) > 1e-6)[5:].all()


def test_the_sums_are_the_gradient_of_the_summed_loss() -> None:
    net, (hidden, labels, out) = network(), world()
    sums = net.learn(hidden, labels, out, net.start(1))
    own = dict(net.named_parameters(recurse=False))
    logits = out.logits(plain(own, hidden[0]))
    loss = functional.cross_entropy(logits, labels[0], reduction="sum")
    for name, gradient in zip(FAST, torch.autograd.grad(loss, [own[name] for name in FAST]), strict=True):
        assert torch.allclose(sums.recent[name][0], gradient, rtol=0, atol=1e-12), name
    assert sums.count == TIME and not any(total.any() for total in sums.settled.values())


def equal(one: Sums, other: Sums, within: float) -> bool:
    return one.count == other.count and all(
        torch.allclose(getattr(one, part)[name], getattr(other, part)[name], rtol=0, atol=within)
        for part in ("settled", "recent")
        for name in FAST
    )


@pytest.mark.parametrize("stretch", [0, 2, 5])
@pytest.mark.parametrize("cut", [1, 4, 5, 8])
def test_going_on_from_sums_is_reading_at_once(cut: int, stretch: int) -> None:
    net, (hidden, labels, out) = network(stretch=stretch), world(rows=2)
    whole, last = net(hidden, labels, out, net.start(2))
    sums, parts = net.start(2), []
    for start, end in ((0, cut), (cut, TIME)):
        given = hidden[:, start:end], labels[:, start:end], out
        learnt = net.learn(*given, sums)
        part, sums = net(*given, sums)
        assert equal(learnt, sums, within=0)
        parts.append(part)
    assert torch.allclose(torch.cat(parts, 1), whole, rtol=0, atol=1e-11)
    assert equal(sums, last, within=1e-11)


@pytest.mark.parametrize("stretch", [0, 3, 4])
def test_labels_not_yet_known_are_not_needed(stretch: int) -> None:
    net, (hidden, labels, out) = network(stretch=stretch), world()
    whole, _ = net(hidden, labels, out, net.start(1))
    for known in (0, 3, 4, TIME - 1):
        found, _ = net(hidden, labels[:, :known], out, net.start(1))
        assert torch.allclose(found[:, : known + 1], whole[:, : known + 1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("stretch", [0, 2])
def test_the_loss_of_the_fast_answers_is_differentiable_in_weights_and_rates(stretch: int) -> None:
    net, (hidden, labels, out) = network(stretch=stretch), world()
    names = (
        "first",
        "second",
        "second_bias",
        "gain",
        "last",
        "log_rates.second_in",
        "log_rates.second_out",
        "log_rates.bias",
    )
    own = dict(net.named_parameters())

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self) -> Tensor:
            logits = fast_logits(self.net, hidden[:, :5], labels[:, :5], out)
            return functional.cross_entropy(logits[0], labels[0, :5])

    def loss(*values: Tensor) -> Tensor:
        given = {f"net.{name}": value for name, value in zip(names, values, strict=True)}
        return functional_call(Loss(), given, ())

    given = tuple(own[name].detach().clone().requires_grad_() for name in names)
    # No stop-gradient: the slow pass, too, is differentiated through.
    assert torch.autograd.gradcheck(loss, given)


def test_untrained_and_with_nothing_read_what_comes_in_goes_out() -> None:
    hidden, labels, out = world()
    net = FastWeights(WIDTH, chunk=4).double()
    assert torch.equal(net.still(hidden), hidden)
    found, _ = net(hidden, labels, out, net.start(1))
    assert torch.equal(found[:, :1], hidden[:, :1])
    assert not torch.equal(found[:, 1:], hidden[:, 1:])


def test_at_pace_zero_only_the_slow_weights_answer() -> None:
    net, (hidden, labels, out) = network(), world()
    at_first = net.start(1)
    hasty = net(hidden, labels, out, at_first)[0]
    net.rate_scale = 0.0
    found, sums = net(hidden, labels, out, at_first)
    assert torch.equal(found, net.still(hidden)) and not torch.allclose(found, hasty, atol=0.1)
    assert sums is at_first
    # Nearly at rate_scale zero it is nearly the same: the step is there, and it is small.
    net.rate_scale = 1e-9
    assert torch.allclose(found, net(hidden, labels, out, at_first)[0], rtol=0, atol=1e-6)


def test_memory_grows_as_the_text_does() -> None:
    def saved(time: int) -> int:
        net, total = FastWeights(WIDTH, chunk=8), 0
        out = Unembedding(torch.randn(VOCABULARY, WIDTH))

        def keep(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            net(torch.randn(1, time, WIDTH), torch.randint(VOCABULARY, (1, time)), out, net.start(1))
        return total

    # Doubling the text doubles what a gradient needs; attention over it all would make it four times.
    assert saved(512) < 2.05 * saved(256)


def test_fitted_features_tell_states_apart_that_random_ones_confuse() -> None:
    torch.manual_seed(3)
    # One direction shared by all, and large; what differs is small.
    states = torch.randn(400, 16) * torch.tensor([30.0] + [1.0] * 15) + 20
    out = Unembedding(torch.randn(50, 16))

    def likeness(net: FastWeights) -> Tensor:
        features = net.features(states)
        assert (features.norm(dim=-1) < LENGTH + 1e-4).all()
        return (functional.normalize(features, dim=-1) @ functional.normalize(features, dim=-1).T).mean()

    torch.manual_seed(4)
    net = FastWeights(16)
    before = likeness(net)
    net.fit(states, out)
    assert likeness(net) < 0.3 < 0.5 < before
    assert ((net.features(states) > 0).float().mean() - 0.067).abs() < 0.02


def test_a_fitted_layer_teaches_one_word_without_teaching_all() -> None:
    torch.manual_seed(3)
    out = Unembedding(torch.randn(50, 16) + 4 * torch.randn(16))

    def shared(last: Tensor) -> Tensor:
        """How much of what a step does for a word it does for another one."""
        words = out.weight @ last.T
        reach = words @ words.T
        return (reach.sum() - reach.trace()) / 49 / reach.trace()

    net = FastWeights(16)
    net.fit(torch.randn(400, 16), out)
    assert shared(net.last) < 0.7 * shared(torch.eye(16))
    # On average a step is as long as it was.
    assert torch.allclose((out.weight @ net.last.T).square().sum(), out.weight.square().sum(), rtol=1e-4)
