"""The server as its clients see it, by the real `openai` client over a real socket."""

import json
import math
import re
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
import torch

import server_world
from server_world import LORA, TEXTS, Running
from uptake.lm.base import LM, Segment
from uptake.lm.grid import Grid
from uptake.lm.loading import load
from uptake.server import serving
from uptake.server.admit import Ticket
from uptake.server.engine import plans
from uptake.server.engine.main import checked
from uptake.server.serving import options
from uptake.session import Session
from uptake.store.datastore import Datastore

PROMPT = "the cat sat on"


@pytest.fixture(scope="module", name="folder")
def folder_fixture(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module", name="server")
def server_fixture(folder: Any) -> Iterator[Running]:
    with server_world.running(server_world.config(folder)) as found:
        yield found


@pytest.fixture(scope="module", name="lm")
def lm_fixture(server: Running) -> LM:
    return load(server.door.config.model)


@pytest.fixture(name="client")
def client_fixture(server: Running) -> openai.OpenAI:
    return server.openai()


def text_of(found: Any) -> str:
    return str(found.choices[0].text)


def test_models_are_listed_and_found_by_their_names(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names[0] == "toy" and {"toy+notes", "toy+notes.random", "toy+read", "toy+whole"} < {*names}
    assert client.models.retrieve("toy+notes").id == "toy+notes"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_a_completion_is_what_the_library_writes(client: openai.OpenAI, lm: LM) -> None:
    found = client.completions.create(model="toy", prompt=PROMPT, max_tokens=20, temperature=0)
    assert text_of(found) == lm.generate(PROMPT, 20)
    assert found.usage is not None and found.choices[0].finish_reason == "length"
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (len(PROMPT), 20)
    assert found.object == "text_completion" and found.id.startswith("cmpl-")


def test_a_stream_joins_to_the_whole_and_tells_what_was_used(client: openai.OpenAI, lm: LM) -> None:
    chunks = list(
        client.completions.create(
            model="toy",
            prompt=PROMPT,
            max_tokens=20,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *others, last = chunks
    assert "".join(each.choices[0].text for each in others) == lm.generate(PROMPT, 20)
    assert last.choices == [] and last.usage is not None and last.usage.completion_tokens == 20
    assert [each.choices[0].finish_reason for each in others][-1] == "length"
    assert len({each.id for each in chunks}) == 1 and len(others) > 10


def test_prompts_of_all_kinds_and_several_choices_keep_their_order(client: openai.OpenAI, lm: LM) -> None:
    ids = lm.tokenizer.encode(PROMPT)[0]
    texts = [PROMPT, "a dog", "one fish, two"]
    wanted = [lm.generate(text, 8) for text in texts]
    many = client.completions.create(model="toy", prompt=texts, max_tokens=8, temperature=0, n=2)
    assert [each.text for each in many.choices] == [text for text in wanted for _ in range(2)]
    assert [each.index for each in many.choices] == list(range(6))
    for prompt in (ids, [ids], [0, *ids]):  # the opening token is not doubled
        found = client.completions.create(model="toy", prompt=prompt, max_tokens=8, temperature=0)
        assert text_of(found) == wanted[0]


def test_a_seed_decides_and_each_choice_draws_for_itself(client: openai.OpenAI) -> None:
    def drawn(seed: int, n: int = 1, **more: Any) -> list[str]:
        found = client.completions.create(model="toy", prompt=PROMPT, max_tokens=12, seed=seed, n=n, **more)
        return [each.text for each in found.choices]

    assert drawn(1) == drawn(1) and drawn(1) != drawn(2)
    three = drawn(1, 3)
    assert len(set(three)) == 3 and three[0] == drawn(1)[0]
    assert drawn(1, temperature=0, n=2)[0] == drawn(2, temperature=0)[0]
    assert drawn(3, top_p=1e-6) == drawn(4, temperature=0)


def test_it_stops_before_a_stop_text_and_never_shows_part_of_it(client: openai.OpenAI, lm: LM) -> None:
    whole = lm.generate(PROMPT, 20)
    stop = whole[5:8]
    request = {"model": "toy", "prompt": PROMPT, "max_tokens": 20, "temperature": 0, "stop": [stop, "zzzz"]}
    found = client.completions.create(**request)
    assert text_of(found) == whole[: whole.index(stop)] and found.choices[0].finish_reason == "stop"
    streamed = client.completions.create(**request, stream=True)
    assert "".join(each.choices[0].text for each in streamed) == whole[: whole.index(stop)]


def test_log_probabilities_are_the_models_own_and_the_echo_is_scored(client: openai.OpenAI, lm: LM) -> None:
    found = client.completions.create(
        model="toy", prompt=PROMPT, max_tokens=3, temperature=0, logprobs=2, echo=True
    )
    told = found.choices[0].logprobs
    assert told is not None and told.tokens and told.token_logprobs and told.top_logprobs and told.text_offset
    written = lm.generate(PROMPT, 3)
    assert text_of(found) == PROMPT + written and "".join(told.tokens) == PROMPT + written
    ids = lm.tokenizer.opened(PROMPT + written)
    with torch.no_grad():
        log_probs = lm.step(torch.tensor([ids]))[0][0]
    wanted = log_probs[:-1].gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
    assert told.token_logprobs[1:] == pytest.approx(wanted[1:], abs=1e-4)
    assert told.text_offset == list(range(len(PROMPT + written)))
    for own, best in zip(told.token_logprobs[-3:], told.top_logprobs[-3:], strict=True):
        assert len(best) == 2 and own == max(best.values())  # greedy: one float, not nearly


def test_an_echo_alone_scores_a_text(client: openai.OpenAI, lm: LM) -> None:
    found = client.completions.create(model="toy", prompt=PROMPT, max_tokens=0, logprobs=0, echo=True)
    told = found.choices[0].logprobs
    assert told is not None and told.token_logprobs is not None and text_of(found) == PROMPT
    from uptake.lm.base import Segment

    scores = lm.score([Segment(PROMPT)])[0].log_probs.tolist()
    assert told.token_logprobs[1:] == pytest.approx(scores[1:], abs=1e-4)


def test_bytes_that_are_no_character_are_told_as_bytes(client: openai.OpenAI, lm: LM) -> None:
    found = client.chat.completions.create(
        model="toy",
        messages=[{"role": "user", "content": "é日"}],
        max_tokens=30,
        temperature=2,
        seed=5,
        logprobs=True,
        top_logprobs=20,
    )
    told = found.choices[0].logprobs
    assert told is not None and told.content is not None
    raw = b"".join(bytes(each.bytes or []) for each in told.content)
    assert raw.decode("utf8", "replace") == found.choices[0].message.content
    every = [token for each in told.content for token in (each, *each.top_logprobs)]
    part = [token for token in every if token.token.startswith("bytes:\\x")]
    assert part and all(token.bytes and len(token.bytes) == 1 for token in part)
    assert all(len({one.token for one in each.top_logprobs}) == 20 for each in told.content)


def test_a_chat_goes_through_the_models_template(client: openai.OpenAI, lm: LM) -> None:
    messages: Any = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "the "}, {"type": "text", "text": "cat"}]},
    ]
    found = client.chat.completions.create(model="toy", messages=messages, max_tokens=10, temperature=0)
    rendered = "system: be brief\nuser: the cat\nassistant: "
    ids = torch.tensor([lm.tokenizer.encode(rendered)[0]])
    with torch.no_grad():
        for _ in range(10):
            ids = torch.cat([ids, lm.step(ids)[0][:, -1:].argmax(-1)], 1)
    written = lm.tokenizer.decode(ids[0, -10:].tolist())
    assert found.choices[0].message.content == written
    chunks = list(
        client.chat.completions.create(
            model="toy", messages=messages, max_completion_tokens=10, temperature=0, stream=True
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(each.choices[0].delta.content or "" for each in chunks) == written


def library(server: Running, lm: LM, name: str, settings: tuple[str, ...] = ()) -> Session:
    store = Datastore.open(server.door.config.stores[0].path)
    session = Session(lm, name, settings=settings, store=store, k=2, continues=False)
    session.adapt(PROMPT)
    return session


@pytest.mark.parametrize(
    ("model", "method", "settings"),
    [
        ("toy+notes", "ttt-nn", LORA),
        ("toy+read", "in-context", ()),
        ("toy+whole", "ttt-nn", ("learning_rate=1e-3",)),
    ],
)
def test_a_recipe_answers_as_a_session_of_the_library(
    server: Running, client: openai.OpenAI, lm: LM, model: str, method: str, settings: tuple[str, ...]
) -> None:
    session = library(server, lm, method, settings)
    for cache in ("made", "hit"):
        found = client.completions.create(
            model=model, prompt=PROMPT, max_tokens=12, temperature=0, logprobs=1
        )
        told: Any = found.model_extra
        assert text_of(found) == session.generate(PROMPT, 12)
        assert told["uptake"]["cache"] == cache
        assert [near["document"] for near in told["uptake"]["neighbours"]] == [
            near.document for near in session.neighbours
        ]
        logprobs = found.choices[0].logprobs
        assert logprobs is not None and logprobs.token_logprobs is not None
        scored = session.score(text_of(found), PROMPT).log_probs.tolist()
        assert logprobs.token_logprobs == pytest.approx(scored, abs=1e-3)


def test_a_method_of_ones_own_reads_texts(client: openai.OpenAI, lm: LM) -> None:
    asked = {"method": "online", "settings": [*LORA], "texts": [TEXTS[0] * 3], "explain": True}
    found = client.completions.create(
        model="toy", prompt=PROMPT, max_tokens=12, temperature=0, extra_body={"uptake": asked}
    )
    session = Session(lm, "online", settings=LORA, continues=False)
    session.read(TEXTS[0] * 3, query=PROMPT)
    told: Any = found.model_extra
    assert text_of(found) == session.generate(PROMPT, 12)
    assert [near["text"] for near in told["uptake"]["neighbours"]] == [TEXTS[0] * 3]
    assert told["uptake"]["tokens_trained"] == session.ledger.tokens_trained > 0
    first = next(
        iter(
            client.completions.create(
                model="toy", prompt=PROMPT, max_tokens=2, stream=True, extra_body={"uptake": asked, "foo": 1}
            )
        )
    )
    kept: Any = first.model_extra
    assert kept["uptake"]["cache"] == "hit" and kept["uptake"]["ignored"] == ["foo"]


def test_a_budget_ends_reading_or_the_request(client: openai.OpenAI, server: Running) -> None:
    asked: dict[str, Any] = {"budget": {"steps": 1}, "texts": [*TEXTS]}
    body = {"model": "toy+notes", "prompt": PROMPT, "max_tokens": 1, "uptake": asked}
    told = server.post("/v1/completions", body).json()["uptake"]
    assert told["steps"] == 1 and told["stopped"] == "budget"
    refused = server.post("/v1/completions", {**body, "uptake": {**asked, "on_limit": "fail"}})
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "budget"
    late = server.post(
        "/v1/completions",
        {**body, "model": "toy+whole", "max_tokens": 200, "uptake": {"budget": {"deadline_ms": 1}}},
    )
    assert late.status_code == 504 and late.json()["error"]["code"] == "deadline"


def test_training_that_diverges_answers_as_the_base_or_fails(
    client: openai.OpenAI, server: Running, lm: LM
) -> None:
    asked = {"method": "online", "settings": ["trainable=lora", "optimizer=sgd(learning_rate=1e30)"]}
    asked |= {"texts": [TEXTS[0] * 8, TEXTS[1] * 8]}  # type: ignore[dict-item]
    body = {"model": "toy", "prompt": PROMPT, "max_tokens": 8, "temperature": 0, "uptake": asked}
    found = server.post("/v1/completions", body).json()
    assert found["uptake"]["stopped"] == "diverged" and found["choices"][0]["text"] == lm.generate(PROMPT, 8)
    body["uptake"] = {**asked, "on_limit": "fail"}
    refused = server.post("/v1/completions", body)
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "diverged"


def test_an_echo_under_a_search_needs_a_query(client: openai.OpenAI, server: Running, lm: LM) -> None:
    request: dict[str, Any] = {
        "model": "toy+notes",
        "prompt": PROMPT,
        "max_tokens": 1,
        "logprobs": 1,
        "echo": True,
    }
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**request)
    assert caught.value.code == "query_missing" and caught.value.param == "uptake.query"
    found = client.completions.create(**request, extra_body={"uptake": {"query": PROMPT}})
    told = found.choices[0].logprobs
    session = library(server, lm, "ttt-nn", LORA)
    assert told is not None and told.token_logprobs is not None
    scored = session.score(PROMPT).log_probs.tolist()
    assert told.token_logprobs[1 : len(PROMPT)] == pytest.approx(scored[1:], abs=1e-4)


def test_a_text_is_scored_under_several_models_at_once(server: Running, lm: LM) -> None:
    from uptake.lm.base import Segment

    text = " the mat. é"
    compare = ["toy", "toy+notes", "toy+notes.random"]
    body = {"text": text, "context": PROMPT, "compare": compare}
    found = server.post("/uptake/score", body).json()
    assert [each["model"] for each in found["results"]] == compare and found["bytes"] == len(text.encode())
    session = library(server, lm, "ttt-nn", LORA)
    base, notes, control = found["results"]
    for told, scores in ((base, lm.score([Segment(text, PROMPT)])[0]), (notes, session.score(text, PROMPT))):
        assert [token["logprob"] for token in told["tokens"]] == pytest.approx(
            scores.log_probs.tolist(), abs=1e-4
        )
        assert told["bits"] == pytest.approx(scores.bits, abs=1e-3)
        # Bytes that share a character cover the same one.
        assert [token["text"] for token in told["tokens"]] == [*" the mat. éé"]
    assert control["uptake"]["tokens_trained"] > 0 and base["uptake"] is None
    asked = {"method": "in-context", "store": "notes", "k": 2, "explain": True}
    mine = [{"model": "toy", "uptake": asked}, {"model": "toy", "uptake": {**asked, "control": True}}]
    own, drawn = server.post("/uptake/score", {**body, "compare": mine}).json()["results"]
    assert own["uptake"]["method"] == drawn["uptake"]["method"] == "in-context"
    # What is found shares a word with the context, what is drawn need not.
    assert [near["document"] for near in own["uptake"]["neighbours"]] == ["d0"]
    assert len(drawn["uptake"]["neighbours"]) == 2
    # That context and text hold the passage itself is told, too.
    assert [near["overlap"] for near in own["uptake"]["neighbours"]] == [1.0]
    other = server.post("/uptake/score", {**body, "text": " the hill", "compare": mine[:1]}).json()["results"]
    assert [near["overlap"] for near in other[0]["uptake"]["neighbours"]] == [0.0]
    refused = server.post("/uptake/score", {**body, "context": ""})
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "query_missing"


def test_texts_become_tokens_and_texts_again(server: Running, lm: LM) -> None:
    found = server.post("/tokenize", {"prompt": "é cat", "add_special_tokens": False}).json()
    assert found["tokens"] == lm.tokenizer.encode("é cat")[0] and found["count"] == 6
    assert found["max_model_len"] == 256
    assert server.post("/tokenize", {"prompt": ""}).json()["tokens"] == [0]
    assert server.post("/detokenize", {"tokens": found["tokens"]}).json() == {"prompt": "é cat"}
    assert server.http.get("/tokenizer_info").json()["eos_token"] == "<|end|>"
    assert server.post("/detokenize", {"tokens": [999]}).json()["error"]["param"] == "tokens.0"


WRONG: list[tuple[str, str, Any, int, str | None]] = [
    ("POST", "/v1/completions", {"model": "other", "prompt": "a"}, 404, "model"),
    ("POST", "/v1/completions", {"model": "toy"}, 400, "prompt"),
    ("POST", "/v1/completions", {"model": "toy", "prompt": [999]}, 400, "prompt.0"),
    ("POST", "/v1/completions", {"model": "toy", "prompt": "a" * 300}, 400, "prompt"),
    ("POST", "/v1/completions", {"model": "toy", "prompt": "a", "max_tokens": 256}, 400, "prompt"),
    (
        "POST",
        "/v1/completions",
        {"model": "toy", "prompt": "a", "uptake": {"method": "tttnn"}},
        400,
        "uptake.method",
    ),
    (
        "POST",
        "/v1/completions",
        {"model": "toy", "prompt": "a", "uptake": {"method": "ttt-nn"}},
        400,
        "uptake.store",
    ),
    (
        "POST",
        "/v1/completions",
        {"model": "toy", "prompt": "a", "uptake": {"method": "ttt-nn", "store": "vs_x"}},
        404,
        "uptake.store",
    ),
    (
        "POST",
        "/v1/completions",
        {"model": "toy", "prompt": "a", "uptake": {"method": "online", "settings": ["learning_rat=1"]}},
        400,
        "uptake.settings",
    ),
    (
        "POST",
        "/v1/completions",
        {"model": "toy", "prompt": "a", "uptake": {"texts": ["a"]}},
        400,
        "uptake.method",
    ),
    (
        "POST",
        "/v1/completions",
        {"model": "toy", "prompt": "a", "uptake": {"store": "vs_x"}},
        400,
        "uptake.method",
    ),
    (
        "POST",
        "/v1/completions",
        {"model": "toy", "prompt": "a", "uptake": {"method": "in-context", "texts": ["a"], "control": True}},
        400,
        "uptake.control",
    ),
    ("POST", "/uptake/score", {"text": "a", "compare": [{"model": "other"}]}, 404, "model"),
    ("POST", "/uptake/score", {"text": "a", "compare": [{"name": "toy"}]}, 400, "compare.0.model"),
    (
        "POST",
        "/uptake/score",
        {"text": "a", "compare": [{"model": "toy", "uptak": {}}]},
        400,
        "compare.0.uptak",
    ),
    ("POST", "/v1/chat/completions", {"model": "toy", "messages": []}, 400, "messages"),
    ("POST", "/v1/nothing", {}, 404, None),
    ("GET", "/v1/completions", None, 405, None),
    ("GET", "/docs", None, 404, None),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "param"), WRONG)
