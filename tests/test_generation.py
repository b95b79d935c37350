"""Rows of different length in one pass, and texts that go on: against each row alone and plain decoding."""

import math
from collections.abc import Sequence

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
)

import toys
from uptake.adaptation.delta import Delta
from uptake.adaptation.delta.prompt import Prompt
from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.lm.experts import Experts, FixedShare
from uptake.lm.generation import Continuation, Decoding, Token
from uptake.lm.rows import WIDTH, left_padded
from uptake.lm.wrappers import Prefixed, Routed
from uptake.text.detokenizer import Detokenizer
from uptake.text.tokenizer import Tokenizer

SIZES = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
COMMON = {"vocab_size": 257, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def shaped(shape: str, dtype: torch.dtype = torch.float64) -> Causal:
    """Return a toy: learned positions (GPT-2, OPT), rotary ones (Llama, NeoX, Gemma), slopes (BLOOM)."""
    if shape in toys.SHAPES:
        return toys.lm(shape, dtype=dtype)
    torch.manual_seed(0)
    made: torch.nn.Module
    if shape == "opt":
        made = OPTForCausalLM(
            OPTConfig(**SIZES, **COMMON, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64)
        )
    elif shape == "bloom":
        made = BloomForCausalLM(BloomConfig(hidden_size=32, n_head=2, n_layer=2, **COMMON))
        made.config.max_position_embeddings = 64
    else:
        # Every other layer sees the last 8 tokens alone.
        made = Gemma2ForCausalLM(
            Gemma2Config(
                **SIZES,
                **COMMON,
                intermediate_size=48,
                num_key_value_heads=1,
                head_dim=16,
                sliding_window=8,
                max_position_embeddings=64,
            )
        )
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
    return Causal(made.to(dtype), Tokenizer(toys.tokenizer()), f"toy-{shape}")


# Eager attention (BLOOM, Gemma 2) is never wider than float32: there the rows are stepped one by one.
KINDS = [
    *((shape, torch.float64) for shape in (*toys.SHAPES, "opt", "bloom", "gemma")),
    *((shape, torch.float32) for shape in ("gpt2", "bloom", "gemma")),
]
PROMPTS = ["the cat sat on the mat and", "a dog", "", "one fish, two fish, red"]


def tokens_of(lm: LM, texts: Sequence[str] = PROMPTS) -> list[list[int]]:
    return [lm.tokenizer.opened(text) for text in texts]


@pytest.mark.parametrize(("shape", "dtype"), KINDS)
def test_a_padded_row_is_the_row_by_itself(shape: str, dtype: torch.dtype) -> None:
    lm, near = shaped(shape, dtype), 1e-10 if dtype == torch.float64 else 1e-4
    rows = tokens_of(lm)
    ids, lengths = left_padded(rows, lm.device)
    assert ids.shape == (4, 32) and lengths == [len(row) for row in rows]
    more = torch.randint(1, 200, (4, 3), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, cache = lm.step(ids, lm.start(), lengths)
        after, cache = lm.step(more[:, :1], cache)
        last, _ = lm.step(more[:, 1:], cache)
        bare, none = lm.step(ids, None, lengths)
        assert none is None
        for row, own in enumerate(rows):
            whole, _ = lm.step(torch.tensor([[*own, *more[row].tolist()]]))
            size = len(own)
            assert torch.allclose(found[row, -size:], whole[0, :size], atol=near)
            assert torch.allclose(bare[row, -size:], whole[0, :size], atol=near)
            assert torch.allclose(after[row], whole[0, size : size + 1], atol=near)
            assert torch.allclose(last[row], whole[0, size + 1 :], atol=near)


@pytest.mark.parametrize(("shape", "dtype"), KINDS)
def test_at_one_grid_no_other_row_changes_a_bit(shape: str, dtype: torch.dtype) -> None:
    lm = shaped(shape, dtype)
    own, *_ = tokens_of(lm)
    others = [["a dog", "", "red"], ["x" * 30, "y" * 29, "z"], ["", "", "the cat sat on the"]]
    assert all(len(text) + 1 < 2 * WIDTH for some in others for text in some)

    def run(some: Sequence[str]) -> torch.Tensor:
        ids, lengths = left_padded([own, *tokens_of(lm, some)], lm.device)
        with torch.no_grad():
            first, cache = lm.step(ids, lm.start(), lengths)
            second, _ = lm.step(torch.tensor([[7], *[[len(text) + 1] for text in some]]), cache)
        return torch.cat([first[0, -len(own) :], second[0]])

    found = [run(some) for some in others]
    assert all(torch.equal(found[0], each) for each in found[1:])


def wrapped(lm: LM) -> dict[str, LM]:
    other = toys.lm("llama", seed=5, dtype=torch.float64)
    prefixes = [[0, 40, 41, 42], [], [0], [0, 7]]
    return {
        "base": lm,
        "prefixed": Prefixed(lm, prefixes),
        "mixed": toys.mixed([lm, other], [0.3, 0.7]),
        "routed": Routed([lm, other, lm, other]),
        "bayes": Experts([lm, Routed([other, lm, other, other])], FixedShare((0.6, 0.4), (0.0, 0.1))),
        "nested": Prefixed(toys.mixed([lm, Routed([other, lm, lm, lm])], [0.5, 0.5]), prefixes),
        "soft prompt": lm.overlay(Delta.of(lm.fingerprint, {"": Prompt(torch.randn(3, 32))}, "prompt")),
        "outer": Experts([Prefixed(lm, prefixes), Prefixed(other, prefixes[::-1])], FixedShare((0.5, 0.5))),
    }


@pytest.mark.parametrize("name", wrapped(toys.lm()))
def test_wrappers_step_rows_of_different_length(name: str) -> None:
    model = wrapped(toys.lm("llama", dtype=torch.float64))[name]
    rows = tokens_of(model)
    ids, lengths = left_padded(rows, model.device)
    with torch.no_grad():
        bare, _ = model.step(ids, None, lengths)
        found, cache = model.step(ids, model.start(), lengths)
        after, _ = model.step(torch.full((4, 1), 9), cache)
        # At the last place alone: as `step` there, with a cache and without, and what is read on afterwards.
        ends, cache = model.read_on(ids, model.start(), lengths)
        assert torch.allclose(ends, found[:, -1], atol=1e-10)
        assert torch.allclose(model.read_on(ids, None, lengths)[0], bare[:, -1], atol=1e-10)
        on, _ = model.read_on(torch.full((4, 1), 9), cache)
        assert torch.allclose(on, after[:, -1], atol=1e-10)
        for row, own in enumerate(rows):
            whole, _ = model.at([row]).step(torch.tensor([[*own, 9]]))
            for each in (bare, found):
                assert torch.allclose(each[row, -len(own) :], whole[0, :-1], atol=1e-10)
            assert torch.allclose(after[row], whole[0, -1:], atol=1e-10)


@pytest.mark.parametrize("name", wrapped(toys.lm()))
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_prompts_go_on_side_by_side_as_each_by_itself(name: str, temperature: float) -> None:
    model = wrapped(toys.lm("llama", dtype=torch.float64))[name]
    decoding = Decoding(tokens=40, temperature=temperature, seed=3, stop=("x",))
    together = model.generate_rows(PROMPTS, decoding)
    # Further than the window of 64: rows are read afresh from their later half.
    assert max(map(len, together)) > 20
    for row, prompt in enumerate(PROMPTS):
        assert together[row] == model.at([row]).generate_rows([prompt], decoding)[0]


def test_a_stream_says_what_each_token_was() -> None:
    lm = toys.lm("llama", dtype=torch.float64)
    found = [*lm.stream("the cat", Decoding(tokens=5, alternatives=3))]
    ids = lm.tokenizer.opened("the cat")
    for place, token in enumerate(found):
        with torch.no_grad():
            last = lm.step(torch.tensor([ids]))[0][0, -1]
        assert token.id == int(last.argmax()) and math.isclose(
            token.log_prob, float(last.max()), rel_tol=1e-5
        )
        assert [id for id, _ in token.alternatives] == last.topk(3).indices.tolist()
        assert token.alternatives[0] == (token.id, token.log_prob)
        assert token.finish == ("length" if place == 4 else "")
        ids.append(token.id)
    assert "".join(token.text for token in found) == lm.generate("the cat", 5)
    # Sampled at any temperature, log-probabilities are the model's own.
    (one,) = lm.stream("the cat", Decoding(tokens=1, temperature=5.0, seed=1))
    with torch.no_grad():
        last = lm.step(torch.tensor([lm.tokenizer.opened("the cat")]))[0][0, -1]
    assert math.isclose(one.log_prob, float(last[one.id]), rel_tol=1e-5)


class Scripted(LM):
    """Says one text whatever it is asked, in ids; keeps no cache, and counts its passes."""

    def __init__(self, says: Sequence[int], tokenizer: Tokenizer | None = None, window: int = 64) -> None:
        base = toys.lm()
        self.tokenizer, self.window, self.device = tokenizer or base.tokenizer, window, base.device
        self.fingerprint, self.says, self.passes = "scripted", list(says), 0

    def step(self, ids, cache=None, lengths=None):
        out = torch.full((*ids.shape, len(self.tokenizer)), -50.0)
        out[:, -1, self.says[self.passes]] = 0.0
        self.passes += 1
        return out, None

    overlay = trainable_copy = with_parameters = None  # never asked for here


def said(text: str, decoding: Decoding, **given: object) -> list[Token]:
    tokenizer = toys.lm().tokenizer
    model = Scripted([*tokenizer.encode(text)[0], tokenizer.end])  # type: ignore[list-item]
    return [*model.stream("ab", decoding, **given)]  # type: ignore[arg-type]


def test_a_text_ends_for_a_reason() -> None:
    found = said("one two three", Decoding(stop=("two", "three")))
    assert "".join(token.text for token in found) == "one " and found[-1].finish == "stop" and len(found) == 7
    found = said("one", Decoding())
    assert [token.finish for token in found] == ["", "", "", "end"] and found[-1].text == ""
    assert found[-1].id == toys.lm().tokenizer.end
    assert said("one", Decoding(tokens=2))[-1].finish == "length"
    # What might have become a stop word is text after all.
    found = said("one tw", Decoding(stop=("two",)))
    assert "".join(token.text for token in found) == "one tw" and found[-1] == Token(0, "tw", 0.0, (), "end")
    (only,) = said("one", Decoding(tokens=0))
    assert only == Token(None, "", finish="length")


def test_a_text_can_be_cancelled_between_tokens() -> None:
    asked = iter([False, False, False, True])
    found = said("one two", Decoding(stop=("exit",)), cancelled=lambda: next(asked))
    assert "".join(token.text for token in found) == "one"
    assert [token.finish for token in found] == ["", "", "", "cancelled"] and found[-1].id is None
    (only,) = said("one", Decoding(), cancelled=lambda: True)
    assert only == Token(None, "", finish="cancelled")


def test_a_text_that_may_not_leave_the_window_ends_there() -> None:
    lm = toys.lm("gpt2", window=16)
    # The last of the tokens is predicted from a full window.
    found = [*lm.stream("abcdefgh", Decoding(tokens=14, beyond_window=False))]
    assert len(found) == 14 and found[-1].finish == "length"
    found = [*lm.stream("abcdefgh", Decoding(tokens=40, beyond_window=False))]
    assert len(found) == 16 and found[-1].finish == "window"
    # Else it goes on from the window's later half.
    found = [*Scripted([66] * 40, window=16).stream("abcdefgh", Decoding(tokens=40))]
    assert len(found) == 40 and found[-1].finish == "length"


def test_the_time_of_a_token_does_not_grow_with_the_text() -> None:
    tokenizer = toys.lm().tokenizer
    decoded: list[int] = []

    class Counting(Tokenizer):
        def decode(self, ids: list[int]) -> str:
            decoded.append(len(ids))
            return super().decode(ids)

    ids = tokenizer.encode("naïve café, 100 €! " * 40)[0]
    detokenizer = Detokenizer(Counting(toys.tokenizer()), ids[:50])
    for token in ids[50:]:
        detokenizer.push(token)
    assert max(decoded) <= 20


@pytest.mark.parametrize("before", ["", "so ", "100 €"])
def test_pieces_join_to_what_decoding_at_once_gives(before: str) -> None:
    tokenizer = toys.lm().tokenizer
    generator = torch.Generator().manual_seed(0)
    texts = ["naïve café €", "日本語", ""]
    bare = [tokenizer.encode(text)[0] for text in texts]
    # Bytes that are no characters, too, but never so many at once that they could not be held.
    noise = [torch.randint(1, 257, (size,), generator=generator).tolist() for size in (1, 7, 60)]
    for ids in (*bare, *noise):
        detokenizer = Detokenizer(tokenizer, tokenizer.encode(before)[0])
        text = "".join(detokenizer.push(token) for token in ids) + detokenizer.flush()
        assert text == tokenizer.decode(ids)


def sentencepiece() -> Tokenizer:
    """A tokenizer whose words bring their space, which it drops at the beginning of a text."""
    words = ["<s>", "▁one", "▁two", "▁", "s", "<0xE2>", "<0x82>", "<0xAC>"]
    backend = Backend(models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>"))


def test_a_word_that_goes_on_from_a_text_begins_with_its_space() -> None:
    tokenizer = sentencepiece()
    assert tokenizer.decode([1, 2]) == "one two" and tokenizer.decode([2]) == "two"
    euro = [5, 6, 7]
    for before, ids, expected in (
        ([1], [2, 1], " two one"),
        ([], [2, 1], "two one"),
        ([1], [4, 2], "s two"),
        ([1], [*euro, 2], "€ two"),
        ([1, *euro], [*euro, 2], "€ two"),
        ([5, 6, 7] * 5, [2], " two"),
        ([3], [1], " one"),
    ):
        detokenizer = Detokenizer(tokenizer, before)
        pieces = [*map(detokenizer.push, ids), detokenizer.flush()]
        assert "".join(pieces) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("temperature", [5e-324, 1e-320, 1e-38, 1e-6])
def test_a_temperature_next_to_zero_is_greedy(temperature: float, dtype: torch.dtype) -> None:
    log_probs = torch.tensor([0.1, 0.2, 0.4, 0.3]).log().to(dtype)
    for top_p in (1.0, 1e-300):
        decoding = Decoding(tokens=1, temperature=temperature, top_p=top_p)
        assert Continuation(toys.lm().tokenizer, [0], 9, decoding).choose(log_probs).id == 2


def test_a_nucleus_next_to_nothing_holds_the_likeliest_token() -> None:
    log_probs = torch.tensor([0.1, 0.2, 0.4, 0.3]).log()
    for seed in range(9):
        decoding = Decoding(tokens=1, temperature=2.0, top_p=1e-300, seed=seed)
        assert Continuation(toys.lm().tokenizer, [0], 9, decoding).choose(log_probs).id == 2


def test_decoding_refuses_what_cannot_be() -> None:
    with pytest.raises(BadInput, match="temperature"):
        Decoding(temperature=-1)
    with pytest.raises(BadInput, match="tokens -1"):
        Decoding(tokens=-1)
    with pytest.raises(BadInput, match="2 texts for a model with 1 rows"):
        Routed([toys.lm()]).stream_rows(["a", "b"], Decoding())
