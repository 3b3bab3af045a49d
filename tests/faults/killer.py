"""`python killer.py PHASE COUNT DEED train ...`: the command `sasr`, to which something happens in the COUNT-th time
that it comes to a phase.

Nothing of the run is replaced: the function of the phase is called as ever. DEED is `KILL:SECONDS` or `TERM:SECONDS`,
a signal to the process so many seconds after the phase has begun, or `run:COMMAND`, a shell command before it begins.
With `FAULT_RANK` only the process of that rank is concerned. `now PHASE` is printed when it comes.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import subprocess
import sys
import threading
import time

# phase -> (module, attribute)
PHASES = {
    "start": ("sasr.run", "build_trainer"),
    "generation": ("transformers.generation.utils", "GenerationMixin.generate"),
    "backward": ("accelerate", "Accelerator.backward"),
    "optimizer step": ("torch.optim", "AdamW.step"),
    "writing a checkpoint": ("sasr.resumable", "ResumableGRPOTrainer._save_checkpoint"),
    "publishing a checkpoint": ("sasr.checkpoints", "publish"),
    "deleting old checkpoints": ("sasr.resumable", "rotate_checkpoints"),
    "loading a checkpoint": ("sasr.resumable", "ResumableGRPOTrainer._load_optimizer_and_scheduler"),
    "cutting metrics": ("sasr.metrics", "MetricsFile.truncate_after"),
    "writing metrics": ("sasr.metrics", "MetricsFile.append"),
    "exam": ("sasr.callbacks", "examine_rows"),
    "writing an exam": ("sasr.callbacks", "write_atomically"),
    "writing the model": ("transformers", "PreTrainedModel.save_pretrained"),
    "report": ("sasr.run", "report_quietly"),
}


def happens_in(phase: str, count: int, deed: str) -> None:
    """Arrange it."""
    module, name = PHASES[phase]
    owner = importlib.import_module(module)
    *above, attribute = name.split(".")
    for part in above:
        owner = getattr(owner, part)
    original, calls = getattr(owner, attribute), 0
    kind, _, how = deed.partition(":")

    def send() -> None:
        time.sleep(float(how))
        os.kill(os.getpid(), signal.SIGKILL if kind == "KILL" else signal.SIGTERM)

    @functools.wraps(original)
    def wrapped(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == count:
            print(f"now {phase}", flush=True)
            if kind == "run":
                subprocess.run(how, shell=True, check=True)
            else:
                threading.Thread(target=send, daemon=True).start()
        return original(*args, **kwargs)

    setattr(owner, attribute, wrapped)


if __name__ == "__main__":
    if os.environ.get("RANK", "0") == os.environ.get("FAULT_RANK", "0"):
        happens_in(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    from sasr.cli import main

    sys.exit(main(sys.argv[4:]))
