"""A captured forward computes what the eager model computes, for sizes that capture has not seen."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import fxcompress
from fxcompress import CaptureError, capture
from fxcompress.passes import PruneEmbedding
from tests import models, plain

SIZES = [(2, 24), (1, 1), (3, 1), (1, 50), (5, 17)]


@pytest.fixture(scope="module", params=models.FAMILIES)
def pair(request):
    model = models.tiny(request.param)
    return model, capture(model)


@pytest.mark.parametrize(("batch", "length"), SIZES)
@torch.no_grad()
def test_logits_equal_the_eager_models_at_sizes_not_seen_at_capture(pair, batch, length):
    model, program = pair
    ids = models.ids(batch, length)
    torch.testing.assert_close(program(ids).logits, model(ids, use_cache=False).logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_left_padding_gives_the_eager_logits_at_every_real_token(pair):
    model, program = pair
    ids, mask = models.left_padded(3, 19)
    ours = program(ids, attention_mask=mask).logits
    theirs = model(ids, attention_mask=mask, use_cache=False).logits
    real = mask.bool()
    torch.testing.assert_close(ours[real], theirs[real], rtol=1e-4, atol=1e-5)
    assert (ours[real] - program(ids).logits[real]).abs().max() > 1e-3  # the mask is not ignored


@torch.no_grad()
def test_positions_that_are_given_are_the_ones_used():
    model = models.tiny("llama")
    program = capture(model)
    ids, positions = models.ids(2, 9), torch.arange(9).repeat(2, 1) * 3
    ours = program(ids, position_ids=positions).logits
    # with a mask: without one transformers takes positions that jump for several sequences in one row
    theirs = model(ids, attention_mask=torch.ones_like(ids), position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert (ours - program(ids).logits).abs().max() > 1e-3


def test_a_fully_masked_row_gives_finite_logits(pair):
    _, program = pair
    ids = models.ids(2, 6)
    mask = torch.tensor([[0] * 6, [1] * 6])
    assert torch.isfinite(program(ids, attention_mask=mask).logits).all()


def test_the_output_is_of_the_models_own_class(pair):
    model, program = pair
    ids = models.ids(2, 5)
    assert type(program(ids)) is type(model(ids, use_cache=False))


def test_gradients_of_every_parameter_equal_the_eager_ones(pair):
    model, program = pair
    ids = models.ids(2, 11)
    parameters = dict(model.named_parameters())
    theirs = torch.autograd.grad(_loss(model(ids, use_cache=False)), parameters.values(), allow_unused=True)
    ours = torch.autograd.grad(_loss(program(ids)), parameters.values(), allow_unused=True)
    for name, a, b in zip(parameters, ours, theirs, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def _loss(output) -> torch.Tensor:
    return output.logits.float().square().mean()


def test_a_program_shares_the_models_parameters(pair):
    model, program = pair
    own = {id(p) for p in model.parameters()}
    assert {id(p) for _, p in program.parameters()} == own


def test_tied_weights_are_one_tensor_with_two_names():
    program = capture(models.tiny("llama"))
    assert program.names["model.embed_tokens.weight"] == ("model.embed_tokens.weight", "lm_head.weight")
    assert "lm_head.weight" not in program.state


def test_scans_convolutions_attention_and_experts_are_one_node_each():
    program = capture(models.tiny("nemotron_h_moe"))
    ops = [str(n.target).split(".")[1] for n in program.graph.nodes if str(n.target).startswith("fxcompress.")]
    assert sorted(ops) == ["attention", "causal_conv1d", "experts", "experts", "ssd_scan"]


def test_capture_leaves_no_trace_in_the_modeling_files():
    model = models.tiny("nemotron_h")
    source = importlib.import_module(type(model).__module__)
    before = dict(vars(source)), model.config._attn_implementation, model.config._experts_implementation
    capture(model)
    assert before == (dict(vars(source)), model.config._attn_implementation, model.config._experts_implementation)
    assert ALL_ATTENTION_FUNCTIONS["sdpa"].__module__.startswith("transformers")


def test_capture_leaves_no_trace_after_an_error(monkeypatch):
    model = models.tiny("mamba2")
    source = importlib.import_module(type(model).__module__)
    before = dict(vars(source)), model.config._attn_implementation
    monkeypatch.setattr(fxcompress.compat, "export", lambda *_: 1 / 0)
    with pytest.raises(CaptureError):
        capture(model)
    assert before == (dict(vars(source)), model.config._attn_implementation)


def test_a_model_in_training_mode_is_captured_in_eval_mode_and_left_as_it_was():
    model = models.tiny("llama").train()
    capture(model)
    assert model.training


@pytest.mark.parametrize("name", ["llama", "nemotron_h_moe", "mamba"])
def test_a_model_on_meta_gives_the_same_graph(name):
    with torch.device("meta"):
        model = type(models.tiny(name))(models.config(name)).eval()
    on_meta, real = capture(model), capture(models.tiny(name))
    assert [str(n.target) for n in on_meta.graph.nodes] == [str(n.target) for n in real.graph.nodes]
    assert on_meta.is_meta
    assert not real.is_meta


@pytest.mark.parametrize("size", [(2, 3, 16, 16), (5, 3, 16, 16), (1, 3, 16, 16)])
@torch.no_grad()
def test_a_convolutional_network_is_captured_for_every_batch(size):
    model = models.perturb(plain.ResNet()).eval()
    program = capture(model, torch.randn(2, 3, 16, 16))
    image = torch.randn(size)
    torch.testing.assert_close(program(image), model(image))


@pytest.mark.parametrize("size", [(2, 9), (1, 1), (4, 30)])
@torch.no_grad()
def test_a_users_own_transformer_is_captured_for_every_batch_and_length(size):
    model = models.perturb(plain.Encoder()).eval()
    program = capture(model, torch.randint(0, 50, (2, 9)))
    tokens = torch.randint(0, 50, size)
    torch.testing.assert_close(program(tokens), model(tokens), rtol=1e-4, atol=1e-5)


class Branches(nn.Module):
    """Looks at a value to decide what to do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"gate": Gate()})

    def forward(self, x):
        return self.inner["gate"](x)


