"""vLLM that cannot make the rollouts is found out before the model is loaded, with one line that says what to do."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

import toy
from refusals import SMALL
from sasr.checkpoints import fingerprint
from sasr.errors import RunFailed
from sasr.parsing import RECIPES
from sasr.rollout_engine import SERVER_COMMAND, check_server
from sasr.run_directory import failures_told

pytestmark = pytest.mark.usefixtures("clean")
GOOD = {
    "weight_transfer_config": {"backend": "nccl"},
    "model_config": {"logprobs_mode": "processed_logprobs", "max_model_len": 2048},
}


@pytest.fixture
def served():
    """`served(answers)`: the address of a server that answers so, a value or a status for each path."""
    servers = []

    def serve(answers: dict) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                answer = answers.get(self.path.split("?")[0], 404)
                if isinstance(answer, list):  # one after the other
                    answer = answer.pop(0) if len(answer) > 1 else answer[0]
                self.send_response(answer if isinstance(answer, int) else 200)
                self.end_headers()
                self.wfile.write(b"" if isinstance(answer, int) else json.dumps(answer).encode())

            def log_message(self, *arguments):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def with_gpu(monkeypatch):
    """As on a machine with vLLM and a CUDA device."""
    monkeypatch.setattr("sasr.rollout_engine.find_spec", lambda name: "there")
    monkeypatch.setattr("sasr.rollout_engine.torch", torch_with("cuda"))


def torch_with(kind: str) -> SimpleNamespace:
    device = SimpleNamespace(type=kind)
    return SimpleNamespace(accelerator=SimpleNamespace(is_available=lambda: True, current_accelerator=lambda: device))


def test_no_vllm_or_no_accelerator(error, monkeypatch):
    monkeypatch.setattr("sasr.rollout_engine.find_spec", lambda name: None)
    assert "use_vllm: vLLM is not installed" in error(*SMALL, "--use_vllm", "true")
    monkeypatch.setattr("sasr.rollout_engine.find_spec", lambda name: "there")
    for mode in ("colocate", "server"):
        flags = ("--use_vllm", "true", "--vllm_mode", mode, "--use_cpu", "true")
        assert "use_vllm needs an accelerator" in error(*SMALL, *flags)


def test_an_accelerator_without_nccl(error, with_gpu, monkeypatch):
    monkeypatch.setattr("sasr.rollout_engine.torch", torch_with("xpu"))
    message = error(*SMALL, "--use_vllm", "true", "--vllm_mode", "server", "--vllm_server_timeout", "0")
    assert "vllm_mode server" in message and "CUDA devices, not xpu" in message and "use colocate" in message


SERVERS = {
    "ill": ({"/health": 503}, ["no vLLM server at http://127", "within 0 s (it answers 503", "start it with VLLM_S"]),
    "another": ({"/health": 404}, ["no vLLM server at http://127", "it answers 404"]),
    "not development": ({"/health": {}}, ["VLLM_SERVER_DEV_MODE=1 in its environment"]),
    "failing": ({"/health": {}, "/server_info": 500}, ["does not tell its settings: 500"]),
    "no vllm": ({"/health": {}, "/server_info": ["hello"]}, ["is no vLLM server that TRL can use"]),
    "as text": ({"/health": {}, "/server_info": {"vllm_config": "model=..."}}, ["is no vLLM server that TRL can use"]),
    "no transfer": (
        {"/health": {}, "/server_info": {"vllm_config": {**GOOD, "weight_transfer_config": None}}},
        ["takes no new weights", """--weight-transfer-config '{"backend": "nccl"}'"""],
    ),
    "raw": (
        {"/health": {}, "/server_info": {"vllm_config": {**GOOD, "model_config": {"logprobs_mode": "raw_logprobs"}}}},
        ["--logprobs-mode raw_logprobs", "vllm_importance_sampling_correction is wrong"],
    ),
    "short": (
        {
            "/health": {},
            "/server_info": {"vllm_config": {**GOOD, "model_config": {**GOOD["model_config"], "max_model_len": 12}}},
        },
        ["takes 12 tokens", "larger --max-model-len"],
    ),
}


@pytest.mark.parametrize("answers, expected", SERVERS.values(), ids=SERVERS)
def test_a_server_that_is_of_no_use(answers, expected, served, error, with_gpu):
    flags = (
        "--use_vllm",
        "true",
        "--vllm_mode",
        "server",
        "--vllm_server_timeout",
        "0",
        "--max_completion_length",
        "12",
    )
    message = error(*SMALL, *flags, "--vllm_server_base_url", served(answers))
    assert all(part in message for part in expected), message


def test_no_server(served, error, with_gpu):
    address = served({})
    port = address.rsplit(":", 1)[1]
    flags = ("--use_vllm", "true", "--vllm_mode", "server", "--vllm_server_timeout", "0")
    assert "no vLLM server at" in error(*SMALL, *flags, "--vllm_server_host", "127.0.0.1", "--vllm_server_port", port)
    for url in ("10.0.0.3:8000", "http://10.0.0.3:8000/"):
        assert f"vllm_server_base_url is '{url}'" in error(*SMALL, *flags, "--vllm_server_base_url", url)


def test_a_server_that_starts_is_waited_for(served, monkeypatch):
    monkeypatch.setattr("sasr.rollout_engine._PAUSE", 0.0)
    url, said = served({"/health": [503, 503, {}], "/server_info": {"vllm_config": GOOD}}), []
    args = toy.settings(Path("run"), use_vllm=True, vllm_mode="server", vllm_server_base_url=url)
    check_server(args, said.append)
    assert len(said) == 1 and said[0].startswith(f"waiting for a vLLM server at {url} (it answers 503"), said
    assert "for 240 s at most (vllm_server_timeout)" in said[0]
    check_server(args, said.append)
    assert len(said) == 1


def test_what_a_server_refuses_in_a_run(tmp_path):
    """TRL raises a bare Exception then."""
    (tmp_path / "config.yaml").touch()
    with pytest.raises(RunFailed) as failed, failures_told(tmp_path):
        raise Exception("Request failed: 400, too long")
    assert str(failed.value).startswith(
        "the vLLM server refuses. Request failed: 400, too long; there is no checkpoint"
    )
    with pytest.raises(ZeroDivisionError), failures_told(tmp_path):
        print(1 / 0)


def test_a_run_can_go_on_with_a_server_elsewhere(tmp_path):
    here = toy.settings(tmp_path, use_vllm=True, vllm_mode="server")
    places = {"vllm_server_host": "10.0.0.3", "vllm_server_port": 8001, "vllm_group_port": 1}
    there = toy.settings(tmp_path, use_vllm=True, vllm_mode="server", **places, vllm_server_timeout=1.0)
    other = toy.settings(tmp_path, use_vllm=True, vllm_mode="colocate")
    assert fingerprint(here.to_dict()) == fingerprint(there.to_dict()) != fingerprint(other.to_dict())


def test_the_recipe_starts_the_server_as_is_asked_for():
    start, _, end = SERVER_COMMAND.partition("MODEL")
    recipe = (RECIPES / "accelerate" / "multi-node.yaml").read_text()
    assert re.search(re.escape(start) + r"\S+" + re.escape(end), recipe)
