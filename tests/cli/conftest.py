"""Checkpoints on disk, a way to run the command line, and a look at what was left behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from typer.testing import CliRunner, Result

from fxcompress.cli import app
from tests import models

Run = Callable[..., Result]


def shallow(name: str) -> PreTrainedModel:
    """The tiny model of a family with two layers: each costs half a second a capture."""
    config = models.config(name)
    config.num_hidden_layers = 2
    return models.perturb(AutoModelForCausalLM.from_config(config).eval())


@pytest.fixture(scope="session")
def run() -> Run:
    """``run("inspect", folder)``: stdout, stderr and exit code apart; a traceback is a failure."""

    def invoke(*arguments: object) -> Result:
        result = CliRunner(env={"COLUMNS": "200"}).invoke(app, list(map(str, arguments)))
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return invoke


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The checkpoint of a tiny model, with a tokenizer of one word an id; written once and never to be changed."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def save(name: str) -> Path:
        if not (folder / name).exists():
            shallow(name).save_pretrained(folder / name)
            words = Tokenizer(WordLevel({f"w{i}": i for i in range(96)}, unk_token="w0"))
            words.pre_tokenizer = Whitespace()
            PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder / name)
        return folder / name

    return save


@pytest.fixture
def copied(saved: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A checkpoint of one's own, to break."""
    return lambda name: shutil.copytree(saved(name), tmp_path / name)


@pytest.fixture(scope="session")
def small(saved: Callable[[str], Path], run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of one compression, which several tests look at."""
    return _compressed(run, saved("llama"), tmp_path_factory.mktemp("small") / "out", "PruneFFN(ratio=0.25)")


@pytest.fixture(scope="session")
def heads(saved: Callable[[str], Path], run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result that no config of transformers can say."""
    return _compressed(run, saved("mamba2"), tmp_path_factory.mktemp("heads") / "out", "PruneSSMHeads(ratio=0.25)")


def _compressed(run: Run, model: Path, out: Path, what: str) -> Path:
    result = run("compress", model, "-o", out, "--pass", what)
    assert result.exit_code == 0, result.output
    (out / "stdout").write_text(result.stdout)
    return out
