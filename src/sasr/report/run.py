"""The report of a run of `sasr train`, finished or not: what its directory has so far."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sasr.live import format_duration
from sasr.metrics import METRICS_FILE, read_metrics, seconds_of, steps_of
from sasr.report import completions, examined
from sasr.report.document import (
    BOTH,
    GRPO,
    INK,
    MUTED,
    OTHERS,
    SFT,
    Document,
    Figure,
    axis,
    between,
    course,
    document,
    lines,
    number,
    section,
    series,
    settings_table,
    table,
)
from sasr.report.reading import read_json, read_lines, read_yaml
from sasr.report.series import roof, shares
from sasr.runs.state import run_state

_SUCCESS = re.compile(r"success/-?\d+(\.\d+)?(e[-+]\d+)?")  # at a difficulty

Lines = Sequence[Mapping[str, Any]]
_AGAIN = "config.yaml, with which sasr train --config runs it again."


def run_document(directory: Path) -> Document:
    """Raises `InputError` for a file that cannot be read."""
    config = read_yaml(directory / "config.yaml")
    path = directory / METRICS_FILE
    metrics = [line for line in (read_metrics(path) if path.is_file() else []) if number(line.get("step")) is not None]
    exams = examined.ordered(read_json(directory / "exam.json"))
    last = int(metrics[-1]["step"]) if metrics else 0
    state = run_state(directory, last, config, exams)
    task, schedule = str(config.get("task", "")), str(config.get("schedule", ""))
    sections = [
        section("What to look at", "", [_warnings(metrics)]),
        section("Training", "Which steps were SFT and which GRPO, and what decided it.", _training(metrics, config)),
        section(
            "Exams", "Accuracy on held-out rows, before, during and after training.", examined.figures(exams, last)
        ),
        section("What it wrote", "", [_browser(directory, exams, task)]),
        section("Cost and settings", "", [_time(metrics, exams), settings_table(_AGAIN, config)]),
    ]
    title = f"{schedule or 'a run'} on {task}" if task else directory.resolve().name
    return document("run", title, directory, state, _facts(config, metrics, exams), sections)


def _facts(config: Mapping[str, Any], metrics: Lines, exams: Mapping[str, Any]) -> list[dict[str, str]]:
    facts = []
    best, last = examined.best(exams), next(reversed(list(exams)), None)
    for title, label in (("Best exam", best), ("Last exam", last)):
        if label is None or (title == "Best exam" and best == last):
            continue
        name, value, interval = examined.score(exams[label])
        note = f"{name} {examined.title(label, exams[label])}"
        note += f"; 95% interval {between(interval)}" if interval else ""
        if "initial" in exams and label != "initial":
            note += f"; {examined.score(exams['initial'])[1]:.3f} before"
        title += ", also the best" if best == last and len(exams) > 1 else ""
        facts.append({"title": title, "value": f"{value:.3f}", "note": note})
    if metrics:
        steps = steps_of(metrics)
        counts = {kind: sum(each.get(kind, 0) for each in steps) for kind in ("sft", "grpo", "both")}
        named = [f"{counts[k]:,} {t}" for k, t in (("sft", "SFT"), ("grpo", "GRPO"), ("both", "both")) if counts[k]]
        note = ", ".join(named) + _warmup(metrics, steps)
        facts.append({"title": "Steps", "value": f"{metrics[-1]['step']:,}", "note": note})
        seconds = sum(map(seconds_of, metrics))
        tokens = next((number(m.get("rollout_tokens")) for m in reversed(metrics) if "rollout_tokens" in m), None)
        note = f"inside optimizer steps; {tokens:,.0f} rollout tokens" if tokens else "inside optimizer steps"
        facts.append({"title": "Time", "value": format_duration(seconds), "note": note})
    model = str(config.get("model_name_or_path", ""))
    if model:
        name = Path(model).name if model.startswith("/") else model
        facts.append({"title": "Model", "value": name, "note": f"seed {config.get('seed', '?')}"})
    return facts


def _warmup(metrics: Lines, steps: Sequence[Mapping[str, int]]) -> str:
    """How many steps it had. It may have ended between two lines."""
    known = sum(sum(each.values()) for line, each in zip(metrics, steps, strict=True) if line.get("phase") == "warm-up")
    after = next((each for line, each in zip(metrics, steps, strict=True) if line.get("phase") != "warm-up"), {})
    if sum(after.values()) > 1:
        return f"; at least {known:,} warm-up" if known else ""
    return f"; {known:,} warm-up"


# ---- training ----

_BY_HEART = " Held out are those that SFT never sees: where their loss does not fall with it, SFT learns by heart."


def _training(metrics: Lines, config: Mapping[str, Any]) -> list[Figure | None]:
    if not metrics:
        return []
    steps = [int(line["step"]) for line in metrics]
    warmup = [int(line["step"]) for line in metrics if line.get("phase") == "warm-up"]
    # All figures over steps have the same ends, so that one cross-hair fits all.
    x = axis("optimizer step", 0, steps[-1], name="step")
    common = {"region": [0, warmup[-1], "warm-up"] if warmup else None, "group": "step"}

    def figure(title: str, caption: str, y: str, groups: Sequence[Any], **more: Any) -> Figure | None:
        low, high = more.pop("low", None), more.pop("high", None)
        # Two points are a level to compare with.
        values = [value for group in groups if len(group["x"]) > 2 for value in group["y"]]
        top = roof(values) if high is None and low == 0 else None
        if top is not None:
            caption += f" Peaks are cut off; the highest is {max(values):.3g}."
        return lines(title, caption, x, axis(y, low, top or high, cut=top is not None), groups, **common, **more)

    kinds = steps_of(metrics)
    reward, spread = _points(metrics, "reward"), _points(metrics, "reward_std")
    divergence, target = _points(metrics, "divergence"), number(config.get("divergence_target")) or 0.1
    aim = [series("target", MUTED, [0, steps[-1]], [target, target], style="dashed")] if divergence[0] else []
    held_out = _points(metrics, "held_out_loss")
    grpo_loss = _points([line for line in metrics if line.get("kind") != "sft"], "loss")
    return [
        figure(
            "Which steps were SFT, which GRPO",
            "Above: each step, left to right. Below: p_sft, the probability with which a step was SFT.",
            "p_sft",
            [series("p_sft", INK, *_points(metrics, "p_sft"))],
            strip=shares(steps, kinds),
            counts={name: sum(each.get(name, 0) for each in kinds) for name in (SFT, GRPO, BOTH)},
            low=0,
            high=1,
            wide=True,
        ),
        figure(
            "Gradient norms of SFT",
            "g_last above g_warmup pulls towards SFT, below it towards GRPO. It stands still between SFT steps.",
            "norm before clipping",
            [
                *course("g_last", SFT, *_points(metrics, "sft_grad_norm")),
                series("g_warmup", MUTED, *_points(metrics, "warmup_grad_norm"), style="dashed"),
            ],
            low=0,
        ),
        figure(
            "Reward",
            "Mean over the rollouts of a GRPO step, with the mean spread inside a group as a band."
            if spread[0]
            else "Mean over the rollouts of a GRPO step.",
            "reward",
            _reward(reward, spread),
        ),
        figure(
            "Success by difficulty",
            "Share of correct rollouts in the last questions of each. One near 1 and one near 0 teach nothing.",
            "share of the rollouts",
            _success(metrics),
            low=0,
            high=1,
        ),
        figure(
            "Divergence from the reference policy",
            f"d_t against its target {target:g}.",
            "nats per token",
            [*aim, series("d_t", INK, *divergence)],
            low=0,
        ),
        figure(
            "SFT loss",
            "-log p of the demonstrations, on SFT steps." + (_BY_HEART if held_out[0] else ""),
            "nats per token",
            [*course("SFT loss", SFT, *_points(metrics, "sft_loss")), series("held out", MUTED, *held_out)],
            low=0,
        ),
        figure(
            "Left to learn",
            "1 - the likelihood of a whole demonstration, on SFT steps. Near 0 the policy writes them by itself.",
            "share of the demonstrations",
            [series("left to learn", SFT, *_points(metrics, "left_to_learn"))],
            low=0,
            high=1,
        ),
        figure("GRPO loss", "On GRPO steps.", "loss", course("GRPO loss", GRPO, *grpo_loss)),
        figure(
            "Entropy",
            "Of the policy on its rollouts. Near 0, all samples of a question are the same.",
            "nats per token",
            course("entropy", GRPO, *_points(metrics, "entropy")),
            low=0,
        ),
        figure(
            "Length of rollouts",
            "Mean tokens of a rollout.",
            "tokens",
            course("tokens", GRPO, *_points(metrics, "completion_length")),
            low=0,
        ),
        figure(
            "Cut rollouts, and groups that teach nothing",
            "Rollouts cut at the token limit, and groups whose rollouts all got the same reward.",
            "share",
            [
                *course("cut", GRPO, *_points(metrics, "truncation_rate")),
                *course("same reward", MUTED, *_points(metrics, "frac_reward_zero_std")),
            ],
            low=0,
            high=1,
        ),
    ]


def _success(metrics: Lines) -> list[dict[str, Any]]:
    names = {name for line in metrics for name in line if _SUCCESS.fullmatch(name)}
    easiest_first = sorted(names, key=lambda name: float(name.partition("/")[2]))
    colours = itertools.cycle(OTHERS)
    return [series(name.partition("/")[2], next(colours), *_points(metrics, name)) for name in easiest_first]


def _points(metrics: Lines, key: str) -> tuple[list[float], list[float]]:
    found = [(float(line["step"]), number(line.get(key))) for line in metrics]
    known = [(step, value) for step, value in found if value is not None]
    return [step for step, _ in known], [value for _, value in known]


def _reward(reward: tuple[list[float], list[float]], spread: tuple[list[float], list[float]]) -> list[dict[str, Any]]:
    from sasr.report.series import smooth, thin

    drawn = course("reward", GRPO, *reward)
    std = dict(zip(*spread, strict=True))
    if len(std) == len(reward[0]) and reward[0]:
        window = max(1, len(reward[0]) // 25)
        middle = smooth(reward[1], window)
        width = smooth([std[step] for step in reward[0]], window)
        xs, low = thin(reward[0], [m - w for m, w in zip(middle, width, strict=True)])
        places = {step: i for i, step in enumerate(reward[0])}
        high = [middle[places[step]] + width[places[step]] for step in xs]
        middle = [middle[places[step]] for step in xs]
        drawn.insert(0, series("spread", GRPO, xs, middle, style="band", low=low, high=high, label=False))
    return drawn


# ---- the rest ----


def _warnings(metrics: Lines) -> Figure | None:
    """The last hundred: one that comes back every hundred steps says nothing new."""
    found = [str(text) for line in metrics for text in line.get("warnings") or []]
    cut = f" The last 100 of {len(found)}." if len(found) > 100 else ""
    caption = f"What the run warned of, while it went on.{cut}"
    return table("Warnings", caption, ["warning"], [[text] for text in found[-100:]], wide=True, texts=True)


def _browser(directory: Path, exams: Mapping[str, Mapping[str, Any]], task: str) -> Figure | None:
    labels = completions.few([label for label in exams if (directory / "exams" / f"{label}.jsonl").is_file()])
    if not labels:
        return None
    rows = max(int(number(exams[label].get("rows")) or 0) for label in labels)
    sizes = [(directory / "exams" / f"{label}.jsonl").stat().st_size for label in labels]
    per_row = max(1 + int(number(exams[labels[0]].get("samples")) or 0), 1)
    chosen = set(completions.choose(rows, len(labels), sum(sizes) / len(sizes) / max(1, rows) / per_row))
    asked: dict[str, dict[str, Any]] = {}
    for index, label in enumerate(labels):
        for row, record in enumerate(read_lines(directory / "exams" / f"{label}.jsonl")):
            if row in chosen:
                question = completions.question(row, record)
                entry = asked.setdefault(f"{row} {question['prompt']}", question)
                entry["tries"] += completions.tries(record, index, task)
    names = [examined.title(label, exams[label]) for label in labels]
    caption = "The same questions at each exam: the greedy completion, a right and a wrong sample."
    return completions.browser(asked.values(), names, rows, caption)


def _time(metrics: Lines, exams: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    kinds = [next(iter(each), "") if len(each) < 2 else "several" for each in steps_of(metrics)]

    def spent(kind: str, phase: str | None = None) -> float:
        return sum(
            seconds_of(line)
            for line, its in zip(metrics, kinds, strict=True)
            if its == kind and phase in (None, line.get("phase"))
        )

    parts = [
        ("SFT, warm-up", spent("sft", "warm-up"), SFT),
        ("SFT, hybrid phase", spent("sft", "hybrid"), SFT),
        ("GRPO", spent("grpo"), GRPO),
        ("steps of both", spent("both"), BOTH),
        ("steps of several kinds", spent("several"), OTHERS[0]),  # under one line
        ("exams", sum(number(exam.get("seconds")) or 0.0 for exam in exams.values()), MUTED),
    ]
    kept = [{"name": n, "value": v, "text": format_duration(v), "colour": c} for n, v, c in parts if v > 0]
    if not kept:
        return None
    caption = "Seconds inside optimizer steps, and of the exams. Loading and saving are not counted."
    return {"kind": "parts", "title": "Where the time went", "caption": caption, "parts": kept, "wide": True}
