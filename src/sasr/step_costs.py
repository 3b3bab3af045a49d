"""What an SFT and a GRPO step cost: the measured means turn a share of a run's seconds or FLOPs into one of its steps.

A coin that falls on SFT in half of the steps gives SFT a fifth of the time where a GRPO step takes four times as long.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MEASURED = ("seconds", "flops")
UNITS = ("steps", *MEASURED)
AUTO = "auto"  # see `SASRConfig.share_unit`


class StepCosts:
    """The mean cost of the steps of each kind so far, those of the warm-up included.

    A mean of all, not of the last ones: rollouts that serve several steps are paid for in one of them. All units are
    counted whichever is used, so that a run that starts from another's warm-up knows what its steps cost.

    Args:
        unit (`str`): What counts as cost: `"seconds"` inside the steps; `"flops"`, those of the model as `sasr.work`
            counts them, which do not depend on the machine; or `"steps"`, where every step costs 1.
    """

    def __init__(self, unit: str):
        self.unit = unit
        self._spent = {name: {"sft": 0.0, "grpo": 0.0} for name in MEASURED}
        self._steps = {name: {"sft": 0, "grpo": 0} for name in MEASURED}

    def observe(self, kind: str, **costs: float) -> None:
        """Take what a step of this kind cost, in some of the units. One of both losses says nothing of either."""
        for unit, cost in costs.items():
            if kind in self._spent[unit]:
                self._spent[unit][kind] += cost
                self._steps[unit][kind] += 1

    @property
    def ratio(self) -> float:
        """Cost of a GRPO step in SFT steps; 1 before there was one of each, and where steps are counted."""
        if self.unit == "steps":
            return 1.0
        spent, steps = self._spent[self.unit], self._steps[self.unit]
        if not all(spent.values()):
            return 1.0
        return (spent["grpo"] / steps["grpo"]) / (spent["sft"] / steps["sft"])

    def state_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return {"spent": self._spent, "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of a checkpoint; earlier versions had none."""
        for unit in MEASURED:
            self._spent[unit].update(state.get("spent", {}).get(unit, {}))
            self._steps[unit].update(state.get("steps", {}).get(unit, {}))
