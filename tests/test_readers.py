"""Whatever is in a file, a reader returns a value that can be used, or raises CompressError: soon, and within memory.

Arbitrary text and bytes, and real files with something changed in them. What readers accept is used right after, since
a value that breaks its user was no valid one. Nothing that is read is ever evaluated.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from fxcompress import CompressError, ProofError
from fxcompress.bounded import parse_json, parse_yaml, read_json
from fxcompress.calibration import read_calibration
from fxcompress.export.tokenizer import rewrite_tokenizer
from fxcompress.files import INDEX, WEIGHTS, read_header, weight_files
from fxcompress.manifest import MANIFEST, check_manifest, read_manifest
from fxcompress.plan import Step, read_ranges, read_steps
from fxcompress.recipe import Calibration, Recipe
from fxcompress.report import Report
from tests.test_manifest import GOOD
from tests.test_recipe import TEXT
from tests.vocabularies import KINDS, tokenizer

CANARY = "touched"
CALL = f"__import__('pathlib').Path('{CANARY}').touch()"

numbers = st.integers() | st.floats() | st.sampled_from([2**31, 2**63, 2**64, -1, 10**4000])
words = st.text(max_size=8) | st.sampled_from(["0-3", "1,2", "F32", "..", "a\0", "\ud800", "pass", WEIGHTS, CALL])
values = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)


@st.composite
def mutated(draw: st.DrawFn, value: Any) -> Any:
    """JSON with one to three places that hold something else, something more or nothing."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 3))):
        inner = draw(st.sampled_from(list(_containers(value)) or [[]]))
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        match draw(st.sampled_from(["set", "delete", "add"] if keys else ["add"])):
            case "set":
                inner[draw(st.sampled_from(keys))] = draw(values)
            case "delete":
                del inner[draw(st.sampled_from(keys))]
            case "add" if isinstance(inner, dict):
                inner[draw(words)] = draw(values)
            case "add":
                inner.append(draw(values))
    return value


def _containers(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _containers(inner)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with a part that is replaced."""
    start = draw(st.integers(0, len(content)))
    end = draw(st.integers(start, min(start + 20, len(content))))
    return content[:start] + draw(st.binary(max_size=20)) + content[end:]


def as_bytes(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


@contextlib.contextmanager
def only_refusals() -> Iterator[None]:
    """What is raised is a CompressError, of at most a page and without what cannot be printed."""
    said = ""
    try:
        yield
    except CompressError as error:
        said = str(error)
    assert len(said) < 3000
    assert said.replace("\n", "").isprintable()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples of a test: each writes the same file anew."""
    return tmp_path_factory.mktemp("readers")


# Recipes.

YAML = [*"\n -:[]{},?&*!|>%@'\"#~", "- ", ": ", "&a ", "*a", "<<: ", "!!python/name:os.system ", "version: 1", "passes"]
SCALARS = ["PruneFFN", "ratio", "1_0", "0x1F", "0o7", "1:2:3", "2001-99-99", "yes", ".nan", "-.inf", "9" * 5000, CALL]
CALLS = [*"()[]{},=*.:-+'\"\\ \n\0", "PruneFFN", "RemoveLayers", "ratio=", "layers=", "(0, -1)", "__class__", CALL]
LITERALS = ["0.25", "1e999", "0x" + "f" * 5000, "b'x'", "...", "1j", "f'{1}'", "None", "True", "not ", "lambda: ", "**"]
yaml_pieces, call_pieces = st.sampled_from([*YAML, *SCALARS]), st.sampled_from([*CALLS, *LITERALS])


@given(st.text() | st.lists(yaml_pieces, max_size=12).map("".join))
def test_any_text_is_a_recipe_or_refused(text):
    with only_refusals():
        recipe = Recipe.from_yaml(text)
        assert Recipe.from_yaml(recipe.to_yaml()) == recipe


CONTENT = parse_yaml(TEXT, 10_000)


@given(mutated(CONTENT))
def test_a_recipe_with_something_else_in_it_is_read_or_refused(content):
    with only_refusals():
        recipe = Recipe.from_yaml(json.dumps(content))
        assert Recipe.from_yaml(recipe.to_yaml()) == recipe


@given(content=damaged(TEXT.encode()))
def test_a_damaged_recipe_file_is_read_or_refused(folder, content):
    (folder / "recipe.yaml").write_bytes(content)
    with only_refusals():
        Recipe.load(folder / "recipe.yaml")


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
@given(st.text() | st.lists(call_pieces, max_size=12).map("".join))
def test_any_text_is_a_pass_or_refused(text):
    with only_refusals():
        Recipe.parse_pass(text)


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
@given(st.lists(call_pieces, max_size=6).map("".join))
def test_any_option_is_taken_or_refused(text):
    with only_refusals():
        Recipe.parse_pass(f"PruneFFN(ratio=0.25, layers={text})")


# Plans and manifests.


@given(values | mutated(GOOD["steps"]))
def test_any_json_is_a_plan_or_refused(data):
    with only_refusals():
        steps = read_steps(data)
        assert [Step.from_json(step.to_json()).name for step in steps] == [step.name for step in steps]
    with only_refusals():
        assert read_ranges(data).dtype == torch.long


@given(values | mutated(GOOD))
def test_any_json_is_a_manifest_or_refused(data):
    with only_refusals():
        check_manifest(data, "it")
        report = Report.from_json(data["report"])
        assert report.to_text()
        assert report.to_html()


@given(content=st.binary() | damaged(as_bytes(GOOD)))
def test_any_bytes_are_a_manifest_or_refused(folder, content):
    (folder / MANIFEST).write_bytes(content)
    with only_refusals():
        read_manifest(folder)


# Weights.

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(0, 5), "c": torch.ones(4, dtype=torch.int8)}


