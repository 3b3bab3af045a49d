"""The terminal view, on a terminal and in a log file. No sleeping: the clock is ours."""

import io
import re
import sys
import types

import pytest
from rich.console import Console

from sasr.live import LiveView, format_duration, format_number, format_pace, sparkline, strip
from sasr.notebook import NotebookView


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def view_on(terminal, width=80, file=None):
    clock = Clock()
    out = io.StringIO() if file is None else file
    console = Console(file=out, force_terminal=terminal, width=width, height=30, _environ={"TERM": "xterm"})
    return LiveView(console, clock), clock, out


def screen(view, width):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(view._render())
    return console.file.getvalue().splitlines()


def metrics(step, warmup=4, **more):
    kind = "sft" if step <= warmup or step % 2 else "grpo"
    given = {"step": step, "phase": "warm-up" if step <= warmup else "hybrid", "kind": kind, "step_seconds": 1.0}
    given |= {"sft_grad_norm": 1.31, "warmup_grad_norm": 1.52, "p_sft": 0.42 if step > warmup else None}
    return given | ({"sft_loss": 0.61} if kind == "sft" else {"reward": 0.53, "step_seconds": 5.0}) | more


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_display_fits_any_terminal(width):
    view, clock, out = view_on(True, width)
    with view:
        view.start(400, 0, 4, "title [bold] with [/nonsense] \x1b[2J\n and a second line " + "x" * 100)
        assert all(len(line) <= width for line in screen(view, width))
        for step in range(1, 121):
            clock.now += 1
            view.step(metrics(step))
        view.exam("held-out [x]", 128, 900)
        lines = screen(view, width)
        assert len(lines) == 6 and all(len(line) <= width for line in lines)
        view.exam("held-out", 900, 900)
        assert len(screen(view, width)) == 5
    if width == 80:
        text = "\n".join(lines)
        for part in ("title [bold]", "elapsed 2m00s", "30%", "step 120/400", "left", "hybrid", "grpo", "p_sft 0.42"):
            assert part in text
        for part in ("norm 1.31 (warm-up 1.52)", "reward 0.53 ▄▄▄", "sft loss 0.61", "SGSGSG", "exam held-out [x]"):
            assert part in text
        assert "\x1b[2J" not in out.getvalue()


def test_messages_go_above_and_are_not_markup():
    view, _, out = view_on(True)
    with view:
        view.start(10, 0, 0, "t")
        view.message("saved [red]to[/red] [/oops]\x1b[2J")
    assert "saved [red]to[/red] [/oops][2J" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    view.stop()  # twice is fine


def test_display_ends_on_an_exception():
    view, _, out = view_on(True)
    with pytest.raises(KeyboardInterrupt), view:
        view.start(10, 0, 0, "t")
        raise KeyboardInterrupt
    assert view._live is None and "\x1b[?25h" in out.getvalue()  # the cursor is shown again


def test_plain_lines_are_few_and_hold_first_and_last():
    view, clock, out = view_on(False)
    with view:
        view.start(400, 0, 4, "run [bold]")
        for step in range(1, 401):
            clock.now += 0.01
            view.step(metrics(step))
    lines = out.getvalue().splitlines()
    assert lines[0] == "run [bold]  400 steps, 4 of them warm-up"
    steps = [int(re.match(r"step (\d+)/400", line)[1]) for line in lines[1:]]
    assert steps == [1, *range(20, 401, 20)]
    expected = r"step 120/400  hybrid  grpo  p_sft 0\.42  norm 1\.31 \(warm-up 1\.52\)  reward 0\.53  sft_loss 0\.61  "
    assert re.fullmatch(expected + r"\d\.\d\d s/step  \d+m\d\ds left", lines[7])
    assert "\x1b" not in out.getvalue() and "left" not in lines[-1]


def test_plain_lines_every_30_seconds_and_the_last_on_a_stop():
    view, clock, out = view_on(False)
    with view:
        view.start(10_000, 100, 0, "t")
        for step in range(101, 109):
            clock.now += 11
            view.step(metrics(step))
    steps = re.findall(r"step (\d+)/", out.getvalue())
    assert steps == ["101", "104", "107", "108"]
    assert "resumed after step 100" in out.getvalue()


