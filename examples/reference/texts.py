"""A byte-pair tokenizer, a text as its tokens, and the windows of tokens that are trained on and judged."""

from __future__ import annotations

import functools
import lzma
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"  # between documents


def read(path: Path) -> str:
    """The text of a plain or .xz file."""
    with (lzma.open if path.suffix == ".xz" else open)(path, "rt", encoding="utf-8") as file:
        return file.read()


def train_tokenizer(text: str, vocabulary: int) -> Tokenizer:
    """Byte-level byte pairs: any text is tokens, and tokens are the text again.

    Sennrich et al., arXiv 1508.07909; on bytes: Radford et al., Language Models are Unsupervised Multitask Learners.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(text.split(END), trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, length: int) -> None:
    """In the form of transformers, for models of so many tokens at most."""
    options = {"bos_token": END, "eos_token": END, "pad_token": END, "model_max_length": length}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options).save_pretrained(folder)


def encode(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """All of a text as one row of tokens, uint16."""
    end = tokenizer.token_to_id(END)
    documents = tokenizer.encode_batch_fast(text.split(END))
    rows = [np.array([*document.ids, end], dtype=np.uint16) for document in documents]
    return np.concatenate(rows)[:-1]


def byte_counts(tokenizer: Tokenizer) -> Tensor:
    """(vocabulary): how many bytes of text each token stands for. A byte-level token is written as a letter a byte."""
    return torch.tensor([len(tokenizer.id_to_token(i)) for i in range(tokenizer.get_vocab_size())])


def batch(tokens: np.ndarray, step: int, rows: int, length: int) -> Tensor:
    """(rows, length + 1): the windows of a training step, which follow from the step alone.

    An epoch takes every window once, in an order and from an offset of its own; a window ends with the token that the
    next one begins with, so that every token is predicted.
    """
    windows = len(tokens) // length - 1  # of any offset below the length
    starts = []
    for index in range(step * rows, (step + 1) * rows):
        epoch, position = divmod(index, windows)
        order, offset = _shuffled(windows, length, epoch)
        starts.append(offset + length * int(order[position]))
    return _at(tokens, starts, length)


def held_out(tokens: np.ndarray, length: int, rows: int, part: int = 1) -> list[Tensor]:
    """Batches (rows, length + 1) of every ``part``-th window of a text, from its beginning to its end."""
    starts = list(range(0, len(tokens) - length, length * part))
    return [_at(tokens, starts[i : i + rows], length) for i in range(0, len(starts), rows)]


@functools.lru_cache(maxsize=2)  # a step may reach into the next epoch
def _shuffled(windows: int, length: int, epoch: int) -> tuple[np.ndarray, int]:
    draw = np.random.default_rng(epoch)
    return draw.permutation(windows), int(draw.integers(length))


def _at(tokens: np.ndarray, starts: list[int], length: int) -> Tensor:
    return torch.from_numpy(np.stack([tokens[start : start + length + 1] for start in starts]).astype(np.int64))
