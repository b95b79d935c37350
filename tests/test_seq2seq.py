"""Encoder-decoders of transformers as language models: T5, Switch and BART; several texts read at once."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

import conformance
import toys
import uptake
from conformance import Subject
from uptake import methods, settings
from uptake.adaptation.delta import fingerprint
from uptake.adaptation.optimizers import SGD
from uptake.adaptation.trainable import LoRA, Top
from uptake.adaptation.trainable.places import blocks, upper_blocks
from uptake.errors import BadInput
from uptake.export import export_peft
from uptake.lm.base import LM, Segment
from uptake.lm.causal import Causal
from uptake.lm.examples import encode
from uptake.lm.fusion import Fused
from uptake.lm.generation import Decoding
from uptake.lm.loading import load_causal
from uptake.lm.seq2seq import Seq2Seq
from uptake.lm.wrappers import Prefixed
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.finetune import Finetune
from uptake.methods.rag import Rag
from uptake.methods.retro import Retro
from uptake.store import Datastore
from uptake.text.tokenizer import Tokenizer
from uptake.text.types import Document

KINDS = ("t5", "switch", "bart")
QUESTION, ANSWER = "who saw max? ", "lou saw max."


def by_hand(model: Seq2Seq, context: str, target: str) -> torch.Tensor:
    """Return the log-probability of each token of the target, from the module's own forward pass."""
    inputs, labels = (model.tokenizer.encode(text)[0] for text in (context, target))
    decoder = torch.tensor([[model.first, *labels[:-1]]])
    out = model.module(input_ids=torch.tensor([inputs or [0]]), decoder_input_ids=decoder)
    return out.logits[0].log_softmax(-1).gather(-1, torch.tensor(labels)[:, None])[:, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_context_goes_to_the_encoder_and_the_target_to_the_decoder(kind: str) -> None:
    model = toys.seq2seq(kind)
    pairs = [(QUESTION, ANSWER), ("", "max"), ("max saw lou and then he ran. ", "he")]
    # Rows of different length in one pass are what each is by itself.
    for scores, (context, target) in zip(
        model.score([Segment(target, context) for context, target in pairs]), pairs, strict=True
    ):
        assert torch.allclose(scores.log_probs.float(), by_hand(model, context, target), atol=1e-5)
    (long,) = model.score([Segment(ANSWER * 20, QUESTION)])
    assert len(long.log_probs) == 20 * len(ANSWER) and bool(long.log_probs.isfinite().all())


@pytest.mark.parametrize("kind", KINDS)
def test_it_continues_as_transformers_does(kind: str) -> None:
    model = toys.seq2seq(kind)
    prompts = [QUESTION, "max"]
    expected = []
    for prompt in prompts:
        written = [model.first]
        inputs = torch.tensor([model.tokenizer.encode(prompt)[0]])
        for _ in range(9):
            out = model.module(input_ids=inputs, decoder_input_ids=torch.tensor([written]))
            token = int(out.logits[0, -1].argmax())
            if token == model.tokenizer.end:
                break
            written.append(token)
        expected.append(model.tokenizer.decode(written[1:]))
    assert [model.generate(prompt, tokens=9) for prompt in prompts] == expected
    assert model.generate_rows(prompts, Decoding(tokens=9)) == expected


def test_special_tokens_stand_around_a_context_as_the_tokenizer_puts_them() -> None:
    inner = toys.tokenizer.__wrapped__()
    inner.add_special_tokens({"additional_special_tokens": ["<s>", "</s>"]})
    opening, ending = inner.convert_tokens_to_ids(["<s>", "</s>"])
    inner.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", opening), ("</s>", ending)]
    )
    module = toys.seq2seq_module()
    module.resize_token_embeddings(300)
    model = Seq2Seq(module, Tokenizer(inner))
    text = inner("max", add_special_tokens=False)["input_ids"]
    assert model.encoder_ids(model.tokenizer.opened("max")) == [opening, *text, ending]
    assert model.encoder_ids(model.tokenizer.opened("")) == [opening, ending]
    # A later window begins in the middle of a text, and one that is too long loses its beginning.
    assert model.encoder_ids(text) == [opening, *text, ending]
    long = model.encoder_ids(model.tokenizer.opened("0123456789" * 9))
    assert (
        len(long) == model.window
        and long[0] == opening
        and long[-2:]
        == [
            *inner("9", add_special_tokens=False)["input_ids"],
            ending,
        ]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_loaded_from_a_folder(kind: str, tmp_path: Path) -> None:
    model = toys.seq2seq(kind)
    toys.seq2seq_module(kind).save_pretrained(tmp_path)
    toys.tokenizer().save_pretrained(tmp_path)
    loaded = uptake.load(str(tmp_path))
    assert isinstance(loaded, Seq2Seq) and loaded.fingerprint == model.fingerprint
    segment = Segment(ANSWER, QUESTION)
    found, expected = (each.score([segment])[0].log_probs for each in (loaded, model))
    assert torch.allclose(found, expected, atol=1e-5)
    wanted = r"the server needs a causal model, and .* is an encoder-decoder: give a decoder"
    with pytest.raises(BadInput, match=wanted):
        load_causal(str(tmp_path), "cpu", "float32", "the server")


@pytest.mark.parametrize("kind", KINDS)
def test_fine_tuning_is_gradient_steps_on_the_models_own_loss(kind: str) -> None:
    model = toys.seq2seq(kind, dtype=torch.float64)
    method = Finetune(optimizer=SGD(0.1), clip=None, chunk_tokens=16)
    text, context = "max saw lou. " * 2, Context()
    before = fingerprint(model.module)
    (state,) = method.adapt([method.init(model)], model, [Evidence.of(text)], context)
    assert context.ledger(0).steps == 2 and fingerprint(model.module) == before
    module = toys.seq2seq_module(kind, dtype=torch.float64).eval()
    ids = [model.tokenizer.opening, *model.tokenizer.encode(text)[0]]
    for start in range(0, len(ids) - 1, 16):
        target = ids[start + 1 : start + 17]
        # Of the first piece the encoder reads nothing but the opening token, of others the token before.
        inputs, decoder = torch.tensor([[ids[start]]]), torch.tensor([[model.first, *target[:-1]]])
        logits = module(input_ids=inputs, decoder_input_ids=decoder).logits[0]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(target))
        module.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
    segment = Segment(ANSWER, QUESTION)
    (found,) = method.adapted([state], model).score([segment])
    (expected,) = Seq2Seq(module, model.tokenizer).score([segment])
    assert torch.allclose(found.log_probs, expected.log_probs, atol=1e-6)
    assert not torch.allclose(found.log_probs, model.score([segment])[0].log_probs, atol=1e-3)