class Gate(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x


def test_an_uncapturable_model_is_refused_with_module_op_line_and_advice():
    with pytest.raises(CaptureError) as refusal:
        capture(Branches(), torch.randn(2, 4))
    said = str(refusal.value)
    assert "inner.gate" in said
    assert "if x.sum() > 0" in said
    assert "test_capture.py" in said
    assert "torch.where" in said


class Mutating(nn.Module):
    """Works in place, on what ``start`` makes of its input."""

    def __init__(self, start) -> None:
        super().__init__()
        self.linear, self.start = nn.Linear(4, 6), start

    def forward(self, x):
        h = self.linear(x)
        changed = self.start(h)
        changed.mul_(3).add_(1)
        return h + changed


@pytest.mark.parametrize("start", [lambda h: h.clone(), lambda h: h * 1], ids=["clone", "product"])
@torch.no_grad()
def test_in_place_arithmetic_on_a_copy_leaves_the_original_alone(start):
    model, x = Mutating(start).eval(), torch.randn(3, 4)
    torch.testing.assert_close(capture(model, x)(x), model(x))


@torch.no_grad()
def test_in_place_arithmetic_on_a_value_is_seen_by_whoever_reads_it_afterwards():
    model, x = Mutating(lambda h: h).eval(), torch.randn(3, 4)
    torch.testing.assert_close(capture(model, x)(x), model(x))


class Part(Mutating):
    """Changes a part of a value, and reads all of it afterwards."""

    def forward(self, x):
        h = self.linear(x)
        self.start(h).mul_(3)
        return h


@pytest.mark.parametrize(
    "start", [lambda h: h[:, :3], lambda h: h[1:, 2:5], lambda h: h[:, ::2], lambda h: h[:, 1:][:, :2]]
)
@torch.no_grad()
def test_in_place_arithmetic_on_a_slice_changes_that_part_of_the_value(start):
    model, x = Part(start).eval(), torch.randn(3, 4)
    torch.testing.assert_close(capture(model, x)(x), model(x))


@torch.no_grad()
def test_a_copy_into_a_slice_is_broadcast_and_cast():
    class Filled(nn.Module):
        def forward(self, x):
            y = x.new_empty(x.shape[0], 5)
            y[:, :2].copy_(torch.ones(1, dtype=torch.float64))
            y[:, 2:].copy_(x[:, :3])
            return y

    model, x = Filled().eval(), torch.randn(3, 4)
    torch.testing.assert_close(capture(model, x)(x), model(x))


@pytest.mark.parametrize("start", [lambda h: h.view(-1, 2, 3), lambda h: h.split(3, 1)[0]])
def test_in_place_arithmetic_on_another_view_is_refused_rather_than_lost(start):
    with pytest.raises(CaptureError, match=r"shares its memory|modified inplace"):
        capture(Part(start).eval(), torch.randn(3, 4))


def test_a_slice_made_before_the_change_and_read_after_it_is_refused():
    class Stale(Mutating):
        def forward(self, x):
            h = self.linear(x)
            before = h[:, :3]
            h[:, 2:].mul_(3)
            return before + 1

    with pytest.raises(CaptureError, match="shares its memory"):
        capture(Stale(None).eval(), torch.randn(3, 4))


def test_a_plain_module_without_example_inputs_is_refused():
    with pytest.raises(CaptureError, match="pass example_inputs"):
        capture(plain.ResNet())


def test_an_unknown_input_is_refused_by_name():
    program = capture(models.tiny("mamba2"))
    with pytest.raises(TypeError, match="position_idx"):
        program(models.ids(1, 4), position_idx=torch.zeros(1, 4))


@pytest.mark.parametrize("name", models.FAMILIES)
def test_applying_a_pass_first_compares_the_graph_with_the_model(name):
    small = fxcompress.apply(models.tiny(name), [PruneEmbedding(ratio=0.25)])
    assert small.report.capture_error is not None
    assert small.report.capture_error < 1e-3


def test_a_graph_that_computes_something_else_than_the_model_is_refused(monkeypatch):
    """As when a model's own mask is lost: the laws between graph and rewrite would all hold."""
    from fxcompress import replacements

    monkeypatch.setattr(replacements.kernels, "attention", lambda q, k, v, mask, scale, causal, *rest: q * scale)
    with pytest.raises(CaptureError, match="something else than the model"):
        fxcompress.apply(models.tiny("llama"), [PruneEmbedding(ratio=0.25)])


WRITES = [
    lambda h: (h[:, :3].mul_(2).mul_(3), h)[1],
    lambda h: (h[:, 1::2].add_(2), h)[1],
]


@pytest.mark.parametrize("write", WRITES)
@torch.no_grad()
def test_what_a_write_returns_shares_its_memory(write):
    class Writes(Mutating):
        def forward(self, x):
            return write(self.linear(x)) * 1

    model, x = Writes(None).eval(), torch.randn(3, 4)
    torch.testing.assert_close(capture(model, x)(x), model(x))


def test_what_a_write_returns_is_not_read_after_another_write():
    class Writes(Mutating):
        def forward(self, x):
            h = self.linear(x)
            first = h[:, :3].add_(1)
            h.mul_(2)
            return first

    with pytest.raises(CaptureError, match="shares its memory"):
        capture(Writes(None).eval(), torch.randn(3, 4))


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_constants_that_a_cast_has_rounded_are_taken_whole(name):
    """``model.bfloat16()`` rounds rotary frequencies, which no file says: what is loaded again has them whole."""
    model = models.tiny(name).bfloat16()
    before = {n: (b, b.clone()) for n, b in model.named_buffers()}
    program = capture(model)
    whole = dict(models.tiny(name).named_buffers())
    for n in before:
        assert torch.equal(program.state[n], whole[n]), n
        assert model.get_buffer(n) is before[n][0], "the user's model is left alone"
        assert torch.equal(model.get_buffer(n), before[n][1])
    assert fxcompress.apply(model, []).to_transformers() is not None


def test_constants_of_the_users_own_are_left_as_they_are():
    model = models.tiny("llama").bfloat16()
    model.model.rotary_emb.inv_freq.mul_(2)  # no rounding of what the class computes
    assert torch.equal(capture(model).state["model.rotary_emb.inv_freq"], model.model.rotary_emb.inv_freq)
