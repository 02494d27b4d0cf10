"""What leaves a program with sparse kernels is dense: files, models, further passes. The shell shows times alone."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import fxcompress
from fxcompress import CompressError
from fxcompress.cli import app
from fxcompress.lowered import restored
from fxcompress.passes import PruneWeights, RemoveLayers, UseSparseKernels
from fxcompress.sparse_modules import SparseLinear
from tests import models
from tests.passes.sparse_kernels import UP, clock, everywhere, logits, pruned

__all__ = ["clock"]  # a fixture


# What leaves the program is dense


@pytest.mark.parametrize("packed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_files_are_those_of_the_dense_program(clock, tmp_path, packed):
    small = everywhere()
    pruned().save_pretrained(tmp_path / "dense", packed=packed)
    small.save_pretrained(tmp_path / "sparse", packed=packed)
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("sparse", "dense"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    again = fxcompress.load(tmp_path / "sparse")
    assert not again.program.lowered
    assert again.program.sparse == pruned().program.sparse
    assert again.report.passes[-1]["rows"][0]["times"] == small.report.passes[-1]["rows"][0]["times"]
    assert "Files hold the weights themselves" in again.report.notes["kernels"]
    clock(0.5)
    assert fxcompress.apply(again, [UseSparseKernels(length=16)]).program.lowered == small.program.lowered


@pytest.mark.slow
def test_verify_holds_files_that_were_saved_with_kernels_to_their_plan(clock, tmp_path):
    clock(0.5)
    models.tiny("llama").save_pretrained(tmp_path / "model")
    passes = [PruneWeights(sparsity=0.9, method="magnitude"), UseSparseKernels(length=16)]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    fxcompress.apply(model, passes).save_pretrained(tmp_path / "out")
    run = CliRunner().invoke(app, ["verify", str(tmp_path / "model"), str(tmp_path / "out")])
    assert run.exit_code == 0, run.output


def test_a_model_of_transformers_is_dense():
    small = everywhere()
    model = small.to_transformers()
    assert torch.equal(model.get_parameter(UP), pruned().program.read(UP))
    assert not any(isinstance(m, SparseLinear) for m in model.modules())


def test_generate_multiplies_by_the_same_kernels_and_gives_the_same_tokens():
    small = everywhere("nemotron_h")
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    ids = models.ids(2, 7)
    assert torch.equal(
        small.generate(input_ids=ids, **options), pruned("nemotron_h").generate(input_ids=ids, **options)
    )
    made = [m for m in small._ordinary.modules() if isinstance(m, SparseLinear)]
    assert len(made) == len(small.program.lowered)
    assert not any(isinstance(m, SparseLinear) for m in pruned("nemotron_h")._ordinary.modules())


def test_further_passes_begin_with_the_dense_program():
    small = everywhere()
    shorter = fxcompress.apply(small, [RemoveLayers(layers=(1,))])
    assert not shorter.program.lowered
    expected = fxcompress.apply(pruned(), [RemoveLayers(layers=(1,))])
    assert torch.equal(logits(shorter), logits(expected))
    with pytest.raises(CompressError, match=r"RemoveLayers \(structure\) after UseSparseKernels \(runtime\)"):
        fxcompress.apply(pruned(), [UseSparseKernels(), RemoveLayers(layers=(1,))])


def test_gradients_reach_what_is_left_and_the_held_matrices_do_not_train(clock):
    clock(0.5)
    small = fxcompress.apply(pruned("nemotron_h"), [UseSparseKernels(length=16)])
    dense = fxcompress.apply(pruned("nemotron_h"), [])
    for model in (small, dense):
        model(input_ids=models.ids(2, 9)).logits.square().mean().backward()
    ours, theirs = (dict(model.program.parameters()) for model in (small, dense))
    assert theirs.keys() - ours.keys() == small.program.lowered.keys()
    for name, parameter in ours.items():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_it_compiles():
    small = everywhere()
    compiled = torch.compile(small, backend="fxcompress", fullgraph=True)
    torch.testing.assert_close(logits(compiled), logits(pruned()), rtol=1e-4, atol=1e-5)


# From files, and from the shell


@pytest.fixture
def result(tmp_path):
    return pruned().save_pretrained(tmp_path / "result")


def test_a_model_that_runs_from_its_files_is_refused_before_work(result):
    with pytest.raises(CompressError, match=r"UseSparseKernels is for a model that runs from memory"):
        fxcompress.apply(result, [PruneWeights(sparsity=0.95, method="magnitude"), UseSparseKernels()])


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_compress_refuses_it_and_says_what_to_do(result, tmp_path, more):
    command = ["compress", str(result), "-o", str(tmp_path / "out"), "--pass", "UseSparseKernels(length=16)", *more]
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 2
    assert (
        "apply it to fxcompress.load(...) of the result; `fxcompress kernels` shows what it would choose" in run.output
    )
    assert not (tmp_path / "out").exists()
    with pytest.raises(CompressError, match="files hold weights alone"):
        fxcompress.compress(result, tmp_path / "out", [UseSparseKernels()])


def test_the_command_line_shows_both_times_and_writes_nothing(result, clock, tmp_path):
    clock(lambda tokens: 0.5 if tokens == 1 else 1.5)
    before = sorted(tmp_path.rglob("*"))
    run = CliRunner().invoke(
        app, ["kernels", str(result), "--length", "16", "--decides", "decode"], env={"COLUMNS": "300"}
    )
    assert run.exit_code == 0, run.output
    said = " ".join(run.output.split())
    assert "prefill 1e+03 → 1.5e+03 ms, decode 1e+03 → 500 ms" in said
    assert "csr_linear" in said
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.gpu
def test_two_of_four_on_cuda(clock):
    clock(0.5)
    config = models.config("llama")
    config.hidden_size, config.intermediate_size, config.head_dim = 128, 256, 64
    model = models.perturb(type(models.tiny("llama"))(config).eval()).to(torch.bfloat16)
    passes = [PruneWeights(pattern="2:4", method="magnitude"), UseSparseKernels(length=16)]
    dense = fxcompress.apply(model.cuda(), passes[:1])
    small = fxcompress.apply(dense, passes[1:])
    assert {was.op for was in small.program.lowered.values()} == {"sparse24_linear"}
    assert torch.equal(restored(small.program).read(UP), dense.program.read(UP))
    ids = models.ids(2, 9).cuda()
    torch.testing.assert_close(logits(small, ids), logits(dense, ids), rtol=5e-2, atol=5e-2)
