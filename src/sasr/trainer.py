"""`SASRTrainer`: TRL's `GRPOTrainer` in which each optimizer step may be SFT on demonstrations, GRPO, or both.

The data flow of one optimizer step:

    signals -> schedule -> plan -> micro-batches (demonstrations and/or prompts) -> one backward pass -> norm -> signals

Everything random that SASR adds is a function of (seed, step) and everything it reads from the data is a stream with an
integer state, so a run resumes bit for bit (`resumable.py`). The private methods of TRL and transformers that it builds
on are listed in `trl_surface.py`. Deviations from the paper (arXiv 2505.13026): g_warmup is a mean by default, SFT and
GRPO have learning rates of their own, and the SFT loss is a mean over the tokens of the global batch.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from torch.utils.data import DataLoader
from trl import GRPOTrainer

from . import (
    checkpoints,
    engine_checks,
    learning_rates,
    norm_probe,
    quantised,
    recording,
    reference,
    safeguards,
    spread,
    step_state,
    training_rows,
)
from .ahead import RolloutsAhead
from .budget import Budget, depends_on_length
from .config import SASRConfig
from .errors import InputError
from .held_out import HeldOut
from .optimizer_states import OptimizerStates
from .reward_guard import no_reward
from .rollouts import ObservedGRPOTrainer
from .schedules import BEFORE_THE_STEP, GRPO_STEP, TIED_TO_ROLLOUTS, Schedule, StepPlan, decide
from .selection import Chosen, Selection, check_fresh, check_queue, divide
from .sft_loss import sft_loss
from .step_costs import AUTO, StepCosts
from .step_metrics import finish_step
from .streams import RowStream
from .watch import Watch
from .work import Work


class SASRTrainer(ObservedGRPOTrainer):
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
        if kwargs.get("environment_factory") is not None:
            raise InputError("environment_factory is not supported: demonstrations do not show what it adds")
        self.schedule = schedule or args.build_schedule()
        args.check_schedule(self.schedule)
        if reward_funcs is None:
            reward_funcs = [no_reward]
        super().__init__(model=model, reward_funcs=reward_funcs, args=args, train_dataset=train_dataset, **kwargs)
        quantised.adapters_in_float32(self.model)
        self.stop_at_end_of_turn()
        self._collect_rows(demonstration_dataset)
        self.warmup = args.build_warmup()
        self.tracker = args.build_tracker(self.warmup)
        self.reference = reference.Reference(self)
        self.plan: StepPlan = GRPO_STEP  # of the step under way; before the first one, what stock TRL would do
        self.watch = Watch()
        self.tell: safeguards.Tell = logging.getLogger("sasr").warning  # of the watch; a live view takes it over
        self.counts = dict.fromkeys(("sft_steps", "grpo_steps", "demonstrations", "sft_tokens", "rollout_tokens"), 0)
        self.optimizer_states: OptimizerStates | None = None
        self.selection = Selection(self)
        self.chosen = Chosen([])  # the demonstrations of the step under way, of all ranks
        self._parts: list[dict[str, Any] | None] = []  # this rank's, by micro-batch
        # Of the step under way, this rank's over tokens: negative log-likelihood, entropy; over demonstrations: their
        # likelihood. Read once a step: each look at a GPU's tensor waits for the GPU.
        self.sft_sums = torch.zeros(3, device=self.accelerator.device)
        self._fingerprint: dict[str, Any] | None = None
        # Now: DeepSpeed and FSDP change the model in place, to another dtype and to parts of its weights.
        self._model_facts = checkpoints.model_facts(self.accelerator.unwrap_model(self.model))
        self.work = Work(self.accelerator.unwrap_model(self.model), args.steps_per_generation)
        # What is said of schedules by name does not count for an object that takes their place.
        own = schedule is not None and args.share_of == AUTO
        self.costs = StepCosts("steps" if own else args.share_unit)
        self.budget = Budget(self)
        self.before_step = step_state.BeforeStep(self)
        self.ahead = RolloutsAhead(self)
        engine_checks.check(self)
        recording.show_in_notebook(self)

    # ---- rows ----

    def _collect_rows(self, demonstration_dataset: Dataset | None) -> None:
        args = self.args
        rows = training_rows.collect(self, demonstration_dataset)
        self.rl_rows, self.demonstrations, kept, self.demonstration_of_row, self.levels, self.curriculum = rows
        self.held_out = HeldOut(self, kept)
        uses_sft, uses_grpo = args.kinds_of_steps(self.schedule)
        if uses_grpo:
            check_queue(args, len(set(self.demonstration_of_row.values())))
        if uses_sft and not self.demonstrations:
            raise InputError(
                "there are SFT steps or probes but no row has a demonstration: add completions, or use grpo"
            )
        if uses_grpo and not self.rl_rows:
            raise InputError("there are GRPO steps but no row has an answer to verify: add answers, or use sft")
        if uses_grpo and self.reward_funcs == [no_reward]:
            raise InputError("there are GRPO steps but no reward: pass reward_funcs, or use schedule sft")
        self.guard_rewards()
        # The two streams must not be the same permutation, or SFT would follow the rollouts' questions.
        self.sft_stream = RowStream(len(self.demonstrations), args.seed + 1)
        self.rl_stream = RowStream(len(self.rl_rows), args.seed, self.shuffle_dataset)

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
        self.budget.begin_step()
        for _ in range(num_batches):
            next(epoch_iterator, None)
        self.restore_running_loss()
        self.before_step.begin()
        safeguards.before_step(self)
        self.reference.before_step(self.state.global_step)
        self.held_out.before_step(self.state.global_step)
        norm_probe.before_step(self, num_batches)
        self.plan = self._decide()
        if self.optimizer_states is not None:
            self.optimizer_states.use("sft" if self.plan.kind == "sft" else "grpo")
        learning_rates.apply(self)
        self.ahead.before_step()
        return self.draw_batches(num_batches), None

    def _decide(self) -> StepPlan:
        seed, step, end = self.args.seed, self.state.global_step, self.state.max_steps
        waiting, spent, passes = self.selection.waiting_batches, self.budget.share, self.selection.passes
        signals = self.tracker.signals(seed, step, end, waiting, spent, passes, grpo_cost=self.costs.ratio)
        plan = decide(self.schedule, signals)
        plan = safeguards.adjusted(self, plan)
        if plan.demonstrations == "all":
            plan = replace(plan, demonstrations=self.args.sft_questions)
        if plan.demonstrations in TIED_TO_ROLLOUTS:
            check_fresh(self.args, self.args.schedule)
        # The signals are reduced over ranks and agree; should an engine round them differently, rank 0 decides, since
        # ranks that branch apart would wait for each other for ever.
        return broadcast_object_list([plan])[0] if self.args.world_size > 1 else plan

    def draw_batches(self, count: int, counted: bool = True) -> list[dict[str, Any]]:
        plan, args = self.plan, self.args
        batches: list[dict[str, Any]] = [{"plan": plan, "index": i} for i in range(count)]
        self._parts, self.chosen = [None] * count, Chosen([])
        if plan.sft_weight and plan.demonstrations in BEFORE_THE_STEP:
            size = args.per_device_sft_batch_size * count * args.world_size
            self._study(self.selection.before_step(plan, size), counted)
        if plan.grpo_weight:
            for i, batch in enumerate(batches):
                if self.generates_at(self._step + i):
                    batch["asked"], batch["made"] = self.ahead.take()
                batch["prompts"] = self._prompts_of(batch.get("asked", []))
        return batches

    def _study(self, chosen: Chosen, counted: bool = True) -> None:
        """Take these demonstrations of all ranks for the step under way."""
        args, self.chosen = self.args, chosen
        self._parts = divide(
            chosen, len(self._parts), args.process_index, args.world_size, self._tokenizer.pad_token_id
        )
        tokens = sum(d.length for d in chosen.demonstrations)
        self.work.train(tokens, counted)
        if counted:
            self.counts["demonstrations"] += len(chosen.demonstrations)
            self.counts["sft_tokens"] += chosen.tokens
            self.state.num_input_tokens_seen += tokens

    def take_questions(self, count: int) -> list[int]:
        """The next rows of the training dataset for GRPO to ask."""
        if self.curriculum is not None:
            return self.curriculum.take_questions(count, self._progress)
        return [self.rl_rows[i] for i in self.rl_stream.take(count)]

    def take_demonstrations(self, count: int) -> list[int]:
        """The indices of the next demonstrations."""
        if self.curriculum is not None and self.state.global_step >= self.warmup.bound:
            return self.curriculum.take_demonstrations(count, self._progress)
        return self.sft_stream.take(count)

    @property
    def _progress(self) -> float:
        done, steps = self.state.global_step - self.warmup.bound, self.state.max_steps - self.warmup.bound
        return min(max(done / max(steps, 1), 0.0), 1 - 1e-9)

    def _prompts_of(self, asked: list[int]) -> list[dict[str, Any]]:
        # The same global order and contiguous division over ranks as TRL's sampler, so that groups stay whole.
        repeated = [row for row in asked for _ in range(self.num_generations)]
        size, rank = len(repeated) // self.args.world_size, self.args.process_index
        own = repeated[rank * size : (rank + 1) * size]
        rows = {row: self.train_dataset[row] for row in dict.fromkeys(own)}  # decoding a row from Arrow is slow
        return [copy.deepcopy(rows[row]) for row in own]

    def further_rollouts(self, groups: int) -> dict[str, Any]:
        self.selection.asked_before += self.selection.asked
        self.selection.asked = self.take_questions(groups * self.args.world_size)
        return self._generate_and_score_completions(self._prompts_of(self.selection.asked))

    def hints_for_rollouts(self):
        if self.plan.demonstrations != "hints":
            return []
        hints = self.selection.hints(self.plan)
        if self.plan.sft_weight:
            self._study(self.selection.hinted(hints))
        repeated = [hint for hint in hints for _ in range(self.num_generations)]
        size = len(repeated) // self.args.world_size
        return repeated[self.args.process_index * size : (self.args.process_index + 1) * size]

    def on_rollouts(self, rewards, output):
        # TRL's count of completion tokens over ranks, the denominator of its DAPO loss.
        made = int(output["num_items_in_batch"])
        if self.mask_truncated_completions:  # it leaves those out, which were generated all the same
            made = round(self._metrics["train"]["completions/mean_length"][-1] * len(rewards))
        self.counts["rollout_tokens"] += made
        passes = sum(f"{policy}_per_token_logps" in output for policy in ("old", "ref"))
        self.work.rollouts(self.generated_tokens, passes, refill=self.refilling)
        chosen, output["advantages"] = self.selection.after_rollouts(self.plan, rewards, output)
        if chosen is not None:
            self._study(chosen)

    def training_step(self, model, inputs, num_items_in_batch=None):
        if inputs["plan"].grpo_weight:
            return super().training_step(model, inputs, num_items_in_batch)
        # GRPOTrainer's own method would move `_step`, the cursor into the rollouts: some would be trained on twice.
        return super(GRPOTrainer, self).training_step(model, inputs, num_items_in_batch)

    def _prepare_inputs(self, inputs):
        if not isinstance(inputs, dict) or "plan" not in inputs:
            return super()._prepare_inputs(inputs)  # evaluation
        prepared = {"plan": inputs["plan"]}
        if "prompts" in inputs:
            if "asked" in inputs:
                # A step may generate several times: whose rollouts come now is not known when its rows are drawn.
                self.selection.asked, self.made_ahead = inputs["asked"], inputs["made"]
                self.selection.asked_before, self.selection.outcomes = [], []
            prepared["rollouts"] = super()._prepare_inputs(inputs["prompts"])
        part = self._parts[inputs["index"]]  # only now: the rollouts may have decided it
        if part is not None:
            prepared["demonstrations"] = self.on_device(part)
        return prepared

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if "plan" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        plan, losses, chosen = inputs["plan"], [], self.chosen
        if "demonstrations" in inputs:
            losses.append(plan.sft_weight * chosen.sft_scale * self._sft_loss(model, inputs["demonstrations"]))
        if "rollouts" in inputs:
            rollouts, scale = inputs["rollouts"], chosen.grpo_scale
            count = len(rollouts["advantages"])
            if self.args.flat_groups == "skip":
                rollouts, part = spread.without_flat(self, rollouts, self.loss_type)
                scale *= part
            self.work.train_rollouts(len(rollouts["advantages"]) / count)
            losses.append(plan.grpo_weight * scale * super().compute_loss(model, rollouts, return_outputs))
        return sum(losses[1:], losses[0])

    def _sft_loss(self, model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return sft_loss(self, model, batch)

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        finish_step(self, norm)
        return norm

    # ---- learning rates ----

    def create_scheduler(self, num_training_steps, optimizer=None):
        warmup = self.args.sft_warmup_steps
        if warmup > num_training_steps:
            raise InputError(f"sft_warmup_steps ({warmup}) is longer than the run ({num_training_steps} steps)")
        scheduler = super().create_scheduler(max(num_training_steps - warmup, 1), optimizer)
        learning_rates.begin_after_warmup(self, scheduler)
        if self.args.separate_optimizer_states:
            self.optimizer_states = OptimizerStates(getattr(self.optimizer, "optimizer", self.optimizer))
        return scheduler

    def _get_learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    # ---- logging ----

    def log(self, logs, start_time=None):
        trained = self.model.training and self._metrics["train"].get("sasr/tokens")  # and not evaluated
        rate = self.work.tokens_per_second() if trained else None
        if rate is not None:
            logs["sasr/tokens_per_second"] = rate
        # Without new rollouts TRL would write an old or empty table of completions.
        keep = self.log_completions
        self.log_completions = keep and self.unlogged_rollouts
        try:
            super().log(logs, start_time)
        finally:
            self.log_completions, self.unlogged_rollouts = keep, False

    # ---- state ----

    def fingerprint(self) -> dict[str, Any]:
        """What a checkpoint must share with the run that resumes from it. Computed once: it reads all rows."""
        if self._fingerprint is None:
            ids = ({"ids": d.completion_ids} for d in self.demonstrations)
            facts = {
                "world_size": self.args.world_size,
                "depends_on_length": depends_on_length(self.args, self.schedule),
                "share_of": self.costs.unit,
                "rule": f"{type(self.schedule).__qualname__} {_settings_of(self.schedule)}",
                "data": checkpoints.digest_rows([*self.train_dataset, *ids]),
                **self._model_facts,
            }
            self._fingerprint = checkpoints.fingerprint(self.args.to_dict(), **facts)
        return self._fingerprint

    def after_failure(self) -> None:
        self.before_step.save()

    def run_state(self, directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        if self.optimizer_states is not None and self.args.should_save:
            self.optimizer_states.save(directory)
        self.reference.save(directory)
        state = {
            **step_state.collect(self),
            "ahead": self.ahead.save(directory),
            "active_moments": self.optimizer_states.active if self.optimizer_states else None,
        }
        return state, {"probe": self.reference.probe}

    def is_over(self, state: dict[str, Any]) -> bool:
        return self.budget.is_spent(state)

    def load_run_state(self, directory: Path, state: dict[str, Any], tensors: dict[str, Any]) -> None:
        step_state.load(self, state)
        self.ahead.load(directory, state.get("ahead"))
        if self.optimizer_states is not None:
            self.optimizer_states.load(directory, state["active_moments"])
        self.reference.resume(self.state.global_step, tensors["probe"], directory)


def _settings_of(schedule: Schedule) -> dict[str, Any]:
    """Also of a rule with slots."""
    if hasattr(schedule, "__dict__"):
        return vars(schedule)
    return {field.name: getattr(schedule, field.name) for field in fields(schedule)} if is_dataclass(schedule) else {}
