"""What the schedules see: the SFT gradient norm, its scale in the warm-up, the divergence. No torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from .schedules import Signals, draw

# Steps of the warm-up that `first` is the mean of: before much is learnt, and more than one batch.
FIRST = 10


@dataclass
class SignalTracker:
    """Turns measurements into [`Signals`]. Its fields are its whole state: numbers, saved as JSON.

    Args:
        warmup_steps (`int`): Length of the SFT warm-up.
        warmup_norm (`str`): g_warmup is the mean norm over the warm-up's last half (`"mean"`), or over its first
            `FIRST` steps (`"first"`), or the norm of its last step (`"last"`, the literal reading of arXiv 2505.13026).
        open_end (`bool`): The length is only a bound, `end_warmup` tells it.
        least (`float`): Share of g_warmup below which g_last does not fall.
        ema (`float`): g_last is the exponential mean of the SFT norms with this decay; 0 is the last norm itself.
    """

    warmup_steps: int
    warmup_norm: str = "mean"
    ema: float = 0.0
    open_end: bool = False
    least: float = 0.0
    sft_grad_norm: float | None = None
    warmup_sum: float = 0.0
    warmup_count: int = 0
    warmup_last: float | None = None
    warmup_norms: list[float] = field(default_factory=list)
    divergence: float | None = None
    entropy: float | None = None
    norm_step: int = -1
    held_out_loss: float | None = None
    ratio_before: float | None = None  # of the studied demonstrations' loss to it, before the first step
    carry_over: float | None = None
    left_to_learn: float | None = None

    def observe_sft_norm(self, step: int, norm: float | None) -> None:
        """Take the global norm before clipping of the SFT step with this index. A missing or non-finite one (fp16
        overflow) is ignored: the last good one stays."""
        if norm is None or not math.isfinite(norm):
            return
        self.norm_step = step
        previous = self.sft_grad_norm
        self.sft_grad_norm = norm if previous is None else self.ema * previous + (1 - self.ema) * norm
        if step < self.warmup_steps:
            self.warmup_last = norm
            if self._waits:
                self.warmup_norms.append(norm)
            elif step < FIRST if self.warmup_norm == "first" else step >= self.warmup_steps // 2:
                self.warmup_sum += norm
                self.warmup_count += 1

    def end_warmup(self, steps: int) -> None:
        """The warm-up turned out to have so many steps: g_warmup is that of its own last half."""
        self.warmup_steps = steps
        if self._waits:
            last_half = self.warmup_norms[len(self.warmup_norms) // 2 :]
            self.warmup_sum, self.warmup_count = sum(last_half), len(last_half)
        self.open_end, self.warmup_norms = False, []

    @property
    def _waits(self) -> bool:
        """Which norms count is known at the warm-up's end only."""
        return self.open_end and self.warmup_norm != "first"

    def observe_divergence(self, divergence: float) -> None:
        """Take the KL from the reference policy, nats per token. A non-finite one is ignored."""
        if math.isfinite(divergence):
            self.divergence = divergence

    def observe_entropy(self, entropy: float) -> None:
        """Take the policy's mean entropy in a step, nats per token. A non-finite one is ignored."""
        if math.isfinite(entropy):
            self.entropy = entropy

    def observe_held_out(self, held_out: float, studied: float) -> None:
        """Take the losses of demonstrations that are kept from SFT and of as many that are studied, nats per token.
        Losses that give no ratio, or at first none above 0, are ignored."""
        ratio = studied / held_out if math.isfinite(held_out) and held_out > 0 else math.nan
        if not math.isfinite(ratio) or not (ratio or self.ratio_before):
            return
        self.held_out_loss, self.ratio_before = held_out, self.ratio_before or ratio
        # What is known by heart stays so: when GRPO then moves the policy, both losses rise, and their ratio with them.
        self.carry_over = min(ratio / self.ratio_before, 1.0 if self.carry_over is None else self.carry_over)

    def observe_likelihood(self, likelihood: float) -> None:
        """Take the mean likelihood, in [0, 1], of whole demonstrations in an SFT step. A non-finite one is ignored."""
        if math.isfinite(likelihood):
            left, before = 1.0 - min(likelihood, 1.0), self.left_to_learn
            self.left_to_learn = left if before is None else self.ema * before + (1 - self.ema) * left

    @property
    def current_norm(self) -> float | None:
        """g_last, 0 or more, and `least` of g_warmup or more once the warm-up is over."""
        if self.sft_grad_norm is None:
            return None
        over = self.least and self.norm_step >= self.warmup_steps - 1
        return max(self.sft_grad_norm, self.least * (self.warmup_grad_norm or 0.0) if over else 0.0, 0.0)

    @property
    def warmup_grad_norm(self) -> float | None:
        """g_warmup so far, 0 or more; `None` if the warm-up gave no finite norm."""
        last_half = self.warmup_norms[len(self.warmup_norms) // 2 :]
        if self.warmup_norm == "last":
            norm = self.warmup_last
        elif self._waits:
            norm = sum(last_half) / len(last_half) if last_half else None
        else:
            # Every norm that counts may have overflowed while another was finite.
            norm = self.warmup_sum / self.warmup_count if self.warmup_count else self.warmup_last
        return None if norm is None else max(norm, 0.0)

    def signals(
        self,
        seed: int,
        step: int,
        total_steps: int,
        failed_batches: float = 0.0,
        spent: float = 0.0,
        passes: float = 0.0,
        grpo_cost: float = 1.0,
    ) -> Signals:
        """The signals of the step about to be taken."""
        return Signals(
            step=step,
            total_steps=total_steps,
            warmup_steps=self.warmup_steps,
            draw=draw(seed, step),
            sft_grad_norm=self.current_norm,
            warmup_grad_norm=self.warmup_grad_norm if step >= self.warmup_steps else None,
            divergence=self.divergence,
            entropy=self.entropy,
            failed_batches=failed_batches,
            spent=spent,
            passes=passes,
            carry_over=self.carry_over,
            left_to_learn=self.left_to_learn,
            grpo_cost=grpo_cost,
        )

    def state_dict(self) -> dict[str, Any]:
        """All fields, JSON-safe."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        for key, value in state.items():
            setattr(self, key, value)
