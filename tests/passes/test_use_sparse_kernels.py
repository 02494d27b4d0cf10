"""Sparse kernels stand where a clock says that they win, dense ones stay elsewhere, and nothing is lost by either."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import fxcompress
from fxcompress import CompressError, ProofError, lowered, timing, verify
from fxcompress.cli import app
from fxcompress.cost import Cost
from fxcompress.kernel_choice import Shape, sparse_op
from fxcompress.lowered import restored
from fxcompress.passes import PruneWeights, RemoveLayers, UseSparseKernels
from fxcompress.passes.use_sparse_kernels import WHOLE
from fxcompress.plan import Step
from fxcompress.rewrite import rewrite
from fxcompress.sparse_modules import SparseLinear
from tests import models

FAMILIES = ["llama", "gpt2", "nemotron_h", "mixtral", "mamba"]
UP = "model.layers.0.mlp.up_proj.weight"


@functools.cache
def pruned(name: str = "llama", dtype: torch.dtype = torch.float32, **options) -> fxcompress.CompressedModel:
    passes = [PruneWeights(method="magnitude", **options or {"sparsity": 0.9})]
    model = models.captured(name, dtype) if dtype == torch.float32 else models.tiny(name).to(dtype)
    return fxcompress.apply(model, passes)


@functools.cache
def everywhere(name: str = "llama") -> fxcompress.CompressedModel:
    """The pruned model with a sparse op wherever one can be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "compare", lambda *_: (0.5, 1.0))
        return fxcompress.apply(pruned(name), [UseSparseKernels(length=16)])


@pytest.fixture
def clock(monkeypatch) -> Callable[..., list]:
    """Set what is measured: seconds of sparse work where dense takes one, by tokens of a sequence. Both run, once."""

    def set_to(seconds: float | Callable[[int], float], whole: float | None = None) -> list:
        timed = []

        def compare(sparse, dense, device, runs=5):
            first = sparse.args[0]
            assert sparse().__class__ == dense().__class__
            alone = first.is_floating_point()
            timed.append(tuple(first.shape))
            taken = seconds(first.shape[1]) if callable(seconds) else seconds
            return (taken if alone or whole is None else whole), 1.0

        monkeypatch.setattr(timing, "compare", compare)
        return timed

    return set_to


def ops(program) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


def logits(model, ids=None):
    with torch.no_grad():
        return model(input_ids=models.ids(2, 9) if ids is None else ids).logits


def rows(small) -> dict:
    return {row["key"]: row for row in small.report.passes[-1]["rows"]}


# Where sparse wins


@pytest.mark.parametrize("name", FAMILIES)
def test_where_sparse_wins_it_stands_and_computes_the_same(name):
    dense, small = pruned(name), everywhere(name)
    assert small.program.lowered
    assert ops(small.program).count("fxcompress.csr_linear.default") >= len(small.program.lowered)
    torch.testing.assert_close(logits(small), logits(dense), rtol=1e-4, atol=1e-5)
    laws = {law["name"]: law for law in small.report.passes[-1]["laws"]}
    assert list(laws) == ["shapes", "count", "unpacked equals dense", "sparse equals dense"]
    assert all(law["holds"] for law in laws.values())
    assert laws["unpacked equals dense"]["error"] == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_the_dense_program_comes_back_bit_for_bit(name):
    dense, small = pruned(name).program, everywhere(name).program
    back = restored(small)
    assert ops(back) == ops(dense)
    assert not back.lowered
    assert back.state.keys() == dense.state.keys()
    assert all(torch.equal(back.read(name), dense.read(name)) for name in dense.state)
    assert {n for n, _ in back.parameters()} == {n for n, _ in dense.parameters()}
    assert small.lowered, "the program that runs is left as it is"


def test_no_copy_of_the_dense_matrix_is_kept_and_figures_do_not_change():
    small = everywhere()
    assert UP not in small.program.state
    held = [name.removeprefix("graph_module.") for name in small.state_dict() if UP in name]
    assert held == [f"{UP}_crow", f"{UP}_col", f"{UP}_values"]
    assert len(small.program.read(f"{UP}_values")) == int((pruned().program.read(UP) != 0).sum())
    assert small.program.get(Cost).figures == pruned().program.get(Cost).figures


def test_two_of_four_are_held_and_come_back():
    dense = pruned(pattern="2:4")
    step = Step("UseSparseKernels", kernels=dict.fromkeys(dense.program.sparse, "sparse24_linear"))
    after = dense.program.clone()
    rewrite(after, step)
    assert all(law.holds for law in verify.check(dense.program, after, step))
    assert after.read(f"{UP}_values").shape == (80, 24)
    assert torch.equal(restored(after).read(UP), dense.program.read(UP))


