"""From runs to the table: figures worked by hand, what is missing, and text that could break it."""

from __future__ import annotations

import json

import pytest

from sasr import InputError
from sasr.compare import report, statistics
from sasr.compare.measures import cost, is_finished, measure, metrics_of, per_problem, sft_share, spent
from sasr.compare.plan import Comparison
from sasr.compare.reading import read
from sasr.compare.tuning import best_point
from sasr.compare.view import columns
from sasr.runs.state import total_seconds


def comparison(section: dict | None = None) -> Comparison:
    recipe = {"task": "stories", "sft_warmup_steps": 4, "max_steps": 10, "compare": section or {}}
    return read(recipe, "r.yaml", {}, {})


def measured(correct: list[int], greedy: list[int] | None = None, digest: str = "d", samples: int = 4) -> dict:
    greedy = greedy or [0] * len(correct)
    problems = {"digest": digest, "samples": samples, "correct": correct, "greedy": greedy}
    costs = {"steps": 10, "seconds": 2.0, "exam_seconds": 0.5, "sft_tokens": 50, "rollout_tokens": 100}
    return {**costs, "sft_share": 0.5, "problems": problems, "exam": {}}


def content(made: Comparison, results: dict, status: dict | None = None, choices: dict | None = None) -> dict:
    runs = made.runs(choices or {})
    return report.results(
        made, runs, results, status or dict.fromkeys(results, "finished"), choices or {}, "sasr compare"
    )


def test_metrics_of_a_run():
    run = measured([0, 1, 4], [0, 1, 1])
    assert metrics_of(4) == ["pass@1", "greedy", "pass@4"] and metrics_of(1) == ["pass@1", "greedy"]
    assert per_problem(run, "pass@1").tolist() == [0, 0.25, 1]
    assert per_problem(run, "greedy").tolist() == [0, 1, 1]
    assert per_problem(run, "pass@4").tolist() == [0, 1, 1]
    assert cost([run, run])["rollout_tokens"] == 200 and cost([]) == dict.fromkeys(cost([run]), 0)


def test_share_of_sft():
    lines = [{"phase": "warm-up", "kind": "sft", "p_sft": 1.0}]
    assert sft_share(lines) is None
    lines += [{"phase": "hybrid", "kind": kind, "p_sft": p} for kind, p in (("sft", 0.4), ("grpo", 0.9), ("both", 0.2))]
    assert sft_share(lines) == pytest.approx((1 + 0 + 0.2) / 3)


def test_figures_by_hand():
    made = comparison({"methods": ["static", "sasr", "sft"], "seeds": "1-2"})
    results = {
        "runs/static/seed-1": measured([0, 0], digest="one"),
        "runs/static/seed-2": measured([2, 2], digest="two"),
        "runs/sasr/seed-1": measured([4, 0], digest="one"),
        "runs/sasr/seed-2": measured([4, 2], digest="two"),
        "runs/sft/seed-2": measured([0, 2], digest="two"),
    }
    static, sasr, sft = report.figures(made, results)
    assert static["metrics"]["pass@1"]["mean"] == 0.25 and static["difference"] == {}
    assert sasr["metrics"]["pass@1"]["mean"] == pytest.approx((0.5 + 0.75) / 2)
    # per seed +0.5 and +0.25: of 4 assignments of signs ++ and -- are as far from zero
    difference = sasr["difference"]["pass@1"]
    assert difference["mean"] == pytest.approx(0.375) and difference["p"] == 0.5 and difference["seeds"] == [1, 2]
    low, high = difference["interval"]
    assert 0 <= low < 0.375 < high <= 1
    assert (low, high) == statistics.interval([[1, 0], [0.5, 0]]), "each seed has problems of its own"
    assert tuple(sasr["metrics"]["pass@1"]["interval"]) == statistics.interval([[1, 0], [1, 0.5]])
    only = sft["difference"]["pass@1"]  # of the one seed that both have
    assert only["seeds"] == [2] and only["mean"] == pytest.approx(-0.25) and only["p"] == 1.0
    assert difference["p_holm"] == 1.0 and only["p_holm"] == 1.0
    assert (sft["seeds"], sft["missing_seeds"]) == ([2], [1])
    assert sasr["per_run"]["seconds"] == 2.0 and sasr["sft_share"] == 0.5


