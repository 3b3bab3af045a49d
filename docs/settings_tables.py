"""The lists of docs/settings.md, made from the docstrings of `SASRConfig` and `TaskConfig`. Imports nothing of sasr, so
that the site can be built without torch.

Run: python docs/settings_tables.py (writes the lists into settings.md, for those who read it in the repository).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "sasr"
BLOCK = re.compile(r"<!-- settings: (\w+) -->.*?<!-- /settings -->", re.DOTALL)

GROUPS = {
    "Who decides": (
        "schedule gamma gamma_schedule useful_passes share_of divergence_weight divergence_target divergence_every "
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


def grouped() -> dict[str, list[Setting]]:
    """All settings of sasr, by group."""
    settings = all_settings()
    groups = {title: names.split() for title, names in GROUPS.items()}
    rest = [name for name in settings if not any(name in names for names in groups.values())]
    groups |= {"Others": rest} if rest else {}
    return {title: [settings[name] for name in names] for title, names in groups.items()}


def of_trl() -> dict[str, list[Setting]]:
    """The settings of TRL and transformers that `sasr train --help` lists."""
    tree = ast.parse((SOURCE / "train_help.py").read_text(encoding="utf-8"))
    (node,) = (n for n in tree.body if isinstance(n, ast.AnnAssign) and getattr(n.target, "id", "") == "COMMON")
    assert node.value is not None
    return {
        title: [Setting(name, "", None if value is None else repr(value), text) for name, (value, text) in own.items()]
        for title, own in ast.literal_eval(node.value).items()
    }


LISTS = {"own": ("### {}", grouped), "trl": ("**{}**", of_trl)}


def _listed(which: str, shown: Callable[[Setting], list[str]]) -> str:
    title, groups = LISTS[which]
    lines: list[str] = []
    for name, settings in groups().items():
        lines += [title.format(name), "", *(line for setting in settings for line in shown(setting))]
        lines += [] if lines[-1] == "" else [""]
    return "\n".join(lines)


def _definition(one: Setting) -> list[str]:
    """For the site: a definition list with an anchor."""
    kind = ", ".join([one.kind] * bool(one.kind) + [f"default `{one.default}`"] * (one.default is not None))
    shown = f' <span class="setting">{kind}</span>' if kind else ""
    return [f"`{one.name}`{{ #{one.name} }}{shown}", f":   {one.text}", ""]


def _item(one: Setting) -> list[str]:
    """For the repository: an item of a list."""
    return [f"- **`{one.name}`**{'' if one.default is None else f' (`{one.default}`)'}: {one.text}"]


def fill(markdown: str) -> str:
    """The page of the site, with the lists in their places."""
    return BLOCK.sub(lambda match: _listed(match.group(1), _definition), markdown)


def written(markdown: str) -> str:
    """The page in the repository, with the lists of today."""
    return BLOCK.sub(lambda m: f"<!-- settings: {m[1]} -->\n{_listed(m[1], _item)}<!-- /settings -->", markdown)


if __name__ == "__main__":
    page = Path(__file__).with_name("settings.md")
    page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")
