"""`python sharded_run.py DIRECTORY [CHECKPOINT]`: the toy training as one of several processes; writes history.json.

accelerate falls back from FSDP2 to DDP on CPUs, because it asks for another kind of distributed state there. Here it is
told that kind, so that what runs is FSDP2, over gloo.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import DistributedType

if os.environ.get("ACCELERATE_USE_FSDP") == "true":
    original = PartialState.__init__

    def as_if_on_gpus(self, *args, **kwargs):
        original(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    PartialState.__init__ = as_if_on_gpus

import toy

KEYS = ("sasr/p_sft", "sasr/sft_weight", "grad_norm", "sasr/sft_grad_norm", "sasr/sft_loss", "loss", "reward")


def main(directory: Path, checkpoint: str | None = None) -> None:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    batch = {"per_device_train_batch_size": 8 // world, "per_device_sft_batch_size": 8 // world}
    trainer = toy.trainer(directory, **batch, save_strategy="steps", save_steps=6)
    trainer.train(resume_from_checkpoint=checkpoint)
    kinds = [trainer.accelerator.distributed_type.value, type(next(trainer.model.parameters())).__name__]
    if trainer.is_world_process_zero():
        (directory / "history.json").write_text(json.dumps([kinds, toy.history(trainer, *KEYS)]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
    sys.stdout.flush()
    os._exit(0)  # gloo may abort a process that takes Python apart (pytorch/pytorch, pull 179291)
