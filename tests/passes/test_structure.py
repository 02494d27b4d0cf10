"""Every structural pass on every family it applies to: in float64, asked equals got, and the laws hold to 1e-9."""

from __future__ import annotations

import pytest
import torch

import fxcompress
from fxcompress import CompressError
from fxcompress.axes import AxisMap
from fxcompress.passes import (
    PruneAttentionHeads,
    PruneAxes,
    PruneEmbedding,
    PruneFFN,
    PruneSSMChannels,
    PruneSSMHeads,
    RemoveLayers,
)
from fxcompress.statistics import Statistics
from tests import models, plain

HYBRIDS = ("nemotron_h", "nemotron_h_moe")
TRANSFORMERS = ("llama", "qwen3")
CASES = [
    *(
        (name, PruneFFN(ratio=0.25, score=score))
        for name in (*TRANSFORMERS, *HYBRIDS)
        for score in ("magnitude", "random")
    ),
    *(
        (name, PruneSSMHeads(ratio=0.25, score=score))
        for name in ("mamba2", *HYBRIDS)
        for score in ("magnitude", "random")
    ),
    *((name, PruneSSMHeads(size=6, score="random")) for name in ("mamba2", *HYBRIDS)),
    *((name, PruneSSMChannels(ratio=0.25, score="random")) for name in ("mamba", "mamba2")),
    *((name, PruneSSMChannels(ratio=0.3, score="random")) for name in HYBRIDS),
    *((name, PruneAttentionHeads(ratio=1 / 3, score="random")) for name in (*TRANSFORMERS, *HYBRIDS)),
    *((name, PruneAttentionHeads(ratio=0.5, kv=True, score="random")) for name in (*TRANSFORMERS, *HYBRIDS)),
    *((name, PruneEmbedding(ratio=0.25, score="random")) for name in models.FAMILIES),
    *((name, RemoveLayers(layers=(1,))) for name in models.FAMILIES),
    *((name, RemoveLayers(layers=(0, -1))) for name in ("llama", "mamba2", "nemotron_h")),
    *((name, PruneAxes(role="ssm_state", size=15, score="random")) for name in ("mamba2", *HYBRIDS)),
    *((name, PruneAxes(role="ssm_group", size=2, score="random")) for name in ("mamba2", *HYBRIDS)),
    *((name, PruneAxes(role="v_channel", ratio=0.25, score="random")) for name in (*TRANSFORMERS, *HYBRIDS)),
    *((name, PruneAxes(role="qk_channel", ratio=0.25, score="random")) for name in (*TRANSFORMERS, *HYBRIDS)),
    ("nemotron_h_moe", PruneAxes(role="expert_neuron", ratio=0.25, score="random")),
]


def label(case) -> str:
    name, p = case
    options = "-".join(f"{k}={v if not isinstance(v, float) else round(v, 2)}" for k, v in p.options().items())
    return f"{name}-{p.name}-{options}"


@pytest.mark.parametrize(("name", "p"), CASES, ids=map(label, CASES))
def test_asked_is_got_and_every_law_holds(name, p):
    program = models.captured(name)
    small = fxcompress.apply(program, [p])
    (entry,) = small.report.passes
    assert entry["after"]["parameters"] < entry["before"]["parameters"]
    cut = [row for row in entry["rows"] if not row["why"]]
    assert cut
    for row in cut:
        assert 0 < row["got"] <= row["of"]
        assert abs(row["got"] - row["asked"]) <= row["step"] / 2
    for law in entry["laws"]:
        assert law["error"] is None or law["error"] <= 1e-9, law
    checked = {law["name"] for law in entry["laws"] if law["error"] is not None}
    assert checked >= {"shapes", "count", "prune equals mask"}
    assert "permutation" in checked or isinstance(p, RemoveLayers)


