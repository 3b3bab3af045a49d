"""Which demonstrations a step learns from: the prompt level of a hybrid method, by name.

| name | demonstrations | chosen |
|---|---|---|
| `all` | the next ones of the stream over all | before the step |
| `failed` | first those of questions that failed in rollouts, drawn by how recently; then `all` | before the step |
| `hints` | the prefixes that the step's rollouts begin with | before the rollouts |
| `gated` | those of questions just asked with few correct rollouts, which GRPO then leaves out | after the rollouts |
| `group` | those of questions just asked, each with its advantage in the group of its rollouts | after the rollouts |

A rollout is correct if the first reward function gives it 1 or more. A question has failed if the share of its correct
rollouts is at most `failed_threshold`. It waits until it is studied, or asked again with more success.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from trl.trainer.utils import nanstd

from .demonstrations import Demonstration, Ids, collate
from .errors import InputError
from .schedules import StepPlan
from .spread import own_part, total, without_spread

if TYPE_CHECKING:
    from .trainer import SASRTrainer

_HINT_PARTS = 5  # of a demonstration, as in UFT


@dataclass(frozen=True)
class Chosen:
    """The demonstrations of one optimizer step, of all ranks.

    Args:
        demonstrations (`list[Demonstration]`): May be none.
        advantages (`list[float]` or `None`): One for each, for token weights that use them.
        sft_scale (`float`), grpo_scale (`float`): Factors of the two losses beside the plan's weights.
        sft_share (`float` or `None`): Share of SFT in the step where only the rollouts tell it.
    """

    demonstrations: list[Demonstration]
    advantages: list[float] | None = None
    sft_scale: float = 1.0
    grpo_scale: float = 1.0
    sft_share: float | None = None

    @property
    def tokens(self) -> int:
        """Completion tokens, the denominator of the SFT loss."""
        return sum(len(d.completion_ids) for d in self.demonstrations)


class Selection:
    """Chooses demonstrations and remembers failed questions. All ranks choose alike.

    Args:
        trainer ([`SASRTrainer`]): The trainer it belongs to, with its rows collected.

    Attributes:
        failed_at (`dict[int, int]`): Indices of the demonstrations of failed questions that wait, each with the step in
            which it failed last: the state.
        asked (`list[int]`): Rows asked in the current rollouts, one per group, in the global order.
        asked_before (`list[int]`): Those before them in the same generation, where flat groups are replaced.
        outcomes (`list[float | None]`): Share of correct rollouts, among those that could be judged, of each question
            of the last generation; `None` where none could.
    """

    def __init__(self, trainer: SASRTrainer):
        self.trainer = trainer
        self.failed_at: dict[int, int] = {}
        self.asked: list[int] = []
        self.asked_before: list[int] = []
        self.outcomes: list[float | None] = []
        self._hinted: set[int] = set()
        self._rewards: dict[int, torch.Tensor] = {}  # of demonstrations

    @property
    def waiting_batches(self) -> float:
        """SFT batches that the failed questions would fill."""
        args = self.trainer.args
        batch = (args.per_device_sft_batch_size or 1) * args.world_size * args.gradient_accumulation_steps
        return len(self.failed_at) / batch

    @property
    def passes(self) -> float:
        """Demonstrations studied so far, whatever chose them, over those that there are; 0 if there are none."""
        return self.trainer.counts["demonstrations"] / max(len(self.trainer.demonstrations), 1)

    def before_step(self, plan: StepPlan, count: int) -> Chosen:
        """`count` demonstrations, for `all` and `failed`."""
        studied = self._failed(count) if plan.demonstrations == "failed" else []
        for index in studied:
            del self.failed_at[index]
        indices = studied + self.trainer.take_demonstrations(count - len(studied))
        return Chosen([self.trainer.demonstrations[i] for i in indices])

    def _failed(self, count: int) -> list[int]:
        """At most `count` of those that wait, drawn without replacement with weights `failed_decay` ** (steps since
        the failure), from (seed, step)."""
        args, step = self.trainer.args, self.trainer.state.global_step

        def arrival(index: int) -> tuple[float, float]:
            age = step - self.failed_at[index]
            # The first of a race of exponential clocks is drawn in proportion to their rates (Efraimidis and Spirakis).
            clock = -math.log(1 - random.Random(f"{args.seed}:failed:{step}:{index}").random())
            if args.failed_decay == 0:
                return float(age), clock
            return math.log(clock or 1e-300) - age * math.log(args.failed_decay), 0.0

        return sorted(self.failed_at, key=arrival)[:count]

    # ---- hints ----

    def hints(self, plan: StepPlan) -> list[Ids]:
        """What the rollouts of each question asked begin with: a number of fifths of its demonstration without the end
        token, the same for all rollouts of the question: Binomial(5, `plan.hint`), or each of 0 to 4 as often. Drawn
        from (seed, step, row)."""
        found: list[Ids] = []
        for row in self.asked:
            rng = random.Random(f"{self.trainer.args.seed}:hint:{self.trainer.state.global_step}:{row}")
            if plan.hint is None:
                parts = rng.randrange(_HINT_PARTS)
            else:
                parts = sum(rng.random() < plan.hint for _ in range(_HINT_PARTS))
            index = self.trainer.demonstration_of_row.get(row)
            ids = [] if index is None else self.trainer.demonstrations[index].completion_ids[:-1]
            found.append(ids[: round(parts / _HINT_PARTS * len(ids))])
        self._hinted = {row for row, hint in zip(self.asked, found, strict=True) if hint}
        return found

    def hinted(self, hints: Sequence[Ids]) -> Chosen:
        """The hints as demonstrations of their questions."""
        pairs = [(self._demonstration(row), hint) for row, hint in zip(self.asked, hints, strict=True) if hint]
        return Chosen([replace(demonstration, completion_ids=hint) for demonstration, hint in pairs])

    def _demonstration(self, row: int) -> Demonstration:
        return self.trainer.demonstrations[self.trainer.demonstration_of_row[row]]

    # ---- what the rollouts showed, for later steps ----

    def state_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return {"failed_at": list(self.failed_at.items()), "levels": self.trainer.levels.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; checkpoints of earlier versions lack some of it."""
        self.failed_at = {index: step for index, step in state.get("failed_at", [])}
        if "levels" in state:
            self.trainer.levels.load_state_dict(state["levels"])

    # ---- after the rollouts ----

    def after_rollouts(
        self, plan: StepPlan, rewards: torch.Tensor, output: dict[str, Any]
    ) -> tuple[Chosen | None, torch.Tensor]:
        """Look at the rollouts: who failed, which demonstrations if the plan asks for any, changed advantages.

        Args:
            plan ([`StepPlan`]): Of the step.
            rewards (`torch.Tensor` of shape (rollouts of all ranks, reward functions)): As the functions gave them.
            output (`dict`): What TRL made of the rollouts.

        Returns:
            The demonstrations of the step, `None` if they do not depend on the rollouts, and this rank's advantages.
        """
        group = self.trainer.num_generations
        correct = (rewards[:, 0] >= 1).view(-1, group).sum(1)
        # By the first function, which says what is correct: another may have judged what this one leaves open.
        unjudged = rewards[:, 0].isnan().view(-1, group).sum(1)
        self._note(correct, unjudged, self._hinted if plan.demonstrations == "hints" else set())
        advantages = output["advantages"]
        if plan.demonstrations == "gated":
            # Those that could not be judged may have been correct.
            return self._gated(plan, correct + unjudged, advantages)
        if plan.demonstrations == "group":
            return self._grouped(plan, rewards, output)
        return None, advantages

    def _note(self, correct: torch.Tensor, unjudged: torch.Tensor, hinted: set[int]) -> None:
        """Take the outcomes of the questions. What was solved with a hint says nothing about its level."""
        trainer = self.trainer
        for row, count, unknown in zip(self.asked, correct.tolist(), unjudged.tolist(), strict=True):
            if unknown == trainer.num_generations:
                self.outcomes.append(None)
                continue  # neither failed nor solved
            share = count / (trainer.num_generations - unknown)
            self.outcomes.append(share)
            if row not in hinted:
                trainer.levels.observe(row, share)
            index = trainer.demonstration_of_row.get(row)
            if index is None:
                continue
            if share <= trainer.args.failed_threshold:
                self.failed_at[index] = trainer.state.global_step
            else:
                self.failed_at.pop(index, None)

    def _gated(self, plan: StepPlan, correct: torch.Tensor, advantages: torch.Tensor) -> tuple[Chosen, torch.Tensor]:
        known = self.trainer.demonstration_of_row
        gated = [count <= plan.gate and row in known for row, count in zip(self.asked, correct.tolist(), strict=True)]
        kept = torch.tensor([not g for g in gated], dtype=advantages.dtype, device=advantages.device)
        kept = kept.repeat_interleave(self.trainer.num_generations)
        advantages = advantages * own_part(self.trainer, kept, advantages)
        chosen = [self._demonstration(row) for row, g in zip(self.asked, gated, strict=True) if g]
        share = len(chosen) / len(self.asked)
        # Mean over questions: GRPO's denominator counts the tokens of all questions already.
        return Chosen(chosen, sft_scale=share, sft_share=share), advantages

    def _grouped(self, plan: StepPlan, rewards: torch.Tensor, output: dict[str, Any]) -> tuple[Chosen, torch.Tensor]:
        trainer, own = self.trainer, output["advantages"]
        known = [row for row in self.asked if row in trainer.demonstration_of_row]
        weights = trainer.reward_weights.to(rewards.device)
        totals = total(rewards, weights).view(-1, trainer.num_generations)
        joined = torch.full((len(self.asked), 1), torch.nan, device=rewards.device)
        has = torch.tensor([row in trainer.demonstration_of_row for row in self.asked], device=rewards.device)
        if known:
            joined[has, 0] = total(self._rewards_of(known), weights).to(rewards.device)
        relative = group_advantages(torch.cat([totals, joined], dim=1), trainer.scale_rewards)
        of_rollouts = own_part(trainer, relative[:, :-1].flatten(), own)
        # Groups without demonstration keep what TRL computed.
        with_demonstration = own_part(trainer, has.repeat_interleave(trainer.num_generations), own)
        own = torch.where(with_demonstration, of_rollouts.to(own.dtype), own)
        own = torch.where(own > 0, own * plan.positive_weight, own)
        chosen = Chosen([self._demonstration(row) for row in known], relative[has, -1].tolist())
        if plan.pooled:
            rollout_tokens = int(output["num_items_in_batch"])
            share = chosen.tokens / max(chosen.tokens + rollout_tokens, 1)
            chosen = replace(chosen, sft_scale=share, grpo_scale=1 - share, sft_share=share)
        return chosen, own

    def _rewards_of(self, rows: list[int]) -> torch.Tensor:
        """What the reward functions give the rows' demonstrations, shape (rows, reward functions). Asked once each."""
        trainer = self.trainer
        new = [row for row in dict.fromkeys(rows) if row not in self._rewards]
        if new:
            ids = [self._demonstration(row).completion_ids for row in new]
            inputs = [trainer.train_dataset[row] for row in new]
            rewards = trainer.rewards_of(inputs, ids).cpu()
            found = dict(zip(new, rewards, strict=True))
            # What could not be judged now may be the next time.
            self._rewards.update((row, reward) for row, reward in found.items() if not reward.isnan().all())
        else:
            found = {}
        return torch.stack([found[row] if row in found else self._rewards[row] for row in rows])