def test_blocks_are_those_of_both_sides_and_the_last_ones_the_decoders() -> None:
    module = toys.seq2seq_module()
    assert blocks(module)[0] == "decoder.block"
    assert [*upper_blocks(module, 1)] == ["decoder.block.1"]
    both = [f"{side}.block.{number}" for side in ("encoder", "decoder") for number in range(2)]
    assert [*upper_blocks(module, None)] == both


@pytest.mark.parametrize("kind", KINDS)
def test_lora_is_on_both_sides_and_leaves_as_an_adapter_of_peft(kind: str, tmp_path: Path) -> None:
    from peft import PeftModel

    model = toys.seq2seq(kind)
    method = Finetune(trainable=LoRA(rank=2), optimizer=SGD(1.0))
    (state,) = method.adapt([method.init(model)], model, [Evidence.of("max saw lou. " * 3)], Context())
    names = {name.path for name in state.delta.parts}
    for side in ("encoder", "decoder"):
        assert any(side in name.split(".") for name in names)
    export_peft(state.delta, model, tmp_path / "adapter")
    there: Any = PeftModel.from_pretrained(toys.seq2seq_module(kind), str(tmp_path / "adapter"))
    inputs, target = (torch.tensor([model.tokenizer.encode(text)[0]]) for text in (QUESTION, ANSWER))
    decoder = torch.cat([torch.tensor([[model.first]]), target[:, :-1]], 1)
    with torch.no_grad():
        logits = there(input_ids=inputs, decoder_input_ids=decoder).logits[0]
    expected = logits.log_softmax(-1).gather(-1, target[0][:, None])[:, 0]
    (found,) = method.adapted([state], model).score([Segment(ANSWER, QUESTION)])
    assert torch.allclose(found.log_probs.float(), expected, atol=1e-4)
    (base,) = model.score([Segment(ANSWER, QUESTION)])
    assert not torch.allclose(found.log_probs, base.log_probs, atol=1e-4)


