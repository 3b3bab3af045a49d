"""Wrong input ends with one line that names it, status 2, and before a model is loaded: flags, recipes, directories."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sasr.cli
from refusals import JSONL, SMALL, checked
from whole_runs import INSTALLED

pytestmark = pytest.mark.usefixtures("clean")


FLAGS = {
    "unknown-schedule": (["--schedule", "sassr"], ["unknown schedule 'sassr'", "static", "did you mean sasr?"]),
    "unknown-task": (["--task", "gsm8"], ["unknown task 'gsm8'", "did you mean gsm8k?"]),
    "task-option": (["--task_options", '{"stps": 5}'], ["option of task stories 'stps'", "did you mean steps?"]),
    "task-option-value": (["--task_options", '{"steps": [0]}'], ["task stories: steps must be 1 or more, not 0"]),
    "task-option-large": (["--task_options", '{"steps": [3, 100000]}'], ["steps must be at most 100, not 100000"]),
    "task-options-no-json": (
        ["--task_options", "steps=5"],
        ["--task_options", "'steps=5' is no JSON object", "such as"],
    ),
    "task-options-no-object": (["--task_options", "[5]"], ["--task_options", "'[5]' is no JSON object"]),
    "unknown-tiny-model": (["--model_name_or_path", "tiny-lama"], ["'tiny-lama'", "tiny-llama"]),
    "missing-model-path": (["--model_name_or_path", "./models/x"], ["'./models/x'", "no such file or directory"]),
    "missing-home": (["--model_name_or_path", "~nosuch/x"], ["'~nosuch/x'", "no such file or directory"]),
    "missing-gguf": (["--model_name_or_path", "x.gguf"], ["'x.gguf'", "no such file"]),
    "model-no-name": (["--model_name_or_path", "a/b/c"], ["'a/b/c'", "neither an existing path nor a hub id"]),
    "missing-data": ([*JSONL, "--data", "rows.jsonl"], ["rows.jsonl", "no such file"]),
    "missing-demonstrations": (["--demonstrations", "demos.jsonl"], ["demos.jsonl", "no such file"]),
    "missing-exam-data": (["--exam_data", "exam.jsonl"], ["exam.jsonl", "no such file"]),
    "task-without-data": (JSONL, ["task jsonl has no data of its own", "as data"]),
    "unknown-recipe": (["--config", "storis"], ["no recipe 'storis'", "stories"]),
    "missing-recipe-file": (["--config", "mine.yaml"], ["mine.yaml", "No such file"]),
    "config-without-value": (["--config"], ["--config needs a recipe"]),
    "unknown-flag": (["--gama", "1"], ["unknown argument --gama", "did you mean --gamma?"]),
    "kwargs-no-json": (
        ["--chat_template_kwargs", "enable_thinking=false"],
        ["chat_template_kwargs is 'enable_thinking=false'", "must be JSON"],
    ),
    "model-init": (["--model_init_kwargs", '{"dtype": "bfloat16"}'], ["model_init_kwargs: dtype", "set dtype, attn"]),
    "only-the-model": (["--save_only_model", "true"], ["save_only_model", "cannot go on", "leave it out"]),
    "two-trackers": (["--report_to", "tensorboard", "wand"], ["unknown report_to 'wand'"]),
    "hyphens": (["--max-grad-norm", "-1"], ["max_grad_norm is -1.0", "set a number"]),
    "hyphens-and-equals": (["--max-grad-norm=-1"], ["max_grad_norm is -1.0"]),
    "stray-word": (["stories"], ["unknown argument stories"]),
    "float-flag": (["--gamma", "big"], ["--gamma", "'big'"]),
    "int-flag": (["--max_steps", "3.5"], ["--max_steps", "'3.5'"]),
    "bool-flag": (["--use_peft", "maybe"], ["--use_peft", "maybe"]),
    "flag-without-value": (["--gamma"], ["--gamma", "expected one argument"]),
    "gamma-0": (["--gamma", "0"], ["gamma is 0.0", "above 0"]),
    "gamma-negative": (["--gamma", "-1"], ["gamma is -1.0", "above 0"]),
    "gamma-nan": (["--gamma", "nan"], ["gamma is nan", "above 0"]),
    "gamma-inf": (["--gamma", "inf"], ["gamma is inf", "above 0"]),
    "no-warm-up": (["--sft_warmup_steps", "0"], ["schedule sasr", "set sft_warmup_steps to 1 or more"]),
    "long-warm-up": (["--sft_warmup_steps", "5"], ["sft_warmup_steps (5)", "longer than the run", "max_steps 4"]),
    "negative-warm-up": (["--sft_warmup_steps", "-1"], ["sft_warmup_steps is -1"]),
    "negative-max-grad-norm": (["--max_grad_norm", "-1"], ["max_grad_norm is -1.0", "set a number"]),
    "nan-max-grad-norm": (["--max_grad_norm", "nan"], ["max_grad_norm is nan", "set a number"]),
    "generations": (["--num_generations", "3"], ["num_generations (3)", "per_device_train_batch_size (8)"]),
    "one-generation": (["--num_generations", "1"], ["num_generations is 1", "2 or more"]),
    "slices": (
        ["--steps_per_generation", "3", "--num_iterations", "1", "--gradient_accumulation_steps", "2"],
        ["steps_per_generation x num_iterations (3)", "gradient_accumulation_steps (2)"],
    ),
    "divergence-weight": (["--divergence_weight", "2"], ["divergence_weight is 2.0", "between 0 and 1"]),
    "ema": (["--sft_norm_ema", "1"], ["sft_norm_ema is 1.0", "below 1"]),
    "warmup-norm": (["--warmup_norm", "median"], ["unknown warmup_norm 'median'", "mean, first, last"]),
    "reference-model": (["--reference_model", "first"], ["unknown reference_model 'first'", "initial, warmup"]),
    "switch-step": (["--switch_step", "3"], ["switch_step", "static, not of sasr", "remove it"]),
    "hpt-gate": (["--schedule", "hpt", "--hpt_gate", "8"], ["hpt_gate is 8", "num_generations - 1 (7)"]),
    "luffy-shaping": (["--schedule", "luffy", "--luffy_shaping", "0"], ["luffy_shaping is 0.0", "above 0"]),
    "hint-steps": (["--schedule", "uft", "--hint_steps", "0"], ["hint_steps is 0", "1 or more"]),
    "hint-weight": (["--schedule", "uft", "--hint_weight", "-1"], ["hint_weight is -1.0", "0 or more"]),
    "sft-questions": (["--sft_questions", "some"], ["unknown sft_questions 'some'", "all, failed"]),
    "sft-norm-every": (["--sft_norm_every", "-2"], ["sft_norm_every is -2", "0 or more"]),
    "setting-of-another-method": (["--hint_weight", "1"], ["hint_weight", "uft, not of sasr", "remove it"]),
    "old-rollouts": (
        ["--schedule", "hpt", "--num_iterations", "2"],
        ["schedule hpt", "rollouts of the same step", "num_iterations (2)", "gradient_accumulation_steps (1)"],
    ),
    "match-nothing": (["--schedule", "random", "--match_run", "gone"], ["gone/metrics.jsonl", "No such file"]),
    "match-by-sasr": (["--match_run", "gone"], ["match_run is for schedule random", "remove one"]),
    "match-and-share": (
        ["--schedule", "random", "--match_run", "gone", "--sft_share", "0.2"],
        ["match_run", "in place of sft_share", "remove one"],
    ),
    "exam-samples": (["--exam_samples", "0"], ["exam_samples is 0", "1 or more"]),
    "exam-rows": (["--exam_rows", "-1"], ["exam_rows is -1"]),
    "exam-at": (["--exam_at", "initial", "finl"], ["unknown exam_at 'finl'", "did you mean final?"]),
    "exam-at-twice": (["--exam_at", "final", "final"], ["exam_at names a moment twice"]),
    "exam-every": (["--exam_every", "-1"], ["exam_every is -1", "0 or more"]),
    "exam-at-without-value": (["--exam_at"], ["--exam_at", "expected at least one argument"]),
    "validation-rows": (["--validation_rows", "-1"], ["validation_rows is -1"]),
    "exam-split": (["--exam_split", "dev"], ["unknown exam_split 'dev'", "test, validation"]),
    "exam-split-without-rows": (["--exam_split", "validation"], ["set validation_rows to 1 or more"]),
    "train-rows": (["--train_rows", "0"], ["train_rows is 0"]),
    "sft-batch": (["--per_device_sft_batch_size", "0"], ["per_device_sft_batch_size is 0"]),
    "learning-rate": (["--sft_learning_rate", "0"], ["sft_learning_rate is 0.0"]),
    "scheduler": (["--lr_scheduler_type", "cosin"], ["cosin", "lr_scheduler_type", "cosine"]),
    "scheduler-with-history": (
        ["--lr_scheduler_type", "reduce_lr_on_plateau"],
        ["lr_scheduler_type reduce_lr_on_plateau", "use another"],
    ),
    "scheduler-kwargs": (["--lr_scheduler_type", "cosine_with_min_lr"], ["cosine_with_min_lr", "min_lr"]),
    "report-to-unknown": (["--report_to", "tensorbord"], ["report_to", "tensorbord", "tensorboard"]),
    "report-to-missing": (["--report_to", "clearml"], ["report_to clearml", "not installed", "none"]),
    "optimizer-missing": (["--optim", "galore_adamw"], ["optim galore_adamw", "galore_torch", "set optim to another"]),
    "optimizer-options": (["--optim_args", "fast"], ["optim_args fast", "not enough values"]),
    "reward-weights": (["--reward_weights", "1", "1", "1"], ["reward_weights", "3", "2", "correctness, format"]),
    "long-prompt": (["--max_prompt_length", "10"], ["max_prompt_length (10)", "drop the row", " has "]),
    "no-training-length": (["--max_steps", "0"], ["max_steps is 0"]),
    "max-seconds": (["--max_seconds", "0"], ["max_seconds is 0.0", "above 0"]),
    "max-rollout-tokens": (["--max_rollout_tokens", "-1"], ["max_rollout_tokens is -1", "above 0"]),
    "budget-shape": (["--max_seconds", "9", "--lr_scheduler_type", "cosine"], ["max_seconds", "cosine", "to constant"]),
    "budget-schedule": (["--max_rollout_tokens", "9", "--schedule", "cosine"], ["max_rollout_tokens", "other budget"]),
    "temperature": (["--temperature", "0"], ["temperature is 0"]),
    "loss-type": (["--loss_type", "dr_grop"], ["unknown loss_type 'dr_grop'", "did you mean dr_grpo?"]),
    "scale-rewards": (["--scale_rewards", "True"], ["unknown scale_rewards 'True'", "group, batch, none"]),
    "importance": (["--importance_sampling_level", "word"], ["unknown importance_sampling_level 'word'", "sequence"]),
    "aggregation": (["--multi_objective_aggregation", "sum"], ["unknown multi_objective_aggregation 'sum'"]),
    "top-p": (["--top_p", "-1"], ["top_p is -1.0", "above 0 and at most 1"]),
    "top-k": (["--top_k", "-2"], ["top_k is -2", "0 or more"]),
    "min-p": (["--min_p", "3"], ["min_p is 3.0", "between 0 and 1"]),
    "repetition": (["--repetition_penalty", "0"], ["repetition_penalty is 0.0", "above 0"]),
    "beta": (["--beta", "nan"], ["beta is nan", "0 or more"]),
    "no-accumulation": (["--gradient_accumulation_steps", "0"], ["gradient_accumulation_steps is 0", "1 or more"]),
    "no-iterations": (["--num_iterations", "0"], ["num_iterations is 0"]),
    "no-batch": (["--per_device_train_batch_size", "0"], ["per_device_train_batch_size is 0"]),
    "seed": (["--seed", "99999999999999999999"], ["seed is 99999999999999999999", "2^32"]),
    "adam": (["--adam_beta1", "2"], ["adam_beta1 is 2.0", "below 1"]),
    "label-smoothing": (["--label_smoothing_factor", "0.1"], ["label_smoothing_factor 0.1", "neither", "set it to 0"]),
    "moving-base": (
        ["--use_peft", "true", "--beta", "0.01", "--sync_ref_model", "true"],
        ["sync_ref_model moves the reference model", "with use_peft", "set one to false"],
    ),
    "logging-steps": (["--logging_steps", "-1"], ["logging_steps is -1", "above 0"]),
    "weight-nan": (["--reward_weights", "nan", "1"], ["reward_weights is nan", "finite"]),
    "dtype": (["--dtype", "float33"], ["float33", "bfloat16"]),
    "8-bit": (["--load_in_8bit"], ["load_in_8bit is not supported", "load_in_4bit"]),
    "4-bit-without-adapter": (["--load_in_4bit"], ["4 bits cannot be trained", "set use_peft"]),
    "4-bit-from-scratch": (["--load_in_4bit", "--use_peft"], ["made from scratch", "a directory or a hub name"]),
    "4-bit-gguf": (
        ["--load_in_4bit", "--use_peft", "--model_name_or_path", "x.gguf"],
        ["a GGUF file", "a directory or a hub name"],
    ),
    "4-bit-storage": (
        ["--load_in_4bit", "--use_peft", "--bnb_4bit_quant_storage", "bfloat16"],
        ["bnb_4bit_quant_storage", "FSDP", "leave it out"],
    ),
    "4-bit-vllm": (["--load_in_4bit", "--use_peft", "--use_vllm"], ["load_in_4bit with use_vllm", "leave one out"]),
    "resume-nothing": (["--output_dir", "none", "--resume_from_checkpoint"], ["no checkpoint to resume from in none"]),
    "resume-missing": (["--resume_from_checkpoint", "run/checkpoint-9"], ["no checkpoint run/checkpoint-9"]),
}


@pytest.mark.parametrize("name", FLAGS)
def test_flags(error, name):
    flags, fragments = FLAGS[name]
    message = error(*SMALL, *flags)
    assert [f for f in fragments if f not in message] == [], message


def test_4_bits_without_bitsandbytes(error, monkeypatch):
    monkeypatch.setattr("transformers.utils.is_bitsandbytes_available", lambda: False)
    message = error(*SMALL, "--load_in_4bit", "--use_peft", "--model_name_or_path", "owner/name")
    assert "load_in_4bit needs bitsandbytes" in message and "pip install 'sasr[qlora]'" in message


@pytest.mark.parametrize(
    ("setting", "missing", "words"),
    [
        ("use_liger_kernel", "is_liger_kernel_available", "the package liger-kernel is not installed"),
        ("push_to_hub", "whoami", "no such token; log in (hf auth login), give --hub_token, or leave it out"),
    ],
)
def test_what_is_missing_from_the_machine(error, monkeypatch, setting, missing, words):
    def absent(token="asked"):
        if token == "asked":
            return False
        raise OSError("no such token")

    monkeypatch.setattr(f"sasr.setting_checks.{missing}", absent)
    assert words in error(*SMALL, f"--{setting}", "true")


def test_one_process_that_sees_several_gpus(error, monkeypatch):
    """TRL says so when the data and the model are loaded."""
    monkeypatch.setattr("sasr.config.SASRConfig.n_gpu", property(lambda args: 2))
    monkeypatch.setattr("sasr.run.collect_rows", None)
    message = error(*SMALL)
    assert message.startswith("2 GPUs are visible to one process")
    assert "CUDA_VISIBLE_DEVICES=0" in message and "torchrun --nproc_per_node 2 -m sasr train" in message


def test_resume_without_a_directory(error):
    assert "--output_dir" in error("--resume_from_checkpoint")


def test_flags_with_hyphens_say_where_a_run_is(error):
    """TRL's parser takes them too: what looks for these flags before it must not overlook them."""
    Path("file").write_text("")
    assert "output_dir file/below cannot be written" in error(*SMALL[2:], "--output-dir", "file/below")
    assert "there is no checkpoint gone/checkpoint-9" in error("--resume-from-checkpoint", "gone/checkpoint-9")
    assert "no checkpoint to resume from in gone" in error("--output-dir=gone", "--resume-from-checkpoint")


