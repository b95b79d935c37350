"""An encoder-decoder is an LM by one method of its own: it is scored, compared and adapted like any other."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import toys
from uptake.adaptation.delta import Delta, fingerprint, skeleton
from uptake.adaptation.optimizers import SGD
from uptake.adaptation.trainable import Trainable, TrainableCopy
from uptake.errors import BadInput
from uptake.lm.base import LM, Cache, Segment
from uptake.lm.capabilities import Layers, capability
from uptake.lm.examples import Example, encode, of_target
from uptake.lm.experts import Experts, FixedShare
from uptake.lm.generation import Decoding
from uptake.lm.scoring import kl, losses
from uptake.lm.wrappers import Routed
from uptake.methods.contract.method import Context, Evidence, MethodSpec
from uptake.methods.finetune import Finetune
from uptake.session import Session
from uptake.text.select import Nearest
from uptake.text.tokenizer import Tokenizer

WIDTH, VOCABULARY = 16, 257


class Network(nn.Module):
    """A mean over the encoded context, added to each step of a recurrent decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.encoder = nn.Linear(WIDTH, WIDTH)
        self.decoder = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.out = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, context: Tensor, inputs: Tensor) -> Tensor:
        """Return logits [time, vocabulary] after each of `inputs` [time], given the context [time]."""
        encoded = torch.tanh(self.encoder(self.embedding(context))).mean(0)
        states, _ = self.decoder((self.embedding(inputs) + encoded)[None])
        return self.out(states[0])  # type: ignore[no-any-return]


