"""A soft prompt takes input tokens: whoever trains one cuts texts to what is left."""

import pytest

import toys
from uptake.adaptation.delta.prompt import Prompt as SoftPrompt
from uptake.adaptation.optimizers import SGD
from uptake.adaptation.trainable.prompt import Prompt
from uptake.errors import BadInput
from uptake.methods.camels import Camels
from uptake.methods.contract.learned import TrainingData
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.finetune import Finetune
from uptake.methods.fwl import FWL
from uptake.methods.source_code import SourceCode
from uptake.tasks.questions import Question
from uptake.tasks.retune import Retuning, retune
from uptake.text.types import Document

LONG = tuple(Document(f"d{i}", f"number {i} is one fish, two fish, " * 6) for i in range(2))
ASKED = tuple(Question(f"q{i}", f"what is number {i}? " * 9, ("fish",), f"d{i}") for i in range(2))
TOKENS = 5


@pytest.fixture
def lm() -> toys.Causal:
    """Positions end where the window does: one token too many is an error."""
    return toys.lm("gpt2", window=64)


def test_camels_trains_through_steps_on_texts_longer_than_the_window(lm: toys.Causal) -> None:
    steps = Finetune(trainable=Prompt(TOKENS), optimizer=SGD(0.1), clip=None)
    method = Camels(steps=steps, documents=2, batches=1)
    (episode,) = method.episodes(lm, TrainingData(LONG, ASKED, LONG[:1]))
    network = method.fresh(lm).train()
    loss, gradients = method.gradients(network, lm, episode)
    assert loss > 0 and any(each is not None and bool(each.any()) for each in gradients)


@pytest.mark.parametrize("shape", ["gpt2", "llama"])
def test_a_prompt_leaves_room_for_what_opens_a_text_and_a_token_of_it(shape: str) -> None:
    lm = toys.lm(shape, window=64)
    for tokens in (62, 63, 64):
        method = Finetune(trainable=Prompt(tokens), optimizer=SGD(0.1))

        def go_on(method: Finetune = method) -> str:
            (state,) = method.adapt([method.init(lm)], lm, [Evidence.of("one fish")], Context())
            return method.adapted([state], lm).generate("two", 5)

        if tokens == 62:
            assert len(go_on()) == 5
        else:
            with pytest.raises(BadInput, match=f"{tokens} of the model's 64 input .* at most 62 tokens"):
                go_on()


def test_retuning_learns_questions_and_documents_longer_than_the_window(lm: toys.Causal) -> None:
    delta = retune(lm, ASKED, retuning=Retuning(Prompt(TOKENS), SGD(0.1)), documents=LONG)
    assert delta.kinds == {SoftPrompt} and delta.input_tokens == TOKENS


def test_fast_weights_train_no_prompt_along() -> None:
    with pytest.raises(BadInput, match="trainable=prompt: fast weights train along what begins as the base"):
        FWL(trainable=Prompt(TOKENS))


def test_a_trained_start_is_of_whole_weights(lm: toys.Causal) -> None:
    inner = Finetune(trainable=Prompt(TOKENS), optimizer=SGD(0.1))
    with pytest.raises(BadInput, match=r"set inner\.trainable to all or top"):
        SourceCode(inner=inner).build(lm)
