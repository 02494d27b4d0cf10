"""A recipe is checked before any work: by name, key, type and value; it is data, and nothing in it is run."""

from __future__ import annotations

from dataclasses import MISSING, fields

import pytest

from fxcompress import CompressError, passes
from fxcompress.passes import PruneAttentionHeads, PruneFFN, RemoveLayers
from fxcompress.recipe import PASSES, Calibration, Recipe

TEXT = """
version: 1
passes:
  - PruneFFN: {ratio: 0.25, layers: "model.layers.[12]"}
  - PruneFFN: {ratio: 0.25, layers: ["model.layers.0", "*.3"]}
  - RemoveLayers: {layers: [1, "model.layers.2"]}
calibration: {file: text.txt, samples: 8}
"""


def test_a_recipe_gives_its_passes_in_order():
    recipe = Recipe.from_yaml(TEXT)
    assert recipe.passes() == [
        PruneFFN(ratio=0.25, layers="model.layers.[12]"),
        PruneFFN(ratio=0.25, layers=("model.layers.0", "*.3")),
        RemoveLayers(layers=(1, "model.layers.2")),
    ]
    assert recipe.calibration == Calibration(file="text.txt", samples=8)


def test_writing_and_reading_a_recipe_changes_nothing():
    recipe = Recipe.from_yaml(TEXT)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def test_every_pass_can_be_in_a_recipe():
    assert list(PASSES) == passes.__all__


NEEDED = {"ratio": 0.5, "tokens": [0], "layers": [0], "sparsity": 0.5}


@pytest.mark.parametrize("name", passes.__all__)
def test_every_option_with_a_default_can_be_written_as_that_default(name):
    """The types of all fields are understood: none is refused for what it is by default."""
    names = [f.name for f in fields(PASSES[name])]
    options = next(({key: value} for key, value in NEEDED.items() if key in names), {})
    given = {f.name: f.default for f in fields(PASSES[name]) if f.init and f.default not in (MISSING, None, ())}
    text = ", ".join(f"{key}={value!r}" for key, value in {**given, **options}.items())
    assert Recipe.parse_pass(f"{name}({text})") == Recipe.parse_pass(
        f"{name}({', '.join(f'{k}={v!r}' for k, v in options.items())})"
    )


