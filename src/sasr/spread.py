"""Rollouts that need no passes through the model: groups without a spread of rewards, and padding.

Groups without a spread have advantages of 0 and so no gradient (`flat_groups`). As TRL computes them they are 0 up to
rounding alone: eight rewards of .1 have a mean that is not .1 in float32. What is flat is seen in the rewards.

- `keep`: stock TRL; they cost a forward and a backward pass.
- `skip`: they are left out of both. The gradient is that of `keep`.
- `resample`: other questions are asked in their place, as in DAPO (arXiv 2503.14476), in at most `ROUNDS` further
  generations; what is flat then stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad

from .errors import InputError

if TYPE_CHECKING:
    from .config import SASRConfig
    from .rollouts import ObservedGRPOTrainer

CHOICES = ("keep", "skip", "resample")
ROUNDS = 3
_ROUNDING = 1e-6  # of sums in float32, as of .1 + .2 and .3
_ONCE = ("num_items_in_batch",)  # has no row for each rollout
# How TRL divides a micro-batch's loss, where not by the tokens of all micro-batches: by its sequences, or its tokens.
_BY_SEQUENCES = ("grpo", "sapo", "dr_grpo", "luspo")
_BY_TOKENS = ("bnpo",)


def check_settings(args: SASRConfig) -> None:
    """Raise `InputError` for settings with which a flat group has a gradient, or cannot be replaced."""
    if args.flat_groups == "keep":
        return
    for name, harmless in (
        ("beta", 0.0), ("entropy_coef", 0.0), ("use_adaptive_entropy", False), ("top_entropy_quantile", 1.0)
    ):  # fmt: skip
        if getattr(args, name) != harmless:
            raise InputError(
                f"with {name} a group without a spread of rewards acts on the gradient too, but flat_groups "
                f"{args.flat_groups} leaves it out: set {name} to {harmless}, or flat_groups to keep"
            )
    if args.flat_groups == "resample":
        if args.scale_rewards == "batch" or args.multi_objective_aggregation != "sum_then_normalize":
            raise InputError(
                "flat_groups resample needs advantages within groups: set scale_rewards to group or none and "
                "multi_objective_aggregation to sum_then_normalize"
            )
        if args.per_device_train_batch_size * args.steps_per_generation % args.num_generations:
            raise InputError(
                f"flat_groups resample needs whole groups on each device: set per_device_train_batch_size "
                f"({args.per_device_train_batch_size}) x steps_per_generation ({args.steps_per_generation}) to a "
                f"multiple of num_generations ({args.num_generations})"
            )


def total(rewards: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The weighted sum as in TRL: functions that gave `None` are left out, NaN if all did. Shape (rollouts,)."""
    summed = (rewards.to(weights.device) * weights).nansum(1)
    summed[rewards.isnan().all(1)] = torch.nan
    return summed


def without_spread(rewards: torch.Tensor) -> torch.Tensor:
    """Which groups have equal rewards. Shape (groups, members) -> (groups,); NaN members count for nothing."""
    high, low = rewards.nan_to_num(nan=-torch.inf).amax(1), rewards.nan_to_num(nan=torch.inf).amin(1)
    return high - low <= _ROUNDING * high.abs().clamp(min=1)


