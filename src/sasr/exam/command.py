"""`sasr exam` on the command line: find the model and the rows, check them, examine, print the figures."""

from __future__ import annotations

import os
import shlex
import signal
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from sasr.disconnect import is_hangup, stop_signals
from sasr.errors import InputError, disk_failures_told
from sasr.exam.request import Request, read_request
from sasr.model_files import TINY_MODELS
from sasr.terminal import TerminalView

USAGE = """\
usage: sasr exam --model MODEL [--task NAME] [--data FILE] [--rows N] [--n N] [--output_dir DIR] [...]

The exam of sasr train for any model: accuracy, pass@k, diversity of correct solutions, right for the wrong reason.

  sasr exam --model runs/stories-1                       on the rows that the run held out, with its limits
  sasr exam --model runs/stories-1/checkpoint-650 --rows 500
  sasr exam --model Qwen/Qwen2.5-0.5B-Instruct --task gsm8k --data test.jsonl
  sasr exam --model runs/gsm8k-1 --initial_model Qwen/Qwen2.5-0.5B-Instruct --nll_task math --nll_data math.jsonl

  --model MODEL        a directory (of a model or a LoRA adapter), a hub name, a GGUF file; or a run of sasr train or a
                       checkpoint in it, whose config.yaml then gives defaults: task, held-out rows, limits, dtype
  --task NAME          stories, gsm8k, math, kk, jsonl, ..., reasoning_gym/NAME, or your own as module:object
  --task_options JSON  its options, as in '{"steps": 5}' [those of the run, if the task is the run's]
  --data FILE          rows to ask, in file order; default: held out by the run, generated, or the Hub's test split
  --bad_rows skip      leave out records that cannot be used, and say how many [error, or that of the run]
  --difficulty D ...   only rows of these difficulties
  --rows N             at most so many rows [exam_rows of the run, or 200]
  --n N                sampled completions of each row [exam_samples of the run, or 8]
  --k K ...            which pass@k to report [1 2 4 ... up to n]
  --max_new_tokens N   longest completion [max_completion_length of the run, or 256]
  --temperature T      of the sampled completions [that of the run, or 1.0]
  --batch_size N       completions generated at a time [per_device_eval_batch_size of the run, or 64]
  --seed N             of the sampling [that of the run, or 0]
  --dtype TYPE         of the weights: float32, bfloat16, float16, auto [that of the run, or float32]
  --load_in_4bit BOOL  quantise the weights (QLoRA: of the base; with false the adapter is merged) [that of the run]
  --engine NAME        what generates: transformers, or vllm if it is installed [transformers]
  --perturb KIND ...   ask the rows in another form too, whose answer is known: names, numbers, order, ..., or all
  --initial_model M    measure entropy, and KL per token to this model, on the sampled completions
  --entropy            measure the entropy alone
  --nll_task NAME      measure the NLL of another task's demonstrations, in --nll_data FILE or generated
  --output_dir DIR     where everything goes [exams/NAME-N]. The same command with the same directory goes on where it
                       was stopped"""


def exam(argv: list[str]) -> int:
    """Returns the exit status: 0, or 128 + the signal that stopped it. Raises `InputError`."""
    from sasr.run_directory import make_numbered, remove_empty

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("sasr exam is one process: start it without torchrun")
    request = read_request(argv)
    made: list[Path] = []
    directory = request.output_dir
    if directory is None:
        directory, made = make_numbered("exams", _name_of(request.model))
    again = shlex.join(["sasr", "exam", *argv, *([] if request.output_dir else ["--output_dir", str(directory)])])
    received: list[int] = []

    def stop(number: int, frame: Any) -> None:
        received.append(number)
        if is_hangup(number) and len(received) > 1:
            return
        raise KeyboardInterrupt

    old = {number: signal.signal(number, stop) for number in stop_signals()}
    status = 0
    try:
        _run(request, directory, again)
    except KeyboardInterrupt:
        TerminalView().message(f"stopped; go on with: {again}")
        status = 128 + (received[0] if received else signal.SIGINT)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        remove_empty(made)  # of one that was refused
    if (directory / "exam.json").is_file():
        from sasr.report import report_quietly

        report_quietly(directory, TerminalView().message)
    return status


