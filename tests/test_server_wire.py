"""What clients send, what they are told, who may ask and in which order; no model, and a clock of our own."""

import asyncio
import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from uptake import errors as library
from uptake.errors import BadInput
from uptake.server import bodies, errors, link, wire
from uptake.server.admit import Admission, Bucket, House, Ticket
from uptake.server.errors import ApiError
from uptake.server.keys import Key, Keys, Limits

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=8), JSON, max_size=5))
def test_what_json_says_is_what_is_read(value: dict[str, Any]) -> None:
    assert bodies.parse(json.dumps(value).encode()) == value
    assert bodies.parse(json.dumps(value, ensure_ascii=False).encode()) == value


@given(st.binary(max_size=300) | st.text('{}[]",:\\utrefalsn0123456789dc', max_size=300).map(str.encode))
def test_any_bytes_are_an_object_or_a_refusal(raw: bytes) -> None:
    try:
        assert isinstance(bodies.parse(raw), dict)
    except ApiError as error:
        assert error.status == 400 and error.body()["error"]["message"].isprintable()


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": 1, "a": 2}', "'a' stands twice"),
        (b'{"a": {"b": 1, "b": 1}}', "'b' stands twice"),
        (b'{"a": "\\ud800"}', "half a character"),
        (b'{"\\udc00": 1}', "half a character"),
        (b'{"a": "\xff"}', "no JSON"),
        (b"[1]", "no JSON object"),
        (b"", "no JSON"),
        (b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}", "deep"),
        (b'{"a": ' + b"[" * 1_000_000, "deep"),
        (b'{"a": ' + b"9" * 5000 + b"}", "no JSON"),
    ],
)
def test_a_bad_body_is_refused_in_a_line(raw: bytes, says: str) -> None:
    with pytest.raises(ApiError, match=says) as caught:
        bodies.parse(raw)
    assert caught.value.status == 400 and "\n" not in caught.value.message


def test_depth_is_counted_in_objects_and_lists() -> None:
    def nested(depth: int) -> bytes:
        return b'{"a":' * (depth - 1) + b"{}" + b"}" * (depth - 1)

    assert bodies.parse(nested(bodies.MOST_DEPTH))
    with pytest.raises(ApiError):
        bodies.parse(nested(bodies.MOST_DEPTH + 1))


def test_a_body_that_is_too_large_is_not_read() -> None:
    with pytest.raises(ApiError) as caught:
        bodies.parse(b'{"a": "' + b"a" * bodies.MOST_BYTES)
    assert caught.value.status == 413


KINDS = [library.BadInput, library.Mismatch, library.Damaged, library.Busy, library.Missing, library.Diverged]


@pytest.mark.parametrize("kind", [*KINDS, library.Incomplete, ValueError, KeyError])
def test_every_error_has_one_shape_and_no_stack(kind: type[Exception]) -> None:
    told = errors.of(kind("it is wrong: do this"))
    assert set(told.body()) == {"error"} and set(told.body()["error"]) == {"message", "type", "param", "code"}
    known = issubclass(kind, library.UptakeError) and kind is not library.Damaged
    assert ("do this" in told.message) == known
    assert told.status in (400, 500, 501, 503)
    assert told.headers()["x-should-retry"] == (
        "true" if told.status == 503 or told.code == "internal" else "false"
    )


def test_retry_after_is_never_longer_than_a_client_waits() -> None:
    told = ApiError(429, "wait", "rate_limit", retry_after=5000)
    assert told.headers()["retry-after"] == "120"
    assert ApiError(429, "wait", "rate_limit", retry_after=0.01).headers()["retry-after"] == "1"


COMPLETION = {"model": "m", "prompt": "a"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "a"}]}


