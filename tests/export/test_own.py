"""What no config of transformers says loads with transformers all the same, by a model_type of ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import fxcompress
from fxcompress import CompressError, NotExpressible
from fxcompress.export.own import to_own
from fxcompress.export.own.config import FxcompressConfig
from fxcompress.export.own.record import recording
from fxcompress.passes import (
    PruneAttentionHeads,
    PruneAxes,
    PruneEmbedding,
    PruneExperts,
    PruneFFN,
    PruneSSMChannels,
    PruneSSMHeads,
    RemoveLayers,
)
from tests import matrix, models

ROOT = Path(__file__).parents[2]
# its function for the scan divides by the root of the state's size, which no number of a module says
GRAPH_ONLY = {("qwen3_next", "SSM state")}

CELLS = [  # of those that stock cannot say; tools/matrix.py saves and reloads them all
    ("llama", "query and key channels"),
    ("mamba2", "residual width"),
    ("mamba2", "SSM groups"),
    ("gemma3", "residual width"),
    ("gpt2", "query heads"),
    ("bamba", "layers"),
    ("nemotron_h_moe", "expert neurons"),
]
UNEVEN = {
    "FFN of own widths": PruneFFN(ratio=0.25, scope="global", score="random", seed=3),
    "one FFN": PruneFFN(ratio=0.5, layers="*.1"),
    "KV heads of own numbers": PruneAttentionHeads(ratio=0.5, kv=True, scope="global", score="random", seed=2),
    "SSM heads of own numbers": PruneSSMHeads(ratio=0.5, scope="global", score="random", seed=1),
    "SSM channels of own numbers": PruneSSMChannels(ratio=0.25, scope="global", score="random", seed=1),
    "experts of own numbers": PruneExperts(ratio=1 / 3, scope="global", score="random", seed=1),
}
GONE = {
    f"{part} of layer {layer}": RemoveLayers(layers=(layer,), part=part)  # type: ignore[arg-type]
    for part, layers in (("attention", (0, 1, 3)), ("ffn", (0, 1)), ("ssm", (0, 1)))
    for layer in layers
}
QUICK_UNEVEN = {
    ("llama", "FFN of own widths"),
    ("mamba2", "SSM channels of own numbers"),
    ("llama", "attention of layer 0"),
    ("falcon_h1", "attention of layer 0"),
    ("falcon_h1", "ssm of layer 1"),
    ("nemotron_h", "attention of layer 3"),
}


def marked(cases, quick):
    return [pytest.param(*case, marks=[] if case in quick else pytest.mark.slow) for case in cases]


def compressed(name, p):
    try:
        return fxcompress.apply(models.captured(name, torch.float32), [p], verify=False)
    except CompressError:
        return pytest.skip("the family has nothing of this kind to cut")


@torch.no_grad()
def greedy(model, ids, count=5):
    for _ in range(count):
        ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    return ids


@torch.no_grad()
def logits(model, ids, mask=None):
    return model(input_ids=ids, attention_mask=mask).logits


def load(folder):
    """With nothing made up and nothing left over."""
    model, notes = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(notes.values()), notes
    return model.eval()


def close(ours, theirs):
    return (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def assert_laws(small, folder):
    """Saved equals reloaded equals saved again; a cache changes nothing; the parameters are those of the program."""
    to_own(small.program, small.steps).save_pretrained(folder / "once")
    model = load(folder / "once")
    assert isinstance(model, PreTrainedModel)
    ids, mask = models.left_padded(3, 11)
    ids, mask = ids[:2], mask[:2]
    real = mask.bool()
    assert close(logits(model, ids, mask)[real], small(input_ids=ids, attention_mask=mask).logits[real])
    plain = models.ids(2, 9)
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    made = model.generate(plain, attention_mask=torch.ones_like(plain), **options)
    assert torch.equal(made, greedy(model, plain))
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in small.parameters())
    model.save_pretrained(folder / "twice")
    assert torch.equal(logits(load(folder / "twice"), plain), logits(model, plain))


@pytest.mark.parametrize(("name", "what"), CELLS)
def test_what_stock_cannot_say_loads_with_transformers(tmp_path, name, what):
    assert_laws(compressed(name, matrix.PASSES[what]), tmp_path)


@pytest.mark.parametrize(
    ("name", "what"),
    marked(
        [(n, w) for n in [*models.FAMILIES, "falcon_h1"] for w in UNEVEN | GONE],
        QUICK_UNEVEN,
    ),
)
def test_layers_of_their_own_sizes_and_layers_without_a_part_load_with_transformers(tmp_path, name, what):
    assert_laws(compressed(name, (UNEVEN | GONE)[what]), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "what"), sorted(GRAPH_ONLY))
def test_a_constant_within_a_function_of_the_class_is_named_and_refused(name, what):
    small = compressed(name, matrix.PASSES[what])
    with pytest.raises(NotExpressible, match=r"linear_attn has 0\.\d+ in aten\.mul\.Tensor there"):
        to_own(small.program, small.steps)


def test_a_program_cut_in_several_steps_loads_with_transformers(tmp_path):
    first = compressed("llama", PruneAxes(role="v_channel", size=12))
    again = fxcompress.apply(first, [PruneFFN(ratio=0.5, layers="*.1"), PruneAxes(role="v_channel", size=8)])
    assert_laws(again, tmp_path)


def test_a_process_that_only_imports_fxcompress_loads_it(tmp_path):
    small = compressed("mamba2", PruneSSMHeads(size=9))
    to_own(small.program, small.steps).save_pretrained(tmp_path / "out")
    ids = models.ids(1, 7)
    torch.save(logits(small, ids), tmp_path / "logits")
    code = (
        "import torch, fxcompress; from transformers import AutoConfig, AutoModelForCausalLM\n"
        f"print(AutoConfig.from_pretrained({str(tmp_path / 'out')!r}).num_heads)\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(tmp_path / 'out')!r}).eval()\n"
        f"wanted = torch.load({str(tmp_path / 'logits')!r})\n"
        f"print((model(torch.tensor({ids.tolist()})).logits - wanted).abs().max().item() < 1e-4)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.stdout.split()[-2:] == ["9", "True"], run.stderr[-800:]


def test_the_config_is_one_of_its_base_and_has_the_sizes_of_the_result():
    small = compressed("mamba2", PruneEmbedding(size=36))
    config = to_own(small.program, small.steps).config
    stock = type(models.config("mamba2"))
    assert isinstance(config, stock)
    assert (config.model_type, config.hidden_size, config.num_heads) == ("fxcompress", 36, 12)
    assert int(config.expand * config.hidden_size) == 96


def test_on_meta_the_config_is_found_without_weights():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(models.config("mamba2")).eval()
    small = fxcompress.apply(model, [PruneSSMHeads(size=9)])
    assert to_own(small.program, small.steps).config.num_heads == 9


def test_a_result_in_half_precision_keeps_its_constants_exact(tmp_path):
    model = models.tiny("gemma3").bfloat16()
    small = fxcompress.apply(model, [PruneEmbedding(ratio=0.25)], verify=False)
    to_own(small.program, small.steps).save_pretrained(tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").eval()
    assert again.dtype == torch.bfloat16
    ids = models.ids(2, 9)
    torch.testing.assert_close(logits(again, ids), logits(small, ids), rtol=0.02, atol=0.02)


# ---- a config of ours is data from a stranger ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "out"
    small = compressed("llama", PruneFFN(ratio=0.5, layers="*.1"))
    to_own(small.program, small.steps).save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


HOSTILE = {
    "a base that is unknown": ({"base": "no_such_type"}, "no model_type that this version of transformers knows"),
    "a base that is a module": ({"base": "os.path"}, "base: String should match"),
    "a base that is ours": ({"base": "fxcompress"}, "no model_type that"),
    "a base without a causal model": ({"base": "vit"}, "no causal language model of model_type 'vit'"),
    "no base": ({"base": None}, "base: Input should be a valid string"),
    "a path that is not there": ({"configs": {"model.layers.9.mlp": {"intermediate_size": 4}}}, "has no module"),
    "a path that is no path": ({"configs": {"__import__('os')": {"intermediate_size": 4}}}, "should match pattern"),
    "a field that is none": ({"configs": {"model.layers.1.mlp": {"colour": 4}}}, "'colour' of model.layers.1.mlp"),
    "a field that is no number": ({"configs": {"": {"hidden_act": 4}}}, "'hidden_act' of the model"),
    "a private field": ({"configs": {"": {"_attn_implementation": 4}}}, "should match pattern"),
    "a word for a size": ({"configs": {"": {"hidden_size": "48"}}}, "valid integer|valid number"),
    "a truth for a size": ({"configs": {"": {"hidden_size": True}}}, "valid integer|valid number"),
    "a size out of all bounds": ({"configs": {"": {"hidden_size": 1 << 60}}}, "less than or equal"),
    "a negative size": ({"arguments": {"model.layers.1.mlp.up_proj": {"out_features": -1}}}, "greater than or equal"),
    "a size that is not given": (
        {"arguments": {"model.layers.1.mlp.up_proj": {"colour": 1}}},
        "given no size 'colour'",
    ),
    "a vast tensor": ({"buffers": {"model.x": {"shape": [1 << 26, 4], "dtype": "float32"}}}, "larger than any"),
    "a key that is none": ({"code": "import os"}, "code: Extra inputs are not permitted"),
    "a constant that is none": ({"constants": {"model.layers.0.self_attn.forward": 1.0}}, "is no number that"),
    "a number that is none": ({"constants": {"model.layers.0.self_attn.scaling": "1"}}, "valid number"),
    "positions that are none": ({"narrow": {"model.layers.0.mlp.up_proj": {"reads": "0-x"}}}, "should match pattern"),
    "an unknown law": ({"absent": {"model.layers.0.mlp": {"law": "call"}}}, "'zero' or 'pass'"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_config_that_is_not_ours_is_refused_with_a_sentence(saved, what):
    planted, sentence = HOSTILE[what]
    values = {**saved, "fxcompress": {**saved["fxcompress"], **planted}}
    before = set(sys.modules)
    with pytest.raises(CompressError, match=sentence), torch.device("meta"):
        AutoModelForCausalLM.from_config(FxcompressConfig.from_dict(values))
    assert not {m for m in set(sys.modules) - before if not m.startswith(("transformers", "torch"))}


def test_a_config_without_our_field_is_refused():
    with pytest.raises(CompressError, match="the field 'fxcompress' of the config cannot be read"):
        FxcompressConfig.from_dict({"model_type": "fxcompress"})


def test_constructors_are_put_back_also_when_a_model_does_not_build():
    before = torch.nn.Linear.__init__
    with pytest.raises(TypeError), recording([torch.nn.Linear]):
        torch.nn.Linear("no size")
    assert torch.nn.Linear.__init__ is before
    assert "__init__" in vars(torch.nn.Linear)


def test_the_type_is_registered_without_any_modeling_code():
    code = (
        "import sys; from fxcompress.export.own.config import register; before = set(sys.modules); register();"
        "print(sorted(m for m in set(sys.modules) - before if '.modeling_' in m))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "[]", run.stderr[-500:]