def test_a_run_is_no_checkpoint(error):
    Path("runs/x").mkdir(parents=True)
    Path("runs/x/config.yaml").write_text("task: stories\n")
    message = error("--resume_from_checkpoint", "runs/x")
    assert message.endswith("runs/x is a run, not a checkpoint: give --output_dir runs/x --resume_from_checkpoint")


@pytest.mark.parametrize(
    "flags", [["check", "--config", "r.yaml"], ["train", "--output_dir", ".", "--resume_from_checkpoint"]]
)
def test_variables_of_a_recipe_are_there_when_libraries_are_imported(flags):
    recipe = Path("config.yaml" if "train" in flags else "r.yaml")
    recipe.write_text("env: {HF_HUB_OFFLINE: 1}\ngama: 1\n")
    code = (
        f"import sasr.cli; status = sasr.cli.main({flags!r}); "
        "import huggingface_hub.constants as hub; print(status, hub.HF_HUB_OFFLINE)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split()[-2:] == ["2", "True"] and "unknown setting 'gama'" in done.stderr


RECIPES = {
    "unknown-key": ("gama: 2\n", ["r.yaml", "unknown setting 'gama'", "did you mean gamma?"]),
    "text-for-int": ("max_steps: many\n", ["r.yaml", "max_steps is 'many'", "a whole number"]),
    "float-for-int": ("max_steps: 3.5\n", ["r.yaml", "max_steps is 3.5", "a whole number"]),
    "list-for-number": ("gamma: [1, 2]\n", ["r.yaml", "gamma is [1, 2]", "a number"]),
    "bool-for-number": ("gamma: true\n", ["r.yaml", "gamma is True", "a number"]),
    "bool-for-int": ("sft_warmup_steps: yes\n", ["r.yaml", "sft_warmup_steps is True", "a whole number"]),
    "int-for-bool": ("use_peft: 1\n", ["r.yaml", "use_peft is 1", "true or false"]),
    "text-for-bool": ("separate_optimizer_states: maybe\n", ["separate_optimizer_states is 'maybe'", "true or false"]),
    "text-for-list": ("reward_weights: [one, two]\n", ["reward_weights is ['one', 'two']", "list"]),
    "list-for-mapping": ("task_options: [steps]\n", ["r.yaml", "task_options is ['steps']", "a mapping"]),
    "task-option": ("task_options: {stps: 5}\n", ["option of task stories 'stps'", "did you mean steps?"]),
    "mapping-for-text": ("task: {name: stories}\n", ["task is {'name': 'stories'}", "text"]),
    "list-for-text": ("schedule: [sasr]\n", ["schedule is ['sasr']", "text"]),
    "number-for-text": ("schedule: 3\n", ["schedule is 3", "text"]),
    "null-max-grad-norm": ("max_grad_norm: null\n", ["max_grad_norm is None", "set a number"]),
    "null-for-required": ("gamma: null\n", ["gamma is None: set a number, or leave the line out"]),
    "null-task": ("task: null\n", ["task is None: set text"]),
    "null-batch": ("per_device_train_batch_size: null\n", ["per_device_train_batch_size is None: set a whole number"]),
    "null-beta": ("beta: null\n", ["beta is None: set a number"]),
    "env-name": ("env: {'A=B': x}\n", ["env: 'A=B' cannot be set"]),
    "null-exam-rows": ("exam_rows: null\n", ["exam_rows is None"]),
    "bad-yaml": ("gamma: 1\n  task: [\n", ["r.yaml:2", "not valid YAML"]),
    "key-twice": ("gamma: 1\ngamma: 2\n", ["r.yaml:3: gamma is given twice: keep one"]),
    "list": ("- gamma\n- 1\n", ["r.yaml", "setting: value"]),
    "text": ("just text\n", ["r.yaml", "setting: value"]),
    "env-no-mapping": ("env: 3\n", ["r.yaml", "env"]),
    "env-list": ("env: {A: [1]}\n", ["r.yaml", "env: A"]),
    "resume": ("resume_from_checkpoint: true\n", ["r.yaml", "resume_from_checkpoint", "flag"]),
    "bad-value": ("gamma: -2\n", ["gamma is -2", "above 0"]),
    "exponent-without-point": ("gamma: 1e3x\n", ["gamma is '1e3x'", "a number"]),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(error, name):
    text, fragments = RECIPES[name]
    Path("r.yaml").write_text("model_name_or_path: tiny-llama\n" * (text[0].isalpha() and ":" in text) + text)
    if name == "bad-yaml":
        Path("r.yaml").write_text(text)
    keys = [line.split(":")[0] for line in text.splitlines()]
    # A flag would override the very setting that is wrong.
    flags = [part for f, v in zip(SMALL[::2], SMALL[1::2], strict=True) if f[2:] not in keys for part in (f, v)]
    message = error("--config", "r.yaml", *flags)
    assert [f for f in fragments if f not in message] == [], message


def test_recipe_that_is_no_text(error):
    Path("r.yaml").write_bytes(b"gamma: \xff\xfe\n")
    assert "r.yaml" in error("--config", "r.yaml", *SMALL)
    Path("folder.yaml").mkdir()
    assert "folder.yaml" in error("--config", "folder.yaml", *SMALL)


def test_recipe_without_a_model(error):
    Path("r.yaml").write_text("task: stories\n")
    message = error("--config", "r.yaml", *SMALL)
    assert "no model" in message and "model_name_or_path" in message


def test_output_directory(error):
    Path("run").mkdir()
    Path("run/notes.txt").write_text("mine")
    message = error(*SMALL)
    assert "run is not empty" in message and "choose another" in message and "resume" not in message
    assert os.listdir("run") == ["notes.txt"]
    Path("file").write_text("")
    for name in ("file", "file/below"):
        message = error(*SMALL, "--output_dir", name)
        assert f"output_dir {name} cannot be written" in message


def test_a_refused_run_leaves_nothing_behind(error):
    error(*SMALL, "--task", "gsm8")
    error(*SMALL, "--output_dir", "a/b", "--max_prompt_length", "10")
    error("--max_prompt_length", "10")
    error("--gama", "1")
    assert os.listdir(".") == []
    Path("empty").mkdir()
    error(*SMALL, "--output_dir", "empty", "--max_prompt_length", "10")
    assert os.listdir("empty") == []


def test_command(capsys):
    for argv in (["trian"], ["--train"]):
        status = sasr.cli.main(argv)
        out, err = capsys.readouterr()
        assert "the commands are train, check, compare, exam, runs, report" in checked(status, out, err)


def test_windows_is_told_in_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    for command in ("train", "check", "compare", "exam", "runs", "report"):
        status = sasr.cli.main([command])
        out, err = capsys.readouterr()
        message = checked(status, out, err)
        assert "Linux or macOS" in message and "WSL" in message
    assert sasr.cli.main(["--version"]) == sasr.cli.main(["--help"]) == 0


def test_matched_run_without_hybrid_steps(error):
    Path("other").mkdir()
    Path("other/metrics.jsonl").write_text('{"step": 1, "phase": "warm-up", "kind": "sft", "p_sft": 1.0}\n')
    assert "other has no steps after its warm-up" in error(*SMALL, "--schedule", "random", "--match_run", "other")


@pytest.mark.parametrize("flags", [["--gamma", "0"], [*JSONL, "--data", "rows.jsonl"]], ids=["flag", "data"])
def test_process(flags):
    Path("rows.jsonl").write_text("{oops\n")
    command = [INSTALLED, "train", *SMALL, *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    message = checked(done.returncode, done.stdout, done.stderr)
    assert message.startswith("gamma is 0.0" if "--gamma" in flags else "rows.jsonl:1: invalid JSON")