@pytest.mark.parametrize("name", models.FAMILIES)
def test_the_rewrite_did_change_the_logits(name):
    """Or else the laws would hold of a rewrite that does nothing."""
    program, ids = models.captured(name), models.ids(2, 13)
    p = PruneEmbedding(ratio=0.25, score="random")
    small = fxcompress.apply(program, [p])
    with torch.no_grad():
        assert (small(ids).logits - program(ids).logits).abs().max() > 1e-2


def test_the_users_model_is_left_alone():
    model = models.tiny("nemotron_h")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    config = model.config.to_dict()
    small = fxcompress.apply(model, [PruneSSMHeads(ratio=0.5), PruneFFN(ratio=0.25)])
    with torch.no_grad():
        for p in small.parameters():
            p.add_(1.0)  # as training would
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.config.to_dict() == config


def test_passes_compose_each_on_the_result_of_the_one_before():
    passes = [
        PruneSSMHeads(ratio=0.5),
        PruneSSMChannels(size=30),
        PruneFFN(size=40),
        PruneAttentionHeads(size=4),
        PruneEmbedding(size=32),
        RemoveLayers(layers=(2,)),
    ]
    small = fxcompress.apply(models.captured("nemotron_h"), passes)
    shapes = {name: tuple(t.shape) for name, t in small.program.state.items()}
    assert shapes["model.layers.1.mixer.up_proj.weight"] == (40, 32)
    assert shapes["model.layers.3.mixer.q_proj.weight"] == (4 * 8, 32)
    assert shapes["model.layers.0.mixer.out_proj.weight"] == (32, 30)
    assert not any("layers.2." in name for name in small.program.state)
    assert all(law["holds"] for entry in small.report.passes for law in entry["laws"])


def test_heads_are_chosen_within_each_group_by_their_scores():
    program = models.captured("mamba2")
    (group,) = [
        g
        for g in program.get(AxisMap).groups
        if "ssm_head" in g.roles and g.slots[0].name.startswith("backbone.layers.1.")
    ]
    scores = torch.tensor([[1.0, 4.0, 3.0, 2.0], [9.0, 9.5, 8.0, 7.0], [0.1, 0.2, 0.4, 0.3]])
    p = PruneSSMHeads(size=6, layers="backbone.layers.1", score={group.key: scores})
    small = fxcompress.apply(program, [p])
    assert small.steps[0].keep[group.key].tolist() == [[1, 2], [0, 1], [2, 3]]
    kept = program.state["backbone.layers.1.mixer.A_log"][[1, 2, 4, 5, 10, 11]]
    assert torch.equal(small.program.state["backbone.layers.1.mixer.A_log"], kept)


def test_layers_are_selected_by_glob_and_the_others_stay():
    small = fxcompress.apply(models.captured("llama"), [PruneFFN(ratio=0.5, layers="*.layers.[02]")])
    widths = [small.program.state[f"model.layers.{i}.mlp.up_proj.weight"].shape[0] for i in range(3)]
    assert widths == [40, 80, 40]


def test_several_globs_select_what_any_of_them_matches_in_one_pass():
    several = PruneFFN(ratio=0.5, layers=["model.layers.0", "*.layers.2.mlp"])
    step, _ = several.decide(models.captured("llama"), Statistics())
    as_one, _ = PruneFFN(ratio=0.5, layers="*.layers.[02]").decide(models.captured("llama"), Statistics())
    assert step.keep.keys() == as_one.keep.keys()
    assert several == PruneFFN(ratio=0.5, layers=("model.layers.0", "*.layers.2.mlp"))


def test_round_to_keeps_multiples():
    small = fxcompress.apply(models.captured("llama"), [PruneFFN(ratio=0.3, round_to=16)])
    (entry,) = small.report.passes
    assert {row["got"] for row in entry["rows"]} == {80 - 64} or {row["got"] for row in entry["rows"]} == {80 - 48}
    assert all(row["step"] == 16 for row in entry["rows"])


