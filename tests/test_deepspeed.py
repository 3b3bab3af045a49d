"""DeepSpeed's ZeRO-2 and ZeRO-3 with one process on a CPU take the steps of plain torch (`make test-deepspeed`).

DeepSpeed of before April 2026 dropped all micro-batches but the first with offload (its pull request 7967), and so
shrank the very norm that SASR decides by: two micro-batches of four must give what one of eight gives.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from docs_commands import ROOT

pytestmark = pytest.mark.deepspeed
SCRIPT = """
import json, os, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import toy
stage, parts = {stage}, {parts}
zero = {{
    "zero_optimization": {{"stage": stage, "stage3_gather_16bit_weights_on_model_save": True}},
    "gradient_clipping": "auto",
    "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
    "zero_force_ds_cpu_optimizer": False,
}}
batch = {{"per_device_train_batch_size": 8 // parts, "per_device_sft_batch_size": 8 // parts}}
engine = {{"deepspeed": zero, "use_cpu": False}} if stage else {{}}
trainer = toy.trainer(Path("run"), gradient_accumulation_steps=parts, **batch, **engine)
trainer.train()
kind = trainer.accelerator.distributed_type.value
keys = ("sasr/p_sft", "sasr/sft_weight", "grad_norm", "sasr/sft_loss", "loss", "reward")
Path("history.json").write_text(json.dumps([kind, trainer.is_deepspeed_enabled, toy.history(trainer, *keys)]))
sys.stdout.flush()
os._exit(0)
"""


def start(place: Path, command: list[str], launched: bool) -> subprocess.CompletedProcess[str]:
    """As one of one process of a launcher, or by itself."""
    names = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **(names if launched else {})}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), environment.get("PYTHONPATH", "")])
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def run(place: Path, stage: int, parts: int = 1) -> list[list]:
    place.mkdir()
    (place / "script.py").write_text(SCRIPT.format(tests=str(ROOT / "tests"), stage=stage, parts=parts))
    start(place, [sys.executable, "script.py"], bool(stage))
    kind, deepspeed, history = json.loads((place / "history.json").read_text())
    assert deepspeed == bool(stage) and (kind == "DEEPSPEED") == bool(stage)
    return history


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> list[list]:
    return run(tmp_path_factory.mktemp("plain") / "run", 0)


def assert_close(history: list[list], plain: list[list]) -> None:
    assert len(history) == len(plain)
    for row, other in zip(history, plain, strict=True):
        for a, b in zip(row, other, strict=True):
            assert (a is None and b is None) or math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-6), (row, other)


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_takes_the_steps_of_plain_torch(tmp_path, plain, stage):
    assert_close(run(tmp_path / "run", stage), plain)


@pytest.mark.parametrize("stage", [2, 3])
def test_no_micro_batch_is_dropped(tmp_path, plain, stage):
    split = run(tmp_path / "run", stage, parts=2)
    first = next(i for i, row in enumerate(plain) if row[1] == 0)
    assert first >= 4
    assert_close(split[:first], plain[:first])


RESUME = """
import os, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import toy
zero = {{
    "zero_optimization": {{"stage": {stage}, "stage3_gather_16bit_weights_on_model_save": True}},
    "gradient_clipping": "auto", "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
    "zero_force_ds_cpu_optimizer": False, "bf16": {{"enabled": "auto"}},
}}
trainer = toy.trainer(
    Path("run"), deepspeed=zero, use_cpu=False, bf16=True, save_strategy="steps", save_steps=6, max_steps=12
)
trainer.train(resume_from_checkpoint={resume})
print("STEPS", trainer.state.global_step, trainer.counts["sft_steps"] + trainer.counts["grpo_steps"])
trainer.save_model("model")
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.parametrize("stage", [2, 3])
def test_a_run_goes_on_and_a_finished_one_gives_its_model(tmp_path, stage):
    """DeepSpeed casts the weights to bfloat16 and takes them apart in place, so that each resumption was refused as
    that of another run; and a run that had ended died of the engine that it had not started."""
    weights = []
    for resume in ("None", "'run/checkpoint-6'", "True"):
        (tmp_path / "script.py").write_text(RESUME.format(tests=str(ROOT / "tests"), stage=stage, resume=resume))
        done = start(tmp_path, [sys.executable, "script.py"], True)
        assert "STEPS 12 12" in done.stdout
        weights.append(load_file(tmp_path / "model" / "model.safetensors"))
    whole, resumed, finished = weights
    assert all(finished[name].equal(resumed[name]) for name in whole)
    assert all(torch.allclose(resumed[name].float(), whole[name].float(), rtol=0.02, atol=1e-3) for name in whole)
