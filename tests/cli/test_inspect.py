"""``inspect`` reads no weights: it shows blocks, groups and reasons, to people and to programs."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from fxcompress import CompressError
from fxcompress.cli.inspection import Inspection
from fxcompress.cli.options import read_examples
from fxcompress.cli.why import explain, show
from fxcompress.source import open_source
from tests import models

UP, DOWN = "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def llama(run, saved) -> str:
    return run("inspect", saved("llama")).stdout


def test_blocks_that_are_alike_are_shown_once(llama):
    assert "model.layers.0 … and 1 like it (1)" in llama
    assert "model.layers.1" not in llama
    assert "ffn_neuron 80" in llama
    assert "query_head 2x3" in llama


def test_groups_over_several_blocks_stand_apart(llama):
    across = llama.partition("across blocks")[2].partition("model.layers.0 …")[0]
    assert "residual 48" in across
    assert "vocabulary 96" in across
    assert "ffn_neuron" not in across


def test_what_cannot_be_cut_says_why(llama):
    assert "border: it is a dim of the model's output" in llama


def test_blocks_that_differ_are_shown_each():
    found = Inspection.of(models.captured("nemotron_h"))
    path = "model.layers.{}".format
    assert [(b.path, b.like) for b in found.blocks] == [(path(0), [path(2)]), (path(1), [path(4)]), (path(3), [])]


def test_blocks_hold_the_groups_that_lie_wholly_in_them():
    found = Inspection.of(models.captured("nemotron_h"))
    by_key = {group.key: group for group in found.groups}
    for block in found.blocks:
        for key in block.groups:
            assert all(member.startswith(block.path + ".") for member in by_key[key].members)
    assert not [g for g in found.groups if g.roles == ["residual"] and g.block]


def test_json_is_all_that_is_on_stdout_and_its_keys_are_stable(run, saved):
    found = json.loads(run("inspect", saved("llama"), "--json").stdout)
    assert list(found) == ["model", "dtypes", "figures", "groups", "blocks"]
    assert found["model"] == "LlamaForCausalLM"
    weights = load_file(saved("llama") / "model.safetensors")
    assert found["figures"]["parameters"] == sum(tensor.numel() for tensor in weights.values())
    (block,) = found["blocks"]
    assert list(block) == ["path", "parameters", "groups", "like"]
    assert (block["path"], block["like"]) == ("model.layers.0", ["model.layers.1"])
    (ffn,) = [g for g in found["groups"] if g["roles"] == ["ffn_neuron"] and g["block"] == "model.layers.0"]
    assert list(ffn) == ["key", "roles", "sizes", "members", "pinned", "border", "block"]
    assert ffn["sizes"] == [80]
    assert "model.layers.0.mlp.down_proj.weight[1]" in ffn["members"]


def test_a_config_alone_is_enough(run, saved, tmp_path):
    (tmp_path / "config.json").write_text((saved("mamba2") / "config.json").read_text())
    shown = run("inspect", tmp_path / "config.json").stdout
    assert "ssm_state 3x7" in shown
    assert "pinned: kernel positions" in shown


def test_a_result_of_ours_is_a_model_too(run, small):
    assert "ffn_neuron 60" in run("inspect", small).stdout


def test_why_names_the_ops_between_two_parameters(run, saved):
    shown = run("inspect", saved("llama"), "--why", f"{UP}[0]", "--to", DOWN).stdout
    assert f"{UP}[0]  ffn_neuron 80" in shown
    assert "through linear (model.layers.1.mlp.up_proj) - mul - linear (model.layers.1.mlp.down_proj)" in shown
    assert "gate_proj.weight[0]\n      through" not in shown


def test_why_in_json_has_a_path_to_every_other_member(run, saved):
    found = json.loads(run("inspect", saved("llama"), "--why", f"{UP}[0]", "--json").stdout)
    (group,) = found["groups"]
    assert set(group["paths"]) == {"model.layers.1.mlp.gate_proj.weight[0]", f"{DOWN}[1]"}
    for member, path in group["paths"].items():
        assert (path[0], path[-1]) == (f"{UP}[0]", member)


def test_a_name_without_a_dim_means_all_of_its_dims():
    answer = explain(models.captured("llama"), DOWN)
    assert [(g["slot"], g["roles"]) for g in answer["groups"]] == [
        (f"{DOWN}[0]", ["residual"]),
        (f"{DOWN}[1]", ["ffn_neuron"]),
    ]


def test_members_that_differ_by_a_number_are_shown_once_by_the_nearest(capsys):
    show(explain(models.captured("nemotron_h"), "model.norm_f.weight"))
    shown = capsys.readouterr().out
    assert "model.layers.4.mixer.down_proj.weight[0] … and 1 like it" in shown
    assert "model.layers.1.mixer.down_proj" not in shown
    assert "through mul (model.norm_f) - mul - add ×5 - embedding (model.embeddings)" in " ".join(shown.split())


def test_a_tied_parameter_goes_by_any_of_its_names():
    answer = explain(models.captured("llama"), "lm_head.weight[0]")
    assert [g["slot"] for g in answer["groups"]] == ["model.embed_tokens.weight[0]"]
    assert "it is a dim of the model's output" in answer["groups"][0]["pinned"]


@pytest.mark.parametrize(
    ("parameter", "to", "said"),
    [
        ("model.layers.0.mlp.up_prj.weight", "", "did you mean model.layers.0.mlp.up_proj.weight?"),
        ("model.norm.weight[1]", "", r"model.norm.weight has 1 dims, there is no \[1\]"),
        ("", "", "is no parameter of the model"),
        ("model.norm.weight", f"{UP}[0]", "are not tied"),
    ],
)
def test_a_question_without_an_answer_is_refused(parameter, to, said):
    with pytest.raises(CompressError, match=said):
        explain(models.captured("llama"), parameter, to)


def test_example_inputs_say_what_the_model_is_captured_with(saved):
    source = open_source(saved("llama"), example=read_examples(["input_ids=2x12"]))
    assert source.example["input_ids"].shape == (2, 12)
    assert source.on_meta().program.inputs == ("input_ids",)


def test_an_example_that_is_no_shape_is_refused(saved):
    with pytest.raises(CompressError, match="not of the form input_ids=2x64"):
        read_examples(["input_ids=two"])
