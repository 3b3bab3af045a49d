"""Rollouts by a vLLM server, with real vLLM, HTTP and TRL: it is given the weights after SFT steps too.

Real is all but the way of the tensors from one process to the other, which TRL has over NCCL alone (`store_transport`).
Here vLLM loads new weights layer by layer, which its packed layers on a CPU can do.
"""

from __future__ import annotations

import importlib.util
import json

import pytest

import toy
from vllm_runs import check_weights_at_each_rollout, check_what_sft_taught_is_said, run_script, server

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

# Each trainer meets the server at a port of its own: the one before may still hold its.
PRELUDE = """
import store_transport
from sasr.rollout_engine import check_server
from vllm_runs import free_port
store_transport.send()
url = {url!r}
def trainer(name, **changes):
    values = dict(use_vllm=True, vllm_mode="server", vllm_server_base_url=url, vllm_group_port=free_port())
    made = toy.trainer(out / name, lm=toy.model(0, head_dim=32), **values, **changes)
    check_server(made.args, print)
    return made
"""


@pytest.fixture(scope="module")
def run_with_server(tmp_path_factory):
    place = tmp_path_factory.mktemp("server")
    toy.model(0, place / "lm", head_dim=32)  # the smallest that vLLM has a kernel for on a CPU
    with server(place, place / "lm") as (url, log):

        def run(tmp_path, body):
            try:
                run_script(tmp_path, PRELUDE.format(url=url) + body)
            except BaseException:
                print(log.read_text()[-4000:])  # pytest shows it
                raise

        yield run


def test_what_sft_taught_is_in_the_next_rollout(run_with_server, tmp_path):
    check_what_sft_taught_is_said(run_with_server, tmp_path)


def test_weights_are_those_of_the_trainer_at_each_rollout(run_with_server, tmp_path):
    # How much depends on what a server samples, which has a random state of its own: 0.9 to 3 have been seen.
    check_weights_at_each_rollout(run_with_server, tmp_path, least=0.1)


COMMAND = """
import sasr.rollout_engine
from sasr.cli import main
sasr.rollout_engine.check_device = lambda args: None
toy.model(0, out / "lm", head_dim=32)
toy.rows(24).to_json("rows.jsonl")
flags = ["--task", "jsonl", "--data", "rows.jsonl", "--model_name_or_path", "lm", "--exam_rows", "4",
         "--max_steps", "8", "--sft_warmup_steps", "2", "--per_device_train_batch_size", "8",
         "--num_generations", "4", "--max_completion_length", "4", "--logging_steps", "1", "--learning_rate", "1e-2",
         "--use_vllm", "true", "--vllm_mode", "server", "--output_dir", "run", "--vllm_group_port", str(free_port())]
def differences():
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["sampling/sampling_logp_difference/max"] for line in lines if line.get("kind") == "grpo"}
"""
# Ends the server before the rollouts of the 6th step, the first time.
RULE = """
import os, signal
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from sasr import StepPlan

@dataclass(frozen=True)
class Deadly:
    needs_warmup: ClassVar[bool] = False

    def plan(self, signals):
        if signals.step == 5 and Path("server.pid").exists():
            os.killpg(int(Path("server.pid").read_text()), signal.SIGKILL)
            Path("server.pid").unlink()
        return StepPlan(0.0, 1.0, 0.0)

    def uses(self, warmup_steps, total_steps):
        return True, True
"""


def test_a_server_that_dies_costs_nothing(tmp_path):
    """Its run ends with one line and the step before saved, and goes on with another server."""
    toy.model(0, tmp_path / "lm", head_dim=32)
    (tmp_path / "rule.py").write_text(RULE)
    with server(tmp_path, tmp_path / "lm") as (url, _):
        run_script(
            tmp_path,
            PRELUDE.format(url=url)
            + COMMAND
            + """
import contextlib, io
told = io.StringIO()
with contextlib.redirect_stderr(told):
    status = main(["train", *flags, "--schedule", "rule.py:Deadly", "--vllm_server_base_url", url])
(out / "told.json").write_text(json.dumps([status, told.getvalue()]))
""",
        )
    status, told = json.loads((tmp_path / "told.json").read_text())
    assert status == 1 and told.count("\n") == 1, told
    assert told.startswith(f"sasr: failed: {url}/"), told
    assert "does not answer" in told and "checkpoint-5 is safe" in told, told
    place = tmp_path / "other"
    place.mkdir()
    with server(place, tmp_path / "lm") as (url, _):
        run_script(
            tmp_path,
            PRELUDE.format(url=url)
            + COMMAND
            + """
assert main(["train", "--output_dir", "run", "--resume_from_checkpoint", "--vllm_server_base_url", url,
             "--vllm_group_port", str(free_port())]) == 0
assert sorted(differences()) == [3, 4, 5, 6, 7, 8] and max(differences().values()) < 1e-3, differences()
""",
        )


def test_a_run_of_the_command(run_with_server, tmp_path):
    """With exams, and gone on with from a checkpoint: the server then has the weights of another step."""
    run_with_server(
        tmp_path,
        COMMAND
        + """
flags += ["--schedule", "random", "--save_steps", "4", "--vllm_server_base_url", url]
assert main(["train", *flags]) == 0
assert list(json.loads(Path("run/exam.json").read_text())) == ["initial", "warmup", "final"]
whole = differences()
assert main(["train", "--vllm_group_port", str(free_port()), "--resume_from_checkpoint", "run/checkpoint-4"]) == 0
again = differences()
assert whole.keys() == again.keys() and max(whole) > 4, (whole, again)
assert max(*whole.values(), *again.values()) < 1e-3, (whole, again)
""",
    )