def test_what_is_wrong_is_told_in_one_shape(
    server: Running, method: str, path: str, body: Any, status: int, param: str | None
) -> None:
    found = server.http.request(method, path, json=body)
    error = found.json()["error"]
    assert (found.status_code, error["param"]) == (status, param)
    assert set(error) == {"message", "type", "param", "code"} and "\n" not in error["message"]
    assert found.headers["x-request-id"].startswith("req_") and found.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    "settings",
    [["weights=/etc/passwd"], ["token_weights=salient(model=os)"], ["trainable=lora(rank=100000)"]],
)
def test_settings_of_clients_reach_no_file_and_no_package(server: Running, settings: list[str]) -> None:
    method = "fwl" if settings[0].startswith("weights") else "online"
    asked = {"method": method, "settings": settings, "texts": ["a"]}
    found = server.post("/v1/completions", {"model": "toy", "prompt": "a", "uptake": asked})
    assert found.status_code == 400 and found.json()["error"]["param"] in ("uptake.settings", "uptake.method")
    assert "passwd:" not in found.text


LONG = "the cat sat. " * 250_000
CHAT = {"model": "toy", "messages": [{"role": "user", "content": "a"}, {"role": "user", "content": LONG}]}
NOTES = {"model": "toy+notes", "prompt": "a"}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"model": "toy", "prompt": LONG}, "prompt"),
        ("/v1/completions", {"model": "toy", "prompt": ["a", " " * 3_000_000]}, "prompt"),
        ("/v1/completions", {"model": "toy", "prompt": LONG[:20_000]}, "prompt"),
        ("/v1/chat/completions", CHAT, "messages"),
        ("/v1/completions", {**NOTES, "uptake": {"query": "x" * 3_000_000}}, "uptake.query"),
        ("/v1/completions", {**NOTES, "uptake": {"texts": ["a", "é" * 1_000_000]}}, "uptake.texts"),
        ("/uptake/score", {"compare": ["toy"], "text": LONG}, "text"),
        ("/uptake/score", {"compare": ["toy"], "text": "a", "context": LONG}, "context"),
        ("/tokenize", {"prompt": LONG}, "prompt"),
    ],
    ids=map(str, range(9)),
)
def test_megabytes_are_refused_before_the_engine_hears_of_them(
    server: Running, monkeypatch: pytest.MonkeyPatch, path: str, body: Any, param: str
) -> None:
    called: list[Any] = []
    monkeypatch.setattr(server.door.engine, "call", called.append)
    found = server.post(path, body)
    error = found.json()["error"]
    assert found.status_code == 400 and error["param"] == param and called == []
    assert error["code"] == ("too_long" if path == "/tokenize" else "context_length_exceeded")


