"""A comparison from a recipe and flags. What can be wrong with it alone is found here; `check.py` tries the runs."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from sasr.errors import InputError, did_you_mean, unknown
from sasr.schedules import SCHEDULES

from .plan import BUDGETS, Budget, Comparison, Method, Values

SECTION = {"methods", "seeds", "budget", "baseline", "tune", "tune_seeds"}
_DEFAULT_METHODS = ["sft", "static", "sasr", "random"]
# What a bare name stands for: GRPO alone has no warm-up, and random is the control of sasr.
_BARE: dict[str, Values] = {"grpo": {"sft_warmup_steps": 0}, "random": {"match_run": "sasr"}}
_BY_BUDGET = dict.fromkeys(("max_steps", "max_seconds", "max_rollout_tokens"), "set the budget instead")
_BY_COMPARE = dict.fromkeys(("exam_at", "exam_split", "warmup_from", "output_dir"), "compare sets it for each run")
_REFUSED = {**_BY_BUDGET, **_BY_COMPARE, "seed": "set seeds instead"}
# Methods are compared on the same questions.
_FOR_ALL = dict.fromkeys(
    ("task", "task_options", "exam_data", "exam_rows", "exam_samples", "exam_every", "validation_rows"),
    "all methods are examined alike: set it once",
)


def read(recipe: Values, source: str, flags: Values, options: Mapping[str, Any]) -> Comparison:
    """The comparison that a recipe and flags describe.

    Args:
        recipe (`dict`): Settings of `sasr train`, and a `compare` section.
        source (`str`): Its name, for messages.
        flags (`dict`): Settings given as flags.
        options (`dict`): `methods`, `seeds`, `budget` and `baseline` given as flags, `None` where they are not.

    Raises:
        [`InputError`]: Anything that does not make a comparison.
    """
    recipe = dict(recipe)
    section = recipe.pop("compare", None)
    section = _mapping({} if section is None else section, f"{source}: compare")
    for key in section:
        if key not in SECTION:
            also = ": it is a setting of sasr train, put it above" if key in flags or key in recipe else ""
            raise InputError(f"{source}: compare: unknown key {key!r}{also or did_you_mean(key, SECTION)}")
    for name in flags:
        if name in _REFUSED or name == "schedule":
            raise InputError(f"--{name} does not fit sasr compare: {_REFUSED.get(name, 'name the --methods')}")
    for name in ("max_seconds", "max_rollout_tokens", "warmup_from", "match_run"):
        if recipe.get(name) is not None:
            advice = "name a method of compare as match_run" if name == "match_run" else _REFUSED[name]
            raise InputError(f"{source}: {name} does not fit sasr compare: {advice}")
    budget = _budget(options.get("budget") or section.get("budget"), recipe.get("max_steps"), source)
    seeds = seeds_of(_first(options.get("seeds"), section.get("seeds"), "1-3"), "seeds")
    shared = {k: v for k, v in {**recipe, **flags}.items() if k not in _REFUSED and k != "schedule"}
    methods = _methods(section, options, seeds, source)
    names = [method.name for method in methods]
    baseline = _baseline(section, options, names)
    tune_seeds: tuple[int, ...] = ()
    if any(method.grid for method in methods):
        tune_seeds = seeds_of(_first(section.get("tune_seeds"), 101), "tune_seeds")
        for method in methods:
            for seed in method.seeds:
                if seed in tune_seeds:
                    raise InputError(f"seed {seed} is in seeds and in tune_seeds: tune on seeds of their own")
        if not shared.get("validation_rows"):
            shared["validation_rows"] = _first(shared.get("exam_rows"), 128)
    elif "tune_seeds" in section and section["tune_seeds"] != []:
        seeds_of(section["tune_seeds"], "tune_seeds")
    return Comparison(shared, tuple(methods), budget, baseline, tune_seeds)


def _baseline(section: Mapping[str, Any], options: Mapping[str, Any], names: list[str]) -> str:
    """What the others are compared with. Where `--methods` leaves out the recipe's own, it is as if there were none."""
    given = options.get("baseline") or section.get("baseline")
    left_out = not options.get("baseline") and options.get("methods") and given in (section.get("methods") or ())
    if given is None or (left_out and given not in names):
        return "static" if "static" in names else names[0]
    if given not in names:
        raise unknown("baseline", str(given), names)
    return str(given)


def _methods(section: Values, options: Mapping[str, Any], seeds: tuple[int, ...], source: str) -> list[Method]:
    given, chosen = section.get("methods"), options.get("methods")
    if isinstance(given, str):
        given = given.split()
    if isinstance(given, list):
        given = _bare([str(name) for name in given])
    defined = _mapping({} if given is None else given, f"{source}: methods")
    defined = {str(name): _mapping(own or {}, f"{source}: methods: {name}") for name, own in defined.items()}
    if chosen is not None:
        defined = {name: defined.get(name, own) for name, own in _bare(chosen).items()}
    elif given is None:
        defined = _bare(_DEFAULT_METHODS)
    if options.get("seeds") is not None:  # for all, as other flags are: comparison.yaml has those of each method
        defined = {name: {key: value for key, value in own.items() if key != "seeds"} for name, own in defined.items()}
    if not defined:
        raise InputError(f"{source}: there are no methods: name at least one, such as {' '.join(_DEFAULT_METHODS)}")
    grid = _grid(section.get("tune"), f"{source}: tune")
    methods = [_method(name, own, seeds, grid, f"method {name}") for name, own in defined.items()]
    for method in methods:
        _check_match(method, methods)
    return methods


