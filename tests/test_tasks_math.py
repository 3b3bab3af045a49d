from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import pytest

from sasr.errors import InputError
from sasr.tasks import MathTask
from sasr.tasks.math_worker import MathVerifier

RECORDS = [
    {
        "problem": "If $m$ is a real number and $2x^2+mx+8$ has two distinct real roots, then what are the possible"
        " values of $m$?  Express your answer in interval notation.",
        "level": "Level 5",
        "type": "Algebra",
        "solution": "The discriminant gives $(m-8)(m+8) > 0$, which implies $m\\in \\boxed{(-\\infty,-8)\\cup"
        " (8,\\infty)}$.",
    },
    {"problem": "Roll?", "level": "Level ?", "type": "Algebra", "solution": "Either \\boxed{1} or \\boxed{\\frac12}."},
]
HANG = "9^{9^{9^9}}"


@pytest.fixture(scope="module")
def task():
    # Ample: the first comparison also warms SymPy up, on a machine that may be busy.
    task = MathTask(timeout=30)
    yield task
    task.verifier.close()


def scripted(monkeypatch, body):
    """A worker that greets and then does `body`."""
    script = "import sys, os, time\nprint('{\"ready\": true}', flush=True)\n" + body
    monkeypatch.setattr(MathVerifier, "_command", lambda self: [sys.executable, "-c", script])


def test_rows_and_demonstrations_need_no_worker(monkeypatch):
    monkeypatch.setattr(MathVerifier, "_start", lambda self: pytest.fail("a worker was started"))
    task = MathTask()
    rows = [task.to_row(record) for record in RECORDS]
    assert [row["difficulty"] for row in rows] == [5, None]
    assert [row["answer"] for row in rows] == [r"(-\infty,-8)\cup (8,\infty)", r"\frac12"]
    assert rows[1]["completion"] == "Either 1 or \\boxed{\\frac12}."
    verdicts = task.check_all([row["completion"] for row in rows], rows)
    assert all(verdict.correct and verdict.well_formed and verdict.failure is None for verdict in verdicts)
    assert task.check(r"\boxed{ \dfrac12. }", rows[1]).correct
    assert not task.check(r"\boxed{" + "1+" * 600 + "1}", rows[1]).correct
    assert not task.check("no box", rows[1]).correct
    assert not task.check(r"\boxed{5}", {"answer": None}).correct
    with pytest.raises(InputError, match="'solution' must have its answer"):
        task.to_row({"problem": "p", "solution": "5"})


@pytest.mark.parametrize(
    ("answer", "written", "correct"),
    [
        ("5", "5.0", True),
        (r"\frac{1}{2}", "0.5", True),
        (r"2\sqrt{2}", r"\sqrt{8}", True),
        ("x^2-10x+41", "41 + x^2 - 10x", True),
        (r"\text{Friday}", "Friday", True),
        ("(10,3)", r"\bigl(10,3\bigr)", True),
        (r"\text{March 4}", "March 4", True),
        (r"90^\circ", "90°", True),
        (r"90^\circ", r"90\degree", True),
        (r"90^\circ", "80°", False),
        (r"\emptyset", r"\varnothing", True),
        ("443_5", "443_6", False),
        ("443_5", "443_{5}", True),
        ("443_5", "443", True),
        ("5", "6", False),
        ("5", "5, 6", False),
        (".0000672", ".0000674", False),
        (".0000672", r"6.72\cdot10^{-5}", True),
        (r"\frac{1}{2^{30}}", "0.0", False),
        ("0", "0.0", True),
        (r"\frac{1}{3}", "0.3333333", True),
        ("5", "{" * 10 + "}" * 10, False),
        # A variable is no unit.
        ("4t", "4t", True),
        ("4t", "t4", True),
        ("4t", "4", False),
        ("4t", "4s", False),
        (r"2\mathbf{a}-3\mathbf{b}", "2", False),
        (r"2\mathbf{a}-3\mathbf{b}", r"2\mathbf{a}", False),
        ("4", r"4\text{t}", False),
        # A unit is.
        (r"25\text{ ft}", "25", True),
        (r"25 \text{ ft}", r"25\,\mathrm{ft}", True),
        (r"25\text{ ft}", "25 feet", True),
        ("25", "25 feet", True),
        (r"8\sqrt{3} \text { square inches}", r"8\sqrt3\text{ in}^2", True),
        (r"8\sqrt{3} \text { square inches}", r"\sqrt{192}", True),
        (r"440\text{ cm}^2", "440", True),
        (r"25\text{ mph}", r"25\text{ miles per hour}", True),
        (r"65 \text{ children tickets }", r"65\text{ tickets}", True),
        (r"1920\text{ ways.}", "1920", True),
        (r"69\text{ degrees}", r"69^\circ", True),
        (r"9\text{ a.m.}", r"9\text{ AM}", True),
        (r"9\text{ a.m.}", r"9\text{ p.m.}", False),
        ("9 am", "9 pm", False),
        (r"5\text{ hours}", r"5\text{ minutes}", False),
        (r"5\text{ hours }30\text{ minutes}", r"5\text{ hours }30\text{ minutes.}", True),
        (r"5\text{ hours }30\text{ minutes}", r"5\text{ hours }45\text{ minutes}", False),
        (r"5\text{ hours }30\text{ minutes}", r"6\text{ hours }25\text{ minutes}", False),
        (r"5\text{ hours }30\text{ minutes}", "5", False),
        ("5 hours 30 minutes", "6 hours 25 minutes", False),
        ("5", r"5\text{ or 6}", False),
        ("5", r"5\text{ million}", False),
        (r"19 \text{ and }43", "43, 19", True),
        # A percentage, as whole numbers are.
        ("12.5", r"12.5\%", True),
        (r"7.2\%", "7.2", True),
        (r"7.2\%", r"7.2\text{ percent}", True),
        (r"7.2\%", "0.072", True),
        (r"7.2\%", "0.72", False),
        (r"44\%", "44", True),
        (r"44\%", r"45\%", False),
        ("1, 200", "1200", False),
        # Small numbers, and large ones.
        (r"\frac{1}{2^{98}}", r"\frac{1}{2^{99}}", False),
        (r"\frac{1}{2^{98}}", r"\frac{2}{2^{99}}", True),
        (r"\frac{1}{2^{98}}", "2^{-98}", True),
        (r"2^{2000}", r"4^{1000}", True),
        (r"1.5\cdot 10^{400}", r"1.6\cdot 10^{400}", False),
        (r"\sqrt{2}+\sqrt{3}", r"\sqrt{5+2\sqrt{6}}", True),
        ("0", r"\sqrt{2}+\sqrt{3}-\sqrt{5+2\sqrt{6}}", True),
        ("3+4i", "4i+3", True),
        (r"\infty", r"+\infty", True),
    ],
)
def test_equal_expressions(task, answer, written, correct):
    verdict = task.check(rf"so \boxed{{{written}}}", {"answer": answer})
    assert (verdict.correct, verdict.failure) == (correct, None)


