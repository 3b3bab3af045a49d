"""What a step costs in tokens and FLOPs, counted from lengths that are known without asking the device.

The FLOPs are those of the model, counted as in arXiv 2001.08361: N weights multiply and add once per token in a forward
pass, 2 N, and twice as often in a backward pass. Attention scores, the optimizer and padding are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel


class Work:
    """Counts the work of all processes, step by step.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): Whole, not yet divided over processes.
        micro_batches (`int`): Parts that the rollouts of one generation are divided into (`steps_per_generation`).

    Attributes:
        weights (`int`): N, those that a token is multiplied with: all but an embedding that is only looked up.
        trained_weights (`int`): Those among them that have gradients; fewer than N with LoRA.
    """

    def __init__(self, model: PreTrainedModel, micro_batches: int):
        looked_up = model.get_input_embeddings().weight
        head = model.get_output_embeddings()
        if head is not None and head.weight is looked_up:
            looked_up = None
        weights = [p for p in model.parameters() if p is not looked_up]
        self.weights = sum(map(size_of, weights))
        self.trained_weights = sum(size_of(p) for p in weights if p.requires_grad)
        self._micro_batches = micro_batches
        self._rollout_tokens = 0.0  # of one micro-batch of the rollouts under way, the mean: the state
        self._trained = self._flops = 0.0  # of the step under way
        self._since_log = [0.0, 0.0]  # tokens, seconds

    def begin_step(self) -> None:
        """Count anew; what there was of a step that was not finished is forgotten."""
        self._trained = self._flops = 0.0

    def forward(self, tokens: float) -> None:
        """A pass without gradient: generation, a reference, a probe. 2 N FLOPs per token."""
        self._flops += 2 * self.weights * tokens

    def train(self, tokens: float, counted: bool = True) -> None:
        """A forward and a backward pass: 4 N + 2 N_trained FLOPs per token, 6 N if all weights are trained.

        Args:
            tokens (`float`): Of all processes, prompts included, padding not.
            counted (`bool`): They are learned from; a probe's are not.
        """
        self._flops += (4 * self.weights + 2 * self.trained_weights) * tokens
        self._trained += tokens * counted

    def rollouts(self, tokens: float, passes: int, refill: bool = False) -> None:
        """New rollouts have been generated.

        Args:
            tokens (`float`): Of all processes, prompts included.
            passes (`int`): Forward passes that gave them log-probabilities, under the old policy and the reference.
            refill (`bool`): They replace some of those made before, and are taken to be as long.
        """
        self.forward(tokens * (1 + passes))
        if not refill:
            self._rollout_tokens = tokens / self._micro_batches

    def train_rollouts(self, share: float) -> None:
        """This share of a micro-batch of the rollouts goes through a forward and a backward pass."""
        self.train(self._rollout_tokens * share)

    def finish_step(self) -> dict[str, float]:
        """What the step cost: `tokens` that it learned from, `flops`."""
        found = {"tokens": self._trained, "flops": self._flops}
        self._since_log[0] += self._trained
        self.begin_step()
        return found

    def add_seconds(self, seconds: float) -> None:
        """What a step took."""
        self._since_log[1] += seconds

    def tokens_per_second(self) -> float | None:
        """Since this was asked last; `None` if no time went by."""
        tokens, seconds = self._since_log
        self._since_log = [0.0, 0.0]
        return tokens / seconds if seconds > 0 else None

    def state_dict(self) -> dict[str, float]:
        """JSON-safe."""
        return {"rollout_tokens": self._rollout_tokens}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of a checkpoint; earlier versions had none."""
        self._rollout_tokens = state.get("rollout_tokens", 0.0)


def size_of(parameter: Any) -> int:
    """The number of weights in a parameter."""
    if (state := getattr(parameter, "quant_state", None)) is not None:
        return state.shape.numel()  # bitsandbytes packs two weights into a byte
    # DeepSpeed's stage 3 leaves an empty tensor with a note of what it was.
    return getattr(parameter, "ds_numel", None) or parameter.numel()