@pytest.mark.parametrize(
    ("kind", "more", "param", "says"),
    [
        (wire.Completion, {"model": None}, "model", "null: give a text"),
        (wire.Completion, {"prompt": None}, "prompt", "null: give a text, a list of texts, tokens"),
        (wire.Completion, {"prompt": []}, "prompt", "is an empty list: give a text or tokens"),
        (wire.Completion, {"max_tokens": -1}, "max_tokens", "-1: give 0 or more"),
        (wire.Completion, {"max_tokens": True}, "max_tokens", "true: give a whole number"),
        (wire.Completion, {"max_tokens": "7"}, "max_tokens", '"7": give a whole number'),
        (wire.Completion, {"temperature": 2.1}, "temperature", "give 2 or less"),
        (wire.Completion, {"top_p": 0}, "top_p", "give more than 0"),
        (wire.Completion, {"n": 9}, "n", "give 8 or less"),
        (wire.Completion, {"stop": ["a"] * 5}, "stop", "give at most 4 at once"),
        (wire.Completion, {"logprobs": 21}, "logprobs", "give 20 or less"),
        (wire.Completion, {"best_of": 2}, "best_of", "not supported"),
        (wire.Completion, {"suffix": "x"}, "suffix", "not supported"),
        (wire.Completion, {"presence_penalty": True}, "presence_penalty", "not supported"),
        (wire.Completion, {"stream_options": {"include_usage": True}}, "stream_options", "set stream"),
        (wire.Completion, {"uptake": {"metod": "ttt-nn"}}, "uptake.metod", "did you mean 'method'"),
        (wire.Completion, {"uptake": {"zzz": 1}}, "uptake.zzz", "there are method"),
        (wire.Completion, {"uptake": {"budget": {"step": 1}}}, "uptake.budget.step", "did you mean 'steps'"),
        (wire.Completion, {"uptake": {"k": 1.5}}, "uptake.k", "1.5: give a whole number"),
        (wire.Chat, {"messages": []}, "messages", "give one at least"),
        (wire.Chat, {"messages": [{"role": "tool", "content": ""}]}, "messages.0.role", "'system'"),
        (wire.Chat, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None, "text"),
        (
            wire.Chat,
            {"messages": [{"role": "assistant", "tool_calls": [1]}]},
            "messages.0.tool_calls",
            "not supp",
        ),
        (wire.Chat, {"tools": [{}]}, "tools", "not supported"),
        (wire.Chat, {"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        (wire.Chat, {"top_logprobs": 2}, "top_logprobs", "set both"),
        (wire.Completion, {"temperature": "hot"}, "temperature", '"hot": give a number'),
        (wire.Completion, {"stop": 5}, "stop", "5: give a text or a list"),
        (wire.Completion, {"stop": [None]}, "stop.0", "null: give a text"),
        (wire.Completion, {"uptake": 1}, "uptake", "1: give an object"),
        (wire.Completion, {"uptake": {"texts": [5]}}, "uptake.texts.0", "5: give a text or an object"),
        (wire.Completion, {"uptake": {"on_limit": "no"}}, "uptake.on_limit", "give 'answer' or 'fail'"),
        (wire.Chat, {"messages": ["hi"]}, "messages.0", '"hi": give an object'),
        (wire.Chat, {"messages": "hi"}, "messages", '"hi": give a list'),
        (wire.Chat, {"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "a text or a list"),
    ],
)
def test_a_wrong_value_is_named(
    kind: type[wire.Shape], more: dict[str, Any], param: str | None, says: str
) -> None:
    body = {**(COMPLETION if kind is wire.Completion else CHAT), **more}
    with pytest.raises(ApiError) as caught:
        wire.read(kind, body)
    assert caught.value.status == 400 and says in caught.value.message
    if param is not None:
        assert caught.value.param is not None and caught.value.param.split(".")[
            : param.count(".") + 1
        ] == param.split(".")


TOKEN = "a token is a whole number from 0, as /tokenize gives it"
INPUTS = "give a text, a list of texts, tokens as whole numbers, or a list of lists of them"


@pytest.mark.parametrize(
    ("given", "place", "says"),
    [
        ([], "", " is an empty list: give a text or tokens"),
        ([[]], ".0", " is an empty list: give tokens, or leave it out"),
        ([[1], []], ".1", " is an empty list: give tokens, or leave it out"),
        ([1.0], ".0", f" 1.0: {TOKEN}"),
        ([1, 1e30], ".1", f" 1e+30: {TOKEN}"),
        ([True, 1], ".0", f" true: {TOKEN}"),
        ([1, False], ".1", f" false: {TOKEN}"),
        ([-1], ".0", f" -1: {TOKEN}"),
        ([1, "a"], ".1", f' "a": {TOKEN}'),
        ([1, [2]], ".1", f" [2]: {TOKEN}"),
        ([1, None], ".1", f" null: {TOKEN}"),
        ([[1], [2, -3]], ".1.1", f" -3: {TOKEN}"),
        ([[1.5]], ".0.0", f" 1.5: {TOKEN}"),
        ([["a"]], ".0.0", f' "a": {TOKEN}'),
        ([[[1]]], ".0.0", f" [1]: {TOKEN}"),
        (["a", 1], ".1", " 1 stands among texts: give texts alone"),
        (["a", [1]], ".1", " [1] stands among texts: give texts alone"),
        (["a", None], ".1", " null stands among texts: give texts alone"),
        ([[1], "a"], ".1", ' "a" stands among lists of tokens: give lists of tokens alone'),
        ([[1], 2], ".1", " 2 stands among lists of tokens: give lists of tokens alone"),
        ([None], ".0", f" null: {INPUTS}"),
        ([{"type": "text"}], ".0", f' {{"type": "text"}}: {INPUTS}'),
        (None, "", f" null: {INPUTS}"),
        ({}, "", f" {{}}: {INPUTS}"),
        (True, "", f" true: {INPUTS}"),
        (1.5, "", f" 1.5: {INPUTS}"),
        (["a"] * 3000, "", " has 3,000 texts: give at most {most:,} at once"),
        ([[1]] * 3000, "", " has 3,000 lists of tokens: give at most {most:,} at once"),
    ],
)
@pytest.mark.parametrize(("kind", "field"), [(wire.Completion, "prompt"), (wire.Embeddings, "input")])
def test_what_is_no_text_and_no_token_is_named_with_the_cure(
    kind: type[wire.Shape], field: str, given: Any, place: str, says: str
) -> None:
    with pytest.raises(ApiError) as caught:
        wire.read(kind, {"model": "m", field: given})
    assert caught.value.param == field + place
    told = says.replace("{most:,}", f"{kind.either[field]:,}")
    assert caught.value.message == field + place + told


def test_a_field_left_out_is_named() -> None:
    with pytest.raises(ApiError, match="prompt is missing") as caught:
        wire.read(wire.Completion, {"model": "m"})
    assert caught.value.param == "prompt" and caught.value.code == "missing_field"


def test_what_means_nothing_is_taken_and_what_is_unknown_is_told() -> None:
    body = {
        **COMPLETION,
        "best_of": 1,
        "presence_penalty": 0.0,
        "suffix": None,
        "user": "u",
        "top_k": 3,
        "min_p": 0,
    }
    assert wire.read(wire.Completion, body).ignored == ["min_p", "top_k"]
    chat = {**CHAT, "tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "logit_bias": {}}
    assert wire.read(wire.Chat, chat).ignored == []


@pytest.mark.parametrize(
    ("given", "prompts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_prompts_of_all_four_kinds(given: Any, prompts: list[Any]) -> None:
    assert wire.read(wire.Completion, {"model": "m", "prompt": given}).prompts == prompts


@settings(max_examples=300)
@given(
    st.sampled_from([wire.Completion, wire.Chat, wire.Score, wire.Embeddings]),
    st.dictionaries(
        st.sampled_from(
            [
                *("model", "prompt", "messages", "n", "stop", "uptake", "seed", "logprobs", "text"),
                *("compare", "input"),
            ]
        )
        | st.text(max_size=5),
        JSON,
    ),
)
def test_any_object_is_a_request_or_a_refusal_in_one_line(
    kind: type[wire.Shape], body: dict[str, Any]
) -> None:
    try:
        wire.read(kind, body)
    except ApiError as error:
        assert error.status == 400 and len(error.message) < 1000 and error.message.isprintable()
        assert "should be" not in error.message  # pydantic's own words, which tell of Python


# Frames between the processes.


def test_an_end_that_is_gone_is_told_of_even_where_something_was_left_unread() -> None:
    for unread in (False, True):
        ours, theirs = socket.socketpair()
        end = link.Link(ours)
        if unread:
            end.send({"event": "tokens"})  # then the system resets the connection, and does not just end it
        theirs.close()
        assert end.receive() is None
        ours.close()


@pytest.mark.parametrize("loops", ["asyncio", "uvloop"])  # Ray Serve's replicas run on the second
def test_frames_come_whole_however_they_are_cut_and_one_too_large_ends_the_connection(loops: str) -> None:
    made = pytest.importorskip(loops).new_event_loop
    frames = [{"event": "tokens", "rows": [[0, "né" * size]]} for size in (0, 1, 70_000)]
    raw = b"".join(map(link.packed, frames))

    async def run(cuts: int) -> list[Any]:
        ours, theirs = socket.socketpair()
        got: list[Any] = []
        loop = asyncio.get_running_loop()
        _, end = await loop.create_unix_connection(lambda: link.Frames(got.append), sock=ours)
        theirs.setblocking(False)
        for start in range(0, len(raw), cuts):
            await loop.sock_sendall(theirs, raw[start : start + cuts])
            await asyncio.sleep(0)
        while len(got) < len(frames):
            await asyncio.sleep(0.001)
        end.send({"event": "x"})
        assert (await loop.sock_recv(theirs, 100))[4:] == b'{"event":"x"}'
        await loop.sock_sendall(theirs, (link.MOST + 1).to_bytes(4))
        await asyncio.wait_for(end.gone, 10)
        end.send({"event": "y"})  # which nobody hears of
        theirs.close()
        return got

    for cuts in (1 << 20, 1000, 333):
        with asyncio.Runner(loop_factory=made) as runner:
            assert runner.run(asyncio.wait_for(run(cuts), 60)) == frames


# Keys.


def test_a_secret_is_shown_once_and_only_its_digest_is_stored(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "k.db", make=True)
    key, secret = keys.add("ada", note="laptop")
    assert secret.startswith("up-") and len(secret) > 45
    assert keys.find(secret) == key and keys.find(secret + "x") is None and keys.find("") is None
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert secret.encode() not in stored and secret[3:].encode() not in stored
    assert (tmp_path / "k.db").stat().st_mode & 0o077 == 0


def test_two_keys_of_a_tenant_share_its_room_and_others_have_their_own(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "k.db", make=True)
    (first, _), (second, _), (other, _) = keys.add("ada"), keys.add("ada", ["metrics"]), keys.add("bob")
    assert first.tenant == second.tenant != other.tenant
    assert "ada" not in first.tenant  # an id, which no client chose
    assert second.may("metrics") and not second.may("infer")
    assert Key("k", "t", ("admin",)).may("infer")
    assert [name for _, name in keys.list()] == ["ada", "ada", "bob"]


def test_a_revoked_key_is_gone_at_once_for_every_process(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "k.db", make=True)
    key, secret = keys.add("ada")
    elsewhere = Keys(tmp_path / "k.db")
    assert elsewhere.still(key.id)
    keys.revoke(key.id)
    assert elsewhere.find(secret) is None and not elsewhere.still(key.id)
    (listed,) = keys.list()
    assert listed[0].revoked is not None
    with pytest.raises(BadInput, match="keys list"):
        keys.revoke("key_none")


def test_bad_keys_and_files_of_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="keys add"):
        Keys(tmp_path / "none.db")
    (tmp_path / "text").write_text("no database at all, " * 100)
    with pytest.raises(BadInput, match="no file of keys"):
        Keys(tmp_path / "text")
    keys = Keys(tmp_path / "k.db", make=True)
    for tenant, scopes in (("", ["infer"]), ("a", []), ("a", ["root"])):
        with pytest.raises(BadInput):
            keys.add(tenant, scopes)
    with pytest.raises(BadInput, match="tokens 0"):
        Limits(tokens=0)


# Turns and limits.


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(st.floats(1, 1e6), st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1e6)), max_size=30))
def test_a_bucket_gives_no_more_than_it_has_and_what_time_adds(
    minute: float, steps: list[tuple[float, float]]
) -> None:
    bucket, now, taken = Bucket(minute, 0.0), 0.0, 0.0
    for passed, amount in steps:
        now += passed
        wait = bucket.wait(amount, now)
        if amount <= minute and wait == 0:
            bucket.take(amount, now)
            taken += amount
        elif amount <= minute:
            assert bucket.wait(amount, now + wait + 1e-6 * (1 + wait)) == pytest.approx(0, abs=1e-3)
            now += wait + 1e-6 * (1 + wait)
        assert taken <= minute * (1 + now / 60) * (1 + 1e-9)


def key(name: str, **limits: int) -> Key:
    return Key(name, f"ten_{name}", ("infer",), Limits(**limits))


def test_what_a_key_has_used_up_is_refused_with_the_time_to_wait() -> None:
    clock = Clock()
    admission = Admission(clock=clock)
    for _ in range(3):
        admission.done(admission.admit(key("a", requests=3), 10))
    with pytest.raises(ApiError) as caught:
        admission.admit(key("a", requests=3), 10)
    assert caught.value.status == 429 and caught.value.retry_after == pytest.approx(20)
    clock.now += 20
    admission.admit(key("a", requests=3), 10)


def test_a_first_request_may_take_all_there_is() -> None:
    clock = Clock()

    def ticking() -> float:
        clock.now += 1e-6  # no two looks at a real clock are the same
        return clock.now

    admission = Admission(clock=ticking)
    admission.admit(key("a", requests=1, tokens=50), 50)
    admission.visit(key("b", requests=1))
    for name, limits in (("a", {"requests": 1, "tokens": 50}), ("b", {"requests": 1})):
        with pytest.raises(ApiError, match="used its requests"):
            admission.admit(key(name, **limits), 1)


def test_tokens_are_reserved_and_the_rest_given_back() -> None:
    admission = Admission(clock=Clock())
    ada = key("a", tokens=100)
    ticket = admission.admit(ada, 90)
    with pytest.raises(ApiError, match="tokens"):
        admission.admit(ada, 20)
    assert admission.next() is ticket
    admission.done(ticket, tokens=15)
    admission.done(ticket, tokens=15)  # a second end is none
    admission.admit(ada, 85)
    with pytest.raises(ApiError) as caught:
        admission.admit(ada, 101)
    assert caught.value.status == 400  # no minute would ever be enough


def test_tokens_trained_are_owed() -> None:
    clock = Clock()
    admission = Admission(clock=clock)
    ada = key("a", trained=600)
    ticket = admission.admit(ada, 1)
    admission.next()
    admission.done(ticket, 1, trained=1200)
    with pytest.raises(ApiError, match="trained tokens"):
        admission.admit(ada, 1)
    clock.now += 61
    admission.admit(ada, 1)


def test_a_full_queue_refuses_and_one_request_alone_may_wait_however_large() -> None:
    admission = Admission(House(waiting=2, patience=1e-9), Clock())
    first = admission.admit(key("a"), 50, rows=1000)
    with pytest.raises(ApiError) as caught:
        admission.admit(key("b"), 5)
    assert caught.value.status == 503 and caught.value.retry_after
    assert admission.next() is first and admission.running == admission.house.running
    admission.admit(key("a"), 1), admission.admit(key("b"), 1)
    with pytest.raises(ApiError, match="wait"):  # there is room for more than two, and they may not be more
        admission.admit(key("c"), 1)


def test_open_requests_of_a_key_and_a_server_going_down() -> None:
    admission = Admission(clock=Clock())
    admission.admit(key("a", concurrency=1), 1)
    with pytest.raises(ApiError, match="open"):
        admission.admit(key("a", concurrency=1), 1)
    admission.draining = True
    with pytest.raises(ApiError) as caught:
        admission.admit(key("b"), 1)
    assert caught.value.status == 503


def test_a_key_may_let_as_much_wait_as_it_leaves_of_what_ends_in_its_patience() -> None:
    clock = Clock()
    admission = Admission(House(patience=10, running=1), clock)
    ticket = admission.admit(key("a"), 10)
    admission.next()
    clock.now += 0.5
    admission.done(ticket, tokens=100)  # two a second: twenty in ten seconds
    for _ in range(10):
        admission.admit(key("a"), 100)
    with pytest.raises(ApiError) as caught:
        admission.admit(key("a"), 100)
    assert caught.value.retry_after == pytest.approx(5)
    for _ in range(5):
        admission.admit(key("b"), 100)
    with pytest.raises(ApiError):
        admission.admit(key("b"), 100)


def test_rows_take_seats_and_nobody_overtakes_who_waits_for_many() -> None:
    clock = Clock()
    admission = Admission(House(running=4, patience=100), clock)
    first = admission.admit(key("a"), 10)
    assert admission.next() is first
    clock.now += 1
    admission.done(first, 10)
    small, large, next_small = (
        admission.admit(key(name), 10, rows) for name, rows in (("a", 1), ("b", 4), ("a", 1))
    )
    assert admission.next() is small and admission.next() is None
    assert (admission.running, admission.queued) == (1, 5)
    admission.done(small, 10)
    assert admission.next() is large and admission.next() is None
    admission.done(large, 40)
    assert admission.next() is next_small


class Admitting(RuleBasedStateMachine):
    """Whatever comes, counts are what they should be, and turns within a key are in order."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.admission = Admission(House(running=3, waiting=8, patience=5), self.clock)
        self.tickets: list[Ticket] = []

    @rule(name=st.sampled_from("abc"), tokens=st.integers(1, 120), rows=st.integers(1, 5))
    def admit(self, name: str, tokens: int, rows: int) -> None:
        waiting = self.admission.waiting
        try:
            self.tickets.append(self.admission.admit(key(name, tokens=1000, requests=50), tokens, rows))
        except ApiError:
            assert self.admission.waiting == waiting

    @rule()
    def turn(self) -> None:
        ticket = self.admission.next()
        if ticket is None:
            wanted = [one.seats for one in self.tickets if one.stage == "waiting"]
            assert not wanted or self.admission.running + max(wanted) > 3
        else:
            before = self.tickets[: self.tickets.index(ticket)]
            assert not any(one.stage == "waiting" and one.key.id == ticket.key.id for one in before)

    @precondition(lambda self: self.tickets)
    @rule(data=st.data(), used=st.integers(0, 200))
    def end(self, data: st.DataObject, used: int) -> None:
        self.admission.done(data.draw(st.sampled_from(self.tickets)), used, used)

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def counts(self) -> None:
        stages = [ticket.stage for ticket in self.tickets]
        assert self.admission.waiting == stages.count("waiting") <= 8
        for stage, seats in (("running", self.admission.running), ("waiting", self.admission.queued)):
            assert seats == sum(ticket.seats for ticket in self.tickets if ticket.stage == stage)
        assert self.admission.running <= 3


Admitting.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestAdmitting = Admitting.TestCase


def test_the_door_needs_no_torch() -> None:
    import subprocess
    import sys

    program = (
        "import sys, uptake.server.admit, uptake.server.wire, uptake.server.keys, uptake.server.bodies; "
    )
    program += "import uptake.cli.serve, uptake.server.app, uptake.hand_over, uptake.server.serving; "
    program += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_the_clock_of_the_server_is_one_that_never_goes_back() -> None:
    assert Admission()._clock is time.monotonic
