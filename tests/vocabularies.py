"""Tokenizers of every model type, trained on a page of text, with special tokens, post-processors and chat template."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "The lighthouse keeper lit the lamp at dusk, and the light went round and round over the water.",
    "Nobody knew whether the keepers of the lighthouses had ever been lonely; nobody had ever asked.",
    "In 1911 the tower was 47 metres high, in 1912 it was 48, and by 1913 no one measured it any more.",
    "“Où est le phare?” asked the naïve traveller. — “Là-bas,” said the fisherman, “près de l'île.”",
    "def light(lamp, rounds=3):\n    for turn in range(rounds):\n        lamp.turn(turn)\n    return lamp",
    "Über den Wässern kreiste das Licht, und über das Licht kreisten die Möwen: 灯台 🌊 и маяк.",
    "Unlit, unlighted, enlightened, lightest, delighted: the words went round like the light.",
    "The waters rose; the keeper's daughter, who had counted the waves, counted them once more.",
]
CHAT = "{% for m in messages %}{{ '<s>' + m['role'] + ': ' + m['content'] + '</s>' }}{% endfor %}"
MESSAGES = [{"role": "user", "content": TEXTS[0]}, {"role": "assistant", "content": "Round and round."}]

_SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_METASPACE = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])


@functools.cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer that nobody changes."""
    return fast(KINDS[kind]())


def fast(backend: Tokenizer) -> PreTrainedTokenizerFast:
    """As transformers holds it, with a token of the user's own after the vocabulary."""
    backend.add_tokens([AddedToken("<|lamp|>", special=True), AddedToken("[shore]", normalized=False)])
    names = dict(zip(("unk_token", "bos_token", "eos_token", "pad_token"), _SPECIAL, strict=True))
    out = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **names)
    out.chat_template = CHAT
    return out


def _trained(backend: Tokenizer, trainer: Any) -> Tokenizer:
    """With the special tokens last, where renumbering moves them; trainers put them first."""
    backend.train_from_iterator(TEXTS, trainer)
    spec = json.loads(backend.to_str())
    model, first = spec["model"], len(_SPECIAL)
    if isinstance(model["vocab"], list):
        model["vocab"] = model["vocab"][first:] + model["vocab"][:first]
        model["unk_id"] = len(model["vocab"]) - first
    else:
        model["vocab"] = {token: (i - first) % len(model["vocab"]) for token, i in model["vocab"].items()}
    for token in spec["added_tokens"]:
        token["id"] = (token["id"] - first) % len(model["vocab"])
    return Tokenizer.from_str(json.dumps(spec))


def _ends(backend: Tokenizer) -> list[tuple[str, int]]:
    return [(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]


def _template(backend: Tokenizer, *before: Any) -> Tokenizer:
    template = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> $B </s>", _ends(backend))
    backend.post_processor = processors.Sequence([*before, template]) if before else template
    return backend


def bytes_() -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=480, special_tokens=_SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    return _template(_trained(backend, trainer), processors.ByteLevel(trim_offsets=False))


def whole_words() -> Tokenizer:
    """Byte-level, with a word that no merges lead to and that is taken whole."""
    backend = bytes_()
    model = _model(backend)
    model["vocab"]["Ġdaughter"] = len(model["vocab"])
    backend.model = models.BPE(model["vocab"], _pairs(model), ignore_merges=True)
    return backend


def fallback() -> Tokenizer:
    """Characters that fall back to bytes, as SentencePiece has them."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    backend.decoder = _METASPACE
    special = [*_SPECIAL, *_BYTES]
    backend = _trained(backend, trainers.BpeTrainer(vocab_size=520, special_tokens=special, show_progress=False))
    model = _model(backend)
    bare = Tokenizer(
        models.BPE(model["vocab"], _pairs(model), unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )  # where the bytes are no special tokens
    bare.pre_tokenizer, bare.decoder = backend.pre_tokenizer, _METASPACE
    bare.add_special_tokens(_SPECIAL)
    return _template(bare)


def characters() -> Tokenizer:
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _trained(backend, trainers.BpeTrainer(vocab_size=200, special_tokens=_SPECIAL, show_progress=False))


def suffixes() -> Tokenizer:
    backend = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Whitespace(), decoders.BPEDecoder("</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=220, special_tokens=_SPECIAL, end_of_word_suffix="</w>", show_progress=False
    )
    return _trained(backend, trainer)


def prefixes() -> Tokenizer:
    backend = Tokenizer(models.BPE(unk_token="<unk>", continuing_subword_prefix="##"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece("##")
    trainer = trainers.BpeTrainer(
        vocab_size=220, special_tokens=_SPECIAL, continuing_subword_prefix="##", show_progress=False
    )
    return _trained(backend, trainer)


def unigram() -> Tokenizer:
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=260, special_tokens=_SPECIAL, unk_token="<unk>", show_progress=False, max_piece_length=8
    )
    return _template(_trained(backend, trainer))


def unigram_bytes() -> Tokenizer:
    backend = unigram()
    vocab = _model(backend)["vocab"]
    entries = [*map(tuple, vocab), *((byte, 0.0) for byte in _BYTES)]
    backend.model = models.Unigram(entries, unk_id=backend.token_to_id("<unk>"), byte_fallback=True)
    backend.decoder = _METASPACE
    return backend


def wordpiece() -> Tokenizer:
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=_SPECIAL, show_progress=False)
    backend = _trained(backend, trainer)
    backend.post_processor = processors.BertProcessing(*reversed(_ends(backend)))
    return backend


def wordlevel() -> Tokenizer:
    backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend = _trained(backend, trainers.WordLevelTrainer(special_tokens=_SPECIAL, show_progress=False))
    backend.post_processor = processors.RobertaProcessing(*reversed(_ends(backend)))
    backend.enable_padding(pad_id=backend.token_to_id("<pad>"), pad_token="<pad>")
    return backend


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "bytes": bytes_,
    "whole_words": whole_words,
    "fallback": fallback,
    "characters": characters,
    "suffixes": suffixes,
    "prefixes": prefixes,
    "unigram": unigram,
    "unigram_bytes": unigram_bytes,
    "wordpiece": wordpiece,
    "wordlevel": wordlevel,
}
SPELL_EVERYTHING = ("bytes", "whole_words", "fallback", "unigram_bytes")


def _model(backend: Tokenizer) -> dict[str, Any]:
    return json.loads(backend.to_str())["model"]


def _pairs(model: dict[str, Any]) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in model["merges"]]