def test_plain_survives_an_ascii_stream_and_missing_metrics():
    raw = io.BytesIO()
    view, _, _ = view_on(True, file=io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    with view:
        view.start(2, 0, 0, "é")
        view.step({})
        view.step({"reward": None, "kind": None, "sft_loss": float("nan")})
        view.message("→")
    assert b"step 1/2" in raw.getvalue() and b"sft_loss nan" in raw.getvalue()


def test_time_left_weighs_kinds_and_is_silent_about_the_unknown():
    view, _, _ = view_on(False)
    view.start(104, 0, 4, "t")
    for step in (1, 2):
        view.step(metrics(step, step_seconds=1.0))
    assert view._left() == "2s to hybrid"
    view.step(metrics(3))
    view.step(metrics(4))
    view.step(metrics(5, p_sft=0.5))
    assert view._left() == ""  # a GRPO step was never seen
    view.step(metrics(6, p_sft=0.5, step_seconds=9.0))
    assert view._left() == "8m10s left"  # 98 steps of (1 + 9) / 2 s


def test_time_left_after_the_warm_up_does_not_average_its_p_sft_in():
    """It said 10m50s in the first steps after a warm-up, in which every step is SFT with p_sft 1."""
    view, _, _ = view_on(False)
    view.start(500, 0, 100, "t")
    for step in range(1, 101):
        view.step(metrics(step, warmup=100, p_sft=1.0))
        assert step == 100 or view._left().endswith("to hybrid"), "nothing is known of rollouts"
    for step, kind, seconds in ((101, "sft", 1.0), (102, "grpo", 10.0)):
        view.step(metrics(step, warmup=100, kind=kind, p_sft=0.3, step_seconds=seconds))
    assert view._left() == "48m25s left"  # 398 steps of .3 * 1 + .7 * 10 s
    resumed, _, _ = view_on(False)
    resumed.start(500, 102, 100, "t")
    for step, kind, seconds in ((103, "sft", 1.0), (104, "grpo", 10.0)):
        resumed.step(metrics(step, warmup=100, kind=kind, p_sft=None, step_seconds=seconds))
    assert resumed._left() == "36m18s left"  # 396 steps, as many of them SFT as GRPO: no p_sft has been told


@pytest.mark.parametrize("done", [0, 200])
def test_seconds_that_a_run_may_spend_are_a_bound_on_the_time_left(done):
    """max_steps was the only one: a run that ended after an hour had 68 days left."""
    view, _, _ = view_on(False)
    view.budget({"max_seconds": (6.0 * done, 3600.0)})
    view.start(1_000_000, done, 4, "t")
    for step in range(done + 1, done + 301):
        view.budget({"max_seconds": (6.0 * step, 3600.0)})
        view.step(metrics(step, warmup=4, step_seconds=6.0, p_sft=0.5))
    spent = 6 * (done + 300)
    assert view._left() == f"{format_duration(3600 - spent)} left"
    assert f"{spent / 3600:4.0%}  step {done + 300}/1000000" in screen(view, 80)[1]
    view.budget({"max_seconds": (3600.0, 3600.0)})
    assert view._left() == ""


def test_rollout_tokens_that_a_run_may_spend_are_a_bound_on_the_time_left():
    def left(kinds, p_sft, done=0, total=1_000_000):
        view, asked = view_on(False)[0], done // 2
        view.budget({"max_rollout_tokens": (100.0 * asked, 10_000.0)})
        view.start(total, done, 4, "t")
        for step, kind in enumerate(kinds, done + 1):
            asked += kind != "sft"
            view.budget({"max_rollout_tokens": (100.0 * asked, 10_000.0)})
            seconds = 1.0 if kind == "sft" else 10.0
            view.step(metrics(step, kind=kind, p_sft=p_sft, grpo_steps=float(asked), step_seconds=seconds))
        return view._left()

    warmup = ["sft"] * 4
    assert left(warmup[:2], 1.0) == "2s to hybrid"
    assert left([*warmup, "grpo", "grpo"], 0.75) == "21m14s left"  # 98 GRPO steps of 10 s, 3 SFT steps of 1 s each
    assert left([*warmup, "both", "both"], 0.75) == "16m20s left", "each step of both has rollouts"
    assert left([*warmup, "grpo", "grpo"], 0.0, total=26) == "3m20s left", "the steps end it first"
    assert left(["sft", "grpo", "grpo"], 0.0, done=100) == "8m00s left"  # 50 GRPO steps before it was resumed
    assert left([*warmup, "sft", "sft"], 1.0, total=26) == "20s left", "SFT spends none of them"


def test_time_without_step_seconds_leaves_out_exams():
    view, clock, _ = view_on(False)
    view.start(10, 0, 0, "t")
    for _ in range(2):
        clock.now += 100
        view.exam("e", 5, 5)
        clock.now += 2
        view.step({"kind": "both"})
    assert view._left() == "16s left"


def test_an_exam_shows_its_pace_and_the_time_it_has_left():
    plain, clock, out = view_on(False)
    plain.start(10, 0, 0, "t")
    for begun in (0, 1000):
        clock.now = begun
        for done, seconds in ((0, 0), (4, 20), (8, 40), (12, 60), (16, 100)):
            clock.now = begun + seconds
            plain.exam("initial", done, 16)
    said = ["exam initial 8/16  5.0 s each  40s left", "exam initial 16/16  6.2 s each"]
    assert out.getvalue().splitlines()[1:] == 2 * said
    rich, clock, _ = view_on(True)
    with rich:
        rich.start(10, 0, 0, "t")
        rich.exam("final", 0, 900)
        assert screen(rich, 80)[-1].strip() == "exam final   0/900"
        clock.now += 10
        rich.exam("final", 300, 900)
        assert screen(rich, 80)[-1].strip() == "exam final   300/900  30.0 a second  20s left"


def test_in_a_notebook_one_display_is_redrawn(monkeypatch, capsys):
    shown = []

    class Handle:
        def update(self, page):
            shown.append(page)

    def display(page, display_id):
        shown.append(page)
        return Handle()

    fake = types.SimpleNamespace(HTML=str, display=display)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(display=fake))
    monkeypatch.setitem(sys.modules, "IPython.display", fake)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as kernels do
    clock = Clock()
    view = NotebookView(clock)
    with view:
        view.start(100, 0, 4, "<title>")
        for step in range(1, 101):
            clock.now += 0.1
            view.step(metrics(step))
        view.message("exam final: 0.5\x1b[2J")
    assert 15 <= len(shown) <= 25, "not at every step"
    for part in ("&lt;title&gt;", "step 100/100", "p_sft 0.42", "SGSG"):
        assert part in re.sub("<[^>]*>", "", shown[-1])
    assert capsys.readouterr().out == "exam final: 0.5[2J\n"


