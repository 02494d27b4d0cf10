"""Removing tokens: rows of embedding and head go, ids are renumbered, and config and tokenizer follow."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import fxcompress
from fxcompress import CompressError
from fxcompress.cli import app
from fxcompress.passes import PruneFFN, PruneVocabulary
from tests import models
from tests.vocabularies import TEXTS as CORPUS
from tests.vocabularies import tokenizer as trained

KEPT = (0, 1, 2, *range(5, 96, 3))


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "mamba2", "nemotron_h_moe", "gemma2"])
def test_the_result_gives_the_original_logits_of_the_kept_tokens(name):
    """Tied (llama, gpt2, gemma2) or not, with logits capped or not."""
    program = models.captured(name)
    small = fxcompress.apply(program, [PruneVocabulary(tokens=KEPT)])
    new = torch.randint(0, len(KEPT), (2, 9), generator=torch.Generator().manual_seed(0))
    old = torch.tensor(KEPT)[new]
    with torch.no_grad():
        expected = program(old).logits[..., list(KEPT)]
        torch.testing.assert_close(small(new).logits, expected, rtol=0, atol=1e-12)
    laws = {law["name"]: law["error"] for law in small.report.passes[0]["laws"]}
    assert max(laws.values()) <= 1e-9
    assert laws.keys() >= {"prune equals mask", "permutation"}


def test_tied_embeddings_stay_tied_and_untied_ones_are_cut_alike():
    tied = fxcompress.apply(models.captured("llama"), [PruneVocabulary(tokens=KEPT)])
    assert tied.program.names["model.embed_tokens.weight"] == ("model.embed_tokens.weight", "lm_head.weight")
    untied = fxcompress.apply(models.captured("qwen3"), [PruneVocabulary(tokens=KEPT)]).program.state
    assert untied["model.embed_tokens.weight"].shape[0] == untied["lm_head.weight"].shape[0] == len(KEPT)


def test_a_second_cut_counts_in_the_numbering_of_the_first():
    small = fxcompress.apply(models.captured("llama"), [PruneVocabulary(tokens=KEPT)])
    smaller = fxcompress.apply(small, [PruneVocabulary(tokens=(0, 1, 2, 10, 11))])
    assert smaller.program.numbering["input_ids"].tolist() == [KEPT[i] for i in (0, 1, 2, 10, 11)]


@pytest.mark.parametrize(
    ("name", "tokens", "said"),
    [
        ("llama", (1, 2, 7), "pad_token_id is 0, but the token 0 is left out of the vocabulary"),
        ("llama", (0, 1, 7), "eos_token_id is 2"),
        ("llama", (0, 1, 2, 96), "token 96 is none of the 96"),
    ],
)
def test_what_cannot_be_a_vocabulary_is_refused(name, tokens, said):
    with pytest.raises(CompressError) as refusal:
        fxcompress.apply(models.captured(name), [PruneVocabulary(tokens=tokens)])
    assert said in str(refusal.value)


@pytest.mark.parametrize("options", [{}, {"tokens": (-1, 2)}, {"tokens": (1,), "corpus": "text.txt"}])
def test_no_tokens_or_strange_ones_are_refused_when_the_pass_is_made(options):
    with pytest.raises(CompressError, match="needs tokens="):
        PruneVocabulary(**options)


def test_a_corpus_needs_the_tokenizer_beside_the_model():
    with pytest.raises(CompressError, match="the tokenizer that lies beside a model"):
        fxcompress.apply(models.captured("llama"), [PruneVocabulary(corpus="text.txt")])


def test_other_passes_do_not_cut_a_border():
    with pytest.raises(CompressError, match=r"is pinned, it is a dim of the model's output.*PruneVocabulary"):
        fxcompress.apply(models.captured("llama"), [fxcompress.passes.PruneAxes(role="vocabulary", ratio=0.5)])


@pytest.fixture
def checkpoint(tmp_path):
    """A tiny model beside a real tokenizer, as a checkpoint."""
    tokenizer = trained("bytes")
    config = models.config("llama")
    config.vocab_size = len(tokenizer)
    torch.manual_seed(0)
    models.perturb(AutoModelForCausalLM.from_config(config)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("also", [[], [PruneFFN(ratio=0.25, layers="*.0")]], ids=["stock", "ours"])
def test_model_tokenizer_and_config_are_saved_in_the_new_numbering(tmp_path, checkpoint, also):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    p = PruneVocabulary.used_by(tokenizer, CORPUS[:2])
    p = PruneVocabulary(tokens=(*p.tokens, 0, 1, 2))  # the special tokens of the config
    small = fxcompress.apply(model, [p, *also])
    out = small.save_pretrained(tmp_path / "out")
    new = AutoTokenizer.from_pretrained(out)
    assert len(new) == len(p.tokens) < len(tokenizer)
    text = CORPUS[0]
    old_ids, new_ids = tokenizer(text)["input_ids"], new(text)["input_ids"]
    assert [p.tokens[i] for i in new_ids] == old_ids
    again = fxcompress.load(out)
    with torch.no_grad():
        expected = small(torch.tensor([new_ids])).logits
        torch.testing.assert_close(again(torch.tensor([new_ids])).logits, expected)
    stock = not also
    assert json.loads((out / "fxcompress.json").read_text())["loads_with"] == (
        "transformers" if stock else "fxcompress"
    )
    if stock:
        assert AutoModelForCausalLM.from_pretrained(out).config.vocab_size == len(p.tokens)


def test_a_saved_result_cut_again_is_saved_with_its_tokenizer_cut_again(tmp_path, checkpoint):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    p = PruneVocabulary(tokens=(*PruneVocabulary.used_by(tokenizer, CORPUS[:3]).tokens, 0, 1, 2))
    first = fxcompress.apply(model, [p, PruneFFN(ratio=0.25, layers="*.0")]).save_pretrained(tmp_path / "first")
    middle = AutoTokenizer.from_pretrained(first)
    q = PruneVocabulary(tokens=(*PruneVocabulary.used_by(middle, CORPUS[:1]).tokens, 0, 1, 2))
    second = fxcompress.apply(fxcompress.load(first), [q]).save_pretrained(tmp_path / "second", source=first)
    last = AutoTokenizer.from_pretrained(second)
    ids = last(CORPUS[0])["input_ids"]
    assert [p.tokens[q.tokens[i]] for i in ids] == tokenizer(CORPUS[0])["input_ids"]
    assert len(last) == len(q.tokens)


def test_from_the_shell_a_corpus_says_which_tokens_stay(tmp_path, checkpoint):
    (tmp_path / "text.txt").write_text(CORPUS[0] + "\n")
    p = f"PruneVocabulary(corpus='{tmp_path / 'text.txt'}')"
    result = CliRunner().invoke(app, ["compress", str(checkpoint), "-o", str(tmp_path / "out"), "--pass", p])
    assert result.exit_code == 0, result.output
    tokenizer, new = AutoTokenizer.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(new) < len(tokenizer)
    assert new.convert_ids_to_tokens(new(CORPUS[0])["input_ids"]) == tokenizer.convert_ids_to_tokens(
        tokenizer(CORPUS[0])["input_ids"]
    )


def test_calibration_keeps_the_ids_that_it_was_given():
    """A pass after the vocabulary's scores the same activations as one before it."""
    ids = torch.tensor(KEPT)[torch.randint(0, len(KEPT), (4, 9), generator=torch.Generator().manual_seed(1))]
    tokens, neurons = PruneVocabulary(tokens=KEPT), PruneFFN(size=50, score="activation")
    one = fxcompress.apply(models.captured("llama"), [tokens, neurons], calibration=ids)
    other = fxcompress.apply(models.captured("llama"), [neurons, tokens], calibration=ids)
    assert {k: v.tolist() for k, v in one.steps[1].keep.items()} == {
        k: v.tolist() for k, v in other.steps[0].keep.items()
    }


