"""Adapters handed over to servers: a stand-in speaks their APIs and, wrongly, serves something else."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

import toys
from uptake.adaptation.delta import Delta
from uptake.adaptation.optimizers import AdamW
from uptake.adaptation.trainable import LoRA
from uptake.errors import BadInput, Mismatch
from uptake.export import export_peft
from uptake.hand_over import KINDS, adapter_name, hand_over, target
from uptake.lm.causal import Causal
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.finetune import Finetune

TEXTS = ("the cat sat on the mat. ", "a dog ran over the hill.")


class StandIn(ThreadingHTTPServer):
    """Speaks the three APIs. `serves` says what answers: the adapter, the base, a half of it, or nothing."""

    daemon_threads = True

    def __init__(self, serves: str, held: dict[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.serves, self.held, self.asked = serves, held, list[str]()

    def likeliest(self, name: str | None, ids: list[int]) -> list[tuple[int, float]]:
        from peft import PeftModel

        module = toys.module("llama")
        if name is not None and self.serves != "base":
            module = PeftModel.from_pretrained(module, self.held[name])
            if self.serves == "half":
                for own, tensor in module.named_parameters():
                    if "lora_B" in own and ".layers.0." in own:
                        tensor.data.zero_()
        with torch.no_grad():
            best = module.eval()(torch.tensor([ids])).logits[0, -1].log_softmax(-1).topk(5)
        return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def do_GET(self) -> None:
        self._answer([{"id": i, "path": f"/x/{n}.gguf", "scale": 0} for i, n in enumerate(self.server.held)])

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server, path = self.server, self.path
        server.asked.append(path)
        if "unload_lora" in path:
            del server.held[body["lora_name"]]
            self._answer({"success": True})
        elif "load_lora" in path:
            server.held[body["lora_name"]] = body["lora_path"]
            self._answer({"success": server.serves != "refuses", "error_message": "too many adapters"})
        elif server.serves == "fails":
            self.send_error(500)
        elif path == "/v1/completions":
            best = {f"token_id:{i}": value for i, value in server.likeliest(body["model"], body["prompt"])}
            self._answer({"choices": [{"logprobs": {"top_logprobs": [best]}}]})
        elif path == "/generate":
            rows = [[value, i, None] for i, value in server.likeliest(body["lora_path"], body["input_ids"])]
            self._answer({"meta_info": {"output_top_logprobs": [rows]}})
        else:
            on = [name for name, each in zip(server.held, body["lora"], strict=True) if each["scale"] == 1]
            rows = server.likeliest(on[0] if on else None, body["prompt"])
            best = [{"id": i, "logprob": value} for i, value in rows]
            self._answer({"completion_probabilities": [{"top_logprobs": best}]})

    def _answer(self, found: Any) -> None:
        raw = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module", name="base")
def base_fixture() -> Causal:
    return toys.lm("llama")


@pytest.fixture(scope="module", name="delta")
def delta_fixture(base: Causal) -> Delta:
    method = Finetune(trainable=LoRA(rank=3, alpha=7), optimizer=AdamW(learning_rate=3e-2))
    (state,) = method.adapt([method.init(base)], base, [Evidence.of(*TEXTS)], Context())
    return state.delta


@pytest.fixture(name="folder")
def folder_fixture(base: Causal, delta: Delta, tmp_path: Path) -> Path:
    return export_peft(delta, base, tmp_path / "adapter")


@pytest.fixture(name="server")
def server_fixture(request: pytest.FixtureRequest, folder: Path) -> Iterator[StandIn]:
    found = StandIn(request.param, {})
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


def to(server: StandIn, kind: str, folder: Path) -> Any:
    if kind == "llamacpp":  # which was started with two adapters, ours the second
        server.held |= {"other": str(folder), adapter_name(folder): str(folder)}
    return target(f"{kind}=http://127.0.0.1:{server.server_address[1]}")


@pytest.mark.parametrize("server", ["adapter"], indirect=True)
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_that_answers_stays(
    server: StandIn, kind: str, folder: Path, base: Causal, delta: Delta
) -> None:
    found = hand_over(to(server, kind, folder), folder, base.overlay(delta), base, TEXTS)
    assert found.name == adapter_name(folder) and found.name in server.held
    assert found.from_adapted < 1e-4 < 0.02 < found.from_base


@pytest.mark.parametrize("server", ["base", "half"], indirect=True)
@pytest.mark.parametrize("kind", KINDS)
def test_one_that_matches_nothing_or_half_is_found_out_and_unloaded(
    server: StandIn, kind: str, folder: Path, base: Causal, delta: Delta
) -> None:
    with pytest.raises(Mismatch, match="does not answer with the adapter"):
        hand_over(to(server, kind, folder), folder, base.overlay(delta), base, TEXTS)
    assert kind == "llamacpp" or server.held == {}


@pytest.mark.parametrize(
    ("server", "says"), [("fails", "did not answer"), ("refuses", "too many")], indirect=["server"]
)
def test_a_server_that_fails_is_told_and_keeps_nothing(
    server: StandIn, says: str, folder: Path, base: Causal, delta: Delta
) -> None:
    with pytest.raises(BadInput, match=says):
        hand_over(to(server, "sglang", folder), folder, base.overlay(delta), base, TEXTS)
    assert says != "did not answer" or server.held == {}


@pytest.mark.parametrize("server", ["adapter"], indirect=True)
def test_what_cannot_be_told_apart_is_refused(server: StandIn, folder: Path, base: Causal) -> None:
    with pytest.raises(BadInput, match="too little for a probe"):
        hand_over(to(server, "vllm", folder), folder, base, base, TEXTS)
    assert server.held == {}
    other = target(f"llamacpp=http://127.0.0.1:{server.server_address[1]}")
    with pytest.raises(BadInput, match="convert_lora_to_gguf"):
        hand_over(other, folder, base, base, TEXTS)


@pytest.mark.parametrize("text", ["", "vllm", "tgi=http://x", "vllm=file:///etc/passwd"])
def test_a_target_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="write KIND=URL"):
        target(text)


def test_nobody_there_is_told(folder: Path, base: Causal, delta: Delta) -> None:
    with pytest.raises(BadInput, match="did not load"):
        hand_over(target("vllm=http://127.0.0.1:1"), folder, base.overlay(delta), base, TEXTS)
