"""Exams: the estimator against enumeration, and generation on a tiny random Llama."""

import json
import random
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sasr.errors import InputError
from sasr.exam import (
    bootstrap_interval,
    examine,
    examine_rows,
    mean_pass_at_k,
    merge_records,
    pass_at_k,
    proportion_interval,
    summarise,
)
from sasr.exam.engines import Sampling, TransformersEngine
from sasr.exam.generation import untouched
from sasr.tasks.base import Task, Verdict

WORDS = ["<pad>", "<eos>", "<user>", "<bot>", *(f"w{i}" for i in range(16))]
TEMPLATE = (
    "{% for m in messages %}<user> {{ m['content'] }} {% endfor %}"
    "{% if extra %}w9 {% endif %}{% if add_generation_prompt %}<bot>{% endif %}"
)


class Has(Task):
    """Correct when the answer is among the words, well-formed when it comes first, not judged with w3 in front."""

    name = "has"

    def to_row(self, record):
        return dict(record)

    def well_formed(self, completion):
        return completion.startswith("w")

    def check(self, completion, row):
        random.random(), np.random.random(), torch.rand(1)  # a verifier may draw; the world must not notice
        failure = "time-out" if completion.startswith("w3 ") else None
        correct = failure is None and row["answer"] in completion.split()
        return Verdict(correct, self.well_formed(completion), failure)


@pytest.fixture(scope="module")
def tokenizer():
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "additional_special_tokens": ["<user>", "<bot>"]}
    return PreTrainedTokenizerFast(tokenizer_object=core, chat_template=TEMPLATE, **special)


@pytest.fixture
def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(WORDS), **sizes, pad_token_id=0, eos_token_id=1, bos_token_id=None)
    )
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # margins wide enough that padding does not turn a greedy choice
    return model


def make_rows(count=20):
    rng = random.Random(1)
    return [
        {
            "prompt": " ".join(f"w{rng.randrange(16)}" for _ in range(rng.randint(1, 9))),
            "answer": f"w{rng.randrange(16)}",
        }
        for _ in range(count)
    ]


def world():
    numpy_state = np.random.get_state()
    return random.getstate(), numpy_state[0], numpy_state[1].tobytes(), numpy_state[2:], torch.get_rng_state().tolist()


@settings(deadline=None)
@given(st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(data):
    n = data.draw(st.integers(1, 9))
    k = data.draw(st.integers(1, n))
    counts = data.draw(st.lists(st.integers(0, n), min_size=1, max_size=5))
    brute = [np.mean([min(subset) < c for subset in combinations(range(n), k)]) for c in counts]  # 0..c-1 are correct
    assert pass_at_k(n, counts, k) == pytest.approx(brute)
    assert mean_pass_at_k(n, counts, k) == pytest.approx(np.mean(brute))
    assert float(pass_at_k(n, counts[0], k)) == pytest.approx(brute[0])


def test_pass_at_k_is_stable_for_many_samples_and_refuses_what_is_not_defined():
    assert float(pass_at_k(100_000, 1, 1000)) == pytest.approx(0.01)
    for n, c, k in ((4, 1, 5), (4, 1, 0), (4, 5, 1), (4, -1, 1)):
        with pytest.raises(InputError):
            pass_at_k(n, c, k)
    with pytest.raises(InputError):
        mean_pass_at_k(4, [], 1)


def test_bootstrap_interval_is_seeded_and_has_the_width_of_the_normal_one():
    values = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap_interval(values, seed=3)
    assert (low, high) == bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)
    assert bootstrap_interval([0.5]) == (0.5, 0.5)
    for bad in ([], np.zeros((2, 2))):
        with pytest.raises(InputError):
            bootstrap_interval(bad)


@pytest.mark.parametrize("n", [1, 20, 128])
def test_an_interval_of_equal_problems_has_a_width(n):
    """Clopper and Pearson's: a rate of `high` would give none of n right with a chance of 2.5%."""
    low, high = proportion_interval([0] * n)
    assert low == 0 and (1 - high) ** n == pytest.approx(0.025)
    low, high = proportion_interval(np.ones(n))
    assert high == 1 and low**n == pytest.approx(0.025)
    assert bootstrap_interval([0] * n) == (0, 0), "a paired difference of nothing is none"
    # Elsewhere it is the bootstrap's.
    for values in ([0.5] * n, [0, 1] * n, [0, 0.125] * n, [-1] * n):
        assert proportion_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    with pytest.raises(InputError):
        proportion_interval([])


