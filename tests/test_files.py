"""What lies in a checkpoint's directory is what its index and headers say, or is refused before a value is read."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fxcompress import CompressError
from fxcompress.files import INDEX, WEIGHTS, inside, read_header, weight_files

Change = Callable[[Path], object]


def tensors(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.arange(6.0).view(2, 3) for name in names}


def write(file: Path, header: object, values: int = 0) -> Path:
    """A safetensors file with any header and so many bytes of values."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(values))
    return file


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(tensors("a", "b"), folder / "1.safetensors")
    save_file(tensors("c"), folder / "2.safetensors")
    set_index({"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"})(folder)
    return folder


def set_index(placed: object) -> Change:
    return lambda folder: (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))


def linked(folder: Path) -> None:
    (folder / "2.safetensors").rename(folder.parent / "elsewhere")
    (folder / "2.safetensors").symlink_to(folder.parent / "elsewhere")


def linked_in_a_circle(folder: Path) -> None:
    (folder / "2.safetensors").unlink()
    (folder / "2.safetensors").symlink_to(folder / "2.safetensors")


def test_every_tensor_has_its_file(sharded):
    assert {name: file.name for name, file in weight_files(sharded).items()} == {
        "a": "1.safetensors",
        "b": "1.safetensors",
        "c": "2.safetensors",
    }


def test_one_file_needs_no_index(tmp_path):
    save_file(tensors("a"), tmp_path / WEIGHTS)
    assert weight_files(tmp_path) == {"a": tmp_path / WEIGHTS}


def test_a_config_alone_has_no_weights(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert weight_files(tmp_path) == {}


@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.bfloat16, torch.float64, torch.complex64])
def test_a_header_is_read_as_it_was_written(tmp_path, kind):
    save_file({"a": torch.zeros(3, 5, dtype=kind), "none": torch.zeros(0, 7, dtype=kind)}, tmp_path / WEIGHTS)
    header = read_header(tmp_path / WEIGHTS)
    assert {name: stored.shape for name, stored in header.items()} == {"a": (3, 5), "none": (0, 7)}
    assert header["a"].end - header["a"].begin == 15 * kind.itemsize


