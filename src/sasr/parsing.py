"""Settings from a recipe (YAML) and flags, through TRL's parser, with every mistake as one line."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from trl import ModelConfig, TrlParser

from . import precision
from .config import SASRConfig
from .errors import InputError, did_you_mean
from .flags import set_variable
from .model_files import expand
from .schedules import settings_of_other_schedules
from .task_config import RECIPES, TaskConfig, json_mapping
from .warmup import AUTO

# Rewards of the built-in tasks: correctness counts, format helps to find it.
_DEFAULT_REWARD_WEIGHTS = [1.0, 0.1]


@dataclass
class Settings:
    """The parsed settings of a run.

    Args:
        training ([`SASRConfig`]), task ([`TaskConfig`]), model ([`~trl.ModelConfig`]): By group.
        given (`dict`): The settings as given, by recipe or flag, before any derived value was filled in.
        environment (`dict`): Variables that the recipe's `env` section has set.
    """

    training: SASRConfig
    task: TaskConfig
    model: ModelConfig
    given: dict[str, Any]
    environment: dict[str, Any] = field(default_factory=dict)


class Parser(TrlParser):
    """TRL's parser, whose errors are `InputError`s."""

    def __init__(self) -> None:
        super().__init__([TaskConfig, SASRConfig, ModelConfig], prog="sasr train", add_help=False, allow_abbrev=False)
        self.actions()["sft_warmup_steps"].type = _steps_or_auto
        self.actions()["task_options"].type = json_mapping
        self.actions()["report_to"].nargs = "+"  # as in YAML; from its annotation the parser takes one name

    def error(self, message: str):
        raise InputError(message)

    def actions(self) -> dict[str, argparse.Action]:
        """The first action of each setting (a second one is its `--no_` form)."""
        found: dict[str, argparse.Action] = {}
        for action in self._actions:
            found.setdefault(action.dest, action)
        return found


def _steps_or_auto(text: str) -> int | str:
    return text if text == AUTO else int(text)


_steps_or_auto.__name__ = "int"  # what argparse calls it in a message


def recipe_path(name: str) -> Path:
    """The file that a recipe is read from: the user's own, or one that comes with sasr. A directory of that name, such
    as `gsm8k` with its data, is no recipe."""
    path = expand(name)
    return path if path.suffix or path.is_file() else RECIPES / f"{name}.yaml"


def read_recipe(name: str) -> dict[str, Any]:
    """A recipe by path, or by name if it comes with sasr. Raises `InputError` for a file that is not a YAML mapping."""
    path = recipe_path(name)
    if not path.exists() and not Path(name).suffix:
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
        raise InputError(f"no recipe {name!r}: give a YAML file, or one of {known}")
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
        check_keys_once(text, name)
    except OSError as error:
        raise InputError(f"cannot read the config file {name}: {error.strerror or error}") from None
    except InputError:
        raise
    except (yaml.YAMLError, ValueError) as error:  # the latter of a date or number that is none, such as 2025-02-30
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        not_text = isinstance(error, UnicodeDecodeError)
        problem = getattr(error, "problem", None) or ("it is not UTF-8 text" if not_text else error)
        raise InputError(f"{name}{where}: not valid YAML ({problem})") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"{name}: a recipe is a list of `setting: value` lines")
    return content


def check_keys_once(text: str, source: str) -> None:
    """Raise `InputError` for a key that a YAML file has twice in one place: the first would vanish in silence."""
    pending: list[Any] = [yaml.compose(text, Loader=yaml.SafeLoader)]
    visited = set()
    while pending:
        node = pending.pop()
        if id(node) in visited:  # an alias
            continue
        visited.add(id(node))
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    raise InputError(f"{source}:{key.start_mark.line + 1}: {key.value} is given twice: keep one")
                if isinstance(key, yaml.ScalarNode):
                    seen.add(key.value)
                pending.append(value)
        elif isinstance(node, yaml.SequenceNode):
            pending += node.value


def check_values(values: dict[str, Any], parser: Parser, source: str) -> None:
    """Raise `InputError` for a key that is no setting or a value of another type. (TrlParser takes any value.)"""
    actions = parser.actions()
    for key, value in values.items():
        if key not in actions:
            raise InputError(f"{source}: unknown setting {key!r}{did_you_mean(key, actions)}")
        kinds = _kinds_of(key)
        several = actions[key].nargs == "+"
        items = value if several and isinstance(value, list) else [value]
        names = {"bool": "true or false", "int": "a whole number", "float": "a number", "dict": "a mapping"}
        wanted = next((text for kind, text in names.items() if kind in kinds and "str" not in kinds), "text")
        if value is None and actions[key].default is not None and not kinds & {"None", "Optional"}:
            raise InputError(f"{source}: {key} is None: set {wanted}, or leave the line out")
        if value is not None and not all(_fits(item, kinds, actions[key]) for item in items):
            raise InputError(
                f"{source}: {key} is {value!r}, but it must be {f'a list ({wanted})' if several else wanted}"
            )


def _kinds_of(key: str) -> set[str]:
    """The names of the types in the annotation of a setting. (argparse knows one type for each, TRL wraps it.)"""
    for cls in (TaskConfig, SASRConfig, ModelConfig):
        for base in cls.__mro__:
            if key in getattr(base, "__annotations__", {}):
                return set(re.findall(r"\w+", str(base.__annotations__[key])))
    return set()


