"""A closed choice of ids makes a tokenizer that encodes every text within the choice as the whole one does."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from fxcompress import CompressError
from fxcompress import vocabulary as voc
from fxcompress.export.tokenizer import renumbered
from tests.vocabularies import KINDS, SPELL_EVERYTHING, TEXTS, fast, tokenizer

WORDS = sorted({word for text in TEXTS for word in text.split()})
corpora = st.lists(st.sampled_from([*TEXTS, *WORDS]), min_size=1, max_size=6)
spliced = st.lists(st.sampled_from([*WORDS, *"aeilt .", " light", "<s>", "[shore]", "ł"]), max_size=8).map("".join)
anything = st.text(max_size=30) | spliced
lawful = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
kinds = pytest.mark.parametrize("kind", KINDS)


def cut(whole, ids) -> tuple[Tokenizer, dict[int, int]]:
    new_id = voc.new_ids(ids)
    return Tokenizer.from_str(json.dumps(renumbered(voc.spec_of(whole), new_id))), new_id


def check_same(whole, small: Tokenizer, new_id: dict[int, int], text: str) -> None:
    old = whole(text)["input_ids"]
    new = small.encode(text).ids
    assert new == [new_id.get(i) for i in old], text
    assert small.decode(new, skip_special_tokens=False) == whole.decode(old), text


@kinds
@lawful
@given(corpora)
def test_texts_of_the_corpus_are_encoded_as_before(kind, corpus):
    whole = tokenizer(kind)
    small, new_id = cut(whole, voc.closed(whole, voc.used_tokens(whole, corpus)))
    for text in corpus:
        check_same(whole, small, new_id, text)


@kinds
@lawful
@given(corpora, st.lists(spliced, max_size=20))
def test_other_texts_within_the_choice_are_encoded_as_before(kind, corpus, others):
    whole = tokenizer(kind)
    small, new_id = cut(whole, voc.closed(whole, voc.used_tokens(whole, corpus)))
    for text in others:
        old = set(whole(text)["input_ids"])
        if old <= new_id.keys() and not (kind == "wordpiece" and whole.unk_token_id in old):
            check_same(whole, small, new_id, text)


@pytest.mark.parametrize("kind", SPELL_EVERYTHING)
@lawful
@given(corpora, anything)
def test_what_could_be_spelled_still_can_be(kind, corpus, text):
    whole = tokenizer(kind)
    small, _ = cut(whole, voc.closed(whole, voc.used_tokens(whole, corpus)))
    ids = small.encode(text, add_special_tokens=False).ids
    old = whole(text, add_special_tokens=False)["input_ids"]
    assert small.decode(ids, skip_special_tokens=False) == whole.decode(old)
    assert ("<unk>" in small.encode(text).tokens) == (whole.unk_token_id in old)


@kinds
def test_closing_twice_is_closing_once(kind):
    whole = tokenizer(kind)
    once = voc.closed(whole, voc.used_tokens(whole, TEXTS[0]))
    assert voc.closed(whole, once) == once == sorted(set(once))


@kinds
def test_nothing_used_still_leaves_a_working_tokenizer(kind):
    whole = tokenizer(kind)
    ids = voc.closed(whole, [])
    small, _ = cut(whole, ids)
    assert {"<unk>", "<s>", "</s>", "<pad>", "<|lamp|>", "[shore]"} <= small.get_vocab().keys()
    assert small.get_vocab_size() == len(ids) < len(whole)
    small.encode(TEXTS[5])


def test_all_bytes_stay_and_what_a_token_is_merged_from():
    whole = tokenizer("bytes")
    kept = whole.convert_ids_to_tokens(voc.closed(whole, whole.convert_tokens_to_ids(["Ġlight"])))
    merged = {token for token in kept if len(token) > 1} - whole.get_added_vocab().keys()
    assert set(pre_tokenizers.ByteLevel.alphabet()) <= set(kept)
    assert merged == {"Ġl", "ht", "ght", "ight", "Ġlight"}


def test_only_the_merges_that_are_taken_are_kept():
    """ab and bc both lead to abc, but ab has the lower rank."""
    ids = {token: i for i, token in enumerate(["a", "b", "c", "ab", "bc", "abc"])}
    merges = [("a", "b"), ("b", "c"), ("a", "bc"), ("ab", "c")]
    whole = fast(Tokenizer(models.BPE(ids, merges)))
    kept = voc.closed(whole, [ids["abc"]])
    assert ids["ab"] in kept
    assert ids["bc"] not in kept


def test_a_token_that_no_merge_yields_needs_no_other():
    whole = tokenizer("whole_words")
    (word,) = whole.convert_tokens_to_ids(["Ġdaughter"])
    assert set(voc.closed(whole, [word])) - set(voc.closed(whole, [])) == {word}


UNNAMED = [
    (models.WordLevel({"a": 0, "?": 1}, unk_token="?"), lambda backend: None),
    (models.WordPiece({"a": 0, "?": 1}, unk_token="?"), lambda backend: None),
    (models.Unigram([("a", -2.0), ("?", 0.0)], unk_id=1), lambda backend: None),
    (models.WordLevel({"a": 0, "?": 1}), lambda backend: backend.enable_padding(pad_id=1, pad_token="?")),
    *(
        (models.WordLevel({"a": 0, "?": 1}), lambda backend, p=processor: setattr(backend, "post_processor", p))
        for processor in (
            processors.BertProcessing(("?", 1), ("?", 1)),
            processors.RobertaProcessing(("?", 1), ("?", 1)),
            processors.TemplateProcessing("$A ?", "$A $B ?", [("?", 1)]),
            processors.Sequence([processors.TemplateProcessing("$A ?", "$A $B ?", [("?", 1)])]),
        )
    ),
]


@pytest.mark.parametrize(("model", "name_it"), UNNAMED)
def test_what_tokenizer_json_names_stays_even_if_it_is_no_special_token(model, name_it):
    backend = Tokenizer(model)
    name_it(backend)
    assert 1 in voc.closed(PreTrainedTokenizerFast(tokenizer_object=backend), [])


def test_padding_pads_with_the_same_token():
    whole = fast(KINDS["wordlevel"]())
    small, new_id = cut(whole, voc.closed(whole, []))
    assert small.padding["pad_id"] == new_id[whole.pad_token_id] == small.token_to_id("<pad>")


def test_characters_may_go_where_bytes_stand_in():
    kept = tokenizer("fallback").convert_ids_to_tokens(voc.closed(tokenizer("fallback"), []))
    assert "<0x00>" in kept
    assert "<0xFF>" in kept
    assert "h" not in kept


@pytest.mark.parametrize("kind", ["fallback", "unigram_bytes", "unigram"])
def test_the_sign_for_a_space_stays(kind):
    """Spelled in bytes it would be decoded as itself."""
    assert "▁" in tokenizer(kind).convert_ids_to_tokens(voc.closed(tokenizer(kind), []))


def test_letters_stay_where_nothing_stands_in():
    kept = tokenizer("characters").convert_ids_to_tokens(voc.closed(tokenizer("characters"), []))
    assert set("".join(TEXTS)) - {" ", "\n"} <= set(kept)


def test_a_unigram_without_an_unknown_token_keeps_its_letters():
    whole = fast(Tokenizer(models.Unigram([("a", -1.0), ("b", -2.0), ("ab", -1.5)])))
    assert {"a", "b"} <= set(whole.convert_ids_to_tokens(voc.closed(whole, [])))


SCORES = [("<unk>", 0.0), ("x", -1.0), ("ab", -1.0), ("xa", -50.0), ("bc", -50.0), ("c", -99.0)]


def test_unknown_characters_do_not_become_cheaper():
    """Without c, of the lowest score, x ab <unk> would cost 62, less than xa bc."""
    whole = fast(Tokenizer(models.Unigram(SCORES, unk_id=0)))
    small, new_id = cut(whole, voc.closed(whole, voc.used_tokens(whole, ["xabc", "x", "ab"])))
    check_same(whole, small, new_id, "xabc")


def test_a_word_unknown_to_wordpiece_may_become_known():
    """The limit that the module names: ab## led nowhere, a ##bc does not."""
    vocab = {"<unk>": 0, "a": 1, "ab": 2, "##bc": 3}
    whole = fast(Tokenizer(models.WordPiece(vocab, unk_token="<unk>")))
    small, _ = cut(whole, voc.closed(whole, [1, 3]))
    assert whole.tokenize("abc") == ["<unk>"]
    assert small.encode("abc").tokens == ["a", "##bc"]


