"""What cannot be judged gets no reward, is counted, and ends the training where that is wanted: never a silent zero."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import toy
from sasr import InputError
from sasr.curriculum import Levels
from sasr.exam import examine
from sasr.limits import TooLate, within
from sasr.reward_guard import RewardGuard
from sasr.selection import Selection
from sasr.tasks import JsonlTask, Verdict, get_task, judge_all

NO_WARMUP = {"schedule": "grpo", "sft_warmup_steps": 0, "max_steps": 1}


def failing(how, first=8):
    """A reward that fails in its first `first` completions (of 8 in a generation) in one way, and is right after."""
    seen = 0

    def reward(completions, **_):
        nonlocal seen
        good = [float(i % 2) for i in range(len(completions))]
        seen += len(completions)
        return good if seen > first else how(good)

    return reward


def raising(good):
    return [1 / 0 for _ in good]


def hanging(good):
    while True:
        try:
            time.monotonic()
        except BaseException:  # as careless code has it
            if len(good) == 99:
                break
            raise


WHOLE_BATCH = {
    "raises": (raising, "ZeroDivisionError: division by zero (", "test_reward_failures.py:"),
    "hangs": (hanging, "took longer than reward_timeout, 0.3 s", ""),
    "gives None": (lambda good: None, "TypeError", "NoneType"),
    "gives a number": (lambda good: 1.0, "TypeError", "float"),
    "gives text": (lambda good: "11111111", "TypeError", "not a list of numbers"),
    "gives a dict": (lambda good: dict.fromkeys(range(8), 1.0), "TypeError", "not a list of numbers"),
    "gives texts": (lambda good: ["1"] * 8, "TypeError", "which is no number"),
    "gives lists": (lambda good: [[1.0]] * 8, "TypeError", ""),
    "gives too few": (lambda good: good[:-1], "ValueError: it gave 7 rewards for 8 completions", ""),
    "gives NaN": (lambda good: [math.nan] * 8, "failing gave nan", ""),
    "gives infinities": (lambda good: [math.inf, -math.inf] * 4, "failing gave inf", "failing gave -inf"),
}


def run(tmp_path, reward, **changes):
    reward.__name__ = "failing"
    trainer = toy.trainer(tmp_path, rewards=reward, **{**NO_WARMUP, "max_steps": 2, "reward_timeout": 0.3, **changes})
    said: list[str] = []
    trainer.tell = said.append
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    moved = any(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    return toy.history(trainer, "verifier_failures", "reward"), said, moved


@pytest.mark.parametrize("what", WHOLE_BATCH)
def test_a_function_that_fails_for_a_batch(tmp_path, what):
    how, *messages = WHOLE_BATCH[what]
    (first, second), said, _ = run(tmp_path / "count", failing(how))
    assert first[0] == 8.0 and second == (0.0, 0.5), "counted, and the training goes on"
    assert first[1] is None or math.isnan(first[1]), "no reward is reported where there is none"
    assert all(message in " ".join(said) for message in messages) and len(said) == len(set(said))
    with pytest.raises(InputError, match="8 of 8 completions could not be judged") as stopped:
        run(tmp_path / "stop", failing(how), reward_failures="stop")
    assert all(message in str(stopped.value) for message in messages)


def test_what_could_not_be_judged_does_not_move_the_model(tmp_path):
    (only,), _, moved = run(tmp_path, failing(raising), max_steps=1)
    assert only[0] == 8.0 and not moved


def test_a_reward_that_never_works_ends_the_training(tmp_path):
    with pytest.raises(InputError, match=r"no completion of 3 generations in a row .*ZeroDivisionError"):
        run(tmp_path, failing(raising, first=10**6), max_steps=50)


def test_outages_with_rewards_between_them_do_not_end_it():
    args = SimpleNamespace(reward_failures="count", reward_timeout=0.0)
    guard = RewardGuard(SimpleNamespace(args=args, tell=lambda text: None, is_world_process_zero=lambda: True))
    failed, judged = torch.full((4, 1), -math.inf), torch.zeros(4, 1)
    assert [guard.count(rewards) for rewards in (failed, judged) * 4] == [4, 0] * 4
    assert [guard.count(failed) for _ in range(2)] == [4, 4] == [guard.count(failed, further=True) for _ in range(2)]
    with pytest.raises(InputError, match="no completion of 3 generations in a row"):
        guard.count(failed)


def advantages(tmp_path, rewards, **changes):
    """Of one generation of two groups of 4."""
    trainer = toy.trainer(tmp_path, rewards=rewards, **NO_WARMUP, **changes)
    found = {}
    after = trainer.on_rollouts

    def keep(rewards, output):
        after(rewards, output)
        found["advantages"] = output["advantages"].view(2, 4)

    trainer.on_rollouts = keep
    trainer.train()
    return found["advantages"], toy.history(trainer, "verifier_failures", "reward")[0]


def test_one_failure_of_a_group_is_no_zero(tmp_path):
    """The unjudged completion has another reward, of its format or length: alone it would make a wrong answer of it."""

    def verdicts(completions, **_):
        return [1.0, 0.0, 1.0, None, 1.0, 0.0, 0.0, 1.0]

    verdicts.judges = True

    def form(completions, **_):
        return [0.5] * 8

    found, (failures, reward) = advantages(tmp_path / "a", [verdicts, form])
    assert failures == 1.0 and reward == pytest.approx(4 / 7 + 0.5)
    values = torch.tensor([1.0, 0.0, 1.0])
    expected = (values - values.mean()) / (values.std() + 1e-4)
    torch.testing.assert_close(found[0], torch.tensor([*expected.tolist(), 0.0]))

    verdicts.judges = False  # of another function, None says that it is not for this completion
    found, (failures, _) = advantages(tmp_path / "b", [verdicts, form])
    assert failures == 0.0 and found[0, 3] < -0.5, "stock TRL"
    for value in (math.nan, math.inf):
        found, (failures, _) = advantages(
            tmp_path / str(value), [lambda completions, v=value, **_: [1, 0, 1, v] * 2, form]
        )
        assert failures == 2.0 and found[0, 3] == 0.0
        torch.testing.assert_close(found[0, :3], expected)


def test_numbers_of_every_kind_are_rewards(tmp_path):
    kinds = [1, True, np.float32(1), np.int64(1), torch.tensor(1.0), 0.0, np.bool_(False), 0]
    _, (failures, reward) = advantages(tmp_path / "a", lambda completions, **_: kinds)
    assert (failures, reward) == (0.0, 0.625)
    for name, given in (("b", np.ones(8)), ("c", torch.ones(8)), ("d", (1.0,) * 8)):
        _, (failures, reward) = advantages(tmp_path / name, lambda completions, given=given, **_: given)
        assert (failures, reward) == (0.0, 1.0)


def test_async_functions(tmp_path):
    async def broken(completions, **_):
        raise RuntimeError("no service")

    async def whole(completions, **_):
        return [1.0, math.nan] * 4

    for function, count in ((broken, 8.0), (whole, 4.0)):
        _, (failures, _) = advantages(tmp_path / function.__name__, function)
        assert failures == count


def test_an_async_function_that_hangs_is_cut_off(tmp_path):
    calls = []

    async def reward(completions, **_):
        calls.append(len(completions))
        if len(calls) == 1:
            await asyncio.sleep(60)
        return [float(i % 2) for i in range(len(completions))]

    (first, second), said, _ = run(tmp_path, reward)
    assert first[0] == 8.0 and second == (0.0, 0.5), "counted, and the training goes on"
    assert "failing took longer than reward_timeout, 0.3 s" in " ".join(said)


def test_questions_that_could_not_be_judged_have_not_failed():
    """Neither failed, nor solved, nor studied in place of GRPO."""

    class Trainer:
        num_generations, levels = 4, Levels({})

        def __init__(self):
            self.demonstration_of_row, self.demonstrations = {7: 0, 8: 1, 9: 2}, ["a", "b", "c"]

        class args:
            failed_threshold, process_index = 0.0, 0

        class state:
            global_step = 5

    class Plan:
        demonstrations, gate = "gated", 0

    selection = Selection(Trainer())
    selection.asked = [7, 8, 9]
    nan = math.nan
    rewards = torch.tensor([[nan] * 4, [0.0, nan, 0.0, 0.0], [0.0] * 4]).view(-1, 1)
    chosen, kept = selection.after_rollouts(Plan(), rewards, {"advantages": torch.ones(12)})
    assert selection.failed_at == {1: 5, 2: 5} and selection.outcomes == [None, 0.0, 0.0]
    assert len(chosen.demonstrations) == 1 and kept.tolist() == [1.0] * 8 + [0.0] * 4


def test_ctrl_c_in_a_reward_is_no_failure(tmp_path):
    def interrupted(completions, **_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        toy.trainer(tmp_path, rewards=interrupted, **NO_WARMUP).train()


def test_a_limit_leaves_nothing_behind():
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TooLate), within(0.05):
        hanging([])
    with within(30):
        pass
    assert signal.getsignal(signal.SIGALRM) is before and signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_an_alarm_at_the_very_end_changes_nothing():
    """It was raised before the timer was stopped, which then went on to interrupt the training for ever."""
    before = signal.getsignal(signal.SIGALRM)
    with within(30):
        late = signal.getsignal(signal.SIGALRM)
    late(signal.SIGALRM, None)  # as if it had come while the limit was taken away
    assert signal.getsignal(signal.SIGALRM) is before and signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_what_python_cannot_interrupt_ends_with_the_process():
    """A loop in C that never looks for signals."""
    code = (
        "import collections, itertools\nfrom sasr.limits import within\n"
        "with within(0.2):\n    collections.deque(itertools.count(), maxlen=0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Timeout" in done.stderr and 'File "<string>", line 4' in done.stderr


# ---- tasks of the user's own ----

OWN = """
import os, signal, time
from sasr.tasks import JsonlTask, Verdict