def test_a_long_text_is_scored_window_by_window_while_others_write(server: Running, lm: LM) -> None:
    text = "the cat sat on the mat. " * 16
    found = server.post("/uptake/score", {"compare": ["toy"], "text": text}).json()["results"][0]
    assert len(lm.tokenizer.encode(text)[0]) > lm.window
    (wanted,) = lm.score([Segment(text)])
    assert -found["bits"] * math.log(2) == pytest.approx(wanted.log_probs.sum().item(), abs=1e-3)


@pytest.mark.parametrize(
    ("path", "field", "given", "param"),
    [
        ("/v1/completions", "prompt", [1, 99_999], "prompt.1"),
        ("/v1/completions", "prompt", [[1], [2, 1 << 70]], "prompt.1.1"),
        ("/detokenize", "tokens", [1, 1 << 40], "tokens.1"),
    ],
)
def test_a_token_that_the_model_has_not_is_named_by_its_place(
    server: Running, path: str, field: str, given: Any, param: str
) -> None:
    most = server.door.tokenizer.get_vocab_size()
    found = server.post(path, {"model": "toy", field: given})
    error = found.json()["error"]
    assert (found.status_code, error["param"]) == (400, param)
    wrong = given[1] if isinstance(given[1], int) else given[1][1]
    assert error["message"] == f"{param} {wrong} is none of the {most:,} tokens of this model"


