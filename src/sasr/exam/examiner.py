"""The heavy half of `sasr exam`: the loaded models, one block of rows at a time, and the figures of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sasr import precision
from sasr.demonstrations import Demonstration, end_of_turn_id, tokenize_demonstrations, tokenize_prompts
from sasr.errors import InputError
from sasr.exam import measures
from sasr.exam.engines import Engine
from sasr.exam.exam import examine_rows, summarise
from sasr.exam.generation import eos_ids_of
from sasr.exam.questions import PERTURBED
from sasr.exam.request import Request
from sasr.exam.scoring import mean_per_token, nll_per_token, score
from sasr.exam.store import block_seed
from sasr.exam.vllm_engine import VllmEngine
from sasr.models import load_configs, load_model, load_tokenizer
from sasr.out_of_memory import of_model
from sasr.quantised import accelerator_or_cpu, compute_dtype, config_of
from sasr.rows import check_positions, check_readable
from sasr.tasks.base import Row, Task

Record = dict[str, Any]


class Examiner:
    """Holds the models of a request.

    Args:
        request ([`Request`]): What to do.
        task ([`Task`]): Judges the completions.
    """

    def __init__(self, request: Request, task: Task):
        self.request, self.task = request, task
        # vLLM has weights of its own, and gives completions alone.
        if request.engine == "vllm" and not request.scores and request.nll_task is None:
            self.model, self.tokenizer = None, load_tokenizer(request.model)
            self.config, generation_config = load_configs(request.model)
        else:
            self.model, self.tokenizer = self._load(request.model)
            self.config, generation_config = self.model.config, self.model.generation_config
        self.engine: Engine | None = None
        self.nll: dict[str, Any] | None = None
        self.initial = self._load(request.initial_model)[0] if request.initial_model is not None else None
        self.template: dict[str, Any] = dict((request.run or {}).get("chat_template_kwargs") or {})
        # Like the rollouts of training, completions end with the chat template's end of turn too.
        end = end_of_turn_id(self.tokenizer)
        self.eos_ids = eos_ids_of(generation_config, self.tokenizer)
        if end is not None and end not in self.eos_ids:
            self.eos_ids = [*self.eos_ids, end]

    def prepare(self, rows: Sequence[Row], others: Sequence[Row]) -> list[str]:
        """Measure the NLL of `others`, the demonstrations whose it is wanted, and start the engine. Raises `InputError`
        for what only the loaded models tell, before the first completion. Returns notes about the rows."""
        config = self.config.get_text_config()
        if self.initial is not None and self.initial.config.get_text_config().vocab_size != config.vocab_size:
            raise InputError(
                f"initial_model {self.request.initial_model} has another number of output tokens than the examined "
                "model: take the one that the training started from"
            )
        prompts = tokenize_prompts([row["prompt"] for row in rows], self.tokenizer, **self.template)
        longest = max(len(ids) for ids in prompts)
        request, vllm = self.request, self.request.engine == "vllm"
        notes = check_positions(longest, self.config, request.max_new_tokens, "max_new_tokens", hard=vllm)
        # First: for a demonstration that the model cannot read there is no exam, whatever was answered by then.
        self.nll = self._nll(others) if others else None
        if vllm:
            length = longest + request.max_new_tokens
            self.engine = VllmEngine(request.model, config, request.dtype, length, request.batch_size)
        return notes

    def examine(self, rows: Sequence[Row], block: int, progress: Callable[[int, int], None]) -> list[Record]:
        """The records of one block of rows, whichever blocks came before."""
        request = self.request
        records = examine_rows(
            self.model,
            self.tokenizer,
            self.task,
            rows,
            samples=request.n,
            max_new_tokens=request.max_new_tokens,
            temperature=request.temperature,
            batch_size=request.batch_size,
            seed=block_seed(request.seed, block),
            eos_token_ids=self.eos_ids,
            chat_template_kwargs=self.template,
            keep_token_ids=request.scores,
            engine=self.engine,
            progress=progress,
        )
        if request.scores:
            self._add_scores(records)
        for row, record in zip(rows, records, strict=True):
            record.update(row.get(PERTURBED, {}))
        return records

    def figures(self, records: Sequence[Record], seconds: float) -> dict[str, Any]:
        """Everything that is measured, JSON-safe."""
        robustness = measures.robustness(records)
        records = [record for record in records if "perturbation" not in record]
        result = summarise(records, self.request.n, ks=self.request.k, seconds=seconds)
        samples = [sample for record in records for sample in record["samples"]]
        tokens = [sample["tokens"] for sample in samples]
        means = {
            name: mean_per_token([sample[name] for sample in samples], tokens) if name in samples[0] else None
            for name in ("entropy", "kl")
        }
        return {
            **result.to_dict(),
            "gain": measures.gain(result.pass_at),
            "text": measures.text_diversity(records),
            "lengths": measures.lengths(records),
            "robustness": robustness,
            **means,
            "nll": self.nll,
        }

    def _load(self, name: str) -> tuple[Any, Any]:
        texts = self.task.vocabulary_texts() or None
        device, request = accelerator_or_cpu(), self.request
        quantization = None
        if request.load_in_4bit:
            # What sasr train computes in, unless told otherwise: see SASRConfig.
            run = request.run or {}
            bf16, fp16 = run.get("bf16"), bool(run.get("fp16"))
            if bf16 is None and not fp16:
                bf16, fp16 = precision.default(run, on_cpu=device.type == "cpu")
            quantization = config_of({**run, "load_in_4bit": True}, compute_dtype(bf16, fp16))
        with of_model(name, device, request):
            model, tokenizer = load_model(
                name, dtype=request.dtype, tokenizer_texts=texts, quantization=quantization, device=device
            )
        with of_model(name, device, request, model):
            model = model if quantization is not None else model.to(device)
        return model.eval(), tokenizer

    def _add_scores(self, records: Sequence[Record]) -> None:
        """Entropy and KL of each sampled completion; the token ids, which nobody reads, go."""
        prompts = tokenize_prompts([record["prompt"] for record in records], self.tokenizer, **self.template)
        pairs = [(ids, sample) for ids, record in zip(prompts, records, strict=True) for sample in record["samples"]]
        completions = [Demonstration(list(ids), sample["token_ids"]) for ids, sample in pairs]
        scores = score(self.model, completions, self.eos_ids[0], self.initial)
        for (_, sample), found in zip(pairs, scores, strict=True):
            sample.update({name: value for name, value in found.items() if name != "nll"})
        for record in records:
            for completion in (record["greedy"], *record["samples"]):
                del completion["token_ids"]

    def _nll(self, rows: Sequence[Row]) -> dict[str, Any]:
        demonstrations = tokenize_demonstrations(
            rows,
            self.tokenizer,
            lambda prompts: tokenize_prompts(prompts, self.tokenizer, **self.template),
            self.eos_ids,
            **self.template,
        )
        longest = max(d.length for d in demonstrations)
        where = f"nll_task {self.request.nll_task}: a demonstration"
        check_readable(longest, self.config, where, "give other nll_data")
        pad_id, initial = self.eos_ids[0], self.initial
        return {
            "task": self.request.nll_task,
            "rows": len(demonstrations),
            "tokens": sum(len(d.completion_ids) for d in demonstrations),
            "per_token": nll_per_token(self.model, demonstrations, pad_id),
            "initial_per_token": None if initial is None else nll_per_token(initial, demonstrations, pad_id),
        }
