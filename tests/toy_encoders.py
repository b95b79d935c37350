"""A tiny BERT as a folder that sentence-transformers reads, and a store of its passages."""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from uptake.tasks.questions import Question
from uptake.text.encoders import SentenceEncoder
from uptake.text.types import Document

WORDS = [f"w{n}" for n in range(60)]
MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WIDTH = 16


def folder_of(path: Path, seed: int = 0, layers: int = 3) -> Path:
    """Write a random encoder of so many layers below `path` and return its folder."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    words = [*MARKS, *WORDS]
    cut = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    cut.pre_tokenizer = pre_tokenizers.Whitespace()
    cut.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(words), hidden_size=WIDTH, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=32, initializer_range=0.3,
    )  # fmt: skip
    BertModel(config).save_pretrained(path / "bert")
    PreTrainedTokenizerFast(
        tokenizer_object=cut, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=24,
    ).save_pretrained(path / "bert")  # fmt: skip
    whole = SentenceTransformer(modules=[Transformer(str(path / "bert")), Pooling(WIDTH)])
    whole.save_pretrained(str(path / "encoder"), create_model_card=False)
    return path / "encoder"


def encoder(folder: Path, dtype: torch.dtype = torch.float32) -> SentenceEncoder:
    """Read it; in float64 for tests of exactness."""
    made = SentenceEncoder(str(folder), dtype="float32")
    for module in made.modules:
        module.to(dtype)
    return made


def documents(count: int = 30, seed: int = 0) -> list[Document]:
    """Return texts of 5 to 12 random words."""
    draw = np.random.default_rng(seed)
    return [Document(f"d{n}", " ".join(draw.choice(WORDS, int(draw.integers(5, 13))))) for n in range(count)]


def questions(count: int = 12, seed: int = 1) -> list[Question]:
    """Return questions about the first documents: three of their words, shuffled."""
    draw = np.random.default_rng(seed)
    found = []
    for n, document in enumerate(documents()[:count]):
        words = draw.choice(document.text.split(), 3, replace=False).tolist()
        found.append(Question(f"q{n}", " ".join(words), (words[0],), document.id))
    return found
