"""`SASRTrainer`: TRL's `GRPOTrainer` in which each optimizer step may be SFT on demonstrations, GRPO, or both.

The data flow of one optimizer step:

    signals -> schedule -> plan -> micro-batches (demonstrations and/or prompts) -> one backward pass -> norm -> signals

Everything random that SASR adds is a function of (seed, step) and everything it reads from the data is a stream with an
integer state, so a run resumes bit for bit (`resumable.py`). The private methods of TRL and transformers that it builds
on are listed in `trl_surface.py`. Deviations from the paper (arXiv 2505.13026): g_warmup is a mean by default, SFT and
GRPO have learning rates of their own, and the SFT loss is a mean over the tokens of the global batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from trl import GRPOTrainer

from . import checkpoints, demonstrations, reference
from .budget import Budget
from .config import SASRConfig
from .errors import InputError
from .optimizer_states import OptimizerStates
from .resumable import ResumableGRPOTrainer
from .schedules import GRPO_STEP, Schedule, StepPlan, decide
from .signals import SignalTracker
from .streams import RowStream
from .token_weights import TOKEN_WEIGHTS


class SASRTrainer(ResumableGRPOTrainer):
    """Trainer for step-wise adaptive integration of SFT and GRPO (SASR, arXiv 2505.13026), and its baselines.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]): As in [`~trl.GRPOTrainer`].
        reward_funcs: As in [`~trl.GRPOTrainer`]. May be left out when the schedule never runs GRPO.
        args ([`SASRConfig`]): The settings.
        train_dataset ([`~datasets.Dataset`]): Columns `prompt`, optional `completion` (the demonstration), optional
            `answer` and whatever else the rewards read; standard or conversational. A row with an empty `completion`
            serves GRPO only, a row with an empty reward column (`args.reward_columns`) SFT only.
        demonstration_dataset ([`~datasets.Dataset`], *optional*): Rows with `prompt` and `completion` to use for SFT
            instead of those of `train_dataset`.
        schedule ([`Schedule`], *optional*): A rule of your own; defaults to the one that `args.schedule` names.
        kwargs: All further arguments of [`~trl.GRPOTrainer`] (`eval_dataset`, `processing_class`, `callbacks`,
            `optimizers`, `peft_config`, ...).

    Raises:
        `InputError` (a `ValueError`): no demonstrations for SFT steps, no verifiable rows for GRPO steps, a prompt
        longer than `max_prompt_length`, settings that this combination does not support.
    """

    _tag_names = ("trl", "sasr")
    eos_token_ids: list[int]
    log_completions: bool

    def __init__(
        self,
        model,
        reward_funcs=None,
        args: SASRConfig | None = None,
        train_dataset: Dataset | None = None,
        demonstration_dataset: Dataset | None = None,
        schedule: Schedule | None = None,
        **kwargs: Any,
    ):
        if args is None or not isinstance(args, SASRConfig):
            raise InputError("SASRTrainer needs args=SASRConfig(...): there is no warm-up length that fits all tasks")
        if not isinstance(train_dataset, Dataset):
            raise InputError("train_dataset must be a datasets.Dataset with rows that can be indexed")
        self.schedule = schedule or args.build_schedule()
        if reward_funcs is None:
            reward_funcs = [_no_reward]
        super().__init__(model=model, reward_funcs=reward_funcs, args=args, train_dataset=train_dataset, **kwargs)
        self._stop_at_end_of_turn()
        self._collect_rows(demonstration_dataset)
        self.reference = reference.Reference(self)
        self.tracker = SignalTracker(args.sft_warmup_steps, args.warmup_norm, args.sft_norm_ema)
        self.plan: StepPlan = GRPO_STEP  # of the step under way; before the first one, what stock TRL would do
        self.counts = {"sft_steps": 0, "grpo_steps": 0, "sft_tokens": 0, "rollout_tokens": 0}
        self.optimizer_states: OptimizerStates | None = None
        self._sft_nll = 0.0  # of the step under way, this rank's sum over tokens
        self._sft_items = 0  # completion tokens of the step's global batch
        self._fingerprint: dict[str, Any] | None = None
        self.budget = Budget(self)
        self._check_engine()

    # ---- rows ----

    def _stop_at_end_of_turn(self) -> None:
        # Base models come with a chat template whose end of turn is not their EOS: rollouts would never stop there.
        token = demonstrations.end_of_turn_id(self._tokenizer)
        if token is not None and token not in self.eos_token_ids:
            self.eos_token_ids = [*self.eos_token_ids, token]
            if not self.use_vllm:
                self.generation_config.eos_token_id = self.eos_token_ids
                self.generation_kwargs["eos_token_id"] = self.eos_token_ids

    def _collect_rows(self, demonstration_dataset: Dataset | None) -> None:
        args, rows = self.args, self.train_dataset
        needed = [name for name in args.reward_columns if name in rows.column_names]
        filled = zip(*(rows[name] for name in needed), strict=True) if needed else ((True,) for _ in rows)
        self.rl_rows = [i for i, values in enumerate(filled) if all(v is not None and v != "" for v in values)]
        source = rows if demonstration_dataset is None else demonstration_dataset
        self.demonstrations = []
        if "completion" in source.column_names:
            chosen = [i for i, completion in enumerate(source["completion"]) if completion]
            self.demonstrations = demonstrations.tokenize_demonstrations(
                [source[i] for i in chosen],
                self._tokenizer,
                lambda prompts: self._tokenize_prompts(prompts)[0],
                self.eos_token_ids,
                **self.chat_template_kwargs,
            )
        if args.max_prompt_length is not None:
            prompts = self._tokenize_prompts([rows[i]["prompt"] for i in self.rl_rows])[0] if self.rl_rows else []
            asked = zip(self.rl_rows, prompts, strict=True)
            for where, ids in [*asked, *enumerate(d.prompt_ids for d in self.demonstrations)]:
                if len(ids) > args.max_prompt_length:
                    raise InputError(
                        f"the prompt of row {where + 1} has {len(ids)} tokens, more than max_prompt_length "
                        f"({args.max_prompt_length}): raise the limit or drop the row"
                    )
        uses_sft, uses_grpo = args.kinds_of_steps(self.schedule)
        if uses_sft and not self.demonstrations:
            raise InputError("there are SFT steps but no row has a demonstration: add completions, or use grpo")
        if uses_grpo and not self.rl_rows:
            raise InputError("there are GRPO steps but no row has an answer to verify: add answers, or use sft")
        if uses_grpo and self.reward_funcs == [_no_reward]:
            raise InputError("there are GRPO steps but no reward: pass reward_funcs, or use schedule sft")
        # The two streams must not be the same permutation, or SFT would follow the rollouts' questions.
        self.sft_stream = RowStream(len(self.demonstrations), args.seed + 1)
        self.rl_stream = RowStream(len(self.rl_rows), args.seed, self.shuffle_dataset)

    def _check_engine(self) -> None:
        if self.args.separate_optimizer_states and (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            raise InputError("separate_optimizer_states needs a plain torch optimizer, not DeepSpeed or FSDP")

    def get_train_dataloader(self) -> DataLoader:
        """A counter of micro-batches: the rows come from the streams, because which kind of rows a step needs is only
        known when it begins. One epoch is one pass over the GRPO prompts, or over the demonstrations without any."""
        args, per_step = self.args, self.args.gradient_accumulation_steps
        if self.rl_stream.size:
            prompts = args.generation_batch_size // self.num_generations
            batches = max(self.rl_stream.size // prompts, 1) * args.steps_per_generation * self.num_iterations
        else:
            batches = self.sft_stream.size // (args.per_device_sft_batch_size * args.world_size)
        return DataLoader(range(-(-max(batches, 1) // per_step) * per_step))

    # ---- one step ----

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        for _ in range(num_batches):
            next(epoch_iterator, None)
        self.restore_running_loss()
        self.reference.before_step(self.state.global_step)
        self.plan = self._decide()
        if self.optimizer_states is not None:
            self.optimizer_states.use("sft" if self.plan.kind == "sft" else "grpo")
        self._apply_learning_rate()
        return self._draw_batches(num_batches), None

    def _decide(self) -> StepPlan:
        signals = self.tracker.signals(self.args.seed, self.state.global_step, self.state.max_steps)
        plan = decide(self.schedule, signals)
        # The signals are reduced over ranks and agree; should an engine round them differently, rank 0 decides, since
        # ranks that branch apart would wait for each other for ever.
        return broadcast_object_list([plan])[0] if self.args.world_size > 1 else plan

    def _draw_batches(self, count: int) -> list[dict[str, Any]]:
        batches: list[dict[str, Any]] = [{"plan": self.plan} for _ in range(count)]
        if self.plan.sft_weight:
            size, rank = self.args.per_device_sft_batch_size, self.args.process_index
            drawn = self.sft_stream.take(size * count * self.args.world_size)
            chosen = [self.demonstrations[i] for i in drawn]
            self._sft_items = sum(len(d.completion_ids) for d in chosen)
            self.counts["sft_tokens"] += self._sft_items
            self.state.num_input_tokens_seen += sum(len(d.prompt_ids) + len(d.completion_ids) for d in chosen)
            own = chosen[rank * size * count : (rank + 1) * size * count]
            for i, batch in enumerate(batches):
                part = own[i * size : (i + 1) * size]
                batch["demonstrations"] = demonstrations.collate(part, self._tokenizer.pad_token_id)
        if self.plan.grpo_weight:
            for i, batch in enumerate(batches):
                batch["prompts"] = self._draw_prompts() if self.generates_at(self._step + i) else []
        return batches

    def _draw_prompts(self) -> list[dict[str, Any]]:
        # The same global order and contiguous division over ranks as TRL's sampler, so that groups stay whole.
        size = self.args.per_device_train_batch_size * self.args.steps_per_generation
        drawn = self.rl_stream.take(self.args.generation_batch_size // self.num_generations)
        repeated = [i for i in drawn for _ in range(self.num_generations)]
        rank = self.args.process_index
        return [self.train_dataset[self.rl_rows[i]] for i in repeated[rank * size : (rank + 1) * size]]

    def training_step(self, model, inputs, num_items_in_batch=None):
        if inputs["plan"].grpo_weight:
            return super().training_step(model, inputs, num_items_in_batch)
        # GRPOTrainer's own method would move `_step`, the cursor into the rollouts: some would be trained on twice.
        return super(GRPOTrainer, self).training_step(model, inputs, num_items_in_batch)

    def _prepare_inputs(self, inputs):
        if not isinstance(inputs, dict) or "plan" not in inputs:
            return super()._prepare_inputs(inputs)  # evaluation
        prepared = {"plan": inputs["plan"]}
        if "demonstrations" in inputs:
            prepared["demonstrations"] = self._prepare_input(inputs["demonstrations"])
        if "prompts" in inputs:
            prepared["rollouts"] = super()._prepare_inputs(inputs["prompts"])
            if inputs["prompts"]:
                # TRL's count of completion tokens over ranks, the denominator of its DAPO loss.
                self.counts["rollout_tokens"] += int(prepared["rollouts"]["num_items_in_batch"])
        return prepared

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if "plan" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        plan, losses = inputs["plan"], []
        if "demonstrations" in inputs:
            losses.append(plan.sft_weight * self._sft_loss(model, inputs["demonstrations"]))
        if "rollouts" in inputs:
            losses.append(plan.grpo_weight * super().compute_loss(model, inputs["rollouts"], return_outputs))
        return sum(losses[1:], losses[0])

    def _sft_loss(self, model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Sum of -w log pi over this micro-batch's completion tokens / tokens of the *global* batch, times the number
        of ranks because DDP averages gradients over them. Shapes (batch, length)."""
        labels = batch["labels"][:, 1:]
        with self.accelerator.autocast():
            if self.temperature == 1.0:
                logps = model(**batch, fused_lm_head=True).log_probs  # 0 where there is no label
            else:
                # TRL's fused head divides logits by the sampling temperature, which the likelihood must not.
                outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
                logits = outputs.logits[:, :-1].float()
                logps = -torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        self._sft_nll -= float(logps.detach().sum())
        weights = TOKEN_WEIGHTS[self.plan.token_weight](logps)
        return -(weights * logps).sum() / self._sft_items * self.accelerator.num_processes

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        self._finish_step(_as_float(norm))
        return norm

    def _finish_step(self, norm: float | None) -> None:
        """After the last micro-batch and before the optimizer acts: take the signals, log them."""
        plan, metrics, step = self.plan, self._metrics["train"], self.state.global_step
        if plan.kind == "sft":
            self.tracker.observe_sft_norm(step, norm)
        if plan.grpo_weight and self.beta:
            kl = metrics["kl"][-self.current_gradient_accumulation_steps :]
            self.tracker.observe_divergence(sum(kl) / len(kl))
        for kind in ("sft", "grpo"):
            self.counts[f"{kind}_steps"] += plan.kind in (kind, "both")
        metrics["sasr/p_sft"].append(plan.sft_probability)
        metrics["sasr/sft_weight"].append(plan.sft_weight)
        metrics["sasr/grpo_weight"].append(plan.grpo_weight)
        for name in ("sft_grad_norm", "warmup_grad_norm", "divergence"):
            value = getattr(self.tracker, name)
            if value is not None:
                metrics[f"sasr/{name}"].append(value)
        for name, value in self.counts.items():
            metrics[f"sasr/{name}"] = [float(value)]
        if plan.sft_weight:
            nll = torch.tensor(self._sft_nll, dtype=torch.float64).to(self.accelerator.device, torch.float32)
            nll = self.accelerator.reduce(nll, reduction="sum") if self.args.world_size > 1 else nll
            metrics["sasr/sft_loss"].append(float(nll) / self._sft_items)
            self._sft_nll = 0.0

    # ---- learning rates ----

    def create_scheduler(self, num_training_steps, optimizer=None):
        warmup = self.args.sft_warmup_steps
        if warmup > num_training_steps:
            raise InputError(f"sft_warmup_steps ({warmup}) is longer than the run ({num_training_steps} steps)")
        scheduler = super().create_scheduler(max(num_training_steps - warmup, 1), optimizer)
        if not isinstance(scheduler, LambdaLR):
            raise InputError(f"lr_scheduler_type {self.args.lr_scheduler_type} depends on its history: use another")
        shapes = scheduler.lr_lambdas
        scheduler.lr_lambdas = [lambda step, shape=shape: shape(max(step - warmup, 0)) for shape in shapes]
        if self.args.separate_optimizer_states:
            self.optimizer_states = OptimizerStates(getattr(self.optimizer, "optimizer", self.optimizer))
        return scheduler

    def _apply_learning_rate(self) -> None:
        args, step = self.args, self.state.global_step
        rate, shaped = args.learning_rate, True
        if self.plan.kind == "sft":
            shaped = step >= args.sft_warmup_steps
            rate = args.sft_hybrid_learning_rate if shaped else args.sft_learning_rate
        for group, shape in zip(self.optimizer.param_groups, self.lr_scheduler.lr_lambdas, strict=True):
            # `initial_lr` is learning_rate unless the user's own optimizer gave groups rates of their own: keep ratios.
            scale = rate / args.learning_rate
            group["lr"] = group["initial_lr"] * scale * (shape(self.lr_scheduler.last_epoch) if shaped else 1.0)

    def _get_learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    # ---- logging ----

    def log(self, logs, start_time=None):
        # Without new rollouts TRL would write an old or empty table of completions.
        keep = self.log_completions
        self.log_completions = keep and self.plan.grpo_weight > 0
        try:
            super().log(logs, start_time)
        finally:
            self.log_completions = keep

    # ---- state ----

    def fingerprint(self) -> dict[str, Any]:
        """What a checkpoint must share with the run that resumes from it. Computed once: it reads all rows."""
        if self._fingerprint is None:
            ids = ({"ids": d.completion_ids} for d in self.demonstrations)
            model = self.accelerator.unwrap_model(self.model)
            facts = {
                "world_size": self.args.world_size,
                "rule": f"{type(self.schedule).__qualname__} {vars(self.schedule)}",
                "data": checkpoints.digest_rows([*self.train_dataset, *ids]),
                "parameters": sum(p.numel() for p in model.parameters()),
                "dtype": str(model.dtype),
                **_adapter_settings(model),
            }
            self._fingerprint = checkpoints.fingerprint(self.args.to_dict(), **facts)
        return self._fingerprint

    def run_state(self, directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        if self.optimizer_states is not None and self.args.should_save:
            self.optimizer_states.save(directory)
        state = {
            "sft_position": self.sft_stream.position,
            "rl_position": self.rl_stream.position,
            "signals": self.tracker.state_dict(),
            "counts": self.counts,
            "budget": self.budget.state_dict(),
            "active_moments": self.optimizer_states.active if self.optimizer_states else None,
        }
        return state, {"probe": self.reference.probe}

    def is_over(self, state: dict[str, Any]) -> bool:
        return self.budget.is_spent(state)

    def load_run_state(self, directory: Path, state: dict[str, Any], tensors: dict[str, Any]) -> None:
        self.sft_stream.position = state["sft_position"]
        self.rl_stream.position = state["rl_position"]
        self.tracker.load_state_dict(state["signals"])
        self.counts.update(state["counts"])
        self.budget.load(state)
        if self.optimizer_states is not None:
            self.optimizer_states.load(directory, state["active_moments"])
        self.reference.resume(self.state.global_step, tensors["probe"])


def _adapter_settings(model) -> dict[str, Any]:
    """Every setting of the PEFT adapters that decides what is computed, such as `lora_alpha`."""
    found: dict[str, Any] = {}
    for name, config in getattr(model, "peft_config", {}).items():
        prefix = "" if name == "default" else f"{name}."
        for key, value in config.to_dict().items():
            if key not in ("base_model_name_or_path", "inference_mode", "auto_mapping"):
                # a set has another order in each process
                found[f"adapter {prefix}{key}"] = sorted(value) if isinstance(value, set | frozenset) else value
    return found


def _no_reward(completions, **columns):
    """Stands in for a reward where none is needed."""
    return [0.0] * len(completions)


def _as_float(norm) -> float | None:
    if norm is None:
        return None
    if hasattr(norm, "full_tensor"):  # FSDP2 gives a DTensor
        norm = norm.full_tensor()
    return float(norm)
