"""The tokenizer that a GGUF file describes: vocabulary, merges, special tokens and chat template.

Two kinds of vocabulary: byte-level ("gpt2"), and that of SentencePiece ("llama"), whose merges follow from
the scores. Source: llama.cpp's documentation of `tokenizer.ggml`.
"""

from typing import TYPE_CHECKING, Any

from uptake.errors import BadInput
from uptake.gguf.header import AGAIN, FOLDER, Header, in_short
from uptake.gguf.pretokenizers import PATTERNS, WHOLE_PIECES

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

_CONTROL, _USER_DEFINED = 3, 4  # kinds of tokens in `tokenizer.ggml.token_type`
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_SPACE = "▁"  # how SentencePiece writes a space


def tokenizer_of(header: Header, tokens: int, length: int) -> "PreTrainedTokenizerFast":
    """Return the tokenizer of a model of so many `tokens` and a window of `length`.

    Raises BadInput where there is none, its kind is not known, or its parts do not agree.
    """
    from transformers import PreTrainedTokenizerFast

    kind = header.get("tokenizer.ggml.model", str, "none")
    if kind in ("none", "no_vocab"):
        raise BadInput(f"{header.path} has no tokenizer: give a GGUF file that was made with its vocabulary")
    makers = {"gpt2": _byte_level, "llama": _sentencepiece}
    if kind not in makers:
        raise BadInput(
            f"{header.path}: its tokenizer is of kind {kind[:40]!r}, and {', '.join(makers)} are read; "
            f"{FOLDER}"
        )
    vocabulary = _texts(header, "tokenizer.ggml.tokens")
    if len(vocabulary) != tokens or len(set(vocabulary)) != tokens:
        raise BadInput(
            f"{header.path}: {len(set(vocabulary)):,} tokens for an embedding of {tokens:,}; {AGAIN}"
        )
    special = {f"{ours}_token": _special(header, vocabulary, theirs) for ours, theirs in _SPECIAL.items()}
    backend = makers[kind](header, vocabulary, special["unk_token"])
    _add_whole_tokens(header, vocabulary, backend)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        chat_template=header.get("tokenizer.chat_template", str),
        model_max_length=length,
        clean_up_tokenization_spaces=False,
        **{name: token for name, token in special.items() if token is not None},
    )


def _byte_level(header: Header, vocabulary: list[str], unknown: str | None) -> "Backend":
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers

    kind = header.get("tokenizer.ggml.pre", str)
    if kind is None:
        raise BadInput(
            f"{header.path} does not say how its tokenizer cuts a text (tokenizer.ggml.pre): convert the "
            "model with a newer llama.cpp"
        )
    if kind not in PATTERNS:
        raise BadInput(
            f"{header.path}: its tokenizer cuts a text in a way that is not known, {kind[:40]!r}; {FOLDER}"
        )
    merges = [tuple(merge.split(" ")) for merge in _texts(header, "tokenizer.ggml.merges")]
    backend = Tokenizer(_bpe(header, vocabulary, merges, ignore_merges=kind in WHOLE_PIECES))
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PATTERNS[kind]]
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*cuts, level])
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(header: Header, vocabulary: list[str], unknown: str | None) -> "Backend":
    from tokenizers import Tokenizer, decoders, normalizers

    scores = _numbers(header, "tokenizer.ggml.scores", len(vocabulary))
    model = _bpe(
        header,
        vocabulary,
        _merges(vocabulary, scores),
        byte_fallback=True,
        fuse_unk=True,
        unk_token=unknown,
    )
    backend = Tokenizer(model)
    prefixed = header.get("tokenizer.ggml.add_space_prefix", bool, True)
    before = [normalizers.Prepend(_SPACE)] if prefixed else []
    backend.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", _SPACE)])
    after = [decoders.Strip(" ", 1, 0)] if prefixed else []
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *after]
    backend.decoder = decoders.Sequence(steps)
    return backend


def _bpe(header: Header, vocabulary: list[str], merges: list[Any], **settings: Any) -> Any:
    from tokenizers import models

    try:
        return models.BPE({token: place for place, token in enumerate(vocabulary)}, merges, **settings)
    except Exception as error:  # the library raises plain Exception
        raise BadInput(
            f"{header.path}: its merges and its tokens do not go together ({in_short(error)}); {AGAIN}"
        ) from error


def _merges(vocabulary: list[str], scores: list[Any]) -> list[tuple[str, str]]:
    """Return the pairs whose joining is a token, the best token first, as SentencePiece joins them."""
    known = {token: place for place, token in enumerate(vocabulary)}
    found = []
    for whole, place in known.items():
        pairs = [(whole[:cut], whole[cut:]) for cut in range(1, len(whole))]
        pairs = [pair for pair in pairs if pair[0] in known and pair[1] in known]
        pairs.sort(key=lambda pair: (known[pair[0]], known[pair[1]]))
        found += [(-scores[place], place, pair) for pair in pairs]
    return [pair for _, _, pair in sorted(found, key=lambda one: one[:2])]


def _add_whole_tokens(header: Header, vocabulary: list[str], backend: "Backend") -> None:
    """Tell the tokenizer which tokens no cut and no merge may touch."""
    from tokenizers import AddedToken

    if "tokenizer.ggml.token_type" not in header.values:
        return
    kinds = _numbers(header, "tokenizer.ggml.token_type", len(vocabulary))
    control = [token for token, kind in zip(vocabulary, kinds, strict=True) if kind == _CONTROL]
    own = [token for token, kind in zip(vocabulary, kinds, strict=True) if kind == _USER_DEFINED]
    backend.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in control if token]
    )
    backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in own if token])


def _special(header: Header, vocabulary: list[str], name: str) -> str | None:
    place: int | None = header.get(f"tokenizer.ggml.{name}_token_id", int)
    if place is None:
        return None
    if not 0 <= place < len(vocabulary):
        raise BadInput(f"{header.path}: there is no token {place:,} for {name}; {AGAIN}")
    return vocabulary[place]


def _texts(header: Header, name: str) -> list[str]:
    found = header.need(name, list)
    if not all(type(one) is str for one in found):
        raise BadInput(f"{header.path}: {name} is no list of texts; {AGAIN}")
    return list(found)


def _numbers(header: Header, name: str, count: int) -> list[Any]:
    found = header.need(name, list)
    if len(found) != count or not all(type(one) in (int, float) for one in found):
        raise BadInput(f"{header.path}: {name} is no list of {count:,} numbers; {AGAIN}")
    return list(found)