def test_a_calibration_file_is_found_beside_its_recipe(tmp_path):
    (tmp_path / "r.yaml").write_text(TEXT)
    assert Recipe.load(tmp_path / "r.yaml").calibration.file == str(tmp_path / "text.txt")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("PruneFFN(ratio=0.25)", PruneFFN(ratio=0.25)),
        (" PruneFFN( size = 60 , score = 'random' ) ", PruneFFN(size=60, score="random")),
        ("PruneAttentionHeads(ratio=0.5, kv=True)", PruneAttentionHeads(ratio=0.5, kv=True)),
        ("PruneFFN(size=40, layers=['*.0', '*.2'])", PruneFFN(size=40, layers=("*.0", "*.2"))),
        ("RemoveLayers(layers=(0, -1))", RemoveLayers(layers=(0, -1))),
        ("RemoveLayers(layers=['model.layers.1'])", RemoveLayers(layers=("model.layers.1",))),
    ],
)
def test_a_pass_can_be_written_as_its_call(text, expected):
    assert Recipe.parse_pass(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "PruneFFN(0.25)",
        "PruneFFN(ratio=0.25",
        "PruneFFN(ratio=0.1, ratio=0.2)",
        "PruneFFN(**{'ratio': 0.25})",
        "passes.PruneFFN(ratio=0.25)",
        "PruneFFN(ratio=1 / 4)",
        "PruneFFN(ratio=__import__('os').getpid())",
        "PruneFFN(ratio=0.25), RemoveLayers(layers=[1])",
        "",
    ],
)
def test_what_is_no_call_with_literals_is_refused_and_never_evaluated(text):
    with pytest.raises(CompressError, match="is not a pass: write a name and options"):
        Recipe.parse_pass(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("PruneFNN(ratio=0.25)", "there is no pass 'PruneFNN' (did you mean PruneFFN"),
        ("prune_ffn(ratio=0.25)", "did you mean PruneFFN"),
        ("Zzz(ratio=0.25)", "there is no pass 'Zzz'; there are PruneAttentionHeads, PruneAxes"),
        ("PruneFFN(ration=0.25)", "PruneFFN has no option 'ration' (did you mean ratio?); it has groups, ratio, size"),
        ("PruneFFN(ratio=0.25, role='residual')", "PruneFFN has no option 'role'"),
        ("PruneFFN(ratio='0.25')", "PruneFFN.ratio='0.25': it should be a valid number"),
        ("PruneFFN(ratio=True)", "PruneFFN.ratio=True: it should be a valid number"),
        ("PruneFFN(size=2.5)", "PruneFFN.size=2.5: it should be a valid integer"),
        ("PruneFFN(ratio=0.25, score=[1.0])", "PruneFFN.score=[1.0]: it should be a valid string"),
        (
            "PruneFFN(ratio=0.25, score='taste')",
            "score='taste' is unknown; there are magnitude, activation",
        ),
        ("PruneFFN(ratio=1.0)", "PruneFFN: ratio=1.0 is outside [0, 1)"),
        ("PruneFFN(ratio=-0.1)", "PruneFFN: ratio=-0.1 is outside [0, 1)"),
        ("PruneFFN(ratio=0.25, size=3)", "PruneFFN: say how much by exactly one of"),
        ("PruneFFN", "PruneFFN: say how much by exactly one of"),
        ("RemoveLayers()", "RemoveLayers needs layers="),
    ],
)
def test_a_pass_that_cannot_be_is_refused_with_what_there_is(text, said):
    with pytest.raises(CompressError) as error:
        Recipe.parse_pass(text)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("passes: [{PruneFFN: {ratio: 0.25}}]", "recipe needs version"),
        ("version: 2\npasses: [{PruneFFN: {ratio: 0.25}}]", "recipe.version=2: it should be 1"),
        ("version: 1", "recipe needs passes"),
        ("version: 1\npasses: []", "the recipe has no pass"),
        ("version: 1\npasses: [PruneFFN]", "recipe.passes.0='PruneFFN': it should be a mapping"),
        ("version: 1\npasses: [{PruneFFN: {ratio: 0.1}, RemoveLayers: {layers: [1]}}]", "passes[0] names 2 passes"),
        (
            "version: 1\npasses: [{PruneFFN: {ratio: 0.1}}, {PruneFFN: {rate: 0.1}}]",
            "passes[1]: PruneFFN has no option",
        ),
        ("version: 1\npasses: [{PruneFFN: {ratio: 2}}]", "passes[0]: PruneFFN: ratio=2.0 is outside"),
        ("version: 1\npasses: []\nextra: 1", "recipe has no option 'extra'; it has version, passes, calibration"),
        ("version: 1\npasses: []\ncalibration: {samples: 4}", "recipe.calibration needs file"),
        ("version: 1\npasses: []\ncalibration: {file: a, sample: 4}", "(did you mean samples?)"),
        ("version: 1\npasses: []\ncalibration: {file: a, length: 0}", "recipe.calibration.length=0: it should be"),
        ("- PruneFFN", "a recipe is a mapping"),
        ("", "a recipe is a mapping"),
        ("passes: [", "not YAML"),
        ("!!python/object/apply:os.getpid []", "not YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_and_the_place_is_named(tmp_path, text, said):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(CompressError) as error:
        Recipe.load(tmp_path / "r.yaml")
    assert said in str(error.value)
    assert str(tmp_path / "r.yaml") in str(error.value)
    assert len(str(error.value).splitlines()) <= 2


def test_a_recipe_that_is_not_there_or_no_text_is_refused(tmp_path):
    with pytest.raises(CompressError, match="cannot be read"):
        Recipe.load(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CompressError, match="cannot be read"):
        Recipe.load(tmp_path / "r.yaml")