def test_a_callable_score_is_asked_for_every_group():
    asked = []

    def first_ones(program, group):
        asked.append(group.key)
        return -torch.arange(group.size).float()

    small = fxcompress.apply(models.captured("llama"), [PruneFFN(size=60, score=first_ones)])
    assert len(asked) == 3
    assert all(index.tolist() == list(range(60)) for index in small.steps[0].keep.values())


def test_activation_scores_do_not_depend_on_the_batch_size():
    ids = models.ids(6, 10)
    kept = []
    for batches in ([ids], ids.split(1), ids.split(4)):
        small = fxcompress.apply(models.captured("llama"), [PruneFFN(size=50, score="activation")], calibration=batches)
        kept.append({k: v.tolist() for k, v in small.steps[0].keep.items()})
    assert kept[0] == kept[1] == kept[2]


def test_on_meta_a_pass_is_a_dry_run_with_the_first_indices_kept():
    with torch.device("meta"):
        model = type(models.tiny("mamba2"))(models.config("mamba2")).eval()
    small = fxcompress.apply(model, [PruneSSMHeads(ratio=0.5, score="activation")])
    assert all(index.tolist() == [[0, 1]] * 3 for index in small.steps[0].keep.values())
    assert small.program.state["backbone.layers.0.mixer.A_log"].shape == (6,)
    laws = {law["name"]: law for law in small.report.passes[0]["laws"]}
    assert laws["shapes"]["holds"]
    assert laws["count"]["holds"]
    assert laws["prune equals mask"]["error"] is None


@pytest.mark.parametrize("name", ["llama", "nemotron_h_moe"])
def test_a_model_in_bfloat16_is_proven_in_float32_and_left_as_it_is(name):
    small = fxcompress.apply(models.tiny(name).bfloat16(), [PruneFFN(ratio=0.25), PruneEmbedding(ratio=0.25)])
    laws = [law for entry in small.report.passes for law in entry["laws"]]
    assert {law["tolerance"] for law in laws if law["name"] == "prune equals mask"} == {1e-3}
    assert all(law["holds"] for law in laws)
    assert small.program.state["lm_head.weight" if name != "llama" else "model.norm.weight"].dtype == torch.bfloat16


def test_multi_head_attention_without_groups_loses_heads_by_the_same_pass():
    program = fxcompress.capture(models.perturb(plain.Encoder()).eval(), torch.zeros(2, 9, dtype=torch.long))
    small = fxcompress.apply(program, [PruneAttentionHeads(size=2)])
    assert small.program.state["blocks.0.qkv.weight"].shape == (3 * 2 * 6, 24)


@pytest.mark.parametrize("p", [PruneAxes(ratio=0.5), PruneEmbedding(ratio=0.25), PruneAxes(groups="*conv1*", size=15)])
def test_a_convolutional_network_is_cut_and_proven(p):
    model = models.perturb(plain.ResNet()).eval()
    program = fxcompress.capture(model, torch.randn(2, 3, 16, 16)).in_float64()
    small = fxcompress.apply(program, [p])
    assert all(law["error"] <= 1e-9 for law in small.report.passes[0]["laws"])
    assert sum(q.numel() for q in small.parameters()) < sum(q.numel() for q in model.parameters())


@pytest.mark.parametrize(
    "p", [PruneFFN(ratio=0.25), PruneAttentionHeads(ratio=0.5), PruneEmbedding(ratio=0.25), RemoveLayers(layers=(0,))]
)
def test_a_users_own_transformer_is_cut_and_proven(p):
    program = fxcompress.capture(
        models.perturb(plain.Encoder()).eval(), torch.zeros(2, 9, dtype=torch.long)
    ).in_float64()
    small = fxcompress.apply(program, [p])
    assert all(law["error"] is None or law["error"] <= 1e-9 for law in small.report.passes[0]["laws"])


