"""Which token ids may go: those that no text of the user's needs and without which the tokenizer still works.

    old ids of a text, all kept        ->        the new tokenizer gives the same tokens, renumbered

That holds for every such text once the kept ids are *closed*, because then each algorithm takes the steps it took:

    BPE        merges the pair of lowest rank, again and again: the merges on the way to a kept token stay, and a subset
               of merges cannot offer a lower rank than the one that was taken
    Unigram    takes the best path: the old one is still there, others only lose; unknown characters cost the lowest
               score less ten, so a token of lowest score stays
    WordPiece  takes the longest piece: the longest is kept, others only go (a word that was unknown because its longest
               pieces led nowhere may be spelled in kept pieces)
    WordLevel  looks words up

Special and added tokens always stay, and so does what any text can be spelled with: the letters of a BPE, or the bytes
that unknown characters fall back to. Ids are those of tokens: a model may have more rows than its tokenizer has ids
(padding to a multiple of 64), but no text uses these rows, ``closed`` never adds them, and an id without a token is
refused. Who wants rows of padding again puts them after the kept ones.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

from torch import Tensor

from fxcompress.errors import CompressError


def used_tokens(tokenizer: Any, corpus: Any) -> list[int]:
    """The ids that a corpus uses, ascending."""
    return sorted(count_tokens(tokenizer, corpus))


def count_tokens(tokenizer: Any, corpus: Any) -> Counter[int]:
    """How often a corpus uses each id. A corpus is a text, ids (a tensor, or a batch with ``input_ids``) or many."""
    return Counter(_ids_of(tokenizer, corpus))


def _ids_of(tokenizer: Any, corpus: Any) -> Iterator[int]:
    match corpus:
        case str():
            yield from tokenizer(corpus, add_special_tokens=False, verbose=False)["input_ids"]
        case Tensor():
            yield from corpus.flatten().tolist()
        case Mapping():
            yield from _ids_of(tokenizer, corpus["input_ids"])
        case int():
            yield corpus
        case _:
            for part in corpus:
                yield from _ids_of(tokenizer, part)


def closed(tokenizer: Any, ids: Iterable[int]) -> list[int]:
    """The given ids and those that a working tokenizer needs with them, ascending: the new id is the place here."""
    spec, chosen = spec_of(tokenizer), {int(i) for i in ids}
    require_tokens(spec, chosen)
    return sorted(chosen | needed(spec, chosen).keys())


def new_ids(kept: Iterable[int]) -> dict[int, int]:
    """New id by old id. Raises CompressError unless the kept ids ascend: the new ones are in the order of the old."""
    order = [int(i) for i in kept]
    for a, b in pairwise(order):
        if b <= a:
            raise CompressError(f"the kept ids name {b} {'twice' if a == b else f'after {a}'}; each once, ascending")
    return {old: new for new, old in enumerate(order)}


def spec_of(tokenizer: Any) -> dict[str, Any]:
    """What a fast tokenizer does, as its library writes it down."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise CompressError(f"{type(tokenizer).__name__} is not a fast tokenizer: it has no tokenizer.json to rewrite")
    spec = json.loads(backend.to_str())
    require_model(spec["model"]["type"])
    return spec


def require_model(kind: Any) -> None:
    """Raise CompressError for an algorithm of which it is not known what it needs."""
    if kind not in _MODELS:
        raise CompressError(f"tokenizer.json has a model of the type {kind!r}; known are {', '.join(_MODELS)}")


_MODELS = ("BPE", "Unigram", "WordPiece", "WordLevel")


def vocabulary(spec: Mapping[str, Any]) -> dict[str, int]:
    """Every token's id, of the model and of what was added to it."""
    return model_vocabulary(spec["model"]) | {token["content"]: token["id"] for token in spec["added_tokens"]}


def model_vocabulary(model: Mapping[str, Any]) -> dict[str, int]:
    listed = model["vocab"]
    return listed if isinstance(listed, dict) else {token: i for i, (token, _) in enumerate(listed)}


def require_tokens(spec: Mapping[str, Any], ids: Iterable[int]) -> None:
    """Raise CompressError for an id that stands for no token."""
    known = set(vocabulary(spec).values())
    strange = sorted(set(ids) - known)
    if strange:
        raise CompressError(
            f"the id {strange[0]} is no token of the tokenizer, whose {len(known)} ids go up to {max(known)}"
        )


def needed(spec: Mapping[str, Any], ids: Iterable[int]) -> dict[int, str]:
    """The ids that a tokenizer with these ids cannot do without, each with what it is needed for."""
    token_of = {i: token for token, i in vocabulary(spec).items()}
    tokens = [token_of[i] for i in ids]
    reasons = {token["id"]: "a special or added token" for token in spec["added_tokens"]}
    for place, key in places_of_ids(spec):
        reasons.setdefault(place[key], "named in tokenizer.json")
    ours = model_vocabulary(spec["model"])
    for token, why in [*_needed_by_model(spec["model"], tokens), *_needed_by_decoder(spec.get("decoder"))]:
        if token in ours:
            reasons.setdefault(ours[token], why)
    return reasons