def own_part(trainer: ObservedGRPOTrainer, values: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """This rank's part of one value per rollout of all ranks; `own` has as many."""
    start = trainer.args.process_index * len(own)
    return values[start : start + len(own)]


def settle(trainer: ObservedGRPOTrainer, rewards: torch.Tensor, output: dict[str, Any]) -> None:
    """Give exactly 0 to the advantages of this rank's rollouts whose group is flat. Shape of `rewards`: (rollouts of
    all ranks, reward functions)."""
    if trainer.multi_objective_aggregation == "sum_then_normalize":
        rewards = total(rewards, trainer.reward_weights.to(rewards.device)).unsqueeze(1)
    size, own = trainer.num_generations, output["advantages"]
    flat = torch.stack([without_spread(column.reshape(-1, size)) for column in rewards.unbind(1)]).all(0)
    own[own_part(trainer, flat.repeat_interleave(size), own)] = 0.0


def without_flat(trainer: ObservedGRPOTrainer, batch: dict[str, Any], loss_type: str) -> tuple[dict[str, Any], float]:
    """A micro-batch of rollouts without those whose advantage is 0, and the factor that makes its loss that of all.

    At least one stays, so that the step takes place, and equally many on each rank, which must run the same passes.
    """
    advantages = batch["advantages"]
    kept = advantages != 0 if advantages.dim() == 1 else (advantages != 0).any(1)
    count = torch.clamp(kept.sum(), min=1)
    if trainer.args.world_size > 1:
        count = trainer.accelerator.gather(count.reshape(1)).max()
    # Stable: those to keep first, in their order.
    index = torch.argsort((~kept).int(), stable=True)[: int(count)]
    if len(index) == len(kept):
        return batch, 1.0
    (smaller,) = trimmed([{key: value if key in _ONCE else value[index] for key, value in batch.items()}])
    if loss_type in _BY_SEQUENCES:
        return smaller, len(index) / len(kept)
    if loss_type in _BY_TOKENS:
        learnt, of_all = (part["completion_mask"] * part.get("tool_mask", 1) for part in (smaller, batch))
        return smaller, float(learnt.sum() / of_all.sum().clamp(min=1))
    return smaller, 1.0


def trimmed(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Micro-batches of rollouts without the last columns in which all of a micro-batch are padding: TRL pads to the
    longest of a whole generation."""
    width = batches[0]["completion_mask"].size(1)
    lengths = torch.stack([batch["completion_mask"].sum(1).max() for batch in batches]).tolist()
    return [_cut(batch, width, max(length, 1)) for batch, length in zip(batches, lengths, strict=True)]


def _cut(batch: dict[str, Any], width: int, needed: int) -> dict[str, Any]:
    if needed == width:
        return batch
    return {key: value[:, :needed] if _has_columns(key, value, width) else value for key, value in batch.items()}


def _has_columns(key: str, value: Any, width: int) -> bool:
    """Whether it has a value for each token of the completions."""
    return isinstance(value, torch.Tensor) and value.shape[1:] == (width,) and not key.startswith("prompt_")


def refill(trainer: ObservedGRPOTrainer, output: dict[str, Any]) -> dict[str, Any]:
    """Replace this rank's flat groups by groups of further questions, as long as there are any and rounds left."""
    size = trainer.num_generations
    for _ in range(ROUNDS):
        flat = flat_groups(output["advantages"], size)
        needed = torch.tensor([len(flat)], device=trainer.accelerator.device)
        most = int(trainer.accelerator.gather(needed).max()) if trainer.args.world_size > 1 else len(flat)
        if not most:
            break
        fresh = trainer.further_rollouts(most)
        flat_again = set(flat_groups(fresh["advantages"], size))
        good = [g for g in range(most) if g not in flat_again]
        places = dict(zip(flat, good, strict=False))
        output = replace_groups(output, fresh, places, size, trainer._tokenizer.pad_token_id)
    mask = output["completion_mask"] * output.get("tool_mask", 1)
    output["num_items_in_batch"] = trainer.accelerator.gather(mask.sum()).sum()
    return output


def flat_groups(advantages: torch.Tensor, size: int) -> list[int]:
    """Indices of the groups of `size` rollouts that have no advantage but 0. Shape of `advantages`: (rollouts,)."""
    return (advantages.view(-1, size) == 0).all(1).nonzero().flatten().tolist()


def replace_groups(
    old: dict[str, Any], new: dict[str, Any], places: dict[int, int], size: int, pad_token_id: int
) -> dict[str, Any]:
    """`old` rollouts with group `i` replaced by group `places[i]` of the `new` ones; prompts are padded on the left,
    all else on the right."""
    if not places:
        return old
    rows = [i * size + k for i in places for k in range(size)]
    by = [j * size + k for j in places.values() for k in range(size)]
    merged = {}
    for key, value in old.items():
        if key in _ONCE:
            merged[key] = value
            continue
        other = new[key]
        if value.dim() == 2:
            width, fill = max(value.size(1), other.size(1)), pad_token_id if key.endswith("_ids") else 0
            left = key.startswith("prompt_")
            value, other = (
                pad(t, (width - t.size(1), 0) if left else (0, width - t.size(1)), value=fill) for t in (value, other)
            )
        value = value.clone()
        value[rows] = other[by]
        merged[key] = value
    return merged