def test_problems_that_all_seeds_share_are_drawn_once_for_all():
    """Hard and easy ones are so for every seed: drawn for each apart they would hide what the choice of them did."""
    made = comparison({"methods": ["static", "sasr"], "seeds": "1-3"})
    results = {f"runs/static/seed-{s}": measured([0, 0, 4, 4] * 8) for s in (1, 2, 3)}
    results |= {f"runs/sasr/seed-{s}": measured([0, 4, 4, 4] * 8) for s in (1, 2, 3)}
    _, sasr = report.figures(made, results)
    for figure, values in ((sasr["metrics"], [0, 1, 1, 1] * 8), (sasr["difference"], [0, 1, 0, 0] * 8)):
        low, high = figure["pass@1"]["interval"]
        assert (low, high) == statistics.interval([values] * 3, crossed=True)
        narrow = statistics.interval([values] * 3)
        assert high - low > 1.4 * (narrow[1] - narrow[0]), "as wide as of one seed"


def test_other_problems_are_not_paired():
    made = comparison({"methods": ["static", "sasr"], "seeds": 1})
    results = {"runs/static/seed-1": measured([0], digest="a"), "runs/sasr/seed-1": measured([4], digest="b")}
    assert report.figures(made, results)[1]["difference"]["pass@1"] is None
    report.markdown(content(made, results))


def test_choice_is_by_the_mean_and_the_first_of_equals():
    made = comparison({"methods": {"static": {"tune": {"switch_step": [5, 6, 7]}}}, "tune_seeds": "8-9"})
    static = made.method("static")
    scores = {5: ([0], [2]), 6: ([3], [1]), 7: ([1], [3])}
    results = {run.path: measured(scores[run.point["switch_step"]][run.seed - 8]) for run in made.tuning_runs(static)}
    assert best_point(made, static, results) == {"switch_step": 6}
    (row,) = report.figures(made, results)
    assert row["tuning_cost"] == {
        "runs": 6, "steps": 60, "seconds": 12.0, "exam_seconds": 3.0, "sft_tokens": 300, "rollout_tokens": 600,
    }  # fmt: skip
    text = report.markdown(content(made, results, choices={"static": {"switch_step": 6}}))
    assert "switch_step 6" in text and "6 runs, 60 steps, 12s, 600 tokens" in text
    assert "seeds 8, 9" in text and "static: not finished: seed 1, 2, 3" in text


def test_table_of_nothing_and_of_a_part():
    made = comparison()
    empty = content(made, {})
    assert "| - |" in report.markdown(empty)
    assert {run["status"] for run in empty["runs"]} == {"waiting"}
    status = {"runs/sasr/seed-1": "failed: p is | not `a` number (see logs/x.log)", "runs/sft/seed-1": "finished"}
    part = content(made, {"runs/sft/seed-1": measured([1, 2])}, status)
    text = report.markdown(part)
    assert "sft | 0.375 [" in text and "1 of 3" in text and "static: not finished: seed 1, 2, 3" in text
    assert "runs/sasr/seed-1 failed: p is \\| not \\`a\\` number" in text
    json.dumps(part, allow_nan=False)


def test_least_p_is_said():
    made = comparison({"methods": ["static", "sasr"], "seeds": "1-3"})
    results = {f"runs/{m}/seed-{s}": measured([s + (m == "sasr")]) for m in ("static", "sasr") for s in (1, 2, 3)}
    text = report.markdown(content(made, results))
    assert "with 3 seeds it cannot be below 0.25" in text
    assert "+0.250 [+0.250, +0.250] | 0.250 | 0.250 |" in text


def test_p_stands_before_what_holm_makes_of_it():
    made = comparison({"methods": ["static", "sasr", "sft"], "seeds": "1-3"})
    more = {"static": 0, "sasr": 1, "sft": 0}
    results = {f"runs/{m}/seed-{s}": measured([s - 1 + add]) for m, add in more.items() for s in (1, 2, 3)}
    head, _, *rows = report.table(content(made, results))
    at = head.index("p")
    assert head[at : at + 2] == ["p", "p (Holm)"]
    assert [row[at : at + 2] for row in rows] == [["0.250", "0.500"], ["1.000", "1.000"]]


def test_least_p_of_a_method_with_fewer_seeds():
    made = comparison({"methods": {"static": {}, "sasr": {}, "sft": {"seeds": "1-2"}}, "seeds": "1-3"})
    seeds = {"static": (1, 2, 3), "sasr": (1, 2, 3), "sft": (1, 2)}
    results = {f"runs/{m}/seed-{s}": measured([s]) for m in seeds for s in seeds[m]}
    text = report.markdown(content(made, results))
    assert "with 3 seeds it cannot be below 0.25" in text
    assert "sft: its p cannot be below 0.5, 2 of its seeds being the baseline's" in text and "sasr: its p" not in text


