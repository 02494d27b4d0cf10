"""Run an experiment, and read the table that it wrote."""

import importlib
from typing import Any

import pytest

from fxcompress.passes import PruneFFN, PruneSSMHeads, RemoveLayers

KNOWN = {  # what the search of a way is taken to have found
    "width with SSM mixers": [PruneSSMHeads(size=8), PruneFFN(size=24)],
    "depth": [RemoveLayers(layers=(1, 4))],
}


def run(name: str, arguments: Any, monkeypatch: pytest.MonkeyPatch, **values: Any) -> dict[str, list[str]]:
    """An experiment's table, by its first column."""
    module = importlib.import_module(name)
    for key, value in values.items():
        monkeypatch.setattr(module, key, value)
    module.main(arguments)
    page = arguments.page.read_text()
    assert page.count(f"## {module.TITLE}\n") == 1
    assert (arguments.page.parent / "figures" / f"{name}.svg").read_text().startswith("<?xml")
    return rows_of(page.split("\n## ")[-1])


def rows_of(page: str) -> dict[str, list[str]]:
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    return {line[0]: line for line in lines[1:]}


def cloned(model: Any) -> Any:
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    return copy


def at_one_rate(lab: Any, *of: Any, **named: Any) -> Any:
    return lab.runs_at(1e-2, *of, **named)
