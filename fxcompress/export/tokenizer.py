"""A tokenizer with some of its tokens left out and the others renumbered in their old order.

    tokenizer.json --load--> tokenizer --renumber--> smaller tokenizer
    tokenizer.json --renumber--> smaller tokenizer.json --load-->  the same

That the two ways meet is checked on every rewriting, so it does not matter what a tokenizer's class does on loading.
Only JSON is read and no code of a checkpoint is run. Files that say the vocabulary once more (vocab.json, merges.txt,
vocab.txt, added_tokens.json, tokenizer.model) are left out: they would still say the old one.
"""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fxcompress.bounded import one_line, read_json
from fxcompress.checkpoint import read_tokenizer
from fxcompress.errors import CompressError, ProofError
from fxcompress.token_fields import renumber_config
from fxcompress.vocabulary import needed, new_ids, places_of_ids, require_model, require_tokens, spec_of, vocabulary

TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
_WITHOUT_IDS = ("special_tokens_map.json", "chat_template.jinja", "chat_template.json")
_MOST_BYTES = 1 << 28  # several times what vocabularies of a quarter of a million tokens take
_TEMPLATES = "additional_chat_templates"


def rewrite_tokenizer(source_dir: str | Path, target_dir: str | Path, kept_ids: Iterable[int]) -> dict[int, int]:
    """Write the tokenizer in one folder, with the kept ids alone, into another that exists; returns new id by old id.

    ``kept_ids``: as ``vocabulary.closed`` gives them. Raises CompressError before anything is written for ids that are
    no tokens, that are not ascending or that leave out what the tokenizer needs, for a tokenizer that is not fast, and
    for files that are not as its library writes them.
    """
    source, target = Path(source_dir), Path(target_dir)
    if source.resolve() == target.resolve():
        raise CompressError(f"{source} would lose its tokenizer: write the smaller one into another folder")
    written = _read_tokenizer_json(source / TOKENIZER)
    tokenizer = _load(source)
    spec, new_id = spec_of(tokenizer), new_ids(kept_ids)
    _require_closed(spec, new_id)
    config = _read_json(source / CONFIG) if (source / CONFIG).is_file() else {}
    config |= {"tokenizer_class": type(tokenizer).__name__}
    with _as_the_library_writes_it(source):
        files = {TOKENIZER: renumbered(written, new_id), CONFIG: _renumbered_config(config, spec, new_id)}
        texts = {name: json.dumps(values, ensure_ascii=False, indent=1) + "\n" for name, values in files.items()}
        contents = {name: text.encode() for name, text in texts.items()}  # halves of characters have no encoding
    for name, content in contents.items():
        (target / name).write_bytes(content)
    _copy_what_has_no_ids(source, target)
    if spec_of(_load(target)) != renumbered(spec, new_id):
        raise ProofError(
            f"the tokenizer in {source} does not load as it was rewritten: its class, or added tokens among the others,"
            " set ids of their own"
        )
    return new_id


def renumbered(spec: Mapping[str, Any], new_id: Mapping[int, int]) -> dict[str, Any]:
    """A tokenizer.json without the tokens that have no new id. The ids that it names elsewhere must have one."""
    out = copy.deepcopy(dict(spec))
    for place, key in places_of_ids(out):
        if place[key] not in new_id:
            raise CompressError(f"tokenizer.json names the id {place[key]} outside its vocabulary; it must be kept")
        place[key] = new_id[place[key]]
    out["added_tokens"].sort(key=lambda token: token["id"])
    model = out["model"]
    if isinstance(model["vocab"], list):
        model["vocab"] = [entry for i, entry in enumerate(model["vocab"]) if i in new_id]
    else:
        model["vocab"] = {token: new_id[i] for token, i in model["vocab"].items() if i in new_id}
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if _is_known(merge, model)]
    return out


def _is_known(merge: str | list[str], model: Mapping[str, Any]) -> bool:
    a, b = merge.split(" ") if isinstance(merge, str) else merge  # a text in older files
    result = a + b[len(model.get("continuing_subword_prefix") or "") :]
    return all(token in model["vocab"] for token in (a, b, result))


def _require_closed(spec: Mapping[str, Any], new_id: Mapping[int, int]) -> None:
    require_tokens(spec, new_id)
    token_of = {i: token for token, i in vocabulary(spec).items()}
    for i, why in needed(spec, new_id).items():
        if i not in new_id:
            raise CompressError(
                f"{token_of.get(i)!r} (id {i}) cannot be left out of the vocabulary, it is {why};"
                " vocabulary.closed(tokenizer, ids) adds what is needed"
            )


def _renumbered_config(config: dict[str, Any], spec: Mapping[str, Any], new_id: Mapping[int, int]) -> dict[str, Any]:
    out, id_of = renumber_config(config, new_id), vocabulary(spec)
    if "added_tokens_decoder" in out:
        listed = out["added_tokens_decoder"].values()
        out["added_tokens_decoder"] = {str(new_id[id_of[token["content"]]]): token for token in listed}
    return out


def _copy_what_has_no_ids(source: Path, target: Path) -> None:
    for name in _WITHOUT_IDS:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if (source / _TEMPLATES).is_dir():
        shutil.copytree(source / _TEMPLATES, target / _TEMPLATES, dirs_exist_ok=True)


def _load(folder: Path) -> Any:
    """The tokenizer as AutoTokenizer gives it, from local files and without code of the checkpoint's."""
    return read_tokenizer(folder)


def _read_tokenizer_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise CompressError(
            f"{file} is missing, and only the vocabulary of a fast tokenizer can be rewritten: load the tokenizer with"
            " transformers and save it again, which writes the file where it can"
        )
    values = _read_json(file)
    kind = values["model"].get("type") if isinstance(values.get("model"), dict) else "none"
    if kind is not None:  # the oldest files do not say it
        require_model(kind)
    return values


def _read_json(file: Path) -> dict[str, Any]:
    values = read_json(file, _MOST_BYTES)
    if not isinstance(values, dict):
        raise CompressError(f"{file} holds no fields")
    return values


@contextlib.contextmanager
def _as_the_library_writes_it(folder: Path) -> Iterator[None]:
    """The library reads more than it writes; what lies where it is not expected ends in a refusal."""
    try:
        yield
    except CompressError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        what = f"{type(error).__name__}: {one_line(error)}"
        raise CompressError(f"{folder / TOKENIZER} or {CONFIG} is not as their library writes it: {what}") from error