class Mine(JsonlTask):
    check_timeout = 20.0

    def check(self, completion, row):
        if "exit" in completion:
            os._exit(0)
        if "segfault" in completion:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "hang" in completion:
            signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64))
            while True: pass
        if "raise" in completion:
            return 1 / 0
        if "None" in completion:
            return None
        if "print" in completion:
            print("noise", flush=True)
        if "maybe" in completion:
            return Verdict(None, True)
        if "self" in completion:
            return Verdict(True, True, failure="the verifier says so")
        return super().check(completion, row)

    def path(self, completion, row):
        return 1 / 0

class Quick(Mine):
    check_timeout = 0.5

class Here(Mine):
    judged_apart = False

class Together(Mine):
    def check_all(self, completions, rows):
        return [self.check(c, r) for c, r in zip(completions, rows)][:3]

class Slow(Mine):
    check_timeout = 0.5

    def check_all(self, completions, rows):
        time.sleep(1)
        return JsonlTask.check_all(self, completions, rows)
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    tasks = []

    def make(name):
        tasks.append(get_task(f"{tmp_path / 'own.py'}:{name}"))
        return tasks[-1]

    yield make
    for task in tasks:
        if task.judge is not None:
            task.judge._worker.close()


FAILURES = {
    "exit": "crash: the worker exited with status 0",
    "segfault": "crash: the worker died of signal 11",
    "raise": "ZeroDivisionError: division by zero",
    "None": "the check gave None, which is no Verdict",
    "maybe": "the check gave Verdict(correct=None",
    "self": "the verifier says so",
}


