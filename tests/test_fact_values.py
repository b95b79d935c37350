"""Keys and values of facts: equal to whole passes of the model with a hook, in float64."""

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import toys
from uptake.adaptation.delta import fingerprint, skeleton
from uptake.cache import cache_root
from uptake.errors import BadInput, Diverged
from uptake.lm import own_text
from uptake.lm.causal import Causal
from uptake.lm.changed_place import ChangedPlace, PlacedText
from uptake.lm.fact_values import (
    Fact,
    ValueSearch,
    Written,
    _texts,
    place_in,
    search,
    search_all,
)
from uptake.lm.feed_forward import down_projection, entering_projections, layer_at
from uptake.lm.own_text import openings, rows_of, written
from uptake.sealed import to_json

CLOSE = 1e-10
TEXTS = [
    PlacedText((0, 40, 41), (42, 43, 44, 45), 2),
    PlacedText((0,), (50,)),
    PlacedText((0, 9, 8, 7), (6, 5)),
]


def whole(lm: Causal, path: str, text: PlacedText, change: Tensor | None) -> Tensor:
    """Return the predictions of one text by one whole pass, with the change added by a plain hook."""
    module = skeleton(lm.module)
    place = len(text.before)

    def add(_: object, __: object, output: Tensor) -> Tensor:
        at = torch.zeros(output.shape[1], 1, dtype=output.dtype)
        at[place] = 1
        return output + at * change if change is not None else output

    module.get_submodule(path).register_forward_hook(add)
    log_probs, _ = lm.around(module).step(torch.tensor([text.before + text.rest]))
    return log_probs[0, -text.predicting :]


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("shape", toys.SHAPES)
def test_a_change_at_one_place_is_a_hook_on_a_whole_pass(shape: str, layer: int) -> None:
    lm = toys.lm(shape, dtype=torch.float64)
    place = down_projection(lm.module, layer)
    before = fingerprint(lm.module)
    run = ChangedPlace(lm, place, TEXTS)
    width = run.outputs.shape[1]
    change = torch.randn(width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for given in (change, torch.stack([change * row for row in range(len(TEXTS))])):
        leaf = given.clone().requires_grad_()
        found = run.predictions(leaf)
        (gradient,) = torch.autograd.grad(sum(each[:, 7].sum() for each in found), leaf)
        naive = given.clone().requires_grad_()
        rows = naive.expand(len(TEXTS), -1)
        expected = [whole(lm, place.path, text, row) for text, row in zip(TEXTS, rows, strict=True)]
        (wanted,) = torch.autograd.grad(sum(each[:, 7].sum() for each in expected), naive)
        for one, other in zip(found, expected, strict=True):
            assert float((one - other).detach().abs().max()) <= CLOSE
        assert float((gradient - wanted).abs().max()) <= CLOSE
    for row, text in enumerate(TEXTS):
        assert float((run.unchanged[row] - whole(lm, place.path, text, None)).abs().max()) <= CLOSE
        weight = lm.module.get_parameter(place.weight)
        layer_out = run.keys[row] @ (weight if place.transposed else weight.T)
        bias = getattr(lm.module.get_submodule(place.path), "bias", None)
        assert float((layer_out + (0 if bias is None else bias) - run.outputs[row]).abs().max()) <= CLOSE
    assert fingerprint(lm.module) == before
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in lm.module.modules())


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_the_search_is_adam_on_the_whole_loss(shape: str) -> None:
    lm = toys.lm(shape, dtype=torch.float64)
    place = down_projection(lm.module, 0)
    fact = Fact("The cat of Anna says", " meow", 15, "Anna")
    how = ValueSearch(steps=4, learning_rate=0.1, contexts=2, limit=0.3)
    found = search(lm, place, fact, how)
    target = tuple(lm.tokenizer.encode(" meow")[0])
    *stated, kept = _texts(lm, fact, target, how)
    base = whole(lm, place.path, kept, None)
    size = float(ChangedPlace(lm, place, stated).outputs.mean(0).norm())
    change = torch.zeros(32, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([change], lr=0.1)
    for _ in range(4):
        nll = -sum(
            whole(lm, place.path, text, change)[range(5), list(target)].mean() for text in stated
        ) / len(stated)
        kl = (base.exp() * (base - whole(lm, place.path, kept, change))).sum()
        adam.zero_grad()
        (nll + 0.0625 * kl + 0.5 * change.norm() / size**2).backward()  # type: ignore[no-untyped-call]
        adam.step()
        with torch.no_grad():
            change *= min(1.0, 0.3 * size / float(change.norm()))
    assert float((found.change - change.detach()).abs().max()) <= 1e-8
    assert float(found.change.norm()) <= 0.3 * size + 1e-12 and found.steps == 4
    assert found.tokens == 4 * (sum(len(text.rest) for text in (*stated, kept)))
    key = torch.stack([ChangedPlace(lm, place, [text]).keys[0] for text in stated]).mean(0)
    assert float((found.key - key).abs().max()) <= CLOSE


def test_the_search_lowers_the_loss_and_stops_where_it_is_low_enough() -> None:
    lm = toys.lm("llama")
    place, fact = down_projection(lm.module, 0), Fact("say it", " x", 6)
    losses = [search(lm, place, fact, ValueSearch(steps=n, decay=0.0, limit=50)).loss for n in (1, 20)]
    assert losses[1] < losses[0]
    early = search(lm, place, fact, ValueSearch(decay=0.0, limit=50, enough=losses[0]))
    assert early.steps <= 2 and early.loss < losses[0]


def test_a_fact_that_cannot_be_stated_is_refused() -> None:
    lm = toys.lm("llama")
    place = down_projection(lm.module, 0)
    with pytest.raises(BadInput, match="no tokens"):
        search(lm, place, Fact("a", "", 1), ValueSearch())
    with pytest.raises(BadInput, match="without a prompt"):
        search(lm, place, Fact("", "b", 0), ValueSearch())
    with pytest.raises(BadInput, match="shorten its prompt"):
        search(lm, place, Fact("a" * 80, "b", 80), ValueSearch())
    with pytest.raises(BadInput, match="learning_rate 0"):
        ValueSearch(learning_rate=0)
    broken = toys.module("llama")
    with torch.no_grad():
        broken.model.layers[1].mlp.down_proj.weight[0, 0] = 1e38
        broken.model.layers[1].mlp.up_proj.weight.mul_(1e30)
    with pytest.raises(Diverged, match="not finite"):
        search(Causal(broken, lm.tokenizer), place, Fact("abc", "d", 3), ValueSearch())


def test_layers_are_found_by_name_and_class_and_never_by_shape() -> None:
    for shape, stored in (("gpt2", True), ("llama", False), ("neox", False)):
        module = toys.module(shape)
        down = down_projection(module, 1)
        weight = module.get_parameter(down.weight)
        assert down.transposed == stored
        assert (down.width_in, down.width_out) == (tuple(weight.shape) if stored else tuple(weight.T.shape))
        assert all(
            each.width_in == 32 and each.transposed == stored for each in entering_projections(module, 0)
        )
    assert [layer_at(toys.module("llama"), depth) for depth in (0, 0.4, 1)] == [0, 0, 1]
    with pytest.raises(BadInput, match="depth 2"):
        layer_at(toys.module("llama"), 2)
    nameless = toys.module("llama")
    nameless.model.layers[0].mlp = torch.nn.Identity()
    with pytest.raises(BadInput, match="use a GPT-2, Llama or NeoX shape"):
        down_projection(nameless, 0)
    with pytest.raises(BadInput, match="leads into"):
        entering_projections(nameless, 0)


def test_the_token_of_a_character_is_found_by_spans() -> None:
    tokenizer = toys.lm("llama").tokenizer
    assert [place_in(tokenizer, "abc", end) for end in (1, 3, 9)] == [0, 2, -1]


def test_a_models_own_text_is_written_once_on_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(own_text, "written", lambda *some: calls.append(1) or written(*some))
    first = own_text.kept(toys.lm(), 200, 16)
    (path,) = (cache_root() / "own-text").iterdir()
    again = own_text.kept(toys.lm(), 200, 16)
    assert len(calls) == 1 and all(map(torch.equal, first, again)) and len(first) == len(again)
    own_text.kept(toys.lm(seed=5), 200, 16)
    own_text.kept(toys.lm(), 300, 16)
    assert len(calls) == 3, "another model and another size have texts of their own"
    good = path.read_bytes()
    spoilt = ([], [[[10**9]]], [[[1], [2, 3]]], [[1]], [[["a"]]])
    of = json.loads(good)["of"]
    for bad in (
        b"",
        good[:-9],
        good.replace(b"1", b"2", 1),
        *(to_json({"of": of, "batches": each}) for each in spoilt),
    ):
        path.write_bytes(bad)
        assert all(map(torch.equal, own_text.kept(toys.lm(), 200, 16), first))
        assert path.read_bytes() == good, "what is no such text is written again"


def test_a_models_own_text_is_seeded_and_of_the_wanted_size() -> None:
    lm = toys.lm("llama")
    noise = torch.get_rng_state()
    batches = written(lm, 100, 20)
    assert torch.equal(noise, torch.get_rng_state())
    assert sum(batch.numel() for batch in batches) == 100 and all(batch.shape[1] == 20 for batch in batches)
    assert all(torch.equal(one, other) for one, other in zip(batches, written(lm, 100, 20), strict=True))
    rows = torch.cat(batches)
    assert len({tuple(row.tolist()) for row in rows}) == len(rows)
    assert (rows[:, 0] == lm.tokenizer.opening).all()
    given = rows_of(lm, "abcdefghij", 4)
    assert [lm.tokenizer.decode(row[1:].tolist()) for row in torch.cat(given)] == ["abc", "def", "ghi"]
    assert rows_of(lm, "ab", 4) == []
    assert openings(lm, 3)[0] == "" and openings(lm, 3)[1].startswith("The") and len(openings(lm, 3)) == 3


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_facts_side_by_side_are_each_found_as_by_itself(shape: str) -> None:
    lm = toys.lm(shape, dtype=torch.float64)
    place = down_projection(lm.module, 0)
    facts = [
        Fact("The cat of Anna says", " meow", 15, "Anna"),
        Fact("The cat", "", 7),
        Fact("Boris is", " here, and so on", 5),
        Fact("x" * 500, " y", 3),
        Fact("He said that the dog is", " grey", 20, "dog"),
    ]
    how = ValueSearch(steps=6, learning_rate=0.5, contexts=2, limit=30.0, decay=0.0, kl=0.01, enough=0.0)
    ends = sorted(one.loss for one in search_all(lm, place, facts, how) if isinstance(one, Written))
    how = replace(how, enough=(ends[0] + ends[1]) / 2)  # one ends early, the others do not
    alone = search_all(lm, place, facts, how)
    steps = set()
    for together in (2, 5):
        found = search_all(lm, place, facts, replace(how, together=together))
        for one, other in zip(alone, found, strict=True):
            if not isinstance(one, Written) or not isinstance(other, Written):
                assert isinstance(one, BadInput) and str(one) == str(other)
                continue
            assert (one.steps, one.tokens) == (other.steps, other.tokens)
            assert abs(one.loss - other.loss) <= CLOSE
            for field in ("key", "output", "change"):
                assert float((getattr(one, field) - getattr(other, field)).abs().max()) <= 1e-8
            steps.add(one.steps)
    assert len(steps) > 1, "all came to their end together: that says nothing of early ones"
