"""Every size of a space is one that the model can be cut to; what is not there is refused by name."""

from __future__ import annotations

import pytest
import torch

from fxcompress import CompressError, capture
from fxcompress.batches import batches_of
from fxcompress.passes import PruneEmbedding, PruneSSMChannels, PruneSSMHeads, RemoveLayers
from fxcompress.pipeline import Pipeline
from fxcompress.rewrite import rewrite
from fxcompress.searching.choices import open_space, read_axes
from fxcompress.searching.depth import layer_order, stack
from fxcompress.searching.profile import Profile
from tests import models, plain

FROM_THE_BACK = {3: (1, 0, 2), 5: (3, 2, 1, 0, 4)}  # the last one stays


def hybrid():
    return models.captured("nemotron_h", torch.float32)


def space(asked, name="nemotron_h"):
    program = models.captured(name, torch.float32)
    return open_space(program, asked, FROM_THE_BACK[len(stack(program))])


def sizes(asked, name="nemotron_h"):
    return {axis.name: axis.sizes for axis in space(asked, name).choices}


def test_an_axis_without_sizes_goes_from_half_to_the_whole_in_powers_of_two():
    assert sizes(["ffn"]) == {"ffn": (40, 44, 48, 52, 56, 60, 64, 68, 72, 76, 80)}


def test_heads_go_by_whole_rows_of_their_groups():
    assert sizes(["ssm_heads", "query_heads"]) == {"ssm_heads": (6, 9, 12), "query_heads": (4, 6)}


def test_channels_are_counted_in_one_head():
    assert sizes({"ssm_channels": [6, 10]}) == {"ssm_channels": (6, 10)}
    (cut,) = space({"ssm_channels": [6, 10]}).passes({"ssm_channels": 6}, "magnitude")
    assert cut == PruneSSMChannels(size=12 * 6, score="magnitude")


def test_without_a_space_every_axis_of_the_model_is_in_it():
    assert list(sizes(None)) == ["ssm_channels", "ssm_heads", "query_heads", "ffn", "width", "layers"]
    assert list(sizes(None, "llama")) == ["query_heads", "ffn", "width", "layers"]


def test_a_tuple_is_a_range_and_a_list_are_sizes():
    assert sizes({"ffn": (40, 80, 20), "width": [48, 24]}) == {"ffn": (40, 60, 80), "width": (24, 48)}


def test_the_text_of_the_command_line_says_the_same():
    assert read_axes(["ffn=40:80:20", "width=24, 48", "layers"]) == {
        "ffn": (40, 80, 20),
        "width": [24, 48],
        "layers": None,
    }


def test_sizes_become_passes_and_what_stays_as_it_is_none():
    found = space({"layers": [3, 5], "width": [24, 48], "ffn": [40, 80], "ssm_heads": [6, 12]})
    passes = found.passes({"layers": 3, "width": 24, "ffn": 80, "ssm_heads": 6}, "random")
    assert passes == (
        PruneSSMHeads(size=6, score="random"),
        PruneEmbedding(size=24, score="random"),
        RemoveLayers(layers=(2, 3)),
    )
    assert found.passes(found.original, "random") == ()


@pytest.mark.parametrize("score", ["cosine", "kl"])
def test_the_layers_that_matter_least_go_first(score):
    batches = batches_of([models.ids(2, 16)])
    order = layer_order(hybrid(), score, batches)
    assert sorted(order) == [0, 1, 2, 3, 4]
    for count in (1, 3):
        pipeline = Pipeline([RemoveLayers(count=count, score=score)], verify=False)
        pipeline.run(hybrid(), batches)
        removed = {int(path.rpartition(".")[2]) for path in pipeline.records[0].step.remove}
        assert removed == set(order[:count])


def test_an_order_of_layers_of_ones_own_is_followed():
    assert layer_order(hybrid(), (4, 0, 1, 3, 2)) == (4, 0, 1, 3, 2)
    assert layer_order(hybrid(), lambda program: range(len(stack(program)))) == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("order", [(0, 1), (0, 1, 2, 3, 3), (1, 2, 3, 4, 5)])
def test_what_is_no_order_of_all_layers_is_refused(order):
    with pytest.raises(CompressError, match="does not name each of the 5 layers once"):
        layer_order(hybrid(), order)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({}, "the space has no axis: name some of"),
        ([], "the space has no axis: name some of"),
        ("ffn", "space='ffn' is none"),
        (7, "space=7 is none"),
        (["fnn"], r"there is no axis 'fnn' \(did you mean ffn\?\)"),
        ({"depth": [3]}, "there is no axis 'depth'"),
        ({"ffn": []}, "ffn has no size to choose from"),
        ({"ffn": 40}, "ffn=40: sizes are a list"),
        ({"ffn": [0]}, "positive whole numbers"),
        ({"ffn": [40.0]}, "positive whole numbers"),
        ({"ffn": [float("nan")]}, "positive whole numbers"),
        ({"ffn": [True]}, "positive whole numbers"),
        ({"ffn": (80, 40, 4)}, r"a tuple is \(low, high, step\)"),
        ({"ffn": (40, 80)}, r"a tuple is \(low, high, step\)"),
        ({"ffn": [96]}, "ffn: 96 is not between 1 and the 80 of the model"),
        ({"layers": [6]}, "layers: 6 is not between 1 and the 5 of the model"),
        ({"ssm_heads": [7]}, "size=7 is not feasible: 3 rows keep the same number each.*6 and 9"),
        ({"query_heads": [5]}, "size=5 is not feasible.*4 and 6"),
    ],
)
def test_axes_and_sizes_that_are_not_there_are_refused(asked, why):
    with pytest.raises(CompressError, match=why):
        space(asked)