@pytest.mark.parametrize("path", ["/v1/completions", "/detokenize"])
def test_tokens_that_the_model_has_are_taken(server: Running, path: str) -> None:
    most = server.door.tokenizer.get_vocab_size()
    for tokens in ([0], [1, most - 1]):
        field = "tokens" if path == "/detokenize" else "prompt"
        assert server.post(path, {"model": "toy", field: tokens, "max_tokens": 1}).status_code == 200
    if path == "/detokenize":
        assert server.post(path, {"tokens": []}).json() == {"prompt": ""}


def test_what_is_no_json_is_refused_before_it_is_read(server: Running) -> None:
    for content, kind, status in (
        (b"{}", "text/plain", 415),
        (b"{", "application/json", 400),
        (b'{"a": "' + b"a" * (5 << 20) + b'"}', "application/json", 413),
    ):
        found = server.http.post("/v1/completions", content=content, headers={"content-type": kind})
        assert found.status_code == status and "error" in found.json()


def test_a_page_elsewhere_cannot_use_a_server_without_keys(server: Running) -> None:
    found = server.http.get("/v1/models", headers={"host": "evil.example"})
    assert found.status_code == 403
    options = server.http.options("/v1/completions", headers={"origin": "http://evil.example"})
    assert "access-control-allow-origin" not in options.headers


