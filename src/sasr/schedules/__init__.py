"""When to do SFT and when GRPO. One short file per method; a new one is a file and a row of `SCHEDULES`.

A row names the schedule's class and the settings of [`SASRConfig`] that it takes: the field of the config and the
argument of the class have the same name.
"""

from __future__ import annotations

from .alternate import Alternate
from .base import (
    BEFORE_THE_STEP,
    GRPO_STEP,
    SFT_STEP,
    TIED_TO_ROLLOUTS,
    Schedule,
    Signals,
    StepPlan,
    coin,
    decide,
    draw,
)
from .chord_mu import ChordMu
from .chord_phi import ChordPhi
from .cosine import Cosine
from .grpo import Grpo
from .hpt import Hpt
from .luffy import Luffy
from .r3 import R3
from .random import Random
from .relift import Relift
from .sasr import Sasr
from .sft import Sft
from .srft import Srft
from .static import Static
from .uft import Uft

SCHEDULES: dict[str, tuple[type[Schedule], tuple[str, ...]]] = {
    "sasr": (Sasr, ("gamma", "divergence_weight", "divergence_target", "gamma_schedule", "useful_passes")),
    "sft": (Sft, ()),
    "grpo": (Grpo, ()),
    "static": (Static, ("switch_step",)),
    "alternate": (Alternate, ()),
    "cosine": (Cosine, ()),
    "random": (Random, ("sft_share",)),
    "chord_mu": (ChordMu, ("mu_peak", "mu_valley", "mu_decay_steps")),
    "chord_phi": (ChordPhi, ("mu",)),
    "hpt": (Hpt, ("hpt_gate",)),
    "relift": (Relift, ()),
    "luffy": (Luffy, ("luffy_shaping",)),
    "srft": (Srft, ()),
    "uft": (Uft, ("hint_steps", "hint_weight")),
    "r3": (R3, ()),
}

# Those that draw each step, by `coin`.
COINS = ("sasr", "cosine", "random")


def settings_of_other_schedules(schedule: str) -> dict[str, str]:
    """What would have no effect with this schedule, a name or one of the user's own, and whose setting each is. In a
    recipe it is not for this one."""
    own = SCHEDULES[schedule][1] if schedule in SCHEDULES else ()
    others = {name: owner for owner, (_, names) in SCHEDULES.items() for name in names if name not in own}
    draws_none = schedule in SCHEDULES and schedule not in COINS
    return others | ({"share_of": f"{', '.join(COINS[:-1])} or {COINS[-1]}"} if draws_none else {})


# The classes of the table are importable from here too.
__all__ = [
    "BEFORE_THE_STEP",
    "GRPO_STEP",
    "SCHEDULES",
    "SFT_STEP",
    "TIED_TO_ROLLOUTS",
    "Schedule",
    "Signals",
    "StepPlan",
    "coin",
    "decide",
    "draw",
    "settings_of_other_schedules",
]
