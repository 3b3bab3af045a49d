"""What `sasr exam` is asked to do: flags over the settings of the run that the model comes from over defaults."""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sasr.errors import InputError, did_you_mean, unknown
from sasr.exam.engines import ENGINES
from sasr.exam.vllm_engine import check_vllm
from sasr.flags import Flags
from sasr.model_files import expand
from sasr.task_config import BAD_ROWS, json_mapping

CONFIG_FILE = "config.yaml"  # of a run of sasr train
_DEFAULTS: dict[str, Any] = {
    "rows": 200,
    "n": 8,
    "max_new_tokens": 256,
    "temperature": 1.0,
    "batch_size": 64,
    "seed": 0,
    "dtype": "float32",
    "load_in_4bit": False,
    "engine": "transformers",
}
# What sasr train calls it, and what it takes where config.yaml is silent.
_NAMES_OF_RUNS = {
    "rows": "exam_rows",
    "n": "exam_samples",
    "max_new_tokens": "max_completion_length",
    "temperature": "temperature",
    "batch_size": "per_device_eval_batch_size",
    "seed": "seed",
    "dtype": "dtype",
    "load_in_4bit": "load_in_4bit",
}
# What an exam goes by that is a setting of TRL or transformers, and so only in config.yaml if it is put there.
LIMITS = ("max_completion_length", "temperature", "per_device_eval_batch_size", "chat_template_kwargs")
_UNSET: dict[str, Any] = {"task_options": None, "entropy": False, "perturb": (), "k": (), "difficulty": ()}
_DTYPES = ("float32", "bfloat16", "float16", "auto")
_KINDS = {"rows": int, "n": int, "max_new_tokens": int, "batch_size": int, "seed": int, "temperature": float}
_TEXTS = ("model", "task", "data", "bad_rows", "dtype", "engine", "initial_model", "nll_task", "nll_data", "output_dir")


