"""Train the small base model that comes with the repository, from freely licensed text.

Text: the Python standard library on this machine, and, from the mini-Pile folder, the
domains named in SOURCES (all public domain, CC BY, CC BY-SA or PSF licence). It reads no
installed package, so any package is new to it.

Stages are resumable: token file, tokenizer and checkpoint live in the work folder; run the
same command again after an interruption and it goes on. The learning rate is constant after
warm-up and falls linearly to zero over the last part of the run.

    python examples/make_demo_model.py --out examples/demo-model
"""

import argparse
import json
import lzma
import math
import os
import random
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END = "<|endoftext|>"
VOCABULARY = 8192
CONTEXT = 1024
# domain of the mini-Pile -> how often it is read (a fraction reads that share of the documents)
SOURCES = {"python_peps": 1.0, "textbook_us_history": 1.0, "wikipedia": 1.0, "books": 0.15}
LIBRARY_EPOCHS = {"library": 2.0, "tests": 0.6}
VALIDATION_EVERY = 100  # one file in this many is held out of training


def library_files() -> Iterator[tuple[str, str]]:
    """Yield (kind, text) for each source file of the standard library, in a fixed order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if {"site-packages", "pydoc_data", "lib2to3"} & set(parts) or path.stat().st_size > 400_000:
            continue
        kind = "tests" if {"test", "tests", "idle_test"} & set(parts) else "library"
        try:
            text = path.read_text(encoding="utf8")
        except (UnicodeDecodeError, OSError):
            continue
        if len(text) > 200:
            yield kind, text


def domain_documents(folder: Path, domain: str) -> Iterator[str]:
    with lzma.open(folder / domain / "train.jsonl.xz", "rt", encoding="utf8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def documents(shared: Path, rng: random.Random) -> tuple[list[str], list[str]]:
    """Return (training, validation) documents, shuffled; validation is standard library only."""
    train: list[str] = []
    valid: list[str] = []
    pools: dict[float, list[str]] = {}
    for number, (kind, text) in enumerate(library_files()):
        if kind == "library" and number % VALIDATION_EVERY == 7:
            valid.append(text)
        else:
            pools.setdefault(LIBRARY_EPOCHS[kind], []).append(text)
    for domain, epochs in SOURCES.items():
        folder = shared / "data" / "minipile"
        if not (folder / domain).is_dir():
            print(f"no {domain} under {folder}: the model will not have read it")
            continue
        pools.setdefault(epochs, []).extend(domain_documents(folder, domain))
    for epochs, pool in pools.items():
        train += pool * int(epochs) + rng.sample(pool, int(len(pool) * (epochs % 1)))
    rng.shuffle(train)
    return train, valid


def make_tokenizer(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    pieces = []
    for start in range(0, len(texts), 256):
        for encoding in tokenizer.encode_batch(texts[start : start + 256]):
            pieces.append(np.array([0, *encoding.ids], dtype=np.uint16))
    return np.concatenate(pieces)


def prepare(work: Path, shared: Path, seed: int) -> None:
    """Write tokenizer.json, train.npy and valid.npy into the work folder, once."""
    if (work / "valid.npy").exists():
        return
    train, valid = documents(shared, random.Random(seed))
    sample = random.Random(seed).sample(train, min(len(train), 1500))
    tokenizer = make_tokenizer([text[:20_000] for text in sample])
    tokenizer.save(str(work / "tokenizer.json"))
    for name, texts in (("train", train), ("valid", valid)):
        tokens = encode(tokenizer, texts)
        np.save(work / f"{name}.npy", tokens)
        size = sum(len(text.encode()) for text in texts)
        print(
            f"{name}: {len(texts)} documents, {len(tokens):,} tokens, {size / len(tokens):.2f} bytes a token"
        )


def new_model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def learning_rate(done: float, warm_up: float, decay: float) -> float:
    """Multiplier at fraction `done` of the run."""
    return min(1.0, done / warm_up if warm_up else 1.0, max(0.0, (1 - done) / decay))


def bits_per_token(model: LlamaForCausalLM, tokens: np.ndarray, windows: int = 48) -> float:
    ids = torch.from_numpy(tokens[: windows * 512].astype(np.int64)).view(-1, 512)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        losses = [model(input_ids=row[None], labels=row[None]).loss.item() for row in ids]
    return sum(losses) / len(losses) / math.log(2)


def train(work: Path, arguments: argparse.Namespace) -> LlamaForCausalLM:
    torch.manual_seed(arguments.seed)
    model = new_model()
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=3e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=3e-3, weight_decay=0.1, betas=(0.9, 0.95), fused=True),
    ]
    step, checkpoint = 0, work / "checkpoint"
    if (checkpoint / "state.pt").exists():
        model.load_state_dict(load_file(checkpoint / "model.safetensors"), strict=False)
        model.tie_weights()
        state = torch.load(checkpoint / "state.pt", weights_only=True)
        step = state["step"]
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        print(f"going on from step {step}")
    tokens = np.load(work / "train.npy", mmap_mode="r")
    # A batch of neighbouring windows would be one document: blocks are read in a shuffled order.
    blocks = tokens[: len(tokens) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)
    order = np.random.default_rng(arguments.seed).permutation(len(blocks))
    valid = np.load(work / "valid.npy")
    steps = (arguments.tokens or len(tokens)) // arguments.batch
    started, first = time.time(), step
    while step < steps:
        # Long windows cost more and matter late: the first part of the run reads half windows.
        window = CONTEXT // 2 if step < 0.65 * steps else CONTEXT
        rows = arguments.batch // window
        each_step = arguments.batch // CONTEXT
        chosen = order[np.arange(step * each_step, (step + 1) * each_step) % len(order)]
        ids = torch.from_numpy(blocks[np.sort(chosen)].astype(np.int64)).view(rows, window)
        rate = learning_rate((step + 1) / steps, 50 / steps, arguments.decay)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * rate
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 100 == 0 or step == steps:
            each = (time.time() - started) / (step - first)
            left = (steps - step) * each / 60
            print(
                f"step {step}/{steps}  loss {loss.item():.3f}  {each:.2f} s a step  {left:.0f} min left",
                flush=True,
            )
        if step % 500 == 0 or step == steps:
            print(f"  held-out standard library: {bits_per_token(model, valid):.3f} bits a token", flush=True)
            save_checkpoint(checkpoint, model, optimizers, step)
    return model


def save_checkpoint(
    folder: Path, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], step: int
) -> None:
    folder.mkdir(exist_ok=True)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    save_file(weights, folder / "model.safetensors")
    state = {"step": step, "optimizers": [o.state_dict() for o in optimizers]}
    torch.save(state, folder / "state.new")
    (folder / "state.new").replace(folder / "state.pt")


def export(model: LlamaForCausalLM, work: Path, out: Path) -> None:
    """Write the model in bfloat16 with its tokenizer, ready for `from_pretrained`."""
    model.to(torch.bfloat16).save_pretrained(out)
    PreTrainedTokenizerFast(
        tokenizer_file=str(work / "tokenizer.json"),
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(out)
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"wrote {out}: {size / 1e6:.1f} MB, {sum(p.numel() for p in model.parameters()):,} parameters")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("examples/demo-model"))
    parser.add_argument("--work", type=Path, default=Path("build/demo-model"))
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("UPTAKE_SHARED", "../shared")))
    parser.add_argument("--tokens", type=int, help="tokens to train on (default: all of them once)")
    parser.add_argument("--batch", type=int, default=4096, help="tokens a step")
    parser.add_argument(
        "--decay", type=float, default=0.5, help="share of the run over which the rate falls to 0"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    prepare(arguments.work, arguments.shared, arguments.seed)
    export(train(arguments.work, arguments), arguments.work, arguments.out)


if __name__ == "__main__":
    main()
