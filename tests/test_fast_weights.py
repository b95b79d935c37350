"""Fast weights against an explicit gradient step, in float64."""

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from uptake.nets.fast_weights import EPSILON, FEATURES, QUICK, FastWeights, Unembedding

WIDTH, VOCABULARY, TIME = 6, 11, 9


def network(chunk: int = 4) -> FastWeights:
    torch.manual_seed(0)
    made = FastWeights(WIDTH, chunk=chunk).double()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            # Every rate another one, large enough for the step to show.
            rates = name.startswith("log_rates")
            parameter.copy_(
                (torch.randn_like(parameter) / 2 - 1) / QUICK if rates else torch.randn_like(parameter)
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
    z = features @ parts["second"] + parts["second_bias"]
    return hidden + functional.layer_norm(z, (WIDTH,), parts["gain"], parts["bias"], EPSILON)


def stepped(net: FastWeights, hidden: Tensor, labels: Tensor, out: Unembedding, sequential: bool) -> Tensor:
    """Answer at every position after one explicit step on those before it, or after one step on each."""
    slow = dict(net.named_parameters(recurse=False))

    def after(parts: dict[str, Tensor], start: int, end: int) -> dict[str, Tensor]:
        logits = out.logits(plain(parts, hidden[start:end]))
        loss = functional.cross_entropy(logits, labels[start:end], reduction="sum")
        gradients = torch.autograd.grad(loss, list(parts.values()), create_graph=True)
        return {
            name: part - net.rates[name] * gradient
            for (name, part), gradient in zip(parts.items(), gradients, strict=True)
        }

    rows, parts = [], slow
    for t in range(len(hidden)):
        if t > 0:
            parts = after(parts, t - 1, t) if sequential else after(slow, 0, t)
        rows.append(out.logits(plain(parts, hidden[t : t + 1])))
    return torch.cat(rows)


def test_every_position_answers_as_one_step_on_all_before_it() -> None:
    net, (hidden, labels, out) = network(), world(rows=3)
    found = fast_logits(net, hidden, labels, out)
    for row in range(3):
        naive = stepped(net, hidden[row], labels[row], out, sequential=False)
        assert torch.allclose(found[row], naive, rtol=0, atol=1e-11)
        assert not torch.allclose(found[row], out.logits(net.still(hidden[row])), atol=0.1)


def test_steps_one_after_another_are_something_else_from_the_third_position_on() -> None:
    net, (hidden, labels, out) = network(), world()
    found = fast_logits(net, hidden, labels, out)[0]
    naive = stepped(net, hidden[0], labels[0], out, sequential=True)
    assert torch.allclose(found[:2], naive[:2], rtol=0, atol=1e-11)
    assert ((found - naive).abs().amax(-1) > 1e-3)[2:].all()


@pytest.mark.parametrize("chunk", [1, 2, 8, 9, 100])
def test_the_chunk_changes_nothing(chunk: int) -> None:
    hidden, labels, out = world(rows=2)
    whole = fast_logits(network(chunk=TIME), hidden, labels, out)
    assert torch.allclose(fast_logits(network(chunk), hidden, labels, out), whole, rtol=0, atol=1e-11)


def test_a_label_shows_only_after_its_position() -> None:
    net, (hidden, labels, out) = network(), world()
    before = fast_logits(net, hidden, labels, out)[0]
    labels[0, 5] = (labels[0, 5] + 1) % VOCABULARY
    after = fast_logits(net, hidden, labels, out)[0]
    assert torch.equal(before[:6], after[:6])
    assert ((before - after).abs().amax(-1) > 1e-6)[6:].all()


def test_a_hidden_state_shows_only_from_its_position_on() -> None:
    net, (hidden, labels, out) = network(), world()
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
    for (name, _), gradient in zip(own.items(), torch.autograd.grad(loss, list(own.values())), strict=True):
        assert torch.allclose(sums[name][0], gradient, rtol=0, atol=1e-12), name


@pytest.mark.parametrize("cut", [1, 4, 5, 8])
def test_going_on_from_sums_is_reading_at_once(cut: int) -> None:
    net, (hidden, labels, out) = network(), world(rows=2)
    whole, last = net(hidden, labels, out, net.start(2))
    sums, parts = net.start(2), []
    for start, end in ((0, cut), (cut, TIME)):
        given = hidden[:, start:end], labels[:, start:end], out
        learnt = net.learn(*given, sums)
        part, sums = net(*given, sums)
        assert all(torch.equal(learnt[name], total) for name, total in sums.items())
        parts.append(part)
    assert torch.allclose(torch.cat(parts, 1), whole, rtol=0, atol=1e-11)
    assert all(torch.allclose(sums[name], total, rtol=0, atol=1e-11) for name, total in last.items())


def test_labels_not_yet_known_are_not_needed() -> None:
    net, (hidden, labels, out) = network(), world()
    whole, _ = net(hidden, labels, out, net.start(1))
    for known in (0, 3, 4, TIME - 1):
        found, _ = net(hidden, labels[:, :known], out, net.start(1))
        assert torch.allclose(found[:, : known + 1], whole[:, : known + 1], rtol=0, atol=1e-12)


def test_the_loss_of_the_fast_answers_is_differentiable_in_weights_and_rates() -> None:
    net, (hidden, labels, out) = network(), world()
    names = (
        "first",
        "second",
        "second_bias",
        "gain",
        "log_rates.first_in",
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
    assert torch.autograd.gradcheck(loss, given)
    # No stop-gradient: the slow pass, too, is differentiated through.
    direct = torch.autograd.grad(loss(*given), given)
    keys = net.slow(hidden[:, :5], labels[:, :5], out)
    with torch.no_grad():
        held = type(keys)(*(tensor.clone() for tensor in keys))
    logits = out.logits(net.fast(hidden[:, :5], held, net.start(1))[0])
    stopped = torch.autograd.grad(functional.cross_entropy(logits[0], labels[0, :5]), [own["second"]])[0]
    assert not torch.allclose(direct[1], stopped, atol=1e-4)


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
    net.pace = 0.0
    found, sums = net(hidden, labels, out, at_first)
    assert torch.equal(found, net.still(hidden)) and not torch.allclose(found, hasty, atol=0.1)
    # Computed the long way it is the same: the step is there, and it is nought.
    long_way, _ = net.fast(hidden, net.slow(hidden, labels, out), at_first)
    assert torch.allclose(found, long_way, rtol=0, atol=1e-12)
    assert all(torch.equal(sums[name], total) for name, total in at_first.items())


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

    def likeness(net: FastWeights) -> Tensor:
        features = (states @ net.first + net.first_bias).relu().square()
        features = functional.normalize(features, dim=-1)
        return (features @ features.T).mean()

    torch.manual_seed(4)
    net = FastWeights(16)
    before = likeness(net)
    net.fit(states)
    assert likeness(net) < 0.3 < 0.5 < before
    features = (states @ net.first + net.first_bias).relu().square()
    assert torch.allclose(features.square().sum(-1).mean(), torch.tensor(FEATURES), rtol=1e-3)
