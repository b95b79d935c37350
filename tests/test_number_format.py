"""The number format goes by size, device and a probe that is made once; artefacts keep float32."""

from pathlib import Path

import pytest
import torch

import toys
from uptake.api import method_specs
from uptake.cache import cache_root
from uptake.evaluation.defaults import usual_format
from uptake.lm import loading, number_format
from uptake.lm.number_format import format_for


def test_a_large_model_takes_what_a_probe_says_and_the_probe_is_made_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probes = list[float]()

    def probe() -> float:
        probes.append(share)
        return share

    monkeypatch.setattr(number_format, "probe", probe)
    share = 0.4
    assert format_for("cpu", 5_000_000) == "float32" and not probes
    assert format_for("cpu", 10**9) == format_for("cpu", 10**9) == "bfloat16" and len(probes) == 1
    (kept,) = cache_root().glob("formats/*.json")
    kept.write_bytes(kept.read_bytes()[:-9])  # one that is damaged is made again
    share = 7.0
    assert format_for("cpu", 10**9) == "float32" and len(probes) == 2
    monkeypatch.setattr(number_format, "_processor", lambda: "another")
    share = 0.79
    assert format_for("cpu", 10**9) == "bfloat16" and len(probes) == 3
    assert format_for("mps", 10**9) == "float32"


def test_a_probe_is_a_share_of_the_time_and_draws_nothing_from_anybody() -> None:
    state = torch.get_rng_state()
    assert number_format.probe() > 0
    assert torch.equal(state, torch.get_rng_state())


def test_a_model_is_loaded_in_the_format_of_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toys.module().save_pretrained(tmp_path)
    toys.tokenizer().save_pretrained(tmp_path)
    lm = loading.load(str(tmp_path), dtype="auto")
    assert lm.dtype == torch.float32
    seen = list[int]()
    monkeypatch.setattr(loading, "format_for", lambda device, weights: seen.append(weights) or "bfloat16")
    assert loading.load(str(tmp_path), dtype="auto").dtype == torch.bfloat16
    assert seen == [sum(parameter.numel() for parameter in lm.module.parameters())]


def test_what_was_made_for_the_weights_keeps_float32() -> None:
    assert usual_format(method_specs(["base", "ttt-nn", "in-context/ttt-nn"]).values()) == "auto"
    assert usual_format(method_specs(["camels"], ["weights=untrained"]).values()) == "auto"
    assert usual_format(method_specs(["camels"], ["weights=some.safetensors"]).values()) == "float32"
    assert usual_format(method_specs(["ttt-nn", "knn-lm"]).values()) == "float32"
