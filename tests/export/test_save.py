"""What was saved is what was in memory: for fxcompress always, for stock transformers whenever a config can say it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import fxcompress
from fxcompress import CompressError, NotExpressible
from fxcompress.passes import (
    PruneAttentionHeads,
    PruneAxes,
    PruneEmbedding,
    PruneFFN,
    PruneSSMChannels,
    PruneSSMHeads,
    RemoveLayers,
)
from tests import models, plain

STOCK = [
    ("llama", [PruneFFN(ratio=0.25)], {"intermediate_size": 60}),
    ("llama", [PruneAttentionHeads(size=4)], {"num_attention_heads": 4, "head_dim": 8}),
    (
        "llama",
        [PruneAttentionHeads(size=1, kv=True)],
        {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 8},
    ),
    ("llama", [PruneEmbedding(size=36)], {"hidden_size": 36, "head_dim": 8}),
    ("llama", [RemoveLayers(layers=(1,))], {"num_hidden_layers": 2}),
    ("qwen3", [PruneEmbedding(size=40), PruneFFN(size=70), RemoveLayers(layers=(0, 2))], {"num_hidden_layers": 1}),
    ("mamba", [PruneSSMChannels(size=48)], {"intermediate_size": 48}),
    ("mamba", [PruneAxes(role="ssm_state", size=5)], {"state_size": 5}),
    ("mamba2", [PruneSSMHeads(size=6)], {"num_heads": 6, "expand": 1}),
    ("mamba2", [RemoveLayers(layers=(0,))], {"num_hidden_layers": 2}),
    ("nemotron_h", [PruneSSMHeads(size=9)], {"mamba_num_heads": 9}),
    ("nemotron_h", [PruneSSMChannels(size=12 * 7)], {"mamba_head_dim": 7}),
    ("nemotron_h", [RemoveLayers(layers=(1, 2))], {"layers_block_type": ["linear_attention", "full_attention", "mlp"]}),
    ("bamba", [RemoveLayers(layers=(0,))], {"num_hidden_layers": 2, "attn_layer_indices": [0]}),
    (  # its KV heads have no weights of their own: no shape tells their number
        "deepseek_v3",
        [PruneAttentionHeads(size=4)],
        {"num_attention_heads": 4, "num_key_value_heads": 4},
    ),
    ("nemotron_h_moe", [PruneFFN(size=30)], {"moe_shared_expert_intermediate_size": 30}),
    ("nemotron_h_moe", [PruneAxes(role="expert_neuron", size=5 * 16)], {"moe_intermediate_size": 16}),
]
OURS = [
    ("mamba2", [PruneSSMHeads(size=9)]),  # 48 * expand is never 9 * 8 for a whole expand
    ("mamba2", [PruneEmbedding(size=36)]),
    ("llama", [PruneFFN(size=60, layers="*.layers.1")]),  # one layer narrower than the others
    ("llama", [PruneAxes(role="v_channel", size=12), RemoveLayers(layers=(0,))]),
    ("qwen3", [PruneAxes(role="qk_channel", size=3)]),
    ("nemotron_h_moe", [PruneAxes(role="expert_neuron", size=15)]),  # its class multiplies in multiples of 16 bytes
]


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize(("name", "passes", "fields"), STOCK, ids=lambda v: v if isinstance(v, str) else "")
def test_stock_transformers_loads_what_its_config_can_say(name, passes, fields, tmp_path):
    small = fxcompress.apply(models.captured(name, torch.float32), passes)
    out = small.save_pretrained(tmp_path / "out")
    assert {k: json.loads((out / "config.json").read_text())[k] for k in fields} == fields
    stock, notes = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not notes["missing_keys"]
    assert not notes["unexpected_keys"]
    assert type(stock).__name__ == type(models.tiny(name)).__name__
    ids = models.ids(2, 11)
    torch.testing.assert_close(logits(stock.eval(), ids), logits(small, ids), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(fxcompress.load(out), ids), logits(small, ids))


@pytest.mark.parametrize(("name", "passes"), OURS, ids=lambda v: v if isinstance(v, str) else "")
def test_what_no_config_of_the_class_says_has_a_model_type_of_ours(name, passes, tmp_path):
    small = fxcompress.apply(models.captured(name, torch.float32), passes)
    with pytest.raises(NotExpressible):
        small.to_transformers()
    out = small.save_pretrained(tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["model_type"] == "fxcompress"
    again = fxcompress.load(out)
    ids = models.ids(3, 9)
    ordinary = AutoModelForCausalLM.from_pretrained(out).eval()
    torch.testing.assert_close(logits(ordinary, ids), logits(small, ids), rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(again, ids), logits(small, ids))
    assert {k: v.shape for k, v in again.program.state.items()} == {k: v.shape for k, v in small.program.state.items()}


def test_a_result_can_be_compressed_again_after_loading(tmp_path):
    first = fxcompress.apply(models.captured("mamba2", torch.float32), [PruneSSMHeads(size=9)]).save_pretrained(
        tmp_path / "first"
    )
    second = fxcompress.apply(fxcompress.load(first), [PruneSSMHeads(size=6), RemoveLayers(layers=(1,))])
    out = second.save_pretrained(tmp_path / "second")
    ids = models.ids(2, 7)
    torch.testing.assert_close(logits(fxcompress.load(out), ids), logits(second, ids))
    assert len(second.report.passes) == 3


def test_a_result_in_half_precision_is_captured_with_its_own_casts(tmp_path):
    """Captured in float32, the graph would compute norms and decays in another precision than it did."""
    model = models.tiny("nemotron_h_moe").bfloat16()
    small = fxcompress.apply(model, [PruneSSMHeads(size=9), RemoveLayers(layers=(0,))])
    out = small.save_pretrained(tmp_path / "out")
    assert json.loads((out / "fxcompress.json").read_text())["loads_with"] == "fxcompress"
    ids = models.ids(2, 7)
    assert torch.equal(logits(fxcompress.load(out), ids), logits(small, ids))


def test_generation_with_a_cache_equals_greedy_search_without_one():
    small = fxcompress.apply(
        models.captured("nemotron_h", torch.float32), [PruneSSMHeads(size=9), PruneFFN(ratio=0.25)]
    )
    ids = models.ids(1, 6)
    made = small.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, eos_token_id=None
    )
    for _ in range(5):
        ids = torch.cat([ids, logits(small, ids)[:, -1:].argmax(-1)], 1)
    assert torch.equal(made, ids)


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path):
    small = fxcompress.apply(models.captured("llama", torch.float32), [PruneEmbedding(size=36)])
    out = small.save_pretrained(tmp_path / "out")
    assert "lm_head.weight" not in load_file(out / "model.safetensors")
    stock = AutoModelForCausalLM.from_pretrained(out)
    assert stock.lm_head.weight is stock.model.embed_tokens.weight


def test_the_generation_config_and_the_tokenizer_come_along(tmp_path):
    model = models.tiny("llama")
    model.generation_config.max_new_tokens = 77
    source = tmp_path / "source"
    source.mkdir()
    (source / "tokenizer.json").write_text("{}")
    out = fxcompress.apply(model, [PruneFFN(ratio=0.25)]).save_pretrained(tmp_path / "out", source=source)
    assert json.loads((out / "generation_config.json").read_text())["max_new_tokens"] == 77
    assert (out / "tokenizer.json").read_text() == "{}"


def test_a_saved_model_holds_no_pickle_and_says_versions_hashes_and_plan(tmp_path):
    out = fxcompress.apply(models.captured("mamba2", torch.float32), [PruneSSMHeads(size=9)]).save_pretrained(
        tmp_path / "out"
    )
    assert {f.suffix for f in out.iterdir()} <= {".json", ".safetensors", ".html", ".txt"}
    manifest = json.loads((out / "fxcompress.json").read_text())
    assert manifest["steps"][0]["pass"] == "PruneSSMHeads"
    assert set(manifest["versions"]) == {"fxcompress", "torch", "transformers", "python"}
    assert manifest["report"]["reload_error"] < 1e-6
    assert "Mamba2ForCausalLM" in manifest["why_not_transformers"]


def test_a_plain_module_is_loaded_into_the_module_it_came_from(tmp_path):
    model = models.perturb(plain.ResNet()).eval()
    image = torch.randn(2, 3, 16, 16)
    small = fxcompress.apply(model, [PruneAxes(groups="*conv1*", ratio=0.5)], example_inputs=image)
    out = small.save_pretrained(tmp_path / "out")
    again = fxcompress.load(out, plain.ResNet().eval(), image)
    with torch.no_grad():
        assert torch.equal(again(image), small(image))
    with pytest.raises(CompressError, match="pass model="):
        fxcompress.load(out)


# ---- files that are not what they should be --------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    return fxcompress.apply(models.captured("mamba2", torch.float32), [PruneSSMHeads(size=9)]).save_pretrained(
        tmp_path / "out"
    )


def test_a_changed_weight_file_is_refused(saved):
    tensors = load_file(saved / "model.safetensors")
    tensors["backbone.norm_f.weight"] += 1
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(CompressError, match="its hash differs"):
        fxcompress.load(saved)


def test_a_missing_weight_file_is_refused(saved):
    (saved / "model.safetensors").unlink()
    with pytest.raises(CompressError, match="is missing"):
        fxcompress.load(saved)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}', "not json"])
def test_a_broken_manifest_is_refused(saved, text):
    (saved / "fxcompress.json").write_text(text)
    with pytest.raises(CompressError):
        fxcompress.load(saved)


def test_a_directory_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(CompressError, match="not a result of fxcompress"):
        fxcompress.load(tmp_path)


def test_a_class_that_transformers_does_not_have_is_not_imported(saved):
    manifest = json.loads((saved / "fxcompress.json").read_text())
    manifest["base"]["class"] = "os.system"
    (saved / "fxcompress.json").write_text(json.dumps(manifest))
    with pytest.raises(CompressError, match=r"manifest\.base\.class=os\.system: it should be the name of a class"):
        fxcompress.load(saved)


def test_an_output_that_is_not_empty_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    small = fxcompress.apply(models.captured("llama", torch.float32), [PruneFFN(ratio=0.25)])
    with pytest.raises(CompressError, match="not an empty directory"):
        small.save_pretrained(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["mine.txt"]


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    from fxcompress.export import files

    small = fxcompress.apply(models.captured("llama", torch.float32), [PruneFFN(ratio=0.25)])
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CompressError, match="MB are free"):
        small.save_pretrained(tmp_path / "out")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_while_saving_leaves_nothing_behind(tmp_path, monkeypatch, error):
    from fxcompress.export import save as saving

    small = fxcompress.apply(models.captured("llama", torch.float32), [PruneFFN(ratio=0.25)])

    def interrupted(*_):
        raise error

    monkeypatch.setattr(saving.Result, "_reload_error", interrupted)
    with pytest.raises(error):
        small.save_pretrained(tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_a_model_captured_with_ids_alone_is_saved_and_compared(tmp_path):
    model = models.tiny("llama")
    small = fxcompress.apply(model, [PruneFFN(size=60)], example_inputs={"input_ids": models.ids(2, 9)})
    small.save_pretrained(tmp_path / "out")
    assert small.report.reload_error is not None
    assert small.report.reload_error < 1e-6


def test_a_model_captured_with_other_inputs_is_not_saved_and_told_why(tmp_path):
    model = models.tiny("llama")
    small = fxcompress.apply(model, [PruneFFN(size=60)], example_inputs={"inputs_embeds": torch.randn(2, 9, 48)})
    with pytest.raises(CompressError, match="inputs_embeds"):
        small.save_pretrained(tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_a_dry_run_is_not_saved(tmp_path):
    with torch.device("meta"):
        model = type(models.tiny("llama"))(models.config("llama")).eval()
    small = fxcompress.apply(model, [PruneFFN(ratio=0.25)])
    with pytest.raises(CompressError, match="dry run"):
        small.save_pretrained(tmp_path / "out")
    assert small.to_transformers().config.intermediate_size == 60
