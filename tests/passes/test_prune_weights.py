"""Weights get zeros where a pattern says, by the inputs that they have behind the pruned blocks before them.

The truth about inputs is transformers' eager models with hooks; about a matrix, ``tests/weights``.
"""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

import fxcompress
from fxcompress import CompressError, sequential, verify
from fxcompress.passes import PruneFFN, PruneWeights, RemoveLayers
from fxcompress.plan import Step
from fxcompress.projections import projections
from fxcompress.weights.gram import Gram
from fxcompress.weights.methods import METHODS
from fxcompress.weights.pattern import NM, Unstructured, parse
from tests import models, plain

IDS, MASK = models.left_padded(6, 40)
BATCHES = [
    {"input_ids": IDS[:2], "attention_mask": MASK[:2]},
    {"input_ids": IDS[2:], "attention_mask": MASK[2:]},
]
FAMILIES = ("llama", "mamba2", "nemotron_h", "mixtral", "gpt2", "zamba2")
BLOCKS = {  # of a tiny llama, in order: what is pruned together
    f"model.layers.{i}.{part}": names
    for i in range(3)
    for part, names in {
        "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
        "mlp": ("gate_proj", "up_proj", "down_proj"),
    }.items()
}


def pruned(name: str, **options: object) -> fxcompress.CompressedModel:
    return fxcompress.apply(models.captured(name, torch.float32), [PruneWeights(**options)], calibration=BATCHES)


@functools.cache
def half(name: str, method: str = "mrp") -> fxcompress.CompressedModel:
    return pruned(name, sparsity=0.5, method=method)


def matrices(model: fxcompress.CompressedModel) -> dict[str, Tensor]:
    """All that was pruned, as (matrices, outputs, columns)."""
    found = {p.name: p for p in projections(model.program)}
    return {name: found[name].matrices(model.program.read(name)) for name in model.program.sparse}


