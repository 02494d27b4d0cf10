"""The structure that the algebra finds in real models, with no hint from a name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxcompress import capture
from fxcompress.axes import AxisMap
from tests import models, plain


def shape_of_roles(name: str) -> dict[str, set[tuple[int, ...]]]:
    """role -> the sizes of its groups that can be cut."""
    found: dict[str, set[tuple[int, ...]]] = {}
    for group in models.captured(name).get(AxisMap).groups:
        for role in group.roles if not group.pinned else ():
            found.setdefault(role, set()).add(group.sizes)
    return found


ATTENTION = {"kv_head": {(2,)}, "query_head": {(2, 3)}, "v_channel": {(2, 8)}}
MAMBA2 = {"ssm_group": {(3,)}, "ssm_state": {(3, 7)}}


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        # rotary halves share one axis of head_dim / 2, the same for all heads
        ("llama", {**ATTENTION, "qk_channel": {(4,)}, "ffn_neuron": {(80,)}, "residual": {(48,)}}),
        ("qwen3", {**ATTENTION, "qk_channel": {(4,)}, "ffn_neuron": {(80,)}, "residual": {(48,)}}),
        ("mamba", {"ssm_channel": {(96,)}, "ssm_state": {(7,)}, "latent_rank": {(5,)}, "residual": {(48,)}}),
        # heads differ from group to group, channels from head to head
        ("mamba2", {**MAMBA2, "ssm_head": {(3, 4)}, "ssm_channel": {(3, 4, 8)}, "residual": {(48,)}}),
        (
            "nemotron_h",
            {
                **ATTENTION,
                **MAMBA2,
                "qk_channel": {(2, 8)},  # no rotary embedding: channels are free, KV head by KV head
                "ssm_head": {(3, 4)},
                "ssm_channel": {(3, 4, 10)},
                "ffn_neuron": {(80,)},
                "residual": {(48,)},
            },
        ),
        (
            "nemotron_h_moe",
            {
                **ATTENTION,
                **MAMBA2,
                "qk_channel": {(2, 8)},
                "ssm_head": {(3, 4)},
                "ssm_channel": {(3, 4, 10)},
                "ffn_neuron": {(36,)},  # of the shared expert
                "expert": {(5,)},
                "expert_neuron": {(5, 20)},  # neurons differ from expert to expert
                "residual": {(48,)},
            },
        ),
    ],
)
def test_the_axes_of_a_family(name, roles):
    assert shape_of_roles(name) == roles


def slots(name: str, key: str) -> set[str]:
    return {str(slot) for slot in models.captured(name).get(AxisMap)[key].slots}


def test_a_gated_network_ties_gate_up_and_down():
    layer = "model.layers.0.mlp"
    found = slots("llama", f"{layer}.gate_proj.weight[0]")
    assert found == {f"{layer}.gate_proj.weight[0]", f"{layer}.up_proj.weight[0]", f"{layer}.down_proj.weight[1]"}


def test_an_ssm_head_reaches_every_tensor_of_the_mixer():
    axes = models.captured("mamba2").get(AxisMap)
    heads = [g for g in axes.groups if "ssm_head" in g.roles and g.slots[0].name.startswith("backbone.layers.0.")]
    (group,) = heads
    mixer = "backbone.layers.0.mixer"
    assert {str(slot) for slot in group.slots} == {
        *(f"{mixer}.{name}[0]" for name in ("A_log", "D", "dt_bias", "norm.weight", "conv1d.weight", "conv1d.bias")),
        *(f"{mixer}.in_proj.weight[0]", f"{mixer}.out_proj.weight[1]"),
    }


def test_the_residual_width_reaches_every_norm_and_projection():
    axes = models.captured("llama").get(AxisMap)
    (width,) = [g for g in axes.groups if "residual" in g.roles]
    assert len(width.slots) == 1 + 3 * (2 + 7) + 1  # tied embedding, per layer 2 norms and 7 projections, last norm


def test_a_key_head_drives_queries_keys_values_and_output_together():
    axes = models.captured("llama").get(AxisMap)
    group = next(g for g in axes.groups if "kv_head" in g.roles)
    attention = "model.layers.0.self_attn"
    assert {str(s) for s in group.slots} == {
        *(f"{attention}.{p}_proj.weight[0]" for p in "qkv"),
        f"{attention}.o_proj.weight[1]",
    }


def test_the_vocabulary_is_the_border_of_the_program():
    axes = models.captured("qwen3").get(AxisMap)
    embedding, head = axes["model.embed_tokens.weight[0]"], axes["lm_head.weight[0]"]
    assert "addressed by the input 'input_ids'" in embedding.pinned[0]
    assert "output" in head.pinned[0]
    assert embedding.border
    assert head.border
    assert "vocabulary" in embedding.roles


def test_an_axis_whose_addresses_are_computed_with_is_no_border():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(10, 6)

        def forward(self, ids):
            return self.embed((ids + 1) % 10)

    group = capture(Shifted(), torch.zeros(2, 5, dtype=torch.long)).get(AxisMap)["embed.weight[0]"]
    assert group.pinned
    assert not group.border


def test_routed_experts_share_their_axis_with_the_router():
    axes = models.captured("deepseek_v3").get(AxisMap)
    mlp = "model.layers.1.mlp"
    groups = [g for g in axes.groups if "expert" in g.roles and g.slots[0].name.startswith(mlp)]
    assert [g.sizes for g in groups] == [(2,), (2, 3)]  # routing groups, experts within them
    experts = {f"{mlp}.experts.{name}[0]" for name in ("gate_up_proj", "down_proj")}
    router = {f"{mlp}.gate.{name}[0]" for name in ("weight", "e_score_correction_bias")}
    assert all({str(slot) for slot in g.slots} == experts | router for g in groups)


def test_low_rank_projections_are_no_ffn_neurons():
    """dt_rank stands between two projections with nothing but a copy in between."""
    axes = models.captured("mamba").get(AxisMap)
    rank = axes["backbone.layers.0.mixer.dt_proj.weight[1]"]
    assert rank.size == 5
    assert rank.roles == {"latent_rank"}
    assert not rank.pinned


def test_a_squeeze_and_excite_network_is_one_group():
    axes = capture(plain.ResNet().eval(), torch.randn(2, 3, 16, 16)).get(AxisMap)
    group = axes["blocks.0.conv1.weight[0]"]
    assert {slot.name.split(".")[2] for slot in group.slots} == {"conv1", "bn1", "depthwise", "gate", "conv2"}


def test_a_fused_qkv_projection_shares_its_heads():
    axes = capture(plain.Encoder().eval(), torch.zeros(2, 9, dtype=torch.long)).get(AxisMap)
    heads = next(g for g in axes.groups if "kv_head" in g.roles)
    assert heads.sizes == (4,)
    assert {str(s) for s in heads.slots} == {f"blocks.0.{n}" for n in ("qkv.weight[0]", "qkv.bias[0]", "out.weight[1]")}


class Unknown(nn.Module):
    """Uses an op that has no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 10), nn.Linear(10, 4)

    def forward(self, x):
        return self.second(torch.special.bessel_j0(self.first(x)).renorm(2, 0, 1.0))