def test_gradients_go_through_given_parameters_and_the_encoder() -> None:
    model = toys.seq2seq(dtype=torch.float64)
    example = encode(model.tokenizer, QUESTION, ANSWER)
    given = {name: own.clone().requires_grad_() for name, own in model.module.named_parameters()}
    (log_probs,) = model.with_parameters(given).token_log_probs([example])
    assert torch.allclose(log_probs, model.token_log_probs([example])[0])
    gradients = torch.autograd.grad(-log_probs.mean(), list(given.values()), allow_unused=True)
    for (name, _), gradient in zip(given.items(), gradients, strict=True):
        assert gradient is not None and bool(gradient.abs().sum() > 0), name


def adapted(name: str, model: LM) -> LM:
    spec = conformance.example(methods.find(name))
    subject = Subject(spec, stored=spec.searches)
    spec.method.check(model)
    state = conformance.read(subject, model, "the cat sat on the mat. ", "a dog")
    answering: LM = spec.method.adapted([state], model)
    return answering


WORK = (
    "base", "dynamic-evaluation", "finetune", "gated-memory", "in-context", "in-context-refreshed", "n-gram",
    "n-gram-random", "online", "rag", "random", "sift", "source-code", "ttt-nn", "ttt-nn-guarded",
    "ttt-nn+in-context", "in-context/ttt-nn",
)  # fmt: skip


@pytest.mark.parametrize("name", sorted({*methods.names(), *WORK}))
def test_every_method_works_on_it_or_refuses_it_in_one_line(name: str) -> None:
    model = toys.seq2seq()
    segment = Segment("the cat sat", "so ")
    before = fingerprint(model.module)
    if name not in WORK:
        with pytest.raises(BadInput) as refused:
            adapted(name, model)
        line = str(refused.value)
        cures = ("is an encoder-decoder", "give another reader", "use trainable=lora")
        assert "\n" not in line and any(cure in line for cure in cures), line
    else:
        answering = adapted(name, model)
        (scores,), (base,) = answering.score([segment]), model.score([segment])
        assert bool(scores.log_probs.isfinite().all())
        assert torch.equal(scores.log_probs, base.log_probs) == (name == "base")
        assert isinstance(answering.generate("so ", 4), str)
    assert fingerprint(model.module) == before