def test_each_shape_is_timed_once_and_the_model_after_that(clock):
    timed = clock(0.5)
    fxcompress.apply(pruned(), [UseSparseKernels(batch=2, length=16)])
    shapes = [(48, 48), (16, 48), (80, 48), (48, 80)]  # q and o; k and v; gate and up; down
    assert timed == [(2, n, columns) for _, columns in shapes for n in (16, 1)] + [(2, 16), (2, 1)]


# Where dense wins


def test_where_dense_wins_it_stays_and_both_times_are_told(clock):
    clock(1.5)
    small = fxcompress.apply(pruned(), [UseSparseKernels(length=16)])
    assert not small.program.lowered
    assert ops(small.program) == ops(pruned().program)
    row = rows(small)[UP]
    assert (row["role"], row["got"]) == ("dense", 0)
    assert row["asked"] == int((pruned().program.read(UP) == 0).sum())
    assert row["times"] == {"prefill": [1.0, 1.5], "decode": [1.0, 1.5]}
    assert row["why"] == "dense is faster at prefill and decode"
    assert "prefill 1e+03 → 1.5e+03 ms" in " ".join(small.report.to_text(400).split())
    assert "prefill 1e+03 → 1.5e+03 ms" in small.report.to_html()
    assert WHOLE not in rows(small)


def test_a_gain_below_the_margin_is_no_gain(clock):
    clock(0.97)
    small = fxcompress.apply(pruned(), [UseSparseKernels(length=16, decides="decode")])
    assert not small.program.lowered
    assert rows(small)[UP]["why"] == "sparse is faster by less than 5 % at decode"
    assert fxcompress.apply(pruned(), [UseSparseKernels(length=16, margin=0.0)]).program.lowered


@pytest.mark.parametrize(("decides", "chosen"), [("both", False), ("prefill", False), ("decode", True)])
def test_what_wins_at_one_token_alone_stands_where_that_decides(clock, decides, chosen):
    clock(lambda tokens: 0.5 if tokens == 1 else 1.5)
    small = fxcompress.apply(pruned(), [UseSparseKernels(length=16, decides=decides)])
    assert bool(small.program.lowered) == chosen
    assert rows(small)[UP]["times"] == {"prefill": [1.0, 1.5], "decode": [1.0, 0.5]}


def test_what_wins_alone_and_not_in_the_whole_model_is_taken_back(clock):
    clock(0.5, whole=1.01)
    small = fxcompress.apply(pruned(), [UseSparseKernels(length=16)])
    assert not small.program.lowered
    assert rows(small)[UP]["why"] == "faster alone, not in the whole model"
    assert rows(small)[UP]["got"] == 0
    assert rows(small)[WHOLE]["why"] == "dense is faster at prefill and decode"


def test_the_real_clock_gives_two_times_for_each_phase():
    small = fxcompress.apply(pruned(), [UseSparseKernels(length=4)])
    assert all(seconds > 0 for pair in rows(small)[UP]["times"].values() for seconds in pair)


# What has no sparse kernel


def test_a_model_without_zeros_stays_dense_and_the_report_says_so(clock):
    timed = clock(0.5)
    small = fxcompress.apply(models.captured("qwen3", torch.float32), [UseSparseKernels()])
    assert not timed
    assert {row["why"] for row in rows(small).values()} == {"0 % of its weights are zero, too few for a sparse kernel"}


def test_experts_and_what_others_read_stay_dense_and_the_report_says_why():
    assert "fxcompress.experts has no sparse form" in {row["why"] for row in rows(everywhere("mixtral")).values()}
    assert rows(everywhere())["model.embed_tokens.weight"]["why"] == "aten.embedding reads it too"
    said = rows(everywhere("mamba"))
    assert said["backbone.layers.0.mixer.dt_proj.weight"]["why"] == "it is multiplied from the left"


def test_on_the_cpu_2_4_and_bfloat16_are_timed_as_rows_and_the_report_says_why(clock):
    clock(1.5)
    slower = "dense is faster at prefill and decode"
    small = fxcompress.apply(pruned(pattern="2:4"), [UseSparseKernels(length=16)])
    assert rows(small)[UP]["why"] == f"{slower}; 2:4 has kernels on CUDA alone"
    small = fxcompress.apply(pruned(dtype=torch.bfloat16), [UseSparseKernels(length=16)])
    assert rows(small)[UP]["why"] == f"{slower}; the CPU has no sparse kernel for bfloat16: computed in float32"


