"""The report: what is read, what is left out, what it may hold."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import report_data
import sasr.cli
from report_data import HOSTILE, record
from sasr import locks
from sasr.errors import InputError
from sasr.report import describe, examined, html, report_quietly, write_report
from sasr.report.text import rounded

RESULTS = Path(__file__).parent.parent / "docs" / "results"


def titles(document: dict) -> dict[str, dict]:
    return {figure["title"]: figure for part in document["sections"] for figure in part["figures"]}


def document_of(directory: Path) -> dict:
    return describe(directory, directory / "report.html")


# ---- runs ----


def test_a_finished_run(tmp_path):
    directory = report_data.run(tmp_path / "run", hub_token="secret")
    document = document_of(directory)
    assert document["title"] == "sasr on stories" and document["state"]["text"] == "finished"
    found = titles(document)
    assert found["Which steps were SFT, which GRPO"]["counts"]["both"] == 0
    norms = {s["name"]: s["y"] for s in found["Gradient norms of SFT"]["series"]}
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    columns = {"g_last": "sft_grad_norm", "g_warmup": "warmup_grad_norm"}
    assert norms == {name: [line[column] for line in lines] for name, column in columns.items()}
    assert found["Divergence from the reference policy"]["series"]
    assert [s["name"] for s in found["Success by difficulty"]["series"]] == ["3", "4.5", "12"]
    assert [row[1] for row in found["All exams"]["rows"]] == ["0", "20", "40"]
    assert found["Completions"]["exams"] == ["before", "step 20", "at the end"]
    assert len(found["Completions"]["questions"]) == 6
    assert sum(part["value"] for part in found["Where the time went"]["parts"]) == pytest.approx(40 * 0.2 + 3 * 2.5)
    assert "secret" not in html({**document, "made": ""})


def test_each_rate_of_an_exam_is_drawn_under_its_own_name(tmp_path):
    found = titles(document_of(report_data.run(tmp_path)))
    course = {s["name"]: s["y"] for s in found["Accuracy over training"]["series"]}
    scores = [0.1, 0.35, 0.6]
    assert course == {"pass@1": scores, "greedy": [0.75 * s for s in scores], "pass@2": [1.5 * s for s in scores]}
    last = found["By difficulty"]["series"][-1]
    assert (last["name"], last["y"]) == ("at the end", pytest.approx([0.6, 0.3, 0.2]))


def test_a_run_as_far_as_it_got(tmp_path):
    directory = report_data.run(tmp_path / "run", exams=1, max_steps=60)
    shutil.rmtree(directory / "exams")
    with open(directory / "metrics.jsonl", "a") as file:
        file.write('{"step": 41, "ki')  # still being written
    document = document_of(directory)
    assert document["state"]["text"] == "unfinished, step 40 of 60"
    assert "Completions" not in titles(document)
    (directory / "checkpoint-40").mkdir()
    assert document_of(directory)["state"]["text"] == "stopped at step 40 of 60"
    with locks.at_work(directory, "test"):
        assert document_of(directory)["state"] == {"tone": "good", "text": "running, step 40 of 60"}
    assert document_of(directory)["state"] == {"tone": "warn", "text": "killed at step 40 of 60"}
    (directory / "exam.json").unlink()
    (directory / "metrics.jsonl").unlink()
    assert list(titles(document_of(directory))) == ["Settings"]


def test_a_run_with_a_line_for_every_tenth_step(tmp_path):
    path = report_data.run(tmp_path) / "metrics.jsonl"
    counts = [(10, 10, 0), (20, 17, 3), (30, 17, 13), (40, 27, 13)]
    lines = [
        {"step": step, "phase": "warm-up" if step == 10 else "hybrid", "kind": "sft", "p_sft": 0.5}
        | {"sft_steps": sft, "grpo_steps": grpo, "step_seconds": 1.0, "seconds": float(step)}
        for step, sft, grpo in counts
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    document = document_of(tmp_path)
    facts = {fact["title"]: fact for fact in document["facts"]}
    assert facts["Steps"]["note"] == "27 SFT, 13 GRPO; at least 10 warm-up" and facts["Time"]["value"] == "1m40s"
    figures = titles(document)
    which = figures["Which steps were SFT, which GRPO"]
    assert which["counts"] == {"sft": 27, "grpo": 13, "both": 0}
    assert which["strip"] == [[1, 10, 1, 0], [11, 20, 0.7, 0], [21, 30, 0, 0], [31, 40, 1, 0]]
    parts = {part["name"]: part["value"] for part in figures["Where the time went"]["parts"]}
    assert parts.pop("exams") > 0
    assert parts == {"SFT, warm-up": 10, "SFT, hybrid phase": 40, "GRPO": 30, "steps of several kinds": 20}


def test_a_run_that_spent_its_budget(tmp_path):
    directory = report_data.run(tmp_path / "run", max_steps=1_000_000, max_seconds=8)
    assert document_of(directory)["state"]["text"] == "budget spent at step 40"


def test_best_and_last_exam_are_told_apart(tmp_path):
    directory = report_data.run(tmp_path / "run")
    exams = json.loads((directory / "exam.json").read_text())
    exams["step-20"] = report_data.figures(20, 0.9)
    (directory / "exam.json").write_text(json.dumps(exams))
    facts = {fact["title"]: fact for fact in document_of(directory)["facts"]}
    assert facts["Best exam"]["value"] == "0.900" and "step 20" in facts["Best exam"]["note"]
    assert facts["Last exam"]["value"] == "0.600" and "0.100 before" in facts["Last exam"]["note"]


def test_hostile_texts_stay_texts(tmp_path):
    directory = report_data.run(tmp_path / "run", task=HOSTILE.encode("utf-8", "replace").decode())
    bad = [
        record(0, HOSTILE),
        record(1, "x" * 1_000_000),
        {**record(2), "prompt": [{"role": "user", "content": HOSTILE}]},
    ]
    report_data.write_records(directory / "exams" / "final.jsonl", bad)
    page = write_report(directory).read_text()
    assert page.count("<script") == 2 and "taken'</script>" not in page and "\u202e" not in page
    assert len(page) < 200_000


def test_a_long_run_is_a_small_page(tmp_path):
    directory = report_data.run(tmp_path / "run", steps=5000, exams=21, rows=100)
    for path in (directory / "exams").iterdir():
        report_data.write_records(path, [record(row, "long " * 2000) for row in range(100)])
    assert write_report(directory).stat().st_size < 5e6


# ---- exams and comparisons ----


def test_an_exam_under_way(tmp_path):
    settings = {"model": "runs/stories-1", "task": "stories", "n": 2, "perturb": ["names"]}
    (tmp_path / "exam.json").write_text(json.dumps({"settings": settings, "versions": {}, "figures": None}))
    assert document_of(tmp_path)["state"]["text"] == "stopped after 0 rows"
    changed = {**record(0), "prompt": "another", "perturbation": "names", "original": 0}
    report_data.write_records(tmp_path / "completions.jsonl", [record(0), record(1), changed])
    document = document_of(tmp_path)
    found = titles(document)
    assert document["state"]["text"] == "stopped after 2 rows"
    assert [row["name"] for row in found["What the change costs"]["rows"]] == ["names"]
    assert [asked["note"] for asked in found["Completions"]["questions"]] == [
        "difficulty 1",
        "changed: names, difficulty 1",
        "difficulty 2",
    ]


def test_a_comparison_with_a_sweep(tmp_path):
    shutil.copy(RESULTS / "compare-switch" / "results.json", tmp_path)
    for seed, rate in ((1, 0.2), (2, 0.4)):
        where = tmp_path / "runs" / "sasr-100" / f"seed-{seed}"
        where.mkdir(parents=True)
        exams = {"step-100": report_data.figures(100, rate), "final": report_data.figures(400, 2 * rate)}
        (where / "exam.json").write_text(json.dumps(exams))
        (where / "report.html").touch()
    document = document_of(tmp_path)
    found = titles(document)
    (sweep,) = found["static-swept: switch step"]["series"]
    assert sweep["x"] == [100, 160, 220, 280, 340] and max(sweep["y"]) == sweep["y"][-1]
    (curve,) = found["Learning curves"]["series"]
    assert (curve["name"], curve["x"]) == ("sasr-100", [100, 400])
    assert curve["y"] == pytest.approx([0.3, 0.6]) and curve["low"] == [0.2, 0.4]
    links = [row[0]["href"] for row in found["All runs"]["rows"] if "href" in row[0]]
    assert links == ["runs/sasr-100/seed-1/report.html", "runs/sasr-100/seed-2/report.html"]
    values = [row["value"] for row in found["pass@1"]["rows"]]
    assert values == sorted(values, reverse=True) and len(values) == 8


def test_a_sweep_over_rates_that_yaml_reads_as_text(tmp_path):
    results = json.loads((RESULTS / "compare-switch" / "results.json").read_text())
    rates = {100: "1e-5", 160: "3e-5", 220: 1.0e-4, 280: "3e-4", 340: "1e-3"}
    for run in results["runs"]:
        if run["stage"] == "tuning":
            run["tuned"] = {"learning_rate": rates[run["tuned"]["switch_step"]]}
    results["chosen"]["static-swept"] = {"learning_rate": "1e-3"}
    (tmp_path / "results.json").write_text(json.dumps(results))
    sweep = titles(document_of(tmp_path))["static-swept: learning rate"]
    assert sweep["series"][0]["x"] == [1e-5, 3e-5, 1e-4, 3e-4, 1e-3] and "Chosen: 0.001." in sweep["caption"]


def test_a_point_that_tuning_left_out_is_marked(tmp_path):
    results = json.loads((RESULTS / "compare-switch" / "results.json").read_text())
    results["left_out"] = {"static-swept": [{"switch_step": 160}]}
    row = next(row for row in results["methods"] if row["method"] == "static-swept")
    row["tuning_cost"]["failed"] = 1
    (tmp_path / "results.json").write_text(json.dumps(results))
    found = titles(document_of(tmp_path))
    stands = {row[1]: row[4] for row in found["Every point"]["rows"]}
    assert (stands["switch_step 160"], stands["switch_step 220"], stands["switch_step 340"]) == (
        "left out",
        "",
        "chosen",
    )
    assert found["What tuning chose, and cost"]["rows"][0][2] == {"text": "10", "note": "1 failed"}


def test_sft_and_grpo_alone_have_the_colours_of_their_steps(tmp_path):
    shutil.copy(RESULTS / "compare-stories" / "results.json", tmp_path)
    rows = {row["name"]: row["colour"] for row in titles(document_of(tmp_path))["pass@1"]["rows"]}
    assert (rows["sft (8)"], rows["grpo (8)"], rows["static (8)"], rows["sasr (8)"]) == ("sft", "grpo", "muted", "ink")


def test_accuracy_is_drawn_against_the_costs_of_a_run(tmp_path):
    shutil.copy(RESULTS / "compare-stories" / "results.json", tmp_path)
    methods = json.loads((tmp_path / "results.json").read_text())["methods"]
    found = titles(document_of(tmp_path))
    for cost, what in (("seconds", "seconds inside optimizer steps"), ("rollout_tokens", "rollout tokens")):
        drawn = {s["name"]: (s["x"], s["y"]) for s in found[f"Accuracy against {what}"]["series"]}
        assert drawn == {m["method"]: ([m["per_run"][cost]], [m["metrics"]["pass@1"]["mean"]]) for m in methods}


def test_failed_runs_are_named(tmp_path):
    results = json.loads((RESULTS / "compare-switch" / "results.json").read_text())
    results["runs"][-1]["status"] = "failed: not enough memory"
    (tmp_path / "results.json").write_text(json.dumps(results))
    document = document_of(tmp_path)
    assert document["state"] == {"tone": "warn", "text": "1 of 42 runs failed"}
    assert titles(document)["All runs"]["rows"][-1][2] == {"text": "failed", "note": "not enough memory"}


# ---- the page ----


def test_the_page_allows_its_own_script_and_nothing_else(tmp_path):
    page = html({**document_of(report_data.run(tmp_path)), "made": ""})
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy and "http" not in policy
    for element in ("script", "style"):
        (text,) = re.findall(rf"<{element}>(.*?)</{element}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{element}-src 'sha256-{digest}'" in policy
    assert "innerHTML" not in page and "style=" not in page


def test_colours_can_be_read_in_both_themes():
    css = (Path(sasr.report.__file__).parent / "page" / "page.css").read_text()
    pairs = {name: both for name, *both in re.findall(r"--([\w-]+): light-dark\((#\w+), (#\w+)\)", css)}

    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for name in set(pairs) - {"paper", "card", "rule", "shade"}:
        for theme in (0, 1):
            for ground in ("paper", "shade"):
                low, high = sorted((light(pairs[name][theme]), light(pairs[ground][theme])))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (name, ground, theme)


# ---- the command ----


def command(capsys, *arguments: object) -> tuple[int, str, str]:
    status = sasr.cli.main(["report", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_report_and_figures(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    directory = report_data.run(tmp_path / "run")
    status, out, err = command(capsys, directory, "--output", tmp_path / "page.html", "--figures", tmp_path / "figures")
    assert (status, err) == (0, "") and (tmp_path / "page.html").is_file()
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert f"{len(names) // 2} figures" in out and len(names) > 20
    assert names[:2] == ["01-which-steps-were-sft-which-grpo.png", "01-which-steps-were-sft-which-grpo.svg"]
    assert not (directory / "report.html").exists()


def test_figures_without_matplotlib(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, err = command(capsys, report_data.run(tmp_path), "--figures", tmp_path / "figures")
    assert (status, err) == (2, "sasr: error: figures need matplotlib: pip install 'sasr[figures]'\n")


def broken(name: str, text: str):
    def make(directory: Path) -> None:
        (directory / name).write_text(text)

    return make


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (shutil.rmtree, "there is no directory"),
        (lambda directory: None, "is no run, exam or comparison"),
        (broken("metrics.jsonl", '{"step": 1}\nnonsense\n{"step": 2}\n'), "metrics.jsonl:2 is not a JSON object"),
        (broken("exam.json", '{"final": '), "exam.json cannot be read"),
        (broken("exam.json", "[]"), "exam.json holds no JSON object"),
        (broken("exam.json", '{"final": {"pass_at": [1, 2]}}'), "is not as sasr writes it"),
        (broken("config.yaml", "a: [b"), "config.yaml cannot be read"),
        (broken("results.json", '{"methods": 3}'), "is not as sasr writes it"),
        (broken("comparison.yaml", "task: stories\n"), "has no results.json yet"),
    ],
)
def test_what_cannot_be_reported_is_one_line(tmp_path, capsys, make, wanted):
    directory = tmp_path / "it"
    directory.mkdir()
    make(directory)
    status, out, err = command(capsys, directory)
    assert (status, out, err.count("\n")) == (2, "", 1) and wanted in err, err
    assert not (directory / "report.html").exists()


def test_wrong_arguments_are_one_line(tmp_path, capsys):
    directory = report_data.run(tmp_path / "run")
    for arguments, wanted in (
        ([], "no directory"),
        ([directory, "--ouput", "x"], "did you mean --output?"),
        ([directory, "--output"], "expected one argument"),
        ([directory, "--output", tmp_path], "is a directory"),
        ([directory, "--output", tmp_path / "gone" / "page.html"], "cannot be written"),
        ([directory, "--figures", directory / "config.yaml"], "cannot be written"),
    ):
        status, _, err = command(capsys, *arguments)
        assert (status, err.count("\n")) == (2, 1) and wanted in err, err


def test_a_failing_report_is_one_line_at_the_end_of_a_run(tmp_path, monkeypatch):
    said: list[str] = []
    report_quietly(tmp_path / "gone", said.append)
    monkeypatch.setattr("sasr.report.html", lambda document: 1 / 0)
    report_quietly(report_data.run(tmp_path / "run"), said.append)
    assert len(said) == 2 and all(text.startswith("no report: ") and "\n" not in text for text in said)


def test_no_torch_for_the_report_of_a_run(tmp_path):
    directory = str(report_data.run(tmp_path))
    code = f"import sys; from sasr.cli import main; main(['report', {directory!r}]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_unreadable_records_are_named(tmp_path):
    directory = report_data.run(tmp_path)
    (directory / "exams" / "final.jsonl").write_text("{}\nnonsense\n")
    with pytest.raises(InputError, match=r"final.jsonl:2 is not a JSON object"):
        write_report(directory)


def test_each_k_has_a_place_of_its_own():
    exam = {"pass_at": {"1": 0.1, "2": 0.2, "3": 0.3, "4": 0.4}}
    places = examined.pass_at_k({"": exam})["series"][0]["x"]
    assert places == pytest.approx([0, 1, 1.585, 2], abs=1e-3)


def test_whole_numbers_keep_their_digits():
    assert [rounded(123457.0), rounded(0.123456789), rounded(float("inf"))] == [123457, 0.12346, None]
