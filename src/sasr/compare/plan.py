"""A comparison and the runs that follow from it. Pure: it reads no file, starts nothing and needs no torch."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sasr.checkpoints import AFTER_WARMUP
from sasr.runs.state import OUT_OF_REACH
from sasr.schedules import settings_of_other_schedules

Values = dict[str, Any]
BUDGETS = {"steps": "max_steps", "seconds": "max_seconds", "rollout_tokens": "max_rollout_tokens"}
# Settings that may name files or folders of the user's.
PLACES = ("data", "demonstrations", "exam_data", "model_name_or_path")
# Settings that compare gives to each run by itself, beside those of AFTER_WARMUP, and that no warm-up depends on.
_BY_RUN = {
    "schedule", "max_steps", "max_seconds", "max_rollout_tokens", "exam_at", "exam_every", "exam_split", "exam_samples",
}  # fmt: skip


@dataclass(frozen=True)
class Budget:
    """What each run may spend, its warm-up included: `amount` of `kind`, a key of `BUDGETS`."""

    kind: str
    amount: float

    def settings(self) -> Values:
        steps = self.amount if self.kind == "steps" else OUT_OF_REACH
        return {"max_steps": steps, BUDGETS[self.kind]: self.amount}

    def __str__(self) -> str:
        return f"{self.kind}={self.amount}"


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Args:
        name (`str`): As the user calls it; also the name of its directory.
        schedule (`str`): Who decides the steps.
        settings (`dict`): What it sets apart from the others.
        seeds (`tuple[int, ...]`): Seeds of its final runs.
        grid (`dict[str, list]`): Settings to tune, with the values to try. Empty: nothing is tuned.
        match (`str`, *optional*): The method whose run of the same seed gives the share of SFT.
    """

    name: str
    schedule: str
    settings: Values
    seeds: tuple[int, ...]
    grid: dict[str, list[Any]] = field(default_factory=dict)
    match: str | None = None

    def points(self) -> list[Values]:
        """Every combination of the grid, the last setting varying fastest."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]


@dataclass(frozen=True)
class Run:
    """One `sasr train`.

    Args:
        path (`str`): Its directory below the comparison's, and its name.
        stage (`str`): `"warmup"`, `"tuning"` or `"final"`.
        method (`str`): Empty for a warm-up, which serves several.
        seed (`int`): Its seed.
        settings (`dict`): The recipe, but for the directories of other runs.
        warmup, match (`str`, *optional*): Paths of the runs to start from, and whose share of SFT to take.
        point (`dict`): What is tried, or was chosen, by tuning.
    """

    path: str
    stage: str
    method: str
    seed: int
    settings: Values
    warmup: str | None = None
    match: str | None = None
    point: Values = field(default_factory=dict)

    @property
    def needs(self) -> list[str]:
        """The runs that must be finished before."""
        return [path for path in (self.warmup, self.match) if path]


@dataclass(frozen=True)
class Comparison:
    """Methods x seeds at an equal budget. Validated by [`read`] in `reading.py`.

    Args:
        settings (`dict`): Settings of `sasr train` that all methods share.
        methods (`tuple[Method, ...]`): In the order of the table.
        budget ([`Budget`]): Of each run.
        baseline (`str`): The method that the others are compared with.
        tune_seeds (`tuple[int, ...]`): Seeds of the tuning runs.
    """

    settings: Values
    methods: tuple[Method, ...]
    budget: Budget
    baseline: str
    tune_seeds: tuple[int, ...]

    def method(self, name: str) -> Method:
        return next(method for method in self.methods if method.name == name)

    @property
    def tuned(self) -> list[Method]:
        return [method for method in self.methods if method.grid]

    def to_recipe(self) -> Values:
        """The comparison as a recipe that `sasr compare --config` reads, every default spelled out."""
        methods = {}
        for method in self.methods:
            own: Values = {"schedule": method.schedule, **method.settings, "seeds": list(method.seeds)}
            methods[method.name] = own | ({"match_run": method.match} if method.match else {"tune": method.grid})
        section = {
            "methods": methods,
            "budget": str(self.budget),
            "baseline": self.baseline,
            "tune_seeds": list(self.tune_seeds),
        }
        return {**self.settings, "compare": section}

    def runs(self, choices: Mapping[str, Values]) -> list[Run]:
        """The runs in the order in which to start them. The final runs of a method that is tuned are left out until
        `choices` has what was chosen for it.

        Tuning comes first; then the first seed of every method, the second of every method and so on, the baseline
        before the others and a method before those that match it.
        """
        runs: dict[str, Run] = {}
        for method in self._order():
            for point, seed in itertools.product(method.points() if method.grid else [], self.tune_seeds):
                self._add(runs, self._tuning_run(method, point, seed))
        for index in range(max(len(method.seeds) for method in self.methods)):
            for method in self._order():
                known = not self._tuned_like(method).grid or self._tuned_like(method).name in choices
                if index < len(method.seeds) and known:
                    self._add(runs, self._final_run(method, method.seeds[index], choices))
        return list(runs.values())

    def tuning_runs(self, method: Method) -> list[Run]:
        """What has to be finished before the choice for `method`, in the order of its grid."""
        points = method.points() if method.grid else []
        return [self._tuning_run(method, point, seed) for point in points for seed in self.tune_seeds]

    def final_paths(self, method: Method) -> dict[int, str]:
        """Seed to path of each final run, whether its settings are known yet or not."""
        return {seed: _final_path(method, seed) for seed in method.seeds}

    def samples_of_settings(self) -> list[tuple[Method, Run]]:
        """A run of every kind there can be, of one seed each: what has to be checked before anything is trained."""
        found = []
        common = [seed for seed in self.methods[0].seeds if all(seed in method.seeds for method in self.methods)]
        for method in self.methods:
            seed = (common or method.seeds)[0]  # rows that a task generates are the same for the same seed
            for point in self._tuned_like(method).points() if self._tuned_like(method).grid else [{}]:
                found.append((method, self._final_run(method, seed, {self._tuned_like(method).name: point})))
        return found

    def _order(self) -> list[Method]:
        matched = {method.match for method in self.methods}
        return sorted(self.methods, key=lambda m: (m.name != self.baseline, m.name not in matched, bool(m.match)))

    def _tuned_like(self, method: Method) -> Method:
        """A method that matches another one is its control, and takes what was tuned for that one."""
        return self.method(method.match) if method.match else method

    def _tuning_run(self, method: Method, point: Values, seed: int) -> Run:
        settings = self._settings(method, point, seed, "validation")
        path = f"tuning/{method.name}/{point_name(point)}/seed-{seed}"
        return Run(path, "tuning", method.name, seed, settings, warmup=warmup_path(settings), point=point)

    def _final_run(self, method: Method, seed: int, choices: Mapping[str, Values]) -> Run:
        foreign = settings_of_other_schedules(method.schedule)
        tuned = choices.get(self._tuned_like(method).name, {})
        point = {name: value for name, value in tuned.items() if name not in foreign or not method.match}
        settings = self._settings(method, point, seed, "test")
        match = _final_path(self.method(method.match), seed) if method.match else None
        path = _final_path(method, seed)
        return Run(path, "final", method.name, seed, settings, warmup_path(settings), match, point)

    def _settings(self, method: Method, point: Values, seed: int, split: str) -> Values:
        foreign = settings_of_other_schedules(method.schedule)
        shared = {name: value for name, value in self.settings.items() if name not in foreign}
        if method.match:
            shared.pop("sft_share", None)
        ours = {"schedule": method.schedule, "seed": seed, "exam_at": ["final"], "exam_split": split}
        if method.match:
            ours["share_of"] = "steps"  # what is measured of the other run
        return {**shared, **method.settings, **point, **ours, **self.budget.settings()}

    def _add(self, runs: dict[str, Run], run: Run) -> None:
        if run.warmup is not None:
            runs.setdefault(run.warmup, _warmup_run(run))
        runs[run.path] = run


def point_name(point: Values) -> str:
    """`switch_step=200,learning_rate=0.0001`, fit for a directory: what is changed for that gets a digest."""
    text = ",".join(f"{name}={value}" for name, value in point.items())
    safe = re.sub(r"[^\w=,.+-]", "-", text)[:100]
    return safe if safe == text else f"{safe}-{_digest(point)}"


def warmup_path(settings: Values) -> str | None:
    """The path of the run whose warm-up a run of these settings shares, `None` if it has none of its own to share."""
    if settings.get("sft_warmup_steps") == "auto" or settings.get("warmup_until", "steps") != "steps":
        return None  # nobody knows yet which step it ends at
    try:
        steps = int(settings.get("sft_warmup_steps") or 0)
    except (TypeError, ValueError):  # a point of a grid that will be refused
        return None
    if steps < 1 or steps >= settings["max_steps"]:
        return None
    rate = settings.get("sft_learning_rate") or settings.get("learning_rate")
    batch = settings.get("per_device_sft_batch_size") or settings.get("per_device_train_batch_size")
    decisive = {name: value for name, value in settings.items() if name not in _BY_RUN and name not in AFTER_WARMUP}
    decisive |= {"sft_learning_rate": rate, "per_device_sft_batch_size": batch}
    return f"warmups/seed-{settings['seed']}-{_digest(decisive)}"


def _warmup_run(run: Run) -> Run:
    """The warm-up alone, by the recipe of the first run that it serves."""
    assert run.warmup is not None
    # What schedule sft refuses, or what could end the run sooner.
    idle = {"beta", "reference_model", "max_seconds", "max_rollout_tokens", "rollouts_ahead"}
    idle |= {"sft_questions", "failed_threshold", "failed_decay", "on_collapse"}
    idle |= settings_of_other_schedules("sft").keys()
    kept = {name: value for name, value in run.settings.items() if name not in idle}
    alone = {"schedule": "sft", "max_steps": int(kept["sft_warmup_steps"]), "exam_at": [], "exam_split": "test"}
    return Run(run.warmup, "warmup", "", run.seed, kept | alone)


def _final_path(method: Method, seed: int) -> str:
    return f"runs/{method.name}/seed-{seed}"


def _digest(values: Values) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:8]


def with_additions(then: Any, now: Values) -> Any:
    """The recipe of a comparison with what another adds to it: seeds of its methods, and methods. The runs that it has
    had stay the same, since none depends on how many others there are."""
    try:
        methods = dict(then["compare"]["methods"])
        for name, new in now["compare"]["methods"].items():
            old = methods.get(name, new)
            methods[name] = old | ({"seeds": new["seeds"]} if set(old["seeds"]) <= set(new["seeds"]) else {})
        return {**then, "compare": {**then["compare"], "methods": methods, "baseline": now["compare"]["baseline"]}}
    except (KeyError, TypeError, ValueError, AttributeError):  # written by hand
        return then


def differences(then: Any, now: Any, where: str = "") -> Iterable[str]:
    """Where two nested values differ: `compare.methods.sasr.gamma: 1.0 then, 2.0 now`."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in [*then, *(key for key in now if key not in then)]:
            name = f"{where}.{key}" if where else str(key)
            if key not in now or key not in then:
                yield f"{name}: {'not' if key not in then else 'set'} then, {'set' if key in now else 'not'} now"
            else:
                yield from differences(then[key], now[key], name)
    elif then != now:
        yield f"{where}: {_short(then)} then, {_short(now)} now"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
