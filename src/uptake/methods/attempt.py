"""ATTEMPT: a task's soft prompt is mixed from prompts of other tasks by attention (Asai et al. 2022)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from uptake.adaptation.delta import Delta, wide
from uptake.adaptation.delta.prompt import Prompt, transformer_of
from uptake.adaptation.draws import drawing_from
from uptake.adaptation.inner_loop import GradientDescent
from uptake.adaptation.optimizers import SGD, AdamW, Optimizer
from uptake.adaptation.trainable.prompt import Prompt as TrainablePrompt
from uptake.adaptation.transforms import chain
from uptake.errors import BadInput, Diverged
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.lm.examples import Example, encode
from uptake.lm.scoring import losses, per_token
from uptake.lm.side_by_side import side_by_side
from uptake.lm.size import settled
from uptake.lm.task_training import descend
from uptake.methods.contract.editor import only_causal
from uptake.methods.contract.few_shot import examples_of, shots_of, spending
from uptake.methods.contract.learned import Learned, TrainingData
from uptake.methods.contract.method import Context, Evidence, MethodSpec, charged_by_row
from uptake.methods.contract.task_learner import opened_once
from uptake.methods.contract.weight_state import WeightState
from uptake.tasks.few_shot import Task, tasks_of

OWNER = "attempt"


class Attention(nn.Module):
    """Source prompts, a target prompt, and the attention that mixes them for an input.

    `sources` is [sources, tokens, width], `target` [tokens, width], `temperature` what scores are divided by.
    """

    sources: Tensor

    def __init__(self, sources: Tensor, inner: int, temperature: float) -> None:
        super().__init__()
        self.register_buffer("sources", sources)
        _, _, width = sources.shape
        self.target = nn.Parameter(sources.mean(0).clone())
        self.down = nn.Linear(width, inner, bias=False)
        self.up = nn.Linear(inner, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.temperature = temperature

    def shares(self, inputs: Tensor, target: Tensor | None = None) -> Tensor:
        """Return the share of each source, and last of the target, for inputs [rows, width]: rows sum to one.

        An input is the maximum over its tokens of their embeddings; so is what stands for a prompt.
        """
        own = self.target if target is None else target
        prompts = torch.cat([self.sources, own[None]]).amax(1)
        asked = self.norm(self.up(functional.silu(self.down(inputs))))
        found: Tensor = (asked @ prompts.T / self.temperature).softmax(-1)
        return found

    def mixed(self, inputs: Tensor, target: Tensor | None = None) -> Tensor:
        """Return the prompt of each input, [rows, tokens, width]: prompts by their shares, and the target."""
        own = self.target if target is None else target
        prompts = torch.cat([self.sources, own[None]])
        return torch.einsum("rp,ptw->rtw", self.shares(inputs, own), prompts) + own


@dataclass(frozen=True, kw_only=True)
class AttemptState(WeightState):
    """What a task's examples taught: target prompt and attention, by name; `delta` is for one query."""

    learnt: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Attempt(Learned[AttemptState, Task]):
    """Trains a target prompt and an attention over frozen source prompts on a task's examples.

    Sources are deltas of `trainable=prompt` in files (`sources`), or `drawn` prompts that learnt nothing, the
    control. A prompt is mixed for each input by what is read and not scored: an example's prompt, the query.
    So no token is scored with what it or a later one says. Where nothing is asked, it is the mean of those of
    the examples. `inner` is the width of the attention; scores are divided by `temperature`, e times the
    model's width if left out. All examples are in each of `steps` steps. Before, `uptake train` trains target
    and attention on other tasks.
    """

    trains_weights_only: ClassVar[bool] = True

    sources: tuple[str, ...] = ()
    drawn: int = 0
    tokens: int = 20  # of drawn prompts
    inner: int = 100
    temperature: float | None = None
    optimizer: Optimizer = field(default_factory=lambda: AdamW(learning_rate=1e-2, weight_decay=0.0))
    steps: int = 20
    clip: float | None = 1.0
    support: int = 16
    asked: int = 16

    def __post_init__(self) -> None:
        if min(self.tokens, self.inner, self.support, self.asked) < 1 or min(self.drawn, self.steps) < 0:
            raise BadInput(
                f"tokens {self.tokens}, inner {self.inner}, support {self.support}, asked {self.asked}, "
                f"drawn {self.drawn}, steps {self.steps}: use 1 or more, of the last two 0 or more"
            )
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise BadInput(
                f"temperature {self.temperature}: use a positive number, or none for e times the width"
            )
        if self.sources and self.drawn:
            raise BadInput(f"sources and drawn={self.drawn}: give one of them")
        chain(self.clip)

    @property
    def incremental(self) -> bool:
        return False

    @property
    def separate(self) -> bool:
        return True

    @property
    def takes_input_tokens(self) -> bool:
        return True

    @classmethod
    def example(cls) -> Self:
        optimizer = SGD(learning_rate=0.5)
        return cls(weights="untrained", drawn=2, tokens=3, inner=8, optimizer=optimizer, steps=2)

    def init(self, lm: LM) -> AttemptState:
        self.network(lm)
        return AttemptState(base=lm.fingerprint, delta=Delta(lm.fingerprint))

    def adapt(
        self,
        states: Sequence[AttemptState],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[AttemptState]:
        causal = only_causal(lm, "ATTEMPT")

        def learn(row: int, state: AttemptState, read: Evidence) -> AttemptState:
            return self._learn(row, state, causal, read, context) if read.passages else state

        return charged_by_row(learn, states, evidence, context, lm.device)

    def adapted(self, states: Sequence[AttemptState], lm: LM) -> LM:
        return side_by_side(lm, [state.delta for state in states])

    def asked_for(self, state: AttemptState, lm: LM, query: str) -> AttemptState:
        """Return the state with its prompt mixed for another input, as published: every input has its own."""
        if not state.history:
            return state
        causal, network = only_causal(lm, "ATTEMPT"), self._learning(lm, state)
        inputs = inputs_of(causal, [encode(lm.tokenizer, query, "")])
        return replace(state, delta=self._delta(causal, network, inputs))

    def _learn(
        self, row: int, state: AttemptState, lm: Causal, evidence: Evidence, context: Context
    ) -> AttemptState:
        network = self._learning(lm, state)
        learning = dict(network.named_parameters())
        examples, ledger = examples_of(lm, evidence.passages, len(network.target)), context.ledger(row)
        if not examples:
            return state
        descent = GradientDescent(learning, settled(self.optimizer, lm), chain(self.clip), state.resumed())

        def losses_of(some: Sequence[Example]) -> Tensor:
            return losses(self._prompted(network, lm, some), some)

        try:
            descend(lm, examples, descent, self.steps, losses_of, spending(context, row, ledger, examples))
        except Diverged as error:
            ledger.stop("diverged", str(error))
            return state
        own = evidence.prefix
        inputs = inputs_of(lm, [encode(lm.tokenizer, own, "")] if own else examples)
        after = state.after_training(
            evidence, context, self._delta(lm, network, inputs), descent.optimizer_state
        )
        assert isinstance(after, AttemptState)
        learnt = {name: value.detach().clone() for name, value in learning.items()}
        return replace(after, learnt=learnt)

    def _learning(self, lm: LM, state: AttemptState) -> Attention:
        """Return a network of its own, with what a state has learnt in it."""
        trained = self.network(lm)
        assert isinstance(trained, Attention)
        with drawing_from(torch.Generator()):
            own = Attention(trained.sources, len(trained.down.weight), trained.temperature)
        own.to(trained.sources).load_state_dict({**trained.state_dict(), **state.learnt})
        return own

    def _prompted(self, network: Attention, lm: Causal, examples: Sequence[Example]) -> LM:
        """Return the base with each example's prompt before it; differentiable in the network."""
        opened = opened_once(lm, TrainablePrompt(len(network.target), OWNER))
        ((name, _),) = opened.parameters.items()
        return lm.around(opened.module).with_parameters({name: network.mixed(inputs_of(lm, examples))})

    def _delta(self, lm: Causal, network: Attention, inputs: Tensor) -> Delta:
        """Return the prompt for the mean over inputs as a delta."""
        with torch.no_grad():
            vectors = network.mixed(inputs).mean(0)
        return Delta.of(lm.fingerprint, {"": Prompt(vectors)}, OWNER)

    def build(self, lm: LM) -> Attention:
        causal = only_causal(lm, "ATTEMPT")
        sources = self._sources(causal)
        _, _, width = sources.shape
        return Attention(sources, self.inner, self.temperature or math.e * width)

    def _sources(self, lm: Causal) -> Tensor:
        if not self.sources and not self.drawn:
            raise BadInput(
                'attempt mixes source prompts: name their files, sources=("a.delta","b.delta"), or draw some '
                "that learnt nothing, drawn=6"
            )
        if self.drawn:
            embedding: Tensor = transformer_of(lm.module).get_input_embeddings().weight
            places = torch.randint(min(5000, len(embedding)), (self.drawn, self.tokens))
            return wide(embedding.detach()[places.to(embedding.device)])
        found = [source_prompt(Path(name), lm.fingerprint) for name in self.sources]
        sizes = {tuple(prompt.shape) for prompt in found}
        if len(sizes) > 1:
            raise BadInput(
                f"source prompts of sizes {sorted(sizes)}: train all with the same number of tokens"
            )
        return torch.stack(found).to(lm.device)

    def about(self, network: nn.Module) -> Mapping[str, str]:
        assert isinstance(network, Attention)
        count, tokens, width = network.sources.shape
        inner, temperature = len(network.down.weight), network.temperature
        return {
            "sources": f"{count}",
            "tokens": f"{tokens}",
            "width": f"{width}",
            "inner": f"{inner}",
            "temperature": repr(temperature),
        }

    def restore(self, lm: LM, about: Mapping[str, str]) -> Attention:
        sizes = [int(about[name]) for name in ("sources", "tokens", "width")]
        return Attention(torch.zeros(sizes), int(about["inner"]), float(about["temperature"]))

    def episodes(self, lm: LM, material: TrainingData) -> list[Task]:
        """Return an episode for each task of the questions. Raises BadInput where none has enough of them."""
        return tasks_of(material.questions, material.documents, self.support, self.asked)

    def loss(self, network: nn.Module, lm: LM, episode: Task) -> Tensor:
        """Return how badly all answers of a task are said with the prompts mixed for them, a token."""
        assert isinstance(network, Attention)
        causal = only_causal(lm, "ATTEMPT")
        examples = shots_of(lm, (*episode.support, *episode.asked), len(network.target))
        return per_token(losses(self._prompted(network, causal, examples), examples), examples)


def inputs_of(lm: Causal, examples: Sequence[Example]) -> Tensor:
    """Return what attention sees of examples, [examples, width]: of their contexts alone, the largest
    embeddings.
    """
    embed = transformer_of(lm.module).get_input_embeddings()
    with torch.no_grad():
        return torch.stack(
            [wide(embed(torch.tensor(each.context, device=lm.device))).amax(0) for each in examples]
        )


def source_prompt(path: Path, base: str) -> Tensor:
    """Return the soft prompt in a file, [tokens, width]. Raises BadInput where it holds none, Mismatch."""
    delta = Delta.load(path, base)
    prompts = [part for part in delta.parts.values() if isinstance(part, Prompt)]
    if len(prompts) != 1 or len(delta.parts) != 1:
        raise BadInput(f"{path} holds no single soft prompt: make it with trainable=prompt")
    return wide(prompts[0].vectors)


spec = MethodSpec(Attempt())
