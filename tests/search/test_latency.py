"""What is timed is the median after a warm-up, with the original taking its turns in between."""

from __future__ import annotations

import torch

from fxcompress import timing
from fxcompress.searching.budget import Budget
from fxcompress.searching.latency import work
from fxcompress.timing import compare
from tests import models

CPU = torch.device("cpu")


def test_the_original_takes_its_turns_in_between():
    turns = []
    compare(lambda: turns.append("candidate"), lambda: turns.append("original"), CPU, runs=2)
    assert turns == ["candidate", "original"] * 3


def test_the_median_counts_and_the_first_run_warms_up(monkeypatch):
    clock, taken = [0.0], iter([9, 9, 1, 10, 3, 30, 2, 20])

    def run():
        clock[0] += next(taken)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    assert compare(run, run, CPU, runs=3) == (2, 20)


def test_as_many_tokens_are_generated_as_the_budget_says_whatever_ends_a_text():
    program = models.captured("llama", torch.float32)
    load = Budget.parse("throughput>=1 at batch=2, prompt=5, new=3")
    assert work(program, [], load)().shape == (2, 5 + 3)


def test_without_new_tokens_the_prompt_is_read_once_with_a_cache():
    program = models.captured("llama", torch.float32)
    out = work(program, [], Budget.parse("latency<=1s at batch=2, prompt=5, new=0"))()
    assert out.logits.shape[:2] == (2, 5)
    assert out.past_key_values.get_seq_length() == 5
