"""The lists of docs/settings.md, made from the docstrings of `SASRConfig` and `TaskConfig`. Imports nothing of sasr, so
that the site can be built without torch."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "sasr"
BLOCK = re.compile(r"<!-- settings: (\w+) -->.*?<!-- /settings -->", re.DOTALL)

GROUPS = {
    "Who decides": (
        "schedule gamma gamma_schedule useful_passes divergence_weight divergence_target divergence_every "
        "divergence_probe reference_model warmup_norm sft_norm sft_norm_ema sft_norm_every"
    ),
    "The warm-up": "sft_warmup_steps warmup_until warmup_min_steps warmup_anneal warmup_from held_out_demonstrations",
    "Of one other schedule": (
        "switch_step sft_share match_run mu_peak mu_valley mu_decay_steps mu hpt_gate luffy_shaping hint_steps "
        "hint_weight"
    ),
    "What to study": "sft_questions failed_threshold failed_decay flat_groups curriculum",
    "Rates, batches, optimizer": (
        "sft_learning_rate sft_hybrid_learning_rate per_device_sft_batch_size separate_optimizer_states "
        "rollouts_ahead gradient_checkpointing"
    ),
    "Rows, rewards, budgets, logging": (
        "reward_columns max_prompt_length max_seconds max_rollout_tokens logging_steps"
    ),
    "When something goes wrong": "save_minutes max_skipped_steps on_collapse reward_failures reward_timeout",
    "Task and data": (
        "task task_options data bad_rows demonstrations train_rows demonstration_rows wrong_demonstrations"
    ),
    "Exams": "exam_rows exam_samples exam_at exam_every exam_data validation_rows exam_split",
}


@dataclass(frozen=True)
class Setting:
    """One setting as its docstring describes it. `default` is text as Python writes it, `None` where there is none."""

    name: str
    kind: str
    default: str | None
    text: str


def settings_of(path: Path, cls: str) -> dict[str, Setting]:
    """The settings under `Args:` in a class's docstring, by name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (node,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == cls)
    found: dict[str, Setting] = {}
    arguments = (ast.get_docstring(node) or "").partition("Args:\n")[2]
    for name, types, text in re.findall(r"^    (\w+) \((.*)\):\n((?:        .*\n?|\n)+)", arguments, re.MULTILINE):
        default = re.search(r"defaults to `(.*)`$", types)
        kind = types.split("`")[1]
        found[name] = Setting(name, kind, default and default.group(1), " ".join(text.split()))
    return found


def all_settings() -> dict[str, Setting]:
    return settings_of(SOURCE / "config.py", "SASRConfig") | settings_of(SOURCE / "task_config.py", "TaskConfig")


def own_settings() -> str:
    """All settings of sasr as definition lists, by group."""
    settings = all_settings()
    groups = {title: names.split() for title, names in GROUPS.items()}
    rest = [name for name in settings if not any(name in names for names in groups.values())]
    lines: list[str] = []
    for title, names in (groups | ({"Others": rest} if rest else {})).items():
        lines += [f"### {title}", ""]
        for name in names:
            one = settings[name]
            default = "" if one.default is None else f", default `{one.default}`"
            lines += [f'`{name}`{{ #{name} }} <span class="setting">{one.kind}{default}</span>']
            lines += [f":   {one.text}", ""]
    return "\n".join(lines)


def trl_settings() -> str:
    """The settings of TRL and transformers that `sasr train --help` lists."""
    tree = ast.parse((SOURCE / "train_help.py").read_text(encoding="utf-8"))
    (node,) = (n for n in tree.body if isinstance(n, ast.AnnAssign) and getattr(n.target, "id", "") == "COMMON")
    assert node.value is not None
    lines: list[str] = []
    for title, settings in ast.literal_eval(node.value).items():
        lines += [f"**{title}**", ""]
        for name, (value, text) in settings.items():
            default = "" if value is None else f' <span class="setting">default `{value!r}`</span>'
            lines += [f"`{name}`{{ #{name} }}{default}", f":   {text}", ""]
    return "\n".join(lines)


def fill(markdown: str) -> str:
    """The page with the lists in their places."""
    made = {"own": own_settings, "trl": trl_settings}
    return BLOCK.sub(lambda match: made[match.group(1)](), markdown)
