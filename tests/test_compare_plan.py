"""Which runs a comparison consists of, what they share, and in which order they can be started. No torch, no files."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sasr import InputError, SASRConfig
from sasr.compare.check import comparison_text
from sasr.compare.plan import Comparison, differences, point_name
from sasr.compare.reading import read, seeds_of
from sasr.parsing import check_keys_once

BASE = {"task": "stories", "sft_warmup_steps": 4, "max_steps": 10, "learning_rate": 1e-4}


def comparison(section: dict | None = None, flags: dict | None = None, /, **options) -> Comparison:
    return read({**BASE, "compare": section or {}}, "r.yaml", flags or {}, options)


def paths(made: Comparison, choices: dict | None = None) -> list[str]:
    return [run.path for run in made.runs(choices or {})]


def settings_of(made: Comparison, path: str, choices: dict | None = None) -> dict:
    return next(run.settings for run in made.runs(choices or {}) if run.path == path)


def test_defaults():
    made = comparison()
    assert [method.name for method in made.methods] == ["sft", "static", "sasr", "random"]
    assert made.method("random").match == "sasr" and made.baseline == "static"
    assert made.method("sft").seeds == (1, 2, 3) and str(made.budget) == "steps=10"
    assert "validation_rows" not in made.settings, "nothing is tuned"
    assert comparison({"methods": ["sasr", "sft"]}).baseline == "sasr"


def test_a_baseline_that_the_flags_leave_out():
    section = {"methods": {"static": {}, "sasr": {}, "sft": {}}, "baseline": "sasr"}
    assert comparison(section).baseline == "sasr"
    assert comparison(section, methods=["sft", "static"]).baseline == "static"
    assert comparison(section, methods=["sft"]).baseline == "sft"
    with pytest.raises(InputError, match="unknown baseline 'sasr'"):
        comparison(section, methods=["sft"], baseline="sasr")
    with pytest.raises(InputError, match="unknown baseline 'sasrr'"):
        comparison({**section, "baseline": "sasrr"})


def test_bare_names_and_flags():
    made = comparison(
        {"methods": {"grpo": {}, "sasr-2": {"schedule": "sasr", "gamma": 2.0}}}, methods=["sasr-2", "sft"]
    )
    assert [(m.name, m.schedule, m.settings) for m in made.methods] == [
        ("sasr-2", "sasr", {"gamma": 2.0}),
        ("sft", "sft", {}),
    ]
    assert comparison({}, methods=["grpo"]).method("grpo").settings == {"sft_warmup_steps": 0}
    assert comparison({"methods": {"grpo": {}}}).method("grpo").settings == {}, "as the recipe says"
    assert comparison({}, methods=["random"]).method("random").match is None, "there is no sasr to match"
    assert comparison({"seeds": 7}, {"gamma": 3.0}, seeds=["1-2", "5"]).method("sasr").seeds == (1, 2, 5)


def test_seeds_that_are_asked_for_are_those_of_every_method():
    """Also where each has its own, as in any comparison.yaml."""
    methods = {"sasr": {"seeds": "1-8"}, "random": {"match_run": "sasr", "seeds": 1}, "sft": {}}
    section = {"methods": methods, "seeds": 3}
    made = comparison(section, seeds=["9-16"])
    assert {method.seeds for method in made.methods} == {tuple(range(9, 17))}
    again = read(yaml.safe_load(comparison_text(comparison(section))), "comparison.yaml", {}, {"seeds": ["9-16"]})
    assert again == made
    assert [method.seeds for method in comparison(section).methods] == [tuple(range(1, 9)), (1,), (3,)]


def test_order_of_the_runs():
    made = comparison({"methods": ["sft", "random", "sasr", "static", "grpo"], "seeds": "1-2"})
    order = [path for path in paths(made) if not path.startswith("warmups")]
    methods = ["static", "sasr", "sft", "grpo", "random"]  # the baseline, then what others wait for
    assert order == [f"runs/{method}/seed-{seed}" for seed in (1, 2) for method in methods]
    started: set[str] = set()
    for run in made.runs({}):
        assert started.issuperset(run.needs), "a run comes after those it needs"
        started.add(run.path)


def test_what_a_run_is_told():
    made = comparison(
        {"methods": ["static", "sasr"], "seeds": 3}, {"gamma": 2.0, "switch_step": 6, "task_options": {"steps": [1, 2]}}
    )
    assert all(run.settings["task_options"] == {"steps": [1, 2]} for run in made.runs({}))
    sasr, static = (settings_of(made, f"runs/{name}/seed-3") for name in ("sasr", "static"))
    assert sasr["gamma"] == 2.0 and "switch_step" not in sasr, "a shared setting of one schedule is for that one"
    assert static["switch_step"] == 6 and "gamma" not in static
    for settings in (sasr, static):
        assert (settings["seed"], settings["max_steps"]) == (3, 10)
        assert (settings["exam_at"], settings["exam_split"]) == (["final"], "test")
        assert "max_seconds" not in settings and "warmup_from" not in settings


@pytest.mark.parametrize(
    ("text", "name", "amount"),
    [("seconds=2.5", "max_seconds", 2.5), ("rollout_tokens=1e5", "max_rollout_tokens", 100_000)],
)
def test_other_budgets_are_not_ended_by_steps(text, name, amount):
    made = comparison({"budget": text, "methods": ["sasr"]})
    settings = settings_of(made, "runs/sasr/seed-1")
    assert settings[name] == amount and settings["max_steps"] == 1_000_000
    (donor, *_) = made.runs({})
    assert donor.settings["max_steps"] == 4 and name not in donor.settings, "the warm-up is done whatever it costs"


def test_warmups_are_shared_by_what_decides_them():
    made = comparison(
        {
            "methods": {
                "sft": {}, "static": {"switch_step": 7}, "sasr": {"gamma": 2.0}, "random": {"match_run": "sasr"},
                "faster": {"schedule": "sasr", "learning_rate": 5e-4, "sft_learning_rate": 1e-4},
                "other": {"schedule": "sasr", "sft_learning_rate": 2e-3},
                "rate": {"schedule": "sasr", "learning_rate": 2e-3},
                "longer": {"schedule": "sasr", "sft_warmup_steps": 5},
                "grpo": {"sft_warmup_steps": 0},
                "all": {"schedule": "sft", "sft_warmup_steps": 10},
            },
            "seeds": "1-2",
        }
    )  # fmt: skip
    donors = {run.path: run.warmup for run in made.runs({}) if run.stage == "final"}
    of = {name: donors[f"runs/{name}/seed-1"] for name in [m.name for m in made.methods]}
    assert len({of[name] for name in ("sft", "static", "sasr", "random", "faster")}) == 1
    # learning_rate is the rate of the warm-up where sft_learning_rate is not given
    assert of["other"] == of["rate"] != of["sasr"] != of["longer"] != of["other"]
    assert of["grpo"] is None and of["all"] is None, "nothing to share"
    assert donors["runs/sasr/seed-2"] not in of.values()
    donor = settings_of(made, of["sasr"])
    assert (donor["schedule"], donor["max_steps"], donor["exam_at"], donor["seed"]) == ("sft", 4, [], 1)
    assert not {"gamma", "switch_step"} & set(donor)


@pytest.mark.parametrize(
    "settings",
    [{"rollouts_ahead": 4}, {"sft_questions": "failed", "failed_threshold": 0.5, "failed_decay": 0.5}],
    ids=lambda settings: next(iter(settings)),
)
def test_what_only_the_hybrid_phase_has_shares_the_warmup_of_those_without(settings, tmp_path):
    made = comparison({"methods": {"changed": {"schedule": "sasr", **settings}, "sasr": {}}, "seeds": "1"})
    donor, *runs = made.runs({})
    assert [run.warmup for run in runs] == [donor.path] * 2
    assert not settings.keys() & donor.settings.keys(), "a warm-up has no GRPO step"
    known = {field.name for field in dataclasses.fields(SASRConfig)}
    SASRConfig(str(tmp_path), report_to="none", **{k: v for k, v in donor.settings.items() if k in known})


TUNED = {
    "methods": {
        "sft": {"tune": {}}, "static": {"tune": {"switch_step": [5, 7]}}, "sasr": {}, "random": {"match_run": "sasr"},
    },
    "tune": {"learning_rate": [1e-4, 2e-4], "gamma": [1.0, 2.0]},
    "tune_seeds": [101, 102],
    "seeds": "1-2",
}  # fmt: skip


def test_tuning():
    made = comparison(TUNED)
    assert [method.name for method in made.tuned] == ["static", "sasr"]
    assert len(made.tuning_runs(made.method("static"))) == 4 and len(made.tuning_runs(made.method("sasr"))) == 8
    assert "tuning/sasr/learning_rate=0.0001,gamma=2.0/seed-102" in paths(made)
    assert [p for p in paths(made) if p.startswith("runs")] == ["runs/sft/seed-1", "runs/sft/seed-2"]
    choices = {"static": {"switch_step": 7}, "sasr": {"learning_rate": 2e-4, "gamma": 2.0}}
    assert settings_of(made, "runs/static/seed-1", choices)["switch_step"] == 7
    sasr, random = (settings_of(made, f"runs/{name}/seed-2", choices) for name in ("sasr", "random"))
    assert (sasr["learning_rate"], sasr["gamma"]) == (2e-4, 2.0)
    assert random["learning_rate"] == 2e-4 and "gamma" not in random, "the control takes over what fits it"
    everything = made.runs(choices)
    assert {run.settings["validation_rows"] for run in everything} == {128}, "all train on the same rows"
    splits = {(run.stage, run.settings["exam_split"]) for run in everything}
    assert splits == {("warmup", "test"), ("tuning", "validation"), ("final", "test")}
    assert len(made.samples_of_settings()) == 1 + 2 + 4 + 4


@given(st.data())
def test_the_written_comparison_is_the_comparison(data):
    section = dict(data.draw(st.sampled_from([TUNED, {}, {"methods": ["grpo", "sasr"], "budget": {"seconds": 3}}])))
    section["seeds"] = data.draw(st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True))
    made = comparison(section)
    written = yaml.safe_load(comparison_text(made))
    again = read(written, "comparison.yaml", {}, {})
    assert again == made and list(differences(written, again.to_recipe())) == []


def test_differences_name_the_place():
    then, now = {"a": 1, "b": {"c": [1], "d": 0}}, {"a": 1, "b": {"c": [2]}, "e": 3}
    assert list(differences(then, now)) == ["b.c: [1] then, [2] now", "b.d: set then, not now", "e: not then, set now"]
    assert list(differences(then, json.loads(json.dumps(then)))) == []


def test_names_of_points():
    assert point_name({"switch_step": 5, "learning_rate": 1e-4}) == "switch_step=5,learning_rate=0.0001"
    odd = [point_name({"data": text}) for text in ("a/b", "a-b", "a:b", "x" * 300)]
    assert len(set(odd)) == 4 and all("/" not in name and len(name) < 120 for name in odd)


@pytest.mark.parametrize(
    ("value", "seeds"),
    [("1-3", (1, 2, 3)), (["1-2", "5"], (1, 2, 5)), ("1 2,4", (1, 2, 4)), (7, (7,)), ([3, 1], (3, 1)), ("0", (0,))],
)
def test_seeds(value, seeds):
    assert seeds_of(value, "seeds") == seeds


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "no seeds"), ([], "no seeds"), ("1 1", "seed 1 is given twice"), ("1-3 2", "seed 2 is given twice"),
        ("3-1", "from low to high"), ("-1", "'-1' is no seed"), ("1.5", "no seed"), (True, "no seed"), ("a", "no seed"),
        ("0-99999999", "at most 10000"), ("99999999999", "no seed"), (4294967296, "below 2\\^32"),
    ],
)  # fmt: skip
def test_seeds_that_are_none(value, message):
    with pytest.raises(InputError, match=message):
        seeds_of(value, "seeds")


def test_a_key_that_is_there_twice():
    check_keys_once("a: 1\nb: {a: 1}\nc: [{a: 1}]\n", "r.yaml")
    for text in ("a: 1\na: 2\n", "b:\n  a: 1\n  a: 2\n", "c: [{a: 1, a: 2}]"):
        with pytest.raises(InputError, match=r"r\.yaml:[123]: a is given twice"):
            check_keys_once(text, "r.yaml")
    check_keys_once("", "r.yaml")
    check_keys_once("a: &all [*all, {b: *all}]\n", "r.yaml")  # ends


def test_planning_needs_no_torch():
    code = "import sys, sasr.compare.reading, sasr.compare.statistics; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
