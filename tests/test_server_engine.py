"""The engine without its process or its door: frames in, turns one at a time, frames out."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import server_world
import uptake
from server_world import LORA, TEXTS
from uptake.lm.base import LM, Segment
from uptake.lm.experts import Experts
from uptake.lm.generation import Decoding
from uptake.lm.grid import Grid
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.contract.naming import method_specs
from uptake.methods.knn_lm.keys import TokenKeyer
from uptake.methods.knn_lm.mixture import KnnMixture
from uptake.server.engine.main import Engine
from uptake.store.datastore import Datastore
from uptake.text.overlap import LeakFilter
from uptake.text.token_bytes import TokenBytes

LONG = " ".join(TEXTS * 8)  # several windows of the toy


class Turns:
    """An engine whose turns the test gives."""

    def __init__(self, folder: Path) -> None:
        self.sent: list[dict[str, Any]] = []
        link: Any = self
        self.engine = Engine(server_world.config(folder), link)
        self.count = 0

    def send(self, *frames: dict[str, Any]) -> None:
        self.sent += frames

    def ask(self, op: str, **more: Any) -> int:
        self.count += 1
        self.engine._act(
            {
                "id": self.count,
                "op": op,
                "tenant": "a",
                "state_bytes": 1 << 30,
                "store_bytes": 1 << 30,
                **more,
            }
        )
        return self.count

    def score(self, text: str = LONG, context: str = "so", **uptake: Any) -> int:
        return self.ask("score", text=text, context=context, compare=[{"model": "toy", "uptake": uptake}])

    def write(self, tokens: int = 8, **uptake: Any) -> int:
        how = {"temperature": 0.0, "top_p": 1.0, "n": 1, "stop": [], "seed": 0, "logprobs": 2, "echo": False}
        asked = {
            "model": "toy",
            "prompts": ["the cat sat on"],
            "max_tokens": tokens,
            "uptake": uptake or None,
        }
        return self.ask("generate", **how, **asked)

    def adapt(self) -> None:
        """Let everything be adapted to that was asked for, and nothing else be done."""
        while self.engine.adapter.open:
            if self.engine.adapter.busy:
                self.engine.adapter.tick()
            else:
                act = self.engine._inbox.get(timeout=30)
                assert act is not None
                act()

    def until(self, done: Callable[[], bool]) -> None:
        while not done():
            self.engine._tick()

    def told(self, number: int) -> list[dict[str, Any]]:
        return [frame for frame in self.sent if frame["id"] == number]

    def finish(self, number: int) -> list[dict[str, Any]]:
        """Return what came of a request."""
        self.adapt()
        self.until(lambda: any(each["event"] in ("answer", "end", "error") for each in self.told(number)))
        return self.told(number)


@pytest.fixture(name="turns")
def turns_fixture(tmp_path: Path) -> Turns:
    return Turns(tmp_path)


def test_a_long_text_is_scored_by_its_own_adapter_whoever_writes_between_its_windows(turns: Turns) -> None:
    mine = {"method": "online", "settings": [*LORA], "texts": [TEXTS[0]]}
    theirs = {"method": "online", "settings": [*LORA], "texts": [TEXTS[1] * 3]}
    (alone,) = turns.finish(turns.score(**mine))
    assert alone["event"] == "answer", alone
    number, other = turns.score(**mine), turns.write(**theirs)
    turns.adapt()
    turns.engine.jobs.scorer.tick()
    turns.engine.jobs.tick()  # the other reads its prompt, and begins to write
    assert [each["event"] for each in turns.told(other)] == ["begun", "tokens"]
    assert not turns.told(number), "the text was scored in one turn, so nothing came between"
    (between,) = turns.finish(number)
    tokens = [each["answer"]["results"][0]["tokens"] for each in (alone, between)]
    assert tokens[0] == tokens[1]


KNN: dict[str, Any] = {"method": "knn-lm", "settings": ["neighbours=7", "temperature=20"], "store": "notes"}
MIX: dict[str, Any] = {
    "method": "in-context/ttt-nn",
    "settings": ["trainable=lora(rank=2)", "learning_rate=1e-2"],
    "store": "notes",
    "k": 2,
    "query": "the cat sat on",
}


@pytest.fixture(name="keyed")
def keyed_fixture(tmp_path: Path) -> Turns:
    """An engine whose store has been read by its model."""
    own = server_world.config(tmp_path)
    Datastore.open(own.stores[0].path).read_tokens(TokenKeyer(uptake.load(own.model)))
    return Turns(tmp_path)


def choices(frames: list[dict[str, Any]]) -> list[Any]:
    """What was written: each token's bytes, log-probability and alternatives."""
    return [row[4] for frame in frames if frame["event"] == "tokens" for row in frame["rows"]]


