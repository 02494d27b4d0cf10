"""The report says what was asked, what was done and what proves it, as data, as text and as one page."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
import torch

import fxcompress
from fxcompress.passes import PruneFFN, PruneSSMHeads, RemoveLayers
from fxcompress.report import Report, collapse
from fxcompress.report_html import short
from tests import models


@pytest.fixture(scope="module")
def report() -> Report:
    passes = [PruneSSMHeads(size=9), PruneFFN(ratio=0.25), RemoveLayers(layers=(4,))]
    return fxcompress.apply(models.captured("nemotron_h", torch.float32), passes).report


class Page(HTMLParser):
    """The text, tags and addresses of a page; tags that are left open."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.text, self.tags, self.addresses, self.open = [], set(), [], []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "col", "br", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def test_json_and_back_changes_nothing(report):
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_summary_is_from_before_the_first_pass_to_after_the_last(report):
    before, after = report.summary()["parameters"]
    assert before == report.passes[0]["before"]["parameters"]
    assert after == report.passes[-1]["after"]["parameters"]
    assert after < before


def test_rows_alike_but_for_their_key_are_one_and_others_are_not():
    rows = [{"key": "a", "got": 1}, {"key": "b", "got": 2}, {"key": "c", "got": 1}]
    assert collapse(rows) == [("a", {**rows[0], "loss": []}, 2), ("b", {**rows[1], "loss": []}, 1)]


def test_matrices_that_lost_different_much_are_one_row_with_both_losses():
    rows = [{"key": "a", "got": 1, "loss": 0.2}, {"key": "b", "got": 1, "loss": 0.1}]
    assert collapse(rows) == [("a", {"key": "a", "got": 1, "loss": [0.2, 0.1]}, 2)]


def test_text_names_every_pass_with_its_options_and_laws(report):
    text = report.to_text()
    for part in (
        "PruneSSMHeads(size=9)",
        "PruneFFN(ratio=0.25)",
        "RemoveLayers(layers=[4])",
        "prune equals mask: holds",
    ):
        assert part in text


def test_files_of_all_three_forms_are_written(report, tmp_path):
    assert sorted(path.name for path in report.write(tmp_path)) == ["report.html", "report.json", "report.txt"]
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(report.to_json()))


def test_the_page_is_well_formed_and_needs_nothing_from_elsewhere(report):
    source = report.to_html()
    page = Page(source)
    assert page.open == []
    assert page.addresses == []
    assert not page.tags & {"script", "link", "img", "iframe"}
    assert not re.search(r"url\(|@import|https?:", source)


def test_the_page_follows_the_readers_light_or_dark(report):
    assert "@media (prefers-color-scheme: dark)" in report.to_html()


def test_the_page_shows_figures_passes_and_laws(report):
    words = Page(report.to_html()).words
    before, after = report.summary()["parameters"]
    assert f"parameters −{100 * (1 - after / before):.1f} %" in words
    assert "1. PruneSSMHeads size=9" in words
    assert "model.layers.0.mixer.dt_bias[0].1 and 1 like it" in words
    assert "all 11 laws hold" in words
    assert "permutation not checked no axis was cut" in words


def test_a_law_that_fails_is_seen_at_the_top(report):
    broken = Report.from_json(json.loads(json.dumps(report.to_json())))
    broken.passes[1]["laws"][2] |= {"holds": False, "error": 0.5}
    words = Page(broken.to_html()).words
    assert "1 of 11 laws fails" in words
    assert "all 11 laws hold" not in words


def test_unchecked_laws_are_not_said_to_hold(report):
    unchecked = Report.from_json(json.loads(json.dumps(report.to_json())))
    for entry in unchecked.passes:
        entry["laws"] = []
    words = Page(unchecked.to_html()).words
    assert "no law was checked" in words
    assert "laws hold" not in words


def test_names_from_models_and_recipes_are_text_and_never_markup(report):
    hostile = Report.from_json(json.loads(json.dumps(report.to_json())))
    hostile.passes[0]["rows"][0] |= {"key": "<script>alert(1)</script>", "why": "<b>pinned</b>"}
    run = {"recipe": "</pre><script>", "model": "<img src=x>", "random": False, "versions": {}, "sha256": {}}
    hostile.notes = {"runs": [run], "<b>": "<script>"}
    page = Page(hostile.to_html())
    assert not page.tags & {"script", "img", "b"}
    assert "<script>alert(1)</script>" in page.words


def test_a_reason_stands_with_the_row_that_it_is_about(report):
    refused = Report.from_json(json.loads(json.dumps(report.to_json())))
    refused.passes[1]["rows"].append(
        {
            "key": "odd.weight[0]",
            "role": "ffn_neuron",
            "of": 80,
            "asked": 0.0,
            "got": 0,
            "step": 1,
            "why": "it is mixed",
        }
    )
    assert "odd.weight[0] it is mixed" in Page(refused.to_html()).words


def test_a_report_of_nothing_is_a_page_too():
    assert "No pass ran." in Page(Report().to_html()).words


@pytest.mark.parametrize(
    ("number", "unit", "said"),
    [(0, "", "0"), (999, "B", "999 B"), (1000, "B", "1 kB"), (999_600, "", "1 M"), (8_030_261_248, "", "8.03 G")],
)
def test_big_numbers_are_said_in_three_digits(number, unit, said):
    assert short(number, unit) == said