@pytest.fixture(scope="module")
def weights(folder: Path) -> bytes:
    save_file(TENSORS, folder / "real", metadata={"format": "pt"})
    return (folder / "real").read_bytes()


def opens_as_the_library_opens_it(file: Path) -> None:
    header = read_header(file)
    with safe_open(file, "pt") as stream:
        assert set(stream.keys()) == set(header)
        for name, stored in header.items():
            assert tuple(stream.get_slice(name).get_shape()) == stored.shape


@given(data=st.data())
def test_what_is_read_of_damaged_weights_is_what_the_library_reads(folder, weights, data):
    (folder / "damaged").write_bytes(
        data.draw(st.binary() | damaged(weights) | st.builds(bytes.__add__, st.just(weights), st.binary()))
    )
    with only_refusals():
        opens_as_the_library_opens_it(folder / "damaged")


@given(data=st.data())
def test_a_header_with_something_else_in_it_is_read_as_the_library_reads_it(folder, weights, data):
    length = int.from_bytes(weights[:8], "little")
    header = as_bytes(data.draw(mutated(parse_json(weights[8 : 8 + length].decode()))))
    (folder / "mutated").write_bytes(len(header).to_bytes(8, "little") + header + weights[8 + length :])
    with only_refusals():
        opens_as_the_library_opens_it(folder / "mutated")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    for name, tensor in TENSORS.items():
        save_file({name: tensor}, folder / f"{name}.safetensors")
    return folder


@given(content=st.binary() | mutated({"weight_map": {n: f"{n}.safetensors" for n in TENSORS}}).map(as_bytes))
def test_any_bytes_are_an_index_or_refused(sharded, content):
    (sharded / INDEX).write_bytes(content)
    with only_refusals():
        assert all(tensor in read_header(file) for tensor, file in weight_files(sharded).items())


# Tokenizers and texts.


@pytest.fixture(scope="module", params=KINDS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "small").mkdir()
    tokenizer(request.param).save_pretrained(folder)
    (folder / "kept.json").write_text(json.dumps(sorted(tokenizer(request.param).get_vocab().values())))
    return folder


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@given(data=st.data())
@settings(max_examples=10)
def test_a_tokenizer_with_something_else_in_it_is_rewritten_or_refused(source, name, data):
    real = (source / name).read_text()
    kept = json.loads((source / "kept.json").read_text())
    (source / name).write_bytes(as_bytes(data.draw(mutated(json.loads(real)))))
    try:
        with only_refusals(), contextlib.suppress(ProofError):
            rewrite_tokenizer(source, source / "small", kept)
    finally:
        (source / name).write_text(real)


