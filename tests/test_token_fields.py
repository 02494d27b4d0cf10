"""Fields that hold token ids say the same tokens after renumbering; no other field changes."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig

from fxcompress import CompressError
from fxcompress.token_fields import renumber_config

NEW = {0: 0, 2: 1, 7: 2, 9: 3}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"eos_token_id": 7}, {"eos_token_id": 2}),
        ({"eos_token_id": [2, 7]}, {"eos_token_id": [1, 2]}),
        ({"decoder_start_token_id": 9, "image_token_id": 2}, {"decoder_start_token_id": 3, "image_token_id": 1}),
        ({"image_token_index": 9}, {"image_token_index": 3}),
        ({"stop_token_ids": [[7], [9, 0]]}, {"stop_token_ids": [[2], [3, 0]]}),
        ({"forced_bos_token_id": 0}, {"forced_bos_token_id": 0}),
        ({"text_config": {"bos_token_id": 2}}, {"text_config": {"bos_token_id": 1}}),
        ({"suppress_tokens": [2, 9]}, {"suppress_tokens": [1, 3]}),
        ({"bad_words_ids": [[7, 9]]}, {"bad_words_ids": [[2, 3]]}),
        ({"sequence_bias": [[[2, 9], -1.5]]}, {"sequence_bias": [[[1, 3], -1.5]]}),
        ({"sequence_bias": {(2, 9): -1.5, (5,): 2.0}}, {"sequence_bias": [[[1, 3], -1.5]]}),
    ],
    ids=lambda v: "",
)
def test_ids_are_renumbered(old, new):
    assert renumber_config(old, NEW) == new


@pytest.mark.parametrize(
    "values",
    [
        {"pad_token_id": None, "unk_token_id": -1, "forced_eos_token_id": None},  # there is none
        {"vocab_size": 7, "hidden_size": 2, "layer_types": ["a", "b"], "id2label": {0: "x"}, "label2id": {"x": 0}},
        {"num_image_tokens": 7, "suppress_tokens": None, "bad_words_ids": None},
    ],
    ids=lambda v: "",
)
def test_other_values_stay(values):
    assert renumber_config(values, NEW) == values


def test_what_cannot_be_generated_need_not_be_suppressed():
    old = {"suppress_tokens": [2, 5], "begin_suppress_tokens": [5], "bad_words_ids": [[7, 5], [9]]}
    new = {"suppress_tokens": [1], "begin_suppress_tokens": None, "bad_words_ids": [[3]]}
    assert renumber_config(old, NEW) == new


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eos_token_id": 5}, "eos_token_id is 5, but the token 5 is left out"),
        ({"eos_token_id": [2, 5]}, r"eos_token_id is \[2, 5\], but the token 5 is left out"),
        ({"text_config": {"pad_token_id": 1}}, "pad_token_id is 1, but the token 1"),
    ],
    ids=lambda v: "",
)
def test_a_special_token_that_is_gone_is_refused(values, message):
    with pytest.raises(CompressError, match=message):
        renumber_config(values, NEW)


def test_a_real_config_keeps_everything_else():
    config = LlamaConfig(vocab_size=10, bos_token_id=0, eos_token_id=[2, 7], pad_token_id=None)
    old, new = config.to_dict(), renumber_config(config.to_dict(), NEW)
    assert {name for name in old if new[name] != old[name]} == {"eos_token_id"}
    assert new["eos_token_id"] == [1, 2]


def test_the_given_values_are_left_alone():
    values = {"eos_token_id": [2, 7], "text_config": {"bos_token_id": 2}}
    renumber_config(values, NEW)
    assert values == {"eos_token_id": [2, 7], "text_config": {"bos_token_id": 2}}