@pytest.mark.parametrize("name", ["adapter-mixture", "attempt", "camels", "fwl", "mac", "mltd", "retro"])
def test_nobody_is_sent_to_prepare_what_an_encoder_decoder_cannot_have(name: str, tmp_path: Path) -> None:
    """Without a trained network, and over a store without chunks, it is the model that is refused."""
    store = Datastore.create(tmp_path / "s", retriever="lexical")
    store.add([Document("a", "the cat sat on the mat. " * 9)])
    with pytest.raises(BadInput) as refused:
        methods.find(name).method.check(toys.seq2seq(), store.source("a dog"))
    line = str(refused.value)
    assert "use a causal model" in line or "give another reader" in line, line


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trainable", ["auto", "all", "top(layers=1)", "lora", "ia3", "prompt", "compacter"])
def test_what_trains_of_it_is_trained_or_refused_in_one_line(kind: str, trainable: str) -> None:
    model = toys.seq2seq(kind)
    spec = settings.apply(methods.find("finetune"), f"trainable={trainable}", "learning_rate=3e-2")
    method: Any = spec.method
    if trainable == "prompt" or (kind != "bart" and trainable in ("ia3", "compacter")):
        with pytest.raises(BadInput, match=r"(use|or) trainable=lora"):
            method.check(model)
        return
    method.check(model)
    (state,) = method.adapt([method.init(model)], model, [Evidence.of("max saw lou. " * 3)], Context())
    (found,), (base,) = (each.score([Segment(ANSWER)]) for each in (method.adapted([state], model), model))
    assert not torch.equal(found.log_probs, base.log_probs)


def test_a_causal_only_part_refuses_it_and_the_fused_way_refuses_a_causal_model() -> None:
    model = toys.seq2seq()
    with pytest.raises(BadInput, match=r"T5\w+ is an encoder-decoder, which reads no text step by step: use"):
        model.step(torch.tensor([[1, 2]]))
    with pytest.raises(BadInput, match=r"T5\w+ is an encoder-decoder, which reads no text chunk by chunk"):
        Retro(chunk=3).build(model)
    with pytest.raises(
        BadInput, match="no encoder that reads texts apart: use an encoder-decoder, such as T5"
    ):
        Rag(marginal="fused").check(toys.lm())
    with pytest.raises(BadInput, match="no encoder that reads texts apart"):
        Fused(toys.lm(), [[(1, 2)]])
    with pytest.raises(BadInput, match="a text of 64 tokens fills the window of 64"):
        Fused(model, [[(1,) * 64]])
    assert isinstance(toys.lm(), Causal)
    module = toys.seq2seq_module()
    module.config.decoder_start_token_id = module.config.pad_token_id = None
    with pytest.raises(BadInput, match="does not say what its decoder begins with: set decoder_start_token"):
        Seq2Seq(module, Tokenizer(toys.tokenizer()))


PASSAGES = ("lou was at the lake. ", "max ran. ", "who saw lou? max. ")


def fused(model: LM, *texts: str) -> LM:
    return Fused(model, [[model.tokenizer.encode(text)[0] for text in texts]])


def log_probs(model: LM) -> torch.Tensor:
    return model.score([Segment(ANSWER, QUESTION)])[0].log_probs


@pytest.mark.parametrize("kind", KINDS)
def test_one_passage_fused_is_the_model_that_reads_it_and_order_does_not_matter(kind: str) -> None:
    model = toys.seq2seq(kind, dtype=torch.float64)
    one = Prefixed(model, [model.tokenizer.encode(PASSAGES[0])[0]])
    assert torch.allclose(log_probs(fused(model, PASSAGES[0])), log_probs(one), atol=1e-12)
    assert torch.allclose(log_probs(fused(model)), log_probs(model), atol=1e-12)
    first = log_probs(fused(model, *PASSAGES))
    assert torch.allclose(log_probs(fused(model, *reversed(PASSAGES))), first, atol=1e-12)
    assert not torch.allclose(first, log_probs(one), atol=1e-4)
    # Rows of one batch, each with as many passages as it has, are what each is by itself.
    rows = [PASSAGES, PASSAGES[:1], ()]
    texts = [[model.tokenizer.encode(text)[0] for text in row] for row in rows]
    together = Fused(model, texts).score([Segment(ANSWER, QUESTION)] * 3)
    for scores, row in zip(together, rows, strict=True):
        assert torch.allclose(scores.log_probs, log_probs(fused(model, *row)), atol=1e-12)
    assert fused(model, *PASSAGES).generate(QUESTION, 5) == Fused(model, texts).at([0]).generate(QUESTION, 5)


