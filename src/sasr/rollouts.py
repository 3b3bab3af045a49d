"""`ResumableGRPOTrainer` whose rollouts can be looked at before they are trained on, and can begin with a hint."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import send_to_device
from trl.data_utils import is_conversational
from trl.trainer.utils import remove_none_values

from . import fused_head, generation_defaults, prefill, spread
from .adapters import base_of
from .ahead import Made, RolloutsAhead
from .demonstrations import Ids, end_of_turn_id
from .errors import InputError
from .input_hooks import keep_one_hook
from .resumable import ResumableGRPOTrainer
from .reward_guard import RewardGuard

NO_HINTS = "rollout_func does not show the policy the hints of a demonstration: leave it out, or use another schedule"


class ObservedGRPOTrainer(ResumableGRPOTrainer):
    """Adds two hooks to the generation of rollouts: [`hints_for_rollouts`] before, [`on_rollouts`] after.

    Attributes:
        generated_tokens (`int`): Of the rollouts made last, of all ranks, prompts included.
        refilling (`bool`): They are asked for in place of flat groups.
        generations (`int`): That made the rollouts at hand: those in place of flat groups are further ones.
        ahead ([`RolloutsAhead`]): Makes rollouts while SFT steps run.
        made_ahead ([`Made`] or `None`): Those that take the place of the next generation.
    """

    eos_token_ids: list[int]
    _hints: list[Ids] | None = None
    generated_tokens = 0
    unlogged_rollouts = False
    refilling = False
    generations = 0
    ahead: RolloutsAhead
    made_ahead: Made | None = None
    _new_logps: torch.Tensor
    _rewards_per_func: torch.Tensor
    reward_funcs: list[Any]
    reward_guard: RewardGuard

    def stop_at_end_of_turn(self) -> None:
        """Let rollouts end with the chat template's end of turn too."""
        generation_defaults.make_savable(base_of(self.model).generation_config)
        # Base models come with a chat template whose end of turn is not their EOS: rollouts would never stop there.
        token = end_of_turn_id(self._tokenizer)
        if token is not None and token not in self.eos_token_ids:
            self.eos_token_ids = [*self.eos_token_ids, token]
            # The saved model's too: whoever generates with it would run on to the token limit.
            base_of(self.model).generation_config.eos_token_id = self.eos_token_ids
            if not self.use_vllm:
                self.generation_config.eos_token_id = self.eos_token_ids
                self.generation_kwargs["eos_token_id"] = self.eos_token_ids
        if self.use_vllm:
            # By itself vLLM stops at the EOS of the model's directory alone.
            engine = self.vllm_generation
            engine.generation_kwargs = {"stop_token_ids": self.eos_token_ids, **engine.generation_kwargs}

    def guard_rewards(self) -> None:
        """Let no reward function end the training, or give a reward that is none (`sasr.reward_guard`)."""
        self.reward_guard = RewardGuard(self)
        self.reward_funcs = self.reward_guard.wrap(self.reward_funcs, self.reward_func_names)

    def hints_for_rollouts(self) -> list[Ids]:
        """Token ids that this rank's rollouts begin with, one list each, or an empty list for none at all."""
        return []

    def on_rollouts(self, rewards: torch.Tensor, output: dict[str, Any]) -> None:
        """Called with new rollouts: the rewards of all ranks, shape (rollouts, reward functions), and what TRL made of
        this rank's, which may be changed."""

    def further_rollouts(self, groups: int) -> dict[str, Any]:
        """So many groups of rollouts for each rank, of further questions."""
        raise NotImplementedError

    def rewards_of(self, inputs: list[dict[str, Any]], completion_ids: list[Ids]) -> torch.Tensor:
        """What the reward functions give completions that are no rollouts, shape (completions, reward functions). To be
        called on all ranks with the same ones."""
        prompts = [row["prompt"] for row in inputs]
        rewards = super()._calculate_rewards(inputs, prompts, self._texts(prompts, completion_ids), completion_ids)
        # They are no part of what TRL reports on rollouts.
        self._pending_metrics.clear()
        self._pending_extra_logs.clear()
        self.reward_guard.count(rewards, further=True)
        return self.reward_guard.settle(rewards)[: len(inputs)]

    def _texts(self, prompts: list, completion_ids: list[Ids]) -> list:
        texts = self._tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        if not is_conversational({"prompt": prompts[0]}):
            return texts
        return [[{"role": "assistant", "content": text}] for text in texts]

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        failures = self.reward_guard.count(rewards, further=self.refilling)
        self._metrics["train" if self.model.training else "eval"]["verifier_failures"].append(float(failures))
        self._rewards_per_func = self.reward_guard.settle(rewards)
        return self._rewards_per_func

    def train(self, *arguments, **options):
        try:
            return super().train(*arguments, **options)
        finally:
            self.ahead.close()

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        self.generations = self.generations + 1 if self.refilling else 1
        keep_one_hook(self.model)
        self.unlogged_rollouts = True
        if self.model.training:
            if self.made_ahead is not None:
                # TRL takes the present policy's where there are none: the ratio would be 1.
                output["old_per_token_logps"] = self.made_ahead.logps_of_width(output["completion_ids"].size(1))
                self.made_ahead = None
            if self.args.flat_groups != "keep":
                spread.settle(self, self._rewards_per_func, output)
            self.on_rollouts(self._rewards_per_func, output)
            if self.args.flat_groups == "resample" and not self.refilling:
                self.refilling = True
                try:
                    output = spread.refill(self, output)
                finally:
                    self.refilling = False
        return output

    def _prepare_inputs(self, generation_batch):
        rollouts = super()._prepare_inputs(generation_batch)
        whole = self._is_vlm or self.pad_to_multiple_of is not None
        if not self.model.training or whole or not self.generates_at(self._step):
            return rollouts
        self._buffered_inputs = spread.trimmed(self._buffered_inputs)
        return self._buffered_inputs[0]

    def _generate(self, prompts):
        hints = self.hints_for_rollouts() if self.model.training else []
        if any(hints) and self.rollout_func is not None:
            raise InputError(NO_HINTS)
        seen = self.state.num_input_tokens_seen
        self._hints = hints if any(hints) else None
        try:
            prompt_ids, completion_ids, tool_mask, texts, *rest = super()._generate(prompts)
        finally:
            self._hints = None
        if self.model.training:
            self.generated_tokens = self.state.num_input_tokens_seen - seen
        if not any(hints):
            return prompt_ids, completion_ids, tool_mask, texts, *rest
        # The verifier judges the whole answer.
        whole = [hint + list(ids) for hint, ids in zip(hints, completion_ids, strict=True)]
        return prompt_ids, completion_ids, tool_mask, self._texts(prompts, whole), *rest

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, *rest, **options):
        if self.made_ahead is not None and self.model.training:
            return self.made_ahead.completion_ids, None
        arguments = (prompt_ids, images, multimodal_fields, num_generations, *rest)
        if not prefill.applies(self, multimodal=bool(images or multimodal_fields)):
            with generation_defaults.blank(self.model_wrapped):
                return super()._generate_single_turn(*arguments, **options)
        # In mixed precision the weights are then cast once a generation, not once a token.
        once = self.accelerator.autocast()
        # Of what torch.compile wraps: its wrapper does not say which arguments the model takes.
        model = self.accelerator.unwrap_model(self.model_wrapped, keep_torch_compile=False)
        with once, generation_defaults.blank(model), prefill.shared(model, prompt_ids):
            return super()._generate_single_turn(*arguments, **options)

    def _get_per_token_logps_and_entropies(self, *arguments, **options):
        with fused_head.labelled_only(self.accelerator.device):
            found = super()._get_per_token_logps_and_entropies(*arguments, **options)
        found = send_to_device(found, self.accelerator.device)  # from where the head of a split model is
        self._new_logps = found[0].detach()
        return found

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        if self.args.rollouts_ahead and "old_per_token_logps" in inputs and self.model.training:
            mask = inputs["completion_mask"]
            ratio = torch.exp(self._new_logps - inputs["old_per_token_logps"])
            mean = (ratio * mask).sum() / mask.sum().clamp(min=1)
            self._metrics["train"]["sasr/importance_ratio"].append(float(mean))
        return loss

    def _tokenize_prompts(self, prompts):
        # A dataset gives each message the keys of all. Templates ask whether one is there.
        prompt_ids, *rest = super()._tokenize_prompts(remove_none_values(prompts))
        if self._hints is not None:
            prompt_ids = [[*ids, *hint] for ids, hint in zip(prompt_ids, self._hints, strict=True)]
        return prompt_ids, *rest
