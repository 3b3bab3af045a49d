"""The SFT loss of a micro-batch of demonstrations, and what is measured on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from trl.trainer.utils import entropy_from_logits

from . import fused_head
from .token_weights import TOKEN_WEIGHTS

if TYPE_CHECKING:
    from .trainer import SASRTrainer


def sft_loss(trainer: SASRTrainer, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sum of -w log pi over this micro-batch's completion tokens / tokens of the *global* batch, times the number of
    ranks because DDP averages gradients over them. Shapes (batch, length)."""
    advantages = batch.pop("advantages", torch.ones(1, 1, device=batch["labels"].device))
    logps, entropies = log_likelihoods(trainer, model, batch)
    nll_B = -logps.detach().sum(1)
    is_one_B = (batch["labels"][:, 1:] != -100).any(1)  # not what stands in for none
    trainer.sft_sums += torch.stack([nll_B.sum(), entropies.sum(), (is_one_B * (-nll_B).exp()).sum()])
    plan = trainer.plan
    weights = TOKEN_WEIGHTS[plan.token_weight](logps, advantages, plan.token_parameter)
    return -(weights * logps).sum() / trainer.chosen.tokens * trainer.accelerator.num_processes


def log_likelihoods(
    trainer: SASRTrainer, model: torch.nn.Module, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """log pi of a micro-batch's completion tokens, and the policy's entropies there, without gradient: nats, of shape
    (batch, length - 1), 0 elsewhere."""
    labels = batch["labels"][:, 1:]
    with trainer.accelerator.autocast():
        if trainer.temperature == 1.0:
            with fused_head.labelled_only(labels.device):
                output = model(**batch, fused_lm_head=True)
            # Of a model that is split over devices they are where its head is.
            return output.log_probs.to(labels.device), output.entropy.detach().to(labels.device)
        # TRL's fused head divides logits by the sampling temperature, which the likelihood must not.
        outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        logits = outputs.logits[:, :-1].float()
        logps = -torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        return logps, entropy_from_logits(logits.detach()) * (labels != -100)


def measured(trainer: SASRTrainer) -> tuple[float, float, float]:
    """Negative log-likelihood and entropy, nats per completion token of the global batch, and the mean likelihood of
    its whole demonstrations, in [0, 1]; to be asked once a step."""
    sums = trainer.sft_sums.clone()
    if trainer.args.world_size > 1:
        sums = trainer.accelerator.reduce(sums, reduction="sum")
    trainer.sft_sums.zero_()
    nll, entropy, likelihood = sums.tolist()
    chosen = trainer.chosen
    return nll / chosen.tokens, entropy / chosen.tokens, likelihood / len(chosen.demonstrations)
