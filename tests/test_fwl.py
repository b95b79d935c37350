"""Fast weight layers as a method: on every shape of model, in training, in generation, without a leak."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import toys
from uptake.adaptation.delta import fingerprint
from uptake.adaptation.optimizers import AdamW
from uptake.adaptation.trainable import LoRA, Top
from uptake.errors import BadInput, Mismatch
from uptake.lm.base import LM, Segment
from uptake.lm.capabilities import HiddenStates, capability
from uptake.methods.contract.learned import TrainingData
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.finetune import Finetune
from uptake.methods.fwl import FWL
from uptake.methods.fwl.network import RATE_SPEED
from uptake.methods.in_context import InContext
from uptake.text.types import Document
from uptake.train import Training, train

TEXT = "the cat sat on the mat and the dog sat on the cat"


def trained(lm: LM, **settings: Any) -> FWL:
    """A network at hand as training might leave it: no weight zero, no rate the same."""
    method = FWL(**({"stretch": 8} | settings))
    network = method.fresh(lm)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in network.layer.named_parameters():  # type: ignore[union-attr]
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(
                (noise / 2 - 2) / RATE_SPEED if "rates" in name else noise / len(parameter) ** 0.5
            )
    return replace(method, trained=network.requires_grad_(False).to(next(lm.module.parameters()).dtype))  # type: ignore[attr-defined]


def same(one: Any, other: Any, within: float) -> bool:
    """Whether two states know the same."""
    return bool(one.sums.count == other.sums.count) and all(
        torch.allclose(total, getattr(other.sums, part)[name], rtol=0, atol=within)
        for part in ("settled", "recent")
        for name, total in getattr(one.sums, part).items()
    )


def read(method: FWL, lm: LM, *texts: str) -> Any:
    (state,) = method.adapt([method.init(lm)], lm, [Evidence.of(*texts)], Context())
    return state


def ids_of(lm: LM, text: str = TEXT) -> Tensor:
    return torch.tensor([[lm.tokenizer.opening, *lm.tokenizer.encode(text)[0]]])


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_logits_are_the_unembedding_of_the_last_hidden_states(shape: str) -> None:
    lm = toys.lm(shape)
    ids = ids_of(lm)
    adapted = Finetune.example().adapted([Finetune.example().init(lm)], lm)
    for model in (lm, capability(adapted, HiddenStates)):
        hidden, _ = model.hidden(ids)
        assert torch.allclose(model.unembedding.logits(hidden).log_softmax(-1), model.step(ids)[0], atol=1e-5)
    # The same with a cache, and with other tensors in place of the parameters.
    _, cache = lm.hidden(ids[:, :9], lm.start())
    later, _ = lm.hidden(ids[:, 9:], cache)
    assert torch.allclose(later, lm.hidden(ids)[0][:, 9:], atol=1e-4)
    given = lm.with_parameters({name: own * 1.1 for name, own in lm.module.named_parameters()})
    logits = given.unembedding.logits(given.hidden(ids)[0])
    assert torch.allclose(logits.log_softmax(-1), given.step(ids)[0], atol=1e-4)
    assert not torch.allclose(given.step(ids)[0], lm.step(ids)[0], atol=0.1)


def test_a_model_that_caps_its_logits_is_refused() -> None:
    class Capped(torch.nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner, self.config, self.base_model = inner, inner.config, inner.base_model

        def get_output_embeddings(self) -> Any:
            return self.inner.get_output_embeddings()

        def forward(self, **arguments: Any) -> Any:
            out = self.inner(**arguments)
            out.logits = torch.tanh(out.logits)
            return out

    lm = toys.lm()
    capped = type(lm)(Capped(lm.module), lm.tokenizer)
    with pytest.raises(BadInput, match="use a model without"):
        FWL.example().init(capped)
    before = InContext.example()
    with pytest.raises(BadInput, match="Prefixed around that"):
        FWL.example().adapted([FWL.example().init(lm)], before.adapted([before.init(lm)], lm)).score(
            [Segment("a")]
        )


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_generating_step_by_step_is_reading_at_once(shape: str) -> None:
    lm = toys.lm(shape, dtype=torch.float64)
    method = trained(lm)
    model = method.adapted([read(method, lm, "a dog"), method.init(lm)], lm)
    ids = torch.cat([ids_of(lm), ids_of(lm, TEXT[::-1])])
    whole, _ = model.step(ids)
    for cuts in ([1] * 20, [7, 1, 1, 11]):
        cache, parts, at = model.start(), [], 0
        for cut in cuts:
            log_probs, cache = model.step(ids[:, at : at + cut], cache)
            parts.append(log_probs)
            at += cut
        assert torch.allclose(torch.cat(parts, 1), whole[:, :20], atol=1e-9)
    assert not torch.allclose(whole, method.adapted([method.init(lm)] * 2, lm).step(ids)[0], atol=1e-3)
    still = replace(trained(lm, rate_scale=0.0)).adapted([method.init(lm)] * 2, lm).step(ids)[0]
    assert not torch.allclose(whole[1], still[1], atol=1e-3), "what stands in the window is learnt"


def test_scoring_is_the_same_through_one_window_or_many() -> None:
    """What a text teaches goes with it from window to window."""
    text = TEXT * 3
    lm = toys.lm("llama", window=512, dtype=torch.float64)
    method = trained(lm)
    (whole,), (state,) = method.read([method.init(lm)], lm, [Segment(text)], Context())
    ids = ids_of(lm, text)
    log_probs = method.adapted([method.init(lm)], lm).step(ids[:, :-1])[0]
    assert torch.allclose(whole.log_probs, log_probs[0].gather(-1, ids[0, 1:, None])[:, 0], atol=1e-9)
    parts, narrow = [], method.init(lm)
    for start in range(0, len(text), 40):
        piece = Segment(text[start : start + 40], text[:start])
        (scores,), (narrow,) = method.read([narrow], lm, [piece], Context())
        parts.append(scores.log_probs)
    assert torch.allclose(torch.cat(parts), whole.log_probs, atol=1e-9)
    assert same(narrow, state, 1e-9)


def test_a_text_longer_than_the_window_is_learnt_to_its_end() -> None:
    lm = toys.lm("gpt2", window=16, dtype=torch.float64)
    method = trained(lm)
    text = TEXT * 4
    (scores,), (state,) = method.read([method.init(lm)], lm, [Segment(text)], Context())
    assert len(scores.log_probs) == len(text)
    changed = method.read([method.init(lm)], lm, [Segment("q" + text[1:])], Context())[0][0].log_probs
    assert ((scores.log_probs - changed).abs() > 1e-12)[-10:].all(), "the first token shows to the last"
    taken = read(method, lm, text)
    assert same(taken, state, 1e-9)


def test_what_was_read_in_one_step_is_a_sum() -> None:
    lm = toys.lm(dtype=torch.float64)
    method = trained(lm, stretch=0)
    assert same(read(method, lm, "one fish", "two dogs"), read(method, lm, "two dogs", "one fish"), 1e-12)
    method = trained(lm)
    assert not same(read(method, lm, "one fish", "two dogs"), read(method, lm, "two dogs", "one fish"), 1e-3)


def test_no_token_is_learnt_before_it_is_scored() -> None:
    """Of uniform random bytes nothing can be known; a leak would show as knowing."""
    lm = toys.lm(window=128)
    letters = "abcdefghijklmnop"
    picks = torch.randint(16, (600,), generator=torch.Generator().manual_seed(0))
    text = "".join(letters[pick] for pick in picks)
    method = FWL(weights="untrained", rate_scale=40.0)
    (honest,), (state,) = method.read([method.init(lm)], lm, [Segment(text)], Context())
    assert -honest.log_probs[200:].mean() > torch.tensor(16.0).log() - 0.05
    # It does learn which letters there are ...
    base = lm.score([Segment(text)])[0].log_probs
    assert honest.log_probs[200:].mean() > base[200:].mean() + 0.5
    # ... and a step that saw the token would know more: each scored right after it was learnt.
    shown = []
    for start in range(100):
        one = Segment(text[start], text[max(0, start - 20) : start])
        (after,) = method.read([state], lm, [one], Context())[1]
        old = state.sums.recent
        often = {name: old[name] + 20 * (total - old[name]) for name, total in after.sums.recent.items()}
        sums = replace(after.sums, recent=often)
        shown.append(method.adapted([replace(after, sums=sums)], lm).score([one])[0].log_probs)
    assert -torch.cat(shown).mean() < torch.tensor(16.0).log() - 0.05


def test_on_top_of_an_adapted_model() -> None:
    lm, tune = toys.lm(), Finetune.example()
    (moved,) = tune.adapt([tune.init(lm)], lm, [Evidence.of(TEXT)], Context())
    adapted = tune.adapted([moved, tune.init(lm)], lm)
    method = trained(lm)
    both = method.adapted([read(method, lm, "a dog"), method.init(lm)], adapted)
    segments = [Segment(TEXT), Segment(TEXT)]
    first, second = both.score(segments)
    alone = method.adapted([method.init(lm)], lm).score(segments[:1])[0]
    assert torch.allclose(second.log_probs, alone.log_probs, atol=1e-5)
    assert not torch.allclose(first.log_probs, second.log_probs, atol=1e-3)
    assert len(both.at([1]).score(segments[:1])[0].log_probs) == len(TEXT)
    # And the other way round: dynamic evaluation of a model that has the layer.
    still = method.adapted([method.init(lm)], lm)
    (tuned,) = tune.adapt([tune.init(still)], still, [Evidence.of(TEXT)], Context())
    assert tune.adapted([tuned], still).score(segments[:1])[0].bits < still.score(segments[:1])[0].bits


def test_on_a_half_precision_base_sums_are_kept_whole() -> None:
    lm, exact = toys.lm(dtype=torch.bfloat16), toys.lm()
    method = FWL(weights="untrained")
    segment = Segment(TEXT * 3, "so ")
    (half,), (state,) = method.read([method.init(lm)], lm, [segment], Context())
    (whole,), _ = method.read([method.init(exact)], exact, [segment], Context())
    assert abs(half.bits / whole.bits - 1) < 0.01
    assert state.sums.settled["second"].any()
    for total in (*state.sums.settled.values(), *state.sums.recent.values()):
        assert total.dtype == torch.float32
    (taken,) = method.adapt([method.init(lm)], lm, [method.evidence_of(segment)], Context())
    assert same(taken, state, 0)


STORIES = [
    Document(f"{a} {b}", f"{a} met {b}. {b} saw {a}. " * 5)
    for a, b in [("ann", "bob"), ("cat", "dog"), ("eve", "sam"), ("tim", "kim")]
]


def test_training_teaches_it_to_learn(tmp_path: Path) -> None:
    lm = toys.lm()
    method = FWL(episode_tokens=160)
    episodes = method.episodes(lm, TrainingData(tuple(STORIES)))
    assert [len(episode.target) for episode in episodes] == [len(story.text) for story in STORIES]
    network, points = train(method, lm, episodes, Training(AdamW(3e-3, weight_decay=0.0), passes=15))
    assert points[-1].loss == points[-1].loss
    unseen = "max met lou. lou saw max. " * 5
    bits = {
        name: each.adapted([each.init(lm)], lm).score([Segment(unseen)])[0].bits
        for name, each in {
            "trained": replace(method, trained=network),
            "untrained": replace(method, weights="untrained"),
            "still": replace(method, trained=_at_pace(network, method, lm, 0.0)),
        }.items()
    }
    assert bits["trained"] < bits["untrained"] and bits["trained"] < bits["still"]
    method.save(network, lm, tmp_path / "network")
    loaded, at_hand = replace(method, weights=str(tmp_path / "network")), replace(method, trained=network)
    (one,), (other,) = (
        m.adapted([read(m, lm, unseen)], lm).score([Segment(unseen)]) for m in (loaded, at_hand)
    )
    assert torch.equal(one.log_probs, other.log_probs)
    with pytest.raises(Mismatch, match="hidden=none"):
        replace(loaded, hidden=8).init(lm)


def _at_pace(network: Any, method: FWL, lm: LM, rate_scale: float) -> Any:
    other = replace(method, rate_scale=rate_scale).fresh(lm)
    other.load_state_dict(network.state_dict())
    return other.requires_grad_(False)


@pytest.mark.parametrize("trainable", [Top(1), LoRA(rank=2)])
def test_the_base_can_be_trained_along(trainable: Any, tmp_path: Path) -> None:
    lm = toys.lm()
    method = FWL(episode_tokens=128, trainable=trainable)
    before = lm.fingerprint
    episodes = method.episodes(lm, TrainingData(tuple(STORIES)))
    network, _ = train(method, lm, episodes, Training(AdamW(3e-3, weight_decay=0.0), passes=5))
    assert fingerprint(lm.module) == before
    at_hand = replace(method, trained=network)
    method.save(network, lm, tmp_path / "network")
    loaded = replace(method, weights=str(tmp_path / "network"))
    segments = [Segment(STORIES[0].text)]
    (found,), _ = at_hand.read([at_hand.init(lm)], lm, segments, Context())
    (again,), _ = loaded.read([loaded.init(lm)], lm, segments, Context())
    assert torch.equal(found.log_probs, again.log_probs)
    # What was trained along is there, under the same layer.
    frozen = replace(FWL(), trained=type(network)(network.layer, lm, None))
    (other,), _ = frozen.read([frozen.init(lm)], lm, segments, Context())
    assert not torch.allclose(other.log_probs, found.log_probs, atol=1e-3)
    assert (
        found.bits
        < replace(method, weights="untrained").adapted([frozen.init(lm)], lm).score(segments)[0].bits
    )


def test_bad_settings_and_material_are_refused() -> None:
    lm = toys.lm()
    with pytest.raises(BadInput, match="rate_scale -1"):
        FWL(rate_scale=-1)
    with pytest.raises(BadInput, match="stretch -1"):
        FWL(stretch=-1)
    with pytest.raises(BadInput, match="episode_tokens 3"):
        FWL(episode_tokens=3)
    with pytest.raises(BadInput, match="longer ones"):
        FWL().episodes(lm, TrainingData((Document("short", "a"),)))
    with pytest.raises(BadInput, match="uptake train"):
        FWL().init(lm)


def test_training_can_begin_from_a_trained_layer(tmp_path: Path) -> None:
    lm = toys.lm()
    still = FWL(episode_tokens=128, rate_scale=0.0)
    episodes = still.episodes(lm, TrainingData(tuple(STORIES)))
    network, _ = train(still, lm, episodes, Training(AdamW(1e-3, weight_decay=0.0), passes=3))
    still.save(network, lm, tmp_path / "still")
    begun = FWL(start=str(tmp_path / "still"))
    fresh = begun.fresh(lm)
    assert all(torch.equal(own, network.state_dict()[name]) for name, own in fresh.state_dict().items())
    begun.save(fresh, lm, tmp_path / "begun")
    (tmp_path / "still").unlink()
    again = replace(begun, weights=str(tmp_path / "begun"))
    assert again.network(lm).state_dict().keys() == fresh.state_dict().keys()
    with pytest.raises(BadInput, match="no network"):
        begun.fresh(lm)