def test_bfloat16_is_the_same_within_its_rounding_where_sparse_wins(clock):
    clock(0.5)
    dense = pruned(dtype=torch.bfloat16)
    small = fxcompress.apply(dense, [UseSparseKernels(length=16)])
    assert {law["name"]: law for law in small.report.passes[-1]["laws"]}["sparse equals dense"]["error"] < 1e-5
    assert torch.equal(restored(small.program).read(UP), dense.program.read(UP))


SHAPE = Shape("", 64, 64, 0.5, "2:4", torch.bfloat16, False, False)


@pytest.mark.parametrize(
    ("change", "device", "op", "why"),
    [
        ({}, "cuda", "sparse24_linear", ""),
        ({"dtype": torch.float32}, "cuda", "", "2:4 kernels take float16 and bfloat16, not float32"),
        ({"outputs": 80}, "cuda", "", "2:4 kernels take multiples of 32 by 64, not 80 by 64"),
        ({"pattern": "0.9", "zeros": 0.9}, "cuda", "", "CUDA has kernels for 2:4 alone, and its zeros are not"),
        ({"zeros": 0.3}, "cpu", "", "30 % of its weights are zero, too few for a sparse kernel"),
        ({"dtype": torch.float32, "pattern": "0.5"}, "cpu", "csr_linear", ""),
        ({}, "mps", "", "there are no sparse kernels for mps"),
    ],
)
def test_which_op_a_device_has_for_a_shape(change, device, op, why):
    assert sparse_op(replace(SHAPE, **change), device) == (op, why)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch": 0}, "at least one prompt of one token"),
        ({"decides": "generate"}, "decides='generate' is unknown; there are both, prefill, decode"),
        ({"margin": 1.0}, "outside"),
    ],
)
def test_contradictions_are_refused_before_a_model_is_there(options, said):
    with pytest.raises(CompressError, match=said):
        UseSparseKernels(**options)


def test_a_length_that_the_model_cannot_take_is_refused(clock):
    clock(0.5)
    with pytest.raises(CompressError, match=r"the model does not run on 1 × 300 tokens"):
        fxcompress.apply(pruned("gpt2"), [UseSparseKernels(length=300)])


def test_on_meta_nothing_is_timed(clock):
    timed = clock(0.5)
    with torch.device("meta"):
        model = type(models.tiny("llama"))(models.config("llama")).eval()
    small = fxcompress.apply(model, [PruneWeights(sparsity=0.9, method="magnitude"), UseSparseKernels()])
    assert not timed
    assert rows(small)[UP]["why"] == "weights on meta have no values, nothing was timed"


# The laws can fail


def lowered_gpt2():
    before = pruned("gpt2").program
    step = Step("UseSparseKernels", kernels=dict.fromkeys(before.sparse, "csr_linear"))
    after = before.clone()
    rewrite(after, step)
    return before, after, step, next(iter(before.sparse))


def failing(before, after, step) -> set[str]:
    return {law.name for law in verify.check(before, after, step) if not law.holds}


def test_a_wrong_index_is_found_by_both_laws():
    before, after, step, name = lowered_gpt2()
    assert not failing(before, after, step)
    col = after.state[f"{name}_col"]
    col[3] = (col[3] + 1) % 48
    assert failing(before, after, step) == {"unpacked equals dense", "sparse equals dense"}


def test_a_lost_bias_is_found_by_the_outputs():
    before, after, step, _ = lowered_gpt2()
    call = next(n for n in after.graph.nodes if n.target is torch.ops.fxcompress.csr_linear.default)
    call.args = (*call.args[:-1], None)
    after.changed()
    assert "sparse equals dense" in failing(before, after, step)


def test_another_tensor_that_has_changed_is_found():
    before, after, step, _ = lowered_gpt2()
    after = after.map_state(lambda name, t: t * 1.5 if name == "transformer.ln_f.weight" else t.clone())
    assert "sparse equals dense" in failing(before, after, step)
    assert "unpacked equals dense" in failing(before, after, step)


def test_a_form_that_loses_a_weight_is_withheld(clock, monkeypatch):
    clock(0.5)
    right = lowered.FORMATS["csr_linear"]

    def lossy(weight):
        crow, col, values = right.pack(weight)
        values[0] = 0
        return crow, col, values

    monkeypatch.setitem(lowered.FORMATS, "csr_linear", replace(right, pack=lossy))
    with pytest.raises(ProofError, match="UseSparseKernels: unpacked equals dense: FAILS"):
        fxcompress.apply(pruned(), [UseSparseKernels(length=16)])


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