def places_of_ids(spec: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Where a tokenizer.json names ids outside of the model's vocabulary, as (container, key)."""
    yield from ((token, "id") for token in spec["added_tokens"])
    if spec["model"].get("unk_id") is not None:
        yield spec["model"], "unk_id"
    if spec.get("padding"):
        yield spec["padding"], "pad_id"
    yield from _places_in_processor(spec.get("post_processor"))


def _places_in_processor(part: Any) -> Iterator[tuple[Any, Any]]:
    match part:
        case None | {"type": "ByteLevel"}:
            return
        case {"type": "Sequence", "processors": parts}:
            for inner in parts:
                yield from _places_in_processor(inner)
        case {"type": "TemplateProcessing", "special_tokens": tokens}:
            yield from ((token["ids"], i) for token in tokens.values() for i in range(len(token["ids"])))
        case {"sep": sep, "cls": cls}:  # pairs of token and id
            yield from ((sep, 1), (cls, 1))
        case _:
            raise CompressError(f"tokenizer.json has a post-processor of the unknown type {part.get('type')!r}")


def _needed_by_model(model: Mapping[str, Any], tokens: Iterable[str]) -> Iterator[tuple[str, str]]:
    """What the algorithm needs in order to give these tokens, with the reasons; some may be no token at all."""
    if model.get("unk_token"):
        yield model["unk_token"], "the unknown token"
    yield from _needed_to_spell(model, model_vocabulary(model))
    if model["type"] == "Unigram":
        lowest, _ = min(model["vocab"], key=lambda entry: entry[1])
        yield lowest, "the one of lowest score, which unknown text is scored by"
    if model["type"] == "BPE":
        merges = _Merges(model)
        for token in tokens:
            yield from ((part, f"needed to merge {token!r}") for part in merges.path(token))


def _needed_to_spell(model: Mapping[str, Any], known: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """The bytes that unknown characters fall back to, or the letters where nothing stands for an unknown one."""
    falls_back = bool(model.get("byte_fallback")) and all(byte in known for byte in _BYTES)
    if falls_back:
        yield from ((byte, "a byte that any text is spelled with") for byte in _BYTES)
    if (model["type"] == "BPE" and not falls_back) or (model["type"] == "Unigram" and model["unk_id"] is None):
        merges = _Merges(model)
        letters = (token for token in known if len(merges.symbols(token)) == 1)
        yield from ((letter, "a letter that any text is spelled with") for letter in letters)


def _needed_by_decoder(part: Any) -> Iterator[tuple[str, str]]:
    """What a decoder looks for in tokens: spelled in bytes, which are joined later, it would not be found."""
    match part:
        case {"type": "Sequence", "decoders": parts}:
            for inner in parts:
                yield from _needed_by_decoder(inner)
        case {"type": "Metaspace", "replacement": sign} | {"type": "Replace", "pattern": {"String": sign}}:
            yield sign, "read by the decoder"


_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


class _Merges:
    """Which symbols a token starts as, and what they are merged to on the way to it."""

    def __init__(self, model: Mapping[str, Any]) -> None:
        self.prefix = model.get("continuing_subword_prefix") or ""
        self.suffix = model.get("end_of_word_suffix") or ""
        self.ranks = {(a, b): rank for rank, (a, b) in enumerate(model.get("merges", ()))}

    def symbols(self, token: str) -> list[str]:
        """Its characters: within a word each with the prefix, the last of a word with the suffix."""
        first = self.prefix if token.startswith(self.prefix) and token != self.prefix else ""
        last = self.suffix if token.endswith(self.suffix) and token != first + self.suffix else ""
        letters = token[len(first) : len(token) - len(last)]
        parts = [(self.prefix if i else first) + letter for i, letter in enumerate(letters)]
        return [*parts[:-1], parts[-1] + last] if parts else []

    def path(self, token: str) -> list[str]:
        """Everything on the way to the token; nothing where merging its symbols leads elsewhere: then no text needs it.

        What surrounds the token in a text does not matter: no merge that was applied crosses its border, so inside it
        the same merges come in the same order.
        """
        parts = self.symbols(token)
        path = list(parts)
        while len(parts) > 1:
            found = [(self.ranks[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in self.ranks]
            if not found:
                return []
            _, i = min(found)
            parts[i : i + 2] = [parts[i] + parts[i + 1][len(self.prefix) :]]
            path.append(parts[i])
        return path