def _run(request: Request, directory: Path, again: str) -> None:
    from sasr.checkpoints import digest_rows
    from sasr.exam.questions import demonstrations, exam_rows, perturbed_rows
    from sasr.exam.store import ExamDirectory, digest_of_model
    from sasr.exam.view import ExamView
    from sasr.models import load_tokenizer
    from sasr.quantised import accelerator_or_cpu, check_quantisable
    from sasr.rows import RowReader
    from sasr.tasks import get_task
    from sasr.tasks.loading import for_model

    # Everything that can be wrong, cheapest first, before a model is loaded.
    task = get_task(request.task, request.task_options)
    names = [name for name in (request.model, request.initial_model) if name is not None]
    if request.initial_model in TINY_MODELS:
        raise InputError(
            f"initial_model {request.initial_model} is made anew, with other weights: name RUN/initial_model"
        )
    for name in names:
        _check_model(name)
        if request.load_in_4bit:
            check_quantisable(name, accelerator_or_cpu())
    reader = RowReader(task, request.bad_rows)
    rows = exam_rows(task, request, reader)
    notes = reader.notes()
    if request.perturb:
        if "all" in request.perturb and not task.perturbations():
            raise InputError(f"task {task.name} knows no perturbation: leave --perturb out")
        rows += perturbed_rows(task, rows, request.perturb, notes.append)
    others = demonstrations(request, notes.append) if request.nll_task is not None else []
    # The same names may stand for other rows and weights by the time that an exam goes on.
    digests = {
        "rows_digest": digest_rows(rows),
        "nll_digest": digest_rows(others),
        "weights_digest": [digest_of_model(name) for name in names],
    }
    store = ExamDirectory(directory, {**request.settings(), **digests}, again)
    figures = store.check()
    tokenizers = [load_tokenizer(name, tokenizer_texts=task.vocabulary_texts() or None) for name in names]
    if request.initial_model is not None:
        from sasr.exam.scoring import check_same_tokens

        check_same_tokens(tokenizers[0], tokenizers[1], request.initial_model)
    templated = tokenizers[0].chat_template is not None
    rows, others = (for_model(part, request.model, templated) for part in (rows, others))
    with closing(store), ExamView() as view:
        for note in notes:
            view.message(note)
        asked = f"{request.model} on {request.task}: {len(rows)} rows, {request.n} sampled and 1 greedy completion each"
        view.message(f"{asked}; all of it goes to {directory}" if figures is None else f"{asked}; done before")
        if figures is None:
            safe = f"the rows that were done are safe; when this is mended, go on with: {again}"
            with disk_failures_told(lambda: safe):
                figures = _examine(request, task, rows, others, store, view)
    _show(view, directory, figures)


def _examine(request: Request, task: Any, rows: list, others: list, store: Any, view: Any) -> dict[str, Any]:
    from sasr import host_memory
    from sasr.exam.examiner import Examiner
    from sasr.out_of_memory import is_out_of_memory
    from sasr.quantised import accelerator_or_cpu

    started = time.monotonic()
    examiner = Examiner(request, task)
    if others:
        view.message(f"measuring {len(others)} worked solutions of {request.nll_task}")
    for note in examiner.prepare(rows, others):
        view.message(note)
    size, per_row = request.block, 1 + request.n
    records = store.open(rows, request.n, size)
    if records:
        view.message(f"going on after {len(records)} rows")
    view.start(len(rows) * per_row, len(records) * per_row)
    for first in range(len(records), len(rows), size):

        def progress(new: int, total: int, before: int = first * per_row) -> None:
            view.update(before + new)

        try:
            with host_memory.bounded(accelerator_or_cpu()):
                block = examiner.examine(rows[first : first + size], first // size, progress)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise InputError(
                f"not enough memory for {request.batch_size} completions at a time: lower batch_size, with another "
                "output_dir, since other batches draw other samples"
            ) from None
        store.append(block, first)
        records += block
    figures = examiner.figures(records, time.monotonic() - started)
    store.finish(figures)
    return figures


def _show(view: Any, directory: Path, figures: dict[str, Any]) -> None:
    from sasr.exam.store import COMPLETIONS_FILE, EXAM_FILE
    from sasr.exam.view import figure_rows

    view.table(figure_rows(figures))
    files = directory / EXAM_FILE, directory / COMPLETIONS_FILE
    view.message(f"done: every figure is in {files[0]}, every completion in {files[1]}")


def _check_model(name: str) -> None:
    from sasr.adapters import is_adapter
    from sasr.checkpoints import last_checkpoint
    from sasr.model_files import check_model, expand

    path = expand(name)
    unfinished = path.is_dir() and not (path / "config.json").is_file() and not is_adapter(path)
    last = last_checkpoint(path) if unfinished else None
    if last is not None:
        raise InputError(f"model {name!r}: the run has not ended, name one of its checkpoints, such as {last}")
    check_model(name)


def _name_of(model: str) -> str:
    path = Path(model)
    name = f"{path.parent.name}-{path.name}" if path.name.startswith("checkpoint-") else path.name or "model"
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