@dataclass(frozen=True)
class Request:
    """The settings of one exam. All but `output_dir` and `run` decide its result.

    Args:
        model (`str`): Directory, GGUF file or hub name of the model.
        task (`str`), data (`str`, *optional*): What to ask. Without `data` the rows that the run held out, those that
            the task generates, or the test split of its dataset on the Hub.
        bad_rows (`str`): `"error"`, or `"skip"` to leave out what cannot be used.
        task_options (`dict`, *optional*): What the task is made with.
        difficulty (`tuple[str, ...]`): Ask only rows of these; of all if empty.
        rows (`int`), n (`int`): Rows, and sampled completions of each.
        k (`tuple[int, ...]`): Which pass@k to report, in ascending order; the powers of two up to `n` if empty.
        max_new_tokens (`int`), temperature (`float`): Of the completions.
        batch_size (`int`): Completions generated at a time; another one draws other samples.
        seed (`int`): Of the sampling.
        dtype (`str`): Type of the weights.
        load_in_4bit (`bool`): Whether to quantise the weights, with the run's settings of bitsandbytes.
        engine (`str`): What generates the completions.
        initial_model (`str`, *optional*): What to measure the KL from.
        entropy (`bool`): Whether to measure the entropy without `initial_model`.
        perturb (`tuple[str, ...]`): Kinds of perturbation that the rows are asked in too.
        nll_task (`str`, *optional*), nll_data (`str`, *optional*): Demonstrations to measure the NLL of.
        output_dir (`Path`, *optional*): Where everything goes.
        run (`dict`, *optional*): Settings of the run of `sasr train` that the model comes from.
    """

    model: str
    task: str
    task_options: dict[str, Any] | None
    data: str | None
    bad_rows: str
    difficulty: tuple[str, ...]
    rows: int
    n: int
    k: tuple[int, ...]
    max_new_tokens: int
    temperature: float
    batch_size: int
    seed: int
    dtype: str
    load_in_4bit: bool
    engine: str
    initial_model: str | None
    entropy: bool
    perturb: tuple[str, ...]
    nll_task: str | None
    nll_data: str | None
    output_dir: Path | None
    run: dict[str, Any] | None

    @property
    def held_out(self) -> bool:
        """Whether the rows are those that the run held out from its training."""
        if self.run is None or self.data is not None:
            return False
        # With other options the prompts may be others, and those that were set apart too.
        asked = self.task, self.task_options or {}
        return asked == (str(self.run.get("task", "stories")), self.run.get("task_options") or {})

    @property
    def block(self) -> int:
        """Rows that are examined and written together: enough to fill a few batches, few enough to lose little."""
        if self.engine == "vllm":
            # Its batch refills itself, and runs empty only at the end of a block.
            return max(1, 16 * self.batch_size // self.n)
        return max(1, min(self.batch_size, 4 * self.batch_size // self.n))

    @property
    def scores(self) -> bool:
        """Whether the completions are looked at token by token."""
        return self.entropy or self.initial_model is not None

    def settings(self) -> dict[str, Any]:
        """What decides the result, JSON-safe."""
        values = asdict(self)
        # Which rows are left out shows in the digest of those that are asked.
        del values["output_dir"], values["run"], values["bad_rows"]
        # None where not given, as if it were not there: the directory of an earlier version has no such key.
        return {
            **values,
            "k": self.k or None,
            "difficulty": self.difficulty or None,
            "load_in_4bit": self.load_in_4bit or None,
        }


def read_request(argv: list[str]) -> Request:
    """The request that flags make. Raises `InputError` for the first one that cannot be used."""
    given = _flags(argv)
    if given.get("model") is None:
        raise InputError("no model: give --model a directory, a GGUF file, a hub name or a run of sasr train")
    run = run_settings(given["model"])
    values: dict[str, Any] = dict.fromkeys([*_TEXTS, *_DEFAULTS]) | _UNSET | _DEFAULTS
    if run is not None:
        values["task"] = str(run.get("task", "stories"))
        if ":" in values["task"] and "task" not in given:
            # The directory may be somebody else's: code is run only if the command line names it.
            own = values["task"]
            raise InputError(f"model {given['model']}: its run's task {own} is code; to run it, name it: --task {own}")
        if given.get("task", values["task"]) == values["task"]:
            values["task_options"] = run.get("task_options")
        values |= {ours: run[theirs] for ours, theirs in _NAMES_OF_RUNS.items() if run.get(theirs)}
        values["bad_rows"] = run.get("bad_rows")
    values |= given
    values["bad_rows"] = values["bad_rows"] or "error"
    if values["bad_rows"] not in BAD_ROWS:
        raise unknown("bad_rows", values["bad_rows"], BAD_ROWS)
    if values["task"] is None:
        raise InputError(f"no task: give --task ({given['model']} is not a run of sasr train, which would name one)")
    for name in ("rows", "n", "max_new_tokens", "batch_size"):
        if not isinstance(values[name], int) or values[name] < 1:
            raise InputError(f"{name} is {values[name]}: it must be 1 or more")
    if not (values["temperature"] > 0 and math.isfinite(values["temperature"])):
        raise InputError(f"temperature is {values['temperature']}: it must be above 0 (greedy decoding is done anyway)")
    if values["nll_data"] is not None and values["nll_task"] is None:
        raise InputError("nll_data needs nll_task: the task whose demonstrations the file holds")
    values["k"] = tuple(sorted(set(values["k"])))
    if values["k"] and values["k"][0] < 1:
        raise InputError(f"k is {values['k'][0]}: it must be 1 or more")
    if values["k"] and values["k"][-1] > values["n"]:
        k = values["k"][-1]
        raise InputError(f"k is {k}, but n is {values['n']}: pass@{k} needs as many samples, raise n or lower k")
    for name in ("perturb", "difficulty"):
        values[name] = tuple(dict.fromkeys(values[name]))
    values["output_dir"] = None if values["output_dir"] is None else expand(values["output_dir"])
    values["dtype"] = str(values["dtype"]).removeprefix("torch.")
    if values["dtype"] not in _DTYPES:
        raise unknown("dtype", values["dtype"], _DTYPES)
    if values["engine"] not in ENGINES:
        raise unknown("engine", values["engine"], ENGINES)
    if values["engine"] == "vllm":
        if values["load_in_4bit"]:
            raise InputError("load_in_4bit is for engine transformers: set it to false, or leave --engine out")
        check_vllm(values["model"])
    return Request(**values, run=run)


def run_settings(model: str) -> dict[str, Any] | None:
    """The settings of the run of `sasr train` whose directory, or a checkpoint in which, `model` is; else `None`."""
    directory = run_directory(model)
    if directory is None:
        return None
    from sasr.parsing import read_recipe

    found = read_recipe(str(directory / CONFIG_FILE))
    return found if "task" in found or "schedule" in found else None


def run_directory(model: str) -> Path | None:
    """The directory with a `config.yaml` that `model` is, or is a checkpoint in."""
    path = expand(model)
    inside = path.name.startswith("checkpoint-") or path.name == "initial_model"
    return next((p for p in ((path, path.parent) if inside else (path,)) if (p / CONFIG_FILE).is_file()), None)


def _flags(argv: list[str]) -> dict[str, Any]:
    from transformers.hf_argparser import string_to_bool

    parser = Flags("sasr exam", argument_default=argparse.SUPPRESS)
    for name in _TEXTS:
        parser.add_argument(f"--{name}")
    for name, kind in _KINDS.items():
        parser.add_argument(f"--{name}", type=kind)
    parser.add_argument("--task_options", type=json_mapping)
    parser.add_argument("--entropy", action="store_true")
    parser.add_argument("--load_in_4bit", type=string_to_bool, nargs="?", const=True)
    parser.add_argument("--k", type=int, nargs="+")
    for name in ("perturb", "difficulty"):
        parser.add_argument(f"--{name}", nargs="+")
    namespace, rest = parser.parse_known_args(argv)
    if rest:
        flag = rest[0].split("=")[0]
        raise InputError(f"unknown argument {flag}{did_you_mean(flag, parser._option_string_actions)}")
    return vars(namespace)