@given(content=st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
@settings(max_examples=30)
def test_any_bytes_are_a_calibration_text_or_refused(source, content):
    (source / "text.txt").write_bytes(content)
    with only_refusals():
        (batch,) = read_calibration(Calibration(file=str(source / "text.txt"), samples=1, length=4), source)
        assert batch.shape == (1, 4)


# Bombs: short texts that stand for much.


def nested(text: str, depth: int = 100_000) -> str:
    return text * depth


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}]\n" for i in range(1, 30))
BOMBS: dict[str, Callable[[], object]] = {
    "a billion laughs": lambda: Recipe.from_yaml(LAUGHS),
    "a list that holds itself": lambda: Recipe.from_yaml("&a [*a]"),
    "nested YAML": lambda: Recipe.from_yaml(nested("[")),
    "nested YAML in blocks": lambda: Recipe.from_yaml(nested("- ")),
    "a number to the base of 60": lambda: Recipe.from_yaml("version: " + "1:" * 100_000 + "1"),
    "a number in hexadecimals": lambda: Recipe.from_yaml("version: 0x" + "f" * 1_000_000),
    "a recipe of two megabytes": lambda: Recipe.from_yaml("a" * 2_000_000),
    "nested brackets": lambda: Recipe.parse_pass(f"PruneFFN(ratio={nested('(')}"),
    "nested signs": lambda: Recipe.parse_pass(f"PruneFFN(ratio={nested('-')}1)"),
    "nested powers": lambda: Recipe.parse_pass("PruneFFN(ratio=9**9**9**9)"),
    "a long product": lambda: Recipe.parse_pass(f"PruneFFN(ratio={nested('9*')}9)"),
    "a pass of two megabytes": lambda: Recipe.parse_pass("a" * 2_000_000),
    "a range of a billion": lambda: read_ranges("0-999999999"),
    "ranges of a billion together": lambda: read_ranges(["0-9999999"] * 100),
    "ranges of a billion in many steps": lambda: read_steps(
        [{"pass": "p", "keep": {"a": "0-9999999"}, "remove": []}] * 100
    ),
    "nested rows": lambda: read_ranges([[[["0"]]]]),
    "nested JSON": lambda: parse_json(nested("[")),
    "a number of many digits": lambda: parse_json("9" * 1_000_000),
}


@pytest.mark.parametrize("what", BOMBS)
def test_a_bomb_is_refused_soon_and_within_memory(what):
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises(CompressError) as error:
        BOMBS[what]()
    assert time.perf_counter() - began < 10  # seconds, where cores are shared
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000  # kilobytes
    assert len(str(error.value)) < 1000


def test_a_file_without_an_end_is_not_read():
    with pytest.raises(CompressError, match="it is no file"):
        read_json(Path("/dev/zero"), 1000)


# Nothing is evaluated.


class Canary:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (CALL,)


def test_nothing_that_is_read_is_evaluated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    payloads = [CALL, f'!!python/object/apply:exec ["{CALL}"]', f"PruneFFN(ratio={CALL})", json.dumps({CALL: CALL})]
    content = [*(text.encode() for text in payloads), pickle.dumps(Canary())]
    for text in payloads:
        with only_refusals():
            Recipe.from_yaml(text)
        with only_refusals():
            Recipe.parse_pass(text)
        with only_refusals():
            read_ranges(text)
    for name in (MANIFEST, INDEX, WEIGHTS, "pytorch_model.bin"):
        for each in content:
            (tmp_path / name).write_bytes(each)
            with only_refusals():
                read_manifest(tmp_path)
            with only_refusals():
                weight_files(tmp_path)
        (tmp_path / name).unlink()
    assert not (tmp_path / CANARY).exists()
    pickle.loads(content[-1])
    assert (tmp_path / CANARY).exists(), "the canary can sing"
