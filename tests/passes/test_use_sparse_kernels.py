"""Sparse kernels stand where a clock says that they win, dense ones stay elsewhere, and nothing is lost by either."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import fxcompress
from fxcompress import CompressError, ProofError, lowered, verify
from fxcompress.cost import Cost
from fxcompress.kernel_choice import Shape, sparse_op
from fxcompress.lowered import restored
from fxcompress.passes import PruneWeights, UseSparseKernels
from fxcompress.passes.use_sparse_kernels import WHOLE
from fxcompress.plan import Step
from fxcompress.rewrite import rewrite
from tests import models
from tests.passes.sparse_kernels import FAMILIES, UP, clock, everywhere, logits, ops, pruned, rows

__all__ = ["clock"]  # a fixture


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