class EncoderDecoder(LM):
    """The context goes to the encoder, the target to the decoder, behind the token it begins with."""

    window = 64
    has_step = False
    device = torch.device("cpu")

    def __init__(self, module: nn.Module, base: str = "", given: Mapping[str, Tensor] | None = None) -> None:

        self.module, self.tokenizer = module, Tokenizer(toys.tokenizer())
        self.fingerprint = base or fingerprint(module)
        self.parameters = dict(given or {})

    def predictions(self, examples: Sequence[Example]) -> list[Tensor]:
        found = []
        for example in examples:
            inputs = torch.tensor([self.tokenizer.opening, *example.target[:-1]])
            arguments = (torch.tensor(example.context), inputs)
            logits: Any = functional_call(self.module, self.parameters, arguments)
            found.append(torch.log_softmax(logits, -1))
        return found

    def step(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        raise BadInput("an encoder-decoder reads a context first: use predictions")

    def overlay(self, delta: Delta) -> LM:
        return EncoderDecoder(delta.over(self.module, self.fingerprint), self.fingerprint)

    def trainable_copy(
        self, trainable: Trainable, start: Delta, generator: torch.Generator
    ) -> tuple[LM, TrainableCopy]:
        opened = trainable.copy(self.module, start, generator)
        return EncoderDecoder(opened.module, self.fingerprint), opened

    def with_parameters(self, parameters: Mapping[str, Tensor]) -> LM:
        return EncoderDecoder(skeleton(self.module), self.fingerprint, parameters)


def lm(seed: int = 0) -> EncoderDecoder:
    torch.manual_seed(seed)
    return EncoderDecoder(Network().double().requires_grad_(False))


QUESTION, ANSWER = "who saw max? ", "lou saw max."


def test_a_text_is_scored_after_its_context() -> None:
    model = lm()
    (scores,) = model.score([Segment(ANSWER, QUESTION)])
    context = torch.tensor(model.tokenizer.opened(QUESTION))
    ids = model.tokenizer.encode(ANSWER)[0]
    logits = model.module(context, torch.tensor([model.tokenizer.opening, *ids[:-1]]))
    expected = [logits[place].log_softmax(-1)[token] for place, token in enumerate(ids)]
    assert torch.allclose(scores.log_probs, torch.stack(expected), atol=1e-12)
    assert scores.spans == model.tokenizer.encode(ANSWER)[1] and scores.bytes == len(ANSWER)
    # Longer than the window: piece by piece, every token once.
    (scores,) = model.score([Segment(ANSWER * 20, QUESTION)])
    assert len(scores.log_probs) == 20 * len(ANSWER) and bool(scores.log_probs.isfinite().all())


def test_losses_and_divergences_are_those_of_any_model() -> None:
    model, other = lm(), lm(1)
    examples = [encode(model.tokenizer, QUESTION, ANSWER), encode(model.tokenizer, "", "max")]
    scores = model.score([Segment(ANSWER, QUESTION), Segment("max")])
    expected = torch.stack([-each.log_probs.mean() for each in scores])
    assert torch.allclose(losses(model, examples), expected, atol=1e-12)
    for nats, example in zip(kl(model, other, examples), examples, strict=True):
        p, q = model.predictions([example])[0], other.predictions([example])[0]
        assert torch.allclose(nats, (p.exp() * (p - q)).sum(-1), atol=1e-12) and bool((nats > 0).all())


def test_it_stands_in_mixtures_and_rows_like_any_model() -> None:
    model, other = lm(), lm(1)
    segments = [Segment(ANSWER, QUESTION), Segment("max saw lou.", QUESTION)]
    one, two = model.score(segments), other.score(segments)
    mixed = toys.mixed([model, other], [0.25, 0.75]).score(segments)
    routed = Routed([model, other]).score(segments)
    bayes = Experts([model, other], FixedShare((0.5, 0.5))).score(segments)
    for row, (p, q) in enumerate(zip(one, two, strict=True)):
        probabilities = 0.25 * p.log_probs.exp() + 0.75 * q.log_probs.exp()
        assert torch.allclose(mixed[row].log_probs.exp(), probabilities, atol=1e-12)
        assert torch.equal(routed[row].log_probs, (p, q)[row].log_probs)
        assert bayes[row].bits <= p.bits + 1
    example = encode(model.tokenizer, QUESTION, ANSWER)
    found = of_target(Experts([model, other], FixedShare((0.5, 0.5))).predictions([example])[0], example)
    assert torch.allclose(found, bayes[0].log_probs, atol=1e-12)


def test_fine_tuning_it_is_gradient_steps_on_its_own_loss() -> None:
    model, text = lm(), "max saw lou. " * 3
    method = Finetune(optimizer=SGD(0.5), clip=None, chunk_tokens=20)
    context = Context()
    (state,) = method.adapt([method.init(model)], model, [Evidence.of(text)], context)
    assert context.ledger(0).steps == 2
    by_hand = Network().double()
    by_hand.load_state_dict(model.module.state_dict())
    ids = [model.tokenizer.opening, *model.tokenizer.encode(text)[0]]
    for start in range(0, len(ids) - 1, 20):
        target = ids[start + 1 : start + 21]
        logits = by_hand(torch.tensor(ids[start : start + 1]), torch.tensor([0, *target[:-1]]))
        loss = nn.functional.cross_entropy(logits, torch.tensor(target))
        gradients = torch.autograd.grad(loss, list(by_hand.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(by_hand.parameters(), gradients, strict=True):
                parameter -= 0.5 * gradient
    segment = Segment("lou saw max.", "who? ")
    (found,) = method.adapted([state], model).score([segment])
    (expected,) = EncoderDecoder(by_hand).score([segment])
    assert torch.allclose(found.log_probs, expected.log_probs, atol=1e-10)
    (before,) = model.score([segment])
    assert not math.isclose(before.bits, found.bits, rel_tol=1e-3)


def test_gradients_go_through_given_parameters() -> None:
    model = lm()
    example = encode(model.tokenizer, QUESTION, ANSWER)
    given = {name: own.clone().requires_grad_() for name, own in model.module.named_parameters()}
    loss = losses(model.with_parameters(given), [example])[0]
    assert math.isclose(loss.item(), losses(model, [example])[0].item())
    gradients = torch.autograd.grad(loss, list(given.values()))
    assert all(bool(gradient.abs().sum() > 0) for gradient in gradients)


def continued(model: EncoderDecoder, prompt: str, tokens: int) -> str:
    """Return the greedy continuation, each token from the whole context and all that was written."""
    context, written = torch.tensor(model.tokenizer.opened(prompt)), [model.tokenizer.opening]
    for _ in range(tokens):
        token = int(model.module(context, torch.tensor(written))[-1].argmax())
        if token == model.tokenizer.end:
            break
        written.append(token)
    return model.tokenizer.decode(written[1:])


def test_it_continues_texts_alone_in_rows_in_wrappers_and_in_a_session() -> None:
    model, other = lm(), lm(1)
    prompts = [QUESTION, "max"]
    expected = [continued(model, prompt, 12) for prompt in prompts]
    assert expected[0] and expected[0] != expected[1] and expected[0] != continued(other, QUESTION, 12)
    assert [model.generate(prompt, tokens=12) for prompt in prompts] == expected
    assert model.generate_rows(prompts, Decoding(tokens=12)) == expected
    assert toys.mixed([model, other], [1 - 1e-9, 1e-9]).generate(QUESTION, tokens=12) == expected[0]
    routed = Routed([model, other]).generate_rows([QUESTION] * 2, Decoding(tokens=12))
    assert routed == [expected[0], continued(other, QUESTION, 12)]
    session = Session(model, MethodSpec(Finetune(optimizer=SGD(0.5), clip=None), Nearest()))
    session.read("max saw lou. " * 3)
    assert session.stopped is None and session.generate(QUESTION, 12) == session.adapted.generate(
        QUESTION, 12
    )
    assert session.generate(QUESTION, 12) != expected[0]


def test_it_goes_on_beyond_the_window() -> None:
    model = lm()
    tokens = list(model.stream(QUESTION, Decoding(tokens=200)))
    assert len(tokens) == 200 and tokens[-1].finish == "length"


def test_what_it_cannot_do_is_refused_with_the_cure() -> None:
    with pytest.raises(BadInput, match=r"is an encoder-decoder, and has no one network .*: use a causal"):
        capability(lm(), Layers)
    with pytest.raises(BadInput, match="Experts has no one network"):
        capability(toys.mixed([toys.lm()], [1.0]), Layers)
    base = toys.lm()
    assert capability(Routed([base]), Layers) is base
    with pytest.raises(BadInput, match="2 rows have no weights in common"):
        capability(Routed([base, base]), Layers)
