"""Edits over the wire: read as texts are, kept by a session, taken back, refused where they cannot be."""

from collections.abc import Iterator
from typing import Any

import pytest

import server_world
from server_world import Running
from uptake import load
from uptake.lm.base import LM
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.contract.naming import method_specs
from uptake.tasks.edits import Edit
from uptake.text.types import Found

SETTINGS = ["editor.values.steps=4", "editor.values.contexts=1"]
EDIT = {"prompt": "the home of Anna is", "target": "x", "subject": "Anna"}
OTHER = {"prompt": "the home of Boris is", "target": "y", "subject": "Boris"}


@pytest.fixture(scope="module", name="server")
def server_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("edits")
    with server_world.running(server_world.config(folder, data=str(folder / "data"))) as found:
        yield found


@pytest.fixture(scope="module", name="lm")
def lm_fixture(server: Running) -> LM:
    return load(server.door.config.model)


def library(lm: LM, prompt: str, *edits: dict[str, str]) -> str:
    """What the library says after a prompt once it has made these edits."""
    method = method_specs(["gated-editor"], SETTINGS)["gated-editor"].method
    made = tuple(Edit("", **each).passage() for each in edits)
    read = Evidence(Found(made, (0.0,) * len(made)))
    (state,) = method.adapt([method.init(lm)], lm, [read], Context())
    return method.adapted([state], lm).generate(prompt, 6)


def said(server: Running, prompt: str, **uptake: Any) -> str:
    body = {"model": "toy", "prompt": prompt, "max_tokens": 6, "temperature": 0, "uptake": uptake or None}
    told = server.post("/v1/completions", body)
    assert told.status_code == 200, told.text
    text: str = told.json()["choices"][0]["text"]
    return text


def test_an_edit_in_a_request_answers_as_the_librarys(server: Running, lm: LM) -> None:
    asked = {"method": "gated-editor", "settings": SETTINGS, "texts": [EDIT, OTHER]}
    for prompt in (EDIT["prompt"], OTHER["prompt"], "where does Anna live, in"):
        assert said(server, prompt, **asked) == library(lm, prompt, EDIT, OTHER) != lm.generate(prompt, 6)
    # What no edit is about is the base's.
    assert said(server, "the sky is", **asked) == lm.generate("the sky is", 6)


def test_a_session_keeps_edits_and_takes_one_back(server: Running, lm: LM) -> None:
    way = {"method": "gated-editor", "settings": SETTINGS, "query": ""}
    name = server.post("/uptake/sessions", {"uptake": way}).json()["id"]
    kept = server.post(f"/uptake/sessions/{name}/take", {"texts": [EDIT, OTHER]}).json()["passages"]
    listed = server.http.get(f"/uptake/sessions/{name}").json()["passages"]
    assert [each["edit"]["target"] for each in listed] == ["x", "y"]
    assert said(server, EDIT["prompt"], session=name) == library(lm, EDIT["prompt"], EDIT, OTHER)
    against = {**EDIT, "target": "z"}
    refused = server.post(f"/uptake/sessions/{name}/take", {"texts": ["a text", against]}).json()["error"]
    assert refused["param"] == "texts.1" and "contradict" in refused["message"]
    gone = server.http.delete(f"/uptake/sessions/{name}/passages/{kept[0]}")
    assert gone.status_code == 200 and gone.json()["uptake"]["forgotten"]["states"] == 1
    assert said(server, EDIT["prompt"], session=name) == lm.generate(EDIT["prompt"], 6)
    assert said(server, OTHER["prompt"], session=name) == library(lm, OTHER["prompt"], OTHER)
    assert len(server.post(f"/uptake/sessions/{name}/take", {"texts": [against]}).json()["passages"]) == 1


WRONG: list[tuple[list[Any], str]] = [
    ([{"prompt": "a", "target": ""}], "uptake.texts.0"),
    (["a text", {"prompt": "x is", "target": " x"}], "uptake.texts.1"),
    ([{**EDIT, "subject": "Zoe"}], "uptake.texts.0"),
    ([EDIT, {**EDIT, "target": "q"}], "uptake.texts.1"),
    ([{"prompt": "a"}], "uptake.texts.0.target"),
    ([{**EDIT, "targets": "b"}], "uptake.texts.0.targets"),
    ([7], "uptake.texts.0"),
]


@pytest.mark.parametrize(("texts", "param"), WRONG)
def test_an_edit_that_cannot_be_made_is_named(server: Running, texts: list[Any], param: str) -> None:
    uptake = {"method": "gated-memory", "texts": texts}
    told = server.post("/v1/completions", {"model": "toy", "prompt": "a", "uptake": uptake})
    assert told.status_code == 400 and told.json()["error"]["param"] == param, told.text