def test_ids_are_counted_wherever_they_stand():
    whole = tokenizer("wordlevel")
    lamp, light = whole.convert_tokens_to_ids(["lamp", "light"])
    assert voc.count_tokens(whole, "lamp light light") == {lamp: 1, light: 2}
    assert voc.count_tokens(whole, ["lamp", "light light"]) == {lamp: 1, light: 2}
    assert voc.count_tokens(whole, torch.tensor([[lamp, light], [light, light]])) == {lamp: 1, light: 3}
    assert voc.count_tokens(whole, [{"input_ids": torch.tensor([lamp])}, [light, light]]) == {lamp: 1, light: 2}
    assert voc.used_tokens(whole, [light, lamp, light]) == sorted([lamp, light])
    assert voc.closed(whole, torch.tensor([lamp, light])) == voc.closed(whole, [lamp, light])


@pytest.mark.parametrize("wrong", [-1, 9999])
def test_an_id_that_is_no_token_is_refused(wrong):
    with pytest.raises(CompressError, match=rf"id {wrong} is no token.*482 ids go up to 481"):
        voc.closed(tokenizer("bytes"), [5, wrong])


@pytest.mark.parametrize(("kept", "why"), [([1, 2, 2], "name 2 twice"), ([1, 3, 2], "name 2 after 3")])
def test_kept_ids_ascend(kept, why):
    with pytest.raises(CompressError, match=why):
        voc.new_ids(kept)


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(CompressError, match="object is not a fast tokenizer"):
        voc.closed(object(), [])


# The laws can fail.


def test_a_closure_that_forgets_what_lies_between_is_seen(monkeypatch):
    monkeypatch.setattr(voc._Merges, "path", lambda merges, token: [token])
    whole = tokenizer("bytes")
    small, new_id = cut(whole, voc.closed(whole, voc.used_tokens(whole, TEXTS)))
    with pytest.raises(AssertionError, match="lighthouse"):
        check_same(whole, small, new_id, TEXTS[0])


def test_a_closure_that_forgets_the_lowest_score_is_seen():
    whole = fast(Tokenizer(models.Unigram(SCORES, unk_id=0)))
    lowest = whole.convert_tokens_to_ids("c")
    small, new_id = cut(whole, [i for i in voc.closed(whole, [1, 2, 3, 4]) if i != lowest])
    with pytest.raises(AssertionError):
        check_same(whole, small, new_id, "xabc")