def group_advantages(rewards: torch.Tensor, scale: str) -> torch.Tensor:
    """Advantages relative to the group, as TRL computes them: (reward - mean) / (std + 1e-4), the std that of the group
    (`scale` "group"), of all ("batch"), or none ("none"). Shape (groups, members); NaN members count for nothing and
    get 0."""
    relative = rewards - rewards.nanmean(1, keepdim=True)
    if scale != "none":
        std = nanstd(rewards, dim=1, keepdim=True) if scale == "group" else nanstd(rewards)
        relative = relative / (std + 1e-4)
    relative[without_spread(rewards)] = 0.0
    return relative.nan_to_num(0.0)


def divide(chosen: Chosen, parts: int, rank: int, world: int, pad_token_id: int) -> list[dict[str, Any] | None]:
    """This rank's micro-batches of a step's demonstrations, in parts of equal size and of similar lengths: what is
    padded to the longest of its part costs least. The loss of the step is the same however it is divided.

    A part may come out empty: `None` on one process; on several a demonstration without labels stands in for it,
    because all ranks must run the same forward passes.
    """
    count = len(chosen.demonstrations)
    if count == 0:
        return [None] * parts
    size = -(-count // (parts * world))
    order = sorted(range(count), key=lambda i: chosen.demonstrations[i].length) if parts * world > 1 else range(count)
    batches: list[dict[str, Any] | None] = []
    for part in range(rank, parts * world, world):  # the ranks' parts of one pass follow each other: none waits long
        own = order[part * size : (part + 1) * size]
        members = [chosen.demonstrations[i] for i in own]
        if not members and world == 1:
            batches.append(None)
            continue
        batch: dict[str, Any] = collate(members or chosen.demonstrations[:1], pad_token_id)
        if not members:
            batch["labels"].fill_(-100)
        if chosen.advantages is not None:
            batch["advantages"] = torch.tensor([chosen.advantages[i] for i in own] or [0.0]).unsqueeze(1)
        batches.append(batch)
    return batches


def check_study(args: Any, schedule: Any) -> None:
    """Raise `InputError` for settings of failed questions that would be ignored."""
    does_not = {"sft": "makes no rollouts", "grpo": "takes no SFT steps", "static": "takes no SFT step after a rollout"}
    if getattr(schedule, "needs_fresh_rollouts", False):
        does_not[args.schedule] = "chooses demonstrations by the rollouts of the same step"
    if args.sft_questions == "failed" and args.schedule in does_not:
        raise InputError(
            f"sft_questions failed does nothing with schedule {args.schedule}, which {does_not[args.schedule]}: set it "
            "to all"
        )
    studies = args.sft_questions == "failed" or args.schedule == "relift" or ":" in args.schedule
    for name in ("failed_threshold", "failed_decay"):
        if not studies and getattr(args, name) != type(args).__dataclass_fields__[name].default:
            raise InputError(f"{name} says which failed questions are studied: set sft_questions failed, or remove it")


def check_queue(args: Any, answering: int) -> None:
    """Raise `InputError` if fewer demonstrations answer questions than `relift` waits for: it would never study."""
    batch = args.per_device_sft_batch_size * args.gradient_accumulation_steps * args.world_size
    if args.schedule == "relift" and answering < batch:
        raise InputError(
            f"schedule relift studies failed questions once they fill an SFT batch of {batch}, but only {answering} "
            "have a demonstration: lower per_device_sft_batch_size, or add demonstrations"
        )


def check_fresh(args: Any, name: str) -> None:
    """Raise `InputError` if a step may train on rollouts of an earlier one, or on several generations of them."""
    if args.rollouts_ahead:
        raise InputError(
            f"schedule {name} ties demonstrations to the rollouts of the same step: set rollouts_ahead to 0"
        )
    if args.steps_per_generation * args.num_iterations != args.gradient_accumulation_steps:
        raise InputError(
            f"schedule {name} ties demonstrations to the rollouts of the same step: set steps_per_generation x "
            f"num_iterations ({args.steps_per_generation * args.num_iterations}) to gradient_accumulation_steps "
            f"({args.gradient_accumulation_steps})"
        )