@pytest.mark.parametrize("layers", [(0,), (1,), (2,), (0, 1), (1, 2)], ids=str)
def test_a_block_that_leaves_its_last_addition_to_the_next_one_is_removed(layers):
    model, x = models.perturb(plain.OpenBlocks()).double().eval(), torch.randn(2, 9, 6, dtype=torch.float64)
    small = fxcompress.apply(model, [RemoveLayers(layers=layers)], example_inputs=x)
    model.blocks = torch.nn.ModuleList([block for i, block in enumerate(model.blocks) if i not in layers])
    torch.testing.assert_close(small(x), model(x))


# ---- refusals: before any work, in the user's terms ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("mamba", lambda: PruneFFN(ratio=0.5), "no ffn neuron in this model"),
        ("llama", lambda: PruneSSMHeads(ratio=0.5), "no ssm head in this model"),
        ("llama", lambda: PruneFFN(ratio=0.5, layers="*.layers.7"), "no ffn neuron lies wholly under"),
        ("llama", lambda: PruneFFN(ratio=0.5, layers=("*.1", "*.7")), "no ffn neuron lies wholly under layers='*.7'"),
        ("llama", lambda: PruneFFN(ratio=0.5, layers=()), "layers= names no layer"),
        ("llama", lambda: PruneAttentionHeads(ratio=0.1), "would remove nothing; the nearest ratio is 0.3333"),
        ("llama", lambda: PruneAttentionHeads(size=5), "the nearest sizes are 4 and 6"),
        ("mamba2", lambda: PruneSSMHeads(size=8), "the nearest sizes are 6 and 9"),
        ("llama", lambda: PruneFFN(size=81), "more than the 80"),
        ("llama", lambda: PruneFFN(ratio=0.999), "would remove everything"),
        ("llama", lambda: PruneAxes(role="vocabulary", ratio=0.5), "PruneVocabulary removes tokens"),
        ("llama", lambda: RemoveLayers(layers=(3,)), "out of range, the model has 3"),
        ("llama", lambda: RemoveLayers(layers=("*.layers.9",)), "no layer like"),
        ("llama", lambda: RemoveLayers(layers=(0, 1, 2)), "all 3 layers"),
        ("llama", lambda: PruneFFN(ratio=0.5, score="activation"), "pass calibration="),
        ("llama", lambda: PruneFFN(ratio=0.5, score={}), "no tensor for the group"),
        ("llama", lambda: PruneFFN(ratio=0.5, score=lambda p, g: torch.ones(3)), "shape (3,), the group (80,)"),
        ("llama", lambda: PruneFFN(ratio=0.5, score=lambda p, g: torch.full((80,), torch.nan)), "not finite"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(name, make, said):
    with pytest.raises(CompressError) as refusal:
        fxcompress.apply(models.captured(name), [make()])
    assert said in str(refusal.value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: PruneFFN(ratio=1.0), "outside [0, 1)"),
        (lambda: PruneFFN(ratio=-0.1), "outside [0, 1)"),
        (lambda: PruneFFN(ratio=float("nan")), "outside [0, 1)"),
        (lambda: PruneFFN(), "exactly one of ratio="),
        (lambda: PruneFFN(ratio=0.5, size=3), "exactly one of ratio="),
        (lambda: PruneFFN(size=0), "leaves nothing"),
        (lambda: PruneFFN(ratio=0.5, round_to=0), "not a positive step"),
        (lambda: PruneFFN(ratio=0.5, score="magic"), "magnitude, activation, fluctuation"),
        (lambda: RemoveLayers(), "needs layers="),
    ],
)
def test_a_contradictory_pass_is_refused_when_it_is_made(make, said):
    with pytest.raises(CompressError) as refusal:
        make()
    assert said in str(refusal.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value):
    model = models.tiny("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = value
    with pytest.raises(CompressError, match=r"model\.layers\.1\.mlp\.up_proj\.weight.*holds 1 values"):
        fxcompress.apply(model, [PruneFFN(ratio=0.5)])
