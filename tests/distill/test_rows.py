"""Text and the caller's own data as rows; which tokens are predicted; what is no data."""

from __future__ import annotations

import pytest
import torch

from fxcompress import CompressError
from fxcompress.distillation.rows import IGNORED, Rows, collate, rows_of
from tests import models


def labels(rows: Rows, place: int = 0) -> list[int]:
    return rows[place]["labels"].tolist()


def test_a_tensor_of_ids_is_a_row_for_each_sample():
    rows = rows_of(models.ids(6, 5), None, 512)
    assert [rows[i]["input_ids"].tolist() for i in range(6)] == models.ids(6, 5).tolist()
    assert rows[4]["row"].item() == 4


def test_every_token_but_the_first_is_predicted():
    assert labels(rows_of(torch.tensor([[5, 6, 7]]), None, 2)) == [IGNORED, 6, 7]


def test_padding_is_not_predicted_and_predicts_nothing():
    batch = {"input_ids": torch.tensor([[0, 0, 5, 6, 0]]), "attention_mask": torch.tensor([[0, 0, 1, 1, 0]])}
    assert labels(rows_of([batch], None, 2)) == [IGNORED, IGNORED, IGNORED, 6, IGNORED]


@pytest.mark.parametrize("as_tensor", [True, False])
def test_labels_of_the_caller_leave_tokens_out(as_tensor):
    row = {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}
    given = {k: torch.tensor([v]) for k, v in row.items()} if as_tensor else row
    assert labels(rows_of([given], None, 2)) == [IGNORED, IGNORED, 7, 8]


def test_rows_of_other_lengths_are_padded_where_nothing_is_predicted():
    rows = rows_of([{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}, {"input_ids": [8, 9], "labels": [8, 9]}], None, 2)
    batch = collate([rows[0], rows[1]])
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [IGNORED, 9, IGNORED]]


def test_without_padding_there_is_no_mask():
    rows = rows_of(models.ids(2, 5), None, 2)
    assert "attention_mask" not in collate([rows[0], rows[1]])


def test_text_is_cut_into_windows_over_all_files(saved, tmp_path):
    (tmp_path / "a.txt").write_text("w3 w4 w5\n" * 2)
    (tmp_path / "b.txt").write_text("w6 w7")
    rows = rows_of([tmp_path / "a.txt", tmp_path / "b.txt"], saved("llama"), 4)
    assert [rows[i]["input_ids"].tolist() for i in range(len(rows))] == [[3, 4, 5, 3], [4, 5, 6, 7]]


def test_a_long_text_is_read_in_pieces_of_whole_lines(saved, tmp_path, monkeypatch):
    monkeypatch.setattr("fxcompress.distillation.rows._PIECE", 10)
    (tmp_path / "a.txt").write_text("w13 w14\n" * 9)
    rows = rows_of(tmp_path / "a.txt", saved("llama"), 18)
    assert rows[0]["input_ids"].tolist() == [13, 14] * 9


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (7, "is a list of batches, not 7"),
        ([], "has no batch"),
        ([{"attention_mask": torch.ones(1, 3)}], "has attention_mask, and no input_ids"),
        ([{"input_ids": torch.ones(1, 3).long(), "labels": torch.ones(1, 2).long()}], "have other shapes"),
        ([{"text": "to be tokenized"}], "the calibration data is text: tokenize it first"),
        ("nowhere.txt", "no tokenizer lies beside the student or the teacher"),
    ],
)
def test_what_is_no_data_is_refused(data, said):
    with pytest.raises(CompressError, match=said):
        rows_of(data, None, 512)


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "cannot be read"), (b"\xff\xfe", "cannot be read"), (b"w3 w4", "has 2 tokens, less than one window of 8")],
)
def test_text_that_does_not_do_is_refused(saved, tmp_path, text, said):
    if text is not None:
        (tmp_path / "text.txt").write_bytes(text)
    with pytest.raises(CompressError, match=said):
        rows_of(tmp_path / "text.txt", saved("llama"), 8)
