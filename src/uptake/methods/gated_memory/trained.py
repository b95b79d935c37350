"""The trained scope: SERAC's classifier (Mitchell et al. 2022), on what lower blocks make of texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from uptake.adaptation.editing.scope import ReadTexts, ScopeNetwork
from uptake.adaptation.trainable.places import blocks
from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.lm.entering import Entering
from uptake.lm.examples import padded
from uptake.methods.contract.editor import only_causal
from uptake.methods.contract.learned import TrainingData, WithNetwork
from uptake.methods.gated_memory.scope import Memory, Scope, distinct
from uptake.tasks.edits import Edit, says
from uptake.text.types import Passage

_KEPT = 4096  # edits whose vectors stay in memory


@dataclass(frozen=True)
class ScopeEpisode:
    """Edits with the prompts that are about each, and those near each that are not."""

    edits: tuple[Edit, ...]

    @property
    def prompts(self) -> list[tuple[str, int, bool]]:
        """All prompts, each with the place of its edit and whether it is about it."""
        found = []
        for place, edit in enumerate(self.edits):
            about = (edit.prompt, *edit.rephrases, *edit.loose)
            found += [(prompt, place, True) for prompt in about]
            found += [(probe.prompt, place, False) for probe in edit.neighbours]
        return found


@dataclass(frozen=True)
class Trained(WithNetwork[ScopeEpisode], Scope):
    """A prompt is about an edit where p = exp(-d²) is above `threshold`, by the network of `weights`.

    d² is between an edit's prompt and the one that is asked, by `tokens` (of each of the edit's tokens from
    the nearest) or as a `whole`, of what enters the block at `depth`. Trained on steps of `batch` edits,
    every other one of edits alike: prompts about an edit are near; its neighbours (`near`) and the others'
    prompts that do not name its subject (`others`) are far.
    """

    used_as = "scope.weights={}"

    match: Literal["tokens", "whole"] = "tokens"
    depth: float = 0.2
    size: int = 64
    threshold: float = 0.5
    batch: int = 16
    near: float = 1.0
    others: float = 1.0

    def __post_init__(self) -> None:
        if self.match not in ("tokens", "whole"):
            raise BadInput(f"match {self.match!r}: use tokens or whole")
        if not (0 <= self.depth <= 1 and 0 <= self.threshold < 1):
            raise BadInput(f"depth {self.depth}, threshold {self.threshold}: use 0 to 1, and 0 to below 1")
        if min(self.size, self.batch) < 1 or not all(0 <= w < float("inf") for w in (self.near, self.others)):
            raise BadInput(
                f"size {self.size}, batch {self.batch}, near {self.near}, others {self.others}: use 1 or "
                "more, and weights of 0 or more"
            )

    def memory(self, edits: Sequence[Passage], lm: LM) -> Memory:
        return _Near(self, edits, only_causal(lm, "a trained scope"))

    def build(self, lm: LM) -> ScopeNetwork:
        width = self._entering(lm).of(torch.zeros(1, 1, dtype=torch.long, device=lm.device)).shape[-1]
        return ScopeNetwork(width, self.size, self.match == "tokens")

    def episodes(self, lm: LM, material: TrainingData) -> list[ScopeEpisode]:
        """Return `batch` edits for each step, in their order and, every other step, sorted by relation."""
        if len(material.edits) < 2:
            raise BadInput("a scope is learnt from two edits or more: give some, with --edits")
        alike = sorted(material.edits, key=lambda edit: (edit.relation, edit.prompt))
        found = []
        for start in range(0, len(alike), self.batch):
            for edits in (material.edits, alike):
                some = tuple(edits[start : start + self.batch])
                if len(some) > 1:
                    found.append(ScopeEpisode(some))
        return found

    def loss(self, network: nn.Module, lm: LM, episode: ScopeEpisode) -> Tensor:
        """Return -log p of prompts about an edit, -log(1 - p) of those near it and of others, as means."""
        assert isinstance(network, ScopeNetwork)
        prompts = episode.prompts
        keys = self.read(network, lm, [edit.prompt for edit in episode.edits])
        asked = self.read(network, lm, [prompt for prompt, _, _ in prompts])
        apart = network.distances(keys, asked).clamp(min=1e-6)
        owner = torch.tensor([place for _, place, _ in prompts], device=apart.device)
        about = torch.tensor([inside for _, _, inside in prompts], device=apart.device)
        own = owner == torch.arange(len(keys.weights), device=apart.device)[:, None]
        named = torch.tensor(
            [[bool(e.subject) and says(p, e.subject) for p, _, _ in prompts] for e in episode.edits],
            device=apart.device,
        )
        out = -torch.log(-torch.expm1(-apart))
        loss = apart[own & about].mean()
        for weight, which in ((self.near, own & ~about), (self.others, ~own & ~named)):
            if weight and bool(which.any()):
                loss = loss + weight * out[which].mean()
        return loss

    def read(self, network: ScopeNetwork, lm: LM, texts: Sequence[str]) -> ReadTexts:
        """Return texts as the network reads them; of long ones what the window holds last."""
        rows = [lm.tokenizer.opened(text)[-lm.window :] for text in texts]
        hidden = self._entering(lm).of(padded(rows).to(lm.device))
        # The opening token says nothing of what follows it; of an empty text it is all there is.
        sizes = torch.tensor([len(row) for row in rows], device=hidden.device)
        behind = torch.where((sizes > 1)[:, None, None], hidden.roll(-1, 1), hidden)
        found: ReadTexts = network(behind, (sizes - 1).clamp(min=1))
        return found

    def of_edit(self, lm: LM, edit: Passage) -> ReadTexts:
        """Return an edit as the network reads it, by itself; of the latest ones it is kept."""
        network, text = self.network(lm), edit.prompt or edit.text
        assert isinstance(network, ScopeNetwork)
        key = f"{lm.fingerprint} {self.depth} {text}"
        found = network.kept.get(key)
        if found is None:
            found = network.kept[key] = self.of_prompt(lm, text)
            while len(network.kept) > _KEPT:
                network.kept.popitem(last=False)
        return found

    def of_prompt(self, lm: LM, prompt: str) -> ReadTexts:
        """Return a prompt as the network reads it, in float64: what else there is rounds nothing of it."""
        network = self.network(lm)
        assert isinstance(network, ScopeNetwork)
        with torch.no_grad():
            return self.read(network, lm, [prompt]).wide()

    def probability(self, lm: LM, edit: Passage, prompt: str) -> float:
        """Return p that a prompt is about an edit."""
        network = self.network(lm)
        assert isinstance(network, ScopeNetwork)
        apart = network.distances(self.of_edit(lm, edit), self.of_prompt(lm, prompt))
        return float(torch.exp(-apart))

    def _entering(self, lm: LM) -> Entering:
        causal = only_causal(lm, "a trained scope")
        count = len(blocks(causal.module)[1])
        number = min(max(1, round(self.depth * count)), count - 1)
        return causal.derived(("entering", number), lambda: Entering(causal, number))


class _Near:
    """Edits by their vectors."""

    def __init__(self, scope: Trained, edits: Sequence[Passage], lm: Causal) -> None:
        self._edits = distinct(edits)
        self._scope, self._lm, self._network = scope, lm, scope.network(lm)
        read = [scope.of_edit(lm, edit) for edit in self._edits]
        if read:
            longest = max(one.weights.shape[1] for one in read)
            self._read = ReadTexts(
                torch.cat([_padded(one.vectors, longest) for one in read]),
                torch.cat([_padded(one.weights, longest) for one in read]),
            )

    def find(self, prompt: str, k: int) -> list[Passage]:
        return [edit for edit, _ in self.likeliest(prompt, k)]

    def likeliest(self, prompt: str, k: int) -> list[tuple[Passage, float]]:
        """Return what `find` does, each edit with its p."""
        if not self._edits:
            return []
        assert isinstance(self._network, ScopeNetwork)
        apart = self._network.distances(self._read, self._scope.of_prompt(self._lm, prompt))[:, 0]
        near = torch.exp(-apart).tolist()
        places = [place for place, value in enumerate(near) if value > self._scope.threshold]
        nearest = sorted(places, key=lambda at: (-near[at], at))[:k]
        return [(self._edits[place], near[place]) for place in nearest]


def _padded(values: Tensor, time: int) -> Tensor:
    """Return values [1, time, ...] with zeros behind them."""
    whole = values.new_zeros(1, time, *values.shape[2:])
    whole[:, : values.shape[1]] = values
    return whole
