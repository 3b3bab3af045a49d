"""What a model's generation config says does not shape, or hinder, what is trained."""

from __future__ import annotations

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, GenerationConfig

import toy
from sasr import InputError
from sasr.generation_defaults import make_savable

PROMPTS = {"one length": ("1+2=", "3+4="), "two lengths": ("1+2=", "1+2+3+4+5+6=")}


def rollouts(directory, lengths="two lengths", lm=None, **config):
    lm = lm or toy.model(initializer_range=0.5)
    for name, value in config.items():
        setattr(lm.generation_config, name, value)
    data = Dataset.from_list([{"prompt": p, "answer": "12", "completion": "12"} for p in PROMPTS[lengths]])
    trained = toy.trainer(
        directory, lm=lm, data=data, schedule="grpo", sft_warmup_steps=0, max_steps=1, max_completion_length=8
    )
    trained.train()
    kept = {name: getattr(trained.model.generation_config, name) for name in config}
    assert kept == config, "the model's own config stays"
    (found,) = trained._buffered_inputs
    return found["completion_ids"].tolist()


@pytest.mark.parametrize("lengths", PROMPTS)
@pytest.mark.parametrize(
    "config",
    [{"use_cache": False}, {"no_repeat_ngram_size": 1}, {"min_new_tokens": 8}, {"cache_implementation": "offloaded"}],
    ids=lambda config: next(iter(config)),
)
def test_rollouts_are_drawn_from_the_policy_itself(tmp_path, lengths, config):
    """`use_cache: false` is what Trainer writes into every model it saves, and would have the cache read twice."""
    assert rollouts(tmp_path / "changed", lengths, **config) == rollouts(tmp_path / "plain", lengths)


def test_a_model_whose_config_is_at_odds_with_itself_is_saved(tmp_path):
    """A temperature without sampling, as models of 2023 have it: transformers saves it no more once it was changed."""
    lm = toy.model()
    lm.generation_config.temperature = 0.9
    trained = toy.trainer(tmp_path / "run", lm=lm, max_steps=2, sft_warmup_steps=1, save_steps=1, save_strategy="steps")
    trained.train()
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-2").generation_config
    assert (saved.temperature, saved.do_sample) == (0.9, True)


def test_what_sampling_does_not_mend_is_refused():
    with pytest.raises(InputError, match=r"generation_config.json is at odds with itself.*correct it"):
        odd = GenerationConfig()
        odd.num_beams, odd.num_return_sequences = 2, 4
        make_savable(odd)
    fine = GenerationConfig()
    make_savable(fine)
    assert fine.do_sample is None


def test_a_model_of_which_nothing_is_trained_is_refused(tmp_path):
    """As transformers leaves a base that it has put a LoRA adapter on."""
    lm = toy.model().requires_grad_(False)
    with pytest.raises(InputError, match="no weight of the model is trained"):
        toy.trainer(tmp_path, lm=lm)
