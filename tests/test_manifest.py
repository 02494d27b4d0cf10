"""A manifest is read when every field of it is what it should be; otherwise that field is named."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fxcompress import CompressError
from fxcompress.manifest import MANIFEST, MOST_BYTES, check_manifest, read_manifest, result_files
from fxcompress.report import FIGURES, Report

FIGURES_OF_ONE = dict.fromkeys(FIGURES, 7)
ROW = {"key": "a.weight[0]", "role": "ffn_neuron", "of": 8, "asked": 0.25, "got": 6, "step": 1, "why": ""}
LAW = {"name": "shapes", "error": 0.0, "tolerance": 0.0, "why": "", "holds": True}
RUN = {"model": "m", "begins_at": 0, "random": False, "recipe": "version: 1", "versions": {}, "sha256": {"a": "0" * 64}}
PASS = {"name": "PruneFFN", "options": {"ratio": 0.25}, "rows": [ROW], "laws": [LAW]}
GOOD: dict[str, Any] = {
    "format": 1,
    "loads_with": "fxcompress",
    "why_not_transformers": "no field says it",
    "base": {"class": "LlamaForCausalLM", "config": {"hidden_size": 8}},
    "steps": [{"pass": "PruneFFN", "keep": {"a.weight[0]": "0-5"}, "remove": ["layers.1"]}],
    "numbering": {"input_ids": "0-3,7"},
    "report": {
        "passes": [{**PASS, "before": FIGURES_OF_ONE, "after": FIGURES_OF_ONE}],
        "reload_error": None,
        "capture_error": 1e-7,
        "notes": {"model": "LlamaForCausalLM", "runs": [RUN]},
    },
    "versions": {"torch": "2.13.0"},
    "sha256": {"model.safetensors": "ab" * 32},
}


def changed(place: str, value: object) -> dict[str, Any]:
    """The good manifest with another value at ``report.passes.0.name`` and the like."""
    out = copy.deepcopy(GOOD)
    inner: Any = out
    *path, last = place.split(".")
    for key in path:
        inner = inner[int(key) if isinstance(inner, list) else key]
    inner[int(last) if isinstance(inner, list) else last] = value
    return out


@pytest.fixture
def written(tmp_path: Path) -> Callable[[object], Path]:
    def write(content: object) -> Path:
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        (tmp_path / MANIFEST).write_bytes(text)
        return tmp_path

    return write


def test_a_manifest_is_read_as_it_is(written):
    assert read_manifest(written(GOOD)) == GOOD


def test_a_field_that_a_later_version_adds_is_passed_over(written):
    for place in ("licence", "report.weather", "report.passes.0.seconds", "report.notes.mine"):
        assert read_manifest(written(changed(place, {"a": [1]})))


@pytest.mark.parametrize("place", [*GOOD, "base.class", "base.config", "report.passes", "report.passes.0.rows"])
def test_no_field_may_be_missing(place):
    manifest = copy.deepcopy(GOOD)
    *path, last = place.split(".")
    inner: Any = manifest
    for key in path:
        inner = inner[int(key) if isinstance(inner, list) else key]
    del inner[last]
    with pytest.raises(CompressError, match=last):
        check_manifest(manifest, "it")


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("loads_with", "pickle", "manifest.loads_with=pickle: it should be 'transformers', 'fxcompress' or 'graph'"),
        ("base.class", "os.system", "manifest.base.class=os.system: it should be the name of a class"),
        ("base.class", None, "manifest.base.class=None: it should be a valid string"),
        ("base.config", [], "manifest.base.config"),
        ("base.code", "x", "manifest.base.code=x: Extra inputs are not permitted"),
        ("steps", {}, "manifest.steps={}: it should be a valid list"),
        ("steps.0.keep", [], "steps[0]: a step has the fields pass, keep and remove"),
        ("steps.0.more", 1, "steps[0]: a step has no fields ['more']"),
        ("steps.0.sparse", {"a": 0.5}, "sparse is patterns by parameter"),
        ("steps.0.remove", "layers.1", "steps[0]: a step has the fields pass, keep and remove"),
        ("steps.0.keep.b", "0-999999999", "steps[0]: 'b': '0-999999999' stands for too many indices"),
        ("steps.0.keep.b", ["0", "0-1"], "rows of kept indices have the shapes (1,) and (2,)"),
        ("numbering.input_ids", "0-999999999", "stands for too many indices"),
        ("numbering.input_ids", ["0", "1"], "numbering.input_ids has rows"),
        ("report.passes.0.rows.0.of", "8", "manifest.report.passes.0.rows.0.of=8: it should be a valid integer"),
        ("report.passes.0.rows.0.of", -1, "it should be greater than or equal to 0"),
        ("report.passes.0.before.parameters", 0, "it should be greater than 0"),
        ("report.notes.runs.0.sha256", {"../x": "0" * 64}, "it should be the name of a file beside this one"),
        ("report.reload_error", "none", "manifest.report.reload_error=none: it should be a valid number"),
        ("sha256", {}, "it should have at least 1 item"),
        ("sha256", {"../model.safetensors": "ab" * 32}, "it should be the name of a file beside this one"),
        ("sha256", {"a\0": "ab" * 32}, "it should be the name of a file beside this one"),
        ("sha256", {"model.safetensors": "ab" * 31}, "it should match"),
        ("sha256", {"model.safetensors": "ab" * 32 + "\n"}, "it should match"),
        ("versions", {str(i): 0 for i in range(20_000)}, "it should have at most 10,000 fields"),
    ],
)
def test_a_field_that_is_wrong_is_named(place, value, said):
    with pytest.raises(CompressError) as error:
        check_manifest(changed(place, value), "it")
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not JSON"),
        (b"[]", "it has no field format"),
        (b"{}", "it has no field format"),
        (b"\xff", "can't decode"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"format": 1, "format": 2}', "it has format twice"),
        ({**GOOD, "format": 2}, "has format 2; this version of fxcompress reads format 1"),
        ({**GOOD, "format": "1"}, "has format 1; this version of fxcompress reads format 1"),
        ({**GOOD, "format": True}, "manifest.format=True: it should be a valid integer"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused(written, content, said):
    with pytest.raises(CompressError) as error:
        read_manifest(written(content))
    assert said in str(error.value)
    assert MANIFEST in str(error.value)


def test_a_file_that_is_too_large_is_not_read(written):
    folder = written(GOOD)
    with (folder / MANIFEST).open("r+b") as stream:
        stream.truncate(MOST_BYTES * 1000)  # sparse
    with pytest.raises(CompressError, match="is larger than"):
        read_manifest(folder)


def test_a_directory_without_one_is_no_result(tmp_path):
    with pytest.raises(CompressError, match="it is not a result of fxcompress"):
        read_manifest(tmp_path)


def test_a_manifest_elsewhere_is_not_followed(written, tmp_path):
    written(GOOD)
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / MANIFEST).symlink_to(tmp_path / MANIFEST)
    with pytest.raises(CompressError, match="is a link to a file outside its directory"):
        read_manifest(tmp_path / "result")


def test_the_weights_are_the_files_with_hashes(tmp_path):
    with pytest.raises(CompressError, match=r"model\.safetensors is missing"):
        result_files(tmp_path, GOOD)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert result_files(tmp_path, GOOD) == {"model.safetensors": tmp_path / "model.safetensors"}
    (tmp_path / "more.safetensors").write_bytes(b"")
    with pytest.raises(CompressError, match=r"more\.safetensors is not among the weights that were saved"):
        result_files(tmp_path, GOOD)


def test_a_report_that_was_read_can_be_shown():
    report = Report.from_json(GOOD["report"])
    assert report.to_json() == GOOD["report"]
    assert "PruneFFN" in report.to_text()
    assert "PruneFFN" in report.to_html()


@pytest.mark.parametrize("data", [None, [], {}, {"passes": None}, {"passes": [{}]}, {"passes": [], "notes": []}])
def test_what_is_no_report_is_refused(data):
    with pytest.raises(CompressError, match="report"):
        Report.from_json(data)