def test_the_exam_of_a_hopeless_model_has_intervals():
    wrong = {"correct": False, "well_formed": True, "truncated": False, "failure": None, "tokens": 3, "path": None}
    wrong = {**wrong, "steps_valid": None, "text": "no"}
    record = {"prompt": "p", "answer": "a", "difficulty": None, "greedy": wrong, "samples": [wrong] * 2}
    result = summarise([record] * 128, 2)
    high = 1 - 0.025 ** (1 / 128)
    assert result.greedy_interval == result.pass_at_intervals[1] == result.pass_at_intervals[2] == (0, high)


def test_an_exam_leaves_the_world_as_it_was(model, tokenizer):
    model.gradient_checkpointing_enable()
    model.config.use_cache = False
    model.generation_config = GenerationConfig(eos_token_id=1, top_k=1, repetition_penalty=5.0, max_length=3)
    model.train()
    model.model.layers[0].eval()  # a frozen part
    config, text = model.generation_config, model.generation_config.to_json_string()
    modes = [module.training for module in model.modules()]
    before, side = world(), tokenizer.padding_side
    kwargs = {"samples": 4, "max_new_tokens": 6, "batch_size": 16}
    first = examine(model, tokenizer, Has(), make_rows(), **kwargs)
    assert world() == before
    assert [module.training for module in model.modules()] == modes
    assert model.generation_config is config and config.to_json_string() == text
    assert model.config.use_cache is False and model.is_gradient_checkpointing and tokenizer.padding_side == side
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())

    torch.rand(3), random.random(), np.random.rand()
    again = examine(model, tokenizer, Has(), make_rows(), **kwargs)
    assert again.completions == first.completions
    other = examine(model, tokenizer, Has(), make_rows(), seed=1, **kwargs)
    assert other.completions != first.completions
    # top_k=1 and the penalty of the checkpoint's generation config do not shape the samples.
    assert any(len({sample["text"] for sample in record["samples"]}) > 1 for record in first.completions)

    class Interrupts(Has):
        def check_all(self, completions, rows):
            raise KeyboardInterrupt

    before = world()
    with pytest.raises(KeyboardInterrupt):
        examine(model, tokenizer, Interrupts(), make_rows(3), **kwargs)
    assert world() == before and model.generation_config is config
    assert [module.training for module in model.modules()] == modes


def test_records_are_in_row_order_and_add_up(model, tokenizer):
    rows, calls = make_rows(), []
    result = examine(
        model, tokenizer, Has(), rows, samples=6, max_new_tokens=5, batch_size=7, progress=lambda *at: calls.append(at)
    )
    assert calls[-1] == (140, 140) and calls == sorted(calls)
    assert [(r["prompt"], r["answer"]) for r in result.completions] == [(r["prompt"], r["answer"]) for r in rows]
    assert (result.rows, result.samples, list(result.pass_at)) == (20, 6, [1, 2, 4])
    every = [c for r in result.completions for c in (r["greedy"], *r["samples"])]
    assert result.generated_tokens == sum(c["tokens"] for c in every)
    assert result.mean_completion_tokens == pytest.approx(result.generated_tokens / 140)
    assert result.verifier_failures == sum(c["text"].startswith("w3 ") for c in every) > 0
    assert result.truncation_rate == pytest.approx(np.mean([c["truncated"] for c in every]))
    assert result.format_rate == pytest.approx(np.mean([c["text"].startswith("w") for c in every]))
    assert result.greedy_accuracy == np.mean([r["greedy"]["correct"] for r in result.completions])
    assert result.pass_at[1] == pytest.approx(np.mean([s["correct"] for r in result.completions for s in r["samples"]]))
    assert result.pass_at_intervals[1][0] <= result.pass_at[1] <= result.pass_at[2] <= result.pass_at[4]
    figures = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert figures["pass_at"].keys() == {"1", "2", "4"} and "completions" not in figures
    json.dumps(result.completions, allow_nan=False)
    assert result == summarise(result.completions, 6, seconds=result.seconds)


