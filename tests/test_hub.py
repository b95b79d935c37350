"""A hub that does not answer is asked once and shortly; what is in the cache is used without it."""

from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import transformers

import toys
from cli_world import Run, made_fixture, refused, run_fixture, world_fixture  # noqa: F401
from uptake.errors import Missing
from uptake.lm.loading import load, load_tokenizer
from uptake.text.encoders import make_encoder

Asked = list[float]


@pytest.fixture(name="silent")
def silent_fixture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Asked:
    """A hub that does not answer, behind an empty cache; the seconds that each question would wait."""
    asked: Asked = []

    def model_info(_: object, name: str, timeout: float) -> None:
        asked.append(timeout)
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return asked


def never(*_: object, **__: object) -> None:
    raise AssertionError("the loader would ask again, for each file")


@pytest.mark.parametrize("name", ["nobody/nothing", "nothing"])
@pytest.mark.parametrize(
    "make",
    [load, load_tokenizer, make_encoder, lambda name: make_encoder(f"lm:{name}")],
    ids=["model", "tokenizer", "encoder", "encoder of a model"],
)
def test_a_wrong_name_without_a_network_is_one_short_question(
    silent: Asked, monkeypatch: pytest.MonkeyPatch, make: Callable[[str], object], name: str
) -> None:
    for loader in (transformers.AutoTokenizer, transformers.AutoModelForCausalLM, transformers.AutoModel):
        monkeypatch.setattr(loader, "from_pretrained", never)
    monkeypatch.setattr("huggingface_hub.snapshot_download", never)
    with pytest.raises(Missing, match=rf"'{name}': no such folder, not in the cache.*HF_HUB_OFFLINE=1"):
        make(name)
    assert len(silent) == 1 and silent[0] <= 5


def test_the_command_line_says_it_in_one_line(run: Run, silent: Asked) -> None:
    refused(
        run("generate", "-m", "nobody/nothing", "--method", "base", "x"), "nobody/nothing", "HF_HUB_OFFLINE"
    )


def test_what_is_in_the_cache_is_loaded_without_an_answer(silent: Asked, tmp_path: Path) -> None:
    home = tmp_path / "cache" / "models--some--model"
    snapshot = home / "snapshots" / "0123456789abcdef"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(snapshot.name)
    toys.module(window=64).save_pretrained(snapshot)
    toys.tokenizer().save_pretrained(snapshot)
    found = load("some/model")
    assert found.fingerprint == load(str(snapshot)).fingerprint and found.name == "some/model"
    assert len(silent) == 1


def test_a_name_that_the_hub_does_not_know_is_told_as_that(
    silent: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx
    from huggingface_hub.errors import RepositoryNotFoundError

    def unknown(*_: object, **__: object) -> None:
        answer = httpx.Response(404, request=httpx.Request("GET", "https://hub/api"))
        raise RepositoryNotFoundError("404", response=answer)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unknown)
    with pytest.raises(Missing, match="the hub has no such model, or not for you"):
        load("nobody/nothing")
