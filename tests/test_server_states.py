"""States that were kept: they answer under a name, leave as adapters, and go with what they have read."""

import io
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

import server_world
from server_world import LORA, TEXTS, Running
from test_hand_over import StandIn
from uptake import export, sealed
from uptake.hand_over import Target, adapter_name
from uptake.server.config import Config
from uptake.server.engine import handing_over
from uptake.server.keys import Keys, Limits

PROMPT = "the cat sat on"
OWN = {"method": "online", "settings": [*LORA], "texts": [*TEXTS]}


@pytest.fixture(scope="module", name="root")
def root_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("states")


def config(root: Path) -> Config:
    return server_world.config(root, data=str(root / "data"))


class Client:
    """One tenant's calls."""

    def __init__(
        self, server: Running, tenant: str, scopes: tuple[str, ...] = ("infer", "stores"), **limits: int
    ):
        assert server.door.keys is not None
        self.server = server
        self.key = server.door.keys.add(tenant, scopes, Limits(**{"requests": 10_000, **limits}))[1]
        self.headers = {"authorization": f"Bearer {self.key}"}
        self.openai = server.openai(self.key)

    def call(self, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        found = self.server.http.request(method, path, json=body, headers=self.headers)
        assert found.status_code == status, found.text
        return found.json()

    def complete(self, model: str = "toy", status: int = 200, **uptake: Any) -> Any:
        body = {"model": model, "prompt": PROMPT, "max_tokens": 8, "temperature": 0, "logprobs": 2}
        return self.call(
            "POST", "/v1/completions", {**body, **({"uptake": uptake} if uptake else {})}, status
        )

    def keep(self, **uptake: Any) -> tuple[str, Any]:
        found = self.complete(**uptake, keep=True)
        assert found["uptake"]["kept"]
        return found["uptake"]["state"], found["choices"]

    def upload(self, *texts: str) -> tuple[str, list[str]]:
        store, files = self.openai.vector_stores.create(name="notes").id, []
        for text in texts:
            sent = "a.txt", io.BytesIO(text.encode())
            files.append(self.openai.files.create(file=sent, purpose="assistants").id)
            held = self.openai.vector_stores.files.create_and_poll(
                files[-1], vector_store_id=store, poll_interval_ms=20
            )
            assert held.status == "completed"
        return store, files


@contextmanager
def serving(root: Path, asked: Config | None = None) -> Iterator[Running]:
    with server_world.running(asked or config(root), Keys(root / "keys.db", make=True)) as found:
        yield found


@pytest.fixture(scope="module", name="server")
def server_fixture(root: Path) -> Iterator[Running]:
    with serving(root) as found:
        yield found


@pytest.fixture(name="client")
def client_fixture(server: Running, request: pytest.FixtureRequest) -> Client:
    return Client(server, request.node.name)


WAYS = (
    OWN,
    {**OWN, "settings": ["trainable=all", "learning_rate=1e-3"]},
    {"method": "in-context", "texts": [TEXTS[0]]},
    {"method": "in-context", "store": "notes", "k": 2},
    {"method": "ttt-nn", "settings": [*LORA], "store": "notes", "k": 2},
    {"method": "online", "settings": ["trainable=ia3", "learning_rate=1e-2"], "texts": [TEXTS[1]]},
)


def test_a_kept_state_answers_under_its_name_after_a_restart_too(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        client = Client(server, "ada")
        base = client.complete()["choices"]
        kept = [client.keep(**uptake) for uptake in WAYS]
        for uptake, (name, choices) in zip(WAYS, kept, strict=True):
            assert client.complete(f"toy@{name}")["choices"] == choices != base
            assert client.complete(**uptake, keep=True)["uptake"]["cache"] == "hit"
    with serving(tmp_path) as server:
        client = Client(server, "ada")
        for uptake, (name, choices) in zip(WAYS, kept, strict=True):
            told = client.complete(f"toy@{name}", explain=True)
            assert told["choices"] == choices and told["uptake"]["cache"] == "kept"
            assert told["uptake"]["state"] == name and told["uptake"]["method"] == uptake["method"]
            assert told["uptake"]["neighbours"][0]["text"] in TEXTS
            assert client.complete(f"toy@{name}")["uptake"]["cache"] == "hit"


def test_states_are_listed_and_deleted(client: Client) -> None:
    names = [client.keep(**{**OWN, "texts": [text]})[0] for text in TEXTS]
    listed = client.call("GET", "/uptake/states?limit=2")
    assert [each["id"] for each in listed["data"]] == names[:0:-1] and listed["has_more"]
    found = client.call("GET", f"/uptake/states/{names[0]}")
    assert found["model"] == f"toy@{names[0]}" and found["answers"] and found["method"] == "online"
    assert found["steps"] == 1 and found["bytes"] > 1000 and "rank=2" in found["settings"]
    receipt = client.call("DELETE", f"/uptake/states/{names[0]}")
    assert receipt["deleted"] and receipt["uptake"]["forgotten"] == {"kept_states": 1}
    client.call("GET", f"/uptake/states/{names[0]}", status=404)
    assert client.complete(f"toy@{names[0]}", status=404)["error"]["param"] == "model"
    assert len(client.call("GET", "/uptake/states")["data"]) == 2


def test_streams_and_chats_keep_as_well_and_tell_it(client: Client) -> None:
    stream = client.openai.chat.completions.create(
        model="toy",
        messages=[{"role": "user", "content": "a cat"}],
        max_tokens=2,
        temperature=0,
        stream=True,
        extra_body={"uptake": {**OWN, "keep": True}},
    )
    told = next(iter(stream)).uptake  # type: ignore[attr-defined]
    assert told["kept"] and client.call("GET", f"/uptake/states/{told['state']}")["id"] == told["state"]
    answer = client.openai.chat.completions.create(
        model=f"toy@{told['state']}",
        messages=[{"role": "user", "content": "a cat"}],
        max_tokens=2,
        temperature=0,
    )
    assert answer.choices[0].message.content


def test_a_kept_state_echoes_and_scores(client: Client) -> None:
    name, _ = client.keep(method="ttt-nn", settings=[*LORA], store="notes", k=2)
    body = {"model": f"toy@{name}", "prompt": PROMPT, "echo": True, "max_tokens": 1, "logprobs": 1}
    echo = client.call("POST", "/v1/completions", body)["choices"][0]["logprobs"]["token_logprobs"]
    scored = client.call("POST", "/uptake/score", {"text": PROMPT, "compare": [f"toy@{name}", "toy"]})
    ours, base = ([token["logprob"] for token in each["tokens"]] for each in scored["results"])
    assert ours != base and echo[0] is None and ours[1:] == pytest.approx(echo[1:-1], abs=1e-4)


def test_another_tenants_state_is_not_there(server: Running, client: Client) -> None:
    name, _ = client.keep(**OWN)
    other, none = Client(server, "somebody else"), f"st_{'0' * 24}"
    for method, path, body in (
        ("GET", "/uptake/states/ID", None),
        ("GET", "/uptake/states/ID/adapter", None),
        ("DELETE", "/uptake/states/ID", None),
        ("POST", "/uptake/states/ID/hand_over", {"target": "fast"}),
        ("GET", "/uptake/states?after=ID", None),
        ("POST", "/v1/completions", {"model": "toy@ID", "prompt": "a"}),
        ("POST", "/v1/chat/completions", {"model": "toy@ID", "messages": [{"role": "user", "content": "a"}]}),
        ("POST", "/uptake/score", {"text": "a", "compare": ["toy@ID"]}),
    ):
        told = []
        for each in (name, none):
            given = None if body is None else {k: _with(v, each) for k, v in body.items()}
            found = other.call(method, path.replace("ID", each), given, 404)
            told.append(str(found).replace(each, "ID"))
        assert told[0] == told[1]
    assert other.call("GET", "/uptake/states")["data"] == []
    assert other.keep(**OWN)[0] != name  # the same texts, and another state
    assert client.call("GET", f"/uptake/states/{name}")["id"] == name


def _with(value: Any, name: str) -> Any:
    if isinstance(value, list):
        return [_with(each, name) for each in value]
    return value.replace("ID", name) if isinstance(value, str) else value


def bytes_under(root: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file())


@pytest.mark.parametrize("restarts", [False, True], ids=["at once", "after a restart"])
def test_a_state_goes_with_any_text_that_it_has_read(tmp_path: Path, restarts: bool) -> None:
    canaries = [f"canary-{number}-yx the cat sat" for number in range(5)]
    way = {"method": "ttt-nn", "settings": [*LORA], "k": 9, "query": "the cat"}

    def made(client: Client) -> dict[str, tuple[str, str]]:
        one, (file,) = client.upload(canaries[0])
        two, (_,) = client.upload(canaries[1])
        memory = client.call("POST", "/uptake/memories", {"user": "ann", "text": canaries[2]})["id"]
        client.call("POST", "/uptake/memories", {"user": "ben", "text": canaries[3]})
        begun = {"uptake": {"method": "online", "settings": [*LORA]}}
        session = f"/uptake/sessions/{client.call('POST', '/uptake/sessions', begun)['id']}"
        (text,) = client.call("POST", f"{session}/take", {"texts": [canaries[4]]})["passages"]
        return {
            client.keep(**way, store=one)[0]: (f"/v1/files/{file}", canaries[0]),
            client.keep(**way, store=two)[0]: (f"/v1/vector_stores/{two}", canaries[1]),
            client.keep(**way, memory="ann")[0]: (f"/uptake/memories/{memory}", canaries[2]),
            client.keep(**way, memory="ben")[0]: ("/uptake/memories?user=ben", canaries[3]),
            client.keep(session=Path(session).name)[0]: (f"{session}/passages/{text}", canaries[4]),
        }

    def gone(client: Client, states: dict[str, tuple[str, str]]) -> None:
        left = {*states}
        for name, (path, canary) in states.items():
            receipt = client.call("DELETE", path)["uptake"]["forgotten"]
            assert receipt["kept_states"] == 1, (path, receipt)
            left.discard(name)
            client.complete(f"toy@{name}", status=404)
            assert {each["id"] for each in client.call("GET", "/uptake/states")["data"]} == left
            if "vector_stores" not in path:  # whose files stay
                assert canary.encode() not in bytes_under(tmp_path / "data")

    with serving(tmp_path) as server:
        client = Client(server, "ada")
        states = made(client)
        if not restarts:
            gone(client, states)
    if restarts:
        with serving(tmp_path) as server:
            gone(Client(server, "ada"), states)


def test_states_count_into_the_share_of_a_key(server: Running, root: Path) -> None:
    small = Client(server, "small", store_bytes=5_000)
    told = small.complete(status=413, **OWN, keep=True)["error"]
    assert told["code"] == "store_full" and told["param"] == "uptake.keep"
    assert small.call("GET", "/uptake/states")["data"] == []
    large = Client(server, "large", store_bytes=20_000)
    name, _ = large.keep(**OWN)
    assert (
        large.complete(status=413, **{**OWN, "texts": [TEXTS[0]]}, keep=True)["error"]["code"] == "store_full"
    )
    kept = [path for path in (root / "data").glob("*/states/*") if path.name.startswith("st_")]
    assert name in {path.name for path in kept}
    large.call("DELETE", f"/uptake/states/{name}")
    large.keep(**{**OWN, "texts": [TEXTS[0]]})


def test_a_state_for_other_weights_is_refused_and_can_be_deleted(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        name, _ = Client(server, "ada").keep(**OWN)
    server_world.saved_model(tmp_path / "other" / "toy", seed=1)
    other = replace(config(tmp_path), model=str(tmp_path / "other" / "toy"), recipes=())
    with serving(tmp_path, other) as server:
        client = Client(server, "ada")
        told = client.complete(f"toy@{name}", status=400)["error"]
        assert told["code"] == "other_base" and "make it anew" in told["message"]
        assert not client.call("GET", f"/uptake/states/{name}")["answers"]
        assert client.call("DELETE", f"/uptake/states/{name}")["deleted"]


def test_a_damaged_state_is_told_and_can_be_deleted(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        name, _ = Client(server, "ada").keep(**OWN)
    (path,) = (tmp_path / "data").glob(f"*/states/{name}")
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with serving(tmp_path) as server:
        client = Client(server, "ada")
        assert client.complete(f"toy@{name}", status=500)["error"]["code"] == "damaged"
        assert client.call("DELETE", f"/uptake/states/{name}")["deleted"]


@pytest.mark.parametrize(
    ("model", "uptake", "status", "param"),
    [
        ("toy@NAME", {"method": "online"}, 400, "uptake.method"),
        ("toy@NAME", {"texts": ["a"]}, 400, "uptake.texts"),
        ("toy@NAME", {"keep": True}, 400, "uptake.keep"),
        ("toy+notes@NAME", {}, 404, "model"),
        ("other@NAME", {}, 404, "model"),
        ("toy@", {}, 404, "model"),
        ("toy@../../records.db", {}, 404, "model"),
        ("toy", {"keep": True}, 400, "uptake.method"),
        ("toy", {**OWN, "keep": "yes"}, 400, "uptake.keep"),
    ],
)
def test_what_cannot_be_kept_or_answered_is_told(
    client: Client, model: str, uptake: Any, status: int, param: str
) -> None:
    name = client.keep(**OWN)[0] if "NAME" in model else ""
    told = client.complete(model.replace("NAME", name), status=status, **uptake)["error"]
    assert told["param"] == param and len(told["message"]) < 300


def test_keeping_needs_a_folder_and_the_scope_of_stores(server: Running, tmp_path: Path) -> None:
    poor = Client(server, "poor", ("infer",))
    assert poor.complete(status=403, **OWN, keep=True)["error"]["code"] == "forbidden"
    with serving(tmp_path, server_world.config(tmp_path)) as without:
        client = Client(without, "ada")
        assert "--data" in client.complete(status=400, **OWN, keep=True)["error"]["message"]
        assert client.complete("toy@st_0", status=404)["error"]["param"] == "model"


def adapter(client: Client, name: str, folder: Path) -> Path:
    found = client.server.http.get(f"/uptake/states/{name}/adapter", headers=client.headers)
    assert found.status_code == 200 and found.headers["content-type"] == "application/zip"
    assert f"{name}.zip" in found.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(found.content)) as packed:
        assert set(packed.namelist()) == {"adapter_config.json", "adapter_model.safetensors"}
        packed.extractall(folder)
    return folder


def test_an_adapter_answers_in_peft_as_here(client: Client, root: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    name, _ = client.keep(**OWN)
    base = AutoModelForCausalLM.from_pretrained(root / "toy")
    model = PeftModel.from_pretrained(base, str(adapter(client, name, tmp_path / "adapter"))).eval()
    ids = client.server.post("/tokenize", {"prompt": PROMPT}, headers=client.headers).json()["tokens"]
    with torch.no_grad():
        log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    wanted = [log_probs[place - 1, ids[place]].item() for place in range(1, len(ids))]
    scored = client.call("POST", "/uptake/score", {"text": PROMPT, "compare": [f"toy@{name}", "toy"]})
    ours, base_ = ([token["logprob"] for token in each["tokens"]] for each in scored["results"])
    assert ours == pytest.approx(wanted, abs=1e-5) and base_ != pytest.approx(wanted, abs=1e-2)
    assert not list((root / "data" / "uploads").iterdir())


@pytest.mark.parametrize(
    ("uptake", "says"),
    [
        ({"method": "in-context", "texts": [TEXTS[0]]}, "changes more than weights"),
        ({**OWN, "settings": ["trainable=all", "learning_rate=1e-3"]}, "low-rank parts only"),
    ],
    ids=["a context", "all weights"],
)
def test_what_is_no_adapter_is_told(client: Client, uptake: Any, says: str) -> None:
    name, _ = client.keep(**uptake)
    told = client.call("GET", f"/uptake/states/{name}/adapter", status=400)["error"]
    assert says in told["message"]


@pytest.fixture(name="stand_in")
def stand_in_fixture(request: pytest.FixtureRequest) -> Iterator[StandIn]:
    found = StandIn(request.param, {})
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


@pytest.mark.parametrize("stand_in", ["adapter"], indirect=True)
def test_a_state_is_handed_over_and_unloaded_with_what_it_read(stand_in: StandIn, tmp_path: Path) -> None:
    where = f"vllm=http://127.0.0.1:{stand_in.server_address[1]}"
    with serving(tmp_path, replace(config(tmp_path), hand_over=(("fast", where),))) as server:
        client = Client(server, "ada")
        store, (file,) = client.upload(TEXTS[0] * 3)
        way = {"method": "ttt-nn", "settings": [LORA[0], "learning_rate=3e-2"], "store": store}
        name, _ = client.keep(**way)
        told = client.call("POST", f"/uptake/states/{name}/hand_over", {"target": "fast"})
        assert told["target"] == "fast" and told["from_adapted"] < 1e-3 < told["from_base"]
        assert [*stand_in.held] == [told["name"]]
        found = client.call("GET", f"/uptake/states/{name}")["handed_over"]
        assert found == [{"target": "fast", "name": told["name"]}]
        receipt = client.call("DELETE", f"/v1/files/{file}")["uptake"]
        assert receipt["forgotten"]["adapters"] == 1 and "left" not in receipt and not stand_in.held
        assert not list((tmp_path / "data").glob("*/adapters/*"))


@pytest.mark.parametrize("stand_in", ["adapter"], indirect=True)
def test_handing_over_that_ends_halfway_leaves_no_half_adapter_and_nothing_that_stays(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = f"vllm=http://127.0.0.1:{stand_in.server_address[1]}"
    data, seen = tmp_path / "data", list[Path]()

    def written(path: Path, raw: bytes) -> None:
        seen.extend(data.glob("*/adapters/*"))
        sealed.write_whole(path, raw)

    def ends(to: Target, folder: Path, *rest: Any) -> None:
        to.load(adapter_name(folder), folder)
        raise RuntimeError("as if it were killed: nobody tidies up")

    with serving(tmp_path, replace(config(tmp_path), hand_over=(("fast", where),))) as server:
        client = Client(server, "ada")
        name, _ = client.keep(**{**OWN, "settings": [LORA[0], "learning_rate=3e-2"]})
        monkeypatch.setattr(export, "write_whole", written)
        with monkeypatch.context() as patched:
            patched.setattr(handing_over, "hand_over", ends)
            client.call("POST", f"/uptake/states/{name}/hand_over", {"target": "fast"}, 500)
        # Killed while it was written, no half of it would be taken for the whole.
        assert not seen and len([*data.glob("*/adapters/*")]) == 1
        assert stand_in.held and client.call("GET", f"/uptake/states/{name}")["handed_over"] == []
        receipt = client.call("DELETE", f"/uptake/states/{name}")["uptake"]
        assert receipt["forgotten"]["adapters"] == 1 and "left" not in receipt and not stand_in.held


@pytest.mark.parametrize("stand_in", ["base"], indirect=True)
def test_a_target_that_answers_as_the_base_is_told_without_its_address(
    stand_in: StandIn, tmp_path: Path
) -> None:
    port = stand_in.server_address[1]
    targets = (("fast", f"vllm=http://127.0.0.1:{port}"), ("gone", "vllm=http://127.0.0.1:9"))
    with serving(tmp_path, replace(config(tmp_path), hand_over=targets)) as server:
        client = Client(server, "ada")
        name, _ = client.keep(**{**OWN, "settings": [LORA[0], "learning_rate=3e-2"]})
        for target, status, says in (
            ("fast", 502, "does not answer with the adapter"),
            ("gone", 502, "did not load"),
            ("http://elsewhere", 400, "there are fast, gone"),
        ):
            told = client.call("POST", f"/uptake/states/{name}/hand_over", {"target": target}, status)[
                "error"
            ]
            assert says in told["message"] and told["param"] == "target"
            assert "127.0.0.1" not in told["message"] and str(tmp_path) not in told["message"]
        assert client.call("GET", f"/uptake/states/{name}")["handed_over"] == [] and not stand_in.held


def test_a_target_that_cannot_be_reached_is_named_in_the_receipt(tmp_path: Path) -> None:
    held = StandIn("adapter", {})
    threading.Thread(target=held.serve_forever, daemon=True).start()
    where = f"vllm=http://127.0.0.1:{held.server_address[1]}"
    with serving(tmp_path, replace(config(tmp_path), hand_over=(("fast", where),))) as server:
        client = Client(server, "ada")
        name, _ = client.keep(**{**OWN, "settings": [LORA[0], "learning_rate=3e-2"]})
        told = client.call("POST", f"/uptake/states/{name}/hand_over", {"target": "fast"})
        held.shutdown()
        held.server_close()
        receipt = client.call("DELETE", f"/uptake/states/{name}")["uptake"]
        assert receipt["left"] == [{"target": "fast", "name": told["name"]}]


def test_the_openai_client_raises_its_own_kinds(client: Client) -> None:
    with pytest.raises(openai.NotFoundError):
        client.openai.completions.create(model="toy@st_0", prompt="a")
    with pytest.raises(openai.BadRequestError):
        client.openai.completions.create(model="toy", prompt="a", extra_body={"uptake": {"keep": True}})