def test_greedy_is_the_argmax_and_ends_at_the_first_eos(model, tokenizer):
    rows = make_rows()
    limit = 12
    records = examine_rows(model, tokenizer, Has(), rows, samples=0, max_new_tokens=limit, batch_size=5)
    ends = 0
    for row, record in zip(rows, records, strict=True):
        ids, made = tokenizer(row["prompt"])["input_ids"], []
        with torch.no_grad():
            while len(made) < limit and 1 not in made:
                made.append(int(model(torch.tensor([ids + made])).logits[0, -1].argmax()))
        assert record["greedy"]["text"] == tokenizer.decode(made, skip_special_tokens=True)
        assert record["greedy"]["tokens"] == len(made)
        assert record["greedy"]["truncated"] == (1 not in made)
        ends += 1 in made
        # Any token can be the end: then the completion is cut there, and the token stays in the text.
        cut = examine_rows(
            model, tokenizer, Has(), [row], samples=0, max_new_tokens=limit, eos_token_ids=[made[0], made[-1]]
        )
        assert cut[0]["greedy"]["tokens"] == 1 and not cut[0]["greedy"]["truncated"]
    assert 0 < ends < len(rows)  # both ways out were seen
    result = summarise(records, 0)
    assert result.pass_at == {} and result.truncation_rate == pytest.approx(1 - ends / len(rows))
    json.dumps(result.to_dict(), allow_nan=False)


def completed(model, samples, temperature) -> list[list[int]]:
    """The greedy completion of one prompt, and the sampled ones, of one token each."""
    sampling = Sampling(1, temperature, eos_ids=[1], pad_id=0, batch_size=100, seed=0)
    with untouched(model, 0), torch.no_grad():
        (found,) = TransformersEngine(model).complete([[5, 6]], samples, sampling, None)
    return found


def test_every_token_can_be_sampled():
    """Not the fifty likeliest alone, which transformers takes by itself: here a hundred are nearly as likely."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lm = LlamaForCausalLM(LlamaConfig(vocab_size=100, **sizes, pad_token_id=0, eos_token_id=1, bos_token_id=None))
    assert len({ids[0] for ids in completed(lm, 1000, 1.0)[1:]}) > 90


def test_the_temperature_is_that_of_the_samples(model):
    greedy, *samples = completed(model, 200, 0.01)
    assert samples == [greedy] * 200
    shares = [completed(model, 200, temperature).count(greedy) / 201 for temperature in (1.0, 4.0)]
    assert 0.95 > shares[0] > shares[1] + 0.1


def test_ranks_together_are_one_exam(model, tokenizer):
    rows = make_rows(19)
    kwargs = {"samples": 2, "max_new_tokens": 6}
    whole = examine_rows(model, tokenizer, Has(), rows, **kwargs)
    parts = [examine_rows(model, tokenizer, Has(), rows[rank::2], seed=rank, **kwargs) for rank in range(2)]
    merged = merge_records(parts)
    assert [r["greedy"] for r in merged] == [r["greedy"] for r in whole]
    assert [r["prompt"] for r in merged] == [r["prompt"] for r in rows]
    assert summarise(merged, 2).greedy_accuracy == summarise(whole, 2).greedy_accuracy


def test_messages_go_through_the_chat_template_as_in_trl(model, tokenizer):
    texts = make_rows(5)
    rows = [{"prompt": [{"role": "user", "content": row["prompt"]}], "answer": row["answer"]} for row in texts]
    for extra in (False, True):
        plain = [{**row, "prompt": f"<user> {row['prompt']} {'w9 ' * extra}<bot>"} for row in texts]
        kwargs = {"samples": 0, "max_new_tokens": 6}
        chat = examine_rows(model, tokenizer, Has(), rows, chat_template_kwargs={"extra": extra}, **kwargs)
        assert [r["greedy"] for r in chat] == [
            r["greedy"] for r in examine_rows(model, tokenizer, Has(), plain, **kwargs)
        ]
        assert chat[0]["prompt"] == rows[0]["prompt"]


def test_what_cannot_be_examined_is_refused(model, tokenizer):
    rows = make_rows(3)
    cases = [([], {}, "no rows"), ([*rows, {"prompt": "w1", "answer": None}], {}, "row 3 .*no answer")]
    cases += [(rows, {"samples": -1}, "samples"), (rows, {"temperature": 0.0}, "temperature")]
    cases += [(rows, {"max_new_tokens": 0}, "max_new_tokens"), (rows, {"eos_token_ids": []}, "end-of-sequence")]
    cases += [([*rows, {"prompt": "", "answer": "w1"}], {}, "row 3 .*no tokens")]
    for bad, kwargs, message in cases:
        with pytest.raises(InputError, match=message):
            examine(model, tokenizer, Has(), bad, **{"max_new_tokens": 4, **kwargs})
    with pytest.raises(InputError, match="no records"):
        summarise([], 2)
    records = examine_rows(model, tokenizer, Has(), rows, samples=1, max_new_tokens=2)
    with pytest.raises(InputError, match=r"record 0 .* 1 samples instead of 2"):
        summarise(records, 2)
