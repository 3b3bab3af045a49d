"""What is measured and logged in an optimizer step, after its last micro-batch and before the optimizer acts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import agreement, safeguards
from .norm_probe import as_float
from .sft_loss import measured

if TYPE_CHECKING:
    from .trainer import SASRTrainer


def finish_step(trainer: SASRTrainer, norm: Any) -> None:
    """Take the signals of the step and log them; `norm` is the global gradient norm before clipping, as transformers
    returns it."""
    norm = as_float(norm)
    plan, step = trainer.plan, trainer.state.global_step
    micro_batches = trainer.current_gradient_accumulation_steps
    metrics = trainer._metrics["train"]
    tracker, tokens = trainer.tracker, trainer.chosen.tokens
    agrees = None
    if plan.kind == "sft":
        agrees = agreement.observe(trainer, step, norm)
        if agrees is not None:
            metrics["sasr/sft_agreement"].append(agrees)
    if plan.grpo_weight and trainer.beta:
        tracker.observe_divergence(_mean(metrics["kl"][-micro_batches:]))
    # A step of both may have found no demonstration to study.
    trainer.counts["sft_steps"] += tokens > 0
    trainer.counts["grpo_steps"] += plan.grpo_weight > 0
    share = trainer.chosen.sft_share
    metrics["sasr/p_sft"].append(plan.sft_probability if share is None else share)
    metrics["sasr/sft_weight"].append(plan.sft_weight)
    metrics["sasr/grpo_weight"].append(plan.grpo_weight)
    for name, value in (
        ("sft_grad_norm", tracker.current_norm),
        ("warmup_grad_norm", tracker.warmup_grad_norm),
        ("divergence", tracker.divergence),
        ("held_out_loss", tracker.held_out_loss),
        ("carry_over", tracker.carry_over),
        ("grpo_cost", None if trainer.costs.unit == "steps" or step < tracker.warmup_steps else trainer.costs.ratio),
    ):
        if value is not None:
            metrics[f"sasr/{name}"].append(value)
    work = trainer.work.finish_step()
    trainer.costs.observe(plan.kind, flops=work["flops"])
    for name, value in work.items():
        metrics[f"sasr/{name}"].append(value)
    for name, value in trainer.counts.items():
        metrics[f"sasr/{name}"] = [float(value)]
    nll = None
    if tokens:
        nll, entropy, likelihood = measured(trainer)
        tracker.observe_likelihood(likelihood)
        metrics["sasr/sft_loss"].append(nll)
        if tracker.left_to_learn is not None:
            metrics["sasr/left_to_learn"].append(tracker.left_to_learn)
        metrics["num_tokens"] = [trainer.state.num_input_tokens_seen]  # TRL logs it with new rollouts only
        if step < trainer.warmup.bound:
            trainer.warmup.observe(step, nll, agrees, tracker.held_out_loss)
            tracker.warmup_steps = trainer.warmup.bound
    if trainer.warmup.ends_at(step + 1):
        tracker.end_warmup(step + 1)
    if plan.grpo_weight:
        tracker.observe_entropy(_mean(metrics["entropy"][-micro_batches:]))
        _log_questions(trainer)
    elif tokens:
        tracker.observe_entropy(entropy)
    safeguards.after_gradients(trainer, norm, nll)


def _log_questions(trainer: SASRTrainer) -> None:
    metrics, selection, levels = trainer._metrics["train"], trainer.selection, trainer.levels
    if selection.outcomes:
        known = [share == 0 for share in selection.outcomes if share is not None]
        if known:
            metrics["sasr/unsolved"].append(_mean(known))
        metrics["sasr/failed_waiting"] = [float(len(selection.failed_at))]
        if trainer.args.flat_groups == "resample":
            metrics["sasr/questions"].append(float(len(selection.outcomes)))
    if levels.of_question:
        asked = [*selection.asked_before, *selection.asked]
        metrics["sasr/difficulty"].append(_mean([levels.of_question[row] for row in asked]))
    for level, rate in levels.success().items():
        metrics[f"sasr/success/{level:g}"] = [rate]


def _mean(values) -> float:
    return float(sum(values) / len(values))