def test_a_task_of_ones_own_fails_for_one_completion_alone(own):
    task = own("Mine")
    texts = [text for what in FAILURES for text in (what, "#### 5", "print #### 6")]
    verdicts = judge_all(task, texts, [{"answer": "5", "prompt": "p"}] * len(texts))
    for i, message in enumerate(FAILURES.values()):
        assert not verdicts[3 * i].correct and message in verdicts[3 * i].failure
        assert verdicts[3 * i + 1 : 3 * i + 3] == [Verdict(True, True), Verdict(False, True)]
    here = judge_all(own("Here"), ["raise", "None", "self", "#### 5"], [{"answer": "5"}] * 4)
    assert [verdict.failure is None for verdict in here] == [False, False, False, True]


def test_a_task_of_ones_own_that_hangs_is_killed(own):
    task = own("Quick")
    (verdict,) = judge_all(task, ["hang"], [{"answer": "5"}])
    assert verdict.failure == "timeout" and task.judge._worker._process is None


def test_a_task_that_judges_together(own):
    task = own("Together")
    row = {"answer": "5"}
    assert [v.correct for v in judge_all(task, ["#### 5", "#### 6", "5"], [row] * 3)] == [True, False, True]
    for texts, message in ((["5"] * 4, "check_all gave 3 verdicts for 4"), (["5", "exit"], "exited with status 0")):
        verdicts = judge_all(task, texts, [row] * len(texts))
        assert all(not v.correct and message in v.failure for v in verdicts)
    assert all(v.correct for v in judge_all(own("Slow"), ["5"] * 8, [row] * 8)), "half a second for each"


def test_a_row_that_cannot_be_sent(own):
    with pytest.raises(InputError, match=r"a row cannot be sent .* judged_apart = False"):
        judge_all(own("Mine"), ["5"], [{"answer": "5", "made": object()}])
    assert judge_all(own("Here"), ["5"], [{"answer": "5", "made": object()}])[0].correct


def test_rewards_and_exams_with_a_task_that_kills_its_process(own, tmp_path):
    task = own("Mine")
    correctness, form = task.reward_funcs()
    columns = {"answer": ["5"] * 3, "trainer_state": object()}
    assert correctness(prompts=["p"] * 3, completions=["5", "exit", "6"], **columns) == [1.0, None, 0.0]
    assert form(prompts=["p"] * 3, completions=["5", "exit", "6"], **columns) == [1.0, None, 1.0]
    assert len(correctness.failures) == 1 and os.getpid() != 0

    class Trips(JsonlTask):
        def check(self, completion, row):
            return Verdict(True, True)

        def path(self, completion, row):
            return 1 / 0

    rows = [{"prompt": "1+1=", "answer": "02"}]
    result = examine(toy.model(), toy.tokenizer(), Trips(), rows, samples=2, max_new_tokens=3)
    assert result.greedy_accuracy == 1.0 and result.verifier_failures == 3
    assert "path or steps_valid: ZeroDivisionError" in result.completions[0]["greedy"]["failure"]


def test_what_the_first_function_leaves_open_has_not_failed(tmp_path):
    """As one of mathematics does with questions about code, which another judges."""

    def nothing(completions, **_):
        return [None] * len(completions)

    def other(completions, **_):
        return [float(len(text)) for text in completions]

    for first, failed in ((nothing, False), (lambda completions, **_: [0.0] * len(completions), True)):
        trained = toy.trainer(tmp_path / str(failed), rewards=[first, other], schedule="alternate", max_steps=10)
        trained.train()
        assert bool(trained.selection.failed_at) == failed
