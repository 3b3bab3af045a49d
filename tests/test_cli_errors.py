"""Wrong input ends with one line that names it, status 2, and before any model is loaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sasr.cli
import sasr.run

SMALL = [
    *("--output_dir", "run", "--train_rows", "40", "--exam_rows", "0", "--max_steps", "4", "--sft_warmup_steps", "2"),
    *("--per_device_train_batch_size", "8", "--per_device_sft_batch_size", "4", "--save_steps", "2"),
]
ROW = json.dumps({"prompt": "1+1=", "completion": "2", "answer": "2"}) + "\n"
JSONL = ["--task", "jsonl", "--model_name_or_path", "tiny-llama"]


@pytest.fixture(autouse=True)
def clean(tmp_path, monkeypatch):
    """An empty directory to work in, and no network."""
    monkeypatch.chdir(tmp_path)
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, os.environ.get(name, "error" if name == "TRANSFORMERS_VERBOSITY" else "true"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def error(monkeypatch, capsys):
    """`error(*flags)`: the message with which `sasr train` refuses them, after checking its form."""

    def refused(*flags: str) -> str:
        def loaded(*args, **kwargs):
            raise AssertionError("the model was loaded before the error was found")

        with monkeypatch.context() as patch:
            patch.setattr(sasr.run, "load_model", loaded)
            status = sasr.cli.main(["train", *flags])
        out, err = capsys.readouterr()
        return checked(status, out, err)

    return refused


def checked(status: int, out: str, err: str) -> str:
    assert status == 2, (status, out, err)
    assert err.startswith("sasr: error: ") and err.endswith("\n") and err.count("\n") == 1, err
    assert "Traceback" not in err + out and out == "", out
    message = err.removeprefix("sasr: error: ").strip()
    assert len(message) < 400, "one line that can be read"
    return message


FLAGS = {
    "unknown-schedule": (["--schedule", "sassr"], ["unknown schedule 'sassr'", "static", "did you mean sasr?"]),
    "unknown-task": (["--task", "gsm8"], ["unknown task 'gsm8'", "did you mean gsm8k?"]),
    "task-option": (["--task_options", '{"stps": 5}'], ["option of task stories 'stps'", "did you mean steps?"]),
    "task-option-value": (["--task_options", '{"steps": [0]}'], ["task stories: steps must be 1 or more, not 0"]),
    "task-options-no-json": (
        ["--task_options", "steps=5"],
        ["--task_options", "'steps=5' is no JSON object", "such as"],
    ),
    "task-options-no-object": (["--task_options", "[5]"], ["--task_options", "'[5]' is no JSON object"]),
    "unknown-tiny-model": (["--model_name_or_path", "tiny-lama"], ["'tiny-lama'", "tiny-llama"]),
    "missing-model-path": (["--model_name_or_path", "./models/x"], ["'./models/x'", "no such file or directory"]),
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
    "warmup-norm": (["--warmup_norm", "median"], ["unknown warmup_norm 'median'", "mean, last"]),
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
    "reward-weights": (["--reward_weights", "1", "1", "1"], ["reward_weights", "3", "2", "correctness, format"]),
    "long-prompt": (["--max_prompt_length", "10"], ["max_prompt_length (10)", "drop the row", " has "]),
    "no-training-length": (["--max_steps", "0"], ["max_steps is 0"]),
    "max-seconds": (["--max_seconds", "0"], ["max_seconds is 0.0", "above 0"]),
    "max-rollout-tokens": (["--max_rollout_tokens", "-1"], ["max_rollout_tokens is -1", "above 0"]),
    "budget-shape": (["--max_seconds", "9", "--lr_scheduler_type", "cosine"], ["max_seconds", "cosine", "to constant"]),
    "budget-schedule": (["--max_seconds", "9", "--schedule", "cosine"], ["max_seconds", "Cosine", "use another"]),
    "temperature": (["--temperature", "0"], ["temperature is 0"]),
    "dtype": (["--dtype", "float33"], ["float33", "bfloat16"]),
    "resume-nothing": (["--output_dir", "none", "--resume_from_checkpoint"], ["no checkpoint to resume from in none"]),
    "resume-missing": (["--resume_from_checkpoint", "run/checkpoint-9"], ["no checkpoint run/checkpoint-9"]),
}


@pytest.mark.parametrize("name", FLAGS)
def test_flags(error, name):
    flags, fragments = FLAGS[name]
    message = error(*SMALL, *flags)
    assert [f for f in fragments if f not in message] == [], message


def test_resume_without_a_directory(error):
    assert "--output_dir" in error("--resume_from_checkpoint")


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
    "null-for-required": ("gamma: null\n", ["gamma is None", "above 0"]),
    "null-exam-rows": ("exam_rows: null\n", ["exam_rows is None"]),
    "bad-yaml": ("gamma: 1\n  task: [\n", ["r.yaml:2", "not valid YAML"]),
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


DATA = {
    "empty": ("", [], ["rows.jsonl", "no records"]),
    "blank-lines": ("\n\n", [], ["rows.jsonl", "no records"]),
    "bad-json": (ROW + "\n" + "{'prompt': 1}\n", [], ["rows.jsonl:3", "invalid JSON"]),
    "not-an-object": (ROW + "[1, 2]\n", [], ["rows.jsonl:2", "not a JSON object"]),
    "no-prompt": (ROW + '{"question": "x"}\n', [], ["rows.jsonl:2", "no field 'prompt'", "question"]),
    "no-demonstrations": (
        '{"prompt": "1+1=", "answer": "2"}\n' * 4,
        [],
        ["no demonstrations", "SFT steps", "add completions"],
    ),
    "no-demonstrations-at-all": (
        '{"prompt": "1+1=", "answer": "2"}\n' * 4,
        ["--schedule", "sft"],
        ["no demonstrations", "add completions"],
    ),
    "no-answers": ('{"prompt": "1+1=", "completion": "2"}\n' * 4, [], ["no answers", "GRPO steps", "add answers"]),
    "no-answers-grpo": (
        '{"prompt": "1+1=", "completion": "2"}\n' * 4,
        ["--schedule", "grpo", "--sft_warmup_steps", "0"],
        ["no answers", "add answers"],
    ),
    "all-held-out": (ROW * 4, ["--exam_rows", "4"], ["no training rows are left", "exam_rows"]),
}


@pytest.fixture
def words(tmp_path):
    """A tokenizer in a directory with a stand-in for weights: JSONL rows do not come with a vocabulary."""
    import toy

    toy.model().save_pretrained(tmp_path / "lm")
    toy.tokenizer().save_pretrained(tmp_path / "lm")
    return ["--task", "jsonl", "--model_name_or_path", "lm", "--data", "rows.jsonl"]


@pytest.mark.parametrize("name", DATA)
def test_data(error, words, name):
    text, flags, fragments = DATA[name]
    Path("rows.jsonl").write_text(text)
    message = error(*SMALL, *words, *flags)
    assert [f for f in fragments if f not in message] == [], message


def test_demonstrations_without_a_solution(error, words):
    Path("rows.jsonl").write_text(ROW * 4)
    Path("demos.jsonl").write_text('{"prompt": "1+1="}\n')
    message = error(*SMALL, *words, "--demonstrations", "demos.jsonl")
    assert "no demonstrations" in message


def test_long_prompt_names_the_row(error, words):
    Path("rows.jsonl").write_text(ROW + json.dumps({"prompt": "9+8=" * 20, "completion": "1", "answer": "1"}) + "\n")
    message = error(*SMALL, *words, "--max_prompt_length", "40")
    assert "80 tokens" in message and "max_prompt_length (40)" in message and "9+8=9+8=" in message


def test_conversations_without_a_chat_template(error, words):
    row = {"prompt": [{"role": "user", "content": "1+1="}], "completion": "2", "answer": "2"}
    Path("rows.jsonl").write_text(json.dumps(row) + "\n")
    assert "no chat template" in error(*SMALL, *words)


def test_tiny_model_needs_a_vocabulary(error):
    Path("rows.jsonl").write_text(ROW * 4)
    message = error(*SMALL, *JSONL, "--data", "rows.jsonl")
    assert "tiny-llama" in message and "not of jsonl" in message


def test_model_directory_without_weights(error, words):
    Path("rows.jsonl").write_text(ROW * 4)
    Path("lm/model.safetensors").unlink()
    assert "no weights (model.safetensors)" in error(*SMALL, *words)
    Path("lm/config.json").unlink()
    assert "no config.json" in error(*SMALL, *words)


def test_model_with_damaged_weights(error, words):
    Path("rows.jsonl").write_text(ROW * 4)
    whole = Path("lm/model.safetensors").read_bytes()
    Path("lm/model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "model.safetensors is damaged" in error(*SMALL, *words)


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
    assert os.listdir(".") == []


def test_command(capsys):
    for argv in (["trian"], ["--train"]):
        status = sasr.cli.main(argv)
        out, err = capsys.readouterr()
        assert "the commands are train, check, compare, exam, runs, report" in checked(status, out, err)


def test_matched_run_without_hybrid_steps(error):
    Path("other").mkdir()
    Path("other/metrics.jsonl").write_text('{"step": 1, "phase": "warm-up", "kind": "sft", "p_sft": 1.0}\n')
    assert "other has no steps after its warm-up" in error(*SMALL, "--schedule", "random", "--match_run", "other")


# ---- resuming ----


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with checkpoints at steps 2 and 4."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory.parent)
        assert sasr.cli.main(["train", *SMALL, "--output_dir", "run"]) == 0
    return directory


@pytest.fixture(scope="module")
def finished_lora(tmp_path_factory):
    directory = tmp_path_factory.mktemp("finished_lora") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory.parent)
        lora = ["--use_peft", "true", "--lora_r", "2", "--lora_target_modules", "all-linear"]
        assert sasr.cli.main(["train", *SMALL, "--output_dir", "run", *lora]) == 0
    return directory


@pytest.fixture
def lora_run(finished_lora):
    copy = Path(shutil.copytree(finished_lora, "run"))
    shutil.rmtree(copy / "checkpoint-4")
    return copy


@pytest.fixture
def run(finished):
    return Path(shutil.copytree(finished, "run"))


RESUME = ["--output_dir", "run", "--resume_from_checkpoint"]


def test_finished_directory_suggests_to_resume(error, run):
    message = error(*SMALL)
    assert "run is not empty" in message and "--resume_from_checkpoint" in message


@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        (["--gamma", "2"], "gamma: 1.0 then, 2.0 now"),
        (["--max_steps", "3"], "max_steps: 4 then, 3 now"),
        (["--seed", "7"], "seed: 42 then, 7 now"),
        (["--lr_scheduler_type", "linear"], "lr_scheduler_type: constant then, linear now"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_checkpoint_of_another_config(error, run, flags, fragment):
    message = error(*RESUME, *flags)
    assert "run/checkpoint-4 belongs to another run" in message and fragment in message


def test_checkpoint_of_another_world_size(error, run):
    path = run / "checkpoint-4" / "sasr_state.json"
    state = json.loads(path.read_text())
    state["fingerprint"]["world_size"] = 2
    path.write_text(json.dumps(state))
    assert "world_size: 2 then, 1 now" in error(*RESUME)


@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        (["--lora_alpha", "64"], "adapter lora_alpha: 32 then, 64 now"),
        (["--lora_r", "4"], "parameters: "),
        (["--dtype", "bfloat16"], "dtype: torch.float32 then, torch.bfloat16 now"),
        (["--train_rows", "30"], "data: "),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_checkpoint_of_another_model_or_data(lora_run, capsys, flags, fragment):
    """What only the loaded model shows is still one line, before the first step."""
    before = (lora_run / "metrics.jsonl").read_text()
    status = sasr.cli.main(["train", *RESUME, *flags])
    out, err = capsys.readouterr()
    assert fragment in checked(status, "", err) and "Traceback" not in out
    assert (lora_run / "metrics.jsonl").read_text() == before


def test_directory_that_is_no_checkpoint(error, run):
    message = error("--resume_from_checkpoint", "run/initial_model", "--output_dir", "run")
    assert "is not a checkpoint of sasr" in message and "sasr_state.json" in message
    (run / "checkpoint-4" / "sasr_state.json").write_text("{")
    message = error("--resume_from_checkpoint", "run/checkpoint-4")
    assert "cannot be read" in message and "earlier checkpoint" in message


def test_damaged_checkpoint(error, run):
    for name in ("model.safetensors", "optimizer.pt", "sasr_tensors_0.pt", "trainer_state.json", "rng_state.pth"):
        checkpoint = shutil.copytree(run / "checkpoint-4", run / "checkpoint-5")
        (checkpoint / name).unlink()
        message = error(*RESUME)
        assert "run/checkpoint-5" in message and name in message and "earlier checkpoint" in message
        shutil.rmtree(checkpoint)


def test_resumed_run_whose_config_is_broken(error, run):
    (run / "config.yaml").write_text("gamma: [\n")
    message = error(*RESUME)
    assert "run/config.yaml" in message and "not valid YAML" in message
    (run / "config.yaml").write_text("gama: 1\n")
    assert "unknown setting 'gama'" in error(*RESUME)


def test_output_directory_of_a_resumed_run_is_a_file(error, run):
    Path("file").write_text("")
    message = error("--resume_from_checkpoint", "run/checkpoint-4", "--output_dir", "file")
    assert "output_dir file cannot be written" in message


# ---- as a user sees it ----


@pytest.mark.parametrize("flags", [["--gamma", "0"], [*JSONL, "--data", "rows.jsonl"]], ids=["flag", "data"])
def test_process(flags):
    Path("rows.jsonl").write_text("{oops\n")
    command = [str(Path(sys.executable).with_name("sasr")), "train", *SMALL, *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    message = checked(done.returncode, done.stdout, done.stderr)
    assert message.startswith("gamma is 0.0" if "--gamma" in flags else "rows.jsonl:1: invalid JSON")


def test_vllm_that_cannot_make_the_rollouts(error, monkeypatch):
    monkeypatch.setattr("sasr.run.find_spec", lambda name: None)
    assert "use_vllm: vLLM is not installed" in error(*SMALL, "--use_vllm", "true")
    monkeypatch.setattr("sasr.run.find_spec", lambda name: "there")
    assert "use_vllm needs an accelerator" in error(*SMALL, "--use_vllm", "true", "--use_cpu", "true")
