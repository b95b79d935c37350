"""The real `openai` client: each kind of exception that it knows, and each option of a chat."""

import socket
from collections.abc import Iterator
from typing import Any

import openai
import pytest

import server_world
from server_world import Running
from uptake.server.engine.adapting import forgotten
from uptake.server.errors import internal
from uptake.server.keys import Keys, Limits


@pytest.fixture(scope="module", name="server")
def server_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("client")
    with server_world.running(server_world.config(folder), Keys(folder / "keys.db", make=True)) as found:
        yield found


@pytest.fixture(name="client")
def client_fixture(server: Running) -> openai.OpenAI:
    assert server.door.keys is not None
    return server.openai(server.door.keys.add("ann")[1])


def ask(client: openai.OpenAI, **more: Any) -> Any:
    return client.completions.create(
        **{"model": "toy", "prompt": "a", "max_tokens": 2, "temperature": 0, **more}
    )


def test_each_exception_of_the_client_is_raised_by_what_it_is_for(
    server: Running, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server.door.keys is not None
    add, engine = server.door.keys.add, server.door.engine
    with pytest.raises(openai.BadRequestError) as bad:
        ask(client, n=99)
    assert (bad.value.param, bad.value.code, bad.value.type) == (
        "n",
        "bad_input",
        "invalid_request_error",
    )
    with pytest.raises(openai.AuthenticationError):
        ask(client.with_options(api_key="up-none"))
    with pytest.raises(openai.PermissionDeniedError):
        ask(client.with_options(api_key=add("ops", ["metrics"])[1]))
    with pytest.raises(openai.NotFoundError):
        ask(client, model="other")
    once = client.with_options(api_key=add("few", limits=Limits(requests=1))[1])
    ask(once)
    with pytest.raises(openai.RateLimitError) as limited:
        ask(once)
    assert int(limited.value.response.headers["retry-after"]) >= 1
    with pytest.raises(openai.APITimeoutError):
        ask(client, max_tokens=200, n=8, timeout=0.01)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(openai.APIConnectionError):
        ask(client.with_options(base_url=nobody))
    for error, kind in ((forgotten(), openai.ConflictError), (internal(), openai.InternalServerError)):
        with monkeypatch.context() as patch, pytest.raises(kind):
            patch.setattr(engine, "call", raising(error))
            ask(client)
    with monkeypatch.context() as patch, pytest.raises(openai.InternalServerError) as starting:
        patch.setattr(engine, "ready", False)
        ask(client)
    assert starting.value.status_code == 503 and starting.value.code == "starting"
    assert ask(client).choices[0].text


def raising(error: Exception) -> Any:
    def call(_: Any) -> Any:
        raise error

    return call


def test_the_client_tries_again_what_can_go_through_and_nothing_else(
    server: Running, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = server.door.engine
    call, count = engine.call, 0

    def first_time(frame: dict[str, Any]) -> Any:
        nonlocal count
        count += 1
        if count == 1:
            raise forgotten()
        return call(frame)

    monkeypatch.setattr(engine, "call", first_time)
    again = client.with_options(max_retries=2)
    assert ask(again).choices[0].text and count == 2
    count = 0
    with pytest.raises(openai.NotFoundError):
        ask(again, model="other")
    assert count == 0


def test_every_option_of_a_chat_does_what_it_says(client: openai.OpenAI) -> None:
    def chat(**more: Any) -> Any:
        asked = {"model": "toy", "messages": [{"role": "user", "content": "the cat"}], "max_tokens": 12}
        return client.chat.completions.create(**{**asked, "temperature": 0, **more})

    whole = chat().choices[0].message.content
    assert chat(max_tokens=None, max_completion_tokens=12).choices[0].message.content == whole
    stopped = chat(stop=whole[4:7]).choices[0]
    assert stopped.finish_reason == "stop" and stopped.message.content == whole[: whole.index(whole[4:7])]
    drawn = [each.message.content for each in chat(n=3, temperature=1, seed=4).choices]
    assert len(set(drawn)) == 3 and chat(temperature=1, seed=4).choices[0].message.content == drawn[0]
    assert chat(temperature=1, seed=5, top_p=1e-6).choices[0].message.content == whole
    told = chat(logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert len(told) == 12 and all(len(each.top_logprobs) == 3 for each in told)
    *chunks, last = chat(
        stream=True, stream_options={"include_usage": True}, logprobs=True, top_logprobs=3, n=2
    )
    assert last.choices == [] and last.usage.completion_tokens == 24
    for place in range(2):
        mine = [each.choices[0] for each in chunks if each.choices[0].index == place]
        assert "".join(each.delta.content or "" for each in mine) == whole
        streamed = [token for each in mine if each.logprobs for token in each.logprobs.content]
        assert streamed == told and mine[-1].finish_reason == "length"