def test_forced_colours_make_no_terminal_of_a_file(tmp_path, monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):  # as continuous integration sets them
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("TERM", "xterm")
    with open(tmp_path / "log", "w+", encoding="utf-8") as log:
        monkeypatch.setattr(sys, "stdout", log)
        with LiveView() as view:
            view.start(10, 0, 4, "<title>")
            view.step(metrics(1))
            view.message("[told]")
        log.seek(0)
        text = log.read()
    assert "[told]\n" in text and "step 1/10" in text and "\x1b" not in text


def test_helpers():
    durations = [(None, "?"), (float("nan"), "?"), (-1, "0s"), (42.4, "42s"), (59.7, "1m00s"), (118, "1m58s")]
    for seconds, text in [*durations, (7500, "2h05m"), (3 * 86400 + 4 * 3600, "3d04h")]:
        assert format_duration(seconds) == text
    assert sparkline([], 5) == "" and sparkline([1.0], 5) == "▄" and sparkline([0, 1], 5) == "▁█"
    assert sparkline([0, float("nan"), 7], 5) == "▁█"
    assert len(sparkline(list(range(1000)), 24)) == 24 and sparkline([1], 0) == ""
    assert strip(["sft", "grpo", "both", None, "new"], 4) == "GB.." and strip(["sft"], 0) == ""
    assert format_pace(None) == "" and format_pace(0.42) == "0.42 s/step" and format_pace(0.04) == "25 steps/s"
    numbers = [(0, "0.00"), (1.312, "1.31"), (143.0, "143"), (2e-5, "2.0e-05"), (float("nan"), "nan")]
    assert [format_number(value) for value, _ in numbers] == [text for _, text in numbers]
