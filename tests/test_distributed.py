"""Two processes on CPU (gloo), started by torchrun: the same gradient, the same decisions, the same resumed run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import recorded_steps
import sasr.callbacks
import toy
from test_resume import assert_same, outcome
from test_trainer_equality import first_sft_gradient

TESTS = Path(__file__).parent
LIMIT = 300  # seconds; a rank that waits for ever must fail the test, not hang it

PRELUDE = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import toy
rank, out = int(os.environ["RANK"]), Path({out!r})
"""


def torchrun(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def run_script(tmp_path: Path, body: str) -> None:
    script = tmp_path / "script.py"
    # As `sasr` itself does it: gloo may abort a process that takes Python apart (pytorch/pytorch, pull 179291).
    end = "\nsys.stdout.flush()\nos._exit(0)\n"
    script.write_text(PRELUDE.format(tests=str(TESTS), out=str(tmp_path)) + body + end)
    torchrun([str(script)], tmp_path)


def test_sft_gradient_of_two_processes_is_that_of_one(tmp_path):
    run_script(
        tmp_path,
        """
from test_trainer_equality import first_sft_gradient
gradient, norm, loss, spy = first_sft_gradient(out / "run", per_device_sft_batch_size=8)
(out / f"{rank}.json").write_text(json.dumps([gradient.tolist(), norm, loss, spy.args.world_size]))
""",
    )
    one = first_sft_gradient(tmp_path / "one", per_device_sft_batch_size=16)
    for rank in (0, 1):
        gradient, norm, loss, world_size = json.loads((tmp_path / f"{rank}.json").read_text())
        assert world_size == 2
        assert norm == pytest.approx(one[1], rel=1e-5)
        assert loss == pytest.approx(one[2], rel=1e-5)
        difference = sum((a - b) ** 2 for a, b in zip(gradient, one[0].tolist(), strict=True)) ** 0.5
        assert difference < 1e-5 * one[1]


def test_decisions_are_the_same_on_all_ranks(tmp_path):
    """... although each rank samples, and scores, other rollouts."""
    run_script(
        tmp_path,
        """
signals = {"divergence_weight": 0.3, "divergence_every": 3, "held_out_demonstrations": 6}
trained = toy.trainer(out / "run", max_steps=24, **signals)
import sasr.trainer
seen, finish = [], sasr.trainer.finish_step
def record(trainer, norm):
    buffer = trained._buffered_inputs
    finish(trainer, norm)
    own = buffer[0]["completion_ids"].tolist() if trained.plan.grpo_weight else None
    seen.append([trained.plan.kind, trained.plan.sft_probability, trained.tracker.state_dict(), own])
sasr.trainer.finish_step = record
trained.train()
(out / f"{rank}.json").write_text(json.dumps(seen))
""",
    )
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [step[:3] for step in ranks[0]] == [step[:3] for step in ranks[1]]
    assert 0 < ranks[0][-1][2]["carry_over"] <= 1 and 0 < ranks[0][-1][2]["left_to_learn"] <= 1
    kinds = [step[0] for step in ranks[0]][4:]
    assert {"sft", "grpo"} == set(kinds)
    assert any(a[3] != b[3] for a, b in zip(*ranks, strict=True) if a[3])


def test_steps_of_both_losses_keep_the_ranks_together(tmp_path):
    """Two forward passes and one backward pass through DDP, which does not search for unused parameters: the steps are
    those with the search, of all weights and of adapters."""
    run_script(
        tmp_path,
        """
from peft import LoraConfig
found = {}
for case in ("whole", "lora"):
    for search in (None, True):
        more = {"peft_config": LoraConfig(r=4, target_modules="all-linear")} if case == "lora" else {}
        trained = toy.trainer(out / "run", schedule="chord_phi", mu=0.3, sft_warmup_steps=0, max_steps=6,
                              gradient_accumulation_steps=2, ddp_find_unused_parameters=search, more=more)
        trained.train()
        assert trained.model_wrapped.find_unused_parameters == bool(search), trained.model_wrapped
        weights = {name: p.detach().flatten().tolist() for name, p in trained.model.named_parameters()}
        found[f"{case} {search}"] = [trained.counts, weights]
(out / f"{rank}.json").write_text(json.dumps(found))
""",
    )
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    for case in ("whole", "lora"):
        counts, weights = ranks[0][f"{case} None"]
        assert [counts, weights] == ranks[0][f"{case} True"]
        assert counts["sft_steps"] == counts["grpo_steps"] == 6


def test_flat_groups_and_curriculum_keep_the_ranks_together(tmp_path):
    """The ranks have different numbers of flat groups, but leave out, and ask again, equally many."""
    run_script(
        tmp_path,
        """
import recorded_steps
from sasr import step_state
data = recorded_steps.levels(24).remove_columns("difficulty").rename_column("level", "difficulty")
found = {}
for choice in ("keep", "skip", "resample"):
    trained, steps = recorded_steps.run(
        out / choice, schedule="grpo", data=data,
        rewards=lambda completions, difficulty, **_: recorded_steps.by_level(completions, difficulty),
        curriculum="adaptive", flat_groups=choice, max_steps=4, per_device_train_batch_size=16, sft_warmup_steps=0)
    found[choice] = [[s.gradient.tolist(), s.asked] for s in steps], trained.counts, step_state.rows(trained), [
        sorted(recorded_steps.Rollout(**vars(r)).row for r in s.rollouts) for s in steps]
(out / f"{rank}.json").write_text(json.dumps(found))
""",
    )
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for choice in ("keep", "skip", "resample"):
        assert ranks[0][choice][:3] == ranks[1][choice][:3]
    for (kept, asked), (skipped, also) in zip(ranks[0]["keep"][0], ranks[0]["skip"][0], strict=True):
        assert asked == also
        torch.testing.assert_close(torch.tensor(kept), torch.tensor(skipped), rtol=1e-4, atol=1e-6)
    assert ranks[0]["resample"][1]["rollout_tokens"] > ranks[0]["keep"][1]["rollout_tokens"]
    trained_on = [row % 3 for rank in ranks for step in rank["resample"][3] for row in step]
    without = [row % 3 for rank in ranks for step in rank["keep"][3] for row in step]
    assert trained_on.count(2) > without.count(2), "only rows of level 2 have a spread"


def test_demonstrations_that_do_not_divide_over_ranks(tmp_path):
    """Four parts for five demonstrations of LUFFY, then for three of HPT: the last part of rank 1 is a stand-in."""
    run_script(
        tmp_path,
        """
import recorded_steps
for schedule, (rewards, data) in recorded_steps.UNEVEN.items():
    trained, steps = recorded_steps.run(out / schedule, schedule=schedule, rewards=rewards, data=data(), max_steps=2,
                                      per_device_train_batch_size=8, gradient_accumulation_steps=2)
    seen = [[s.gradient.tolist(), [vars(r) for r in s.rollouts], s.asked, s.queue, len(s.demonstrations), s.forwards]
            for s in steps]
    logged = toy.history(trained, "loss", "grad_norm", "sasr/p_sft", "sasr/sft_loss") if rank == 0 else None
    (out / f"{schedule}-{rank}.json").write_text(json.dumps([seen, logged]))
""",
    )
    for schedule, (rewards, data) in recorded_steps.UNEVEN.items():
        ranks = [json.loads((tmp_path / f"{schedule}-{rank}.json").read_text()) for rank in (0, 1)]
        one = toy.trainer(tmp_path / "one", schedule=schedule, sft_warmup_steps=0, rewards=rewards, data=data())
        for (gradient, own, *same, forwards), (other_gradient, others, *also, other_forwards) in zip(
            ranks[0][0], ranks[1][0], strict=True
        ):
            assert gradient == other_gradient and same == also
            assert forwards == other_forwards == ["sft", "grpo"] * 2
            assert len(own) == len(others) == 16 and own != others
        gradient, own, asked, queue, count, forwards = ranks[0][0][0]
        rollouts = [recorded_steps.Rollout(**r) for r in [*own, *ranks[1][0][0][1]]]
        assert sorted(asked) == list(range(8)) and count % 4
        step = recorded_steps.Step(None, toy.model(), torch.tensor(gradient), asked, rollouts, [], queue, forwards)
        if schedule == "luffy":
            loss, share = recorded_steps.luffy_loss(one, step, 0.1)
        else:
            loss, share = recorded_steps.hpt_loss(one, step, 0)
        recorded_steps.same_gradient(step, loss)
        logged = ranks[0][1][0]
        assert logged[1] == pytest.approx(float(torch.linalg.norm(step.gradient)), rel=1e-5)
        assert logged[2] == pytest.approx(share)


def test_two_process_run_resumes_bit_for_bit_in_the_middle_of_a_rollout_buffer(tmp_path):
    body = """
settings = dict(max_steps=14, save_strategy="steps", save_steps=1, steps_per_generation=4, num_iterations=2,
                gradient_accumulation_steps=2, gamma=0.5, gradient_checkpointing=True)  # as where there is a GPU
"""
    run_script(tmp_path, body + 'toy.trainer(out / "whole", **settings).train()')
    middle = {}
    for step in range(5, 14):
        state = json.loads((tmp_path / "whole" / f"checkpoint-{step}" / "sasr_state.json").read_text())
        middle[step] = state["rollout_step"] % 8
    step = next(step for step in sorted(middle) if middle[step])  # micro-batches into a generation of 8
    (tmp_path / "part").mkdir()
    os.rename(tmp_path / "whole" / f"checkpoint-{step}", tmp_path / "part" / f"checkpoint-{step}")
    # From here on with checkpoints by the clock, of which both have to think the same, and with a kill.
    rest = """
from sasr import timed_saves
from test_failed_step import fail
timed_saves._SHARE = 1
settings |= dict(save_steps=14, save_minutes=1e-9)
killed = toy.trainer(out / "part", **settings)
fail(killed, "decision", 13, KeyboardInterrupt())
try:
    killed.train(resume_from_checkpoint=True)
except KeyboardInterrupt:
    (out / f"left-{rank}").write_text(str(sorted(p.name for p in (out / "part").glob("c*"))))
toy.trainer(out / "part", **settings).train(resume_from_checkpoint=True)
"""
    run_script(tmp_path, body + rest)
    assert {(tmp_path / f"left-{rank}").read_text() for rank in (0, 1)} == {f"['checkpoint-13', 'checkpoint-{step}']"}
    expected, resumed = (outcome(tmp_path / name, 14) for name in ("whole", "part"))
    assert expected["signals"]["counts"]["grpo_steps"] > 1
    assert_same(resumed, expected)
    for rank in (0, 1):
        files = [tmp_path / name / "checkpoint-14" / f"rng_state_{rank}.pth" for name in ("whole", "part")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_sigterm_stops_both_processes_at_the_same_step(tmp_path):
    """torchrun passes the signal on; the ranks get it at different moments, and agree."""
    flags = {
        "output_dir": "run", "train_rows": 100, "exam_rows": 0, "max_steps": 400, "sft_warmup_steps": 3,
        "per_device_train_batch_size": 8, "num_generations": 4, "per_device_sft_batch_size": 4,
        "max_completion_length": 16, "save_steps": 1000, "use_cpu": "true",
    }  # fmt: skip
    argv = [text for key, value in flags.items() for text in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    written, output = tmp_path / "run" / "metrics.jsonl", tmp_path / "output"
    with open(output, "w") as file:
        launcher = subprocess.Popen(
            [*command, "-m", "sasr", "train", *argv], cwd=tmp_path, env=environment, stdout=file, stderr=file
        )
    try:
        deadline = time.monotonic() + LIMIT
        while not written.exists() or written.read_bytes().count(b"\n") < 6:
            assert launcher.poll() is None, output.read_text()[-4000:]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        launcher.terminate()
        launcher.wait(timeout=LIMIT)
    finally:
        launcher.kill()
    (line,) = [line for line in output.read_text().splitlines() if line.startswith("stopped at step")]
    step = written.read_bytes().count(b"\n")
    assert line.startswith(f"stopped at step {step}, saved in checkpoint-{step};")
    assert 6 <= step < 400
    checkpoint = tmp_path / "run" / f"checkpoint-{step}"
    assert {f"sasr_tensors_{rank}.pt" for rank in (0, 1)} <= {p.name for p in checkpoint.iterdir()}
    assert json.loads((checkpoint / "sasr_state.json").read_text())["fingerprint"]["world_size"] == 2


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shares_of_an_exam(tmp_path, monkeypatch, sharded, count):
    """Each of three processes examines its share, which may be empty; of a sharded model all generate equally often."""
    rows = [{"prompt": str(i), "answer": "a"} for i in range(count)]
    asked: list[list[dict]] = []
    given: list[dict] = []
    parts: list[list[dict]] = []

    def examine_rows(model, tokenizer, task, rows, *, samples, **options):
        assert rows, "the exam has no rows"
        asked.append(rows)
        given.append(options)
        told = {"correct": True, "well_formed": True, "truncated": False, "failure": None, "tokens": 1, "path": None}
        told |= {"steps_valid": None, "text": ""}
        return [{**row, "difficulty": None, "greedy": told, "samples": [told] * samples} for row in rows]

    def gather_object(own):
        parts.extend(own)
        return parts + [parts[0][:1] * len(rows[rank::3]) for rank in range(len(parts), 3)]

    monkeypatch.setattr(sasr.callbacks, "examine_rows", examine_rows)
    monkeypatch.setattr(sasr.callbacks, "gather_object", gather_object)
    monkeypatch.setattr(sasr.callbacks, "unwrap_model_for_generation", lambda *of, **more: nullcontext())
    for rank in range(3):
        args = SimpleNamespace(process_index=rank, world_size=3, max_completion_length=4, temperature=0.7, seed=5)
        args.per_device_eval_batch_size, args.gradient_checkpointing_kwargs = 2, None
        trainer = SimpleNamespace(args=args, state=SimpleNamespace(global_step=0), is_deepspeed_enabled=False)
        trainer.is_fsdp_enabled, trainer.model_wrapped, trainer._tokenizer = sharded, None, None
        trainer.eos_token_ids, trainer.chat_template_kwargs = [1, 7], {"extra": True}
        trainer.accelerator = SimpleNamespace(autocast=nullcontext)
        stop, settings = SimpleNamespace(signal=None), sasr.TaskConfig(exam_samples=2)
        exams = sasr.callbacks.Exams(None, rows, settings, tmp_path / str(rank), None, stop, None)
        (tmp_path / str(rank)).mkdir()
        exams.trackers = SimpleNamespace(exam=lambda *told: None)
        exams.take("initial", trainer)
    assert parts[0][0]["prompt"] == "0" and [len(part) for part in parts] == [len(rows[rank::3]) for rank in range(3)]
    assert exams.results["initial"]["rows"] == count
    of_run = {"max_new_tokens": 4, "temperature": 0.7, "batch_size": 2, "eos_token_ids": [1, 7]}
    of_run |= {"chat_template_kwargs": {"extra": True}}
    assert all(options.items() >= of_run.items() for options in given)
    assert [options["seed"] for options in given] == [5, 6, 7][: len(given)], "else they would draw the same"
    if sharded:
        assert len({len(share) for share in asked}) == 1 and len(asked) == 3
    else:
        assert len(asked) == min(count, 3)


def test_fewer_rows_of_an_exam_than_processes(tmp_path):
    flags = {
        "output_dir": "run", "train_rows": 100, "exam_rows": 1, "exam_samples": 2, "max_steps": 2,
        "sft_warmup_steps": 1, "per_device_train_batch_size": 8, "num_generations": 4, "per_device_sft_batch_size": 4,
        "max_completion_length": 16, "use_cpu": "true",
    }  # fmt: skip
    argv = [text for key, value in flags.items() for text in (f"--{key}", str(value))]
    torchrun(["-m", "sasr", "train", *argv], tmp_path)
    exams = json.loads((tmp_path / "run" / "exam.json").read_text())
    assert {label: exam["rows"] for label, exam in exams.items()} == dict.fromkeys(("initial", "warmup", "final"), 1)
    for label in exams:
        assert len((tmp_path / "run" / "exams" / f"{label}.jsonl").read_text().splitlines()) == 1


def test_command_line_under_torchrun(tmp_path):
    flags = {
        "output_dir": "run", "train_rows": 100, "exam_rows": 5, "exam_samples": 2, "max_steps": 8,
        "sft_warmup_steps": 3, "per_device_train_batch_size": 8, "num_generations": 4, "per_device_sft_batch_size": 4,
        "max_completion_length": 16, "save_steps": 4, "exam_every": 4, "use_cpu": "true", "task": "jsonl",
        "data": "rows.jsonl", "model_name_or_path": "lm", "wrong_demonstrations": "drop",
    }  # fmt: skip
    rows = [{**row, "completion": row["completion"] if i % 5 else "no"} for i, row in enumerate(toy.rows(60))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    toy.model(directory=tmp_path / "lm")
    argv = [text for key, value in flags.items() for text in (f"--{key}", str(value))]
    done = torchrun(["-m", "sasr", "train", *argv], tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert done.stdout.count("done: ") == 1, "only one process talks"
    wrong = json.loads((tmp_path / "run" / "wrong_demonstrations.json").read_text())["wrong"]
    assert 5 < len(wrong) <= 12, "one process judges for both"
    exams = json.loads((tmp_path / "run" / "exam.json").read_text())
    assert {label: exam["rows"] for label, exam in exams.items()} == dict.fromkeys(
        ("initial", "warmup", "step-4", "final"), 5
    )