def test_the_page_comes_whole_and_asks_nobody_else(server: Running) -> None:
    page = server.http.get("/lens")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    named = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert sorted(named) == ["/lens/lens.css", "/lens/lens.js", "data:,"]
    assert (
        "<style" not in page.text
        and "style=" not in page.text
        and " on" not in re.sub(r">[^<]*<", "", page.text)
    )
    script = server.http.get("/lens/lens.js")
    assert script.headers["content-type"].startswith("text/javascript")
    # What comes from a model or a store is never read as HTML.
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|https?://", script.text
    )
    assert server.http.get("/lens/lens.css").status_code == 200
    assert server.http.get("/lens/__init__.py").json()["error"]["code"] == "not_found"


def test_health_and_metrics_tell_nothing_that_a_client_wrote(server: Running) -> None:
    assert server.http.get("/health/live").json() == {"live": True}
    assert server.http.get("/health/ready").json() == {"ready": True, "grid": "grid", "restarts": 0}
    server.post("/v1/completions", {"model": "canary-1234", "prompt": "canary-1234"})
    server.http.get("/canary-1234")
    page = server.http.get("/metrics").text
    assert "canary" not in page
    assert 'uptake_requests_total{code="404",route="/v1/completions"}' in page
    assert 'uptake_engine{what="rows"} 0.0' in page