def _fits(value: Any, kinds: set[str], action: argparse.Action) -> bool:
    if isinstance(value, str):  # argparse converts text, also that of defaults
        try:
            (action.type if callable(action.type) else str)(value)
        except (TypeError, ValueError, argparse.ArgumentTypeError):
            return False
        return True
    if isinstance(value, bool):  # before int, of which it is a kind
        return "bool" in kinds
    if isinstance(value, int):
        return bool(kinds & {"int", "float"})
    return type(value).__name__ in kinds


def _as_list(value: Any, action: argparse.Action) -> Any:
    """A YAML value as argparse would give it from the command line: it converts only text that is not in a list."""
    if action.nargs != "+" or value is None:
        return value
    items = value if isinstance(value, list) else [value]
    return [action.type(item) if isinstance(item, str) and callable(action.type) else item for item in items]


def base_recipe(given: dict[str, Any]) -> str:
    """The recipe that fills in what was not given: that of the task, or the one for tasks without."""
    name = str(given.get("task", "stories"))
    return name if (RECIPES / f"{name}.yaml").is_file() else "own"


def parse(argv: list[str], defaults: dict[str, Any] | None = None) -> Settings:
    """Settings from flags, `--config` and, without `--config`, the recipe of the task.

    Args:
        argv (`list[str]`): Flags after `sasr train`.
        defaults (`dict`, *optional*): Values that any recipe or flag overrides and that replace the task's recipe, such
            as those of the run that is resumed.
    """
    argv, config = _take_config(list(argv))
    parser = Parser()
    flags = _given_flags(argv)
    if config is not None:
        recipe, source = read_recipe(config), config
    elif defaults is not None:
        recipe, source = {}, "config.yaml"
    else:
        name = base_recipe(flags)
        recipe, source = read_recipe(str(RECIPES / f"{name}.yaml")), f"recipe {name}"
    if defaults is None and flags.get("schedule", recipe.get("schedule")) != recipe.get("schedule"):
        # What a recipe says of its own schedule is not for the one that a flag puts in its place.
        foreign = settings_of_other_schedules(flags["schedule"])
        if flags["schedule"] == "grpo":
            foreign["sft_warmup_steps"] = "the others"  # it is GRPO alone, and may have no demonstrations
        recipe = {key: value for key, value in recipe.items() if key not in foreign}
    recipe = {**(defaults or {}), **recipe}
    environment = recipe.pop("env", None) or {}
    if not isinstance(environment, dict):
        raise InputError(f"{source}: env is {environment!r}, but it must be `NAME: value` lines")
    for name, value in environment.items():
        set_variable(name, value, source)
    if "compare" in recipe:
        raise InputError(f"{source}: it has a compare section: use sasr compare --config {source}")
    if recipe.pop("resume_from_checkpoint", None):
        raise InputError(f"{source}: resume_from_checkpoint is for one start only: give it as a flag")
    check_values(recipe, parser, source)
    actions = parser.actions()
    recipe = {key: _as_list(value, actions[key]) for key, value in recipe.items()}
    parser.set_defaults_with_config(**recipe)
    namespace, rest = parser.parse_known_args(argv)
    if rest:
        flag = rest[0].split("=")[0]
        flags_known = [option for action in parser._actions for option in action.option_strings]
        raise InputError(f"unknown argument {flag}{did_you_mean(flag, flags_known)}")
    values = vars(namespace)
    if values["reward_weights"] is None:
        values["reward_weights"] = list(_DEFAULT_REWARD_WEIGHTS)
    given = {key: values[key] for key in values if key in recipe or key in flags}
    values["bf16"] = precision.of_command_line(values)
    try:
        task, training, model = (
            TaskConfig(**_fields_of(TaskConfig, values)),
            SASRConfig(**_fields_of(SASRConfig, values)),
            ModelConfig(**_fields_of(ModelConfig, values)),
        )
    except InputError:
        raise
    except (ValueError, TypeError, ImportError) as error:
        # transformers and TRL check their own settings, some in several lines
        raise InputError(" ".join(str(error).split())) from None
    if "num_train_epochs" in given and training.max_steps > 0:
        raise InputError(
            f"num_train_epochs {given['num_train_epochs']:g} does not count beside max_steps {training.max_steps}"
            f"{'' if 'max_steps' in flags else f' ({source})'}: give --max_steps -1 too, or leave it out"
        )
    return Settings(training, task, model, given, environment)


def _fields_of(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    return {f.name: values[f.name] for f in fields(cls) if f.init}


def _take_config(argv: list[str]) -> tuple[list[str], str | None]:
    config = None
    rest = []
    arguments = iter(argv)
    for argument in arguments:
        if argument == "--config":
            config = next(arguments, None)
            if config is None:
                raise InputError("--config needs a recipe: a YAML file or the name of one")
        elif argument.startswith("--config="):
            config = argument.partition("=")[2]
        else:
            rest.append(argument)
    return rest, config


def _given_flags(argv: list[str]) -> dict[str, Any]:
    """The settings that flags name, with their values."""
    probe = Parser()
    for action in probe._actions:
        action.default = argparse.SUPPRESS
    namespace, _ = probe.parse_known_args(argv)
    return vars(namespace)
