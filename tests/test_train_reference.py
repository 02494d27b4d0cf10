"""The script that trains the reference models: what it counts is right, and stopping it changes nothing."""

import importlib
import itertools
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch.nn.functional import log_softmax

import fxcompress
from fxcompress import kernels
from fxcompress.cost import LENGTH, Cost

EXAMPLES = Path(__file__).parent.parent / "examples"
TEXT = (
    "It was a dark and stormy night — naïve, isn't it?\n\nThe rain fell in torrents.<|endoftext|>Call me Ishmael. " * 40
)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module, without a compiler: what is compiled is the same function."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(torch, "compile", lambda model: model)
    return importlib.import_module("train_reference")


@pytest.fixture
def size(script: Any) -> Any:
    return replace(script.sizes.SIZES["tiny"], vocabulary=280)  # the text has no more pairs


@pytest.fixture
def text(script: Any, size: Any, tmp_path: Path) -> Any:
    for name in ("train.txt", "validation.txt"):
        (tmp_path / name).write_text(TEXT, encoding="utf-8")
    files = {"train": tmp_path / "train.txt", "validation": tmp_path / "validation.txt"}
    return script.prepare(SimpleNamespace(output=tmp_path / "out", **files), size)


def trained(script: Any, size: Any, text: Any, folder: Path, deadline: float = math.inf) -> Path:
    folder.mkdir(exist_ok=True)
    run = script.Run("hybrid", 4e-3, 6)
    script.train(run, size, text, folder, deadline)
    return folder / run.name


def same(one: Path, other: Path) -> bool:
    """Bit for bit; the order of a header's entries is no part of a checkpoint."""
    found = []
    for folder in (one, other):
        with safe_open(folder / "checkpoint.safetensors", "pt") as file:
            tensors = {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118
            found.append((tensors, file.metadata(), (folder / "log.jsonl").read_bytes()))
    return found[0] == found[1]


def test_stopped_after_every_step_it_ends_the_same(script: Any, size: Any, text: Any, tmp_path: Path):
    whole = trained(script, size, text, tmp_path / "whole")
    for step in range(1, 7):
        with pytest.raises(SystemExit, match=f"{step} of 6 steps"):
            trained(script, size, text, tmp_path / "parts", deadline=0)
    assert same(whole, trained(script, size, text, tmp_path / "parts"))


def test_what_was_logged_after_the_last_checkpoint_is_done_again(script: Any, size: Any, text: Any, tmp_path: Path):
    whole, killed = trained(script, size, text, tmp_path / "whole"), tmp_path / "killed"
    with pytest.raises(SystemExit):
        trained(script, size, text, killed, deadline=0)
    shutil.copy(whole / "log.jsonl", killed / whole.name / "log.jsonl")
    assert same(whole, trained(script, size, text, killed))


def test_a_changed_optimiser_would_show(script: Any, size: Any, text: Any, tmp_path: Path):
    """The comparison sees what resuming without the optimiser's state would do."""
    whole, other = trained(script, size, text, tmp_path / "whole"), tmp_path / "other"
    with pytest.raises(SystemExit):
        trained(script, size, text, other, deadline=0)
    model = script.sizes.build("hybrid", size)
    fresh = torch.optim.AdamW(script.parameter_groups(model))
    history, step = script.resume(other / whole.name, model, fresh)
    script.save(other / whole.name, model, torch.optim.AdamW(script.parameter_groups(model)), step, history)
    assert not same(whole, trained(script, size, text, other))


def test_bits_per_byte_are_those_of_every_token_by_itself(script: Any, size: Any, text: Any):
    model = script.sizes.build("mamba2", size)
    nats, count = 0.0, 0
    for start in range(0, len(text.validation) - size.length, size.length):
        window = torch.tensor(text.validation[start : start + size.length + 1].astype(int))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=window[None, :-1]).logits[0].float()
        nats -= sum(log_softmax(row, 0)[token].item() for row, token in zip(logits, window[1:], strict=True))
        count += sum(len(text.tokenizer.id_to_token(int(token))) for token in window[1:])
    assert script.bits_per_byte(model, text, size) == pytest.approx(nats / math.log(2) / count, rel=1e-3)


def test_tokens_are_the_text_again_and_count_its_bytes(script: Any, text: Any):
    tokens = text.train.tolist()
    assert text.tokenizer.decode(tokens, skip_special_tokens=False) == TEXT
    assert int(script.texts.byte_counts(text.tokenizer)[tokens].sum()) == len(TEXT.encode())


def test_an_epoch_has_every_window_once(script: Any, text: Any):
    length, windows = 16, len(text.train) // 16 - 1
    starts = [script.texts.batch(text.train, step, 1, length)[0, :-1].tolist() for step in range(windows)]
    draw = script.texts._shuffled(windows, length, 0)[1]
    assert sorted(itertools.chain(*starts)) == sorted(text.train[draw : draw + windows * length].tolist())
    again = [script.texts.batch(text.train, step, 1, length)[0, :-1].tolist() for step in range(windows, 2 * windows)]
    assert again != starts


@pytest.mark.parametrize("name", ["small", "large"])
def test_the_three_models_cost_the_same(script: Any, name: str):
    size = script.sizes.SIZES[name]
    built = {model: script.sizes.build(model, size) for model in script.sizes.MODELS}
    flops = [script.sizes.flops_per_token(model, size, size.length / 2) for model in built.values()]
    parameters = [model.num_parameters() for model in built.values()]
    assert max(flops) < 1.04 * min(flops)
    assert max(parameters) < 1.06 * min(parameters)
    config = built["hybrid"].config
    assert config.n_groups >= 4
    assert config.mamba_num_heads >= 4 * config.n_groups


@pytest.mark.parametrize("model", ["hybrid", "mamba2", "llama"])
def test_flops_are_those_of_the_rules(script: Any, size: Any, model: str):
    built = script.sizes.build(model, size)
    counted = Cost(fxcompress.capture(built)).figures.decode_flops_per_token
    assert script.sizes.flops_per_token(built, size, LENGTH) == counted


def test_the_fused_scan_and_convolution_are_the_ops(script: Any):
    b, l, g, r, p, n = 2, 24, 4, 2, 5, 3
    x, dt, A = torch.randn(b, l, g * r, p), torch.randn(b, l, g * r), -torch.rand(g * r) - 0.1
    B, C = torch.randn(2, b, l, g, n)
    D, dt_bias = torch.randn(2, g * r)
    y = script.fused.ssd_scan(x, dt, A, B, C, 8, D=D, dt_bias=dt_bias)
    torch.testing.assert_close(y, kernels.ssd_scan(x, dt, A, B, C, D, dt_bias, 8, True, 0.0, math.inf))
    x, weight, bias = torch.randn(b, 6, l), torch.randn(6, 4), torch.randn(6)
    y = script.fused.causal_conv1d(x, weight, bias, "silu")
    torch.testing.assert_close(y, kernels.causal_conv1d(x, weight, bias, "silu"))
