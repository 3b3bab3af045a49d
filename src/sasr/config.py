"""The settings of training: `SASRConfig` is TRL's `GRPOConfig` plus what SASR needs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from trl import GRPOConfig

from . import agreement, ahead, budget, held_out, plugins, safeguards, setting_checks, spread, step_costs, warmup
from .errors import InputError, require
from .metrics import METRICS_FILE, read_metrics, sft_share
from .model_files import expand
from .precision import settle_precision
from .redaction import redacted_parts, without_hub_tokens
from .schedules import SCHEDULES, Schedule
from .selection import check_fresh, check_study
from .signals import SignalTracker
from .task_config import setting


@dataclass
class SASRConfig(GRPOConfig):
    r"""
    Configuration of [`SASRTrainer`]: all of [`~trl.GRPOConfig`], and the settings below (arXiv 2505.13026).

    The shape of the learning rate (`lr_scheduler_type`, `warmup_steps`) spans the steps after the SFT warm-up; in the
    warm-up the rate is constant, because a decaying one makes the warm-up's gradient norm, the scale of SASR's rule,
    meaningless. On a CPU (`use_cpu`, or no accelerator) `bf16` and `gradient_checkpointing` are off unless asked for;
    on a GPU that only emulates bfloat16 (T4, V100) `fp16` takes the place of `bf16`. `logging_steps` is 1.

    Args:
        schedule (`str`, *optional*, defaults to `"sasr"`):
            How the steps after the warm-up divide between SFT and GRPO: a name in `sasr.SCHEDULES`, or a class of your
            own as `module:Class`.
        sft_warmup_steps (`int`, *optional*, defaults to `0`):
            W: optimizer steps of SFT before the schedule takes over. `"sasr"` needs at least one. `"auto"`: until SFT
            has done what it can do (`warmup_until`), at most half of `max_steps`.
        held_out_demonstrations (`int`, *optional*, defaults to `0`):
            So many demonstrations, drawn by the seed, are kept from SFT. Every 5 steps their loss is measured beside
            that of as many others: `held_out_loss`, and `carry_over`, which falls from 1 to 0 as SFT learns its
            demonstrations by heart. The probability of SFT in the schedule `"sasr"` is multiplied by `carry_over`, and
            `useful_passes` is not used (see `sasr.held_out`).
        warmup_until (`str`, *optional*, defaults to `"steps"`):
            `"plateau"`: `sft_warmup_steps` is only the longest warm-up; it ends when the slope of the SFT loss has
            fallen to a quarter of its steepest. `"agreement"`: when the SFT gradients agree with each other a quarter
            as well as they did at most, which needs `separate_optimizer_states` and AdamW. `"held_out"`: when the loss
            of `held_out_demonstrations` has stopped falling (see `sasr.warmup`). `sft_warmup_steps="auto"` implies
            `"held_out"` where there are any, else `"agreement"` where that is possible, else `"plateau"`.
        warmup_min_steps (`int`, *optional*, defaults to `0`):
            With all three: shortest warm-up.
        warmup_anneal (`float`, *optional*, defaults to `0.0`):
            With all three: so many more SFT steps after it, as a share of those before, at
            `sft_hybrid_learning_rate`.
        switch_step (`int`, *optional*):
            `"static"` only: first GRPO step. Defaults to the end of the warm-up.
        sft_share (`float`, *optional*, defaults to `0.5`):
            `"random"`: probability of SFT in each step, such as the share that another run had.
        match_run (`str`, *optional*):
            `"random"`: directory of another run, whose share of SFT steps after its warm-up becomes `sft_share`, and
            `share_of` `"steps"`.
        mu_peak (`float`, *optional*, defaults to `0.9`):
            `"chord_mu"`: weight of the SFT loss at the end of the warm-up; GRPO's is 1 - mu (arXiv 2508.11408).
        mu_valley (`float`, *optional*, defaults to `0.05`):
            `"chord_mu"`: weight of the SFT loss after `mu_decay_steps`.
        mu_decay_steps (`int`, *optional*, defaults to `200`):
            `"chord_mu"`: steps over which mu falls along a cosine.
        mu (`float`, *optional*, defaults to `0.1`):
            `"chord_phi"`: weight of the SFT loss, whose tokens are weighted by p (1 - p) (arXiv 2508.11408).
        hpt_gate (`int`, *optional*, defaults to `0`):
            `"hpt"`: a question with at most so many correct rollouts is studied by SFT (arXiv 2509.04419).
        luffy_shaping (`float`, *optional*, defaults to `0.1`):
            `"luffy"`: c > 0 of the shaped ratio pi / (pi + c) of the demonstrations' tokens (arXiv 2504.14945).
        hint_steps (`int`, *optional*, defaults to `300`):
            `"uft"`: steps after the warm-up over which the hints before rollouts shrink (arXiv 2505.16984).
        hint_weight (`float`, *optional*, defaults to `0.001`):
            `"uft"`: weight of the likelihood of the hints' tokens.
        gamma (`float`, *optional*, defaults to `1.0`):
            `"sasr"`: pull towards GRPO, > 0. While the SFT gradient norm stays at its warm-up level p_sft is
            1 / (1 + gamma), with `gamma_schedule` `"cosine"` in the middle of the run.
        gamma_schedule (`str`, *optional*, defaults to `"cosine"`):
            `"sasr"`: `"cosine"` lets the pull grow from none to all over the steps (or seconds) after the warm-up,
            along a cosine, so that a run ends with GRPO whatever its warm-up was. `"constant"` is the paper's.
        useful_passes (`float`, *optional*, defaults to `16.0`):
            `"sasr"`: passes over the demonstrations after which their pull has fallen to 1/e: it matters where there
            are few of them. 0: it never falls, as in the paper.
        share_of (`str`, *optional*, defaults to `"auto"`):
            `"sasr"`, `"cosine"`, `"random"`: what p_sft is SFT's share of: the `"steps"`; their `"seconds"`; or their
            `"flops"`, which do not depend on the machine. SFT steps being cheaper, the last two give it more of the
            steps, by the mean costs measured so far (see `sasr.step_costs`). `"auto"`: the seconds for `"sasr"` with
            its growing pull where they are the budget (`max_seconds`), else the steps.
        divergence_weight (`float`, *optional*, defaults to `0.0`):
            `"sasr"`: weight w in [0, 1] of the divergence d_t against the gradient norm. 0 is the gradient-norm rule.
        divergence_target (`float`, *optional*, defaults to `0.1`):
            `"sasr"`: divergence in nats per token that pulls towards SFT as much as an undiminished gradient norm.
        sft_questions (`str`, *optional*, defaults to `"all"`):
            Which demonstrations SFT steps take: `"all"` in turn, or `"failed"`, first those of questions that failed in
            rollouts (a rollout is correct if the first reward function gives it at least 1).
        failed_threshold (`float`, *optional*, defaults to `0.0`):
            A question has failed if at most this share of its rollouts is correct.
        failed_decay (`float`, *optional*, defaults to `0.9`):
            Of the failed questions those are drawn whose failure is recent: the weight of one falls by this factor with
            each step. 0: strictly the last ones first; 1: all alike.
        flat_groups (`str`, *optional*, defaults to `"keep"`):
            Groups of rollouts without a spread of rewards, which have no gradient: `"keep"`; `"skip"`, leave them out
            of the forward and backward pass; or `"resample"`, ask others in their place (arXiv 2503.14476).
        rollouts_ahead (`int`, *optional*, defaults to `0`):
            While SFT steps run, a process of its own generates for the next GRPO step, with weights at most so many
            optimizer steps older than those that are trained (see `sasr.ahead`). 0: each step generates for itself.
        curriculum (`str`, *optional*, defaults to `"auto"`):
            How the rows' `difficulty` orders questions and demonstrations after the warm-up: `"none"`, not at all;
            `"easy_to_hard"`; `"adaptive"`, most where half of the rollouts succeed; or `"auto"`, which is `"adaptive"`
            where a tenth of the questions are harder than every demonstration, else `"none"` (see `sasr.curriculum`).
        divergence_every (`int`, *optional*, defaults to `10`):
            With `divergence_weight > 0` and `beta = 0`: measure d_t on the probe every so many steps. With `beta > 0`
            GRPO's own KL term of the last rollouts is d_t, 0 before the first.
        divergence_probe (`int`, *optional*, defaults to `16`):
            Number of prompts of that probe; the reference policy answers each once.
        warmup_norm (`str`, *optional*, defaults to `"mean"`):
            g_warmup: `"mean"` over the last half of the warm-up, `"first"` over its first 10 steps, or `"last"`, the
            literal reading of the paper.
        sft_norm (`str`, *optional*, defaults to `"batch"`):
            What counts as the SFT gradient norm: `"batch"`, of the step's demonstrations (the paper's), or
            `"repeatable"`, the part of it along the mean of the SFT gradients before, without the noise of the batch
            (`sasr.agreement`).
        sft_norm_ema (`float`, *optional*, defaults to `0.0`):
            g_last is the exponential mean of the SFT gradient norms with this decay in [0, 1); 0 is the last norm.
        sft_norm_every (`int`, *optional*, defaults to `0`):
            After so many steps without a new SFT gradient norm, measure that of the next SFT batch without taking a
            step: it costs an SFT step's time. 0: only SFT steps measure it, as in the paper.
        sft_learning_rate (`float`, *optional*):
            Learning rate of SFT steps in the warm-up. Defaults to `learning_rate`, which is GRPO's.
        sft_hybrid_learning_rate (`float`, *optional*):
            Learning rate of SFT steps after the warm-up. Defaults to `sft_learning_rate`.
        per_device_sft_batch_size (`int`, *optional*):
            Demonstrations per device and micro-batch of an SFT step, which has `gradient_accumulation_steps` of them.
            Defaults to `per_device_train_batch_size`.
        separate_optimizer_states (`bool`, *optional*, defaults to `False`):
            SFT and GRPO keep their own Adam moments. Needs a torch optimizer, without DeepSpeed or FSDP.
        reference_model (`str`, *optional*):
            What `beta` and the divergence measure against: `"initial"`, the model before the warm-up, or `"warmup"`,
            the policy at its end. Defaults to `"warmup"`; with PEFT and `beta > 0` to `"initial"`, the base model,
            which is then the only one there is.
        reward_columns (`list[str]`, *optional*, defaults to `["answer"]`):
            Dataset columns that the rewards need: a row where one is empty serves SFT only.
        reward_failures (`str`, *optional*, defaults to `"count"`):
            What it means that a completion could not be judged (a reward function raised, hung or gave no number; the
            verifier of a task timed out or crashed): `"count"`, it is left out of its group and counted in
            `verifier_failures`, until nothing could be judged three generations in a row; or `"stop"` at the first.
        reward_timeout (`float`, *optional*, defaults to `600.0`):
            Seconds that one call of a reward function, for all completions of a device, may take; 0 for no limit.
        max_prompt_length (`int`, *optional*, defaults to `512`):
            Longest prompt in tokens; a longer one is an error at the start, not a silent cut.
        max_skipped_steps (`int`, *optional*, defaults to `5`):
            A step whose gradient norm or SFT loss is no finite number is skipped; so many in a row end the run. With
            fp16 the loss scaler skips such steps, as often as it needs; with DeepSpeed the first one ends the run.
        on_collapse (`str`, *optional*, defaults to `"warn"`):
            When GRPO collapses (see `sasr.watch`): `"warn"` alone; `"sft"`, make half of the GRPO steps SFT steps for
            40 steps; `"rollback"`, go back to the weights of the best exam that has a checkpoint (`exam_every`), with
            fresh Adam moments.
        max_seconds (`float`, *optional*):
            Budget: end the run after the step in which so many seconds have been spent inside optimizer steps, exams
            and saving apart. `max_steps` stays the upper bound; a resumed run goes on counting, and may be given more.
            Needs a constant learning rate and a schedule that does not read the number of steps.
        max_rollout_tokens (`int`, *optional*):
            Budget: end the run after the step in which so many rollout tokens have been generated; as `max_seconds`,
            and not with `"cosine"` or a `gamma_schedule` that grows.
        warmup_from (`str`, *optional*):
            Directory of another run, or its checkpoint at step W: start from the end of its warm-up instead of doing
            the same one again. Whatever decides the warm-up must be equal.
        save_minutes (`float`, *optional*, defaults to `10.0`):
            Besides those of `save_steps`, a checkpoint after the step in which so many minutes have gone by since the
            last one; later where writing would take more than a twentieth of the time. Only the newest of these is
            kept. 0 for none.
        logging_steps (`float`, *optional*, defaults to `1`):
            Log every so many steps; 1 gives `metrics.jsonl` one line per step.
        gradient_checkpointing (`bool`, *optional*):
            Trade compute for memory. Defaults to on where there is an accelerator, off on a CPU.
    """

    schedule: str = setting(
        "sasr",
        "How steps after the warm-up divide between SFT and GRPO: sasr, sft, grpo, static, alternate, cosine, random, "
        "chord_mu, chord_phi, hpt, relift, luffy, srft, uft, r3, or your own module:Class.",
    )
    sft_warmup_steps: int = setting(
        0, "Optimizer steps of SFT before the schedule takes over, or auto: until SFT has done what it can do."
    )
    warmup_until: str = setting(
        "steps", "plateau, agreement or held_out: what may end the warm-up before sft_warmup_steps."
    )
    warmup_min_steps: int = setting(0, "plateau, agreement, held_out: shortest warm-up.")
    warmup_anneal: float = setting(
        0.0, "plateau, agreement, held_out: more steps, as a share, at sft_hybrid_learning_rate."
    )
    switch_step: int | None = setting(None, "static: first GRPO step. Default: the end of the warm-up.")
    sft_share: float = setting(0.5, "random: probability of SFT in each step.")
    match_run: str | None = setting(None, "random: directory of another run whose share of SFT it takes.")
    mu_peak: float = setting(0.9, "chord_mu: weight of the SFT loss at the end of the warm-up.")
    mu_valley: float = setting(0.05, "chord_mu: weight of the SFT loss after mu_decay_steps.")
    mu_decay_steps: int = setting(200, "chord_mu: steps over which the weight falls.")
    mu: float = setting(0.1, "chord_phi: weight of the SFT loss.")
    hpt_gate: int = setting(0, "hpt: study a question by SFT if at most so many of its rollouts are correct.")
    luffy_shaping: float = setting(0.1, "luffy: c > 0 of the shaped ratio pi / (pi + c) of demonstrations.")
    hint_steps: int = setting(300, "uft: steps after the warm-up over which the hints shrink.")
    hint_weight: float = setting(0.001, "uft: weight of the likelihood of the hints' tokens.")
    gamma: float = setting(1.0, "sasr: pull towards GRPO, > 0; larger means fewer SFT steps.")
    gamma_schedule: str = setting("cosine", "sasr: cosine, a pull that grows over the run, or constant, the paper's.")
    useful_passes: float = setting(
        16.0, "sasr: passes over the demonstrations after which their pull is down to 1/e; 0: never, the paper's."
    )
    share_of: str = setting("auto", "sasr, cosine, random: what p_sft is a share of: steps, seconds, flops, or auto.")
    divergence_weight: float = setting(0.0, "sasr: weight in [0, 1] of the divergence against the gradient norm.")
    divergence_target: float = setting(0.1, "sasr: divergence (nats per token) that counts as a ratio of norms of 1.")
    sft_questions: str = setting("all", "Demonstrations of SFT steps: all in turn, or failed questions first.")
    held_out_demonstrations: int = setting(0, "Demonstrations kept from SFT, to tell learning from learning by heart.")
    failed_threshold: float = setting(0.0, "A question has failed if at most this share of its rollouts is correct.")
    failed_decay: float = setting(0.9, "Weight of a failed question for each step since: 0 the last first, 1 alike.")
    flat_groups: str = setting("keep", "Groups of rollouts without a spread of rewards: keep, skip, or resample.")
    rollouts_ahead: int = setting(0, "Generate during SFT steps, with weights at most so many steps old; 0 for never.")
    curriculum: str = setting("auto", "Rows by difficulty after the warm-up: auto, none, easy_to_hard or adaptive.")
    divergence_every: int = setting(10, "sasr: measure the divergence every so many steps (when beta is 0).")
    divergence_probe: int = setting(16, "sasr: prompts in the divergence probe (when beta is 0).")
    warmup_norm: str = setting("mean", "Warm-up gradient norm: mean (over its last half), first (10 steps) or last.")
    sft_norm: str = setting("batch", "SFT gradient norm: batch (the paper's), or its repeatable part.")
    sft_norm_ema: float = setting(0.0, "Decay in [0, 1) of the exponential mean of SFT gradient norms; 0 = the last.")
    sft_norm_every: int = setting(0, "Measure the SFT gradient norm after so many steps without one; 0 = never.")
    sft_learning_rate: float | None = setting(None, "Learning rate of SFT in the warm-up. Default: learning_rate.")
    sft_hybrid_learning_rate: float | None = setting(
        None, "Learning rate of SFT after the warm-up. Default: sft_learning_rate."
    )
    per_device_sft_batch_size: int | None = setting(
        None, "Demonstrations per device and micro-batch. Default: per_device_train_batch_size."
    )
    separate_optimizer_states: bool = setting(False, "SFT and GRPO keep their own Adam moments.")
    reference_model: str | None = setting(
        None, "What beta and the divergence measure against: initial, or warmup (the policy at its end; default)."
    )
    reward_columns: list[str] = field(
        default_factory=lambda: ["answer"],
        metadata={"help": "Columns that the rewards need; rows where one is empty serve SFT only."},
    )
    reward_failures: str = setting("count", "A completion that could not be judged: count (and leave it out), or stop.")
    reward_timeout: float = setting(600.0, "Seconds that one call of a reward function may take; 0 for no limit.")
    save_minutes: float = setting(10.0, "Checkpoint too after so many minutes without one; the newest is kept. 0: no.")
    logging_steps: float = setting(1, "Log every so many steps; 1 gives metrics.jsonl one line per step.")
    gradient_checkpointing: bool | None = setting(None, "Trade compute for memory. Default: on where a GPU is used.")
    max_prompt_length: int | None = setting(512, "Longest prompt in tokens; a longer one is an error at the start.")
    max_skipped_steps: int = setting(5, "End a run when so many steps in a row have gradients that are not finite.")
    on_collapse: str = setting("warn", "When GRPO collapses: warn, sft (more of it for a while), or rollback.")
    max_seconds: float | None = setting(None, "End after so many seconds inside optimizer steps, exams apart.")
    max_rollout_tokens: int | None = setting(None, "End after so many generated rollout tokens.")
    warmup_from: str | None = setting(None, "Start from the end of the equal warm-up of another run: its directory.")

    def __post_init__(self):
        warmup.resolve_auto(self)
        # Measured on CPU: bf16 autocast is 1.5x slower, faster with AMX; checkpointing costs 17%.
        on_cpu = self.use_cpu or not torch.accelerator.is_available()
        self.precision_notes = settle_precision(self, on_cpu)
        if on_cpu and self.bf16:
            self.use_cpu: bool = True  # transformers would refuse bf16 here without it
        if self.gradient_checkpointing is None:
            self.gradient_checkpointing = not on_cpu
        if self.ddp_find_unused_parameters is None:
            # Each step uses every weight that is trained, so DDP need not search each backward pass for others.
            self.ddp_find_unused_parameters: bool | None = False
        if self.max_grad_norm is None or not 0 <= self.max_grad_norm < math.inf:
            raise InputError(
                f"max_grad_norm is {self.max_grad_norm}: set a number (1.0 is usual; 0 measures without clipping)"
            )
        require("num_generations", self.num_generations, lambda v: v >= 2, "2 or more, a group to compare within")
        if getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type) == "reduce_lr_on_plateau":
            raise InputError("lr_scheduler_type reduce_lr_on_plateau depends on its history: use another")
        try:
            super().__post_init__()
        except ValueError as error:
            if "divisible by num_generations" not in str(error):
                raise
            raise InputError(
                f"num_generations ({self.num_generations}) must divide the rollouts of one generation, which are "
                f"per_device_train_batch_size ({self.per_device_train_batch_size}) x steps_per_generation "
                f"({self.steps_per_generation}) x processes = {self.generation_batch_size}: change one of them"
            ) from None
        setting_checks.check_values(self)
        schedule = self.build_schedule()  # once: one of the user's own is run from its file
        self._check_warmup(schedule)
        setting_checks.check_scheduler(self)
        setting_checks.check_optimizer(self)
        setting_checks.check_liger(self)
        budget.check_budget(self, schedule)
        check_study(self, schedule)
        spread.check_settings(self)
        agreement.check_settings(self)
        held_out.check_settings(self, schedule)
        ahead.check_settings(self)
        safeguards.check_settings(self)
        setting_checks.check_report_to(self)
        setting_checks.check_processes(self)
        setting_checks.check_batches(self)
        self._check_rollouts(schedule)
        if self.sft_learning_rate is None:
            self.sft_learning_rate = self.learning_rate
        if self.sft_hybrid_learning_rate is None:
            self.sft_hybrid_learning_rate = self.sft_learning_rate
        if self.per_device_sft_batch_size is None:
            self.per_device_sft_batch_size = self.per_device_train_batch_size

    def check_schedule(self, schedule: Schedule) -> None:
        """Raise `InputError` for settings that do not go with a schedule, which may be another than they name."""
        self._check_warmup(schedule)
        self._check_rollouts(schedule)

    def _check_warmup(self, schedule: Schedule) -> None:
        if schedule.needs_warmup and self.sft_warmup_steps < 1:
            raise InputError(
                f"schedule {self.schedule} compares with the warm-up's gradient norm: set sft_warmup_steps to 1 or more"
            )

    def _check_rollouts(self, schedule: Schedule) -> None:
        if getattr(schedule, "needs_fresh_rollouts", False):
            check_fresh(self, self.schedule)
            if self.flat_groups == "resample":
                raise InputError(f"schedule {self.schedule} studies flat groups too: set flat_groups to keep or skip")

    def take_share_of_match(self) -> None:
        if self.match_run is None:
            return
        if self.schedule != "random" or self.sft_share != type(self).__dataclass_fields__["sft_share"].default:
            raise InputError("match_run is for schedule random, in place of sft_share: remove one of the settings")
        if self.share_of not in (step_costs.AUTO, "steps"):
            raise InputError(
                f"match_run takes the other run's share of the steps, not of its {self.share_of}: leave share_of out"
            )
        self.sft_share, self.share_of = sft_share_of(self.match_run), "steps"

    @property
    def share_unit(self) -> str:
        """What `share_of` comes to: a unit of `sasr.step_costs`."""
        if self.share_of != step_costs.AUTO:
            return self.share_of
        # Its pull grows over the seconds already. With a constant one a run takes the same steps whatever ends it.
        grows = self.schedule == "sasr" and self.gamma_schedule == "cosine"
        return "seconds" if self.max_seconds is not None and grows else "steps"

    def kinds_of_steps(self, schedule: Schedule) -> tuple[bool, bool]:
        """Whether the run can contain (SFT, GRPO) steps, or measure them, and so needs demonstrations, verifiable
        answers. With `num_train_epochs` the length is not known yet: there is at least one step after the warm-up."""
        known = self.max_steps > 0
        sft, grpo = schedule.uses(self.sft_warmup_steps, self.max_steps if known else self.sft_warmup_steps + 1)
        return sft or self.sft_norm_every > 0 or self.on_collapse == "sft", grpo

    def to_dict(self) -> dict[str, Any]:
        """As transformers has it for trackers and checkpoints, without tokens; here also without those inside of
        settings, such as the `token` of `model_init_kwargs`, and with what `share_of` comes to."""
        return redacted_parts({**super().to_dict(), "share_of": self.share_unit})

    def __getstate__(self) -> dict[str, Any]:
        """What transformers saves as `training_args.bin`, and uploads with `push_to_hub`: without its tokens."""
        return {**without_hub_tokens(self.__dict__), "hub_token": None}

    def build_warmup(self) -> warmup.Warmup:
        """The rule of the warm-up's length, at its beginning."""
        return warmup.Warmup(self.sft_warmup_steps, self.warmup_until, self.warmup_min_steps, self.warmup_anneal)

    def build_tracker(self, of: warmup.Warmup) -> SignalTracker:
        """What measures the signals of a run with this warm-up, at its beginning."""
        least = agreement.LEAST if self.sft_norm == "repeatable" else 0.0
        return SignalTracker(of.bound, self.warmup_norm, self.sft_norm_ema, open_end=of.steps is None, least=least)

    def build_schedule(self) -> Schedule:
        """The schedule object that `schedule` names, with its settings."""
        if self.schedule not in SCHEDULES:
            return plugins.load(
                self.schedule, "schedule", _is_schedule, "schedule with plan(signals), uses(...) and needs_warmup"
            )
        cls, names = SCHEDULES[self.schedule]
        settings = {name: getattr(self, name) for name in names}
        if self.schedule == "static" and settings["switch_step"] is None:
            # Static never switches before the warm-up's end, wherever that comes to lie.
            settings["switch_step"] = self.sft_warmup_steps if self.warmup_until == "steps" else 0
        return cls(**settings)


def sft_share_of(run: str) -> float:
    """Share of SFT among a run's steps after the warm-up. Raises `InputError` if there are none, or not all logged."""
    lines = read_metrics(expand(run) / METRICS_FILE)
    share = sft_share(lines)
    if share is None:
        raise InputError(f"{run} has no steps after its warm-up, so no share of SFT: let it run first")
    if any(later["step"] - line["step"] > 1 for line, later in pairwise(lines)):
        raise InputError(f"{run} did not log every step, so its share of SFT is not known: run it with logging_steps 1")
    return share


def _is_schedule(found) -> bool:
    return all(callable(getattr(found, name, None)) for name in ("plan", "uses")) and hasattr(found, "needs_warmup")
