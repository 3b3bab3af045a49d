"""The private surface of TRL and transformers that sasr depends on, checked when the trainer is imported.

Only `trainer.py`, `rollouts.py` and `resumable.py` override it; others call a little of it. A release that renames one
of these names is found here by a clear error, not by a wrong gradient.
"""

from __future__ import annotations

from trl import GRPOTrainer
from trl.trainer import utils

OVERRIDDEN = (
    # trainer.py: which batch a step gets, which loss, which learning rate, what is measured
    "get_train_dataloader", "get_batch_samples", "training_step", "_prepare_inputs", "compute_loss", "_get_grad_norm",
    "create_scheduler", "_get_learning_rate", "log",
    # rollouts.py: what rollouts begin with, what is made of them, how prompts are read
    "_generate", "_tokenize_prompts", "_generate_and_score_completions", "_calculate_rewards", "_generate_single_turn",
    "_get_per_token_logps_and_entropies", "_compute_loss",
    # resumable.py: what a checkpoint holds and when it counts
    "train", "_get_output_dir", "_save_checkpoint", "_save_rng_state", "_load_optimizer_and_scheduler",
    "_load_from_checkpoint", "_load_rng_state", "_maybe_log_save_evaluate", "_push_from_checkpoint",
)  # fmt: skip
CALLED = (
    "_prepare_input",
)  # fmt: skip
# In trl.trainer.utils, for a while: fused_head.py.
REPLACED = ("_use_triton",)
# Set in `__init__`, so they cannot be checked on the class; the tests of equality with stock TRL fail without them.
ATTRIBUTES = (
    "_step", "_buffered_inputs", "_metrics", "_tokenizer", "_tr_loss", "_total_loss_scalar", "_initial_global_step",
    "_globalstep_last_logged", "multi_objective_aggregation",
    "generation_config", "generation_kwargs", "eos_token_ids", "num_generations", "num_iterations", "log_completions",
    "ref_model", "beta", "reward_weights", "reward_funcs",
    "reward_func_names", "scale_rewards", "_pending_metrics", "_pending_extra_logs",
    "temperature", "chat_template_kwargs", "use_vllm", "vllm_generation", "shuffle_dataset", "loss_type",
    "aux_loss_enabled", "router_aux_loss_coef", "_is_vlm", "tools", "environment_factories", "rollout_func",
    "use_transformers_continuous_batching",
    "current_gradient_accumulation_steps",
)  # fmt: skip


def check() -> None:
    """Raise `ImportError` naming what this version of TRL lacks."""
    missing = [name for name in OVERRIDDEN + CALLED if not hasattr(GRPOTrainer, name)]
    missing += [name for name in REPLACED if not hasattr(utils, name)]
    if missing:
        raise ImportError(f"this version of TRL lacks {', '.join(missing)}: install trl>=1.16,<1.17")


check()
