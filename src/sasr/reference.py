"""What the policy is measured against: the reference model of `beta`, and the divergence d_t of the dual-metric rule.

Which policy is the reference is a setting. `"initial"` is the model before the warm-up. `"warmup"` is the policy at the
end of the warm-up, as if the warm-up had been a run of its own: then d_t is the drift in the hybrid phase alone, and
the SFT of the warm-up does not itself call for more SFT.

d_t with `beta > 0` is GRPO's KL term (KL(policy || reference) on the last rollouts; 0 until there are any). Otherwise
the reference policy answers a fixed set of prompts once, and d_t is KL(reference || policy) on those answers by the
estimator r - 1 - log r, r = policy / reference, per token (http://joschu.net/blog/kl-approx.html), every N steps.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate.utils import broadcast_object_list
from peft import PeftModel
from safetensors.torch import load_file, save_file
from trl.trainer.callbacks import SyncRefModelCallback
from trl.trainer.utils import pad

from . import randomness
from .checkpoints import writing
from .errors import InputError
from .schedules import Sasr
from .streams import RowStream

if TYPE_CHECKING:
    from .trainer import SASRTrainer

# In a directory of its own: vLLM loads every *.safetensors beside the model's, as if it were a part of it.
FILE = Path("reference_model", "weights.safetensors")


class Reference:
    """The reference policy of one run.

    Args:
        trainer ([`SASRTrainer`]): The trainer it belongs to.

    Attributes:
        kind (`str`): `"initial"` or `"warmup"`.
        probe (`dict[str, torch.Tensor]` or `None`): The reference's answers: `input_ids` and `attention_mask` of shape
            (prompts, length), `mask` and `logps` of shape (prompts, longest answer). Saved with every checkpoint.
    """

    def __init__(self, trainer: SASRTrainer):
        args = trainer.args
        self.trainer = trainer
        self.probe: dict[str, torch.Tensor] | None = None
        only_initial = bool(trainer.beta) and isinstance(trainer.model, PeftModel)
        if only_initial and args.reference_model == "warmup":
            raise InputError(
                "reference_model=warmup with PEFT and beta > 0: the reference is the base model without adapter, "
                "so only initial is possible"
            )
        self.kind = args.reference_model or ("initial" if only_initial else "warmup")
        self._copies = bool(trainer.beta) and self.kind == "warmup" and args.sft_warmup_steps > 0
        if self._copies and (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):
            raise InputError("beta > 0 under DeepSpeed or FSDP: set reference_model to initial")
        self._moves = bool(trainer.beta) and args.sync_ref_model and trainer.ref_model is not None
        weight = trainer.schedule.divergence_weight if isinstance(trainer.schedule, Sasr) else 0.0
        self._wanted = weight > 0
        if self._wanted and not trainer.beta and not trainer.rl_rows:
            raise InputError("divergence_weight > 0 needs rows with answers: the probe asks their prompts")

    @property
    def _start(self) -> int:
        return self.trainer.warmup.bound if self.kind == "warmup" else 0

    def before_step(self, step: int) -> None:
        """Called before each optimizer step with its index: sets the reference at its time, measures d_t."""
        trainer = self.trainer
        if self._copies and step == self._start:
            self._copy_policy()
        if not self._wanted:
            return
        if trainer.beta:
            if trainer.tracker.divergence is None:
                trainer.tracker.observe_divergence(0.0)
            return
        if self.probe is None and step == self._start:
            self.probe = self._ask()
        if step >= trainer.warmup.bound:
            since = step - trainer.warmup.bound
            if since % trainer.args.divergence_every == 0:
                trainer.tracker.observe_divergence(self._measure())

    def save(self, directory: Path) -> None:
        """Write the reference model into a checkpoint, if it goes on changing."""
        if self._moves and self.trainer.args.should_save:
            self._write(directory / FILE)

    def resume(self, step: int, probe: dict[str, torch.Tensor] | None, directory: Path) -> None:
        """Restore what the checkpoint of this step in this directory had."""
        self.probe = probe
        moves = self._moves and not self.trainer._shares_warmup  # whose run need not have had a reference
        if moves or (self._copies and step > self._start):
            path, own = directory / FILE, Path(self.trainer.args.output_dir) / FILE
            if not moves:
                path = own
                if not own.is_file() and (directory.parent / FILE).is_file() and self.trainer.args.should_save:
                    own.parent.mkdir(parents=True, exist_ok=True)  # gone on with in another directory
                    shutil.copyfile(directory.parent / FILE, own)
                self.trainer.accelerator.wait_for_everyone()
            if not path.is_file():
                raise InputError(f"{path} is missing: the reference model of this run, needed because beta > 0")
            self._reference_module().load_state_dict(load_file(path), strict=False)

    def _reference_module(self) -> torch.nn.Module:
        return self.trainer.accelerator.unwrap_model(self.trainer.ref_model)

    def _copy_policy(self) -> None:
        trainer = self.trainer
        SyncRefModelCallback.sync_target_model(trainer.accelerator.unwrap_model(trainer.model), trainer.ref_model, 1.0)
        if trainer.args.should_save:
            # Written once a run rather than into each checkpoint: it never changes, and is as large as the model.
            path = Path(trainer.args.output_dir) / FILE
            self._write(path)
        trainer.accelerator.wait_for_everyone()

    def _write(self, path: Path) -> None:
        state = {k: v.detach().cpu().clone().contiguous() for k, v in self._reference_module().state_dict().items()}
        temporary = path.with_suffix(".tmp")
        with writing("the reference model", path.parents[1]):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(state, temporary)
            temporary.replace(path)

    def _ask(self) -> dict[str, torch.Tensor]:
        trainer = self.trainer
        rows = RowStream(len(trainer.rl_rows), trainer.args.seed + 2).take(
            min(trainer.args.divergence_probe, len(trainer.rl_rows))
        )
        prompts = [trainer.train_dataset[trainer.rl_rows[i]]["prompt"] for i in rows]
        prompt_ids, _, _ = trainer._tokenize_prompts(prompts)
        with randomness.kept(trainer.accelerator.device):
            # The same seed on every rank: all ask the same questions and get the same answers.
            randomness.seed(trainer.args.seed, trainer.accelerator.device)
            training = trainer.model.training  # not yet in a run that resumes here: dropout would draw in one of two
            trainer.model.eval()
            answer_ids, _ = trainer._generate_single_turn(prompt_ids, None, {}, 1)
            trainer.model.train(training)
        trainer.work.forward(sum(map(len, [*prompt_ids, *answer_ids])) * trainer.args.world_size)
        pad_id = trainer._tokenizer.pad_token_id
        prompts_t = [torch.tensor(ids) for ids in prompt_ids]
        answers_t = [torch.tensor(ids) for ids in answer_ids]
        ones = [torch.ones_like(ids) for ids in answers_t]
        mask = pad(ones, padding_value=0, padding_side="right")
        probe = {
            "input_ids": torch.cat(
                [
                    pad(prompts_t, padding_value=pad_id, padding_side="left"),
                    pad(answers_t, padding_value=pad_id, padding_side="right"),
                ],
                dim=1,
            ),
            "attention_mask": torch.cat(
                [pad([torch.ones_like(t) for t in prompts_t], padding_value=0, padding_side="left"), mask], dim=1
            ),
            "mask": mask,
        }
        probe["logps"] = self._logps(probe)
        return probe

    def _measure(self) -> float:
        probe = self.probe
        assert probe is not None, "the reference answers the probe before it is measured"
        log_r = self._logps(probe) - probe["logps"]
        per_token = torch.exp(log_r) - 1 - log_r
        divergence = float((per_token * probe["mask"]).sum() / probe["mask"].sum())
        return broadcast_object_list([divergence])[0] if self.trainer.args.world_size > 1 else divergence

    @torch.no_grad()
    def _logps(self, probe: dict[str, torch.Tensor]) -> torch.Tensor:
        trainer, model = self.trainer, self.trainer.model
        device, was_training = trainer.accelerator.device, model.training
        trainer.work.forward(int(probe["attention_mask"].sum()) * trainer.args.world_size)  # all ranks do the same
        model.eval()  # no dropout: it would add noise and move the random state
        logps, _, _ = trainer._get_per_token_logps_and_entropies(
            model,
            probe["input_ids"].to(device),
            probe["attention_mask"].to(device),
            probe["mask"].size(1),
            batch_size=trainer.args.per_device_train_batch_size,
        )
        model.train(was_training)
        return logps.cpu().float()