def test_interval_where_nothing_or_everything_was_right():
    """As that of an exam: 128 failures leave a success in 36 possible, however often they are drawn again."""
    made = comparison({"methods": ["static", "sasr"], "seeds": "1-2"})
    results = {f"runs/static/seed-{s}": measured([0] * 128) for s in (1, 2)}
    results |= {f"runs/sasr/seed-{s}": measured([4] * 128) for s in (1, 2)}
    static, sasr = report.figures(made, results)
    assert static["metrics"]["pass@1"]["interval"] == [0.0, pytest.approx(1 - 0.025 ** (1 / 128))]
    assert sasr["metrics"]["pass@1"]["interval"] == [pytest.approx(0.025 ** (1 / 128)), 1.0]
    assert sasr["difference"]["pass@1"]["interval"] == [1.0, 1.0]


def test_a_shared_warm_up_counts_once_in_the_total():
    runs = [
        {"directory": "warmups/1", "stage": "warmup", "warmup": None, "seconds": 10.0},
        {"directory": "runs/a", "warmup": "warmups/1", "seconds": 30.0},
        {"directory": "runs/b", "warmup": "warmups/1", "seconds": 25.0},
        {"directory": "runs/c", "warmup": None, "seconds": 7.0},
        {"directory": "runs/d", "warmup": "warmups/1"},
    ]
    assert total_seconds({"runs": runs}) == 10 + 20 + 15 + 7


def test_text_that_could_break_a_table():
    assert report.escape("a|b\nc\\d`e*f<g") == "a\\|b c\\\\d\\`e\\*f\\<g"
    assert report.escape("[x](y) [0.1, 0.2]") == "[x]\\(y) [0.1, 0.2]"
    made = comparison({"methods": ["sft", "static"]})
    odd = content(made, {})
    odd["comparison"]["task"] = "my|task\n.py:`T`"
    odd["command"] = "sasr compare --task 'a`|\nb'"
    lines = report.markdown(odd).splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    assert len(rows) == 3 and len({row.replace("\\|", "").count("|") for row in rows}) == 1
    assert lines[0].startswith("# my\\|task .py:\\`T\\`") and lines[2].count("`") == 2


def test_columns_line_up():
    assert columns([["a", "bb"], ["ccc", "d"]]) == ["a    bb", "ccc   d"]


def test_the_seconds_of_a_run_that_logs_every_second_step(tmp_path):
    made = comparison({"methods": ["sasr"], "seeds": 1})
    warmup, run = made.runs({})
    for path, steps in ((warmup.path, (2, 4, 6)), (run.path, (6, 8))):
        (tmp_path / path).mkdir(parents=True)
        lines = [{"step": s, "phase": "hybrid", "kind": "sft", "step_seconds": 1.0, "seconds": 2.5} for s in steps]
        (tmp_path / path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert spent(tmp_path, run)["seconds"] == 10, "the steps 1 to 4 of its warm-up, and its own"


def test_measures_from_the_files_of_a_run(tmp_path):
    made = comparison({"methods": ["sasr"], "seeds": 1})
    warmup, run = made.runs({})
    for path, first, last in ((warmup.path, 1, 4), (run.path, 5, 6)):
        (tmp_path / path).mkdir(parents=True)
        lines = [
            {"step": s, "phase": "warm-up" if s < 5 else "hybrid", "kind": "sft" if s < 6 else "grpo", "p_sft": 0.5,
             "step_seconds": 1.0, "sft_tokens": 10 * s, "rollout_tokens": 3 * (s == 6), "sft_steps": s, "grpo_steps": 0}
            for s in range(first, last + 1)
        ]  # fmt: skip
        (tmp_path / path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    where = tmp_path / run.path
    assert not is_finished(tmp_path, run)
    record = {
        "prompt": "p",
        "answer": "a",
        "greedy": {"correct": True},
        "samples": [{"correct": True}, {"correct": False}],
    }
    (where / "exams").mkdir()
    (where / "exams" / "final.jsonl").write_text(json.dumps(record) + "\n")
    exam = {"final": {"samples": 2, "seconds": 1.5, "step": 6}}
    (where / "exam.json").write_text(json.dumps(exam))
    assert is_finished(tmp_path, run)
    found = measure(tmp_path, run)
    assert (found["steps"], found["seconds"], found["exam_seconds"]) == (6, 6.0, 1.5), "the warm-up's steps included"
    assert (found["sft_share"], found["sft_tokens"], found["rollout_tokens"]) == (0.5, 60, 3)
    assert (found["problems"]["correct"], found["problems"]["greedy"]) == ([1], [1])
    (where / "exams" / "final.jsonl").write_text("{")
    with pytest.raises(InputError, match="exam cannot be read"):
        measure(tmp_path, run)
