"""What the tests of rollouts by vLLM share: scripts in a process of their own, and a vLLM server."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from urllib.request import urlopen

from sasr.rollout_engine import SERVER_COMMAND

TESTS = Path(__file__).parent
LIMIT = 900  # seconds; a script takes less than 30 and a server starts in 40, unless others use the cores
COMMON = """
import json, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import toy
out = Path({out!r})
"""
# On one machine and without a GPU.
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "VLLM_HOST_IP": "127.0.0.1"}


def run_script(tmp_path: Path, body: str) -> None:
    """Run `body` in a process of its own, because vLLM and the trainer leave process groups behind. It finds `out`, the
    directory `tmp_path`, and the module `toy`."""
    script = tmp_path / "script.py"
    script.write_text(COMMON.format(tests=str(TESTS), out=str(tmp_path)) + body)
    environment = {**os.environ, **ENVIRONMENT, "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=LIMIT
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def check_what_sft_taught_is_said(run: Callable[[Path, str], None], tmp_path: Path) -> None:
    """One training after the other, with `trainer` of `run`: what SFT steps taught is in the next rollout. They teach
    different things, so that it is not there already."""
    run(
        tmp_path,
        """
said = {"77": [], "35": []}
for answer, heard in said.items():
    rows = toy.rows(24).map(lambda row: {"completion": answer, "answer": answer})
    def reward(completions, **_):
        heard.append(completions)
        return [float(len(c)) for c in completions]
    trainer(answer, data=rows, rewards=reward, schedule="static", sft_warmup_steps=40, max_steps=42,
            sft_learning_rate=1e-2).train()
(out / "said.json").write_text(json.dumps(said))
""",
    )
    assert json.loads((tmp_path / "said.json").read_text()) == {answer: [[answer] * 8] * 2 for answer in ("77", "35")}


def check_weights_at_each_rollout(run: Callable[[Path, str], None], tmp_path: Path, least: float = 1.0) -> None:
    """vLLM's log-probabilities of what it samples are the trainer's, whichever kinds of steps came before; with weights
    that are not taken over they are off by more than `least`."""
    run(
        tmp_path,
        """
def differences(name, break_at=None):
    trained = trainer(name, schedule="random", sft_share=0.6, sft_warmup_steps=3, max_steps=20, sft_learning_rate=1e-2,
                      learning_rate=1e-2)
    synchronise = trained.vllm_generation.sync_weights
    if break_at is not None:
        def until():
            if trained.state.global_step < break_at:
                synchronise()
        trained.vllm_generation.sync_weights = until
    trained.train()
    return [[bool(entry["sasr/grpo_weight"]), entry.get("sampling/sampling_logp_difference/max")]
            for entry in trained.state.log_history if "grad_norm" in entry]
(out / "seen.json").write_text(json.dumps([differences("whole"), differences("broken", 6)]))
""",
    )
    whole, broken = json.loads((tmp_path / "seen.json").read_text())
    kinds = [grpo for grpo, _ in whole]
    assert {(False, True), (True, True)} <= set(pairwise(kinds))
    assert max(value for grpo, value in whole if grpo) < 1e-3
    assert max(value for grpo, value in broken if grpo) > least, "the figure shows weights that were not taken over"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def server(place: Path, model: Path) -> Iterator[tuple[str, Path]]:
    """The address and the log of a `vllm serve` that takes weights over `store_transport`. It and its children are gone
    at the end; `server.pid` in `place` names their process group.

    Args:
        place (`Path`): For the log, and for what makes a plugin of `store_transport`: vLLM loads plugins in each of its
            processes.
        model (`Path`): Directory of the model and its tokenizer.
    """
    plugin = "[vllm.general_plugins]\nstore_transport = store_transport:register\n"
    _describe(place, "store_transport", "0", plugin)
    # The command line asks for the version of a package vllm, and ends where it is called vllm-cpu.
    _describe(place, "vllm", f"{vllm_version()}+cpu", "")
    port, log = free_port(), place / "server.log"
    variable, _vllm, *words = shlex.split(SERVER_COMMAND.replace("nccl", "store").replace("MODEL", str(model)))
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", *words, "--host", "127.0.0.1", "--port", str(port)]
    # Compiling would take minutes, and bfloat16, which vLLM makes of float32, blur a comparison.
    command += ["--enforce-eager", "--dtype", "float32", "--max-model-len", "64"]
    paths = [str(place), str(TESTS), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(paths)}
    environment |= dict([variable.split("=")])
    with open(log, "w") as output:
        process = subprocess.Popen(
            command, cwd=place, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    (place / "server.pid").write_text(str(process.pid))
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(url, process, log)
        yield url, log
    finally:
        process.terminate()  # it gives its shared memory back
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with suppress(ProcessLookupError):  # none is left
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def vllm_version() -> str:
    with suppress(PackageNotFoundError):
        return version("vllm")
    return version("vllm-cpu")


def _describe(place: Path, package: str, number: str, entry_points: str) -> None:
    """Let Python find a package of this name and version in `place`."""
    about = place / f"{package}-{number}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {number}\n")
    (about / "entry_points.txt").write_text(entry_points)


def _wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        try:
            with urlopen(f"{url}/health", timeout=10):
                return
        except OSError:
            pass
        try:
            process.wait(0.2)
        except subprocess.TimeoutExpired:
            continue
        break
    raise AssertionError(f"the server did not start: status {process.poll()}\n{log.read_text()[-8000:]}")