@pytest.mark.parametrize("asked_by", ["exam", "reward"])
@pytest.mark.parametrize(
    ("problem", "answer", "written", "correct"),
    [
        ("Factor $7x^2-63$.", "7(x+3)(x-3)", "7x^2-63", False),
        ("Factor $7x^2-63$.", "7(x+3)(x-3)", "7(x-3)(x+3)", True),
        (r"Evaluate $6+5-4\times 3\div (2+1).$", "7", r"6 + 5 - 4\times 3\div(2+1)", False),
        (r"Compute \[\dbinom{5}{2} = \]", "10", r"\binom{5}{2}", True),  # spelled in another way: not seen
        (r"Compute \[\dbinom{5}{2} = \]", "10", r"\dbinom{5}{2}", False),
        (r"Which is larger, $\frac{1}{2}$ or $0.3$?", "0.5", r"\frac{1}{2}", True),
        ("Simplify $(x+1)^2$ if it can be.", "(x+1)^2", "(x+1)^2", True),
        ("Is $5$ prime?", "5.0", "5", True),
    ],
)
def test_the_question_is_no_answer(task, asked_by, problem, answer, written, correct):
    """It is equal to the answer, and a policy that copied it got the whole reward."""
    completion, prompt = rf"so \boxed{{{written}}}", f"{problem}\n\nReason step by step."
    if asked_by == "reward":  # as TRL calls it
        reward = task.reward_funcs()[0]
        assert reward(prompts=[prompt], completions=[completion], answer=[answer]) == [float(correct)]
        return
    verdict = task.check(completion, {"answer": answer, "prompt": prompt})
    assert (verdict.correct, verdict.failure) == (correct, None)


def test_well_formed():
    assert MathTask().well_formed(r"\boxed{5}")
    for text in (r"\boxed{5} \boxed{5}", r"\boxed{5", r"\boxed{}", "5"):
        assert not MathTask().well_formed(text)


@pytest.mark.parametrize(
    ("completion", "good"),
    [
        (r"<think>\boxed{4} \boxed{5}</think> \boxed{5}", True),
        (r"hmm \boxed{4}</think> \boxed{5}", True),
        (r"<think>\boxed{5}", False),
        (r"<think>\boxed{5}</think>", False),
    ],
)
def test_thoughts_state_no_answer(task, completion, good):
    verdict = task.check(completion, {"answer": "5"})
    assert verdict.correct == verdict.well_formed == good


def test_batch_asks_each_pair_once(task, monkeypatch):
    asked = []
    verify = task.verifier.verify
    monkeypatch.setattr(task.verifier, "verify", lambda *pair: asked.append(pair) or verify(*pair))
    texts = [r"\boxed{3+2}", r"\boxed{7}", r"\boxed{3+2}", r"\boxed{5}", "none"]
    verdicts = task.check_all(texts, [{"answer": "5"}] * 5)
    assert [verdict.correct for verdict in verdicts] == [True, False, True, True, False]
    assert asked == [("5", "3+2"), ("5", "7")]


