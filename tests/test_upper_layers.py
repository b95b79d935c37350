"""An encoder's upper layers alone: the vectors and gradients of the whole encoder, to rounding."""

import numpy as np
import pytest
import torch

from tests import toy_encoders
from uptake.errors import BadInput
from uptake.retrievers.upper_layers import UpperLayers
from uptake.text.encoders import make_encoder

pytest.importorskip("sentence_transformers")
DOUBLE = torch.float64
TEXTS = [document.text for document in toy_encoders.documents(9)] + ["w1", "w2 w3", "w1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toy_encoders.folder_of(tmp_path_factory.mktemp("toy"))


def whole(encoder, text):
    """The vector of one text by all layers: no padding, nothing kept, and a gradient."""
    first, *_ = encoder.modules
    ids = torch.tensor(encoder.tokens([text]))
    states = first.model(input_ids=ids).last_hidden_state[0]
    return torch.nn.functional.normalize(states.mean(0), dim=0)


@pytest.mark.parametrize("layers", [1, 2])
def test_what_is_kept_gives_the_vectors_of_the_whole_pass(folder, layers):
    upper = UpperLayers(toy_encoders.encoder(folder, DOUBLE), layers)
    plain = toy_encoders.encoder(folder, DOUBLE)
    expected = torch.stack([whole(plain, text) for text in TEXTS]).detach().numpy()
    for _ in range(2):  # computed, then kept
        np.testing.assert_allclose(upper.embed(TEXTS), expected, atol=1e-12)
    np.testing.assert_allclose(upper.embed(TEXTS), plain.embed(TEXTS), atol=1e-6)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_gradient_is_that_of_the_whole_encoder_text_by_text(folder, layers):
    upper = UpperLayers(toy_encoders.encoder(folder, DOUBLE), layers)
    plain = toy_encoders.encoder(folder, DOUBLE)
    of_vectors = torch.randn(len(TEXTS), toy_encoders.WIDTH, dtype=DOUBLE)
    named = dict(plain.modules[0].model.named_parameters())
    total = sum((whole(plain, t) * g).sum() for t, g in zip(TEXTS, of_vectors, strict=True))
    expected = torch.autograd.grad(total, [named[name] for name in upper.parameters])
    for found, wanted in zip(upper.gradients(TEXTS, of_vectors), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-9)
    assert {name.split(".")[2] for name in upper.parameters} == {"2"} | ({"1"} if layers == 2 else set())


def test_a_bound_on_what_is_kept_changes_nothing(folder):
    encoder = toy_encoders.encoder(folder, DOUBLE)
    bounded, free = UpperLayers(encoder, 1, kept=2000), UpperLayers(toy_encoders.encoder(folder, DOUBLE), 1)
    assert np.array_equal(bounded.embed(TEXTS), free.embed(TEXTS))
    assert 0 < bounded._kept.bytes <= 2000
    assert 0 < len(bounded._kept) < len(set(TEXTS)) <= len(free._kept)
    assert np.array_equal(bounded.embed(TEXTS), free.embed(TEXTS))


def test_a_step_changes_the_upper_layers_and_what_is_written(folder, tmp_path):
    upper = UpperLayers(toy_encoders.encoder(folder), 1)
    before, start = upper.state(), upper.embed(TEXTS)
    upper.put({name: value + 0.1 * torch.randn_like(value) for name, value in before.items()})
    moved = upper.embed(TEXTS)
    assert not np.allclose(start, moved, atol=1e-3)
    upper.write(tmp_path / "out")
    again = make_encoder(str(tmp_path / "out"), dtype="float32")
    np.testing.assert_allclose(again.embed(TEXTS), moved, atol=1e-5)
    assert again.fingerprint != make_encoder(str(folder), dtype="float32").fingerprint
    upper.put(before)
    assert np.array_equal(upper.embed(TEXTS), start)


def test_layers_that_cannot_train_alone_are_refused_in_a_line(folder):
    for layers in (0, 3, 9):
        with pytest.raises(BadInput, match="use 1 to 2") as caught:
            UpperLayers(toy_encoders.encoder(folder), layers)
        assert "\n" not in str(caught.value)