def _bare(names: list[str]) -> dict[str, Values]:
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(f"method {name} is given twice: name each once")
    bare = {name: dict(_BARE.get(name, {})) for name in names}
    if "sasr" not in names and "random" in bare:
        bare["random"] = {}
    return bare


def _method(name: str, own: Values, seeds: tuple[int, ...], grid: dict[str, list], where: str) -> Method:
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]{0,59}", name, re.ASCII):
        raise InputError(f"method {name!r}: a name has letters, digits and - _ . + (it names a directory), at most 60")
    own = dict(own)
    schedule, match = str(own.pop("schedule", name)), own.pop("match_run", None)
    if schedule not in SCHEDULES and ":" not in schedule:
        raise unknown("schedule" if schedule != name else "method", schedule, SCHEDULES, "a name with its schedule")
    seeds = seeds_of(own.pop("seeds"), f"{where}: seeds") if "seeds" in own else seeds
    own_grid = _grid(own.pop("tune"), f"{where}: tune") if "tune" in own else None
    for setting in ("sft_share", "share_of"):
        if match is not None and setting in own:
            raise InputError(f"{where}: it has the share of SFT of {match}, of its steps: remove {setting}")
    if match is not None and own_grid:
        raise InputError(f"{where}: it takes what is tuned for {match}, whose share it matches: remove tune")
    if own_grid is None:
        own_grid = {} if match is not None else grid
    for setting in (*own, *own_grid):
        reason = {**_REFUSED, **_FOR_ALL}.get(setting)
        if reason or setting in ("schedule", "match_run", "seeds", "tune"):
            raise InputError(f"{where}: {setting} cannot be set here: {reason or 'it cannot be tuned'}")
    for setting in own:
        if setting in own_grid:
            raise InputError(f"{where}: {setting} is set and tuned: remove one, or give the method a tune of its own")
    return Method(name, schedule, own, seeds, own_grid, None if match is None else str(match))


def _check_match(method: Method, methods: list[Method]) -> None:
    if method.match is None:
        return
    where = f"method {method.name}: match_run"
    if method.schedule != "random":
        raise InputError(f"{where} is for schedule random, not for {method.schedule}: remove it")
    others = {m.name: m for m in methods if m is not method}
    if method.match not in others:
        own = "itself" if method.match == method.name else repr(method.match)
        raise InputError(f"{where} names {own}, but it must be one of {', '.join(others) or 'other methods'}")
    target = others[method.match]
    if target.match is not None:
        raise InputError(f"{where} names {target.name}, which itself matches {target.match}: match that one")
    for seed in method.seeds:
        if seed not in target.seeds:
            raise InputError(f"{where} names {target.name}, which has no seed {seed}: give both the same seeds")


def _grid(value: Any, where: str) -> dict[str, list[Any]]:
    grid = {str(name): values for name, values in _mapping({} if value is None else value, where).items()}
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"{where}: {name} is {values!r}, but it must be a list of the values to try")
        for value in values:
            if values.count(value) > 1:
                raise InputError(f"{where}: {name} has {value!r} twice")
    if math.prod(len(values) for values in grid.values()) > 10_000:
        raise InputError(f"{where}: the grid has more than 10000 points: try fewer values")
    return grid


def _budget(given: Any, max_steps: Any, source: str) -> Budget:
    if given is None:
        if not isinstance(max_steps, int) or max_steps < 1:
            raise InputError(f"{source}: no budget: give one, such as --budget steps=300 or seconds=60")
        return Budget("steps", max_steps)
    if isinstance(given, dict) and len(given) == 1:
        given = "=".join(str(part) for part in next(iter(given.items())))
    kind, equals, text = str(given).partition("=")
    kind = kind.strip()
    if not equals:
        raise InputError(f"budget is {given!r}: write steps=N, seconds=N or rollout_tokens=N")
    if kind not in BUDGETS:
        raise unknown("kind of budget", kind, BUDGETS)
    try:
        amount = float(text)
    except ValueError:
        amount = math.nan
    if not 0 < amount < math.inf or (kind != "seconds" and amount != int(amount)):
        raise InputError(
            f"budget {kind}={text.strip()}: it must be a {'' if kind == 'seconds' else 'whole '}number above 0"
        )
    return Budget(kind, int(amount) if amount == int(amount) else amount)


def seeds_of(value: Any, where: str) -> tuple[int, ...]:
    """Seeds from `1-8`, `1 2 3`, a number or a list of these. Raises `InputError` for anything else."""
    parts = value if isinstance(value, (list, tuple)) else [value]
    seeds: list[int] = []
    for text in [word for part in parts for word in str(part).replace(",", " ").split()]:
        found = re.fullmatch(r"(\d{1,10})(?:-(\d{1,10}))?", text, re.ASCII)
        if found is None:
            raise InputError(f"{where}: {text!r} is no seed: give whole numbers from 0, or a range such as 1-8")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first or last >= 2**32 or last - first >= 10_000:
            raise InputError(f"{where}: {text} is no range of seeds: from low to high, at most 10000, below 2^32")
        seeds += range(first, last + 1)
    if not seeds:
        raise InputError(f"{where}: there are no seeds: give at least one")
    seed, count = Counter(seeds).most_common(1)[0]
    if count > 1:
        raise InputError(f"{where}: seed {seed} is given twice")
    return tuple(seeds)


def _mapping(value: Any, where: str) -> Values:
    if not isinstance(value, dict):
        raise InputError(f"{where} is {value!r}, but it must be `name: value` lines")
    return value


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