def test_the_work_of_a_request_counts_while_it_runs(
    client: openai.OpenAI, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[tuple[Ticket, int, int]] = []
    done = server.door.admission.done

    def spied(ticket: Ticket, tokens: int = 0, trained: int = 0) -> None:
        ended.append((ticket, tokens, trained))
        done(ticket, tokens, trained)

    monkeypatch.setattr(server.door.admission, "done", spied)
    client.completions.create(model="toy+notes", prompt="a cat", max_tokens=7, n=3, seed=2)
    for _ in range(500):  # it ends after its last byte
        if ended:
            break
        server.http.get("/health/live")
    ((ticket, tokens, trained),) = ended
    assert ticket.worked == tokens + trained and trained > 0 and tokens > 7
    assert ticket.seats == 3


def test_a_client_that_leaves_frees_its_rows_at_once(server: Running) -> None:
    for stream in (True, False):
        body = {"model": "toy", "prompt": "a", "max_tokens": 250, "n": 8, "seed": 1, "stream": stream}
        with pytest.raises(httpx.ReadTimeout) if not stream else httpx.Client() as _:
            if stream:
                with server.http.stream("POST", "/v1/completions", json=body) as found:
                    next(found.iter_lines())
            else:
                server.post("/v1/completions", body, timeout=0.2)
        for _ in range(500):
            facts = server.http.get("/metrics").text
            if (
                'what="rows"} 0.0' in facts
                and 'what="requests"} 0.0' in facts
                and "uptake_running 0.0" in facts
            ):
                break
        assert (
            'what="rows"} 0.0' in facts and 'what="kv_bytes"} 0.0' in facts and "uptake_running 0.0" in facts
        )


def test_no_float_of_an_answer_is_no_number(server: Running) -> None:
    found = server.post(
        "/v1/completions", {"model": "toy", "prompt": "a", "max_tokens": 4, "logprobs": 20, "temperature": 0}
    )
    json.loads(found.text, parse_constant=pytest.fail)
    top = found.json()["choices"][0]["logprobs"]["top_logprobs"]
    assert all(math.isfinite(value) for each in top for value in each.values())


def test_a_connection_too_many_is_refused_in_the_one_shape_and_health_is_not(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "MOST_CONNECTIONS", 0)
    with httpx.Client(base_url=server.url) as http:
        assert http.get("/health/live").json() == {"live": True}
        for _ in range(2):
            found = http.post("/v1/completions", json={"model": "toy", "prompt": "a", "max_tokens": 1})
            assert (found.status_code, found.headers["connection"]) == (503, "close")
            assert found.json()["error"]["code"] == "connections" and found.headers["retry-after"]
            assert found.headers["x-should-retry"] == "true" and found.headers["x-request-id"]
    monkeypatch.setattr(serving, "MOST_CONNECTIONS", 1000)
    with httpx.Client(base_url=server.url) as http:
        assert http.get("/v1/models").status_code == 200


@pytest.mark.parametrize(
    "raw", [b"no HTTP at all\r\n\r\n", b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * (20 << 10)]
)
def test_what_is_no_http_is_refused_in_the_one_shape(server: Running, raw: bytes) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as end:
        end.sendall(raw)
        told = b"".join(iter(lambda: end.recv(1 << 16), b""))
    head, _, body = told.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ") and b"application/json" in head
    assert json.loads(body)["error"]["code"] == "bad_request"


def test_a_connection_that_idles_is_kept_for_longer_than_clients_use_it_again(client: openai.OpenAI) -> None:
    # Closed at the same time by both, it would now and then fail the request that it is used for.
    pool: Any = client._client._transport._pool  # type: ignore[attr-defined]
    assert options()["timeout_keep_alive"] >= 2 * pool._keepalive_expiry


def test_what_is_asked_again_is_not_looked_up_among_the_methods_again(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    online = {"method": "online", "settings": [*LORA], "texts": ["a"]}
    asked = [
        {"model": model, "prompt": "a", "max_tokens": 1, **more}
        for model, more in (("toy", {}), ("toy+notes", {}), ("toy", {"uptake": online}))
    ]

    def again() -> list[int]:
        return [server.post("/v1/completions", body).status_code for body in asked]

    assert again() == [200, 200, 200]
    # That goes through the entry points of every installed package, in the thread that computes.
    monkeypatch.setattr(plans, "method_specs", None)
    assert again() == [200, 200, 200]


def test_an_engine_that_follows_another_does_not_try_the_machine_again(
    server: Running, lm: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server.door.engine.hello["grid"] == "grid"
    monkeypatch.setattr(Grid, "check", None)
    outcome, grid = checked(lm, "grid")
    assert outcome == "grid" and grid is not None and grid.sizes == Grid(lm).sizes
    # Whatever else came of it is tried again: it may be otherwise now.
    assert checked(lm, "pinned to 32 rows")[0] == checked(lm)[0] == "one by one: TypeError"
