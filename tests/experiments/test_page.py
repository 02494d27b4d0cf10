"""Verdicts, which spread decides, and sections that replace their older ones."""

from pathlib import Path
from typing import Any

import pytest

from tests.experiments.bench import rows_of


@pytest.mark.parametrize(
    ("one", "other", "verdict"),
    [
        ((1.0, 1.1, 1.2), (1.3, 1.4, 1.5), "lower"),
        ((1.0, 1.1, 1.3), (1.3, 1.4, 1.5), "undecided"),
        ((1.0, 1.1, 1.35), (1.3, 1.4, 1.5), "undecided"),
        ((1.0, 1.1), (1.3, 1.4), "undecided"),  # one pair of equal arms in six is so
        ((1.0, 1.1), (1.3, 1.4, 1.5), "undecided"),
        ((1.0,), (1.3, 1.35, 1.4), "lower"),
        ((1.0,), (1.15, 1.2, 1.25), "undecided"),  # its own runs might lie as far apart as those of the other
        ((1.0,), (1.3, 1.4), "undecided"),
        ((1.0,), (1.3,), "undecided"),
    ],
)
def test_only_runs_that_do_not_overlap_decide(page: Any, one: Any, other: Any, verdict: str):
    table = rows_of(page.ranking([page.Arm("b", other), page.Arm("a", one)], ()))
    assert list(table) == ["a", "b"]
    assert table["a"][-1] == verdict
    assert table["b"][-1].strip("| ") == str(len(other))  # against nothing


def test_a_section_takes_the_place_of_its_older_one_and_of_no_other(page: Any, tmp_path: Path):
    file = tmp_path / "results.md"
    file.write_text("# Results\n\n## A\n\nold\n\n### part of A\n\nold\n\n## B\n\nkept\n")
    page.put(file, "A", "new")
    page.put(file, "C", "added")
    assert file.read_text() == "# Results\n\n## A\n\nnew\n\n## B\n\nkept\n\n## C\n\nadded\n"


def test_the_same_runs_give_the_same_plot(page: Any, tmp_path: Path):
    arms = [page.Arm("a", (1.0, 1.1), (2.0, 2.1)), page.Arm("b", (1.5,))]
    for name in ("one", "two"):
        page.plot(tmp_path / name / "plot.svg", arms, 0.9)
    assert (tmp_path / "one" / "plot.svg").read_bytes() == (tmp_path / "two" / "plot.svg").read_bytes()