def test_real_hang_is_a_timeout_and_the_next_item_is_judged():
    task = MathTask(timeout=30)
    assert task.check(r"\boxed{3+2}", {"answer": "5"}).correct
    hung = task.verifier._process
    task.verifier.timeout = 0.5
    begin = time.monotonic()
    verdict = task.check(rf"\boxed{{{HANG}}}", {"answer": "5"})
    assert (verdict.correct, verdict.failure, verdict.well_formed) == (False, "timeout", True)
    assert time.monotonic() - begin < 10 and hung.poll() is not None
    task.verifier.timeout = 30
    assert task.check(r"\boxed{3+2}", {"answer": "5"}).correct
    task.verifier.close()


def test_an_expression_too_deep_to_parse_is_a_failure(task):
    """math-verify swallows the error, which would make a wrong answer of it."""
    for deep in ("\\sqrt{" * 140 + "5" + "}" * 140, "-" * 900 + "5"):
        verdict = task.check(rf"\boxed{{{deep}}}", {"answer": "5"})
        assert not verdict.correct and verdict.failure.startswith("crash: RecursionError"), deep
    for no_mathematics in (r"\int", r"\begin{cases}", r"\frac\frac", "\x00"):
        assert task.check(rf"\boxed{{{no_mathematics}}}", {"answer": "5"}).failure is None


def test_hanging_worker_from_a_thread(monkeypatch):
    scripted(monkeypatch, "time.sleep(600)")
    task, results = MathTask(timeout=0.2), []
    threads = [
        threading.Thread(target=lambda: results.append(task.check(r"\boxed{3+2}", {"answer": "5"}))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [verdict.failure for verdict in results] == ["timeout"] * 3


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("sys.stdin.readline(); os._exit(3)", "exited with status 3"),
        ("sys.stdin.readline(); os.kill(os.getpid(), 11)", "died of signal 11"),
        ("sys.stdin.readline(); print('rubbish', flush=True)", "crash: "),
    ],
)
def test_crash_is_a_failure(monkeypatch, body, message):
    scripted(monkeypatch, body)
    verdict = MathTask(timeout=20).check(r"\boxed{3+2}", {"answer": "5"})
    assert not verdict.correct and verdict.failure.startswith("crash: ") and message in verdict.failure


def test_worker_that_cannot_start(monkeypatch):
    monkeypatch.setattr(MathVerifier, "_command", lambda self: [sys.executable, "-c", "raise SystemExit(4)"])
    assert "status 4" in MathTask().check(r"\boxed{3+2}", {"answer": "5"}).failure
    monkeypatch.setattr(MathVerifier, "_command", lambda self: ["/nonexistent/python"])
    assert MathTask().check(r"\boxed{3+2}", {"answer": "5"}).failure.startswith("crash: ")


def test_failures_are_no_reward(monkeypatch):
    scripted(monkeypatch, "time.sleep(600)")
    correctness, form = MathTask(timeout=0.1).reward_funcs()
    columns = {"answer": ["5", "5"]}
    completions = [r"\boxed{3+2}", r"\boxed{5}"]
    assert correctness(["p", "p"], completions, **columns) == [None, 1.0]
    assert correctness.failures == ["timeout"]
    # Not its format alone, which would be the reward of a wrong answer.
    assert form(["p", "p"], completions, **columns) == [None, 1.0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_child_starts_its_own_worker(task):
    assert task.check(r"\boxed{3+2}", {"answer": "5"}).correct
    worker = task.verifier._process
    with task.verifier._lock:  # as if another thread were waiting for a reply
        child = os.fork()
        if child == 0:
            good = task.check(r"\boxed{4+1}", {"answer": "5"}).correct and task.verifier._process.pid != worker.pid
            task.verifier.close()
            os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert worker.poll() is None and task.check(r"\boxed{1+4}", {"answer": "5"}).correct
    assert task.verifier._process is worker


def test_worker_ends_with_its_parent():
    script = (
        "from sasr.tasks import MathTask\ntask = MathTask(30)\n"
        "assert task.check(r'\\boxed{3+2}', {'answer': '5'}).correct\nprint(task.verifier._process.pid)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)


def test_an_alarm_ends_a_worker_that_hangs_and_none_that_waits():
    """For a parent that is gone and can kill nobody. Here it comes after 2 * limit + 5 = 0.5 seconds."""
    code = "import time\nfrom sasr.tasks.worker import serve\n"
    code += "serve(lambda: lambda asked: {'slept': time.sleep(asked['seconds'])})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, text=True, **pipes) as worker:

        def ask(seconds: float) -> str:
            print(json.dumps({"limit": -2.25, "seconds": seconds}), file=worker.stdin, flush=True)
            return worker.stdout.readline()

        assert json.loads(worker.stdout.readline()) == {"ready": True}
        assert ask(0.0)
        time.sleep(0.8)
        assert worker.poll() is None and ask(0.0), "between two questions nothing is late"
        assert ask(5.0) == "" and worker.wait(10) == -signal.SIGALRM


def test_missing_math_verify(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install math-verify"):
        MathTask().check(r"\boxed{3+2}", {"answer": "5"})


def test_tasks_can_be_copied(task):
    assert pickle.loads(pickle.dumps(task)).verifier.timeout == 30