def test_an_axis_that_a_model_does_not_have_is_refused():
    with pytest.raises(CompressError, match="no ssm head in this model"):
        space(["ssm_heads"], "llama")


def test_layers_of_different_widths_are_no_axis_of_one_size():
    with pytest.raises(CompressError, match=r"layers\.0\.mlp\.gate_proj.* has 80 and .*shared_experts.* has 32"):
        space(["ffn"], "deepseek_v3")
    assert "ffn" not in sizes(None, "deepseek_v3")


def test_a_model_without_residual_blocks_has_no_layers_to_remove():
    program = capture(plain.ResNet().eval(), torch.randn(2, 3, 16, 16))
    assert stack(program) == []
    with pytest.raises(CompressError, match="layers: the model has no list of residual blocks"):
        open_space(program, ["layers"], ())


@pytest.mark.parametrize("text", ["ffn=", "ffn=40:80", "ffn=a", "ffn=4*9", "ffn=40..80", "ffn=-3"])
def test_what_is_no_axis_is_refused(text):
    with pytest.raises(CompressError, match="is no axis: write 'ffn=8192:21504:512'"):
        read_axes([text])
    with pytest.raises(CompressError, match="given twice"):
        read_axes(["ffn", "ffn=3"])


# Profiles


def test_what_is_split_among_devices_divides_by_their_number():
    llama = models.captured("llama", torch.float32)
    found = Profile("fxcompress", tensor_parallel=2).narrowed(space(["ffn", "query_heads", "width"], "llama"), llama)
    assert {axis.name: axis.sizes[0] for axis in found.choices} == {"query_heads": 4, "ffn": 40, "width": 24}


def test_sizes_that_cannot_be_split_drop_out():
    asked = space({"ffn": [40, 42, 45, 48], "width": [25, 48]}, "llama")
    found = Profile("vllm", tensor_parallel=2).narrowed(asked, models.captured("llama", torch.float32))
    assert {axis.name: axis.sizes for axis in found.choices} == {"ffn": (40, 42, 48), "width": (25, 48)}


def test_an_axis_with_no_size_that_can_be_split_is_refused():
    with pytest.raises(CompressError, match="ffn: none of 41, 43 can be split on tensor_parallel=2 devices"):
        Profile("vllm", 2).narrowed(space({"ffn": [41, 43]}, "llama"), models.captured("llama", torch.float32))


def test_an_axis_of_the_model_that_cannot_be_split_is_named():
    with pytest.raises(CompressError, match=r"layers\.0\.mixer.* has 3, which cannot be split on tensor_parallel=2"):
        Profile("vllm", 2).narrowed(space(["ffn"]), hybrid())


@pytest.mark.parametrize(("name", "devices"), [("tgi", 1), ("vllm", 0), ("vllm", 1.5), ("vllm", True)])
def test_what_is_no_profile_is_refused(name, devices):
    with pytest.raises(CompressError, match=r"profile=|tensor_parallel="):
        Profile(name, devices)


@pytest.mark.slow
def test_stock_transformers_loads_widths_and_not_heads_that_do_not_fill_them():
    program = models.captured("mamba2", torch.float32).on_device(torch.device("meta"))
    found = open_space(program, {"ssm_heads": [6, 9, 12], "width": [24, 48]}, ())
    profile = Profile("transformers")

    def why_not(**sizes):
        small = program.clone()
        rewrite(small, step := found.step(sizes, ()))
        return profile.why_not(small, [step])

    assert why_not(ssm_heads=6, width=24) == ""
    assert "Mamba2ForCausalLM" in why_not(ssm_heads=9, width=48)


def test_our_own_profile_loads_everything():
    assert Profile("fxcompress").why_not(hybrid(), []) == ""


def test_the_first_indices_stand_for_any_choice_of_the_same_sizes():
    found = space({"ffn": [40, 80], "ssm_heads": [6, 12], "layers": [3, 5]})
    step = found.step({"ffn": 40, "ssm_heads": 6, "layers": 3}, stack(hybrid()))
    assert {tuple(index.shape) for index in step.keep.values()} == {(40,), (3, 2)}
    assert step.remove == ("model.layers.2", "model.layers.3")
