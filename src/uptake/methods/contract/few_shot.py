"""Learning a task from a few examples: all of them in each step, from wherever a method says it begins.

An example is a passage: its prompt is read, its text is learnt, and wrong answers stand in its meta, where
T-Few's losses find them.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from uptake.adaptation.delta import Delta
from uptake.adaptation.inner_loop import GradientDescent
from uptake.adaptation.optimizers import SGD, Optimizer
from uptake.adaptation.trainable import Trainable, TrainableCopy
from uptake.adaptation.transforms import chain
from uptake.errors import BadInput, Diverged
from uptake.lm.base import LM
from uptake.lm.choices import Choices
from uptake.lm.examples import Example, encode, training_pieces
from uptake.lm.side_by_side import side_by_side
from uptake.lm.size import settled
from uptake.lm.task_training import LossesOf, descend
from uptake.methods.contract.method import Context, Evidence, Method, charged_by_row
from uptake.methods.contract.spending import Ledger
from uptake.methods.contract.weight_state import WeightState
from uptake.tasks.few_shot import CHOICES, Shot
from uptake.text.types import Passage


@dataclass(frozen=True, kw_only=True)
class FewShotMethod(Method[WeightState]):
    """Trains on all examples of one reading at once, `steps` steps."""

    trains_weights_only: ClassVar[bool] = True

    optimizer: Optimizer = field(default_factory=lambda: SGD(learning_rate=0.05))
    steps: int = 5
    clip: float | None = 1.0
    choices: Choices | None = None  # T-Few's losses, for examples with wrong answers

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise BadInput(f"steps {self.steps}: use 0 or more")
        chain(self.clip)

    @property
    def incremental(self) -> bool:
        return False  # all examples of one reading are in every step

    @property
    def separate(self) -> bool:
        return True

    @abstractmethod
    def trainable_for(self, lm: LM, examples: Sequence[Example]) -> Trainable:
        """Return what is trained on a task with these examples."""

    def begin(self, lm: LM, opened: TrainableCopy, examples: Sequence[Example]) -> None:
        """Put where training begins into a copy that was opened on the base."""

    def init(self, lm: LM) -> WeightState:
        return WeightState(base=lm.fingerprint, delta=Delta(lm.fingerprint))

    def adapt(
        self,
        states: Sequence[WeightState],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[WeightState]:
        def learn(row: int, state: WeightState, read: Evidence) -> WeightState:
            return self._learn(row, state, lm, read, context) if read.passages else state

        return charged_by_row(learn, states, evidence, context, lm.device)

    def adapted(self, states: Sequence[WeightState], lm: LM) -> LM:
        return side_by_side(lm, [state.delta for state in states])

    def _learn(
        self, row: int, state: WeightState, lm: LM, evidence: Evidence, context: Context
    ) -> WeightState:
        examples = examples_of(lm, evidence.passages)
        if not examples:
            return state
        trainable = self.trainable_for(lm, examples)
        private, opened = lm.trainable_copy(trainable, state.delta, context.generator("moves"))
        opened.module.eval()
        if not state.history:
            self.begin(lm, opened, examples)
        # A soft prompt takes up places of the model's input.
        examples = examples_of(private, evidence.passages)
        descent = GradientDescent(
            opened.parameters, settled(self.optimizer, lm), chain(self.clip), state.resumed()
        )
        losses_of = None if self.choices is None else self._marked(private, evidence.passages, self.choices)
        ledger = context.ledger(row)
        try:
            descend(
                private,
                examples,
                descent,
                self.steps,
                losses_of,
                spending(context, row, ledger, examples),
            )
        except Diverged as error:
            ledger.stop("diverged", str(error))
            return state
        return state.after_training(evidence, context, opened.delta(), descent.optimizer_state)

    def _marked(self, lm: LM, passages: Sequence[Passage], choices: Choices) -> LossesOf:
        wrong = wrong_of(lm, passages)
        return lambda some: choices.losses(lm, some, wrong)


def spending(context: Context, row: int, ledger: Ledger, examples: Sequence[Example]) -> Callable[[], bool]:
    """Return what is called before each step on all examples: it counts the step, or says no more is paid."""
    tokens = sum(len(each.inputs) for each in examples)

    def goes_on() -> bool:
        if not context.affords(row, tokens):
            return False
        ledger.tokens_trained += tokens
        ledger.steps += 1
        return True

    return goes_on


def examples_of(lm: LM, passages: Sequence[Passage], taken: int = 0) -> list[Example]:
    """Return what is learnt of passages: each after its prompt, cut to what the model takes.

    `taken` of its input tokens are for a soft prompt. Raises BadInput where that leaves none.
    """
    most = room(lm, taken)
    found = []
    for passage in passages:
        whole = encode(lm.tokenizer, passage.prompt, passage.text)
        if passage.prompt and len(whole.target) <= most:
            whole = whole.ending(most)
        found += [example for _, example in training_pieces(whole, most, True)]
    return found


def shots_of(lm: LM, shots: Sequence[Shot], taken: int = 0) -> list[Example]:
    """Return the examples of shots, as `examples_of` those of their passages."""
    return examples_of(lm, [shot.passage() for shot in shots], taken)


def wrong_of(lm: LM, passages: Sequence[Passage]) -> dict[Example, list[Example]]:
    """Return the wrong answers of examples that have some, one a line in their passage's meta."""
    most, found = room(lm, 0), dict[Example, list[Example]]()
    for passage in passages:
        named = passage.meta.get(CHOICES, "")
        # A text that was cut in pieces has no one place for an answer.
        right = examples_of(lm, [passage])
        if not named or len(right) != 1:
            continue
        answers = [answer + passage.text[len(passage.text.rstrip("\n")) :] for answer in named.split("\n")]
        found[right[0]] = [
            encode(lm.tokenizer, passage.prompt, answer).ending(most) for answer in answers if answer
        ]
    return found


def room(lm: LM, taken: int) -> int:
    """Return how many tokens an example may have. Raises BadInput for none."""
    most = lm.max_input_tokens(0) - 1 - taken
    if most < 1:
        raise BadInput(
            f"a prompt of {taken:,} tokens leaves nothing of the model's {lm.max_input_tokens(0):,} input "
            "tokens: use one of fewer"
        )
    return most