@pytest.mark.parametrize("kind", KINDS)
def test_masking_a_passage_is_reading_without_it(kind: str) -> None:
    """What LOOP does (Izacard et al. 2022): of what was encoded once, one passage is left out at a time."""
    model = toys.seq2seq(kind, dtype=torch.float64)
    context = tuple(model.tokenizer.encode(QUESTION)[0])
    inputs = [[*model.tokenizer.encode(text)[0], *context] for text in PASSAGES]
    example = encode(model.tokenizer, QUESTION, ANSWER)
    with torch.no_grad():
        encoded = model.encode([inputs])
        width = encoded.seen.shape[1] // len(inputs)
        for left_out in range(len(inputs)):
            seen = encoded.seen.clone()
            seen[:, left_out * width : (left_out + 1) * width] = False
            masked = model.decode(encoded._replace(seen=seen), [example])[0]
            (rerun,) = model.predictions_apart(
                [[x for n, x in enumerate(inputs) if n != left_out]], [example]
            )
            assert torch.allclose(masked, rerun, atol=1e-12)


def test_rag_fuses_what_it_finds() -> None:
    model = toys.seq2seq()
    method = Rag(marginal="fused")
    evidence = Evidence.of(*PASSAGES, query=QUESTION)
    (state,) = method.adapt([method.init(model)], model, [evidence], Context())
    (scores,) = method.adapted([state], model).score([Segment(ANSWER, QUESTION)])
    expected = log_probs(fused(model, *(text + "\n\n" for text in PASSAGES)))
    assert torch.allclose(scores.log_probs, expected, atol=1e-6)
    assert method.adapted([method.init(model)], model).score([Segment(ANSWER)])[0].bits == pytest.approx(
        model.score([Segment(ANSWER)])[0].bits
    )


def test_the_dense_feed_forward_in_every_expert_is_the_dense_model() -> None:
    """With a gate of 1, whichever expert is chosen, a Switch is the T5 whose feed-forward they all have."""
    dense, switch = (toys.seq2seq_module(kind, dtype=torch.float64) for kind in ("t5", "switch"))
    weights = dense.state_dict()
    known = {}
    for name, own in switch.state_dict().items():
        plain = name.replace("mlp.router.classifier", "router").replace(".mlp.", ".DenseReluDense.")
        for expert in range(3):
            plain = plain.replace(f".experts.expert_{expert}.", ".")
        # A gate of 1: the router is so sure that the others' shares are nothing at all.
        known[name] = weights.get(plain, own * 1e6)
    switch.load_state_dict(known)
    tokenizer = Tokenizer(toys.tokenizer())
    one, other = Seq2Seq(dense, tokenizer), Seq2Seq(switch, tokenizer)
    segments = [Segment(ANSWER, QUESTION), Segment("max ran. ", PASSAGES[0])]
    chosen: set[int] = set()
    for part in switch.modules():
        if type(part).__name__ == "SwitchTransformersTop1Router":
            part.register_forward_hook(lambda _, __, out: chosen.update(out[0].argmax(-1).flatten().tolist()))
    for dense_scores, sparse_scores in zip(one.score(segments), other.score(segments), strict=True):
        assert torch.allclose(dense_scores.log_probs, sparse_scores.log_probs, atol=1e-5)
    assert len(chosen) > 1, "more than one expert took part"


def test_a_copy_stands_apart_from_the_module_it_was_made_of() -> None:
    model = toys.seq2seq()
    before = copy.deepcopy(model.module.state_dict())
    method = Finetune(trainable=Top(1), optimizer=SGD(1.0))
    method.adapt([method.init(model)], model, [Evidence.of("max saw lou. ")], Context())
    after = model.module.state_dict()
    assert all(torch.equal(after[name], own) for name, own in before.items())