BROKEN: dict[str, tuple[Change, str]] = {
    "a missing shard": (lambda d: (d / "2.safetensors").unlink(), "2.safetensors is missing: the index names 2 files"),
    "swapped shards": (
        set_index({"a": "2.safetensors", "b": "1.safetensors", "c": "1.safetensors"}),
        "has a in 2.safetensors, but it is in 1.safetensors",
    ),
    "a tensor in no shard": (
        set_index({"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors", "d": "2.safetensors"}),
        "names d, which is not in 2.safetensors",
    ),
    "a tensor that is not named": (
        set_index({"a": "1.safetensors", "c": "2.safetensors"}),
        "does not name b, which is in 1.safetensors",
    ),
    "a tensor in two shards": (
        lambda d: save_file(tensors("a", "c"), d / "2.safetensors"),
        "a is in both 1.safetensors and 2.safetensors",
    ),
    "an index of nothing": (set_index({}), "is not an index of weights"),
    "an index of lists": (set_index([["a", "b"]]), "is not an index of weights"),
    "an index of numbers": (set_index({"a": 1}), "is not an index of weights: a is in 1, no file"),
    "a file of another directory": (set_index({"a": "../1.safetensors"}), "outside its directory: ../1.safetensors"),
    "a file of the machine's": (set_index({"a": "/etc/passwd"}), "outside its directory: /etc/passwd"),
    "the directory itself": (set_index({"a": "."}), "outside its directory: ."),
    "the one above": (set_index({"a": ".."}), "outside its directory: .."),
    "no name": (set_index({"a": ""}), "outside its directory"),
    "a name with NUL": (set_index({"a": "a\0"}), r"outside its directory: 'a\x00'"),
    "a name that moves the cursor": (set_index({"a": "\x1b[2Ja"}), r"outside its directory: '\x1b[2Ja'"),
    "a tensor named twice": (
        lambda d: (d / INDEX).write_text('{"weight_map": {"a": "1.safetensors", "a": "2.safetensors"}}'),
        "it has a twice",
    ),
    "a link that leads out": (linked, "is a link to a file outside its directory"),
    "a link in a circle": (linked_in_a_circle, "2.safetensors"),
    "weights of two kinds": (lambda d: save_file(tensors("a"), d / WEIGHTS), "remove one of them"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_index_and_files_do_not_agree_on_is_refused(sharded, what):
    change, said = BROKEN[what]
    change(sharded)
    with pytest.raises(CompressError) as error:
        weight_files(sharded)
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("shared", [False, True])
def test_a_snapshot_of_a_download_cache_links_to_its_blobs(tmp_path, shared):
    snapshot, blobs = tmp_path / "models--a" / "snapshots" / "0f", tmp_path / "models--a" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    save_file(tensors("a"), tmp_path / "values")
    if shared:
        (tmp_path / "blobs").mkdir()
        (tmp_path / "values").rename(tmp_path / "blobs" / "77")
        (blobs / "42").symlink_to("../../blobs/77")
    else:
        (tmp_path / "values").rename(blobs / "42")
    (snapshot / WEIGHTS).symlink_to("../../blobs/42")
    assert weight_files(snapshot) == {"a": snapshot / WEIGHTS}


def test_a_snapshot_that_links_elsewhere_is_refused(tmp_path):
    snapshot = tmp_path / "models--a" / "snapshots" / "0f"
    snapshot.mkdir(parents=True)
    save_file(tensors("a"), tmp_path / "values")
    (snapshot / WEIGHTS).symlink_to("../../../values")
    with pytest.raises(CompressError, match="outside its directory"):
        weight_files(snapshot)


def test_a_link_within_the_directory_is_followed(tmp_path):
    save_file(tensors("a"), tmp_path / "real.safetensors")
    (tmp_path / WEIGHTS).symlink_to("real.safetensors")
    assert inside(tmp_path, WEIGHTS) == tmp_path / WEIGHTS


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt"])
def test_a_pickle_is_never_opened(tmp_path, name):
    torch.save({}, tmp_path / name)
    with pytest.raises(CompressError, match="is a pickle and may run code: save the weights as safetensors"):
        weight_files(tmp_path)


def entry(dtype: object = "F32", shape: object = (2,), place: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": place}


@pytest.mark.parametrize(
    ("header", "values", "said"),
    [
        ({"a": entry()}, 7, "its header is about 8 bytes of values, 7 are there"),
        ({"a": entry()}, 9, "its header is about 8 bytes of values, 9 are there"),
        ({}, 1, "its header is about 0 bytes of values, 1 are there"),
        ({"a": entry(), "b": entry(place=(4, 12))}, 12, "b overlaps with the tensor before it"),
        ({"a": entry(), "b": entry()}, 8, "b overlaps with the tensor before it"),
        ({"a": entry(), "b": entry(place=(12, 20))}, 20, "b comes after a gap"),
        ({"a": entry(place=(4, 12))}, 12, "a comes after a gap"),
        ({"a": entry(place=(8, 0))}, 8, "a is F32 of the shape (2,), which are not -8 bytes"),
        ({"a": entry(place=(0, 4))}, 4, "a is F32 of the shape (2,), which are not 4 bytes"),
        ({"a": entry(place=(-8, 0))}, 0, "a has a shape or place that is no count"),
        ({"a": entry(shape=(-1, -2))}, 8, "a has a shape or place that is no count"),
        ({"a": entry(shape=(True, 2))}, 8, "a has a shape or place that is no count"),
        ({"a": entry(shape=(2.0,))}, 8, "a has a shape or place that is no count"),
        ({"a": entry(shape=(2**32, 2**32))}, 8, "which are not 8 bytes"),  # 0 in 64 bits
        ({"a": entry(shape=(2**62 + 2,))}, 8, "which are not 8 bytes"),  # 8 in 64 bits
        ({"a": entry(shape=(2**64,))}, 8, "a has a shape or place that is no count"),
        ({"a": entry(shape=(10**18,) * 100_000)}, 8, "which are not 8 bytes"),
        ({"a": entry(shape=(10**18, 0))}, 8, "which are not 8 bytes"),
        ({"a": entry("F31")}, 8, "a has the unknown dtype F31"),
        ({"a": entry(["F32"])}, 8, "a has no dtype, shape and data_offsets"),
        ({"a": entry(place=(0, 8, 8))}, 8, "a has no dtype, shape and data_offsets"),
        ({"a": {"dtype": "F32"}}, 8, "a has no dtype, shape and data_offsets"),
        ({"a": []}, 8, "a has no dtype, shape and data_offsets"),
        ({"__metadata__": {"format": 1}}, 0, "its __metadata__ is no mapping of texts"),
        ([], 0, "its header is no mapping of tensors"),
        (b"[" * 100_000, 0, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", 0, "digits"),
        (b'{"a": 1, "a": 2}', 0, "it has a twice"),
        (b"\xff\xfe", 0, "can't decode"),
        (b"", 0, "Expecting value"),
    ],
)
def test_a_header_that_its_file_does_not_fit_is_refused(tmp_path, header, values, said):
    file = write(tmp_path / WEIGHTS, header, values)
    with pytest.raises(CompressError) as error:
        read_header(file)
    assert said in str(error.value)
    assert f"{file} ({file.stat().st_size:,} bytes) is damaged or cut short" in str(error.value)
    assert len(str(error.value)) < len(str(file)) + 400


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 100_000_001, 99_999_999, 1])
def test_the_length_that_a_header_claims_is_not_believed(tmp_path, length):
    (tmp_path / WEIGHTS).write_bytes(struct.pack("<Q", length))
    with pytest.raises(CompressError, match="its header would be of"):
        read_header(tmp_path / WEIGHTS)


@pytest.mark.parametrize("size", [0, 7])
def test_a_file_without_a_length_is_refused(tmp_path, size):
    (tmp_path / WEIGHTS).write_bytes(bytes(size))
    with pytest.raises(CompressError, match=rf"\({size} bytes\) is damaged or cut short"):
        read_header(tmp_path / WEIGHTS)


def test_a_pipe_is_no_file_of_weights(tmp_path):
    """Reading one waits for ever."""
    os.mkfifo(tmp_path / "a.safetensors")
    set_index({"a": "a.safetensors"})(tmp_path)
    with pytest.raises(CompressError, match=r"a\.safetensors is missing"):
        weight_files(tmp_path)
