"""Settings written as text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uptake.adaptation.optimizers import SGD, AdamW
from uptake.adaptation.trainable import LoRA, Top
from uptake.errors import BadInput
from uptake.methods.finetune import Finetune
from uptake.methods.hidden_state_optimisation import HiddenStateOptimisation
from uptake.settings import apply, describe


def test_values_of_every_kind() -> None:
    changed = apply(
        Finetune(),
        "learning_rate=1e-3",
        "optimizer.beta1=0.5",
        "trainable=lora(rank=8)",
        "clip=none",
        "chunk-tokens=64",
        "dropout=true",
        "order=farthest-first",
    )
    assert changed == Finetune(
        LoRA(rank=8), AdamW(1e-3, beta1=0.5), None, chunk_tokens=64, dropout=True, order="farthest-first"
    )
    assert apply(Finetune(), "trainable=top", "optimizer=sgd(learning_rate=0.1,momentum=0.9)") == Finetune(
        Top(), SGD(0.1, 0.9)
    )
    assert describe(changed)["trainable"] == {"kind": "LoRA", "rank": 8, "alpha": 32, "owner": "lora"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learning_rate", "write name=value"),
        ("learning_rate=fast", "use a number"),
        ("passes=1.5", "use a whole number"),
        ("dropout=1", "use true or false"),
        ("order=random", "nearest-first"),
        ("trainable=everything", "use one of all, top, named, lora"),
        ("trainable=lora(size=3)", "no setting 'size'"),
        ("trainable=lora(rank=3", "use one of"),
        ("learning_rat=1", "did you mean 'learning_rate'"),
        ("learning_rate=-1", "0 or more"),
        ("clip=0", "positive"),
        ("max_steps=-1", "0 or more"),
        ("chunk_tokens=1", "2 or more"),
    ],
)
def test_mistakes_are_named_with_the_cure(text: str, words: str) -> None:
    with pytest.raises(BadInput, match=words.replace("(", r"\(")):
        apply(Finetune(), text)


def test_a_field_of_one_class_takes_its_settings_and_names_it() -> None:
    method = HiddenStateOptimisation()
    assert apply(method, "optimizer=adamw(learning_rate=0.5)").optimizer == AdamW(0.5)
    with pytest.raises(BadInput, match="use one of adamw, with settings"):
        apply(method, "optimizer=sgd")


@given(st.text(max_size=40))
def test_any_text_is_a_setting_or_bad_input(text: str) -> None:
    try:
        assert isinstance(apply(Finetune(), text), Finetune)
    except BadInput as error:
        assert "\n" not in str(error) or "\n" in text
