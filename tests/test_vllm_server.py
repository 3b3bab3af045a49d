"""Rollouts by a vLLM server, with real vLLM, HTTP and TRL: it is given the weights after SFT steps too.

Real is all but the way of the tensors from one process to the other, which TRL has over NCCL alone (`store_transport`).
Here vLLM loads new weights layer by layer, which its packed layers on a CPU can do.
"""

from __future__ import annotations

import importlib.util

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


def test_a_run_of_the_command(run_with_server, tmp_path):
    """With exams, and gone on with from a checkpoint: the server then has the weights of another step."""
    run_with_server(
        tmp_path,
        """
import sasr.rollout_engine
from sasr.cli import main
sasr.rollout_engine.check_device = lambda args: None
toy.model(0, out / "lm", head_dim=32)
toy.rows(24).to_json("rows.jsonl")
flags = ["--task", "jsonl", "--data", "rows.jsonl", "--model_name_or_path", "lm", "--exam_rows", "4",
         "--max_steps", "8", "--schedule", "random", "--sft_warmup_steps", "2", "--per_device_train_batch_size", "8",
         "--num_generations", "4", "--max_completion_length", "4", "--save_steps", "4", "--logging_steps", "1",
         "--learning_rate", "1e-2", "--use_vllm", "true", "--vllm_mode", "server", "--vllm_server_base_url", url,
         "--output_dir", "run"]
def differences():
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["sampling/sampling_logp_difference/max"] for line in lines if line.get("kind") == "grpo"}
assert main(["train", *flags, "--vllm_group_port", str(free_port())]) == 0
assert list(json.loads(Path("run/exam.json").read_text())) == ["initial", "warmup", "final"]
whole = differences()
assert main(["train", "--vllm_group_port", str(free_port()), "--resume_from_checkpoint", "run/checkpoint-4"]) == 0
again = differences()
assert whole.keys() == again.keys() and max(whole) > 4, (whole, again)
assert max(*whole.values(), *again.values()) < 1e-3, (whole, again)
""",
    )
