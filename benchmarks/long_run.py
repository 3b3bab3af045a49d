"""A long run of a mock-size model: are memory, open files, threads and step time flat, and what is written bounded?

    python benchmarks/long_run.py [--steps 20000] [--json FILE]

Runs `sasr train` in a process of its own, looks at it from outside, and prints a table by tenths of the run. Exits with
1 if something grows from the second tenth to the last: the memory by more than 5%, a file handle or thread, the CPU
time of a step by more than 30%, a checkpoint by more than 20%. (The wall-clock of a step, shown too, is also that of
others on the machine.)
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from sasr.models import load_tokenizer
from sasr.tasks import get_task

TENTHS = 10


def mock_model(directory: Path) -> None:
    """A Llama of 20,000 parameters that knows the words of `stories`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = load_tokenizer("tiny-llama", tokenizer_texts=get_task("stories").vocabulary_texts())
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=128, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def command(place: Path, steps: int) -> list[str]:
    settings = {
        "task": "stories", "model_name_or_path": place / "model", "output_dir": place / "run", "train_rows": 200,
        "exam_rows": 4, "exam_samples": 2, "exam_every": steps // 20, "max_steps": steps, "sft_warmup_steps": 100,
        "per_device_train_batch_size": 4, "num_generations": 2, "per_device_sft_batch_size": 4,
        "max_completion_length": 4, "save_steps": steps // 20, "save_total_limit": 3, "report_to": "tensorboard",
        "sft_questions": "failed", "learning_rate": 1e-4, "lr_scheduler_type": "constant",
    }  # fmt: skip
    flags = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    return [sys.executable, "-m", "sasr", "train", *flags]


def watch(process: subprocess.Popen, run: Path) -> list[dict]:
    """Twice a second: steps done, bytes in memory, open files, threads, CPU seconds, bytes of the newest checkpoint."""
    seen, looked_at = [], psutil.Process(process.pid)
    while process.poll() is None:
        time.sleep(0.5)
        try:
            facts = {
                "rss": looked_at.memory_info().rss,
                "files": looked_at.num_fds(),
                "threads": looked_at.num_threads(),
                "cpu": sum(looked_at.cpu_times()[:2]),
            }
            metrics = run / "metrics.jsonl"
            step = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        except psutil.Error:
            break
        seen.append({"step": step, **facts, "checkpoint": _newest(run)})
    return seen


def _newest(run: Path) -> int:
    sizes = []
    for directory in run.glob("checkpoint-*"):
        try:
            sizes.append((directory.stat().st_mtime, sum(p.stat().st_size for p in directory.iterdir())))
        except OSError:  # it is being deleted
            continue
    return max(sizes, default=(0.0, 0))[1]


def by_tenths(seen: list[dict], lines: list[dict], steps: int) -> list[dict]:
    """Medians over each tenth of the run."""
    rows = []
    for tenth in range(TENTHS):
        low, high = tenth * steps // TENTHS, (tenth + 1) * steps // TENTHS
        here = [s for s in seen if low < s["step"] <= high]
        row = {name: statistics.median(s[name] for s in here) for name in ("rss", "files", "threads", "checkpoint")}
        row["cpu"] = (here[-1]["cpu"] - here[0]["cpu"]) / max(here[-1]["step"] - here[0]["step"], 1)
        for kind in ("sft", "grpo"):
            times = [m["step_seconds"] for m in lines[low:high] if m["kind"] == kind]
            row[kind] = statistics.median(times) if times else float("nan")
        rows.append({"steps": high, **row})
    return rows


def growth(rows: list[dict]) -> list[str]:
    """What is not flat."""
    early, late = rows[1], rows[-1]
    found = []
    if late["rss"] > 1.05 * early["rss"]:
        found.append(f"memory: {early['rss'] / 1e6:.0f} MB, then {late['rss'] / 1e6:.0f} MB")
    found += [f"{name}: {early[name]}, then {late[name]}" for name in ("files", "threads") if late[name] > early[name]]
    if late["cpu"] > 1.3 * early["cpu"]:
        found.append(f"step: {early['cpu'] * 1e3:.1f} ms of CPU, then {late['cpu'] * 1e3:.1f} ms")
    if late["checkpoint"] > 1.2 * early["checkpoint"]:
        found.append(f"checkpoint: {early['checkpoint'] / 1e6:.2f} MB, then {late['checkpoint'] / 1e6:.2f} MB")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        mock_model(place / "model")
        with open(place / "output", "w") as output:
            started = time.monotonic()
            process = subprocess.Popen(command(place, asked.steps), stdout=output, stderr=subprocess.STDOUT)
            seen = watch(process, place / "run")
        seconds = time.monotonic() - started
        if process.returncode:
            print((place / "output").read_text()[-2000:])
            return 1
        lines = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
        printed, report = (place / "output").stat().st_size, (place / "run" / "report.html").stat().st_size
        metrics = (place / "run" / "metrics.jsonl").stat().st_size
    rows = by_tenths(seen, lines, asked.steps)
    columns = {
        "memory, MB": ("rss", 1e-6, 0), "files": ("files", 1, 0), "threads": ("threads", 1, 0),
        "checkpoint, MB": ("checkpoint", 1e-6, 2), "CPU, ms a step": ("cpu", 1e3, 1),
        "SFT step, ms": ("sft", 1e3, 1), "GRPO step, ms": ("grpo", 1e3, 1),
    }  # fmt: skip
    shown = Table("steps", *columns, box=None)
    for row in rows:
        cells = (f"{row[name] * factor:.{digits}f}" for name, factor, digits in columns.values())
        shown.add_row(f"{row['steps']:,}", *cells)
    Console(width=110).print(shown)
    print(
        f"{len(lines):,} steps in {seconds:.0f} s; printed {printed / 1e3:.0f} kB; metrics.jsonl "
        f"{metrics / 1e6:.1f} MB; report.html {report / 1e6:.2f} MB"
    )
    found = growth(rows)
    print("\n".join(f"grows: {text}" for text in found) or "flat")
    if asked.json:
        facts = {"seconds": seconds, "printed": printed, "metrics": metrics, "report": report, "growth": found}
        asked.json.write_text(json.dumps({**facts, "tenths": rows}, indent=1) + "\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