@pytest.mark.parametrize("name", FAMILIES)
def test_half_of_every_matrix_is_zero_and_nothing_else_has_changed(name: str):
    small = half(name)
    before = models.captured(name, torch.float32)
    for value in matrices(small).values():
        assert ((value == 0).sum((-1, -2)) == value[0].numel() // 2).all()
    for key, tensor in small.program.state.items():
        assert torch.equal(tensor, before.state[key]) == (key not in small.program.sparse)
    entry = small.report.passes[0]
    assert [law["name"] for law in entry["laws"]] == ["shapes", "count", "pattern", "elsewhere", "finite"]
    assert all(row["asked"] == row["got"] for row in entry["rows"] if row["key"] in small.program.sparse)
    assert entry["before"]["parameters"] == entry["after"]["parameters"]


@pytest.mark.parametrize("method", ["mrp", "sparsegpt", "alps", "magnitude"])
def test_rows_are_compared_with_each_other_unless_each_is_to_lose_as_much(method: str):
    """Wanda's rows do anyway, as its authors have it."""
    name = "model.layers.0.mlp.up_proj.weight"
    whole = (half("llama", method).program.read(name) == 0).sum(-1)
    rows = (pruned("llama", sparsity=0.5, per="row", method=method, targets=name).program.read(name) == 0).sum(-1)
    assert len(whole.unique()) > 1
    assert whole.sum() == rows.sum()
    assert rows.unique().tolist() == (half("llama", "wanda").program.read(name) == 0).sum(-1).unique().tolist() == [24]


@pytest.mark.parametrize("method", ["mrp", "sparsegpt", "wanda", "alps", "magnitude"])
def test_every_group_keeps_exactly_two_of_four(method: str):
    small = pruned("nemotron_h", pattern=NM(keep=2, of=4), method=method)
    for value in matrices(small).values():
        assert ((value.reshape(*value.shape[:-1], -1, 4) != 0).sum(-1) == 2).all()


def test_projections_of_state_space_layers_are_pruned_and_their_vectors_are_not():
    names = set(half("mamba").program.sparse)
    assert {name.rpartition("mixer.")[2] for name in names} == {
        *("in_proj.weight", "x_proj.weight", "dt_proj.weight", "out_proj.weight")
    }


def test_head_embedding_and_router_stay_dense_and_the_report_says_why():
    rows = {row["key"]: row for row in half("mixtral").report.passes[0]["rows"]}
    assert rows["lm_head.weight"]["why"] == "it gives the output of the model"
    assert rows["model.layers.0.mlp.gate.weight"]["why"] == "it routes tokens to experts"
    tied = {row["key"]: row["why"] for row in half("llama").report.passes[0]["rows"]}
    assert tied["model.embed_tokens.weight"] == "aten.embedding.default reads it too"


def test_what_is_named_is_pruned_even_if_it_is_the_head():
    assert set(pruned("qwen3", sparsity=0.5, targets="lm_head.weight").program.sparse) == {"lm_head.weight"}


def test_a_tied_matrix_is_named_by_any_of_its_names():
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        small = pruned("llama", sparsity=0.5, targets=name, method="wanda")
        assert set(small.program.sparse) == {"model.embed_tokens.weight"}


def test_what_is_multiplied_from_both_sides_is_told_and_never_pruned():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.head = nn.Parameter(torch.randn(12, 12)), nn.Linear(12, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(nn.functional.linear(x, self.w) @ self.w))

    x = torch.randn(4, 12)
    for options, said in (
        ({}, "no matrix is left"),
        ({"targets": "w"}, "w cannot be pruned: it is multiplied from both"),
    ):
        passes = [PruneWeights(sparsity=0.5, **options)]
        with pytest.raises(CompressError, match=said):
            fxcompress.apply(Both().eval(), passes, calibration=[{"x": x}], example_inputs=(x,))


# Inputs


def inputs_of(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """What linear layers of a model of transformers read at the tokens that count, by hooks, (tokens, columns)."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0]))
        for name in names
    ]
    with torch.no_grad():
        model(input_ids=IDS, attention_mask=MASK)
    for hook in hooks:
        hook.remove()
    return {name: values[0][MASK.bool()] for name, values in seen.items()}


def expected(model: nn.Module, names: list[str], method: str) -> dict[str, Tensor]:
    """What the method makes of weights by the inputs that they have in this model."""
    inputs = inputs_of(model, names)
    return {
        name: METHODS[method](
            model.get_submodule(name).weight, Gram.of(x), PruneWeights(sparsity=0.5, method=method).asked
        ).weight
        for name, x in inputs.items()
    }


@pytest.mark.parametrize("method", ["mrp", "sparsegpt", "wanda"])
def test_each_block_is_pruned_by_its_inputs_behind_pruned_blocks(method: str):
    """Block after block the eager model gets what was found, so that the next one sees it."""
    model, found = models.tiny("llama"), half("llama", method).program
    for block, parts in BLOCKS.items():
        names = [f"{block}.{part}" for part in parts]
        for name, weight in expected(model, names, method).items():
            ours = found.read(f"{name}.weight")
            assert torch.allclose(ours, weight, atol=1e-4)
        for name in names:
            model.get_submodule(name).weight.data = found.read(f"{name}.weight")


def test_inputs_of_dense_blocks_would_be_others():
    """The test above can fail: by the original model's inputs the second layer would have other weights."""
    names = ["model.layers.1.mlp.gate_proj"]
    dense = expected(models.tiny("llama"), names, "mrp")[names[0]]
    assert not torch.allclose(half("llama").program.read(f"{names[0]}.weight"), dense, atol=1e-2)


def test_batches_of_any_size_give_the_same():
    rows = [{"input_ids": i[m.bool()][None]} for i, m in zip(IDS, MASK, strict=True)]
    p = models.captured("nemotron_h", torch.float32)
    one = fxcompress.apply(p, [PruneWeights(sparsity=0.5, method="sparsegpt")], calibration=rows)
    many = half("nemotron_h", "sparsegpt")
    for name, value in matrices(one).items():
        assert torch.allclose(value, matrices(many)[name], atol=1e-4)


def test_an_expert_is_pruned_by_the_tokens_that_are_routed_to_it():
    model = models.tiny("mixtral")
    layer, seen = model.model.layers[0].mlp, []
    layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    found = pruned("mixtral", sparsity=0.5, method="wanda", targets="model.layers.0.mlp.experts.gate_up_proj").program
    with torch.no_grad():
        model(input_ids=IDS, attention_mask=MASK)
        x = seen[0][MASK.bool()]
        chosen = (x @ layer.gate.weight.T).softmax(-1).topk(2).indices
    for e, weight in enumerate(layer.experts.gate_up_proj):
        mine = Gram.of(x[(chosen == e).any(-1)])
        wanted = METHODS["wanda"](weight, mine, Unstructured(0.5, "row")).weight
        assert torch.equal(found.read("model.layers.0.mlp.experts.gate_up_proj")[e], wanted)
        others = METHODS["wanda"](weight, Gram.of(x), Unstructured(0.5, "row")).weight
        assert not torch.equal(others, wanted)


def test_experts_in_portions_are_those_of_one_go(monkeypatch):
    whole = matrices(half("mixtral", "wanda"))
    monkeypatch.setattr(sequential, "GRAM_BYTES", 4 * 48**2)  # for one matrix at a time
    for name, value in matrices(pruned("mixtral", sparsity=0.5, method="wanda")).items():
        assert torch.equal(value, whole[name])


def test_a_portion_has_no_more_than_fits_and_all_of_them_everything():
    program = models.captured("mixtral", torch.float32)
    walk = sequential.Sequential(program, [p for p in projections(program) if not p.dense])
    for block in (block for block in walk.blocks if block.due):
        size = {inputs: 4 * p.columns**2 for p in block.due for inputs in p.sources}
        for most in (1, 4 * 48**2 * 3, 1 << 30):
            portions = block.portions(most)
            assert sum(map(len, portions)) == len(size) == len(set().union(*portions))
            assert all(len(portion) == 1 or sum(map(size.get, portion)) <= most for portion in portions)


def test_an_expert_that_no_token_reaches_goes_by_magnitude_and_the_report_says_so():
    p = models.captured("mixtral", torch.float32)
    small = fxcompress.apply(p, [PruneWeights(sparsity=0.5)], calibration=[IDS[:1, :2]])
    said = [row["why"] for row in small.report.passes[0]["rows"] if "experts" in row["key"]]
    assert any("no calibration token reached" in why for why in said)
    assert any("fewer than its 48 columns" in why for why in said)
    assert not any("no calibration token reached" in row["why"] for row in half("mixtral").report.passes[0]["rows"])


# What is zero stays zero


def test_zeros_that_a_weight_has_are_kept_and_counted():
    model = models.tiny("llama")
    weight = model.model.layers[0].mlp.up_proj.weight
    weight.data[:, ::3] = 0
    small = fxcompress.apply(model, [PruneWeights(sparsity=0.5)], calibration=BATCHES)
    value = small.program.read("model.layers.0.mlp.up_proj.weight")
    assert (value[:, ::3] == 0).all()
    assert (value == 0).sum() == value.numel() // 2


def test_layers_may_go_after_weights_and_nothing_may_be_cut():
    small = half("llama")
    shorter = fxcompress.apply(small, [RemoveLayers(layers=(1,))])
    left = [name for name in shorter.program.sparse if name in shorter.program.state]
    assert left == [name for name in small.program.sparse if ".layers.1." not in name]
    assert all((shorter.program.read(name) == 0).float().mean() == 0.5 for name in left)
    with pytest.raises(CompressError, match=r"PruneFFN would cut .*q_proj.weight, whose weights were pruned to 0.5"):
        fxcompress.apply(small, [PruneFFN(ratio=0.5)])
    with pytest.raises(CompressError, match=r"PruneFFN \(structure\) after PruneWeights \(weights\) would undo it"):
        fxcompress.apply(models.captured("llama"), [PruneWeights(sparsity=0.5), PruneFFN(ratio=0.5)])


def test_weights_are_pruned_after_cuts_in_one_run():
    passes = [PruneFFN(ratio=0.25), PruneWeights(pattern="2:4", method="wanda")]
    small = fxcompress.apply(models.captured("llama", torch.float32), passes, calibration=BATCHES)
    assert matrices(small)["model.layers.0.mlp.down_proj.weight"].shape[-1] == 60


def test_owl_spares_layers_with_outliers_and_keeps_the_mean():
    model = models.tiny("llama")
    model.model.layers[1].input_layernorm.weight.data[5] *= 30
    small = fxcompress.apply(model, [PruneWeights(sparsity=0.5, method="wanda", allocation="owl")], calibration=BATCHES)
    parts = [parse(small.program.sparse[f"model.layers.{i}.mlp.up_proj.weight"]).sparsity for i in range(3)]
    assert parts[1] == min(parts) < 0.5 < max(parts)
    values = matrices(small).values()
    zeros, weights = (sum(f(v) for v in values) for f in (lambda v: int((v == 0).sum()), torch.Tensor.numel))
    assert abs(zeros / weights - 0.5) < 0.01  # rounded in every row


def test_a_dry_run_tells_patterns_and_changes_nothing():
    with torch.device("meta"):
        model = type(models.tiny("llama"))(models.config("llama")).eval()
    small = fxcompress.apply(model, [PruneWeights(pattern="2:4")])
    assert set(small.program.sparse.values()) == {"2:4"}
    assert small.report.passes[0]["rows"][1]["got"] > 0


def test_the_users_model_is_left_alone():
    model = models.tiny("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fxcompress.apply(model, [PruneWeights(sparsity=0.5)], calibration=BATCHES)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_plain_module_is_pruned_as_one_block():
    images = torch.randn(8, 3, 8, 8)
    model = models.perturb(plain.ResNet().eval())
    small = fxcompress.apply(
        model, [PruneWeights(sparsity=0.5)], calibration=[{"image": images}], example_inputs=(images,)
    )
    assert set(small.program.sparse) == {"blocks.0.gate.weight", "blocks.1.gate.weight"}  # the classifier is the head


class Folded(nn.Module):
    """Its last projection gives what is then given another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(12, 20), nn.Linear(20, 12), nn.Linear(12, 24)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x + self.down(torch.relu(self.up(x))))
        return y.view(y.shape[0], y.shape[1], 4, 6)


def test_the_head_is_found_behind_a_view():
    x = torch.randn(5, 7, 12)
    passes = [PruneWeights(sparsity=0.5)]
    small = fxcompress.apply(Folded().eval(), passes, calibration=[{"x": x}], example_inputs=(x,))
    assert set(small.program.sparse) == {"up.weight", "down.weight"}


class Twice(nn.Module):
    """Two blocks of one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.head = nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.shared(torch.tanh(self.shared(x)))))


class Finished:
    def has(self, number: int) -> bool:
        return True


def test_what_is_seen_ahead_for_a_finished_block_is_let_go():
    x = torch.randn(5, 7, 12)
    program = fxcompress.capture(Twice().eval(), (x,))
    walk = sequential.Sequential(program, [p for p in projections(program) if not p.dense])
    assert any(block.ahead for block in walk.blocks)
    walk.sweep([{"x": x}], Finished(), lambda: None)
    assert not walk.grams


# The laws can fail


def test_a_weight_that_came_back_and_a_tensor_that_should_not_have_changed_are_found():
    before, small = models.captured("llama", torch.float32), half("llama")
    step = Step("PruneWeights", sparse=small.program.sparse)
    assert all(law.holds for law in verify.check(before, small.program, step))
    name = "model.layers.0.mlp.up_proj.weight"
    faulty = small.program.map_state(lambda key, value: value + 1e-3 if key == name else value)
    assert not {law.name: law for law in verify.check(before, faulty, step)}["pattern"].holds
    faulty = small.program.map_state(lambda key, value: value * 1.01 if key == "model.norm.weight" else value)
    failed = [law.name for law in verify.check(before, faulty, step) if not law.holds]
    assert failed == ["elsewhere"]
