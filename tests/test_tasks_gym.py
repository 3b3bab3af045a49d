"""Tasks of reasoning-gym: every one of them, what its rows keep, and that nothing a model writes is evaluated."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import sasr.cli
import sasr.tasks.gym
from sasr.errors import InputError
from sasr.tasks import get_task
from sasr.tasks.gym import REFUSED, WORKER, final_answer
from sasr.tasks.gym_worker import level

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None, reason="reasoning-gym is not installed: pip install 'sasr[gym]'"
)
# Their scorers need no answer to compare with, and their entries give none.
WITHOUT_ANSWER = {"boxnet", "rush_hour"}
# By default these search for seconds.
FASTER = {
    "futoshiki": {"max_board_size": 4, "max_difficulty": 0},
    "knight_swap": {"min_nodes": 6, "max_nodes": 6, "max_steps": 8},
    "arc_agi": {"use_eval": False},
}
# What they make depends on the order of sets, so on the hash seed of the process.
BY_HASH = ["isomorphic_strings", "polynomial_multiplication", "ransom_note", "word_ladder"]


@pytest.fixture(scope="module", autouse=True)
def closed():
    yield
    WORKER.close()


def names() -> list[str]:
    return WORKER.ask({"do": "describe", "task": "?", "options": {}}, 120)["tasks"]


def task_of(name: str, **options):
    return get_task(f"reasoning_gym/{name}", options)


def wrap(answer: str) -> str:
    return f"Let me see.\n<answer>{answer}</answer>"


def test_every_task():
    """Different questions in both splits; the answer of the entry is right, another text is not."""
    without, worked = set(), set()
    for name in names():
        if name in REFUSED:
            continue
        task = task_of(name, **FASTER.get(name, {}))
        train, test = task.generate(1, 3, "train"), task.generate(1, 3, "test")
        assert train[0]["prompt"] != test[0]["prompt"], name
        for row in json.loads(json.dumps([*train, *test])):
            good = task.check(wrap(row["answer"]), row)
            assert good.well_formed and good.failure is None, (name, good)
            without |= set() if good.correct else {name}
            assert not task.check(wrap("zq7"), row).correct, name
            assert not task.check(row["answer"], row).correct, (name, "without the form that is asked for")
            if row["completion"] is not None:
                worked.add(name)
    assert without == WITHOUT_ANSWER
    assert worked == {"gsm_symbolic"}


@pytest.mark.parametrize("name", REFUSED)
def test_tasks_that_cannot_judge(name):
    with pytest.raises(InputError, match=f"task reasoning_gym/{name} cannot be used: "):
        task_of(name)


def test_splits_are_disjoint_and_rows_the_same_again():
    task = task_of("spell_backward", max_word_len=5)
    train, test = task.generate(60, 1, "train"), task.generate(60, 2, "test")
    prompts = {row["prompt"] for row in [*train, *test]}
    assert len(prompts) == 120
    assert train[:20] == task.generate(20, 1, "train") and train != task.generate(60, 2, "train")
    for other in (2, 3):
        shared = {row["prompt"] for row in train} & {row["prompt"] for row in task.generate(60, other, "train")}
        assert len(shared) < 20, "neighbouring seeds have other questions"


@pytest.mark.parametrize("name", BY_HASH)
def test_another_process_makes_the_same_rows(name):
    """A row keeps where its entry comes from, and the entry is made again where an answer is judged."""
    rows = task_of(name).generate(4, 1)
    WORKER.close()
    task = task_of(name)
    assert all(task.check(wrap(row["answer"]), row).correct for row in reversed(rows))
    assert task.generate(4, 1) == rows


def test_rows_survive_a_dataset_and_the_rewards():
    task = task_of("graph_color", min_num_vertices=4, max_num_vertices=5)
    rows = Dataset.from_list(task.generate(3, 1))
    columns = {name: list(rows[name]) for name in rows.column_names}
    correctness, form = task.reward_funcs()
    completions = [wrap(columns["answer"][0]), wrap("{}"), columns["answer"][2]]
    assert correctness(completions=completions, prompts=columns.pop("prompt"), **{**columns, "completion": None}) == [
        1.0,
        0.0,
        0.0,
    ]
    assert form(prompts=[], completions=completions) == [1.0, 1.0, 0.0]


def test_rows_from_a_file():
    task = task_of("chain_sum")
    (row,) = task.generate(1, 1)
    assert task.to_row(row) == row
    own = task.to_row({"prompt": "1 + 1 =", "completion": "<answer>2</answer>", "answer": "2"})
    assert own["completion"] == "<answer>2</answer>" and own["answer"] is None, "nothing could judge another"
    assert not task.check("<answer>2</answer>", own).correct


def test_worked_solutions():
    task = task_of("gsm_symbolic")
    for row in task.generate(30, 1):
        verdict = task.check(row["completion"], row)
        assert verdict.correct and verdict.well_formed and "####" not in row["completion"]
        assert row["prompt"].endswith("Give the final answer between <answer> and </answer>.\n")


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("<answer> 5\n</answer>", "5"),
        ("<answer>4</answer> no, <answer>5</answer>.", "5"),
        ("<answer>5", None),
        ("5</answer>", None),
        ("", None),
    ],
)
def test_final_answer(completion, answer):
    assert final_answer(completion) == answer
    assert task_of("chain_sum").well_formed(completion) == (completion == "<answer> 5\n</answer>")


def test_few_different_questions(monkeypatch):
    monkeypatch.setattr(sasr.tasks.gym, "_PATIENCE", 300)
    with pytest.raises(InputError, match="different questions found for split 'test', not 5000; ask for fewer"):
        task_of("string_splitting", max_initial_machines=1).generate(5000, 1, "test")


def test_options_that_leave_no_question():
    task = task_of("chain_sum")
    for error in ("crash: ValueError: none", "timeout"):
        task._ask = lambda *args, error=error: {"error": error}
        with pytest.raises(InputError, match=rf"makes no question \({error}\): change task_options"):
            task.generate(1)


@pytest.mark.parametrize(
    ("knobs", "own", "expected"),
    [
        ({"n": (3, 10)}, {"n": 7}, 7),
        ({"n": (3, 10), "m": (2, 2)}, {"n": 7, "m": 2}, 7),
        ({"n": (3, 10), "m": (2, 3)}, {"n": 7, "m": 2}, None),
        ({"n": (1, 2**31)}, {"n": 7}, None),
        ({"n": (3, 10)}, {"n": [7]}, None),
        ({"n": (0, 8)}, {"n": -1}, None),
        ({"difficulty": 4, "n": (3, 10)}, {"n": 7}, 4),
        ({"p": 0.5}, {}, None),
        (1.0, {}, None),
    ],
)
def test_level(knobs, own, expected):
    assert level({"difficulty": knobs, **own}) == expected


TOUCH = "__import__('pathlib').Path({!r}).touch()"


@pytest.mark.parametrize(
    "name",
    [
        *("binary_matrix", "n_queens", "spiral_matrix", "string_insertion"),
        *("countdown", "puzzle24", "polynomial_multiplication", "simple_integration", "intermediate_integration"),
    ],
)
def test_what_a_model_writes_is_not_evaluated(name, tmp_path):
    """The nine scorers that would. They still judge: the answer of the entry is right."""
    task = task_of(name)
    (row,) = task.generate(1, 1)
    touch = TOUCH.format(str(tmp_path / "touched"))
    dunder = f"().__class__.__base__.__subclasses__() or {touch}"
    for text in (touch, f"[{touch}]", f"[[{touch}]]", f"1 + {touch}", f"sqrt({touch})", f"(lambda: {touch})()", dunder):
        assert not task.check(wrap(text), row).correct
        assert not (tmp_path / "touched").exists(), text
    assert task.check(wrap(row["answer"]), row).correct


def test_symbolic_answers_in_other_forms():
    task = task_of("countdown")
    (row,) = task.generate(1, 1)
    assert task.check(wrap(f"({row['answer']})"), row).correct
    assert not task.check(wrap(f"{row['answer']} + 1"), row).correct
    task = task_of("simple_integration")
    (row,) = task.generate(1, 1)
    assert task.check(wrap(row["answer"].replace(" + C", " + 3")), row).correct
    assert not task.check(wrap(row["answer"] + " + exp(2)*sin(pi)*x + y*x**0"), row).failure


def test_an_answer_that_takes_for_ever(monkeypatch):
    task = task_of("coin_flip")
    (row,) = task.generate(1, 1)
    monkeypatch.setattr(sasr.tasks.gym, "_SCORE_LIMIT", 0.5)
    verdict = task.check(wrap("1e999999999"), row)
    assert not verdict.correct and verdict.failure == "timeout"
    monkeypatch.undo()
    assert task.check(wrap(row["answer"]), row).correct, "another worker goes on"
    assert not task.check(wrap("9" * 20_000), row).correct


def test_a_scorer_that_fails():
    (row,) = task_of("prime_factorization").generate(1, 1)
    verdict = task_of("prime_factorization").check(wrap("two"), row)
    assert not verdict.correct and verdict.failure.startswith("crash: ValueError")


@pytest.fixture
def lm(tmp_path, monkeypatch) -> Path:
    """A tiny model whose tokens are bytes."""
    monkeypatch.chdir(tmp_path)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", *alphabet])}
    core = Tokenizer(models.BPE(vocabulary, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        max_position_embeddings=512,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        **sizes,
    )
    LlamaForCausalLM(config).save_pretrained("lm")
    tokens = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", padding_side="left")
    tokens.save_pretrained("lm")
    return tmp_path / "lm"


RUN = [
    *(
        "--model_name_or_path",
        "lm",
        "--train_rows",
        "16",
        "--exam_rows",
        "2",
        "--exam_samples",
        "2",
        "--max_steps",
        "2",
    ),
    *("--per_device_train_batch_size", "4", "--num_generations", "4", "--max_completion_length", "8"),
]


def test_training(lm, capsys):
    options = ["--task_options", '{"min_terms": 2, "max_terms": 4, "min_digits": 1, "max_digits": 1}']
    flags = ["--task", "reasoning_gym/chain_sum", *options, "--schedule", "grpo", *RUN]
    assert sasr.cli.main(["train", *flags]) == 0
    assert "done: 0 SFT and 2 GRPO steps" in capsys.readouterr().out
    run = lm.parent / "runs" / "reasoning_gym-chain_sum-1"
    assert list(json.loads((run / "exam.json").read_text())) == ["initial", "final"]
    records = [json.loads(line) for line in (run / "exams" / "final.jsonl").read_text().splitlines()]
    asked = task_of("chain_sum", **json.loads(options[1])).generate(2, 42, "test")
    assert [record["prompt"] for record in records] == [row["prompt"] for row in asked]
    assert all(record["difficulty"] in (2, 3, 4) for record in records)
    flags = ["--model", str(run), "--rows", "3", "--n", "2", "--output_dir", "exam"]
    assert sasr.cli.main(["exam", *flags]) == 0


def test_sft_on_worked_solutions(lm):
    flags = ["--task", "reasoning_gym/gsm_symbolic", "--schedule", "sft", *RUN, "--exam_rows", "0"]
    flags += ["--sft_warmup_steps", "0"]
    assert sasr.cli.main(["train", *flags, "--per_device_sft_batch_size", "2", "--max_prompt_length", "2000"]) == 0


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--task", "reasoning_gym/chain_sums"], ["unknown task", "106", "did you mean chain_sum?"]),
        (["--task", "reasoning_gym/"], ["unknown task 'reasoning_gym/'", "such as chain_sum"]),
        (["--task", "reasoning_gym"], ["unknown task 'reasoning_gym'", "reasoning_gym/NAME"]),
        (["--task_options", '{"max_term": 3}'], ["option of task reasoning_gym/chain_sum 'max_term'", "max_terms?"]),
        (["--task_options", '{"seed": 3}'], ["seed is no option", "train_rows"]),
        (["--task_options", '{"max_terms": 1}'], ["wrong options", "max_terms"]),
        (["--task_options", '{"max_terms": "x"}'], ["wrong options"]),
        (["--schedule", "sasr", "--sft_warmup_steps", "1"], ["no demonstrations", "SFT steps", "use grpo"]),
        (["--model_name_or_path", "tiny-llama"], ["tiny-llama", "not of reasoning_gym/chain_sum"]),
        (["--task", "reasoning_gym/composite"], ["cannot be used", "mixes other tasks"]),
        (["--task", "reasoning_gym/propositional_logic"], ["cannot be used", "a premise copied from the question"]),
    ],
)
def test_bad_input(lm, capsys, flags, named):
    base = ["--task", "reasoning_gym/chain_sum", "--schedule", "grpo", *RUN]
    assert sasr.cli.main(["train", *base, *flags]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("sasr: error: ") and err.count("\n") == 1 and len(err) < 420, err
    assert all(text in err for text in named), err
    assert not Path("runs").exists()


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(sasr.tasks.gym.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs the package reasoning-gym: pip install 'sasr\[gym\]'"):
        task_of("chain_sum")
