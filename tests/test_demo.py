"""What the demo's figures rest on: text that is split cleanly, a perplexity that is one, a folder that is spared.

The demo itself needs a model and a text that tests do not download; it is run by hand: tools/demo.
"""

import gzip
import json
import math
import runpy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

DEMO = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent.parent / "tools" / "demo.py"), run_name="demo"))


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, initializer_range=0.3))
    return model.eval()


def letters(text: str) -> dict[str, list[int]]:
    """A tokenizer: one token a character."""
    return {"input_ids": [ord(letter) for letter in text]}


def numbered(count: int) -> Iterator[str]:
    """Articles, each of a character of its own."""
    return (chr(1000 + i) * 10 for i in range(count))


def write_queries(path: Path, queries: list[str]) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"doc": {"query": query}}) + "\n" for query in queries)
    return path


@torch.no_grad()
def naive_nll(model: LlamaForCausalLM, window: torch.Tensor) -> list[float]:
    """-log p of each token, from a run on what lies before it alone."""
    return [
        -model(input_ids=window[None, :i]).logits[0, -1].log_softmax(-1)[window[i]].item()
        for i in range(1, len(window))
    ]


def test_perplexity_is_exp_of_the_mean_negative_log_likelihood(model: LlamaForCausalLM):
    windows = torch.randint(40, (3, 7))
    every = [nll for window in windows for nll in naive_nll(model, window)]
    assert DEMO.perplexity(model, windows) == pytest.approx(math.exp(sum(every) / len(every)), rel=1e-5)


def test_perplexity_of_a_model_that_knows_nothing_is_the_vocabulary():
    def uniform(input_ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 17))

    assert DEMO.perplexity(uniform, torch.randint(17, (2, 9))) == pytest.approx(17)


def test_calibration_and_held_out_text_share_no_article():
    articles = numbered(30)
    first, second = (set(DEMO.take_windows(articles, letters, 64, length=16).flatten().tolist()) for _ in range(2))
    assert first & second == {ord("\n")}


def test_windows_are_the_text_in_order_without_gaps():
    windows = DEMO.take_windows(iter(["abcdef", "ghij"]), letters, 12, length=4)
    assert windows.tolist() == [[*b"abcd"], [*b"ef\n\n"], [*b"ghij"]]


def test_article_comes_once_with_each_of_its_passages_once_and_no_question(tmp_path: Path):
    queries = [
        "Ice -- Cold.\nQuestion: is it?\nAnswer:",
        "Tea -- Hot -- or not.\nQuestion: is it?",
        "Ice -- Cold.\nQuestion: how?",
    ]
    queries.append("Ice -- Slippery.\nQuestion: is it?")
    assert list(DEMO.read_articles(write_queries(tmp_path / "q.gz", queries))) == [
        "Cold.\n\nSlippery.",
        "Hot -- or not.",
    ]


def test_chosen_layer_is_the_one_least_missed_and_the_model_keeps_all(model: LlamaForCausalLM):
    windows = torch.randint(40, (2, 8))
    with torch.no_grad():
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            model.model.layers[2].get_submodule(name).weight.zero_()  # this layer adds nothing
    layer, without = DEMO.choose_layer(model, windows, range(1, 4))
    assert layer == 2
    assert without[2] == pytest.approx(DEMO.perplexity(model, windows))
    assert len(model.model.layers) == 4


def test_in_another_dtype_the_model_is_a_copy(model: LlamaForCausalLM):
    assert DEMO.in_dtype(model, torch.bfloat16).dtype == torch.bfloat16
    assert model.dtype == torch.float32
    assert DEMO.in_dtype(model, torch.float32) is model


def test_folder_of_an_earlier_demo_makes_way(tmp_path: Path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "report.json").write_text(json.dumps({"notes": {"demo": {}}}))
    DEMO.clear(output)
    assert not output.exists()


@pytest.mark.parametrize("name", ["report.json", "thesis.txt"])
def test_folder_with_anything_else_is_spared(name: str, tmp_path: Path):
    (tmp_path / name).write_text('{"notes": {}}')
    with pytest.raises(SystemExit, match="move it away"):
        DEMO.clear(tmp_path)
    assert (tmp_path / name).exists()


@pytest.mark.parametrize("exists", [True, False])
def test_folder_may_be_empty_or_not_there(exists: bool, tmp_path: Path):
    output = tmp_path / "out"
    if exists:
        output.mkdir()
    DEMO.clear(output)
    assert not output.exists()