def test_statistics_are_of_the_original_so_that_calibration_may_hold_tokens_that_go():
    passes = [PruneVocabulary(tokens=KEPT), PruneFFN(size=50, score="activation")]
    ids = models.ids(3, 11)
    assert not set(ids.flatten().tolist()) <= set(KEPT)
    one = fxcompress.apply(models.captured("llama"), passes, calibration=ids)
    alone = fxcompress.apply(models.captured("llama"), passes[1:], calibration=ids)
    assert one.steps[1].to_json()["keep"] == alone.steps[0].to_json()["keep"]


def test_calibration_is_not_asked_about_tokens_that_no_later_pass_reads():
    passes = [PruneFFN(size=50, score="activation"), PruneVocabulary(tokens=KEPT)]
    small = fxcompress.apply(models.captured("llama"), passes, calibration=torch.full((2, 5), 3))
    assert len(small.steps) == 2


class TwoTables(nn.Module):
    """Users and items, each with a table of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(50, 6), nn.Embedding(30, 6)

    def forward(self, user, item):
        return (self.users(user) * self.items(item)).sum(-1)


def test_tables_that_different_inputs_address_are_not_cut_by_one_list_of_ids():
    inputs = (torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(CompressError, match="are addressed by different inputs"):
        fxcompress.apply(TwoTables().eval(), [PruneVocabulary(tokens=(1, 2))], example_inputs=inputs)


def test_a_token_that_generation_needs_is_not_left_out():
    model = models.tiny("llama")
    model.generation_config.eos_token_id = [2, 40]
    with pytest.raises(CompressError, match="the token 40 is left out"):
        fxcompress.apply(model, [PruneVocabulary(tokens=KEPT)])