def test_an_op_without_a_rule_pins_what_it_touches_and_is_named():
    axes = capture(Unknown(), torch.randn(2, 6)).get(AxisMap)
    group = axes["first.weight[0]"]
    assert "aten.renorm has no rule" in group.pinned[0]


class Misaligned(nn.Module):
    """Views 2 x 6 as 3 x 4: no axis survives."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 12), nn.Linear(4, 5)

    def forward(self, x):
        h = self.first(x).view(-1, 2, 6)
        return self.second((h * 2).reshape(-1, 3, 4))


def test_a_view_that_mixes_axes_pins_them_and_says_which():
    program = capture(Misaligned(), torch.randn(2, 6))
    pinned = [why for g in program.get(AxisMap).groups for why in g.pinned]
    assert any("mixes the axis" in why or "do not align" in why for why in pinned)
    assert all(g.pinned for g in program.get(AxisMap).groups if g.key.startswith("first.weight[0]"))


@pytest.mark.parametrize("name", ["llama", "mamba2", "nemotron_h_moe"])
def test_a_model_in_bfloat16_has_the_same_groups(name):
    """Its graph is full of casts, which move no index."""
    program = capture(models.tiny(name).bfloat16())
    ours, wide = (
        {(g.key, g.sizes, g.roles, bool(g.pinned)) for g in p.get(AxisMap).groups}
        for p in (program, models.captured(name))
    )
    assert ours == wide


@pytest.mark.parametrize("name", models.FAMILIES)
def test_the_dims_of_every_node_have_the_sizes_of_its_value(name):
    from fxcompress.axis import size
    from fxcompress.rule import shape_of

    program = models.captured(name)
    for node, dims in program.get(AxisMap).dims.items():
        if isinstance(dims, tuple) and isinstance(node.meta.get("val"), torch.Tensor):
            assert tuple(map(size, dims)) == shape_of(node.meta["val"]), node.format_node()


class Ranked(nn.Module):
    """Rows of a table for the best of a router, with what ``change`` makes of their numbers."""

    def __init__(self, change, rows: int = 8) -> None:
        super().__init__()
        self.router, self.table, self.change = nn.Linear(6, 8), nn.Embedding(rows, 5), change

    def forward(self, x):
        return self.change(self.table, self.router(x).topk(2, -1).indices)


def router(change, rows: int = 8):
    axes = capture(Ranked(change, rows).eval(), torch.randn(3, 6)).get(AxisMap)
    return axes["router.weight[0]"], axes


def test_a_table_that_the_best_are_looked_up_in_shares_the_axis_of_the_router():
    group, _ = router(lambda table, index: table(index).sum(1))
    assert not group.pinned
    assert "table.weight[0]" in map(str, group.slots)


@pytest.mark.parametrize(
    ("change", "rows", "why"),
    [
        (lambda table, index: (table(index).sum(1), index), 8, "an output of the model"),
        (lambda table, index: table((index + 1) % 8).sum(1), 8, "computed with"),
        (lambda table, index: table(torch.cat([index, torch.ones_like(index)], 1)).sum(1), 8, "computed with"),
        (lambda table, index: table(nn.functional.pad(index, (1, 0))).sum(1), 8, "computed with"),
        (lambda table, index: table(index).sum(1), 16, "another size"),
    ],
)
def test_addresses_that_do_not_follow_a_cut_pin_what_they_address(change, rows, why):
    group, _ = router(change, rows)
    assert any(why in reason for reason in group.pinned), group.pinned


def test_two_axes_do_not_differ_along_one_another():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.inp, self.w, self.out = nn.Linear(4, 5), nn.Parameter(torch.randn(5, 6, 7)), nn.Linear(1, 3)

        def forward(self, x):
            return self.out((self.inp(x)[:, :, None, None] * self.w).sum((1, 2, 3))[:, None])

    axes = capture(Table().eval(), torch.randn(2, 4)).get(AxisMap)
    for group in axes.groups:
        assert all(group.axis not in axes.outer.get(a, ()) for a in axes.outer[group.axis])
