"""A shipped recipe, run on the sizes of the published original, gives the published result to the parameter.

Originals are on ``meta``: the real passes and laws run, on sizes alone.
"""

from __future__ import annotations

import functools
import re

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import fxcompress
from fxcompress import CompressedModel, Program, capture
from fxcompress.export.choose import choose
from fxcompress.recipe import Recipe
from tests.recipes.published import CONFIGS, ORIGINALS, PUBLISHED, RECIPES, body, original_sizes, rounded, total

each_recipe = pytest.mark.parametrize("name", PUBLISHED)


def on_meta(config) -> AutoModelForCausalLM:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).eval()


@functools.cache
def original(name: str) -> Program:
    return capture(on_meta(AutoConfig.from_pretrained(CONFIGS / f"{name}.json")))


def carried_out(name: str, recipe: Recipe) -> CompressedModel:
    return fxcompress.apply(original(PUBLISHED[name].original), recipe.passes())


@functools.cache
def result(name: str) -> CompressedModel:
    return carried_out(name, Recipe.load(RECIPES / f"{name}.yaml"))


def counted(small: CompressedModel) -> int:
    return sum(parameter.numel() for _, parameter in small.program.parameters())


def layers(small: CompressedModel) -> tuple[int, ...]:
    """Those of the original that are there."""
    found = (re.match(r"model\.layers\.(\d+)\.", name) for name, _ in small.program.parameters())
    return tuple(sorted({int(match[1]) for match in found if match}))


def unlike(small: CompressedModel, name: str) -> list[str]:
    """What of a result is not as it was published: its parameters, its layers."""
    published = PUBLISHED[name]
    kept = published.layers or layers(small)
    said = {"parameters": counted(small) == total(published.sizes), "layers": layers(small) == kept}
    return [what for what, same in said.items() if not same]


@pytest.mark.parametrize("name", ORIGINALS)
def test_the_originals_have_the_parameters_that_the_formula_gives(name):
    model = on_meta(AutoConfig.from_pretrained(CONFIGS / f"{name}.json"))
    assert model.num_parameters() == total(original_sizes(name))
    assert rounded(model.num_parameters(), ORIGINALS[name]) == ORIGINALS[name]


def test_the_derived_pattern_is_as_the_paper_describes_it():
    """118 layers, of which 54 Mamba-2, 54 FFN and 10 attention; attention is followed by an FFN, never by Mamba-2."""
    pattern = original_sizes("nemotron-h-56b")["hybrid_override_pattern"]
    assert [pattern.count(letter) for letter in "M-*"] == [54, 54, 10]
    assert (pattern[0], pattern[-1]) == ("M", "-")
    assert pattern.count("*-") == 10
    assert {pattern[i] for i in (40, 51, 62, 73, 84)} == {"*"}


@each_recipe
def test_published_sizes_have_the_published_parameters(name):
    published = PUBLISHED[name]
    assert rounded(total(published.sizes), published.billions) == published.billions
    if published.without_embeddings is not None:
        assert rounded(body(published.sizes), published.without_embeddings) == published.without_embeddings


@each_recipe
def test_the_page_about_the_recipes_has_these_figures(name):
    (row,) = [line for line in (RECIPES / "README.md").read_text().splitlines() if f"`{name}.yaml`" in line]
    before, after = original_sizes(PUBLISHED[name].original), PUBLISHED[name].sizes
    assert f"{total(before):,} → {total(after):,} | {body(after):,} |" in row


@pytest.mark.slow
@each_recipe
def test_the_result_has_the_published_parameters_exactly(name):
    assert unlike(result(name), name) == []
    assert result(name).report.summary()["parameters"] == (
        total(original_sizes(PUBLISHED[name].original)),
        total(PUBLISHED[name].sizes),
    )


@pytest.mark.slow
@each_recipe
def test_stock_transformers_has_a_config_with_the_published_fields(name):
    """For all four: none of them needs a config of ours."""
    choice = choose(result(name).program, result(name).steps)
    assert (choice.loads_with, choice.why) == ("transformers", "")
    expected = {field: size for field, size in PUBLISHED[name].sizes.items() if field != "dtype"}
    assert {field: getattr(choice.form.config, field) for field in expected} == expected
    assert on_meta(choice.form.config).num_parameters() == counted(result(name))


@pytest.mark.slow
@each_recipe
def test_every_pass_gets_what_the_recipe_asks_for(name):
    for entry in result(name).report.passes:
        assert all(row["got"] == row["asked"] > 0 for row in entry["rows"])
        assert all(law["holds"] for law in entry["laws"])


@pytest.mark.slow
def test_14_ssm_heads_stay_in_each_of_8_groups_in_every_layer():
    kept = result("minitron-ssm").steps[0].keep.values()
    assert [tuple(heads.shape) for heads in kept] == [(8, 14)] * 24


@pytest.mark.slow
def test_layers_are_counted_from_1_in_the_paper_and_the_last_one_stays():
    removed = result("minitron-depth").steps[0].remove
    assert removed == tuple(f"model.layers.{i - 1}" for i in range(16, 32))


# The tests above can fail.


FAULTS = {
    "a width": ("minitron-width", "{size: 3072,", "{size: 3328,", ["parameters"]),
    "a layer less": ("minitron-depth", "29, 30]", "29]", ["parameters", "layers"]),
    "as many layers, others": ("minitron-depth", "[15, 16,", "[14, 16,", ["layers"]),
    "a head less in every group": ("minitron-ssm", "{size: 112,", "{size: 104,", ["parameters"]),
    "FFN in the place of Mamba-2": ("mini-puzzle", "99, 101]", "99, 102]", ["parameters"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_recipe_with_another_size_or_layer_is_not_as_published(fault):
    name, text, wrong, expected = FAULTS[fault]
    shipped = (RECIPES / f"{name}.yaml").read_text()
    assert shipped.count(text) == 1
    assert unlike(carried_out(name, Recipe.from_yaml(shipped.replace(text, wrong))), name) == expected


def test_a_formula_with_one_channel_more_does_not_give_the_published_parameters():
    sizes = PUBLISHED["minitron-ssm"].sizes
    assert total({**sizes, "mamba_head_dim": 65}) != total(sizes)
    assert rounded(total({**sizes, "hidden_size": 3200}), "4.49") != "4.49"