def library(turns: Turns, way: dict[str, Any]) -> LM:
    """A method as the library makes it, of the store that the engine has."""
    (spec,) = method_specs([way["method"]], way["settings"]).values()
    lm, store = turns.engine.lm, turns.engine._store_of("a", "notes")
    source = store.source("the cat sat on", leak=LeakFilter.off())
    (state,) = spec.method.adapt(
        [spec.method.init(lm)],
        lm,
        [Evidence(source.search(way.get("k", 0)), "the cat sat on", source)],
        Context(),
    )
    return spec.method.adapted([state], lm)


@pytest.mark.parametrize(("way", "kind"), [(KNN, KnnMixture), (MIX, Experts)])
def test_a_mixture_writes_and_scores_what_the_library_does_in_the_shared_pass(
    keyed: Turns, way: dict[str, Any], kind: type[LM]
) -> None:
    lm = library(keyed, way)
    assert isinstance(lm, kind)
    number = keyed.write(12, **way)
    keyed.adapt()
    keyed.until(lambda: any(row.seat for row in keyed.engine.writer.rows))  # it sits there
    frames = keyed.finish(number)
    assert frames[-1]["event"] == "end", frames
    (told,) = [frame["uptake"] for frame in frames if frame["event"] == "begun"]
    assert told["cache"] == "made"
    decoding = Decoding(tokens=12, alternatives=2, beyond_window=False)
    wanted = [*lm.stream("the cat sat on", decoding)]
    written = [token for row in choices(frames) for token in row]
    names = TokenBytes(keyed.engine.lm.tokenizer)
    assert len(written) == 12
    for (raw, log_prob, best), token in zip(written, wanted, strict=True):
        assert token.id is not None and raw == list(names.of(token.id))
        assert log_prob == pytest.approx(token.log_prob, abs=1e-4)
        assert [value for _, value in best] == pytest.approx([v for _, v in token.alternatives], abs=1e-4)
    (scored,) = keyed.finish(keyed.score("the cat sat on the hill.", "so", **way))
    (own,) = lm.score([Segment("the cat sat on the hill.", "so")])
    bits = scored["answer"]["results"][0]["bits"]
    assert bits == pytest.approx(float(-own.log_probs.sum()) / math.log(2), abs=1e-3)
    (plain,) = keyed.engine.lm.score([Segment("the cat sat on the hill.", "so")])
    assert abs(float((plain.log_probs - own.log_probs).sum())) > 0.1, "what was read says nothing here"


def test_rows_that_mix_beside_others_write_what_they_write_alone(keyed: Turns) -> None:
    ways: list[dict[str, Any]] = [
        KNN,
        MIX,
        {**KNN, "method": "retomaton"},
        {**KNN, "settings": ["neighbours=7", "over=passages"], "k": 2},
        {"method": "online", "settings": [*LORA], "texts": [TEXTS[1]]},
        {},
    ]
    alone = [choices(keyed.finish(keyed.write(10, **way))) for way in ways]
    numbers = [(place, keyed.write(10, **way)) for place, way in [*enumerate(ways)] * 3]
    keyed.adapt()
    keyed.until(lambda: not keyed.engine.writer.busy)
    for place, number in numbers:
        assert choices(keyed.told(number)) == alone[place]


def test_what_searches_while_it_writes_is_forgotten_with_any_text_of_its_store(keyed: Turns) -> None:
    keyed.finish(keyed.write(**KNN))
    keyed.finish(keyed.write(method="online", settings=[*LORA], texts=[TEXTS[0]]))
    adapter = keyed.engine.adapter
    assert len(adapter.states) == 2
    gone, _ = adapter.forget("a", "notes", lambda document: False)
    assert gone == 1 and len(adapter.states) == 1


def test_no_error_tells_where_the_operators_files_lie(turns: Turns, tmp_path: Path) -> None:
    (told,) = turns.finish(turns.write(**KNN))
    message = told["error"]["message"]
    assert "notes: holds no tokens" in message and str(tmp_path) not in message


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    """Return a list that gets longer with each call of a method of the grid."""
    calls, inner = list[str](), getattr(Grid, name)

    def call(*arguments: Any) -> Any:
        calls.append(name)
        return inner(*arguments)

    monkeypatch.setattr(Grid, name, call)
    return calls


def test_a_prompt_is_read_once_with_a_state_that_is_made_and_told_before_it_goes_on(
    turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    way = {"method": "online", "settings": [*LORA], "texts": [TEXTS[0]]}
    read, passes = counted(monkeypatch, "_begin"), counted(monkeypatch, "step")
    number = turns.write(**way)
    turns.adapt()
    assert len(read) == 1 and not turns.told(number)
    turns.engine._tick()
    assert [each["event"] for each in turns.told(number)] == ["begun", "tokens"] and not passes
    made = turns.finish(number)
    assert len(read) == 1
    again = turns.write(**way)
    hit = turns.finish(again)
    assert len(read) == 2 and [each["uptake"]["cache"] for each in (made[0], hit[0])] == ["made", "hit"]
    assert choices(made) == choices(hit)
